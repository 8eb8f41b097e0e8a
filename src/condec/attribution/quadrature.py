"""Sums over the points of a path: where the points lie, a fixed number, doubling to a tolerance.

The sum is the area beside the polygon through the points (h_k, g_k) of an entry: the trapezoid
rule. A curve bulges out of its polygon; what it does at a corner between D = P_k - P_(k-1) and
E = P_(k+1) - P_k is made up for by a twelfth of D_g E_h - D_h E_g, as for the parabola through
points at equal distance. The paper's rule leaves it out.
"""

import itertools
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, TypeVar

import torch
from torch import Tensor

from condec.attribution.affine import Alpha
from condec.attribution.base import Attribution
from condec.attribution.engine import LayerPath, Path, Point
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
        """Return the points that are kept besides two: pilots and a copy of the first one."""
        return min(_PILOTS, steps // 2) + 1 if self.fitted and steps > 1 else 0


def integrate(path: Path, first: Point, *, steps: int, spacing: Spacing, stack: int) -> Attribution:
    """Sum over a fixed number of intervals, from the inputs back to the baseline.

    No point is kept but the last one (with those it was stacked with), and the pilots of a fitted
    spacing.
    """
    curve = _Curve(first, spacing)
    if spacing.fitted and steps > 1:
        end = _go_fitted(curve, path, first, steps, stack)
    else:
        for point in _run(path, [spacing.at(k / steps) for k in range(steps - 1, 0, -1)], stack):
            curve.go(point)
        end = path.end(first)
        curve.go(end)
    taken = torch.full_like(first.target, steps, dtype=torch.int64)
    return Attribution(curve.total, first.records, first.output, first.target, end.target, taken)


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
            points = [_chosen(pilots.points, which) for which in pilots.order]
            shares = list(pilots.shares)
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

    def __init__(self, first: Point, spacing: Spacing) -> None:
        self.corners = spacing.corners
        self.total = _zeros(first)
        self.records, self.gradients = dict(first.records), dict(first.gradients)
        if spacing.fitted:  # changed in place, some samples at a time
            self.records = {key: t.clone() for key, t in self.records.items()}
            self.gradients = {key: t.clone() for key, t in self.gradients.items()}
        self.side: dict[str, tuple[Tensor, Tensor]] = {}

    def go(self, point: Point, rows: Tensor | None = None) -> None:
        """Add the interval to the next point: of all samples, or of those in `rows`."""
        records, gradients = self.records, self.gradients
        for key, total in self.total.items():
            h, g, h0, g0 = point.records[key], point.gradients[key], records[key], gradients[key]
            if rows is not None:
                h0, g0 = h0[rows], g0[rows]
            sums = total if rows is None else total[rows]
            h, g, h0, g0 = (t.to(total.dtype) for t in (h, g, h0, g0))
            change = h0 - h
            sums.addcmul_(change, g0 + g, value=0.5)
            if self.corners:
                self._round(key, sums, -change, g - g0, rows)
            if rows is None:
                records[key], gradients[key] = point.records[key], point.gradients[key]
            else:
                total[rows] = sums
                for kept, value in ((records, h), (gradients, g)):
                    if 0 in kept[key].stride():  # expanded, as autograd gives some gradients
                        kept[key] = kept[key].clone()
                    kept[key][rows] = value.to(kept[key])

    def _round(
        self, key: str, sums: Tensor, change: Tensor, turn: Tensor, rows: Tensor | None
    ) -> None:
        """Make up for the corner between the last interval and this one."""
        if rows is None:
            if key in self.side:
                _add_corner(sums, self.side[key], (change, turn), -_CORNER)
            self.side[key] = change, turn
            return
        # A sample's first interval follows one of length 0: no corner.
        sides = self.side.setdefault(
            key, (torch.zeros_like(self.total[key]), torch.zeros_like(self.total[key]))
        )
        _add_corner(sums, (sides[0][rows], sides[1][rows]), (change, turn), -_CORNER)
        sides[0][rows], sides[1][rows] = change, turn


def _add_corner(
    sums: Tensor, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], weight: float
) -> None:
    """Add what the curve does beside its polygon; sides are changes of record and gradient."""
    sums.addcmul_(one[1], other[0], value=weight).addcmul_(one[0], other[1], value=-weight)


def _go_fitted(curve: _Curve, path: Path, first: Point, steps: int, stack: int) -> Point:
    """Go along each sample's own points: pilots that are kept, and those between them."""
    n = max(1, min(_PILOTS, _PILOTS * steps // 10))
    n_first = min(_FIRST_PILOTS, n)
    shares = [(k / n_first) ** _PILOT_POWER for k in range(n_first, -1, -1)]
    end = path.end(first)
    pilots = _Pilots([first, *_run(path, shares[1:-1], stack), end], shares)
    pilots.split(path, n, stack)
    places, behind = _places(pilots.shares, _parts(pilots.needs, steps))
    reached = torch.zeros_like(pilots.order[0])
    for point, last in zip(_run(path, list(places), stack), behind, strict=True):
        _go_to_pilots(curve, pilots, reached, last)
        reached = last
        curve.go(point)
    _go_to_pilots(curve, pilots, reached, torch.full_like(reached, n))
    return end


def _go_to_pilots(curve: _Curve, pilots: "_Pilots", reached: Tensor, last: Tensor) -> None:
    """Go from pilots reached to the last ones before the next point."""
    for k in range(int(reached.min()) + 1, int(last.max()) + 1):
        rows = ((reached < k) & (k <= last)).nonzero().flatten()
        if len(rows):
            curve.go(_chosen(pilots.points, pilots.order[k], rows), rows)


class _Pilots:
    """Points that are kept, and how much each sample's intervals between them need others.

    Points stand as they were run; `order`, [point, sample], is that on the path, with `shares`.
    An interval needs what it may be off by: its change of record times its change of gradient,
    summed over entries and, each by its own sum of contributions, over sites.
    """

    def __init__(self, points: Sequence[Point], shares: Sequence[float]) -> None:
        self.points, target = list(points), points[0].target
        places = torch.tensor(shares, dtype=torch.float64, device=target.device)
        self.shares = places[:, None].expand(-1, len(target))
        self.order = torch.arange(len(points), device=target.device)[:, None].expand_as(self.shares)
        pairs, tiny = list(itertools.pairwise(points)), torch.finfo(torch.float64).tiny
        self._sizes = {
            key: reduce(torch.add, [_size(a, b, key, 0.5) for a, b in pairs]).clamp(min=tiny)
            for key in points[0].records
        }
        self._least = torch.zeros_like(self.shares[0])
        turns = torch.stack([self._need(a, b, 0 * self._least) for a, b in pairs])
        # Where nothing turns, the widest intervals; and no rounding decides between equals.
        self._least = 1e-6 * (turns.sum(0) + tiny**0.5)
        # By the number of the point that an interval begins with.
        self._needs = torch.cat([turns + self._least * self.shares.diff(dim=0).abs(), turns[:1]])

    @property
    def needs(self) -> Tensor:
        """What each interval needs, [interval, sample]."""
        return self._needs.gather(0, self.order[:-1])

    def split(self, path: Path, n: int, stack: int) -> None:
        """Halve the intervals of each sample that need it most, until there are n."""
        while (n_more := n + 1 - len(self.order)) > 0:
            ranks = self.needs.sort(dim=0, descending=True, stable=True).indices
            ranks = ranks[: min(_AT_ONCE, n_more)]
            left, right = (self.shares.gather(0, ranks + k) for k in (0, 1))
            roots = left ** (1 / _HALVING_POWER) + right ** (1 / _HALVING_POWER)
            middles = (roots / 2) ** _HALVING_POWER
            before, after = (self.order.gather(0, ranks + k) for k in (0, 1))
            numbers = len(self.points) + torch.arange(len(ranks), device=ranks.device)
            for k, point in enumerate(_run(path, list(middles), stack)):
                a, b = (_chosen(self.points, which[k]) for which in (before, after))
                self.points.append(point)
                first = self._need(a, point, (middles - left)[k].abs())
                second = self._need(point, b, (middles - right)[k].abs())
                self._needs.scatter_(0, before[k : k + 1], first[None])
                self._needs = torch.cat([self._needs, second[None]])
            self.shares = torch.cat([self.shares, middles])
            self.order = torch.cat([self.order, numbers[:, None].expand_as(ranks)])
            places = (self.shares - self.shares[:1]).abs().argsort(0)  # either way along the path
            self.shares, self.order = self.shares.gather(0, places), self.order.gather(0, places)

    def _need(self, one: Point, other: Point, width: Tensor) -> Tensor:
        turns = [_size(one, other, key) / size for key, size in self._sizes.items()]
        return reduce(torch.add, turns) + self._least * width


def _size(one: Point, other: Point, key: str, mean: float = 0.0) -> Tensor:
    """Sum over entries of change of record times change of gradient, or times its sum."""
    dtype = wide(one.records[key])
    h0, h1, g0, g1 = (
        t.to(dtype)
        for t in (one.records[key], other.records[key], one.gradients[key], other.gradients[key])
    )
    turn = mean * (g1 + g0) if mean else g1 - g0
    return ((h1 - h0) * turn).abs().flatten(1).sum(1, dtype=torch.float64)


def _chosen(points: Sequence[Point], which: Tensor, rows: Tensor | None = None) -> Point:
    """Choose a point for each sample, or for those in `rows`."""
    samples = range(len(which)) if rows is None else rows.tolist()
    of: list[int] = which.tolist()
    if len(set(of)) == 1:
        return points[of[0]] if rows is None else points[of[0]].take(rows)

    def each(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([tensors[of[i]][i] for i in samples])

    records, gradients = (
        {key: each([getattr(p, name)[key] for p in points]) for key in points[0].records}
        for name in ("records", "gradients")
    )
    outputs, targets = each([p.output for p in points]), each([p.target for p in points])
    return Point(outputs, None, targets, records, gradients)  # sums need nothing that is frozen


def _parts(needs: Tensor, steps: int) -> Tensor:
    """Share `steps` among intervals, [interval, sample]; of n parts, one needs an n-th."""
    parts = torch.ones_like(needs, dtype=torch.int64)
    for _ in range(steps - len(parts)):
        largest = (needs / (parts * (parts + 1))).argmax(0, keepdim=True)
        parts.scatter_add_(0, largest, torch.ones_like(largest))
    return parts


def _places(shares: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Return places of the points between pilots, [point, sample], and the pilot before each."""
    places, behind = [], []
    for ends, counts in zip(shares.T.tolist(), parts.T.tolist(), strict=True):
        found = [
            (a + (b - a) * i / n, k)
            for k, ((a, b), n) in enumerate(zip(itertools.pairwise(ends), counts, strict=True))
            for i in range(1, n)
        ]
        places.append([place for place, _ in found])
        behind.append([k for _, k in found])
    where = torch.tensor(places, dtype=torch.float64, device=parts.device)
    return where.T, torch.tensor(behind, device=parts.device).T


def _zeros(like: Point) -> Totals:
    return {key: torch.zeros_like(h, dtype=wide(h)) for key, h in like.records.items()}


def _total(points: Sequence[Point], spacing: Spacing) -> Totals:
    """Sum over points from the baseline to the inputs."""
    curve = _Curve(points[0], replace(spacing, fitted=False))
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
