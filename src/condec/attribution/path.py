"""Integrated gradients: the line integral of gradient times change of activation."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Final, Literal, final

import torch
from torch import Tensor

from condec.attribution.affine import AffineParts, Calls, watched
from condec.attribution.base import Attribution, Method, Setup
from condec.attribution.baselines import Baseline, Zeros
from condec.attribution.engine import InputPath, Kept, LayerPath, Path, Point, joined, run_point
from condec.attribution.quadrature import Spacing, integrate, integrate_to
from condec.basis.checks import at_least, one_of
from condec.basis.errors import OptionError
from condec.basis.options import require
from condec.network import BatchSizes, find_cuts, split_at

_KEPT_BYTES: Final = 2**32
# Measured: small batches gain from several points a pass, large ones lose, since tensors above
# 32 MiB come from the system each time.
# What runs before the first site is not recorded: a first convolution widens an image to about
# five times its size.
_WIDENING: Final = 8
_LARGEST_STACK: Final = 8
_RECORD_BYTES: Final = {"cpu": 2**23, "cuda": 2**27}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients(Method):
    r"""Integrated gradients at hidden layers.

    On the straight path :math:`x(\alpha_k) = x_0 + \alpha_k (x - x_0)`,
    :math:`\alpha_k = k / S` (others: see `spacing`), with the site's activation :math:`h_k` and
    the gradient :math:`g_k` of the target there,

    .. math:: C = \sum_{k=1}^{S} (h_k - h_{k-1}) \odot \tfrac12 (g_k + g_{k-1}),

    the trapezoid rule along the path of h (Melander et al. 2026; in the limit of many
    steps the layer conductance of Dhamdhere et al. 2019). At a site that cuts the network
    the sum over all units tends to T(x) - T(x_0).

    Parameters
    ----------
    steps : int or "auto"
        S, the number of intervals; S + 1 points are evaluated. With ``"auto"``, S is doubled
        for each sample, from 4 on and keeping every point, until both the change of the
        contributions by the last doubling (sum of absolute changes over sum of absolute
        contributions, the largest over the sites) and the completeness gap (at the sites that
        cut the network, over the change of the target) are at most `tolerance`.
    baseline : Baseline
        Gives x_0.
    spacing : str
        Where the points lie. ``"uniform"``: at :math:`k / S`, as in the paper. ``"power:2"``: at
        :math:`(k / S)^2`, closer where a path begins; any power above 0. ``"fitted"``: after
        thirds of the path at the power 1.5, every point goes, for each sample by itself, to
        where record and gradient change most at once, over all sites (which sites are asked for
        thus moves the points). The two worst intervals are halved at a time, to seven of ten
        intervals and seven at most, whose points are kept; the others are parts of these.
        Contributions of all but the paper's are of a curve through the points: at every corner
        between three of them, with changes D and E of the record h and the gradient g,
        :math:`(D_g E_h - D_h E_g) / 12` is added.
    path : {"input", "layer"}
        ``"input"``: the input moves, as in the paper. ``"layer"``: the activation of one site
        moves on the straight line from its value at x_0 to that at x, while what bypasses it
        stays as at x (integrated gradients of the layer, as in Captum's
        ``LayerIntegratedGradients``); every site then needs passes of its own.
    tolerance : float
        For ``steps="auto"``.
    max_steps : int
        For ``steps="auto"``: where doubling ends; a warning counts the samples that are not
        within the tolerance. Points are kept, so memory grows with the steps here, and only
        here.

    Raises
    ------
    OptionError
        A value is out of range.
    """

    steps: int | Literal["auto"] = 10
    baseline: Baseline = field(default_factory=Zeros)
    spacing: str = "uniform"
    path: Literal["input", "layer"] = "input"
    tolerance: float = 1e-2
    max_steps: int = 128

    def __post_init__(self) -> None:
        require("IntegratedGradients", "baseline", self.baseline, Baseline)
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        if self.steps != "auto" and not (whole and int(self.steps) >= 1):
            raise OptionError(
                f"IntegratedGradients: steps must be at least 1, or 'auto'; got {self.steps!r}"
            )
        _spacing(self.spacing)
        one_of("IntegratedGradients", "path", self.path, ("input", "layer"))
        at_least("IntegratedGradients", 8, max_steps=self.max_steps)
        if not self.tolerance > 0:
            raise OptionError(
                f"IntegratedGradients: tolerance must be above 0; got {self.tolerance}"
            )

    @property
    def n_passes(self) -> int:
        """One for each point, times the baselines; for ``"auto"`` the most it may take."""
        steps = self.max_steps if self.steps == "auto" else self.steps
        return (steps + 1) * self.baseline.n_draws

    @property
    def n_kept(self) -> int:
        """The pilots of a fitted spacing, and a copy of the first point; 0 for ``"auto"``."""
        return _spacing(self.spacing).n_kept(0 if self.steps == "auto" else self.steps)

    def attribute(self, setup: Setup) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        calls: Calls = {}
        inputs = setup.inputs
        with ExitStack() as stack:
            if self.path == "input" and setup.sizes == BatchSizes():
                calls = stack.enter_context(watched(setup.model, inputs))
            first = run_point(setup, inputs)
        if self.steps == "auto" and (size := self._group(first)) < len(inputs):
            parts = []
            for at in range(0, len(inputs), size):
                frozen = None if first.frozen is None else first.frozen[at : at + size]
                kept = Kept(setup.target, frozen)
                # A copy: what is affine in the input is known by where in memory it begins.
                group = inputs[at : at + size].clone()
                some = replace(setup, inputs=group, target=kept, labels=None)
                parts.append(self.attribute(some))
            return joined(parts)
        is_auto = self.steps == "auto"
        cuts = find_cuts(setup.model, setup.few, setup.sites) if is_auto else {}
        draws, along = [], self._layers if self.path == "layer" else self._integrate
        for draw in range(self.baseline.n_draws):
            start = self.baseline.start(setup.model, inputs, draw)
            affine = AffineParts.between(setup.model, start, calls)  # none for a layer's path
            draws.append(along(InputPath(setup, start, first.frozen, affine), first, cuts))
        return draws[0] if len(draws) == 1 else _mean(draws)

    def _group(self, first: Point) -> int:
        """Samples whose points, records and gradients, may be kept together."""
        sizes = [2 * _bytes(h) for h in first.records.values()]
        a_point = max(sizes) if self.path == "layer" else sum(sizes)
        n_samples = len(first.target)
        return max(1, _KEPT_BYTES * n_samples // max(1, a_point * (self.max_steps + 1)))

    def _integrate(self, path: Path, first: Point, cuts: Mapping[str, bool]) -> Attribution:
        stack, spacing = _stack_size(path, first), _spacing(self.spacing)
        if self.steps != "auto":
            return integrate(path, first, steps=self.steps, spacing=spacing, stack=stack)
        return integrate_to(
            path, first, tolerance=self.tolerance, max_steps=self.max_steps, stack=stack,
            spacing=spacing,
            cuts=[key for key, cut in cuts.items() if cut and key in first.records],
        )  # fmt: skip

    def _layers(self, whole: InputPath, first: Point, cuts: Mapping[str, bool]) -> Attribution:
        """Integrate one path for each site, in that site's own space."""
        setup, end = whole.setup, whole.end(first)
        by_key = {site.key: site for site in setup.sites}
        parts = []
        for key, h in first.records.items():
            after = split_at(setup.model, setup.inputs, by_key[key])
            path = LayerPath(setup, end.records[key], first.frozen, after)
            alone = replace(first, records={key: h}, gradients={key: first.gradients[key]})
            parts.append(self._integrate(path, alone, cuts))
        totals = {key: total for part in parts for key, total in part.contribution.items()}
        steps = torch.stack([part.steps for part in parts if part.steps is not None]).amax(0)
        at = (first.records, first.output, first.target)
        return Attribution(totals, *at, end.target, steps)


def _spacing(text: str) -> Spacing:
    if text == "fitted":
        return Spacing(fitted=True)
    found = re.fullmatch(r"power:(\d+(?:\.\d+)?)", str(text))
    if text != "uniform" and not (found and float(found[1]) > 0):
        raise OptionError(
            "IntegratedGradients: spacing must be 'uniform', 'fitted' or a power above 0 such as "
            f"'power:2'; got {text!r}"
        )
    return Spacing(power=float(found[1])) if found else Spacing(corners=False)


def _mean(draws: Sequence[Attribution]) -> Attribution:
    """Average over baselines; of the steps, take the most."""
    totals = {
        key: reduce(torch.add, [d.contribution[key] for d in draws]) / len(draws)
        for key in draws[0].contribution
    }
    before = torch.stack([d.target_baseline for d in draws]).mean(0)
    steps = torch.stack([d.steps for d in draws if d.steps is not None]).amax(0)
    return replace(draws[0], contribution=totals, target_baseline=before, steps=steps)


def _stack_size(path: Path, first: Point) -> int:
    """Points of the path that may share a pass: faster where a batch does not fill the device."""
    limit = _RECORD_BYTES.get(first.target.device.type, _RECORD_BYTES["cpu"])
    moved = _bytes(path.start[:1]) * len(first.target)
    largest = max(_WIDENING * moved, *map(_bytes, first.records.values()))
    return min(_LARGEST_STACK, max(1, limit // max(1, largest)))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
