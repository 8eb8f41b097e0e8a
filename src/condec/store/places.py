"""Places: the positions of a sample whose contributions a store keeps one by one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from condec.basis.records import short_repr
from condec.basis.shapes import Activation, RowIndex, SampleIndex
from condec.network import FoldedUnits, PackedInput
from condec.store.shards import SiteInfo

Rows = Literal["samples", "positions"]
"""What is a row of a matrix: a sample, summed over positions, or a position of one."""
_WITH_TOKENS: Final = ("channels", "features", "heads")


@short_repr
@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows of ``Store.matrix(site, rows="positions")`` are, from `Store.places`.

    `sample` [row] counts valid samples as the rows of other matrices do; `position` [row] counts
    the site's positions in the order of the axes of its activation (of counted tokens alone), from
    0. `n_places` [sample] is the number of positions of each sample, kept or not, without padding.
    """

    sample: RowIndex
    position: RowIndex
    n_places: SampleIndex


def chosen_places(
    info: SiteInfo,
    ids: Sequence[str],
    seed: int,
    real: Bool[Tensor, "sample position"] | None = None,
) -> tuple[Int[Tensor, "sample place"], SampleIndex]:  # fmt: skip
    """Draw the positions of samples that are kept, ascending, -1 where there are fewer.

    And return their number a sample. Drawn from the seed, the site and the sample's id alone, among
    those that are `real`: each has a number of its own, and the lowest are kept.
    """
    texts = (f"{seed}\0{info.site.key}\0{name}".encode(errors="surrogatepass") for name in ids)
    keys = b"".join(hashlib.sha256(text).digest()[:8] for text in texts)
    numbers = _mixed(np.frombuffer(keys, "<u8"), info.n_places)
    there = np.ones(numbers.shape, bool) if real is None else real.numpy()
    numbers[~there] = np.iinfo(np.uint64).max
    found = np.argpartition(numbers, info.n_kept - 1, axis=1)[:, : info.n_kept]
    last = np.where(np.take_along_axis(there, found, 1), found, info.n_places)
    last.sort(1)
    chosen = np.where(last < info.n_places, last, -1).astype(np.int32)
    return torch.from_numpy(chosen), torch.from_numpy(there.sum(1, dtype=np.int32))


def _mixed(keys: "np.typing.NDArray[np.uint64]", n: int) -> Any:
    """Return the first numbers of SplitMix64 (Steele, Lea & Flood 2014), [key, number].

    No generator of a library gives the same draws in all its versions, and on every device.
    """
    x = keys[:, None] + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def real_places(
    model: nn.Module, inputs: Activation, info: SiteInfo
) -> Bool[Tensor, "sample position"] | None:
    """Mark positions that are no padding; None where all are, or where positions are no tokens."""
    real = model.real(inputs) if isinstance(model, PackedInput) else None
    units = info.units
    if real is None or units.layout not in _WITH_TOKENS or isinstance(units, FoldedUnits):
        return None
    real = real if units.tokens is None else real[:, slice(*units.tokens)]
    return real.cpu() if real.shape[1] == info.n_places else None
