"""Which axis of a tensor holds its features, followed through one forward pass.

Operations that make features say where they put them: convolutions, batch and group norm on axis
1, linear maps, layer norm, embeddings and recurrent layers on the last. All others hand the axis
on, as the shape of what they make tells (a transposition moves it, a sum over it loses it). What
made a tensor counts before what reads it; where nothing that made it tells (attention mixes its
heads back by reshaping), the first that reads it does.

>>> from torch import nn
>>> with followed(()) as axes:
...     made = nn.Conv1d(2, 5, 3)(torch.ones(1, 2, 8)).relu()
>>> axes.of(made)
1
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

Axes = tuple[int, ...]
"""Axes that may hold the features, counted from the end, the likeliest first."""
_Move = Callable[[int], int | None]
"""Where an axis of one tensor lies in another."""

_LAST: Final = (-1,)
_FEATURES_LAST: Final = (
    "embedding", "embedding_bag", "_cudnn_rnn", "miopen_rnn", "mkldnn_rnn_layer",
    "_transformer_encoder_layer_fwd", "_native_multi_head_attention",
)  # fmt: skip
_PRODUCTS: Final = {"mm": 0, "linear": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}
"""Matrix products, and the place of the first factor among their arguments."""
_RESHAPES: Final = ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unflatten")
_POOL: Final = re.compile(r"_?(max_pool|avg_pool|adaptive_\w+_pool|fractional_max_pool)(\d)d")


@dataclass(eq=False)
class _Value:
    """What is known of one tensor: no axes yet; none, where what made it disagrees; or some.

    `sources` made it, and are as unknown. A linear map folds all axes but the last into one and
    back; `folded` are their sizes, and axes there.
    """

    axes: Axes | None = None
    folded: tuple[tuple[int, ...], Axes] | None = None
    sources: list[tuple["_Value", _Move]] = field(default_factory=list)

    def fill(self, axes: Axes | None) -> None:
        """Take over what a reader tells, if nothing is known, and tell the sources."""
        if self.axes is not None or not axes:
            return
        self.axes = axes
        for source, move in self.sources:
            source.fill(_moved(axes, move))


class Followed:
    """The axes found in one pass. Made by `followed`."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._values: dict[object, _Value] = {}
        self._own = {part.untyped_storage().data_ptr() for part in parameters if _is_dense(part)}

    def of(self, tensor: Tensor) -> int | None:
        """Return the axis of a tensor that is still alive, from 0; None where nothing tells."""
        axes = self._value(tensor).axes
        # Features mapped along another axis (tokens, say), and turned back: neither is the one.
        is_turned = axes and len(axes) > 1 and axes[0] != -1
        return tensor.ndim + axes[0] if axes and not is_turned else None

    def _value(self, tensor: Tensor) -> _Value:
        return self._values.setdefault(_key(tensor), _Value()) if _is_dense(tensor) else _Value()

    def note(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Note what an operation made of what."""
        made = [x for x in _pytree.tree_leaves(out) if isinstance(x, Tensor) and _is_dense(x)]
        given = [
            x for x in _pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and _is_dense(x)
        ]
        name = func._schema.name.partition("::")[2].rstrip("_")
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        # First all of them, for an operation in place gives what it was given.
        values = [self._made(name, named, args, given, one) for one in made]
        for one, value in zip(made, values, strict=True):
            self._values[_key(one)] = value

    def _made(
        self, name: str, named: dict[str, Any], args: Sequence[Any], given: list[Tensor],
        made: Tensor,
    ) -> _Value:  # fmt: skip
        if name in _PRODUCTS:
            return self._product(name, args, made)
        own = self._own_axes(name, named, args, made)
        if own is not None:
            self._value(given[0]).fill(own)
            return _Value(own)
        if not given:
            return _Value()
        if name.startswith("_scaled_dot_product"):
            given = given[2:3]
        if (move := _move_of(name, named, given[0], made)) is not None:
            return self._reshaped(name, named, given[0], made, move)
        return self._together(given, made)

    def _own_axes(
        self, name: str, named: dict[str, Any], args: Sequence[Any], made: Tensor
    ) -> Axes | None:
        """Axes that an operation decides itself."""
        if "conv" in name and isinstance(weight := named.get("weight"), Tensor):
            return (1 - weight.ndim,) if made.ndim >= weight.ndim - 1 else None
        if name in _FEATURES_LAST:
            return _LAST
        if "batch_norm" in name or name == "native_group_norm":
            return (1 - made.ndim,) if made.ndim > 1 else None
        if "layer_norm" in name or "rms_norm" in name:
            shape = named.get("normalized_shape", ())
            return _with_last(self._value(args[0]).axes) if len(shape) == 1 else None
        pool = _POOL.match(name)
        if pool and not self._value(args[0]).axes:
            return (-1 - int(pool[2]),)
        return None

    def _product(self, name: str, args: Sequence[Any], made: Tensor) -> _Value:
        """Follow a matrix product; one with weights is a linear map."""
        a, b = args[_PRODUCTS[name] :][:2]
        if not (_is_dense(a) and _is_dense(b)):
            return _Value()
        left, right = self._value(a), self._value(b)
        # Weights that are computed (by a norm of them, say) are nowhere in a batch of products.
        weights = b.untyped_storage().data_ptr() in self._own
        weights |= right.axes is None and not name.endswith("bmm")
        if weights and a.untyped_storage().data_ptr() not in self._own:
            left.fill(_LAST)
            return _Value(_with_last(left.axes), left.folded)
        there, kept = right.axes or (), tuple(axis for axis in left.axes or () if axis != -1)
        if -2 in there and a.untyped_storage().data_ptr() in self._own:
            return _Value((-2,))  # weights times columns of features
        return _Value((_LAST if -1 in there else ()) + kept or None)

    def _reshaped(
        self, name: str, named: dict[str, Any], given: Tensor, made: Tensor, move: _Move
    ) -> _Value:
        """Follow what changes the shape of one tensor."""
        source = self._value(given)
        if source.axes is None:
            back = _back_of(name, named, given, made)
            return _Value(sources=[] if back is None else [(source, back)])
        axes = _moved(source.axes, move)
        if source.folded and source.folded[0] == made.shape[:-1]:
            axes = (*axes, *(axis for axis in source.folded[1] if axis not in axes))
        is_folding = name in _RESHAPES and made.ndim == 2 < given.ndim
        folded = (tuple(given.shape[:-1]), tuple(a for a in source.axes if a != -1))
        return _Value(axes or None, folded if is_folding else None)

    def _together(self, given: list[Tensor], made: Tensor) -> _Value:
        """Follow what works entry by entry, or along one axis: shapes align at their ends."""
        if all(one.ndim != made.ndim for one in given):
            return _Value()
        values = [(one, self._value(one)) for one in given if one.ndim <= made.ndim]
        known = [value.axes for _, value in values if value.axes is not None]
        unknown = [value for one, value in values if not value.axes and one.shape == made.shape]
        if not known:
            return _Value(sources=[(value, lambda axis: axis) for value in unknown])
        shared = tuple(
            a for a in known[0] if all(a in other for other in known) and -a <= made.ndim
        )
        for value in unknown:
            value.fill(shared)
        return _Value(shared)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, axes: Followed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes = axes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An operation in place may change the shape of what it was given.
        in_place = func._schema.name.endswith("_") and args and isinstance(args[0], Tensor)
        given = (args[0].detach(), *args[1:]) if in_place else args
        out = func(*args, **(kwargs or {}))
        self.axes.note(func, given, kwargs or {}, out)
        return out


@contextmanager
def followed(parameters: Iterable[Tensor]) -> Iterator[Followed]:
    """Follow the axes of features in a forward pass run inside the context.

    `parameters` are those of the model: what they multiply is mapped linearly.
    """
    axes = Followed(parameters)
    with _Watch(axes):
        yield axes


def _with_last(axes: Axes | None) -> Axes:
    """Put the last axis first: a map along it makes features there, and leaves those elsewhere."""
    return (*_LAST, *(axis for axis in axes or () if axis != -1))


def _moved(axes: Axes, move: _Move) -> Axes:
    there = (move(axis) for axis in axes)
    return tuple(dict.fromkeys(axis for axis in there if axis is not None))


def _move_of(name: str, named: dict[str, Any], given: Tensor, made: Tensor) -> _Move | None:
    """Return where an operation on one tensor moves axes; None if it is of another kind."""
    old, new = given.ndim, made.ndim
    if name in ("permute", "transpose", "t"):
        order = _order(name, named, old)
        return lambda axis: order.index(axis % old) - new
    if name in ("unsqueeze", "stack"):
        at = named.get("dim", 0) % new
        return lambda axis: axis if axis + old >= at else axis - 1
    if name in ("expand", "repeat"):
        return lambda axis: axis
    if name in _RESHAPES and "dim" not in named:
        return lambda axis: _reshaped(axis, given.shape, made.shape)
    gone = _dims(named.get("dim", 0 if name == "unbind" else None), old)
    if gone and new == old - len(gone):
        left = [axis for axis in range(old) if axis not in gone]
        return lambda axis: left.index(axis % old) - new if axis % old in left else None
    if name == "index" and new != old:
        return lambda axis: axis if axis == -1 and given.shape[-1] == made.shape[-1] else None
    return None


def _back_of(name: str, named: dict[str, Any], given: Tensor, made: Tensor) -> _Move | None:
    """Return where axes of what was made came from, for what only changes the shape."""
    if name in ("permute", "transpose", "t"):
        order = _order(name, named, given.ndim)
        return lambda axis: order[axis] - given.ndim
    if name in _RESHAPES:
        return lambda axis: _reshaped(axis, made.shape, given.shape)
    return None


def _order(name: str, named: dict[str, Any], ndim: int) -> list[int]:
    """Return which axis of the old stands at each place of the new."""
    order = list(range(ndim))
    if name == "permute":
        return [axis % ndim for axis in named["dims"]]
    if ndim > 1:
        a, b = (named["dim0"], named["dim1"]) if name == "transpose" else (0, 1)
        order[a], order[b] = order[b], order[a]
    return order


def _dims(dims: Any, ndim: int) -> set[int]:
    """Return the axes that an argument names, from 0."""
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple) or not all(isinstance(dim, int) for dim in dims):
        return set()
    return {dim % ndim for dim in dims} if ndim else set()


def _reshaped(axis: int, old: Sequence[int], new: Sequence[int]) -> int | None:
    """Find an axis again after a reshape: of the same size, with as many entries a step."""
    size, step = old[axis], math.prod(old[len(old) + axis + 1 :])
    there = [
        place for place in range(-len(new), 0)
        if new[place] == size and math.prod(new[len(new) + place + 1 :]) == step
    ]  # fmt: skip
    # The first axis is that of samples, unless the only one was folded away.
    inner = [place for place in there if place != -len(new)]
    return next(iter(inner or (there if size > 1 else [])), None)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _key(tensor: Tensor) -> object:
    """Say which tensor it is; views of the same memory are told apart by how they lie in it."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()
