"""The tensors in what a module takes or gives: found, exchanged, or said to be missing."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree

from condec.basis.errors import ModelError

_EXPLAINED: Final = ("logits", "out", "last_hidden_state")
TensorMap = Callable[[Tensor], Tensor]
"""Make another tensor of one, without writing to it."""


def first_tensor(value: object) -> Tensor | None:
    """Return the tensor of what a module gave: itself, its ``logits``, or the first floating one.

    Containers are tuples, lists, mappings (so the outputs of Hugging Face models too) and
    instances of dataclasses; where no tensor in it is floating, its first tensor. What a whole
    model gives is explained by the stricter rule of `explained_name`.
    """
    if isinstance(value, Tensor):
        return value
    items = _items(value)
    if isinstance(items.get("logits"), Tensor):
        return items["logits"]  # type: ignore[no-any-return]
    tensors = [item for item in items.values() if isinstance(item, Tensor)]
    return next((t for t in tensors if t.is_floating_point()), tensors[0] if tensors else None)


def explained_name(output: object) -> str | int | None:
    """Return which tensor of a model's output is explained, by its name or place in there.

    None where it has none. Its ``logits``, ``out``
    (of torchvision's segmentation) or ``last_hidden_state``, else the only floating tensor with a
    sample axis (a loss has none) that it holds. ModelError where there are several of these, and
    none has such a name.
    """
    items = _items(output)
    tensors = {key: item for key, item in items.items() if isinstance(item, Tensor) and item.ndim}
    floating = {key: item for key, item in tensors.items() if item.is_floating_point()} or tensors
    for name in _EXPLAINED:
        if name in floating:
            return name
    if len(floating) > 1:
        held = ", ".join(f"{key!r} {tuple(item.shape)}" for key, item in floating.items())
        raise ModelError(
            f"the model returned {type(output).__name__} with several tensors ({held}), and which "
            f"is to be explained cannot be told: expected one, or one named {', '.join(_EXPLAINED)}"
            ". Wrap the model in a module that returns the one that is meant"
        )
    key: str | int | None = next(iter(floating), None)
    return key


def explained(output: object) -> Tensor | None:
    """Return the tensor of a model's output that is explained, see `explained_name`."""
    if isinstance(output, Tensor):
        return output
    name = explained_name(output)
    return None if name is None else _items(output)[name]


def describe_explained(output: object) -> str:
    """Say which tensor of a model's output is explained, and its shape."""
    tensor = explained(output)
    if tensor is None:
        return "nothing"
    name = None if isinstance(output, Tensor) else explained_name(output)
    of = "" if name is None else f"{name!r} of {type(output).__name__}, "
    return f"{of}[{', '.join(['sample', *map(str, tensor.shape[1:])])}]"


def with_first_tensor(value: Any, tensor: Tensor | None) -> Any:
    """Copy an output with its tensor exchanged; the container's type is kept."""
    if tensor is None or isinstance(value, Tensor):
        return tensor if isinstance(value, Tensor) else value
    old = first_tensor(value)
    if isinstance(value, tuple | list):
        items = [tensor if item is old else item for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    made = copy.copy(value)
    for key in [key for key, item in _items(value).items() if item is old]:
        if isinstance(value, Mapping):
            made[key] = tensor
        else:
            # Past a frozen dataclass, and without running its __init__ again.
            object.__setattr__(made, key, tensor)
    return made


def _items(value: object) -> dict[Any, Any]:
    """List what a container holds, by key, place or field; empty for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return {}


def change_first(value: Any, change: TensorMap) -> Any:
    """Change the one tensor of an output."""
    tensor = first_tensor(value)
    return value if tensor is None else with_first_tensor(value, change(tensor))


def change_input(value: tuple[Any, Any], change: TensorMap) -> tuple[Any, Any]:
    """Change the one tensor among arguments and keyword arguments."""
    args, kwargs = value
    if first_tensor(args) is None:
        return args, change_first(kwargs, change)
    return change_first(args, change), kwargs


def map_tensors(value: Any, change: TensorMap) -> Any:
    """Change all tensors of a structure, also in dataclasses; one that stands there twice, once."""
    changed: dict[int, Tensor] = {}

    def leaf_of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
                return leaf
            made = copy.copy(leaf)
            for part in dataclasses.fields(leaf):
                part_of = _pytree.tree_map(leaf_of, getattr(leaf, part.name))
                object.__setattr__(made, part.name, part_of)
            return made
        if id(leaf) not in changed:
            changed[id(leaf)] = change(leaf)
        return changed[id(leaf)]

    return _pytree.tree_map(leaf_of, value)


def is_recordable(tensor: Tensor) -> bool:
    """Tell whether a tensor is dense, floating and not quantised."""
    dense = tensor.layout == torch.strided and not tensor.is_nested
    return dense and tensor.is_floating_point() and not tensor.is_quantized


def describe(whole: object, tensor: Tensor | None) -> str:
    """Describe what came instead of a tensor that can be recorded."""
    if tensor is None:
        empty = isinstance(whole, tuple | list | Mapping) and not whole
        return "nothing" if empty or whole is None else f"{type(whole).__name__} without a tensor"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"a {'nested' if tensor.is_nested else 'sparse'} tensor ({tensor.layout})"
    return f"a tensor of type {tensor.dtype}"
