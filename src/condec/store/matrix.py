"""A matrix of a store that is read in blocks, for what does not fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from condec.basis.files import reading
from condec.basis.read_ahead import ahead
from condec.basis.shapes import SIGNS, RowIndex, UnitMatrix
from condec.store.seals import REPAIR
from condec.store.shards import shard_file

if TYPE_CHECKING:
    from condec.store.checked import CheckedFiles

Sign = Literal["positive", "negative", "sum", "concat"]

_READERS: Final = 4


class StoredMatrix:
    """Contributions or activations at a site, of all valid samples, on disk.

    Made by `condec.Store.rows`. A block is what one shard holds of them.

    Attributes
    ----------
    shape : tuple of int
        Rows and units; twice the units for the sign ``concat``.
    blocks : tuple of int
        Number of rows of every block, in order.
    samples : Tensor of int, shape [row], or None
        Which valid sample every row is of, where rows are positions: `condec.fit` holds out all
        rows of a sample or none.
    origin : str
        Digest of which samples the rows are: of the data, and of those that are valid.

    The tensor that `all` gives has `samples` and `origin` as well, parts of it do not.
    """

    def __init__(
        self, files: "CheckedFiles", array: str, spans: Sequence[range],
        valid: Bool[Tensor, "sample ..."], sign: Sign, n_units: int,
        samples: RowIndex | None = None, origin: str = "",
    ) -> None:  # fmt: skip
        self._files, self._array, self._sign = files, array, sign
        self._spans, self.samples, self.origin = tuple(spans), samples, origin
        self._valid = [valid[span.start : span.stop] for span in self._spans]
        self.blocks = tuple(int(kept.sum()) for kept in self._valid)
        self.shape = (sum(self.blocks), n_units * (2 if sign == "concat" else 1))
        self._units = range(n_units)

    def __repr__(self) -> str:
        rows, units = self.shape
        what = "samples" if self.samples is None else "positions"
        return f"StoredMatrix of {rows} {what} x {units} units in {len(self.blocks)} blocks"

    def in_columns(self, most: int) -> "Iterator[StoredMatrix]":
        """Yield the same rows of so many units at most after the others; ``concat``: both parts."""
        for start in range(0, len(self._units), most):
            part = copy(self)
            part._units = self._units[start : start + most]
            part.shape = (self.shape[0], self.shape[1] // len(self._units) * len(part._units))
            yield part

    def read(self, block: int) -> UnitMatrix:
        """Rows of one block; float32. StoreError, with the file, where what is there is damaged."""
        return self._reader()(block)

    def all(self) -> UnitMatrix:
        """All rows, shape [row, unit]; float32."""
        out = torch.empty(self.shape, dtype=torch.float32)
        parts, read = torch.split(out, list(self.blocks)), self._reader()
        # One shard at a time leaves the processor waiting for Zarr's single event loop.
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(lambda block: parts[block].copy_(read(block)), range(len(parts))):
                pass
        out.origin = self.origin  # type: ignore[attr-defined]
        if self.samples is not None:
            out.samples = self.samples  # type: ignore[attr-defined]
        return out

    def each(self) -> Iterator[UnitMatrix]:
        """Yield the rows of one block after the other; the next ones are read meanwhile."""
        return ahead(self._reader(), range(len(self.blocks)), n_workers=_READERS)

    def _reader(self) -> Callable[[int], UnitMatrix]:
        import zarr

        array: Any = zarr.open_array(self._files, path=self._array, mode="r", zarr_format=3)
        which = SIGNS.index(self._sign) if self._sign in SIGNS else slice(None)
        summed, units = self.samples is None, slice(self._units.start, self._units.stop)

        def read(block: int) -> UnitMatrix:
            span, keep = self._spans[block], self._valid[block]
            part = slice(span.start, span.stop)
            with reading(shard_file(self._files.root, self._array, block), "a shard", REPAIR):
                rows = torch.from_numpy(array[part, which if summed else slice(None), units])
            rows = rows if summed and bool(keep.all()) else rows[keep]
            if not summed:
                rows = torch.stack((rows.clamp(min=0), rows.clamp(max=0)), 1)[:, which]
            if self._sign == "sum":
                return torch.add(rows[:, 0], rows[:, 1])
            return rows.reshape(len(rows), self.shape[1])

        return read
