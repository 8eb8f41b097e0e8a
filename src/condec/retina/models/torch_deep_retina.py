"""Checkpoints of torch-deep-retina, the library of Maheswaranathan et al. 2023, by their layout.

Read without running code from the file. Facts about the layout are in the functions below that
use them; names of tensors may be of any version: modules are matched in order, the tensors of
each by their last name.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError
from condec.retina.models.network import (
    AbsBatchNorm,
    GaussianNoise,
    RetinaCheckpoint,
    RetinaNetwork,
)
from condec.retina.models.torch_deep_retina_hyps import (
    Hyps,
    PositionsFrom,
    is_number,
    is_whole,
    layout_of,
    mapping,
    plain,
    shown,
)

_TYPES: Final = ("BNCNN", "LinearStackedBNCNN", "VaryModel", "RetinotopicModel")
_NUMPY: Final = ("numpy.core.multiarray", "numpy._core.multiarray")
_LEAVES: Final[dict[type[nn.Module], dict[str, str]]] = {
    AbsBatchNorm: {
        "scale": "weight", "shift": "bias", "running_mean": "running_mean",
        "running_var": "running_var",
    },
    GaussianNoise: {"sigma": "std"},
}  # fmt: skip
"""Last names of tensors there, and what they are called here; otherwise they are the same."""


def read_torch_deep_retina(path: Path, positions: PositionsFrom) -> RetinaCheckpoint:
    """Read a ``.pt`` file; see `condec.retina.models.checkpoint.load_checkpoint`."""
    record = _read(path)
    hyps = _hyps(path, record)
    state = record.get("model_state_dict")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: model_state_dict: expected tensors by name; got {shown(state)}")
    cells = _cells(path, record.get("cells"))
    model_type = _model_type(path, record, hyps)
    layout = layout_of(path, model_type, hyps, record, len(cells), positions)
    network = RetinaNetwork(layout).eval()
    names = _load_state(path, network, state)
    _prune(path, network, names, plain(record.get("zero_dict")))
    cells = cells or tuple(str(number) for number in range(layout.n_cells))
    if len(cells) != layout.n_cells:
        raise ModelError(f"{path}: cells: expected {layout.n_cells} names; got {', '.join(cells)}")
    texts = {key: record.get(key) for key in ("dataset", "stim_type")}
    return RetinaCheckpoint(
        network=network,
        cells=cells,
        scaling=_scaling(path, plain(record.get("norm_stats"))),
        **{key: None if text is None else str(text) for key, text in texts.items()},
    )


# --- the file -----------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """The dict of the file; besides tensors and plain values, numpy's numbers may be in it."""
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


def _hyps(path: Path, record: Mapping[str, Any]) -> Hyps:
    """Arguments of the constructor: ``hyps``, the older ``model_hyps``, or a file beside."""
    for key in ("hyps", "model_hyps"):
        if record.get(key) is not None:
            return mapping(f"{path}: {key}", plain(record[key]))
    beside = path.parent / "hyperparams.json"
    if not beside.is_file():
        raise ModelError(
            f"{path}: neither hyps nor model_hyps is in it, and there is no {beside}; it has "
            f"{', '.join(map(str, record))}"
        )
    try:
        return mapping(str(beside), json.loads(beside.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{beside}: not readable as JSON ({error})") from error


def _model_type(path: Path, record: Mapping[str, Any], hyps: Hyps) -> str:
    found = record.get("model_type", hyps.get("model_type"))
    if found not in _TYPES:
        raise ModelError(
            f"{path}: model_type: expected one of {', '.join(_TYPES)}; got {shown(found)}"
        )
    return str(found)


def _cells(path: Path, cells: Any) -> tuple[str, ...]:
    cells = plain(cells)
    if cells is not None and not isinstance(cells, list | tuple):
        raise ModelError(f"{path}: cells: expected a list; got {shown(cells)}")
    return tuple(str(cell) for cell in cells or ())


def _scaling(path: Path, stats: Any) -> tuple[float, float] | None:
    """Mean and standard deviation of the training movie: by name, or as a pair."""
    if stats is None:
        return None
    pair = [stats.get("mean"), stats.get("std")] if isinstance(stats, dict) else stats
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(is_number, pair)):
        raise ModelError(
            f"{path}: norm_stats: expected the numbers mean and std; got {shown(stats)}"
        )
    return float(pair[0]), float(pair[1])


# --- the tensors --------------------------------------------------------------------------


def _load_state(path: Path, network: RetinaNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Fill a network; returns the names of its modules by those of the file."""
    theirs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        theirs.setdefault(module, {})[leaf] = tensor
    ours = {
        name: module
        for name, module in network.named_modules()
        if any(not key.count(".") for key in module.state_dict())
    }
    names = dict(zip(theirs, ours, strict=False))
    for name, own in names.items():
        _fill(path, own, ours[own], name, theirs[name])
    if len(theirs) != len(ours):
        rest = list(theirs)[len(ours) :] or list(ours)[len(theirs) :]
        side = "lacks" if len(theirs) < len(ours) else "has beyond them"
        raise ModelError(
            f"{path}: model_state_dict: expected tensors of {len(ours)} modules for these hyps; "
            f"it {side} {', '.join(rest)}"
        )
    return names


def _fill(
    path: Path, own: str, module: nn.Module, name: str, tensors: Mapping[str, Tensor]
) -> None:
    kind = type(module)
    own_state = {k: v for k, v in module.state_dict().items() if k != "num_batches_tracked"}
    leaves = _LEAVES.get(kind, {leaf: leaf for leaf in own_state})
    found = {leaf: t for leaf, t in tensors.items() if leaf != "num_batches_tracked"}
    if set(found) != set(leaves):
        raise ModelError(
            f"{path}: model_state_dict: {name}: expected {', '.join(leaves)} of a {kind.__name__} "
            f"({own}) in this place for these hyps; got {', '.join(found)}"
        )
    for leaf, tensor in found.items():
        into = own_state[leaves[leaf]]
        dense = isinstance(module, nn.Conv2d) and tensor.ndim == 2  # a linear layer there
        shape = (len(into), into[0].numel()) if dense else tuple(into.shape)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ModelError(
                f"{path}: model_state_dict: {name}.{leaf}: expected floats of shape {shape} for "
                f"{own}; got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: model_state_dict: {name}.{leaf}: not finite")
        into.copy_(tensor.view_as(into))


def _prune(path: Path, network: RetinaNetwork, names: Mapping[str, str], pruned: Any) -> None:
    """Set pruned channels to zero, weights and bias: ``sequential.N`` to the channels."""
    for layer, channels in mapping(f"{path}: zero_dict", pruned or {}).items():
        inside = [own for name, own in names.items() if f"{name}.".startswith(f"{layer}.")]
        # Of a stacked convolution, the last one makes the channels.
        module = network.get_submodule(inside[-1]) if inside else None
        if not isinstance(module, nn.Conv2d):
            raise ModelError(
                f"{path}: zero_dict: {layer!r} is no convolution; tensors are of {', '.join(names)}"
            )
        listed = sorted(channels) if isinstance(channels, set | list | tuple) else [channels]
        if not all(is_whole(c) and 0 <= c < module.out_channels for c in listed):
            raise ModelError(
                f"{path}: zero_dict[{layer!r}]: expected channels below {module.out_channels}; "
                f"got {listed}"
            )
        with torch.no_grad():
            for tensor in module.parameters():
                tensor[listed] = 0.0
