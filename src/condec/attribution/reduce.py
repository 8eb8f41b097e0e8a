"""From entries at every position to one positive and one negative number a unit."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from condec.attribution.targets.base import wide
from condec.basis.shapes import Activation, SignedUnits, UnitMatrix
from condec.network import Units


def split_and_sum(values: Activation, units: Units) -> SignedUnits:
    r"""Split by sign, then sum over positions.

    .. math:: R_{s+u} = \sum_p \max(v_{sup}, 0), \qquad R_{s-u} = \sum_p \min(v_{sup}, 0)

    The split comes first, so that effects of opposite sign at different positions do not
    cancel (Melander et al. 2026, "spatial reduction").

    Parameters
    ----------
    values : Tensor of shape [sample, ...]
        Contributions or activations at one site.
    units : Units
        Axes that are units; all others but the first are positions.

    Returns
    -------
    Tensor of shape [sample, sign=2, unit]
        Signs in the order ("positive", "negative"); half precision is summed in float32.

    Examples
    --------
    >>> values = torch.tensor([[[1.0, -2.0, 3.0]]])          # one sample, one channel, x = 3
    >>> split_and_sum(values, Units("channels")).tolist()
    [[[4.0], [-2.0]]]
    """
    expanded = units.expand(values)
    axes = units.axes(expanded.ndim)
    positions = [axis for axis in range(1, expanded.ndim) if axis not in axes]
    dtype = wide(values)

    signs = (expanded.clamp(min=0), expanded.clamp(max=0))
    sums = [part.sum(positions, dtype=dtype) if positions else part.to(dtype) for part in signs]
    return torch.stack([part.flatten(1) for part in sums], dim=1)


def by_position(values: Activation, units: Units) -> Float[Tensor, "sample position unit"]:
    """Lay an activation out by position, in the order of its axes; a view where that is possible.

    The entries of a head at one token are added, with their sign: no two heads share them. Of a
    site without positions, there is one.

    >>> by_position(torch.arange(6.0).view(1, 2, 3), Units("channels")).tolist()
    [[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]]
    """
    laid = units.expand(values)
    axes = units.axes(laid.ndim)
    if units.n_heads is not None:
        laid = laid.sum(-1, dtype=wide(values))
    positions = [axis for axis in range(1, laid.ndim) if axis not in axes]
    laid = laid.permute(0, *positions, *axes).flatten(1 + len(positions))
    return laid.flatten(1, -2) if positions else laid[:, None]


def merge_signs(reduced: SignedUnits) -> Tensor:
    """Add positive and negative sums, shape [sample, unit]."""
    return reduced.sum(1)


def spread_units(values: UnitMatrix, units: Units, shape: Sequence[int]) -> Activation:
    """Lay values [sample, unit] over all positions of an activation of `shape` (with samples).

    Zero at tokens that do not count.

    >>> spread_units(torch.tensor([[1.0, 2.0]]), Units("channels"), (1, 2, 3)).tolist()
    [[[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]]
    """
    which = unit_numbers(units, shape).to(values.device)
    laid = values[:, which.clamp(min=0).flatten()].view(len(values), *which.shape)
    return laid * (which >= 0)


def unit_numbers(units: Units, shape: Sequence[int]) -> Tensor:
    """Number every entry of one sample's activation (int64) by its unit; -1 where it has none."""
    numbers = torch.arange(1, units.count(shape) + 1)
    return units.broadcast(numbers, shape).expand(1, *shape[1:])[0] - 1


def position_numbers(units: Units, shape: Sequence[int]) -> Tensor:
    """Number every entry of one sample's activation (int64) by its position; -1 where it has none.

    In the order of `by_position`.
    """
    entries = torch.arange(math.prod(shape[1:]), dtype=torch.float64).view(1, *shape[1:])
    entry_by_entry = (
        units if units.n_heads is None else replace(units, layout="features", n_heads=None)
    )
    laid = by_position(entries, entry_by_entry)[0].long()
    numbers = torch.full((entries.numel(),), -1)
    numbers[laid] = torch.arange(len(laid))[:, None].expand_as(laid)
    return numbers.view(*shape[1:])
