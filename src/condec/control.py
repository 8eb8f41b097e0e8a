"""Edits: change what a network hands on at its sites, and see what the output does.

An edit is a frozen option that says where and what: `Ablate` replaces some units of a site,
`Preserve` all others. `edited` puts edits into a model for the time of a context:

>>> import torch
>>> from condec.testing.models import small_resnet
>>> model, images = small_resnet(), torch.ones(2, 1, 5, 5)
>>> with edited(model, [Ablate("block1", units=[0, 3])]):
...     logits = model(images)
>>> torch.equal(logits, model(images))
False

This is the only module of condec that registers hooks to write.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, SupportsFloat, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from condec.containers import first_tensor, with_first_tensor
from condec.errors import DataError, OptionError, SiteError
from condec.shapes import Atom, Mask
from condec.sites import Site, find_sites, units_of
from condec.store import Store
from condec.wrappers import eager, original


class Edit(ABC):
    """One change of what passes through a site.

    An implementation is a frozen option with the site it belongs to. Where several edits
    name one site, each gets what the one before it left.
    """

    __slots__ = ()

    site: Site

    @abstractmethod
    def apply(self, activation: Tensor) -> Tensor:
        """The activation as it shall be.

        Parameters
        ----------
        activation : Tensor of shape [sample, ...]
            What the site holds; not to be modified.

        Returns
        -------
        Tensor
            Of the same shape, dtype and device, in memory of its own.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain form for recipes: the class name and its fields."""


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
    replacement : float, or one float for every unit of the site
        What stands there instead, at every position; in the unit of the activation.
        `unit_means` gives the mean over the data. Values of units that stay are not used.

    Raises
    ------
    OptionError
        No units, a unit twice, negative, or no integer; a replacement that is not finite;
        at the first forward pass, a replacement of another length than the site.
    SiteError
        At the first forward pass: a unit that the site does not have.

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
    replacement: float | tuple[float, ...]

    def __init__(
        self,
        site: Site | str,
        *,
        units: Sequence[int] | Tensor,
        replacement: SupportsFloat | Sequence[SupportsFloat] | Tensor = 0.0,
    ) -> None:
        _set_fields(self, site, units, replacement)

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with the units replaced."""
        return _replace(self, activation, _chosen(self, activation))

    def to_dict(self) -> dict[str, Any]:
        """Plain form for recipes: the class name and its fields."""
        return _to_dict(self)


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
    replacement : float, or one float for every unit of the site
        What stands at the other units instead, as in `Ablate`; so are the errors.

    Examples
    --------
    >>> Preserve("fc", units=[0]).apply(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 0., 0.]])
    """

    site: Site
    units: tuple[int, ...]
    replacement: float | tuple[float, ...]

    def __init__(
        self,
        site: Site | str,
        *,
        units: Sequence[int] | Tensor,
        replacement: SupportsFloat | Sequence[SupportsFloat] | Tensor = 0.0,
    ) -> None:
        _set_fields(self, site, units, replacement)

    def apply(self, activation: Tensor) -> Tensor:
        """The activation with all other units replaced."""
        return _replace(self, activation, ~_chosen(self, activation))

    def to_dict(self) -> dict[str, Any]:
        """Plain form for recipes: the class name and its fields."""
        return _to_dict(self)


def edit_from_dict(record: Mapping[str, Any]) -> Edit:
    """Inverse of `Edit.to_dict`.

    Raises
    ------
    OptionError
        No edit has that name or those fields.

    Examples
    --------
    >>> edit_from_dict(Ablate("fc", units=[1]).to_dict()) == Ablate("fc", units=[1])
    True
    """
    known: dict[str, type[Ablate | Preserve]] = {c.__name__: c for c in (Ablate, Preserve)}
    fields = dict(record)
    name = fields.pop("name", None)
    if name not in known:
        raise OptionError(f"edit: expected one of {', '.join(known)}; got {name!r}")
    try:
        return known[name](**fields)
    except TypeError as error:
        raise OptionError(f"edit {name}: {error}") from error


@contextmanager
def edited(model: nn.Module, edits: Edit | Iterable[Edit]) -> Iterator[nn.Module]:
    """Run a model with edits; afterwards it is as it was.

    Contexts nest: the inner edits get what the outer ones left. Edits act in the order
    given, with and without gradients, in any floating type; tensors that others hold are
    never written to. What is recorded inside (`contribute`, say) is the edited network.

    Parameters
    ----------
    model : torch.nn.Module
    edits : Edit, or several
        An empty list leaves the model as it is.

    Yields
    ------
    torch.nn.Module
        The same model; of one that `torch.compile` made, the module underneath.

    Raises
    ------
    SiteError
        A site is not in the model, holds no floating tensor, or is ambiguous because its
        module is called more than once; on leaving, a site that never ran inside the
        context (unless another error is on its way already).
    OptionError
        Something in `edits` is not an edit.
    """
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    for edit in edits:
        if not isinstance(edit, Edit):
            raise OptionError(
                f"edited: expected edits such as Ablate(site, units=[0]); got {edit!r}"
            )
    given, model = model, original(model)
    places = [_Place(edit, find_sites(model, edit.site)[0]) for edit in edits]
    with ExitStack() as hooks:
        # Compiled code would pass by the hooks.
        hooks.enter_context(eager(given))
        for place in places:
            for handle in place.attach(model):
                hooks.callback(handle.remove)
        yield model
    _check_all_ran(model, places)


def unit_means(store: Store, site: Site | str, rows: Mask | None = None) -> Atom:
    """Mean activation of every unit, over samples and positions: a replacement for edits.

    The store holds activations summed over a unit's positions; this is their mean over
    samples, divided by the number of positions.

    Parameters
    ----------
    store : Store
    site : Site, or its name
    rows : Tensor of shape [sample], optional
        Which samples to take; by default all.

    Returns
    -------
    Tensor of shape [unit], in the unit of the activation.

    Raises
    ------
    DataError
        There is no such sample.
    """
    summed = store.matrix(site, quantity="activation", sign="sum")
    summed = summed if rows is None else summed[rows]
    if not len(summed):
        raise DataError(f"unit_means: no sample to take the mean of, in {store.path}")
    positions = store.info(site).n_positions
    return (summed.to(torch.float64).mean(0) / positions).to(torch.float32)


class _Place:
    """An edit at its site: counts the calls of the module and edits the one that is meant."""

    def __init__(self, edit: Edit, site: Site) -> None:
        self.edit = edit
        self.site = site
        self.n_calls = 0
        self.most_calls = 0
        self.has_run = False
        self._in_pass = False

    def attach(self, model: nn.Module) -> Iterator[RemovableHandle]:
        yield model.register_forward_pre_hook(self._begin)
        yield model.register_forward_hook(self._end, always_call=True)
        module = model.get_submodule(self.site.name)
        if self.site.tap == "input":
            yield module.register_forward_pre_hook(self._on_input, with_kwargs=True)
        else:
            yield module.register_forward_hook(self._on_output)

    def _begin(self, *_: object) -> None:
        self.n_calls = 0
        self._in_pass = True

    def _end(self, *_: object) -> None:
        self._in_pass = False

    def _on_output(self, _: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return self._exchange(out) if self._is_meant() else out

    def _on_input(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        if not self._is_meant():
            return args, kwargs
        if first_tensor(args) is None:
            return args, self._exchange(kwargs)
        return self._exchange(args), kwargs

    def _is_meant(self) -> bool:
        # A part of the model that is called by itself is a forward pass of its own.
        self.n_calls = self.n_calls + 1 if self._in_pass else 1
        self.most_calls = max(self.most_calls, self.n_calls)
        if self.site.call is not None:
            return self.n_calls == self.site.call + 1
        if self.n_calls > 1:
            raise SiteError(
                f"{self.site.key}: the module is called more than once in one forward pass; say "
                f"which call the edit means: {self.site.name}#0, {self.site.name}#1, ..."
            )
        return True

    def _exchange(self, value: Any) -> Any:
        tensor = first_tensor(value)
        if tensor is None or not tensor.is_floating_point():
            what = type(value).__name__ if tensor is None else f"a tensor of {tensor.dtype}"
            raise SiteError(
                f"{self.site.key}: an edit needs a floating tensor at the module's "
                f"{self.site.tap}; got {what}"
            )
        result = self.edit.apply(tensor)
        self.has_run = True
        return with_first_tensor(value, result)


def _check_all_ran(model: nn.Module, places: Sequence[_Place]) -> None:
    missed = [place for place in places if not place.has_run]
    if not missed:
        return
    most = missed[0].most_calls
    why = (
        f"its module is called {most} times in one forward pass, #0 to #{most - 1}"
        if most
        else "its module did not run"
    )
    raise SiteError(
        f"edited: {missed[0].site.key} never ran inside the context, so the edit did nothing: "
        f"{why} ({type(model).__name__}). Run the model inside the context, and choose sites "
        "that its forward pass calls."
    )


def _set_fields(
    edit: "Ablate | Preserve",
    site: Site | str,
    units: Sequence[int] | Tensor,
    replacement: SupportsFloat | Sequence[SupportsFloat] | Tensor,
) -> None:
    """Check and set the fields of a frozen edit."""
    site = Site.parse(site) if isinstance(site, str) else site
    who = f"{type(edit).__name__}({site.key})"
    object.__setattr__(edit, "site", site)
    object.__setattr__(edit, "units", _checked_units(who, units))
    object.__setattr__(edit, "replacement", _checked_replacement(who, replacement))


def _checked_units(who: str, units: Sequence[int] | Tensor) -> tuple[int, ...]:
    wanted = units.tolist() if isinstance(units, Tensor) else list(units)
    if not wanted:
        raise OptionError(f"{who}: units is empty; name at least one unit, or leave the edit out")
    try:
        numbers = [operator.index(unit) for unit in wanted]
    except TypeError:
        numbers = []
    if not numbers or any(isinstance(unit, bool) for unit in wanted):
        raise OptionError(
            f"{who}: units must be integers, for example [3, 7]; got {wanted[:5]}. Of a mask "
            "take mask.nonzero().flatten()."
        )
    negative = [unit for unit in numbers if unit < 0]
    if negative:
        raise OptionError(f"{who}: units count from 0; got {negative[:5]}")
    twice = sorted(unit for unit, times in Counter(numbers).items() if times > 1)
    if twice:
        raise OptionError(f"{who}: units named more than once: {twice[:5]}")
    return tuple(sorted(numbers))


def _checked_replacement(
    who: str, replacement: SupportsFloat | Sequence[SupportsFloat] | Tensor
) -> float | tuple[float, ...]:
    # Numbers and arrays of numpy have tolist as tensors do.
    given: Any = replacement.tolist() if hasattr(replacement, "tolist") else replacement
    one = isinstance(given, SupportsFloat)
    try:
        if isinstance(given, str | bytes):
            raise TypeError("text")
        numbers = [given] if one else list(given)
        if any(isinstance(number, str | bytes | bool) for number in numbers):
            raise TypeError("text or truth values")
        values = tuple(float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{who}: replacement must be a number, or one number for every unit of the site; got "
            f"{replacement!r}"
        ) from error
    if not values or not all(math.isfinite(value) for value in values):
        raise OptionError(f"{who}: replacement must be finite; got {list(values)[:5]}")
    return values[0] if one else values


def _to_dict(edit: "Ablate | Preserve") -> dict[str, Any]:
    replacement = edit.replacement
    return {
        "name": type(edit).__name__,
        "site": edit.site.key,
        "units": list(edit.units),
        "replacement": list(replacement) if isinstance(replacement, tuple) else replacement,
    }


def _chosen(edit: "Ablate | Preserve", activation: Tensor) -> Tensor:
    """Mask over the units of an activation: those the edit names. Checks that they exist."""
    who = f"{type(edit).__name__}({edit.site.key})"
    try:
        n_units = units_of(edit.site, activation).count(activation.shape)
    except SiteError as error:
        raise SiteError(f"{who}: {error}") from error
    beyond = [unit for unit in edit.units if unit >= n_units]
    if beyond:
        raise SiteError(
            f"{who}: the site has {n_units} units, 0 to {n_units - 1}; there is no unit "
            f"{', '.join(map(str, beyond[:5]))}{', ...' if len(beyond) > 5 else ''}"
        )
    if isinstance(edit.replacement, tuple) and len(edit.replacement) != n_units:
        raise OptionError(
            f"{who}: replacement must be one number, or one for each of the site's {n_units} "
            f"units; got {len(edit.replacement)}"
        )
    chosen = torch.zeros(n_units, dtype=torch.bool)
    chosen[list(edit.units)] = True
    return chosen.to(activation.device)


def _replace(edit: "Ablate | Preserve", activation: Tensor, where: Tensor) -> Tensor:
    """Copy of an activation, other values standing at the units marked in `where`."""
    units, shape = units_of(edit.site, activation), activation.shape
    values = torch.tensor(edit.replacement, dtype=activation.dtype, device=activation.device)
    if values.ndim:
        values = units.broadcast(values, shape)
    # A choice, not a product with 0: units that are cut off may hold NaN or infinity.
    return torch.where(units.broadcast(where, shape), values, activation)
