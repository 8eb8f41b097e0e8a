"""Trained networks of the retina as files: those of torch-deep-retina, and our own."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from condec.basis.checks import one_of
from condec.basis.errors import ModelError, OptionError
from condec.basis.files import write_file, writing
from condec.basis.npz import tuples
from condec.models import LoadedModel, refuse_weights
from condec.retina.models.layout import RetinaLayout
from condec.retina.models.network import RetinaCheckpoint, RetinaNetwork
from condec.retina.models.torch_deep_retina import PositionsFrom, read_torch_deep_retina

_KEY: Final = "condec_retina"
_KNOWN: Final = ("cells", "scaling", "dataset", "stim_type")


def load_checkpoint(
    path: str | Path, *, positions: PositionsFrom = "checkpoint"
) -> RetinaCheckpoint:
    """Load a trained network of the retina.

    Parameters
    ----------
    path : path
        ``.pt``: saved by torch-deep-retina (Maheswaranathan et al. 2023), of the classes
        RetinotopicModel, LinearStackedBNCNN, VaryModel or BNCNN. Read with ``weights_only``, so
        no code from it runs. ``.safetensors``: written by `save_checkpoint`.
    positions : {"checkpoint", "centres"}
        Where cells that are one place of their map are read out: where the library puts them,
        as it was trained, or where their own centres are. The library's rule gives all cells
        the same place where kernels are large for the frame; a warning says so.

    Raises
    ------
    OptionError
        There is no such file.
    ModelError
        The file holds anything else than expected.
    """
    path = Path(path)
    one_of("load_checkpoint", "positions", positions, PositionsFrom)
    if not path.is_file():
        raise OptionError(f"checkpoint: there is no file {path}")
    own = path.suffix == ".safetensors"
    return _read_own(path) if own else read_torch_deep_retina(path, positions)


def save_checkpoint(path: str | Path, checkpoint: RetinaCheckpoint) -> None:
    """Write a network and what is known about it as ``.safetensors``, for `load_checkpoint`."""
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(f"{path}: a checkpoint is written as .safetensors; give such a name")
    layout = checkpoint.layout.to_dict()
    del layout["name"]
    known = {"layout": layout} | {name: getattr(checkpoint, name) for name in _KNOWN}
    state = checkpoint.network.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with writing(f"{path}: checkpoint"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save(tensors, {_KEY: json.dumps(known)}))


def load_retina_model(
    rest: str, weights: str | Path | None = None, *, folder: str | Path = "."
) -> LoadedModel:
    """Load ``retina:FILE`` or ``retina:FILE?positions=centres`` for `condec.models.load_model`."""
    refuse_weights(f"retina:{rest}", weights)
    file, _, query = rest.partition("?")
    keys = dict(parse_qsl(query, keep_blank_values=True))
    positions: Any = keys.pop("positions", "checkpoint")
    if keys:
        raise OptionError(f"retina:{rest}: {', '.join(keys)}: no such key; expected positions")
    found = load_checkpoint(Path(folder) / file, positions=positions)
    known: Any = {"label_names": found.cells, "scaling": found.scaling}
    return LoadedModel(found.network, f"retina:{rest}", found.layout.image_shape, **known)


def _read_own(path: Path) -> RetinaCheckpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {}).get(_KEY, "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as safetensors ({error})") from error
    if known is None:
        raise ModelError(
            f"{path}: no layout of a retina's network is in it; expected what save_checkpoint "
            "writes, or a .pt of torch-deep-retina"
        )
    layout = known.pop("layout")
    unknown = sorted(set(layout) - {field.name for field in fields(RetinaLayout)})
    if unknown:
        raise ModelError(f"{path}: its layout has {', '.join(unknown)}, unknown to this version")
    arguments: dict[str, Any] = {name: tuples(value) for name, value in layout.items()}
    network = RetinaNetwork(RetinaLayout(**arguments)).eval()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: its tensors do not fit its layout: {reason}") from error
    facts: dict[str, Any] = {name: tuples(value) for name, value in known.items()}
    return RetinaCheckpoint(network=network, **facts)
