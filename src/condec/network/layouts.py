"""Layouts: which axis of an activation holds the units, where a site leaves it open.

A rank alone does not tell: [sample, 16, 16] may be channels along time, or tokens with features.
Linear, embedding and recurrent modules have them on the last axis, convolutions and batch norms on
axis 1. Of all others what fed them tells, and where nothing does (attention that mixes heads
back), what reads them; one pass finds it (`condec.network.axes`), once for a model and site.

A site stays as it is where that is what its rank suggests (`Units.default`); else its layout is
written out. What cannot be told is refused.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError, SiteError
from condec.network.axes import Followed, followed
from condec.network.running import alone, exchanged
from condec.network.sites import Place, Site
from condec.network.state import settings_of
from condec.network.tape import Call, record, run_model
from condec.network.units import Layout, Units
from condec.network.unwrap import original

_LAST: Final = (nn.Linear, nn.Embedding, nn.RNNBase)


@dataclass(frozen=True, slots=True)
class Seen:
    """Shape of an activation, and which axis holds its units; None where nothing tells."""

    shape: tuple[int, ...]
    axis: int | None

    @staticmethod
    def of(module: nn.Module, tensor: Tensor, axes: Followed) -> "Seen":
        """Ask the module that took or gave a tensor, else what was followed."""
        shape = tuple(tensor.shape)
        if isinstance(module, _LAST):
            return Seen(shape, len(shape) - 1)
        if isinstance(module, nn.modules.conv._ConvNd):
            return Seen(shape, len(shape) - 1 - len(module.kernel_size))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return Seen(shape, 1)
        return Seen(shape, axes.of(tensor))

    @staticmethod
    def alone(module: nn.Module, tensor: Tensor) -> "Seen":
        """Ask the module alone, of whose surroundings nothing is known."""
        return Seen.of(module, tensor, Followed(()))

    @property
    def layout(self) -> Layout | None:
        """Return the layout that has its units there; None where it is not known."""
        if len(self.shape) < 3 or self.axis == len(self.shape) - 1:
            return "features"
        return "channels" if self.axis == 1 else None

    @property
    def text(self) -> str:
        """Return what is counted, as ``64 channels``; a question mark where nothing tells."""
        if self.layout is None or len(self.shape) < 2:
            return "?" if len(self.shape) > 1 else ""
        return f"{Units(self.layout).count(self.shape)} {self.layout}"

    def settle(self, site: Site) -> Site:
        """Write out the units of a site, where its rank alone would not say the same."""
        if self.layout is None:
            shape, last = ", ".join(map(str, self.shape[1:])), self.shape[-1]
            why = "nothing around it tells which axis"
            if self.axis is not None:
                why = (
                    f"features lie on axis {self.axis}, of which there is no layout; say which axis"
                )
            raise SiteError(
                f"{site.key}: for an activation of shape [sample, {shape}], {why} holds the units. "
                f"Name the layout: {site.key}@channels counts axis 1 ({self.shape[1]} units), "
                f"@features the last axis ({last} units)"
            )
        if self.layout == Units.default(len(self.shape)).layout:
            return site
        return replace(site, units=Units(self.layout))


_Found = dict[Place, Seen | None]
_OUTPUT: Final[Place] = ("", "output", -1)
_SEEN: Final[MutableMapping[nn.Module, tuple[object, dict[int, _Found]]]] = WeakKeyDictionary()
"""What was found for models, with their settings then, by the number of axes of the inputs."""


def _seen(model: nn.Module, n_axes: int) -> _Found:
    """Return what was found for a model; with other modules or settings it is another one."""
    settings = settings_of(model)
    if model not in _SEEN or _SEEN[model][0] != settings:
        _SEEN[model] = settings, {}
    return _SEEN[model][1].setdefault(n_axes, {})


def settle_sites(model: nn.Module, sites: Iterable[Site], inputs: Tensor) -> tuple[Site, ...]:
    """Write out the units of sites that leave them open, where the rank would mislead.

    Of `inputs`, one sample is run, or all where the model takes no single one. SiteError where
    nothing tells which axis holds the units.
    """
    model, sites = original(model), tuple(sites)
    try:
        return settled(model, sites, inputs.ndim, lambda: run_model(model, inputs[:1]))
    except ModelError:
        if len(inputs) == 1:
            raise
    return settled(model, sites, inputs.ndim, lambda: run_model(model, inputs))


def settled(
    model: nn.Module, sites: Iterable[Site], n_axes: int, run: Callable[[], object]
) -> tuple[Site, ...]:
    """As `settle_sites`; `run` runs the model once, on inputs of so many axes, if need be."""
    sites, modules = tuple(sites), dict(model.named_modules())
    known = _seen(model, n_axes)
    unseen = [site for site in sites if site.units is None and site.name in modules]
    unseen = [site for site in unseen if site.place not in known]
    if unseen:
        known |= {site.place: seen for site, seen in _look(model, unseen, run).items()}
    found = (None if site.units else known.get(site.place) for site in sites)
    pairs = zip(sites, found, strict=True)
    return tuple(site if seen is None else seen.settle(site) for site, seen in pairs)


def output_axis(model: nn.Module, inputs: Tensor) -> int | None:
    """Return the axis of the model's output that holds its labels; None where nothing tells."""
    model = original(model)
    known = _seen(model, inputs.ndim)
    if _OUTPUT not in known:
        with _evaluating(model), record(model, ()), torch.no_grad():
            with followed(model.parameters()) as axes:
                output = run_model(model, inputs)
            known[_OUTPUT] = Seen(tuple(output.shape), axes.of(output))
    seen = known[_OUTPUT]
    return None if seen is None else seen.axis


def _look(
    model: nn.Module, sites: Iterable[Site], run: Callable[[], object]
) -> dict[Site, Seen | None]:
    """Find the axes of units in one pass; None for a site of which there is no one record."""
    with (
        _evaluating(model), record(model, sites) as tape, torch.no_grad(),
        followed(model.parameters()) as axes,
    ):  # fmt: skip
        run()
        found: dict[Site, Seen | None] = {}
        for site in sites:
            calls = tape.calls.get((site.name, site.tap), [])
            several = site.call is None and len(calls) > 1
            call = None if several else next(iter(calls[site.call or 0 :]), None)
            found[site] = None
            if isinstance(call, Call):
                found[site] = Seen.of(model.get_submodule(site.name), call.tensor, axes)
    return found


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Take all hooks off a model inside the context."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    with alone(model):
        before = [(m, {name: getattr(m, name) for name in names}) for m in model.modules()]
        try:
            for module, hooks in before:
                module.__dict__.update({name: type(own)() for name, own in hooks.items()})
            yield
        finally:
            for module, hooks in before:
                module.__dict__.update(hooks)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the context: nothing is learned or drawn at random."""
    with alone(model), exchanged([m for m in model.modules() if m.training], training=False):
        yield
