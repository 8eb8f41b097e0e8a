"""Sums over the points of a path: a fixed number of them, and doubling to a tolerance."""

import itertools
import warnings
from collections.abc import Collection, Sequence
from typing import Final

import torch
from torch import Tensor

from condec.attribution.base import Attribution
from condec.attribution.engine import LayerPath, Path, Point
from condec.attribution.targets.base import wide

Totals = dict[str, Tensor]

_FIRST_STEPS: Final = 4
# A target that hardly moves would make every gap large: measured against this share of what
# the contributions add up to without their signs.
_SMALL_CHANGE: Final = 1e-3


def integrate(path: Path, first: Point, steps: int, stack: int) -> Attribution:
    """Sum over a fixed number of intervals, from the inputs back to the baseline.

    No point is kept but the last one (with those it was stacked with).
    """
    total, later = _zeros(first), first
    for chunk in _chunks([k / steps for k in range(steps - 1, 0, -1)], stack):
        for point in path.at(chunk):
            _add_interval(total, later, point)
            later = point
    end = path.end(first)
    _add_interval(total, later, end)
    taken = torch.full_like(first.target, steps, dtype=torch.int64)
    return Attribution(total, first.records, first.output, first.target, end.target, taken)


def integrate_to(
    path: Path, first: Point, *, tolerance: float, max_steps: int, cuts: Collection[str], stack: int
) -> Attribution:
    """Double the intervals of each sample until it is within the tolerance; points are kept.

    The completeness gap counts at the sites `cuts`. A pass takes `stack` points of the whole
    batch; as samples drop out, more points take their place.
    """
    end = path.end(first)
    change = first.target - end.target
    contribution, taken = _zeros(first), torch.zeros_like(first.target, dtype=torch.int64)
    rows = torch.arange(len(change), device=change.device)
    n_steps, points = 1, [end, first]
    coarse = _total(points)
    while len(rows):
        freed = 1 if isinstance(path, LayerPath) else len(change) // len(rows)
        points = _doubled(path, points, stack * freed)
        n_steps *= 2
        fine = _total(points)
        off = torch.maximum(_difference(coarse, fine), _gap(fine, change[rows], cuts))
        done = (off <= tolerance) & (n_steps >= _FIRST_STEPS) | (2 * n_steps > max_steps)
        for key, total in fine.items():
            contribution[key][rows[done]] = total[done]
        taken[rows[done]] = n_steps
        if n_off := int((~(off[done] <= tolerance)).sum()):
            warnings.warn(
                f"{n_off} of {len(change)} samples are not within the tolerance of {tolerance:g} "
                f"after {n_steps} steps (worst: {float(off[done].max()):.3g}); raise max_steps or "
                "the tolerance, and see that the target follows one thing along the path (TopK "
                "does not)",
                stacklevel=1,
            )
        if bool(done.any()):
            going = (~done).nonzero().flatten()
            rows, path = rows[going], path.take(going)
            points = [point.take(going) for point in points]
            fine = {key: total[going] for key, total in fine.items()}
        coarse = fine
    return Attribution(contribution, first.records, first.output, first.target, end.target, taken)


def _chunks(alphas: Sequence[float], size: int) -> list[Sequence[float]]:
    return [alphas[start : start + size] for start in range(0, len(alphas), size)]


def _zeros(like: Point) -> Totals:
    return {key: torch.zeros_like(h, dtype=wide(h)) for key, h in like.records.items()}


def _add_interval(total: Totals, later: Point, earlier: Point) -> None:
    """Add one interval to the running totals, in place, by the trapezoid rule."""
    for key, sums in total.items():
        dtype = sums.dtype
        change = later.records[key].to(dtype) - earlier.records[key].to(dtype)
        slope = later.gradients[key].to(dtype) + earlier.gradients[key].to(dtype)
        sums.addcmul_(change, slope, value=0.5)


def _total(points: Sequence[Point]) -> Totals:
    total = _zeros(points[-1])
    for earlier, later in itertools.pairwise(points):
        _add_interval(total, later, earlier)
    return total


def _doubled(path: Path, points: Sequence[Point], stack: int) -> list[Point]:
    """The points and those half way between them."""
    n_steps = len(points) - 1
    middles = [(k + 0.5) / n_steps for k in range(n_steps)]
    new = (point for chunk in _chunks(middles, stack) for point in path.at(chunk))
    return [points[0], *(p for pair in zip(new, points[1:], strict=True) for p in pair)]


def _difference(coarse: Totals, fine: Totals) -> Tensor:
    """Sum of absolute changes over sum of absolute contributions, the largest over the sites."""
    shares = [
        (total - coarse[key]).abs().flatten(1).sum(1)
        / total.abs().flatten(1).sum(1).clamp(min=torch.finfo(total.dtype).tiny)
        for key, total in fine.items()
    ]
    return torch.stack([share.double() for share in shares]).amax(0)


def _gap(total: Totals, change: Tensor, cuts: Collection[str]) -> Tensor:
    """Completeness gap over the change of the target, the largest over the cut sites."""
    gaps = [torch.zeros_like(change, dtype=torch.float64)]
    for key in cuts:
        flat = total[key].flatten(1).double()
        scale = torch.maximum(change.double().abs(), _SMALL_CHANGE * flat.abs().sum(1))
        gaps.append((flat.sum(1) - change).abs() / scale.clamp(min=torch.finfo(torch.float64).tiny))
    return torch.stack(gaps).amax(0)
