"""Activation patching: what another input has at a site, put in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.edits.base import Edit, checked_units, mask_of, name_of, set_fields, set_site, units_at
from condec.edits.directions import Direction, Vector, along, checked_direction
from condec.edits.replacement import Donors, Recorded
from condec.network import Site


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Patch(Edit):
    r"""Put in units, or the component along a direction, of another input's activation.

    Along a direction d, with s the source:

    .. math:: h_p \leftarrow h_p + \frac{d \, d^T}{\|d\|^2} (s_p - h_p)

    Parameters
    ----------
    site : Site, or its text
    source : Tensor of shape [sample or 1, ...]
        What the site holds for the other inputs, as `record_activation` gives it: one for
        every sample of the batch, or one for all. `Resample` draws from several.
    units, direction : sequence of int, Tensor of shape [unit]
        The units, or the direction whose component, to take over.

    Raises
    ------
    OptionError, SiteError
        Both of `units` and `direction`, or none; a source that is no activation, not finite, or of
        another shape or number of samples; and as in `Ablate` and `Steer`.

    Examples
    --------
    >>> there = torch.tensor([[7.0, 8.0, 9.0]])
    >>> Patch("fc", source=there, units=[1]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 8., 3.]])
    >>> ahead = torch.tensor([0.0, 0.0, 1.0])
    >>> Patch("fc", source=there, direction=ahead).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 2., 9.]])
    """

    site: Site
    source: Donors
    units: tuple[int, ...] | None
    direction: Direction | None

    def __init__(
        self, site: Site | str, *, source: Tensor | Donors,
        units: Sequence[int] | Tensor | None = None, direction: Vector | None = None,
    ) -> None:  # fmt: skip
        who = set_site(self, site)
        if (units is None) == (direction is None):
            raise OptionError(
                f"{who}: name units, or a direction, one of the two; got "
                f"{'none' if units is None else 'both'}"
            )
        set_fields(
            self,
            source=source if isinstance(source, Donors) else Recorded(source),
            units=None if units is None else checked_units(who, units),
            direction=None if direction is None else checked_direction(who, direction),
        )

    def apply(self, activation: Tensor) -> Tensor:
        """Return the activation with the source's part."""
        layout, n_units = units_at(self, activation)
        source = self.source.rows(name_of(self), activation)
        if self.direction is None:
            where = mask_of(self, self.units or (), n_units).to(activation.device)
            return torch.where(layout.broadcast(where, activation.shape), source, activation)

        def patched(h: Tensor, axes: tuple[int, ...], laid: Tensor) -> Tensor:
            return h + ((layout.expand(source) - h) * laid).sum(axes, keepdim=True) * laid

        return along(self, [self.direction], activation, patched)
