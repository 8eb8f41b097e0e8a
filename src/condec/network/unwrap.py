"""Wrappers around a model: seen through where that is safe, else refused with the reason.

A model compiled by `torch.compile` is read as the module underneath, and runs uncompiled while
it is read: compiled code would pass by the hooks that record. Wrappers that spread a model over
devices, TorchScript and quantised layers are refused.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from condec.basis.errors import ModelError, SiteError

_PARALLEL: Final = {
    "DataParallel": "it runs copies of the model on parts of the batch, so that no activation is "
    "there whole; give the model inside it, model.module",
    "DistributedDataParallel": "its passes wait for other processes; give the model inside it, "
    "model.module, to one process",
    "FullyShardedDataParallel": "each process holds a part of the weights only; load the whole "
    "weights into the model without the wrapper",
    "FSDPModule": "each process holds a part of the weights only; load the whole weights into the "
    "model without fully_shard",
}
_QUANTISED: Final = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized",
    "torch.nn.quantized", "torch.nn.intrinsic.quantized",
)  # fmt: skip


def original(model: nn.Module) -> nn.Module:
    """Return the model itself, or the one under `torch.compile`."""
    inside = getattr(model, "_orig_mod", None)
    return original(inside) if isinstance(inside, nn.Module) else model


def first_names(model: nn.Module) -> dict[str, str]:
    """Return all names of modules, each with the first one of the same module.

    A module that stands in several places is known by its first name.
    """
    firsts = {module: name for name, module in model.named_modules()}
    return {name: firsts[m] for name, m in model.named_modules(remove_duplicate=False)}


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run compiled parts of the model uncompiled inside the context, so that hooks see them."""
    if not any(_is_compiled(module) for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def refuse_unreadable(model: nn.Module) -> None:
    """Raise ModelError where a model cannot be recorded or differentiated, saying why."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(model).__name__}: its parts run as TorchScript, where nothing can be recorded; "
            "give the module that it was scripted or traced from"
        )
    for name, module in model.named_modules():
        if reason := _reason(type(module)):  # type: ignore[arg-type]  # classes can be hashed
            raise ModelError(f"{name or 'the model'} is a {type(module).__name__}: {reason}")
    _check_devices(model)


def refuse_scripted(modules: Mapping[str, nn.Module], name: str) -> None:
    """Raise SiteError where a module is, or lies inside, TorchScript, which takes no hooks."""
    for above in itertools.accumulate(name.split("."), "{}.{}".format):
        if isinstance(modules.get(above), torch.jit.ScriptModule):
            raise SiteError(
                f"{name}: {above} runs as TorchScript, where nothing can be recorded; choose a "
                "site before or after it, or build the model without torch.jit"
            )


@functools.cache
def _reason(kind: type) -> str | None:
    """Say why modules of this class cannot be read; None if they can."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") and base.__name__ in _PARALLEL:
            return _PARALLEL[base.__name__]
        if base.__module__.startswith(_QUANTISED) and ".reference" not in base.__module__:
            return (
                "no gradient passes through quantised layers, so nothing can be attributed; give "
                "the model in floating point, as it was before torch.ao.quantization"
            )
    return None


def _check_devices(model: nn.Module) -> None:
    first = {parameter.device: name for name, parameter in reversed([*model.named_parameters()])}
    if torch.device("meta") in first:
        raise ModelError(
            f"{type(model).__name__}: {first[torch.device('meta')]} is on the meta device, so it "
            "has no values; load the weights, model.load_state_dict(..., assign=True)"
        )
    if len(first) > 1:
        places = ", ".join(f"{first[at]} on {at}" for at in sorted(first, key=str))
        raise ModelError(
            f"{type(model).__name__}: parameters are on several devices ({places}); move the "
            "model to one, model.to(device)"
        )


def _is_compiled(module: nn.Module) -> bool:
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return in_place or "_orig_mod" in module._modules
