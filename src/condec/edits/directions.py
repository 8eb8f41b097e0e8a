r"""Edits along directions: of one vector :math:`h_p` over the units, at every position p.

`Patch` takes over such a component of another input's activation, or some of its units.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, SupportsFloat, final

import torch
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import OptionError, SiteError
from condec.edits.base import Edit, checked_units, mask_of, name_of, set_fields, set_site, units_at
from condec.edits.replacement import Donors, numbers_of
from condec.network import Site

Direction = tuple[float, ...]
Vector = Sequence[SupportsFloat] | Tensor
Norm = Literal["activation", "one", "own"]

_DEPENDENT: Final = 1e-9
"""Directions whose span shrinks below this share of the longest count as dependent."""


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Steer(Edit):
    r"""Add along a direction, at every position.

    .. math:: h_p \leftarrow h_p + s \, \ell_p \, \frac{d}{\|d\|}

    Parameters
    ----------
    site : Site, or its text
    direction : Tensor of shape [unit]
        An atom, say, or a difference of means. Its length counts for ``norm="own"`` only.
    strength : float
        s; below 0 steers away, 0 changes nothing.
    norm : {"activation", "one", "own"}
        Length of the added vector at strength 1, :math:`\ell_p`: that of the activation's own
        vector, :math:`\|h_p\|` (norm-matched); 1; or that of the direction, :math:`\|d\|`.

    Raises
    ------
    OptionError, SiteError
        A direction that is zero or not finite, a strength that is not finite, another norm; at
        the first forward pass, a direction of another width than the site, or units that are heads.

    Examples
    --------
    >>> steer = Steer("fc", direction=torch.tensor([0.0, 2.0]), strength=0.5)
    >>> steer.apply(torch.tensor([[3.0, 4.0]]))                     # of length 5
    tensor([[3.0000, 6.5000]])
    """

    site: Site
    direction: Direction
    strength: float
    norm: Norm

    def __init__(
        self, site: Site | str, *, direction: Vector, strength: float, norm: Norm = "activation"
    ) -> None:
        who = set_site(self, site)
        if not math.isfinite(strength):
            raise OptionError(f"{who}: strength must be finite; got {strength}")
        one_of(who, "norm", norm, Norm)
        direction = checked_direction(who, direction)
        set_fields(self, direction=direction, strength=float(strength), norm=norm)

    def apply(self, activation: Tensor) -> Tensor:
        """Return the activation with the direction added."""

        def steered(h: Tensor, axes: tuple[int, ...], laid: Tensor) -> Tensor:
            if not self.strength:
                return h
            added = self.strength * laid
            if self.norm == "activation":
                added = added * torch.linalg.vector_norm(h, dim=axes, keepdim=True)
            elif self.norm == "own":
                added = added * math.hypot(*self.direction)
            return h + added

        return along(self, [self.direction], activation, steered)


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Project(Edit):
    r"""Remove the span of directions from an activation, at every position.

    .. math:: h_p \leftarrow h_p - Q^T Q \, h_p

    with the rows of Q an orthonormal basis of the directions: one, or several, [direction, unit],
    that need be neither orthogonal nor independent. Errors are those of `Steer`.

    Examples
    --------
    >>> Project("fc", directions=torch.tensor([0.0, 2.0])).apply(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 0.]])
    """

    site: Site
    directions: tuple[Direction, ...]

    def __init__(self, site: Site | str, *, directions: Vector | Sequence[Vector]) -> None:
        who = set_site(self, site)
        several: list[Any] = list(directions)
        if not several:
            raise OptionError(
                f"{who}: directions is empty; name at least one, or leave the edit out"
            )
        if all(isinstance(d, SupportsFloat) and not getattr(d, "ndim", 0) for d in several):
            several = [directions]
        found = tuple(checked_direction(who, d, f"direction {i}") for i, d in enumerate(several))
        widths = sorted({len(one) for one in found})
        if len(widths) > 1:
            raise OptionError(f"{who}: directions must be equally wide; got widths {widths}")
        set_fields(self, directions=found)

    def apply(self, activation: Tensor) -> Tensor:
        """Return the activation without the directions."""

        def projected(h: Tensor, axes: tuple[int, ...], *basis: Tensor) -> Tensor:
            for laid in basis:
                h = h - (h * laid).sum(axes, keepdim=True) * laid
            return h

        return along(self, _basis(self.directions), activation, projected)

    def map(self) -> tuple[Tensor, Tensor]:
        """Return the edit as a matrix [unit, unit] and a shift [unit], float64: h to M h + c."""
        basis = torch.tensor(_basis(self.directions), dtype=torch.float64)
        n_units = basis.shape[1]
        return torch.eye(n_units).double() - basis.T @ basis, torch.zeros(n_units).double()


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
        every sample of the batch, or one for all. `Donors` with a seed are drawn.
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
            source=source if isinstance(source, Donors) else Donors(source),
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


def along(
    edit: Edit, directions: Sequence[Direction], activation: Tensor, change: Callable[..., Tensor]
) -> Tensor:
    """Return a changed copy of an activation; half precision is changed in single.

    `change` gets the activation (without tokens that do not count), its unit axes, and the
    directions, of length 1 and laid over these axes.
    """
    units, n_units = units_at(edit, activation)
    if units.layout == "heads":
        raise SiteError(
            f"{name_of(edit)}: heads have no direction, for the entries of each are in a basis of "
            "its own; take the same site @features, and a direction as wide as its last axis"
        )
    if len(directions[0]) != n_units:
        raise OptionError(
            f"{name_of(edit)}: the direction must have one entry for each of the site's {n_units} "
            f"units; got {len(directions[0])}"
        )
    h = units.expand(activation)
    h = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
    ones = _of_length_one(directions)
    plain = replace(units, tokens=None)
    laid = (plain.broadcast(one, h.shape) for one in ones.to(h))
    out = activation.clone()
    units.expand(out).copy_(change(h, units.axes(h.ndim), *laid))
    return out


def checked_direction(who: str, direction: Vector, name: str = "direction") -> Direction:
    """Return a direction as numbers; OptionError where it is no vector, zero, or not finite."""
    try:
        found = numbers_of(direction)
        if isinstance(direction, SupportsFloat) and not getattr(direction, "ndim", 0):
            raise TypeError("one number is no direction")
    except (TypeError, ValueError) as error:
        shape = getattr(direction, "shape", None)
        raise OptionError(
            f"{who}: {name} must be one number for every unit, such as an atom; got "
            f"{repr(direction) if shape is None else f'shape {tuple(shape)}'}"
        ) from error
    if not all(math.isfinite(entry) for entry in found):
        raise OptionError(f"{who}: {name} must be finite; it holds NaN or infinity")
    if not any(found):
        raise OptionError(
            f"{who}: {name} has no length: all of its {len(found)} entries are 0. Choose another, "
            "or leave the edit out"
        )
    return found


@functools.lru_cache(maxsize=32)
def _basis(directions: tuple[Direction, ...]) -> tuple[Direction, ...]:
    """Return orthonormal directions of the same span."""
    # Of length 1 each, so that a short direction is not taken for a dependent one.
    _, sizes, basis = torch.linalg.svd(_of_length_one(directions), full_matrices=False)
    return tuple(tuple(row) for row in basis[sizes > _DEPENDENT * sizes[0]].tolist())


def _of_length_one(directions: Sequence[Direction]) -> Tensor:
    matrix = torch.tensor(directions, dtype=torch.float64)
    matrix /= torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    return matrix
