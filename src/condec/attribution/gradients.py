"""Methods of one gradient at the input itself: no path, no baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from condec.attribution.base import Attribution, Method, wide
from condec.attribution.engine import run_point
from condec.sites import Site
from condec.targets import Target


@final
@dataclass(frozen=True, slots=True)
class ActGrad(Method):
    r"""Activation times gradient at the input, :math:`C = h \odot \partial T / \partial h`.

    One pass and no baseline (``target_baseline`` is NaN); the first-order part of
    integrated gradients, exact where the network is linear above the site.
    """

    @property
    def n_passes(self) -> int:
        """One."""
        return 1

    def attribute(
        self,
        model: nn.Module,
        inputs: Tensor,
        sites: Sequence[Site],
        target: Target,
        labels: Tensor | None = None,
    ) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        at = run_point(model, inputs, sites, target, labels)
        contribution = {
            key: h.to(wide(h)) * at.gradients[key].to(wide(h)) for key, h in at.records.items()
        }
        unknown = torch.full_like(at.target, torch.nan)
        return Attribution(contribution, at.records, at.output, at.target, unknown)
