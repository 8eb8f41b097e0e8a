"""Input maps, integrated: where in the input each part of an explanation comes from.

Along the path of a method from x_0 to x, with a part's shares w of a site's activation h (those at
the input, at every point) and the gradient g of the target there,

    map_i = integral of (w g)^T (dh / dx_i) dx_i,

whose sum over the input is the integral of w g dh: the part's contribution. So maps are complete
for every part, as far as the quadrature reaches. (`mode_map` is of first order, at x alone.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from condec.attribution import IntegratedGradients, Method
from condec.attribution.base import Setup
from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.explanation.parts import Part, SiteExplanation
from condec.explanation.segments import Segment, carry
from condec.network import Site


@short_repr
@dataclass(frozen=True, eq=False)
class InputMaps:
    """Where in the input parts of a site come from. Made by `Explanation.input_maps`.

    Attributes
    ----------
    site : Site
    parts : tuple of Part
    maps : Tensor of shape [part, *input]
        Unit: that of the target. The sum of a part's map is its contribution.
    """

    site: Site
    parts: tuple[Part, ...]
    maps: Tensor

    @property
    def missed(self) -> Tensor:
        """What the quadrature leaves out of each part's contribution, [part]."""
        nets = torch.tensor([part.net for part in self.parts], dtype=self.maps.dtype)
        return nets - self.maps.flatten(1).sum(1)


def input_maps(
    setup: Setup, method: Method, at: SiteExplanation, names: Iterable[str] | None,
    steps: int | None,
) -> InputMaps:  # fmt: skip
    """Integrate the maps of parts of one site; see `Explanation.input_maps`."""
    parts = at.parts if names is None else tuple(at.part(name) for name in names)
    if not parts:
        raise OptionError(f"input_maps: {at.site.key}: give the name of one part, at least")
    if steps is not None and isinstance(method, IntegratedGradients):
        at_least("input_maps", 1, steps=steps)
        method = replace(method, steps=steps)
    weights = torch.stack([part.weights for part in parts])
    (maps,) = carry(setup, method, [Segment(Site("", "input"), at.site, weights)])
    return InputMaps(at.site, parts, maps)
