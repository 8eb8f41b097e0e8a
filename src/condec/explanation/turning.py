"""One input, whose parts at a site are taken away, or turned up and down.

The part w of an activation h is turned to a factor f by h + (f - 1) w (h - h_0), with the
activation h_0 at the baseline: contributions are of changes from there. A factor of 1 changes
nothing, and 0 takes the part away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condec.attribution.base import Setup
from condec.attribution.baselines import Baseline
from condec.network import AfterSite, Site, hold, record, run_model, split_at, unfold


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


def at_baseline(
    setup: Setup, sites: Sequence[Site], baseline: Baseline | None
) -> dict[str, Tensor]:
    """Return the activations at the baseline, the mean over its draws; none without one."""
    found: dict[str, Tensor] = {}
    if baseline is None:
        return found
    n_draws = baseline.n_draws
    for draw in range(n_draws):
        start = baseline.make(setup.inputs, draw).expand_as(setup.inputs)
        with record(setup.model, sites) as tape, torch.no_grad():
            few = setup.sizes.few(hold(setup.model, setup.inputs, start))
            run_model(setup.model, few)
        for key, h in tape.records.items():
            h = unfold(h, len(h) // len(few))[:1] / n_draws
            found[key] = found[key] + h if draw else h
    return found
