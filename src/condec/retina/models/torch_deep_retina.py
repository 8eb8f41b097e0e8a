"""Read checkpoints of torch-deep-retina, the library of Maheswaranathan et al. 2023.

No code from the file runs. Names of tensors may be of any version: modules are matched in order,
the tensors of each by their last name.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError, OptionError
from condec.retina.models.layout import Positions, RetinaLayout
from condec.retina.models.network import (
    AbsBatchNorm,
    GaussianNoise,
    RetinaCheckpoint,
    RetinaNetwork,
)

PositionsFrom = Literal["checkpoint", "centres"]
Fits = Callable[[Any], bool]

_TYPES: Final = ("BNCNN", "LinearStackedBNCNN", "VaryModel", "RetinotopicModel")
_NUMPY: Final = ("numpy.core.multiarray", "numpy._core.multiarray")
_STATISTICS: Final = {"running_mean": "running_mean", "running_var": "running_var"}
_LEAVES: Final[dict[type[nn.Module], dict[str, str]]] = {
    AbsBatchNorm: {"scale": "weight", "shift": "bias", **_STATISTICS},
    GaussianNoise: {"sigma": "std"},
}
"""Last names of tensors there, and their names here; otherwise they are the same."""

_whole: Fits = lambda v: isinstance(v, int) and not isinstance(v, bool)  # noqa: E731
_number: Fits = lambda v: isinstance(v, int | float) and not isinstance(v, bool)  # noqa: E731
_wholes: Fits = lambda v: isinstance(v, list | tuple) and all(map(_whole, v))  # noqa: E731

_HYPS: Final[dict[str, tuple[Any, str, Fits]]] = {
    "img_shape": ((40, 50, 50), "frames, height and width", lambda v: _wholes(v) and len(v) == 3),
    "chans": ((8, 8), "a list of whole numbers", _wholes),
    "ksizes": ((15, 11, 11), "a list of whole numbers", _wholes),
    "n_layers": (3, "a whole number", _whole),
    "n_units": (5, "a whole number", _whole),
    "bnorm_d": (1, "1 or 2", lambda v: _whole(v) and v in (1, 2)),
    "drop_p": (0.0, "a number", _number),
    "bn_moment": (0.01, "a number", _number),
    "noise": (0.05, "a number", _number),
    "activ_fxn": ("ReLU", "'ReLU'", lambda v: v == "ReLU"),
    "centers": (
        None, "a list of (row, column) of the cells, since units are grabbed (convgc)",
        lambda v: isinstance(v, list | tuple) and all(_wholes(c) and len(c) == 2 for c in v),
    ),
} | {
    name: (default, "true or false", lambda v: v in (None, 0, 1))
    for name, default in {
        "bias": True, "gc_bias": False, "convgc": False, "stackconvs": True, "softplus": True,
        "inference_exp": False,
    }.items()
}  # fmt: skip
"""Arguments of the library's constructors: default, expected kind in words, and its check."""

_NOT_READ: Final = {
    "one2one": "stacked convolutions channel by channel",
    "recurrent": "a recurrent network",
    "kinetic": "a kinetics layer",
    "collapsed": "cells that share maps",
    "paddings": "convolutions with padding",
}
"""Constructor arguments of the library that make networks of another kind."""


def read_torch_deep_retina(path: Path, positions: PositionsFrom) -> RetinaCheckpoint:
    """Read a ``.pt`` file; see `condec.retina.models.checkpoint.load_checkpoint`."""
    record = _read(path)
    hyps = _hyps(path, record)
    state, listed = record.get("model_state_dict"), _plain(record.get("cells"))
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _wrong(path, "model_state_dict", "tensors by name", state)
    if listed is not None and not isinstance(listed, list | tuple):
        raise _wrong(path, "cells", "a list", listed)
    model_type = record.get("model_type", hyps.get("model_type"))
    if model_type not in _TYPES:
        raise _wrong(path, "model_type", f"one of {', '.join(_TYPES)}", model_type)
    stated = {"n_units": len(listed)} if listed else {}
    if "img_shape" in record:
        stated["img_shape"] = _plain(record["img_shape"])
    layout = _layout(path, model_type, stated | hyps, positions)
    network = RetinaNetwork(layout).eval()
    names = _load_state(path, network, state)
    _prune(path, network, names, _plain(record.get("zero_dict")))
    cells = tuple(str(cell) for cell in listed or range(layout.n_cells))
    if len(cells) != layout.n_cells:
        raise ModelError(f"{path}: cells: expected {layout.n_cells} names; got {', '.join(cells)}")
    scaling = _scaling(path, _plain(record.get("norm_stats")))
    texts = {key: record.get(key) for key in ("dataset", "stim_type")}
    words = {key: None if text is None else str(text) for key, text in texts.items()}
    return RetinaCheckpoint(network=network, cells=cells, scaling=scaling, **words)


def _read(path: Path) -> dict[str, Any]:
    """Load the dict of the file; besides tensors and plain values, numpy's numbers may be in it."""
    from numpy._core import multiarray

    allowed: list[Any] = [np.ndarray, np.dtype]
    allowed += [type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "?")]
    for made in (multiarray.scalar, multiarray._reconstruct):
        allowed += [(made, f"{module}.{made.__name__}") for module in _NUMPY]
    try:
        with torch.serialization.safe_globals(allowed):
            record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own text goes on to say how to run the file's code all the same.
        objects = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds objects of {objects[1]}" if objects else type(error).__name__
        raise ModelError(
            f"{path}: not readable as tensors, numbers and texts ({reason}); expected what "
            "torch-deep-retina saves: a dict of these, no whole objects"
        ) from error
    if not isinstance(record, dict):
        raise ModelError(
            f"{path}: expected a dict with model_state_dict, hyps and model_type; got "
            f"{type(record).__name__}"
        )
    return record


def _hyps(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Find the constructor's arguments: ``hyps``, older ``model_hyps``, or in a file nearby."""
    for key in ("hyps", "model_hyps"):
        if record.get(key) is not None:
            return _mapping(path, key, _plain(record[key]))
    nearby = path.parent / "hyperparams.json"
    if not nearby.is_file():
        raise ModelError(
            f"{path}: neither hyps nor model_hyps is in it, and there is no {nearby}; it has "
            f"{', '.join(map(str, record))}"
        )
    try:
        return _mapping(nearby, "hyps", json.loads(nearby.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{nearby}: not readable as JSON ({error})") from error


def _scaling(path: Path, stats: Any) -> tuple[float, float] | None:
    """Take mean and standard deviation of the training movie, given by name or as a pair."""
    if stats is None:
        return None
    pair = [stats.get("mean"), stats.get("std")] if isinstance(stats, dict) else stats
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_number, pair)):
        raise _wrong(path, "norm_stats", "the numbers mean and std", stats)
    return float(pair[0]), float(pair[1])


# --- the layout ---------------------------------------------------------------------------


def _layout(
    path: Path, model_type: str, hyps: Mapping[str, Any], positions: PositionsFrom
) -> RetinaLayout:
    """Work out what the library's constructor builds; its defaults where hyps say nothing."""

    def take(key: str) -> Any:
        default, expected, fits = _HYPS[key]
        value = hyps.get(key, default)
        if not fits(value):
            raise _wrong(path, f"hyps[{key!r}]", expected, value)
        return tuple(value) if isinstance(value, list) else value

    for key, kind in _NOT_READ.items():
        value = hyps.get(key)
        if any(value) if isinstance(value, list | tuple) else value:
            raise ModelError(f"{path}: hyps[{key!r}]: {kind} cannot be read; leave it out")
    take("activ_fxn")
    channels, kernels = take("chans"), take("ksizes")
    if model_type in ("VaryModel", "RetinotopicModel"):
        channels = channels[: take("n_layers") - 1]
    retinotopic = model_type == "RetinotopicModel"
    grabs = not retinotopic and bool(take("convgc"))
    readout: Any = "one-hot" if retinotopic else "grabbed" if grabs else "linear"
    last = kernels[-1:] if retinotopic else kernels[len(channels) : len(channels) + 1]
    always = model_type == "LinearStackedBNCNN"
    stacked = always or (model_type != "BNCNN" and bool(take("stackconvs")))
    fields: dict[str, Any] = {
        "n_cells": take("n_units"),
        "image_shape": take("img_shape"),
        "channels": channels,
        "kernels": kernels[: len(channels)] + (() if readout == "linear" else last),
        "stack": _each(path, hyps, "stack_ksizes", (3,) * len(channels)) if stacked else None,
        "stack_channels": _each(path, hyps, "stack_chans", channels) if stacked else None,
        "dropout": float(take("drop_p")) if stacked else 0.0,
        "bias": bool(take("bias")),
        "last_bias": bool(take("bias" if retinotopic else "gc_bias")),
        "norm": {1: "unit", 2: "channel"}[take("bnorm_d")],
        "absolute": model_type != "BNCNN",
        "momentum": float(take("bn_moment")),
        "noise": float(take("noise")),
        "readout": readout,
        "rate": "softplus" if retinotopic or take("softplus") else "exp",
        "exponential": bool(take("inference_exp")),
    }
    try:
        if grabs:
            centres = tuple((row, column) for row, column in take("centers"))
            fields["positions"] = _positions(path, fields, centres, positions)
        return RetinaLayout(**fields)
    except OptionError as error:
        raise ModelError(f"{path}: hyps do not fit each other: {error}") from error


def _each(path: Path, hyps: Mapping[str, Any], key: str, usual: tuple[int, ...]) -> Any:
    """Take one number for each hidden convolution: a list, one for all, or None in its place."""
    value = hyps.get(key, usual)
    listed = value if isinstance(value, list | tuple) else [value] * len(usual)
    if len(listed) < len(usual) or not all(one is None or _whole(one) for one in listed):
        raise _wrong(path, f"hyps[{key!r}]", f"a whole number or {len(usual)} of them", value)
    pairs = zip(listed, usual, strict=False)
    return tuple(default if one is None else one for one, default in pairs)


def _positions(
    path: Path, fields: Mapping[str, Any], centres: Positions, positions: PositionsFrom
) -> Positions:
    """Place the cells in the last map, with a warning where they are not at their centres.

    The library takes min(max(0, centre - h), H - 2 (h - 1)), with h = (K0 - 1) + (K1 - 1) +
    (K2 // 2 - 1) + 1; where H < 2 (h - 1) that is one negative number for all centres, which
    counts from the end.
    """
    kernels, (_, height, width) = fields["kernels"], fields["image_shape"]
    if len(kernels) != 3:
        raise ModelError(
            f"{path}: hyps['convgc']: units are grabbed after 3 convolutions; got {len(kernels)}"
        )
    half = kernels[0] + kernels[1] + kernels[2] // 2 - 2
    ends = [side - 2 * (half - 1) for side in (height, width)]
    rule = tuple(
        (min(max(0, y - half), ends[0]), min(max(0, x - half), ends[1])) for y, x in centres
    )
    probe = RetinaLayout(**{**fields, "positions": rule})
    sides = probe.maps[-1]
    stored = tuple((row % sides[0], column % sides[1]) for row, column in rule)
    true = probe.positions_of(centres)
    if positions == "centres":
        return true
    if stored != true:
        alike = len(set(stored)) == 1
        places = f"all {len(stored)} cells at place {stored[0]}" if alike else f"cells at {stored}"
        why = "" if min(ends) >= 0 else f"; {min(ends)} is below 0 and counts from the end"
        warnings.warn(
            f"{path.name}: reads {places} of maps of {sides[0]} x {sides[1]}, not at their centres "
            f"{centres}: the library's rule is min(max(0, centre - {half}), {height} - "
            f"{2 * (half - 1)}){why}. This is how the network was trained, and is kept; compare "
            "its rates with the recorded ones. positions='centres' reads at the cells' own "
            f"centres instead, {true}",
            stacklevel=4,
        )
    return stored


# --- the tensors --------------------------------------------------------------------------


def _load_state(path: Path, network: RetinaNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Fill a network; return the names of its modules by those of the file."""
    theirs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if leaf != "num_batches_tracked":
            theirs.setdefault(module, {})[leaf] = tensor
    modules = dict(network.named_modules())
    ours = [n for n, m in modules.items() if any("." not in key for key in m.state_dict())]
    names = dict(zip(theirs, ours, strict=False))
    for name, own in names.items():
        _fill(f"{path}: model_state_dict: {name}", own, modules[own], theirs[name])
    if len(theirs) != len(ours):
        rest = list(theirs)[len(ours) :] or ours[len(theirs) :]
        side = "lacks" if len(theirs) < len(ours) else "has beyond them"
        raise ModelError(
            f"{path}: model_state_dict: expected tensors of {len(ours)} modules for these hyps; "
            f"it {side} {', '.join(rest)}"
        )
    return names


def _fill(where: str, own: str, module: nn.Module, found: Mapping[str, Tensor]) -> None:
    state = {k: v for k, v in module.state_dict().items() if k != "num_batches_tracked"}
    leaves = _LEAVES.get(type(module), {leaf: leaf for leaf in state})
    if set(found) != set(leaves):
        raise ModelError(
            f"{where}: expected {', '.join(leaves)} of a {type(module).__name__} ({own}) in this "
            f"place for these hyps; got {', '.join(found)}"
        )
    for leaf, tensor in found.items():
        into = state[leaves[leaf]]
        dense = isinstance(module, nn.Conv2d) and tensor.ndim == 2  # a linear layer there
        shape = (len(into), into[0].numel()) if dense else tuple(into.shape)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ModelError(
                f"{where}.{leaf}: expected floats of shape {shape} for {own}; got {tensor.dtype} "
                f"of shape {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{where}.{leaf}: not finite")
        into.copy_(tensor.view_as(into))


def _prune(path: Path, network: RetinaNetwork, names: Mapping[str, str], pruned: Any) -> None:
    """Set pruned channels to zero, weights and bias: ``sequential.N`` to the channels."""
    for layer, channels in _mapping(path, "zero_dict", pruned or {}).items():
        inside = [own for name, own in names.items() if f"{name}.".startswith(f"{layer}.")]
        # Of a stacked convolution, the last one makes the channels.
        module = network.get_submodule(inside[-1]) if inside else None
        if not isinstance(module, nn.Conv2d):
            raise ModelError(
                f"{path}: zero_dict: {layer!r} is no convolution; tensors are of {', '.join(names)}"
            )
        listed = sorted(channels) if isinstance(channels, set | list | tuple) else [channels]
        if not all(_whole(c) and 0 <= c < module.out_channels for c in listed):
            expected = f"channels below {module.out_channels}"
            raise _wrong(path, f"zero_dict[{layer!r}]", expected, listed)
        with torch.no_grad():
            for tensor in module.parameters():
                tensor[listed] = 0.0


# --- values -------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Replace numpy's and torch's numbers and arrays, at any depth, by Python's."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_plain(part) for part in value)
    return value


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, where, "a mapping", value)
    return {str(key): part for key, part in value.items()}


def _wrong(path: Path, where: str, expected: str, got: Any) -> ModelError:
    shown = "nothing" if got is None else f"{str(got)[:80]!r} ({type(got).__name__})"
    return ModelError(f"{path}: {where}: expected {expected}; got {shown}")
