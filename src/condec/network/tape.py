"""Record what passes the sites in a forward pass, and the gradient of a scalar there.

One forward hook a site stores what came out and hands on a clone, so that an operation in
place further on cannot rewrite the record; gradients are taken by `torch.autograd.grad` on
the stored tensors alone. While a tape runs, the parameters are frozen: no gradient of a
parameter is ever computed, and the autograd graph begins at the first site.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from condec.basis.errors import CondecError, ModelError, SiteError
from condec.basis.records import short_repr
from condec.network.module_io import (
    describe,
    explained,
    first_tensor,
    is_recordable,
    with_first_tensor,
)
from condec.network.running import (
    alone,
    exchanged,
    of_this_thread,
    own_precision,
    without_checkpointing,
)
from condec.network.sites import Site
from condec.network.unwrap import eager, original, refuse_scripted, refuse_unreadable


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded call of a module: its place in the forward pass, its tensor and version."""

    order: int
    tensor: Tensor
    version: int


@dataclass(frozen=True)
class NoRecord:
    """A call of a module of which nothing is recorded, and why."""

    gave: str


@short_repr
@dataclass(frozen=True, eq=False)
class Tape:
    """Record of one forward pass at the sites. Made by `record`."""

    sites: tuple[Site, ...]
    calls: dict[tuple[str, str], list[Call | NoRecord]] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def records(self) -> dict[str, Tensor]:
        """Return recorded tensors by site key, in execution order, attached to the graph.

        SiteError where a module did not run, or more than once and the site does not say which
        call is meant.
        """
        found = {site.key: self._call(site) for site in self.sites}
        return {key: found[key].tensor for key in sorted(found, key=lambda key: found[key].order)}

    def gradients(self, scalar: Tensor, *, keep_graph: bool = False) -> dict[str, Tensor]:
        """Return the gradient of `scalar` at every record, by site key; frees the graph.

        SiteError where `scalar` does not depend on a site.
        """
        records = self.records
        if not scalar.requires_grad:
            raise SiteError(
                f"the target depends on none of the sites {', '.join(records)}: the model "
                "computes it without them, or detaches on the way"
            )
        grads = torch.autograd.grad(
            scalar, tuple(records.values()), allow_unused=True, retain_graph=keep_graph
        )
        found = {key: grad for key, grad in zip(records, grads, strict=True) if grad is not None}
        if unused := [key for key in records if key not in found]:
            raise SiteError(f"the target does not depend on: {', '.join(unused)}; leave them out")
        return found

    def _call(self, site: Site) -> Call:
        calls = self.calls.get((site.name, site.tap), [])
        n_calls = len(calls)
        if not calls:
            raise SiteError(
                f"{site.key}: the module did not run in this forward pass. "
                f"{_hint(self.modules, site.name)}"
            )
        if site.call is None and n_calls > 1:
            names = ", ".join(f"{site.name}#{i}" for i in range(n_calls))
            raise SiteError(
                f"{site.name} is called {n_calls} times in one forward pass; say which call is "
                f"meant: {names}"
            )
        if (site.call or 0) >= n_calls:
            raise SiteError(
                f"{site.key}: the module is called {n_calls} times in one forward pass, #0 to "
                f"#{n_calls - 1}"
            )
        call = calls[site.call or 0]
        if isinstance(call, NoRecord):
            raise SiteError(
                f"{site.key}: expected a dense floating-point tensor as the module's {site.tap}; "
                f"got {call.gave}. Choose a site before or after"
            )
        if call.tensor._version != call.version:
            raise SiteError(
                f"{site.key}: the model kept this tensor aside and changed it in place later, so "
                "what came out is lost; tap the module before it, or make that change out of place"
            )
        return call


@contextmanager
def record(
    model: nn.Module, sites: Iterable[Site], *, hand_on: Callable[[Tensor], Tensor] = torch.clone
) -> Iterator[Tape]:
    """Record the sites of one forward pass run inside the context.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode. Its parameters are frozen inside the context.
    sites : iterable of Site
    hand_on : callable
        What the network goes on with, from the record; it must share no memory with it. By
        default a clone.

    Yields
    ------
    Tape
        `Tape.records` after the forward pass, `Tape.gradients` of a scalar of its output.

    Raises
    ------
    ModelError
        The model, or a part of it, is in training mode, or cannot be read
        (`condec.network.unwrap.refuse_unreadable`).
    SiteError
        A site's module does not exist in the model.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> model = small_resnet()
    >>> with record(model, [Site("block1")]) as tape:
    ...     gradient = tape.gradients(model(torch.ones(2, 1, 5, 5))[:, 0].sum())
    >>> tape.records["block1"].shape == gradient["block1"].shape
    True
    """
    model = original(model)
    refuse_unreadable(model)
    refuse_training(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} was made under torch.inference_mode, so no gradient can pass "
            "through it; make or load it outside"
        )
    sites = tuple(sites)
    modules = dict(model.named_modules(remove_duplicate=False))
    tape = Tape(sites, modules=modules)
    with (
        torch.inference_mode(False), torch.enable_grad(), eager(model), frozen_parameters(model),
        own_precision(), without_checkpointing(), dense_batches(model), ExitStack() as stack,
    ):  # fmt: skip
        for name, tap in dict.fromkeys((site.name, site.tap) for site in sites):
            if name not in modules:
                raise SiteError(f"{type(model).__name__} has no module {name!r}")
            refuse_scripted(modules, name)
            wanted = {site.call for site in sites if (site.name, site.tap) == (name, tap)}
            handle = _attach(modules[name], tap, _recorder(tape, name, tap, wanted, hand_on))
            stack.callback(handle.remove)
        yield tape


def run_model(model: nn.Module, inputs: Tensor, *, owned: bool = False) -> Tensor:
    """Run a forward pass, and return the output's one tensor; ModelError where it fails."""
    return checked_output(model, run_whole(model, inputs, owned=owned))


def checked_output(model: nn.Module, output: object) -> Tensor:
    """Return the tensor of a model's output that is explained; ModelError where there is none."""
    tensor = explained(output)
    if tensor is None:
        raise ModelError(
            f"{type(model).__name__} returned {type(output).__name__} without a tensor; wrap the "
            "model in one that returns the logits"
        )
    return tensor


def run_whole(model: nn.Module, inputs: Tensor, *, owned: bool = False) -> object:
    """Run a forward pass, and return all of its output; ModelError where it fails.

    The model gets a copy of the inputs, which an operation in place may change, unless they are
    `owned` by this pass alone. Neither the caller's autocast nor gradient checkpointing is in force
    (`condec.network.running`).
    """
    model = original(model)
    try:
        with alone(model), own_precision(), without_checkpointing(), dense_batches(model):
            return model(inputs if owned else inputs.clone())
    except (torch.OutOfMemoryError, CondecError):
        raise
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} failed on inputs of shape {tuple(inputs.shape)} and type "
            f"{inputs.dtype}, {type(error).__name__}: {error}. Check the shape and preprocessing "
            "of the inputs."
        ) from error


def check_output(model: nn.Module, output: Tensor, n_samples: int) -> None:
    """Raise ModelError where the output has not one row for each sample."""
    if output.shape[:1] != (n_samples,):
        raise ModelError(
            f"{type(model).__name__}: expected one output for each of {n_samples} samples; got "
            f"shape {tuple(output.shape)}"
        )


def refuse_training(model: nn.Module) -> None:
    """Raise ModelError if the model, or a part of it, is in training mode."""
    with alone(model):
        training = [name or "the model" for name, m in model.named_modules() if m.training]
    if training:
        raise ModelError(
            f"{type(model).__name__} is in training mode ({', '.join(training[:3])}"
            f"{', ...' if len(training) > 3 else ''}): dropout would draw noise and batch norm "
            "would mix the samples, so no result would belong to one input. Call "
            "model.eval() first."
        )


@contextmanager
def dense_batches(model: nn.Module) -> Iterator[None]:
    """Keep encoders of torch from packing padded batches into nested tensors inside the context.

    Layers that are recorded cannot read these, and no gradient passes those that can.
    """
    packing = [m for m in model.modules() if getattr(m, "use_nested_tensor", False) is True]
    with exchanged(packing, use_nested_tensor=False):
        yield


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Freeze the parameters of a model inside the context, where no other thread looks at it.

    On a GPU, recurrent layers are then in training mode without dropout, which gives the same
    numbers: cuDNN differentiates them in no other mode. Batch norms get their gradients in order.
    """
    with alone(model), ExitStack() as stack:
        trainable = [p for p in model.parameters() if p.requires_grad]
        recurrent = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
        recurrent = [m for m in recurrent if any(p.is_cuda for p in m.parameters())]
        stack.enter_context(exchanged(trainable, requires_grad=False))
        stack.enter_context(exchanged(recurrent, training=True, dropout=0.0))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                stack.callback(module.register_forward_hook(_order_gradient).remove)
        yield


def _order_gradient(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
    """Lay the gradient of one sample out in order: torch 2.13 reads a transposed one wrongly."""
    if len(out) == 1 and out.requires_grad:
        out.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]


def _hint(modules: Mapping[str, nn.Module], name: str) -> str:
    """Say why a module may not run, and what to do."""
    if type(modules[name]).forward is nn.Module.forward:
        kind, inside = type(modules[name]).__name__, next(iter(modules[name]._modules), "0")
        return f"A {kind} never does; choose what is in it, '{name}.{inside}'"
    above = modules[name.rpartition(".")[0]]
    if isinstance(above, nn.MultiheadAttention):
        return (
            "nn.MultiheadAttention hands its weights to a function; "
            "condec.expose_attention(model) gives an equal model that runs it"
        )
    return (
        f"The model does not call it on such inputs, or not as a module (a function gets its "
        f"weights, or its forward is called directly); choose a site around it, such as what "
        f"{name.rpartition('.')[0] or 'the model'} returns"
    )


def _attach(
    module: nn.Module, tap: str, keep: Callable[[Any, Tensor | None, bool], Tensor | None]
) -> torch.utils.hooks.RemovableHandle:
    def on_output(_: nn.Module, args: tuple[Any, ...], kwargs: Any, out: Any) -> Any:
        tensor = first_tensor(out)
        given = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        alias = tensor is not None and any(_same_memory(tensor, value) for value in given)
        return with_first_tensor(out, keep(out, tensor, alias))

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Any:
        # The caller still holds the input and may change it in place: always copied.
        if (tensor := first_tensor(args)) is not None:
            return with_first_tensor(args, keep(args, tensor, True)), kwargs
        kept = keep(kwargs or args, first_tensor(kwargs), True)
        return args, with_first_tensor(kwargs, kept)

    if tap == "input":
        return module.register_forward_pre_hook(of_this_thread(on_input), with_kwargs=True)
    return module.register_forward_hook(of_this_thread(on_output), with_kwargs=True)


def _recorder(
    tape: Tape, name: str, tap: str, wanted: set[int | None], hand_on: Callable[[Tensor], Tensor]
) -> Callable[[Any, Tensor | None, bool], Tensor | None]:
    calls = tape.calls.setdefault((name, tap), [])

    def keep(whole: Any, tensor: Tensor | None, alias: bool) -> Tensor | None:
        if None not in wanted and len(calls) not in wanted:
            calls.append(NoRecord("a call that was not asked for"))
            return tensor
        if tensor is None or not is_recordable(tensor):
            calls.append(NoRecord(describe(whole, tensor)))
            return tensor
        stored = _node(tensor, alias=alias)
        order = sum(len(others) for others in tape.calls.values())
        calls.append(Call(order, stored, stored._version))
        return hand_on(stored)

    return keep


def _node(tensor: Tensor, *, alias: bool) -> Tensor:
    """Make the tensor a node of its own in the graph, with its tangent if it carries one."""
    if tensor.requires_grad:
        # A node of its own, so that the gradient is that of this use of the tensor only;
        # memory of its own where somebody else holds the same.
        return tensor.clone() if alias else tensor.view_as(tensor)
    tangent = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    leaf = (tensor.clone() if alias else tensor).detach().requires_grad_()
    # Detaching drops the tangent of forward-mode differentiation too.
    return leaf if tangent is None else forward_ad.make_dual(leaf, tangent)  # type: ignore[no-untyped-call]


def _same_memory(a: Tensor, b: Tensor) -> bool:
    both = is_recordable(a) and is_recordable(b)
    return both and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
