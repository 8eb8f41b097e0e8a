"""Read checkpoints of torch-deep-retina, the library of Maheswaranathan et al. 2023.

No code from the file runs. Names of tensors may be of any version: modules are matched in order,
the tensors of each by their last name.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from torch import Tensor, nn

from condec.basis.errors import ModelError, OptionError
from condec.basis.files import reading
from condec.models.library import load_plain
from condec.retina.models.network import (
    Positions,
    RetinaCheckpoint,
    RetinaLayout,
    RetinaNetwork,
    fill,
    network_for,
)

_NUMPY: Final = ("numpy.core.multiarray", "numpy._core.multiarray")
_LEAVES: Final = {"scale": "weight", "shift": "bias", "sigma": "std"}
"""Last names of tensors there, and their names here; otherwise they are the same."""
_NOT_READ: Final = ("one2one", "recurrent", "kinetic", "collapsed", "paddings")
"""Arguments of the library's constructors that make networks of another kind."""

_PerLayer = int | tuple[int | None, ...] | None
_Pair = Annotated[
    tuple[float, float],
    BeforeValidator(lambda v: (v.get("mean"), v.get("std")) if isinstance(v, dict) else v),
]


class _Hyps(BaseModel):
    """Arguments of the library's constructors, with its defaults; others are passed over."""

    img_shape: tuple[int, int, int] = (40, 50, 50)
    chans: tuple[int, ...] = (8, 8)
    ksizes: tuple[int, ...] = (15, 11, 11)
    stack_ksizes: _PerLayer = 3
    stack_chans: _PerLayer = None
    n_layers: int = 3
    n_units: int = 5
    bnorm_d: Literal[1, 2] = 1
    drop_p: float = 0.0
    bn_moment: float = 0.01
    noise: float = 0.05
    activ_fxn: Literal["ReLU"] = "ReLU"
    centers: tuple[tuple[int, int], ...] | None = None
    bias: bool | None = True
    gc_bias: bool | None = False
    convgc: bool | None = False
    stackconvs: bool | None = True
    softplus: bool | None = True
    inference_exp: bool | None = False


class _Record(BaseModel):
    """What the library saves, as far as it is read."""

    model_config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)

    model_type: Literal["BNCNN", "LinearStackedBNCNN", "VaryModel", "RetinotopicModel"]
    hyps: _Hyps
    model_state_dict: dict[str, Tensor]
    cells: tuple[str, ...] | None = None
    norm_stats: _Pair | None = None
    zero_dict: dict[str, tuple[int, ...]] | None = None
    dataset: str | None = None
    stim_type: str | None = None


def read_torch_deep_retina(path: Path) -> RetinaCheckpoint:
    """Read a ``.pt`` file; see `condec.retina.models.checkpoint.load_checkpoint`."""
    saved = _read(path)
    listed, shape = saved.get("cells"), saved.get("img_shape")
    stated = {"n_units": len(listed) if isinstance(listed, list) else None, "img_shape": shape}
    # The arguments themselves go before facts at the top of the file.
    hyps = {key: fact for key, fact in stated.items() if fact} | _hyps(path, saved)
    for key in _NOT_READ:
        value = hyps.get(key)
        if any(value) if isinstance(value, list) else value:
            raise ModelError(f"{path}: hyps.{key}: networks of this kind cannot be read")
    try:
        record = _Record(**{"model_type": hyps.get("model_type")} | saved | {"hyps": hyps})
        layout = _layout(path, record.model_type, record.hyps)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(map(str, wrong["loc"]))
        shown = f"{str(wrong['input'])[:80]} ({type(wrong['input']).__name__})"
        raise ModelError(f"{path}: {where}: {wrong['msg']}; got {shown}") from error
    except OptionError as error:
        raise ModelError(f"{path}: hyps do not fit each other: {error}") from error
    cells = record.cells or tuple(str(cell) for cell in range(layout.n_cells))
    if len(cells) != layout.n_cells:
        raise ModelError(f"{path}: cells: expected {layout.n_cells} names; got {', '.join(cells)}")
    with reading(path, "a network of its hyps", "Give the whole checkpoint.", ModelError):
        network = network_for(layout, record.model_state_dict)
    names = _load_state(path, network, record.model_state_dict)
    _prune(path, network, names, record.zero_dict or {})
    return RetinaCheckpoint(
        network=network, cells=cells, scaling=record.norm_stats, dataset=record.dataset,
        stim_type=record.stim_type,
    )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    """Load the dict of the file; besides tensors and plain values, numpy's numbers may be in it."""
    from numpy._core import multiarray

    allowed: list[Any] = [np.ndarray, np.dtype]
    allowed += [type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "?")]
    for made in (multiarray.scalar, multiarray._reconstruct):
        allowed += [(made, f"{module}.{made.__name__}") for module in _NUMPY]
    expected = "Expected what torch-deep-retina saves: a dict of these, no whole objects."
    with (
        reading(path, "tensors, numbers and texts", expected, ModelError),
        torch.serialization.safe_globals(allowed),
    ):
        saved = load_plain(path)
    if not isinstance(saved, dict):
        raise ModelError(
            f"{path}: expected a dict with model_state_dict, hyps and model_type; got "
            f"{type(saved).__name__}"
        )
    return {str(k): v if k == "model_state_dict" else _plain(v) for k, v in saved.items()}


def _plain(value: Any) -> Any:
    """Replace numpy's and torch's numbers and arrays, at any depth, by Python's."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple | set) else value


def _hyps(path: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Find the constructor's arguments: ``hyps``, older ``model_hyps``, or in a file nearby."""
    known = (saved.get(key) for key in ("hyps", "model_hyps"))
    found = next((given for given in known if given is not None), None)
    nearby = path.parent / "hyperparams.json"
    if found is None:
        lacking = f"{path} has neither hyps nor model_hyps, but {', '.join(saved)}."
        with reading(nearby, "json with its hyps", lacking, ModelError):
            found = json.loads(nearby.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelError(f"{path}: hyps: expected a mapping; got {type(found).__name__}")
    return found


def _layout(path: Path, model_type: str, hyps: _Hyps) -> RetinaLayout:
    """Work out what the library's constructor builds."""
    channels, retinotopic = hyps.chans, model_type == "RetinotopicModel"
    if model_type in ("VaryModel", "RetinotopicModel"):
        channels = channels[: hyps.n_layers - 1]
    stacked = model_type != "BNCNN" and (hyps.stackconvs or model_type == "LinearStackedBNCNN")
    readout: Any = "one-hot" if retinotopic else "grabbed" if hyps.convgc else "linear"
    last: tuple[int, ...] = hyps.ksizes[len(channels) : len(channels) + 1]
    if readout != "grabbed":
        last = hyps.ksizes[-1:] if retinotopic else ()
    return RetinaLayout(
        n_cells=hyps.n_units,
        image_shape=hyps.img_shape,
        channels=channels,
        kernels=hyps.ksizes[: len(channels)] + last,
        stack=_each(hyps.stack_ksizes, (3,) * len(channels)) if stacked else None,
        stack_channels=_each(hyps.stack_chans, channels) if stacked else None,
        dropout=hyps.drop_p if stacked else 0.0,
        bias=bool(hyps.bias),
        last_bias=bool(hyps.bias if retinotopic else hyps.gc_bias),
        norm="unit" if hyps.bnorm_d == 1 else "channel",
        absolute=model_type != "BNCNN",
        momentum=hyps.bn_moment,
        noise=hyps.noise,
        readout=readout,
        positions=_positions(path, hyps) if readout == "grabbed" else (),
        rate="softplus" if retinotopic or hyps.softplus else "exp",
        exponential=bool(hyps.inference_exp),
    )


def _each(value: _PerLayer, usual: tuple[int, ...]) -> tuple[int, ...]:
    """Return one number for each hidden convolution: a list, one for all, or None in its place."""
    listed = value if isinstance(value, tuple) else (value,) * len(usual)
    pairs = zip(listed, usual, strict=False)
    return tuple(default if one is None else one for one, default in pairs)


def _positions(path: Path, hyps: _Hyps) -> Positions:
    """Place the cells in the last map, with a warning where the library's rule gives one place.

    It takes min(max(0, centre - h), H - 2 (h - 1)), with h = (K0 - 1) + (K1 - 1) + (K2 // 2 - 1)
    + 1; where H < 2 (h - 1) that is one negative number for all centres, which counts from the end.
    """
    if hyps.centers is None or len(hyps.ksizes) < 3 or len(hyps.chans) != 2:
        raise OptionError("units are grabbed (convgc) after 3 convolutions, at centers")
    half = hyps.ksizes[0] + hyps.ksizes[1] + hyps.ksizes[2] // 2 - 2
    ends = [side - 2 * (half - 1) for side in hyps.img_shape[1:]]
    places = tuple(
        (min(max(0, row - half), ends[0]), min(max(0, column - half), ends[1]))
        for row, column in hyps.centers
    )
    if len(set(places)) < len(set(hyps.centers)) and min(ends) < 0:
        warnings.warn(
            f"{path.name}: reads cells at {places} of their maps, though their centres are "
            f"{hyps.centers}: the library's rule is min(max(0, centre - {half}), side - "
            f"{2 * (half - 1)}), and {min(ends)} counts from the end. This is how the network was "
            "trained, and is kept; compare its rates with the recorded ones",
            stacklevel=5,
        )
    return places


def _load_state(path: Path, network: RetinaNetwork, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Fill a network; return the names of its modules by those of the file."""
    theirs = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    modules = network.named_modules()
    ours = [name for name, m in modules if any("." not in key for key in m.state_dict())]
    if len(theirs) != len(ours):
        raise ModelError(
            f"{path}: model_state_dict: expected tensors of {len(ours)} modules for these hyps; "
            f"got {len(theirs)}: {', '.join(theirs)}"
        )
    names, known, found = dict(zip(theirs, ours, strict=True)), network.state_dict(), {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        own = f"{names[module]}.{_LEAVES.get(leaf, leaf)}"
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: model_state_dict: {key}: not finite")
        # A linear readout there is a convolution over the whole map here.
        dense = own in known and tensor.ndim == 2 and known[own].ndim == 4
        whole = dense and tensor.shape[1] == known[own][0].numel()
        found[own] = tensor.view_as(known[own]) if whole else tensor
    pairs = ", ".join(f"{there} is {here}" for there, here in names.items())
    fill(f"{path}: model_state_dict ({pairs})", network, found)
    return names


def _prune(
    path: Path, network: RetinaNetwork, names: Mapping[str, str],
    pruned: Mapping[str, tuple[int, ...]],
) -> None:  # fmt: skip
    """Set pruned channels to zero, weights and bias: ``sequential.N`` to the channels."""
    for layer, channels in pruned.items():
        inside = [own for name, own in names.items() if f"{name}.".startswith(f"{layer}.")]
        # Of a stacked convolution, the last one makes the channels.
        module = network.get_submodule(inside[-1]) if inside else None
        if not isinstance(module, nn.Conv2d) or not set(channels) <= set(range(len(module.weight))):
            raise ModelError(
                f"{path}: zero_dict: {layer!r} is no convolution with channels {channels}; tensors "
                f"are of {', '.join(names)}"
            )
        with torch.no_grad():
            for tensor in module.parameters():
                tensor[list(channels)] = 0.0
