"""One input, whose parts at a site are taken away, or turned up and down.

The part w of an activation h is turned to a factor f by h + (f - 1) w (h - h_0), with the
activation h_0 at the baseline: contributions are of changes from there. A factor of 1 changes
nothing, and 0 takes the part away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from condec.attribution.base import Setup
from condec.attribution.baselines import Baseline
from condec.attribution.reduce import unit_numbers
from condec.basis.errors import OptionError
from condec.edits import Edit, Scale, Steer
from condec.explanation.parts import SiteExplanation
from condec.network import AfterSite, Site, record, run_model, split_at, unfold


@dataclass(frozen=True, eq=False)
class Turning:
    """What lies after a site, ready to be run again for one input.

    Attributes
    ----------
    after : AfterSite
    here, start : Tensor of shape [1, *entry]
        The site's activation at the input and at the baseline.
    """

    after: AfterSite
    here: Tensor
    start: Tensor

    @staticmethod
    def of(setup: Setup, site: Site, before: Mapping[str, Tensor]) -> "Turning":
        """Run the network up to a site, once; `before` as from `at_baseline`."""
        after = split_at(setup.model, setup.few, site)
        here = after.activation[:1]
        return Turning(after, here, before.get(site.key, torch.zeros_like(here)))

    @torch.no_grad()
    def without(self, weights: Tensor) -> Tensor:
        """Return the output [version, ...] where shares [version, *entry] are taken away."""
        n_alike = len(self.after.inputs)  # copies of the input, where the model takes no single one
        changed = torch.lerp(self.here, self.start, weights.to(self.here))
        return self.after.run(changed.repeat_interleave(n_alike, 0))[::n_alike]


def away_by(at: SiteExplanation, factors: Mapping[str, float]) -> Tensor:
    """Return the share of every entry [*entry] that parts turned to factors take away."""
    away, seen = torch.zeros_like(at.contribution), set[str]()
    for name, factor in factors.items():
        part = at.part(str(name))
        if part.name in seen:
            raise OptionError(f"turned: {part.name} is named twice")
        seen.add(part.name)
        if not isfinite(factor):
            raise OptionError(f"turned: {name}: expected a number; got {factor!r}")
        away = away + (1 - factor) * part.weights
    return away


def edits_of(at: SiteExplanation, away: Tensor, turning: Turning) -> tuple[Edit, ...]:
    r"""Return edits of units that take shares `away` [*entry] of an activation to the baseline.

    .. math:: h_u \leftarrow (1 - a_u)\, h_u + a_u\, \bar h_{0u}

    with :math:`a_u` the mean of `away` over the unit's entries, each as its contribution weighs
    (alike where none contributes), and the mean of the baseline's activation there. What
    `Turning.without` gives, where shares and baseline are the same at all places of a unit.
    """
    units = unit_numbers(at.units, (1, *at.activation.shape))
    inside, n_units = units >= 0, int(units.max()) + 1
    index, weights = units[inside], at.contribution.abs()[inside]

    def over_units(values: Tensor) -> Tensor:
        return torch.zeros(n_units).double().index_add_(0, index, values.double())

    weights = torch.where(over_units(weights)[index] > 0, weights, 1.0)
    share = over_units(weights * away[inside]) / over_units(weights)
    start = turning.start[0].cpu().double()[inside]
    shift = share * over_units(start) / over_units(torch.ones_like(start))
    moved = share.nonzero().flatten()
    edits: list[Edit] = []
    if len(moved):
        edits.append(Scale(at.site, units=moved, factor=1 - share[moved]))
    if bool(shift.any()):
        edits.append(Steer(at.site, direction=shift, strength=1.0, norm="own"))
    return tuple(edits)


def at_baseline(
    setup: Setup, sites: Sequence[Site], baseline: Baseline | None
) -> dict[str, Tensor]:
    """Return the activations at the baseline, the mean over its draws; none without one."""
    found: dict[str, Tensor] = {}
    if baseline is None:
        return found
    n_draws = baseline.n_draws
    for draw in range(n_draws):
        start = baseline.start(setup.model, setup.inputs, draw).expand_as(setup.inputs)
        with record(setup.model, sites) as tape, torch.no_grad():
            few = setup.sizes.few(start)
            run_model(setup.model, few)
        for key, h in tape.records.items():
            h = unfold(h, len(h) // len(few))[:1] / n_draws
            found[key] = found[key] + h if draw else h
    return found
