"""From an order of units to the edit of the first of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import OptionError
from condec.basis.shapes import Atom
from condec.edits import Ablate, Preserve, count_units, unit_means
from condec.effects.measured import Edits
from condec.modes import Modes
from condec.network import Site

EditKind = Literal["ablate", "preserve"]
ReplacementKind = Literal["zero", "mean", "class_mean", "resample"]
FixedReplacement = Literal["zero", "mean"]
"""The same for all samples."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Number of a site's units to ablate or preserve (`count`). Made by `choice_of`."""

    site: Site
    n_units: int
    count: int
    edit: EditKind
    replacement: float | Atom

    def first(self, order: Tensor) -> tuple[int, ...]:
        """Return the units taken: the first of an order."""
        return tuple(order[: self.count].tolist())

    def edits(self, units: Iterable[int]) -> Edits:
        """Return the edit of some units; none where nothing would change."""
        return edits_of(self.edit, self.site, self.n_units, sorted(set(units)), self.replacement)


def edits_of(
    edit: EditKind, site: Site, n_units: int, units: Sequence[int], replacement: Any
) -> Edits:
    """Return the edit of some units of a site; none where nothing would change."""
    if len(units) == nothing(edit, n_units):
        return ()
    kind = Ablate if edit == "ablate" else Preserve
    return (kind(site, units=units, replacement=replacement),)


def nothing(edit: EditKind, n_units: int) -> int:
    """Return the number of units whose edit leaves everything as it is."""
    return 0 if edit == "ablate" else n_units


def choice_of(
    who: str, modes: Modes, edit: EditKind, replacement: FixedReplacement, fraction: float
) -> Choice:
    """Check how units are to be taken, and edited."""
    one_of(who, "edit", edit, EditKind)
    one_of(who, "replacement", replacement, FixedReplacement)
    if not 0.0 <= fraction <= 1.0:
        raise OptionError(f"{who}: fraction must be from 0 to 1; got {fraction}")
    n_units = modes.store.info(modes.site).n_units
    value = 0.0 if replacement == "zero" else unit_means(modes.store, modes.site, ~modes.held_out)
    return Choice(modes.site, n_units, count_units(n_units, fraction), edit, value)
