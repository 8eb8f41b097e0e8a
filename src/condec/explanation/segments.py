"""What parts at one place of a network do to the target, as it is seen from a place before.

For a part with the shares w of a site's activation h_B, and the gradient g of the target there, it
is the line integral, along the path of a method, of

    v = d[ g . (w h_B) ] / dh_A   (g and w held fixed)

over the activation h_A before: a vector-Jacobian product at every point of the path, summed by the
method's own quadrature. Parts whose shares make 1 at a cut have the v of the whole target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from condec.attribution import IntegratedGradients, Method
from condec.attribution.base import Setup
from condec.basis.errors import OptionError, SiteError
from condec.network import Site, Tape, unfold


@dataclass(frozen=True, eq=False)
class Segment:
    """A place, a site behind it, and shares of its entries by parts, [part, *entry]."""

    start: Site
    end: Site
    shares: Tensor


@dataclass(frozen=True, eq=False)
class _Carried(Setup):
    """One input, of whose passes is read what parts do at the starts of segments."""

    segments: Sequence[Segment] = ()

    def read(
        self, tape: Tape, scalar: Tensor, n_folds: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the record at the start of the segment, and the v of the part, for every part."""
        tensors, gradients = tape.records, tape.gradients(scalar, keep_graph=True)
        records, carried = dict[str, Tensor](), dict[str, Tensor]()
        for number, segment in enumerate(self.segments):
            start, end = segment.start.key, segment.end.key
            h, g = tensors[start], unfold(gradients[end], n_folds[end])
            for part, shares in enumerate(segment.shares.to(g)):
                (v,) = torch.autograd.grad(
                    tensors[end], h, (shares * g).view_as(tensors[end]),
                    retain_graph=True, allow_unused=True,
                )  # fmt: skip
                if v is None:
                    raise SiteError(
                        f"{end} does not depend on {start}: nothing flows from one to the other "
                        "where sites lie beside each other; explain with modes of one of them"
                    )
                key = f"{number} {part}"
                # Copies: sums go through points in place, and each key must have its own.
                records[key], carried[key] = (
                    unfold(t.detach().clone(), n_folds[start]) for t in (h, v)
                )
        return records, carried


def carry(setup: Setup, method: Method, segments: Sequence[Segment]) -> list[Tensor]:
    """Integrate what parts do to the target through entries before: [part, *entry] a segment.

    `setup` is of one input, `method` one that goes along the path of the input, or it is an
    OptionError. SiteError where the end of a segment does not depend on its start.
    """
    if not isinstance(method, IntegratedGradients) or method.path != "input":
        raise OptionError(
            "what flows from place to place needs a method that goes along a path of the input, "
            f"IntegratedGradients(path='input'); these contributions are of {method!r}"
        )
    known = {field.name: getattr(setup, field.name) for field in fields(Setup)}
    sites = dict.fromkeys(site for s in segments for site in (s.start, s.end))
    found = method.attribute(_Carried(**known | {"sites": tuple(sites), "segments": segments}))
    return [
        torch.cat([found.contribution[f"{number} {part}"] for part in range(len(s.shares))])
        .double()
        .cpu()
        for number, s in enumerate(segments)
    ]
