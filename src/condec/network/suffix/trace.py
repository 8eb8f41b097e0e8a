"""Trace of a model around places: one graph whose modules are called whole but for those inside.

Only modules that contain a place are traced through; any other is one node, called as a module,
so that its code need not trace and its hooks fire.
"""

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import fx, nn

from condec.basis.errors import ModelError
from condec.network.suffix.versions import CallKey, Place


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass as a graph.

    Attributes
    ----------
    model : torch.nn.Module
    nodes : tuple of torch.fx.Node
        In order of execution; the last is the output.
    taps : dict of Place to torch.fx.Node
        Nodes that hand on what stands at a place: an output, or the pair (args, kwargs).
    calls : dict of torch.fx.Node to CallKey
        Which call of a module a node is, among the calls that are nodes.
    constants : dict of torch.fx.Node to object
        Parameters, buffers, and tensors that the model's code made.
    through : tuple of str
        Modules that were traced through; the model itself aside.
    """

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    taps: dict[Place, fx.Node]
    calls: dict[fx.Node, CallKey]
    constants: dict[fx.Node, Any]
    through: tuple[str, ...]

    def check_hooks(self) -> None:
        """Raise ModelError where a module has a hook that the graph would pass by."""
        for name in self.through:
            module = self.model.get_submodule(name)
            if module._forward_hooks or module._forward_pre_hooks:
                raise ModelError(
                    f"{name} has a forward hook, and the graph passes by it, for it is cut inside "
                    f"{name}; split with route='replay', or name the place in also"
                )


def trace_around(model: nn.Module, places: Iterable[Place]) -> Trace:
    """Trace a model, modules that contain one of the places from inside.

    Raises
    ------
    ModelError
        The model's code, or that of a module around a place, does not trace, or does not come to
        a place, or hooks stand in the way.
    """
    who, wanted = type(model).__name__, set(places)
    modules = dict(model.named_modules())
    if any(not place.name for place in wanted):
        raise ModelError(f"{who} cannot be traced: a graph has no node for the model itself")
    at = {id(modules[place.name]) for place in wanted}
    through = {
        name: module
        for name, module in modules.items()
        if any(id(inside) in at and inside is not module for inside in module.modules())
    }
    exchanged = [name or "the model" for name, m in through.items() if "forward" in m.__dict__]
    if exchanged:
        raise ModelError(f"{who} cannot be traced: the forward of {exchanged[0]} is exchanged")
    tracer = _Tracer({id(module) for module in through.values()}, wanted)
    with _as_before(modules.values()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            nodes = tuple(tracer.trace(model, _defaults(type(model).forward)).nodes)
            constants = {
                node: reduce(getattr, str(node.target).split("."), model)
                for node in nodes
                if node.op == "get_attr"
            }
        except Exception as error:  # the model's own code, on what is no tensor
            raise ModelError(
                f"{who} cannot be traced: {type(error).__name__}: {error}; split with "
                "route='replay'"
            ) from error
    missing = sorted(place.name for place in wanted - set(tracer.taps))
    if missing:
        raise ModelError(f"{who} cannot be traced: its trace does not come to {missing[0]}")
    names = tuple(name for name in through if name)
    trace = Trace(model, nodes, tracer.taps, tracer.calls, constants, names)
    trace.check_hooks()
    return trace


class _Tracer(fx.Tracer):
    """Marks places by nodes of their own."""

    def __init__(self, through: set[int], places: set[Place]) -> None:
        super().__init__()
        self.taps: dict[Place, fx.Node] = {}
        self.calls: dict[fx.Node, CallKey] = {}
        self._through, self._places = through, places
        self._counts: Counter[str] = Counter()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._through

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name = self.path_of_module(m)
        call = self._counts[name]
        self._counts[name] += 1
        if Place(name, "input", call) in self._places:
            both = self._tap(Place(name, "input", call), (args, kwargs))
            args = tuple(both[0][i] for i in range(len(args)))
            kwargs = {key: both[1][key] for key in kwargs}
        out = super().call_module(m, forward, args, kwargs)
        if self.is_leaf_module(m, name):
            self.calls[out.node] = (name, call)
        place = Place(name, "output", call)
        return self._tap(place, out) if place in self._places else out

    def _tap(self, place: Place, value: Any) -> Any:
        proxy = self.create_proxy("call_function", hand_on, (value,), {})
        self.taps[place] = proxy.node
        return proxy


def hand_on(value: Any) -> Any:
    """The value as it is."""
    return value


def _defaults(forward: Callable[..., Any]) -> dict[str, Any]:
    """Arguments after the inputs, as they are where only inputs are given."""
    rest = list(inspect.signature(forward).parameters.values())[2:]
    return {p.name: p.default for p in rest if p.default is not inspect.Parameter.empty}


@contextmanager
def _as_before(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards, attributes that the models' code set on what is no tensor are gone."""
    kept = [(module.__dict__, dict(module.__dict__)) for module in modules]
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)
