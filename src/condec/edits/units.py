"""Edits of units: replaced, all others replaced, or scaled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.edits.base import Edit, checked_units, layout_of, mask_of, name_of, set_fields, set_site
from condec.edits.values import Replacement, Values, checked_replacement
from condec.network import Site


@final
@dataclass(frozen=True, slots=True, init=False)
class Ablate(Edit):
    """Replace some units of a site at all positions, by 0 or by given values.

    "Ablate" of Melander et al. 2026: the units of a mode are set to 0 in the output of a
    block.

    Parameters
    ----------
    site : Site, or its text
    units : sequence of int
        The units to replace, in any order; kept sorted.
    replacement : float, one float for every unit of the site, or whole activations
        What stands there instead; in the unit of the activation. One number, or one for
        every unit, stands at every position: `unit_means` gives the mean over the data or
        over one label. A tensor of shape [sample or 1, ...], as `record_activation` gives
        it, holds activations of other inputs (`Recorded`); `Resample` draws from some. Values
        of units that stay are not used.

    Raises
    ------
    OptionError
        No units, a unit twice, negative, or no integer; a replacement that is not finite;
        at the first forward pass, a replacement of another length than the site.
    SiteError
        At the first forward pass: a unit that the site does not have; a whole activation of
        another shape, or of another number of samples.

    Examples
    --------
    >>> Ablate("layer1.0", units=[5, 2])
    Ablate(site=Site(name='layer1.0', tap='output', units=None, call=None), units=(2, 5),
           replacement=0.0)
    >>> Ablate("fc", units=[0]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[0., 2., 3.]])
    """

    site: Site
    units: tuple[int, ...]
    replacement: float | tuple[float, ...] | Values

    def __init__(
        self,
        site: Site | str,
        *,
        units: Sequence[int] | Tensor,
        replacement: Replacement = 0.0,
    ) -> None:
        _set(self, site, units, replacement)

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with the units replaced."""
        return _replace(self, activation, keep=False)


@final
@dataclass(frozen=True, slots=True, init=False)
class Preserve(Edit):
    """Replace all units of a site but some at all positions, by 0 or by given values.

    "Preserve" of Melander et al. 2026: all units but those of a mode are set to 0 in the
    output of a block.

    Parameters
    ----------
    site : Site, or its text
    units : sequence of int
        The units to keep, in any order; kept sorted.
    replacement : float, one float for every unit of the site, or whole activations
        What stands at the other units instead, as in `Ablate`; so are the errors.

    Examples
    --------
    >>> Preserve("fc", units=[0]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 0., 0.]])
    """

    site: Site
    units: tuple[int, ...]
    replacement: float | tuple[float, ...] | Values

    def __init__(
        self,
        site: Site | str,
        *,
        units: Sequence[int] | Tensor,
        replacement: Replacement = 0.0,
    ) -> None:
        _set(self, site, units, replacement)

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with all other units replaced."""
        return _replace(self, activation, keep=True)


@final
@dataclass(frozen=True, slots=True, init=False)
class Scale(Edit):
    """Multiply some units of a site at all positions by a factor: turn them up or down.

    Parameters
    ----------
    site : Site, or its text
    units : sequence of int
        The units to scale, in any order; kept sorted.
    factor : float
        1 changes nothing; 0 is `Ablate`, whatever the units hold; below 0 flips the sign.

    Raises
    ------
    OptionError
        Units as in `Ablate`; a factor that is not finite.
    SiteError
        At the first forward pass: a unit that the site does not have.

    Examples
    --------
    >>> Scale("fc", units=[0, 2], factor=2.0).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[2., 2., 6.]])
    """

    site: Site
    units: tuple[int, ...]
    factor: float

    def __init__(self, site: Site | str, *, units: Sequence[int] | Tensor, factor: float) -> None:
        who = set_site(self, site)
        if not math.isfinite(factor):
            raise OptionError(f"{who}: factor must be finite; got {factor}")
        set_fields(self, units=checked_units(who, units), factor=float(factor))

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with the units scaled."""
        units, n_units = layout_of(self, activation)
        where = mask_of(self, self.units, n_units).to(activation.device)
        # Not a product where it is 0: units may hold NaN or infinity.
        scaled = activation * self.factor if self.factor else activation.new_zeros(())
        return torch.where(units.broadcast(where, activation.shape), scaled, activation)


def _set(
    edit: Ablate | Preserve,
    site: Site | str,
    units: Sequence[int] | Tensor,
    replacement: Replacement,
) -> None:
    who = set_site(edit, site)
    set_fields(
        edit, units=checked_units(who, units), replacement=checked_replacement(who, replacement)
    )


def _replace(edit: Ablate | Preserve, activation: Tensor, *, keep: bool) -> Tensor:
    """Copy of an activation, other values standing at the units named, or at all others."""
    (units, n_units), shape = layout_of(edit, activation), activation.shape
    where, replacement = mask_of(edit, edit.units, n_units), edit.replacement
    if isinstance(replacement, tuple) and len(replacement) != n_units:
        raise OptionError(
            f"{name_of(edit)}: replacement must be one number, or one for each of the site's "
            f"{n_units} units; got {len(replacement)}"
        )
    if isinstance(replacement, Values):
        values = replacement.rows(name_of(edit), activation)
    else:
        values = torch.tensor(replacement, dtype=activation.dtype, device=activation.device)
        values = units.broadcast(values, shape) if values.ndim else values
    where = units.broadcast((~where if keep else where).to(activation.device), shape)
    # A choice, not a product with 0: units that are cut off may hold NaN or infinity.
    return torch.where(where, values, activation)
