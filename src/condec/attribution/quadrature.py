"""Sums over the points of a path: where the points lie, a fixed number, doubling to a tolerance.

The sum is the area beside the polygon through the points (h_k, g_k) of an entry: the trapezoid
rule. A curve bulges out of its polygon; what it does at a corner between D = P_k - P_(k-1) and
E = P_(k+1) - P_k is made up for by a twelfth of D_g E_h - D_h E_g, as for the parabola through
points at equal distance. The paper's rule leaves it out.
"""

import itertools
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from condec.attribution.affine import Alpha
from condec.attribution.base import Attribution
from condec.attribution.engine import LayerPath, Path, Point, joined
from condec.attribution.targets.base import wide

Totals = dict[str, Tensor]
_T = TypeVar("_T")

_FIRST_STEPS: Final = 4
# A target that hardly moves would make every gap large: measured against this share of what
# the contributions add up to without their signs.
_SMALL_CHANGE: Final = 1e-3
_CORNER: Final = 1 / 12
# Measured on three networks: thirds of a path at a power, two halved at a time (at another, since
# paths turn more near the baseline), until seven of ten intervals are there; the points between
# them need not be kept.
_FIRST_PILOTS: Final = 3
_PILOTS: Final = 7
_PILOT_POWER: Final = 1.5
_HALVING_POWER: Final = 1.25
_AT_ONCE: Final = 2
_GROUP: Final = 3
"""Points between pilots that are summed together."""
_AT_A_TIME: Final = {"cpu": 2**12, "cuda": 2**26}
"""Entries of a record that stay in the processor's cache; a GPU takes all of them."""
_RUNS: Final = 16
_LONG: Final = 16
"""Runs of entries of a site, and their length, that tell where a path turns."""
_GOLDEN: Final = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Spacing:
    """Where points lie: at (k / S)^power, or, as `fitted`, where each sample's path turns.

    `corners` tells whether corners of the polygon are rounded.
    """

    power: float = 1.0
    fitted: bool = False
    corners: bool = True

    def at(self, share: float) -> float:
        """Return the place on the path, of the share of its points."""
        return share if self.power == 1 else share**self.power

    def n_kept(self, steps: int) -> int:
        """Return the points that are kept besides two: pilots, and some between them."""
        return min(steps - 1, _PILOTS + 2 + _GROUP) if self.fitted and steps > 1 else 0


def integrate(path: Path, first: Point, *, steps: int, spacing: Spacing, stack: int) -> Attribution:
    """Sum over a fixed number of intervals, from the inputs back to the baseline.

    No point is kept but the last one (with those it was stacked with), and the pilots of a fitted
    spacing.
    """
    if spacing.fitted:
        end = path.end(first)
        total = _fitted(path, first, end, steps, stack)
    else:
        curve = _Curve(first, spacing.corners)
        for point in _run(path, [spacing.at(k / steps) for k in range(steps - 1, 0, -1)], stack):
            curve.go(point)
        end, total = path.end(first), curve.total
        curve.go(end)
    taken = torch.full_like(first.target, steps, dtype=torch.int64)
    return Attribution(total, first.records, first.output, first.target, end.target, taken)


def integrate_to(
    path: Path, first: Point, *, tolerance: float, max_steps: int, cuts: Collection[str],
    spacing: Spacing, stack: int,
) -> Attribution:  # fmt: skip
    """Double the intervals of each sample until it is within the tolerance; points are kept.

    The completeness gap counts at the sites `cuts`. A pass takes `stack` points of the whole
    batch; as samples drop out, more points take their place. A fitted spacing begins with four
    equal intervals, halves those that need it most to eight, and all of them from then on.
    """
    end = path.end(first)
    change = first.target - end.target
    contribution, taken = _zeros(first), torch.zeros_like(first.target, dtype=torch.int64)
    rows = torch.arange(len(change), device=change.device)
    shares: Sequence[Alpha] = [0.0, 1.0]
    n_steps, points = 1, [end, first]
    coarse = _total(points, spacing)
    while len(rows):
        freed = 1 if isinstance(path, LayerPath) else len(change) // len(rows)
        if spacing.fitted and n_steps == _FIRST_STEPS:
            pilots = _Pilots(points, [k / n_steps for k in range(n_steps + 1)])
            pilots.split(path, 2 * n_steps, stack * freed)
            points, shares = _in_order(pilots), list(pilots.places.sort(0).values)
        else:
            points, shares = _doubled(path, points, shares, spacing, stack * freed)
        n_steps *= 2
        fine = _total(points, spacing)
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
            shares = [a[going] if isinstance(a, Tensor) else a for a in shares]
            fine = {key: total[going] for key, total in fine.items()}
        coarse = fine
    return Attribution(contribution, first.records, first.output, first.target, end.target, taken)


def _run(path: Path, alphas: Sequence[Alpha], stack: int) -> Iterator[Point]:
    """Run points, `stack` in a pass."""
    for start in range(0, len(alphas), stack):
        yield from path.at(alphas[start : start + stack])


class _Curve:
    """The running sum of every sample, and the last point that it came to."""

    def __init__(self, first: Point, corners: bool) -> None:
        self.corners, self.last = corners, first
        self.total = _zeros(first)
        self.side: dict[str, tuple[Tensor, Tensor]] = {}

    def go(self, point: Point) -> None:
        """Add the interval to the next point, and what the corner before it makes up for."""
        last, self.last = self.last, point
        for key, sums in self.total.items():
            ends = point.records, point.gradients, last.records, last.gradients
            h, g, h0, g0 = (tensors[key].to(sums.dtype) for tensors in ends)
            change = h0 - h
            sums.addcmul_(change, g0 + g, value=0.5)
            if self.corners:
                turn = g0 - g
                if key in self.side:
                    before, turned = self.side[key]
                    sums.addcmul_(turned, change, value=-_CORNER)
                    sums.addcmul_(before, turn, value=_CORNER)
                self.side[key] = change, turn


def _fitted(path: Path, first: Point, end: Point, steps: int, stack: int) -> Totals:
    """Sum along each sample's own points: pilots, and some between them at a time."""
    n = max(1, min(_PILOTS, _PILOTS * steps // 10))
    n_first = min(_FIRST_PILOTS, n)
    shares = [(k / n_first) ** _PILOT_POWER for k in range(n_first + 1)]
    pilots = _Pilots([end, *_run(path, shares[1:-1], stack), first], shares)
    pilots.split(path, n, stack)
    others = _places(pilots, steps)
    order = torch.cat([pilots.places, others]).argsort(dim=0, stable=True)
    points, total, done = pilots.points, _zeros(first), torch.zeros_like(order[0])
    n_run = len(pilots.places)
    for group in torch.split(others, max(_GROUP, stack)):
        points.update(enumerate(_run(path, list(group), stack), n_run))
        n_run += len(group)  # not by the points that are kept: the last one may be gone
        # Up to where each sample's path is known, and one point more; later intervals are empty.
        known = (order < n_run).cumprod(0).sum(0)
        ready = torch.where(known > steps, steps, torch.maximum(known - 2, done))
        ranks = torch.arange(-1, int((ready - done).max()) + 2, device=order.device)[:, None] + done
        of_records = order.gather(0, torch.minimum(ranks[1:-1], ready))
        of_gradients = order.gather(0, torch.minimum(ranks, ready + 1).clamp(0, steps))
        _add(total, points, of_records, of_gradients)
        done = ready
        needed = order[torch.arange(steps + 1, device=order.device)[:, None] >= done - 1]
        for number in points.keys() - set(torch.unique(needed).tolist()):
            del points[number]
    return total


def _add(
    total: Totals, points: Mapping[int, Point], of_records: Tensor, of_gradients: Tensor
) -> None:
    """Add intervals between points [rank, sample], by number; gradients have one more each way.

    Few samples at a time: one by one where they are large, which copies nothing.
    """
    for key, whole in total.items():
        limit = _AT_A_TIME.get(whole.device.type, _AT_A_TIME["cpu"])
        size = max(1, limit * len(whole) // max(1, whole.numel()))
        h, g = (
            _picked({i: getattr(p, name)[key] for i, p in points.items()}, which, size, whole.dtype)
            for name, which in (("records", of_records), ("gradients", of_gradients))
        )
        for sums, hs, gs in zip(torch.split(whole, size), h, g, strict=True):
            for k, (h0, h1) in enumerate(itertools.pairwise(hs)):
                # The mean of both ends, and the twelfths of both corners: (7, 7) and (-1, -1) / 12.
                slope = (gs[k + 1] + gs[k + 2]).sub_(gs[k] + gs[k + 3], alpha=1 / 7)
                sums.addcmul_(h1 - h0, slope, value=7 * _CORNER)


def _picked(
    tensors: Mapping[int, Tensor], which: Tensor, size: int, dtype: torch.dtype
) -> Iterator[Sequence[Tensor]]:
    """Pick for each sample its own of tensors, by numbers [rank, sample]; `size` samples a time."""
    parts = {number: torch.split(tensor, size) for number, tensor in tensors.items()}
    numbers = torch.tensor([*tensors], device=which.device)
    for at, of in enumerate(torch.split(which, size, 1)):
        if size == 1:
            found = [parts[number][at] for number in of[:, 0].tolist()]
        else:
            places = torch.searchsorted(numbers, of.contiguous())
            found = [*_chosen([part[at] for part in parts.values()], places)]
        yield [tensor.to(dtype) for tensor in found]


class _Pilots:
    """Points that are kept, and how much each sample's intervals between them need others.

    By number, as they were run: the points, and [point, sample] their `places`. An interval needs
    what it may be off by: its change of record times its change of gradient, summed over entries
    (some, spread over all, where there are many) and, each by its own sum of contributions, over
    sites.
    """

    def __init__(self, points: Sequence[Point], shares: Sequence[float]) -> None:
        target = points[0].target
        self.points = dict(enumerate(points))
        places = torch.tensor(shares, dtype=torch.float64, device=target.device)
        self.places = places[:, None].repeat(1, len(target))
        counts = {key: h[0].numel() for key, h in points[0].records.items()}
        self._entries = {key: _spread(n).to(target.device) for key, n in counts.items()}
        self._seen = [self._look(point) for point in points]
        h, g = torch.stack(self._seen).unbind(2)
        sizes = (h.diff(dim=0) * (g[1:] + g[:-1]) / 2).abs_().sum(0)  # [sample, entry]
        parts = torch.split(sizes, [len(some) for some in self._entries.values()], 1)
        tiny = torch.finfo(sizes.dtype).tiny
        weights = [(1 / part.sum(1, True).clamp(min=tiny)).expand_as(part) for part in parts]
        self._weights = torch.cat(weights, 1)
        turns = self._turns(self.order[None])[0]
        # Where nothing turns, the widest intervals; and no rounding decides between equals.
        self._least = 1e-6 * (turns.sum(0) + torch.finfo(torch.float64).tiny ** 0.5)
        # By the number of the point that an interval begins with.
        self._needs = torch.cat([turns + self._least * self.places.diff(dim=0), turns[:1]])

    @property
    def order(self) -> Tensor:
        """Return numbers of points from the baseline on, [point, sample]."""
        return self.places.argsort(dim=0, stable=True)

    @property
    def needs(self) -> Tensor:
        """Return what each interval needs, [interval, sample]."""
        return self._needs.gather(0, self.order[:-1])

    def split(self, path: Path, n: int, stack: int) -> None:
        """Halve the intervals of each sample that need it most, until there are n."""
        while (n_more := n + 1 - len(self.points)) > 0:
            ranks = self.needs.sort(dim=0, descending=True, stable=True).indices
            ranks = ranks[: min(_AT_ONCE, n_more)]
            before, after = self.order.gather(0, ranks), self.order.gather(0, ranks + 1)
            roots = self.places ** (1 / _HALVING_POWER)
            middles = ((roots.gather(0, before) + roots.gather(0, after)) / 2) ** _HALVING_POWER
            new = torch.arange(len(ranks), device=ranks.device) + len(self.points)
            self.points.update(zip(new.tolist(), _run(path, list(middles), stack), strict=True))
            self.places = torch.cat([self.places, middles])
            self._seen += [self._look(self.points[number]) for number in new.tolist()]
            parts = torch.stack([before, new[:, None].expand_as(before), after], 1)
            widths = _chosen(list(self.places), parts).diff(dim=1)
            found = self._turns(parts) + self._least * widths
            first = self._needs.scatter(0, before, found[:, 0])
            self._needs = torch.cat([first, found[:, 1]])

    def _look(self, point: Point) -> Tensor:
        """Choose entries of records and gradients of all sites, [sample, 2, entry]."""
        found = [
            torch.cat(
                [t[k].flatten(1).index_select(1, some) for k, some in self._entries.items()], 1
            )
            for t in (point.records, point.gradients)
        ]
        return torch.stack([each.to(wide(each)) for each in found], 1)

    def _turns(self, order: Tensor) -> Tensor:
        """Return what intervals between points [series, point, sample] may be off by."""
        h, g = _chosen(self._seen, order).diff(dim=1).unbind(3)
        return ((h * g).abs_() * self._weights).sum(3).double()


def _spread(n: int) -> Tensor:
    """Choose some of n entries: short runs (what is near in memory costs little) all over them."""
    shares = torch.arange(_RUNS, dtype=torch.float64) * _GOLDEN % 1  # in step with no axis
    starts = (shares * (n // _LONG)).long().sort().values * _LONG
    runs = (starts[:, None] + torch.arange(_LONG)).flatten()
    return runs if n > 4 * len(runs) else torch.arange(n)


def _chosen(tensors: Sequence[Tensor], which: Tensor) -> Tensor:
    """Choose for each sample from tensors [sample, ...]; [..., sample, ...], as `which`."""
    return torch.stack(tuple(tensors))[which, torch.arange(which.shape[-1], device=which.device)]


def _in_order(pilots: _Pilots) -> list[Point]:
    """Return points from the baseline on; sums need nothing that is frozen."""
    points = {number: replace(point, frozen=None) for number, point in pilots.points.items()}
    return [
        joined([points[number].take(slice(i, i + 1)) for i, number in enumerate(numbers)])
        for numbers in pilots.order.tolist()
    ]


def _places(pilots: _Pilots, steps: int) -> Tensor:
    """Share `steps` among intervals: places of the points between pilots, [point, sample].

    Of n parts of an interval, one needs an n-th.
    """
    needs, ends = pilots.needs, pilots.places.sort(0).values
    parts = torch.ones_like(needs, dtype=torch.int64)
    for _ in range(steps - len(parts)):
        largest = (needs / (parts * (parts + 1))).argmax(0, keepdim=True)
        parts.scatter_add_(0, largest, torch.ones_like(largest))
    i = torch.arange(1, int(parts.max()), device=parts.device)[:, None, None]
    places = (ends[:-1] + ends.diff(dim=0) * i / parts).where(i < parts, torch.inf)
    return places.flatten(0, 1).sort(0).values[: steps - len(parts)]


def _zeros(like: Point) -> Totals:
    return {key: torch.zeros_like(h, dtype=wide(h)) for key, h in like.records.items()}


def _total(points: Sequence[Point], spacing: Spacing) -> Totals:
    """Sum over points from the baseline to the inputs."""
    curve = _Curve(points[0], spacing.corners)
    for point in points[1:]:
        curve.go(point)
    return {key: 0 - total for key, total in curve.total.items()}  # gone the other way


def _doubled(
    path: Path, points: Sequence[Point], shares: Sequence[Alpha], spacing: Spacing, stack: int
) -> tuple[list[Point], list[Alpha]]:
    """The points and those half way between them, with their shares of the way."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(shares)]
    new = list(_run(path, [a if isinstance(a, Tensor) else spacing.at(a) for a in middles], stack))
    return _between(points, new), _between(shares, middles)


def _between(outer: Sequence[_T], inner: Sequence[_T]) -> list[_T]:
    return [outer[0], *(x for pair in zip(inner, outer[1:], strict=True) for x in pair)]


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
