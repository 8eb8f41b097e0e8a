"""Ground truth: what the target does when one unit is replaced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor, nn

from condec.attribution.base import Attribution, Method, Setup, check_finite, without_baseline
from condec.attribution.baselines import Baseline, Zeros
from condec.attribution.reduce import merge_signs, split_and_sum, spread_units, unit_numbers
from condec.attribution.targets import Target
from condec.basis.checks import at_least, one_of
from condec.basis.errors import DataError, OptionError, SiteError
from condec.basis.options import require
from condec.basis.shapes import UnitMatrix
from condec.network import (
    AfterSite,
    Site,
    Units,
    own_precision,
    record,
    run_model,
    settle_sites,
    split_at,
    unfold,
)

Replacement = Literal["zero", "mean", "resample", "baseline"]
_Instead = Callable[[int], Tensor]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAblation(Method):
    r"""The exact change of the target when a unit is replaced at all its positions.

    .. math:: E_{su} = T(x_s) - T(x_s \text{ with unit } u \text{ replaced}), \qquad
        C_{sup} = E_{su} / P_u

    A unit that holds the target up has a positive effect, as it has a positive contribution.
    Each effect is spread evenly over the unit's :math:`P_u` positions: nothing is known about
    single ones. Effects are those of one unit at a time: of units that stand in for each other
    each has little, and effects do not add up. What the target froze stays as at the inputs.

    Parameters
    ----------
    replacement : {"zero", "mean", "resample", "baseline"}
        Value in its place: 0; the unit's mean over the batch and its positions, or
        `means`; what the same unit holds at another sample of the batch, at every position
        (drawn for each unit, never the sample itself); or what it holds at the `baseline`,
        from which integrated gradients are counted. ``"mean"`` without means and
        ``"resample"`` depend on the batch.
    rows_per_pass : int
        Samples times units in one pass; at least one unit's.
    seed : int
        Of the draws of ``"resample"``.
    means : mapping of site key to one number a unit, optional
        For ``"mean"``: means over more than the batch (`condec.edits.unit_means`).
    baseline : Baseline
        For ``"baseline"``; one that is a single input, not several draws.

    Raises
    ------
    OptionError
        Unknown replacement; `rows_per_pass` below 1; means with another replacement, or, when
        used, missing for a site or of another length than it; a baseline of several draws.
    DataError
        ``"resample"`` in a batch of one sample.
    """

    replacement: Replacement = "zero"
    rows_per_pass: int = 256
    seed: int = 0
    means: Mapping[str, Sequence[float] | Tensor] | None = field(default=None, hash=False)
    baseline: Baseline = field(default_factory=Zeros)

    def __post_init__(self) -> None:
        require("UnitAblation", "baseline", self.baseline, Baseline)
        one_of("UnitAblation", "replacement", self.replacement, Replacement)
        at_least("UnitAblation", 1, rows_per_pass=self.rows_per_pass)
        if self.baseline.n_draws != 1:
            raise OptionError(
                "UnitAblation: baseline must be one input, not several draws; got "
                f"{self.baseline.n_draws} of {type(self.baseline).__name__}"
            )
        if self.means is None:
            return
        if self.replacement != "mean":
            raise OptionError(
                f"UnitAblation: means belong to replacement 'mean'; got {self.replacement!r}"
            )
        plain = {key: [float(value) for value in values] for key, values in self.means.items()}
        object.__setattr__(self, "means", plain)

    @property
    def least_samples(self) -> int:
        """Two where values of another sample of the batch are taken."""
        return 2 if self.replacement == "resample" else 1

    @property
    def n_passes(self) -> int:
        """Those of one site of 256 units in mid-network, half a pass a unit: an order of size."""
        return 4 + 256 // 2

    def attribute(self, setup: Setup) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        if not setup.sites:
            raise SiteError("UnitAblation: no site is given")
        by_key = {site.key: site for site in setup.sites}
        with record(setup.model, setup.sites) as tape, torch.no_grad():
            run_model(setup.model, setup.few)
        contribution, activation = {}, {}
        for key in tape.records:
            after = split_at(setup.model, setup.inputs, by_key[key])
            effects, value = _effects(self, after, setup.target, setup.labels)
            h = activation[key] = after.activation
            each = effects / after.units.positions(h.shape)
            contribution[key] = spread_units(each, after.units, h.shape)
        return without_baseline(contribution, activation, after.output, value)


def unit_effects(
    model: nn.Module,
    inputs: Tensor,
    site: Site | str,
    target: Target,
    labels: Tensor | None = None,
    *,
    method: UnitAblation | None = None,
    units: Sequence[int] | Tensor | None = None,
) -> UnitMatrix:
    """Measure the change of the target when each unit of a site is replaced, one at a time.

    Parameters
    ----------
    model, inputs, target, labels
        As for `contribute`.
    site : Site, or its text
    method : UnitAblation, optional
        By default, units are set to zero.
    units : sequence of int, optional
        All by default.

    Returns
    -------
    Tensor of shape [sample, unit]
        In the order of `units`; in the unit of the target.

    Raises
    ------
    SiteError
        The site does not run, or has no such unit.

    Examples
    --------
    >>> from condec.attribution.targets import Logit
    >>> from condec.testing.models import small_resnet
    >>> unit_effects(small_resnet(), torch.ones(2, 1, 5, 5), "block1", Logit(0)).shape
    torch.Size([2, 4])
    """
    site = Site.parse(site) if isinstance(site, str) else site
    (site,) = settle_sites(model, (site,), inputs)
    after = split_at(model, inputs, site)
    chosen = None if units is None else torch.as_tensor(units, dtype=torch.int64)
    return _effects(method or UnitAblation(), after, target, labels, chosen)[0]


@own_precision()
@torch.no_grad()
def _effects(
    method: UnitAblation, after: AfterSite, target: Target, labels: Tensor | None,
    units: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Effects [sample, unit], and the target at the inputs."""
    h, key = after.activation, after.site.key
    layout = after.units
    n_units = layout.count(h.shape)
    frozen = target.freeze(after.output, labels)
    value = target.value(after.output, frozen)
    check_finite(value, "the target")
    instead = _replacements(method, after, layout)
    chosen = torch.arange(n_units) if units is None else units
    if wrong := [u for u in chosen.tolist() if not 0 <= u < n_units]:
        raise SiteError(f"{key}: has units 0 to {n_units - 1}; got {wrong[:5]}")
    numbers = unit_numbers(layout, h.shape).to(h.device)
    effects = []
    for some in torch.split(chosen, max(1, method.rows_per_pass // len(value))):
        versions = torch.cat([torch.where(numbers == u, instead(u), h) for u in some.tolist()])
        kept = None if frozen is None else torch.cat([frozen] * len(some))
        changed = target.value(after.run(versions), kept)
        check_finite(changed, f"the target with a unit of {key} replaced", n_samples=len(value))
        effects.append(value[:, None] - changed.view(len(some), -1).T)
    return torch.cat(effects, 1), value


def _replacements(method: UnitAblation, after: AfterSite, layout: Units) -> _Instead:
    """Values that stand in the place of a unit, by its number."""
    h, site = after.activation, after.site
    if method.replacement == "resample":
        if len(h) < 2:
            raise DataError(
                "UnitAblation: replacement 'resample' takes values of other samples of the batch, "
                "and this batch has only one"
            )
        return lambda unit: h[_others(len(h), method.seed, unit).to(h.device)]
    if method.replacement == "baseline":
        with record(after.model, [site]) as tape, torch.no_grad():
            run_model(after.model, method.baseline.start(after.model, after.inputs))
        (start,) = (unfold(tensor.detach(), after.n_folds) for tensor in tape.records.values())
        return lambda unit: start
    n_units = layout.count(h.shape)
    means = h.new_zeros(n_units)
    if method.means is not None:
        # Means may stand under the site as it was asked for, without the layout found for it.
        given = method.means.get(site.key, method.means.get(replace(site, units=None).key, ()))
        if len(given) != n_units:
            raise OptionError(
                f"UnitAblation: expected means of {n_units} units for {site.key}; got "
                f"{len(given)} (means are given for {', '.join(method.means) or 'no site'})"
            )
        means = h.new_tensor(given)
    elif method.replacement == "mean":
        total = merge_signs(split_and_sum(h, layout)).mean(0)
        means = (total / layout.positions(h.shape)).to(h)
    return lambda unit: means[unit]


def _others(n_samples: int, seed: int, unit: int) -> Tensor:
    """Another sample for each sample, any with equal chance."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + unit)
    steps = torch.randint(1, n_samples, (n_samples,), generator=generator)
    return (torch.arange(n_samples) + steps) % n_samples
