"""The graph way: what depends on the site runs again, node by node; the rest is kept.

Nodes that do not depend on the site are *kept*: modules among them answer with what they gave in
the full pass, operations between them are done once more on that. Of kept nodes only those that
a later one reads are held, as copies. Numbers read off tensors (a batch size, a shape) are taken
anew in every pass, for it holds more samples.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from condec.basis.errors import ModelError
from condec.network.sites import Site
from condec.network.suffix.trace import Trace
from condec.network.suffix.versions import (
    CallKey,
    Pass,
    Place,
    Way,
    change_first,
    change_input,
    map_tensors,
    tensors_of,
    thin,
)
from condec.network.tape import check_samples, record, run_model

Values = dict[fx.Node, Any]


@dataclass(frozen=True, eq=False)
class Graph(Way):
    """The nodes to run again, and what they read of those that are kept.

    Attributes
    ----------
    trace : Trace
    inputs : Tensor of shape [sample, ...]
    site : Site
    at_site : object
        What stood at the site: an output, or (args, kwargs).
    steps : tuple of torch.fx.Node
        To run again, in order; the last is the output.
    kept : dict of torch.fx.Node to object
        Values that the steps read.
    silent : frozenset of torch.fx.Node
        Kept nodes of which only shape and type are read.
    """

    trace: Trace
    inputs: Tensor
    site: Site
    at_site: Any
    steps: tuple[fx.Node, ...]
    kept: Values
    silent: frozenset[fx.Node] = frozenset()

    def run(self, this: Pass) -> Tensor:
        """Output of the model for all versions."""
        self.trace.check_hooks()
        model = self.trace.model
        before = model.__dict__.get("forward")
        # Called as a module, so that hooks of the model itself fire.
        model.__dict__["forward"] = lambda *_, **__: self._execute(this)
        try:
            output = run_model(model, self.inputs)
        finally:
            del model.__dict__["forward"]
            if before is not None:
                model.__dict__["forward"] = before
        if this.watch is not None and this.watch.is_written:
            raise ModelError(
                f"{type(model).__name__}: what lies after {self.site.key} changes in place what "
                "lies before it; split with route='replay'"
            )
        return output

    def lean(self, used: frozenset[Hashable]) -> "Graph":
        """The same with one sample kept of nodes that no operation works on."""
        unused = frozenset(self.kept) - used
        kept = {n: map_tensors(v, thin) if n in unused else v for n, v in self.kept.items()}
        return replace(self, kept=kept, silent=self.silent | unused)

    def _execute(self, this: Pass) -> Any:
        place, taps = Place.of(self.site), self.trace.taps
        is_input = place.tap == "input"
        values: Values = {taps[place]: this.at_site(self.at_site, is_input=is_input)}
        for node, value in self.kept.items():
            values[node] = this.spread(value, silent=node in self.silent)
            if this.watch is not None:
                this.watch.note(node, values[node])
        later = {taps[at]: (at.tap, change) for at, change in this.changes.items()}
        done = _last_reads(self.steps)
        for node in self.steps:
            if node.op == "output":
                return _read(node.args[0], values)
            values[node] = _evaluate(self.trace, node, values)
            if node in later:
                tap, change = later[node]
                changed = change_input if tap == "input" else change_first
                values[node] = changed(values[node], change)
            for last in done[node]:
                del values[last]
        raise AssertionError("a graph ends with its output")


def follow(trace: Trace, inputs: Tensor, site: Site) -> tuple[Tensor, Tensor, Graph]:
    """Run the model, and keep what the nodes after the site read of those before it.

    Returns
    -------
    activation, output : Tensor of shape [sample, ...]
    Graph

    Raises
    ------
    ModelError
        The output does not depend on the site, or kept operations fail.
    """
    model, tap = trace.model, trace.taps[Place.of(site)]
    again = _depend(trace)
    if trace.nodes[-1] not in again:
        raise ModelError(f"the output of {type(model).__name__} does not depend on {site.key}")
    needed = _above(trace, again)
    wanted = {trace.calls[node]: node for node in needed if node in trace.calls}
    with record(model, [site]) as tape, _noted(trace, wanted) as values, torch.no_grad():
        output = run_model(model, inputs)
        check_samples(tape.records, len(inputs))
        (activation,) = (tensor.detach() for tensor in tape.records.values())
        _do_again(trace, needed, inputs, values)
    again |= _plain(again, values)
    again.remove(tap)
    steps = tuple(node for node in trace.nodes if node in again)
    kept = {read: values[read] for step in steps for read in step.all_input_nodes if read in values}
    at_site = _read(tap.args[0], values)
    return activation, output.detach(), Graph(trace, inputs, site, at_site, steps, kept)


def _depend(trace: Trace) -> set[fx.Node]:
    """Nodes that depend on a place."""
    found = set(trace.taps.values())
    for node in trace.nodes:
        if any(read in found for read in node.all_input_nodes):
            found.add(node)
    return found


def _above(trace: Trace, again: set[fx.Node]) -> set[fx.Node]:
    """What nodes read that are not among them, also by way of operations; modules end a way."""
    found: set[fx.Node] = set()
    ahead = list(again)
    while ahead:
        node = ahead.pop()
        if node in trace.calls and node not in again:
            continue
        new = [read for read in node.all_input_nodes if read not in found | again]
        found.update(new)
        ahead += new
    return found


def _plain(again: set[fx.Node], values: Values) -> set[fx.Node]:
    """Kept operations without a tensor in their values, as sizes are, that nodes read."""
    found: set[fx.Node] = set()
    ahead = list(again)
    while ahead:
        for read in ahead.pop().all_input_nodes:
            is_operation = read.op in ("call_function", "call_method")
            if is_operation and read not in found | again and not tensors_of(values[read]):
                found.add(read)
                ahead.append(read)
    return found


@contextmanager
def _noted(trace: Trace, wanted: Mapping[CallKey, fx.Node]) -> Iterator[Values]:
    """Fills the yielded dict, as the model runs, with what the wanted calls return."""
    values: Values = {}
    counts: Counter[str] = Counter()
    open_calls: list[str] = []

    def before(name: str) -> Callable[..., None]:
        return lambda *_: open_calls.append(name)

    def after(_: nn.Module, __: Any, out: Any) -> None:
        name = open_calls.pop()
        if open_calls:  # a call inside another is no node
            return
        node = wanted.get((name, counts[name]))
        counts[name] += 1
        if node is not None:
            # A copy is kept: an operation in place may go on with what was returned.
            values[node] = map_tensors(out, torch.clone)

    with ExitStack() as stack:
        for name in {name for name, _ in trace.calls.values()}:
            module = trace.model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield values


def _do_again(trace: Trace, needed: set[fx.Node], inputs: Tensor, values: Values) -> None:
    """Values of operations, parameters and inputs, in order."""
    values.update(trace.constants)
    values[trace.nodes[0]] = inputs.clone()
    for node in (node for node in trace.nodes if node in needed and node not in values):
        if node.op not in ("call_function", "call_method"):
            raise ModelError(
                f"{type(trace.model).__name__} cannot be cut in its graph: {node.name} did not run "
                "when the model did"
            )
        values[node] = _evaluate(trace, node, values)


def _evaluate(trace: Trace, node: fx.Node, values: Values) -> Any:
    args = tuple(_read(arg, values) for arg in node.args)
    kwargs = {key: _read(arg, values) for key, arg in node.kwargs.items()}
    if node.op == "call_module":
        return trace.model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Any = node.target
    return target(*args, **kwargs)


def _read(arg: Any, values: Values) -> Any:
    """An argument of a node, nodes in it replaced by their values."""
    if isinstance(arg, fx.Node):
        return values[arg]
    if isinstance(arg, dict):
        return {key: _read(item, values) for key, item in arg.items()}
    if isinstance(arg, slice):
        return slice(*(_read(part, values) for part in (arg.start, arg.stop, arg.step)))
    if isinstance(arg, tuple | list):
        items = [_read(item, values) for item in arg]
        # Lists and tuples of torch.fx are types of its own.
        return items if isinstance(arg, list) else tuple(items)
    return arg


def _last_reads(steps: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For every step the nodes that no later step reads."""
    last = {read: step for step in steps for read in step.all_input_nodes}
    done: dict[fx.Node, list[fx.Node]] = {step: [] for step in steps}
    for read, step in last.items():
        done[step].append(read)
    return done
