"""Rows of a fit: split, prepared, in memory or read in blocks where they do not fit there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.options import digest_of
from condec.basis.read_ahead import ahead
from condec.basis.shapes import RowIndex, SampleIndex, UnitMatrix
from condec.dictionary.base import Learner, as_matrix, origin_of, samples_of, with_samples
from condec.dictionary.fitting.preparation import Moments, Preparation
from condec.dictionary.records import TrainConfig, complement

Batches = Iterator[UnitMatrix]

_FLOAT: Final = 4
_BUFFER: Final = 1 / 8
"""Share of the memory for rows that are shuffled at once: some are being read, some copied."""
_SAMPLE: Final = 1 / 16
"""Share of the memory for rows that stay there, of each split."""
_COPIES: Final = 6
"""How many times a matrix in memory is there while it is fitted: split, float64, prepared."""


@runtime_checkable
class StoredRows(Protocol):
    """A matrix [sample, unit] that is read in blocks of rows, such as that of `Store.rows`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and units."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of rows of every block, in order."""

    def read(self, block: int) -> UnitMatrix:
        """Rows of one block, float32."""

    def all(self) -> UnitMatrix:
        """All rows, float32."""


def memory_of(shape: tuple[int, ...]) -> int:
    """Return the bytes that fitting a matrix in memory takes, with the copies made of it."""
    n_rows, n_units = shape
    return _COPIES * _FLOAT * n_rows * n_units


def fits(matrix: StoredRows, memory_gib: float) -> bool:
    """Tell whether a matrix can be fitted in memory."""
    return memory_of(matrix.shape) <= memory_gib * 2**30


class TrainingRows:
    """Prepared rows that a learner descends on: here, those of a tensor, where it is.

    `sample` [row, unit], on the device, has all `n_rows`, or as many as the memory allows.
    """

    def __init__(self, matrix: UnitMatrix) -> None:
        self.sample, self.device = matrix, matrix.device
        self.n_rows, self.n_units = matrix.shape

    def batches(self, generator: torch.Generator, batch_size: int, done: int = 0) -> Batches:
        """Pass over all rows once, in an order drawn from `generator`, less the first `done`."""
        order = torch.randperm(self.n_rows, generator=generator).to(self.device)
        for rows in torch.split(order, batch_size)[done:]:
            yield self.sample[rows]

    @cached_property
    def digest(self) -> str:
        """Digest that tells these rows from others."""
        return digest_of(self.sample)


class RowsInBlocks(TrainingRows):
    """Training rows of a stored matrix, prepared as they are read.

    Blocks come in random order; those that fit into the memory together are shuffled together. A
    pass before works out `moments` and `preparation`, and draws rows of either split that stay, as
    they are stored (`train`, `held_out`): as many as the memory allows.
    """

    def __init__(self, matrix: StoredRows, held_out_rows: SampleIndex, config: TrainConfig) -> None:
        n_rows, n_units = matrix.shape
        self._matrix = matrix
        self._room = int(_BUFFER * config.memory_gib * 2**30) // (_FLOAT * n_units)
        if max(matrix.blocks) > self._room:
            needed = max(matrix.blocks) * _FLOAT * n_units / _BUFFER / 2**30
            raise DataError(
                f"fit: a block of the stored matrix has {max(matrix.blocks)} rows of {n_units} "
                f"units; to fit in blocks, memory_gib must be at least {needed:.3g}, got "
                f"{config.memory_gib:g}. Raise it, or collect with a smaller shard_size."
            )
        stops = torch.tensor(matrix.blocks).cumsum(0).tolist()
        bounds = list(zip([0, *stops[:-1]], stops, strict=True))
        train_rows = complement(held_out_rows, n_rows)
        self._rows = [_within(train_rows, start, stop) for start, stop in bounds]
        most = max(1, int(_SAMPLE * config.memory_gib * 2**30) // (_FLOAT * n_units))
        wanted = [_some(train_rows, most), _some(held_out_rows, most)]
        found: list[list[Tensor]] = [[], []]
        moments: Moments | None = None
        for block, (start, stop) in enumerate(bounds):
            rows = as_matrix(matrix.read(block), "fit", start)
            for chosen, parts in zip(wanted, found, strict=True):
                parts.append(rows[_within(chosen, start, stop)])
            if len(self._rows[block]):
                mine = Moments.of(rows[self._rows[block]])
                moments = mine if moments is None else moments.merged(mine)
        if moments is None:
            raise DataError("fit: no row is left to fit")
        self.moments = moments
        self.preparation = Preparation.fitted(moments, config.scaling, config.centre)
        self.train, self.held_out = torch.cat(found[0]), torch.cat(found[1])
        super().__init__(self.preparation.apply(self.train).to(config.device or "cpu"))
        self.n_rows = len(train_rows)

    def batches(self, generator: torch.Generator, batch_size: int, done: int = 0) -> Batches:
        """Pass over all rows, in an order that is random within blocks that are read together."""
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

    @cached_property
    def digest(self) -> str:
        """Digest of the moments, the sample and the blocks, which decide on the order."""
        blocks = torch.tensor([*map(len, self._rows), self._room])
        parts = (self.moments.mean, self.moments.m2, self.train, blocks)
        return "-".join(map(digest_of, parts))

    def _order(self, generator: torch.Generator) -> Iterator[tuple[list[int], Tensor]]:
        """Yield blocks that are read together, and the order of their training rows."""
        group, number = list[int](), 0
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
        return self.preparation.apply(rows[order])


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows of one fit: prepared in `rows`, for a learner by gradient descent on the device.

    `train` and `held_out` are rows of either split as they came, to be measured: all of them, or
    a sample of those that do not fit in memory. `n_rows` counts both splits; `origin` is as in
    `Training`.
    """

    rows: TrainingRows
    preparation: Preparation
    train: Tensor
    held_out: Tensor
    n_rows: int
    held_out_rows: SampleIndex
    origin: str


def prepare(
    learner: Learner, matrix: Tensor | np.ndarray | StoredRows, config: TrainConfig,
    held_out_rows: Tensor | np.ndarray | None,
) -> Prepared:  # fmt: skip
    """Split rows and scale them; the errors are those of `fit`."""
    check_freeze(learner, config)
    origin = origin_of(matrix)
    if not isinstance(matrix, Tensor | np.ndarray) and fits(matrix, config.memory_gib):
        matrix = with_samples(matrix.all(), samples_of(matrix))
    if isinstance(matrix, Tensor | np.ndarray):
        given = as_matrix(matrix, "fit")
        apart = _held_out(given, config, held_out_rows)
        train = given[complement(apart, len(given)).to(given.device)]
        preparation = Preparation.fitted(Moments.of(train), config.scaling, config.centre)
        rows = preparation.apply(train)
        rows = rows.to(config.device or given.device) if learner.by_descent else rows
        held_out = given[apart.to(given.device)]
        shown = (preparation, train, held_out)
        found = Prepared(TrainingRows(rows), *shown, len(given), apart, origin)
    elif not learner.by_descent:
        raise DataError(
            f"fit: {type(learner).__name__} needs all rows in memory, and {matrix.shape[0]} rows "
            f"of {matrix.shape[1]} units do not fit in {config.memory_gib:g} GiB with the copies "
            "that fitting makes; raise TrainConfig.memory_gib, or take a learner by gradient "
            "descent, which reads them in blocks"
        )
    else:
        apart = _held_out(matrix, config, held_out_rows)
        blocks = RowsInBlocks(matrix, apart, config)
        shown = (blocks.preparation, blocks.train, blocks.held_out)
        found = Prepared(blocks, *shown, matrix.shape[0], apart, origin)
    learner.check(found.rows.sample)
    return found


def check_freeze(learner: Learner, config: TrainConfig) -> None:
    """Refuse to freeze a half that a learner does not have."""
    if config.freeze is not None and not learner.freezes:
        raise OptionError(
            f"fit: {type(learner).__name__} has no {config.freeze} that could stay as it was "
            "drawn; leave TrainConfig.freeze at None"
        )


def split_rows(n_rows: int, held_out: float, seed: int = 0) -> SampleIndex:
    """Draw a share of `n_rows` rows to hold out, ascending.

    At least one row, and never all, where `held_out` is above 0; DataError where there are
    fewer than two.

    >>> split_rows(10, 0.2).shape
    torch.Size([2])
    """
    if held_out and n_rows < 2:
        raise DataError(f"split: at least 2 rows are needed to hold some out; got {n_rows}")
    number = min(max(round(held_out * n_rows), 1), n_rows - 1) if held_out else 0
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return order[:number].sort().values


def rows_of(matrix: Any, chosen: SampleIndex) -> RowIndex:
    """Return the rows of some of a matrix's samples, ascending."""
    samples = samples_of(matrix)
    if samples is None:
        return chosen.sort().values
    return torch.isin(samples, torch.unique(samples)[chosen]).nonzero().flatten()


def count_samples(matrix: Any) -> int:
    """Count the samples of a matrix; its rows, where it does not tell."""
    samples = samples_of(matrix)
    return matrix.shape[0] if samples is None else len(torch.unique(samples))


def draw_held_out(matrix: Any, config: TrainConfig) -> RowIndex:
    """Draw the rows to hold out, of a sample all or none."""
    apart = split_rows(count_samples(matrix), config.held_out, config.split_seed)
    return rows_of(matrix, apart)


def _held_out(matrix: Any, config: TrainConfig, wanted: Tensor | np.ndarray | None) -> SampleIndex:
    n_rows = matrix.shape[0]
    if not n_rows:
        raise DataError(f"fit: expected at least one row; got shape {tuple(matrix.shape)}")
    if wanted is None:
        return draw_held_out(matrix, config)
    given: Tensor = torch.as_tensor(wanted).cpu()
    if given.dtype is torch.bool or given.is_floating_point() or given.ndim != 1:
        raise DataError(
            f"fit: held_out_rows must be numbers of rows, one axis of whole numbers; got "
            f"{given.dtype} of shape {tuple(given.shape)}. Of a mask take mask.nonzero().flatten()."
        )
    rows: Tensor = torch.unique(given.to(torch.int64))
    if len(rows) and not 0 <= int(rows[0]) <= int(rows[-1]) < n_rows:
        raise DataError(
            f"fit: held_out_rows must be among 0 ... {n_rows - 1}; got {int(rows[0])} ... "
            f"{int(rows[-1])}"
        )
    if len(rows) == n_rows:
        raise DataError(f"fit: all {n_rows} rows are held out; none is left to fit")
    return rows


def _within(rows: SampleIndex, start: int, stop: int) -> Tensor:
    """Return those of ascending rows that are in a block, counted from its start."""
    ends = torch.searchsorted(rows, torch.tensor([start, stop]))
    return rows[int(ends[0]) : int(ends[1])] - start


def _some(rows: SampleIndex, most: int) -> Tensor:
    """Draw at most so many of the rows, ascending."""
    if len(rows) <= most:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[:most].sort().values]
