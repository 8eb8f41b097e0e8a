"""A model with edits, while a context lasts. Hooks that write are registered here only."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from condec.basis.errors import ModelError, SiteError
from condec.edits.base import Edit, checked_edits, with_site
from condec.network import (
    Seen,
    Site,
    describe,
    find_sites,
    first_tensor,
    is_recordable,
    original,
    settled,
    unhooked,
    with_first_tensor,
    without_checkpointing,
)


@contextmanager
def edited(model: nn.Module, edits: Edit | Iterable[Edit]) -> Iterator[nn.Module]:
    """Run a model with edits; afterwards it is as it was.

    Contexts nest: the inner edits get what the outer ones left. Edits act in the order given, with
    and without gradients; tensors that others hold are never written to. What is recorded inside
    (`contribute`, say) is the edited network. So it is for passes of other threads.

    The same model is yielded; of one that `torch.compile` made, the module underneath, uncompiled.

    Raises
    ------
    OptionError, SiteError
        No edit; a site that is not in the model, holds no floating tensor, or is ambiguous because
        its module is called more than once; on leaving, one that never ran inside the context.
    """
    edits = checked_edits("edited", edits)
    model = original(model)
    places = [_Attached(edit, find_sites(model, edit.site)[0]) for edit in edits]
    with without_checkpointing(), ExitStack() as changes:
        # Compiled code would pass by the hooks. Nothing is compiled before torch has loaded its
        # compiler.
        if "torch._dynamo" in sys.modules:
            changes.enter_context(torch.compiler.set_stance("force_eager"))
        if any(place.is_open for place in places):
            hook = model.register_forward_pre_hook(partial(_settle, places), with_kwargs=True)
            changes.callback(hook.remove)
        for place in places:
            for undo in place.attach(model):
                changes.callback(undo)
        yield model
    _check_all_ran(model, places)


def _settle(places: "Sequence[_Attached]", model: nn.Module, args: Any, kwargs: Any) -> None:
    """Find out which axes are units at sites that leave it open, before the model runs."""
    given = first_tensor(args) if first_tensor(args) is not None else first_tensor(kwargs)
    n_axes = -1 if given is None else given.ndim
    unknown = [place for place in places if place.is_open and place.n_axes != n_axes]
    if unknown:
        sites: tuple[Site, ...] = tuple(place.given.site for place in unknown)
        try:
            with unhooked(model):
                sites = settled(model, sites, n_axes, lambda: model(*args, **kwargs))
        except ModelError:  # it can be run, but not recorded
            return
        for place, site in zip(unknown, sites, strict=True):
            place.edit, place.n_axes = with_site(place.given, site), n_axes


def is_edited(model: nn.Module) -> bool:
    """Return whether a context of `edited` is in force for a model, or was when it was copied."""
    hooks = [h for module in model.modules() for h in module._forward_pre_hooks.values()]
    return any(isinstance(getattr(hook, "__self__", None), _Attached) for hook in hooks)


class _Attached:
    """An edit at its site: counts the calls of the module and edits the one that is meant."""

    def __init__(self, edit: Edit, site: Site) -> None:
        self.given = self.edit = edit
        self.site = site
        self.n_calls = self.most_calls = 0
        self.has_run = self._in_pass = False
        self.is_open = not edit.within and edit.site.units is None
        self.n_axes: int | None = None  # of the model's inputs, for which the edit is settled
        self._in_force = ExitStack()

    def attach(self, model: nn.Module) -> Iterator[Callable[[], object]]:
        """Attach to a model, step by step, and yield how to undo each step."""
        yield model.register_forward_pre_hook(self._begin).remove
        yield model.register_forward_hook(self._end, always_call=True).remove
        module = model.get_submodule(self.site.name)
        if self.edit.within:
            # Where a module has a hook, no fused kernel of torch passes by it.
            yield module.register_forward_pre_hook(self._before).remove
            yield module.register_forward_hook(self._after, prepend=True, always_call=True).remove
            yield lambda: self._after(module, (), None)
        elif self.site.tap == "input":
            yield module.register_forward_pre_hook(self._on_input, with_kwargs=True).remove
        else:
            yield module.register_forward_hook(self._on_output).remove

    def _begin(self, *_: object) -> None:
        self.n_calls = 0
        self._in_pass = True

    def _end(self, *_: object) -> None:
        self._in_pass = False

    def _on_output(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return self._exchange(module, out) if self._is_meant() else out

    def _on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        if not self._is_meant():
            return args, kwargs
        if first_tensor(args) is None:
            return args, self._exchange(module, kwargs)
        return self._exchange(module, args), kwargs

    def _before(self, *_: object) -> None:
        if self._is_meant():
            self._in_force.enter_context(self.edit.during())
            self.has_run = True

    def _after(self, _: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        # Without an output the module failed, and its own error is the one to see.
        with suppress(SiteError) if out is None else nullcontext():
            self._in_force.close()

    def _is_meant(self) -> bool:
        """Count a call of the module, and return whether it is the one to edit."""
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

    def _exchange(self, module: nn.Module, value: Any) -> Any:
        tensor = first_tensor(value)
        if tensor is None or not is_recordable(tensor):
            nested = tensor is not None and tensor.is_nested
            hint = ". Build nn.TransformerEncoder with enable_nested_tensor=False" if nested else ""
            raise SiteError(
                f"{self.site.key}: an edit needs a dense, floating tensor at the module's "
                f"{self.site.tap}; got {describe(value, tensor)}{hint}"
            )
        if self.is_open and self.n_axes is None:  # a part of the model that is called by itself
            self.edit = with_site(self.given, Seen.alone(module, tensor).settle(self.given.site))
        result = self.edit.apply(tensor)
        self.has_run = True
        return with_first_tensor(value, result)


def _check_all_ran(model: nn.Module, places: Sequence[_Attached]) -> None:
    for place in places:
        if place.has_run:
            continue
        why, most = "its module did not run", place.most_calls
        if most:
            why = f"its module is called {most} times in one forward pass, #0 to #{most - 1}"
        raise SiteError(
            f"edited: {place.site.key} never ran inside the context, so the edit did nothing: "
            f"{why} ({type(model).__name__}). Run the model inside the context, and choose sites "
            "that its forward pass calls."
        )
