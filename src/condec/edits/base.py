"""The contract of edits, and the checks that edits share."""

import copy
import operator
import re
import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from condec.basis.errors import OptionError, SiteError
from condec.basis.records import short_repr
from condec.network import Site, Units, units_of


@short_repr
class Edit(ABC):
    """One change of what passes through a site: a frozen option with the site it belongs to.

    Where several edits name one site, each gets what the one before it left. An edit `within`
    changes how the module computes (`during`) instead of what passes the site, and acts in whole
    passes only.
    """

    __slots__ = ()

    within: ClassVar[bool] = False
    site: Site

    @abstractmethod
    def apply(self, activation: Tensor) -> Tensor:
        """Return the edited activation [sample, ...], of the same kind, in its own memory."""

    def during(self) -> AbstractContextManager[object]:
        """Return what is in force while the site's module runs: nothing, except `within`."""
        return nullcontext()


def name_of(edit: Edit) -> str:
    """Return how messages call an edit: ``Ablate(layer1.0)``."""
    return f"{type(edit).__name__}({edit.site.key})"


def set_fields(edit: Edit, **values: Any) -> None:
    """Set the fields of a frozen edit."""
    for name, value in values.items():
        object.__setattr__(edit, name, value)


def set_site(edit: Edit, site: Site | str) -> str:
    """Set the site of a frozen edit, and return how messages call the edit."""
    if isinstance(site, str) and re.search(r"@heads(?!\()", site):
        raise OptionError(
            f"{type(edit).__name__}: {site!r} does not say how many heads there are; write "
            "@heads(12), say, or take the site from find_sites, which asks the model"
        )
    set_fields(edit, site=Site.parse(site) if isinstance(site, str) else site)
    return name_of(edit)


def with_site(edit: Edit, site: Site) -> Edit:
    """Return an edit at the same place with the units of `site`."""
    if edit.site == site:
        return edit
    made = copy.copy(edit)
    set_fields(made, site=site)
    return made


def checked_edits(who: str, edits: Any) -> tuple[Edit, ...]:
    """Return one edit or several as a tuple; anything else is an OptionError."""
    several = isinstance(edits, Iterable) and not isinstance(edits, str)
    given = tuple(edits) if several else (edits,)
    for edit in given:
        if not isinstance(edit, Edit):
            raise OptionError(
                f"{who}: expected edits such as Ablate(site, units=[0]); got {edit!r}"
            )
    return given


def checked_units(who: str, units: Sequence[int] | Tensor, *, least: int = 1) -> tuple[int, ...]:
    """Return numbers of units, sorted; OptionError unless `least` integers from 0, each once."""
    given: Any = units.tolist() if isinstance(units, Tensor) else units
    try:
        numbers = [operator.index(unit) for unit in given]
        if any(isinstance(unit, bool) for unit in given):
            raise TypeError("truth values")
    except TypeError as error:
        raise OptionError(
            f"{who}: units must be integers, for example [3, 7]; got {reprlib.repr(given)}. Of a "
            "mask take mask.nonzero().flatten()."
        ) from error
    if len(numbers) < least:
        raise OptionError(f"{who}: units is empty; name at least one unit, or leave the edit out")
    negative = [unit for unit in numbers if unit < 0]
    if negative:
        raise OptionError(f"{who}: units count from 0; got {negative[:5]}")
    twice = sorted(unit for unit, times in Counter(numbers).items() if times > 1)
    if twice:
        raise OptionError(f"{who}: units named more than once: {twice[:5]}")
    return tuple(sorted(numbers))


def units_at(edit: Edit, activation: Tensor) -> tuple[Units, int]:
    """Return which axes of an activation are units, and how many units there are."""
    units = units_of(edit.site, activation)
    try:
        return units, units.count(activation.shape)
    except SiteError as error:
        raise SiteError(f"{name_of(edit)}: {error}") from error


def mask_of(edit: Edit, units: tuple[int, ...], n_units: int) -> Tensor:
    """Return a mask of the units named; a unit that the site does not have is a SiteError."""
    beyond = [unit for unit in units if unit >= n_units]
    if beyond:
        raise SiteError(
            f"{name_of(edit)}: the site has {n_units} units, 0 to {n_units - 1}; there is no unit "
            f"{', '.join(map(str, beyond[:5]))}{', ...' if len(beyond) > 5 else ''}"
        )
    chosen = torch.zeros(n_units, dtype=torch.bool)
    chosen[list(units)] = True
    return chosen
