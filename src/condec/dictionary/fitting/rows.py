"""Rows to fit: in memory, or read in blocks, pass by pass, where they do not fit there."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.read_ahead import ahead
from condec.basis.shapes import SampleIndex, UnitMatrix
from condec.dictionary.fitting.preparation import Moments, Preparation
from condec.dictionary.records import complement

_FLOAT: Final = 4
_BUFFER: Final = 1 / 8
"""Share of the memory for rows that are shuffled at once: some are being read, some copied."""
_SAMPLE: Final = 1 / 16
"""Share of the memory for rows that stay there, of each split."""
_READERS: Final = 4
_COPIES: Final = 6
"""How many times a matrix in memory is there while it is fitted: split, float64, prepared."""


@runtime_checkable
class StoredRows(Protocol):
    """A matrix [sample, unit] that is read in blocks of rows, such as `condec.store.StoredMatrix`.

    Attributes
    ----------
    shape : tuple of int
    blocks : tuple of int
        Number of rows of every block, in order.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and units."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of rows of every block, in order."""

    def read(self, block: int) -> UnitMatrix:
        """Rows of one block, float32."""


def fits(matrix: StoredRows, memory_gib: float) -> bool:
    """Whether a matrix can be fitted in memory."""
    n_rows, n_units = matrix.shape
    return _COPIES * _FLOAT * n_rows * n_units <= memory_gib * 2**30


def check_blocks(matrix: StoredRows, memory_gib: float) -> None:
    """Refuse blocks that are too large to be read into the memory.

    Raises
    ------
    DataError
        With what would be enough.
    """
    n_units, largest = matrix.shape[1], max(matrix.blocks)
    if largest > _room(matrix, memory_gib):
        needed = largest * _FLOAT * n_units / _BUFFER / 2**30
        raise DataError(
            f"fit: a block of the stored matrix has {largest} rows of {n_units} units; to fit in "
            f"blocks, memory_gib must be at least {needed:.3g}, got {memory_gib:g}. Raise it, or "
            "collect with a smaller shard_size."
        )


def in_memory(matrix: StoredRows) -> UnitMatrix:
    """All rows."""
    rows = torch.empty(matrix.shape, dtype=torch.float32)
    blocks = ahead(matrix.read, range(len(matrix.blocks)), n_workers=_READERS)
    for part, block in zip(torch.split(rows, list(matrix.blocks)), blocks, strict=True):
        part.copy_(block)
    return rows


class TrainingRows(ABC):
    """Prepared rows that a learner descends on.

    Attributes
    ----------
    sample : Tensor of shape [row, unit]
        On the device: all rows, or as many as the memory allows, drawn at random.
    n_rows : int
        Of all.
    """

    sample: UnitMatrix
    n_rows: int

    @property
    def n_units(self) -> int:
        """Width of the rows."""
        return self.sample.shape[1]

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.sample.device

    @abstractmethod
    def batches(
        self, generator: torch.Generator, batch_size: int, done: int = 0
    ) -> Iterator[UnitMatrix]:
        """One pass over all rows in an order drawn from `generator`, less the first `done`."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Tells these rows from others."""


class RowsInMemory(TrainingRows):
    """Rows of a tensor, where it is."""

    def __init__(self, matrix: UnitMatrix) -> None:
        self.sample, self.n_rows = matrix, len(matrix)

    def batches(
        self, generator: torch.Generator, batch_size: int, done: int = 0
    ) -> Iterator[UnitMatrix]:
        """Rows in random order."""
        order = torch.randperm(self.n_rows, generator=generator).to(self.device)
        for rows in torch.split(order, batch_size)[done:]:
            yield self.sample[rows]

    @cached_property
    def digest(self) -> str:
        """Of all numbers."""
        return _digest(self.sample)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over a stored matrix found.

    Attributes
    ----------
    moments : Moments
        Of the training rows.
    train, held_out : Tensor of shape [row, unit]
        Rows of either split, as many as the memory allows, drawn at random.
    """

    moments: Moments
    train: Tensor
    held_out: Tensor


def survey(matrix: StoredRows, held_out_rows: SampleIndex, memory_gib: float) -> Survey:
    """Moments of the training rows, and a sample of either split, in one pass.

    Raises
    ------
    DataError
        Entries that are not finite.
    """
    n_rows, n_units = matrix.shape
    most = max(1, int(_SAMPLE * memory_gib * 2**30) // (_FLOAT * n_units))
    train_rows = complement(held_out_rows, n_rows)
    wanted = [_some(train_rows, most), _some(held_out_rows, most)]
    found: list[list[Tensor]] = [[], []]
    moments: Moments | None = None
    bounds = _bounds(matrix.blocks)
    for block, (start, stop) in enumerate(bounds):
        rows = matrix.read(block)
        _all_finite(rows, start)
        for chosen, parts in zip(wanted, found, strict=True):
            parts.append(rows[_within(chosen, start, stop)])
        mine = rows[_within(train_rows, start, stop)]
        if len(mine):
            moments = Moments.of(mine) if moments is None else moments.merged(Moments.of(mine))
    if moments is None:
        raise DataError("fit: no row is left to fit")
    return Survey(moments, torch.cat(found[0]), torch.cat(found[1]))


class RowsInBlocks(TrainingRows):
    """Rows of a stored matrix, prepared as they are read.

    Blocks come in random order; those that fit into the memory together are shuffled together,
    and the next ones are read meanwhile.
    """

    def __init__(
        self,
        matrix: StoredRows,
        held_out_rows: SampleIndex,
        seen: Survey,
        preparation: Preparation,
        memory_gib: float,
        device: torch.device,
    ) -> None:
        self._matrix, self._preparation = matrix, preparation
        train = complement(held_out_rows, matrix.shape[0])
        self._rows = [_within(train, start, stop) for start, stop in _bounds(matrix.blocks)]
        self._seen = seen
        self._room = _room(matrix, memory_gib)
        self.sample = preparation.apply(seen.train).to(device)
        self.n_rows = len(train)

    def batches(
        self, generator: torch.Generator, batch_size: int, done: int = 0
    ) -> Iterator[UnitMatrix]:
        """Rows in an order that is random within blocks that are read together."""
        skip, wanted = done * batch_size, []
        for blocks, order in self._order(generator):
            if skip < len(order):
                wanted.append((blocks, order[skip:]))
            skip = max(0, skip - len(order))
        left = torch.empty(0, self.n_units, dtype=torch.float32)
        for shuffled in ahead(lambda item: self._read(*item), wanted):
            rows = torch.cat((left, shuffled)) if len(left) else shuffled
            whole = len(rows) - len(rows) % batch_size
            for start in range(0, whole, batch_size):
                yield rows[start : start + batch_size].to(self.device)
            left = rows[whole:].clone()
        if len(left):
            yield left.to(self.device)

    def _order(self, generator: torch.Generator) -> Iterator[tuple[list[int], Tensor]]:
        """Blocks that are read together, and the order of their training rows."""
        group: list[int] = []
        number = 0
        for block in torch.randperm(len(self._rows), generator=generator).tolist():
            size = len(self._rows[block])
            if group and number + size > self._room:
                yield group, torch.randperm(number, generator=generator)
                group, number = [], 0
            group.append(block)
            number += size
        yield group, torch.randperm(number, generator=generator)

    def _read(self, blocks: Sequence[int], order: Tensor) -> Tensor:
        rows = torch.cat([self._matrix.read(block)[self._rows[block]] for block in blocks])
        return self._preparation.apply(rows[order])

    @cached_property
    def digest(self) -> str:
        """Of the moments, the sample and the blocks, which decide on the order."""
        blocks = torch.tensor([*map(len, self._rows), self._room])
        return _digest(self._seen.moments.mean, self._seen.moments.m2, self._seen.train, blocks)


def _room(matrix: StoredRows, memory_gib: float) -> int:
    """Rows that are shuffled at once."""
    return int(_BUFFER * memory_gib * 2**30) // (_FLOAT * matrix.shape[1])


def _bounds(blocks: Sequence[int]) -> list[tuple[int, int]]:
    stops = torch.tensor(blocks).cumsum(0).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _within(rows: SampleIndex, start: int, stop: int) -> Tensor:
    """Those of ascending rows that are in a block, counted from its start."""
    ends = torch.searchsorted(rows, torch.tensor([start, stop]))
    return rows[int(ends[0]) : int(ends[1])] - start


def _some(rows: SampleIndex, most: int) -> Tensor:
    """At most so many of the rows, ascending."""
    if len(rows) <= most:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[:most].sort().values]


def _all_finite(rows: Tensor, start: int) -> None:
    bad = (~rows.isfinite()).any(1).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"fit: {len(bad)} of the rows {start} ... {start + len(rows) - 1} hold NaN or infinite "
            f"entries (the first is row {start + int(bad[0])}); leave those samples out"
        )


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
