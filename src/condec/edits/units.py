"""Edits of units: replaced, all others replaced, or scaled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.edits.base import Edit, checked_units, mask_of, name_of, set_fields, set_site, units_at
from condec.edits.replacement import Donors, Replacement, checked_replacement
from condec.network import Site

_ROUNDING: Final = 1e-9
"""Sums of binary fractions miss by less than this: 100 x 0.29 is 28.999999999999996."""


def count_units(n_units: int, fraction: float) -> int:
    """Return how many units a fraction is: ``int(n_units * fraction)``, without rounding errors.

    >>> count_units(100, 0.29), int(100 * 0.29)
    (29, 28)
    """
    return math.floor(n_units * fraction + _ROUNDING)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Replacing(Edit):
    """Base of the edits that replace units: those named, or all others."""

    least: ClassVar[int]
    """The fewest units that may be named."""

    site: Site
    units: tuple[int, ...]
    replacement: float | tuple[float, ...] | Donors

    def __init__(
        self, site: Site | str, *, units: Sequence[int] | Tensor, replacement: Replacement = 0.0
    ) -> None:
        who = set_site(self, site)
        units = checked_units(who, units, least=self.least)
        set_fields(self, units=units, replacement=checked_replacement(who, replacement))

    def replaced(self, n_units: int) -> Tensor:
        """Return a mask of the units that are replaced, of a site with so many."""
        named = mask_of(self, self.units, n_units)
        return ~named if isinstance(self, Preserve) else named

    def numbers(self, n_units: int) -> Tensor:
        """Return the replacement by numbers, of shape [unit] or [], for a site with so many."""
        if isinstance(self.replacement, tuple) and len(self.replacement) != n_units:
            raise OptionError(
                f"{name_of(self)}: replacement must be one number, or one for each of the site's "
                f"{n_units} units; got {len(self.replacement)}"
            )
        return torch.tensor(self.replacement, dtype=torch.float64)

    def apply(self, activation: Tensor) -> Tensor:
        """Return the activation with the units replaced."""
        (units, n_units), shape = units_at(self, activation), activation.shape
        where = units.broadcast(self.replaced(n_units).to(activation.device), shape)
        if isinstance(self.replacement, Donors):
            values = self.replacement.rows(name_of(self), activation)
        else:
            values = self.numbers(n_units).to(activation)
            values = units.broadcast(values, shape) if values.ndim else values
        # A choice, not a product with 0: units that are cut off may hold NaN or infinity.
        return torch.where(where, values, activation)


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Ablate(Replacing):
    """Replace some units of a site at all positions ("Ablate" of Melander et al. 2026).

    Attributes
    ----------
    site : Site, or its text
    units : sequence of int
        The units to replace; kept sorted.
    replacement : float, one float for every unit of the site, or whole activations
        In the unit of the activation. Numbers stand at every position: `unit_means` gives the mean
        over the data or over one label. A tensor of shape [sample or 1, ...], as
        `record_activation` gives it, holds activations of other inputs (`Donors`, which can also
        be drawn). Values of units that stay are not used.

    Raises
    ------
    OptionError, SiteError
        No units, a unit twice, negative, or no integer; a replacement that is not finite; at the
        first forward pass, a unit that the site does not have, or a replacement that does not fit.

    Examples
    --------
    >>> Ablate("fc", units=[0]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[0., 2., 3.]])
    """

    least: ClassVar[int] = 1


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Preserve(Replacing):
    """Replace all units of a site but some at all positions ("Preserve" of Melander et al. 2026).

    Attributes and errors are those of `Ablate`, but that `units` are those to keep; with none, the
    whole site is replaced.

    Examples
    --------
    >>> Preserve("fc", units=[0]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 0., 0.]])
    """

    least: ClassVar[int] = 0


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Scale(Edit):
    """Multiply some units of a site at all positions by a finite factor; 0 is `Ablate`.

    One factor, or one for each of the units, in their order.

    Examples
    --------
    >>> Scale("fc", units=[0, 2], factor=2.0).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[2., 2., 6.]])
    >>> Scale("fc", units=[2, 0], factor=[0.0, 3.0]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[3., 2., 0.]])
    """

    site: Site
    units: tuple[int, ...]
    factor: float | tuple[float, ...]

    def __init__(
        self, site: Site | str, *, units: Sequence[int] | Tensor,
        factor: float | Sequence[float] | Tensor,
    ) -> None:  # fmt: skip
        who = set_site(self, site)
        numbers = checked_units(who, units)
        try:
            given = torch.as_tensor(factor, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(
                f"{who}: factor must be one number, or one for each of the {len(numbers)} units; "
                f"got {factor!r}"
            ) from error
        if given.ndim > 1 or (given.ndim and len(given) != len(numbers)):
            raise OptionError(
                f"{who}: factor must be one number, or one for each of the {len(numbers)} units; "
                f"got shape {tuple(given.shape)}"
            )
        if not bool(given.isfinite().all()):
            raise OptionError(f"{who}: factor must be finite; got {factor}")
        if given.ndim:  # units are kept sorted, their factors with them
            given = given[torch.as_tensor(units).argsort()]
        of_all = tuple(given.tolist()) if given.ndim else float(given)
        set_fields(self, units=numbers, factor=of_all)

    def factors(self, n_units: int) -> Tensor:
        """Return the factor of every unit [unit], float64; 1 of those that are not named."""
        found = torch.ones(n_units, dtype=torch.float64)
        found[mask_of(self, self.units, n_units)] = torch.tensor(self.factor, dtype=torch.float64)
        return found

    def apply(self, activation: Tensor) -> Tensor:
        """Return the activation with the units scaled."""
        units, n_units = units_at(self, activation)
        # Not a product where it is 0: units may hold NaN or infinity.
        if isinstance(self.factor, tuple):
            factor = units.broadcast(self.factors(n_units).to(activation), activation.shape)
            return torch.where(factor == 0, torch.zeros_like(activation), activation * factor)
        where = mask_of(self, self.units, n_units).to(activation.device)
        scaled = activation * self.factor if self.factor else activation.new_zeros(())
        return torch.where(units.broadcast(where, activation.shape), scaled, activation)
