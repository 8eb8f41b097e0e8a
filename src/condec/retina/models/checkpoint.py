"""Trained networks of the retina as files: those of torch-deep-retina, and our own."""

import json
from pathlib import Path
from typing import Any, Final

from condec.basis.errors import ModelError, OptionError
from condec.basis.files import reading, user_path, write_file, writing
from condec.basis.npz import tuples
from condec.models import LoadedModel, refuse_weights
from condec.retina.models.network import RetinaCheckpoint, RetinaLayout, fill, network_for
from condec.retina.models.torch_deep_retina import read_torch_deep_retina

_KEY: Final = "condec_retina"
_KNOWN: Final = ("cells", "scaling", "dataset", "stim_type")


def load_checkpoint(path: str | Path) -> RetinaCheckpoint:
    """Load a trained network of the retina.

    Parameters
    ----------
    path : path
        ``.pt``: saved by torch-deep-retina (Maheswaranathan et al. 2023), of the classes
        RetinotopicModel, LinearStackedBNCNN, VaryModel or BNCNN. Read with ``weights_only``, so
        no code from it runs. Cells that are one place of their map are read out where the library
        puts them; a warning says so where kernels are too large for the frame, and its rule gives
        all cells the same place. ``.safetensors``: written by `save_checkpoint`.

    Raises
    ------
    OptionError
        There is no such file.
    ModelError
        The file holds anything else than expected.
    """
    path = user_path(path)
    if not path.is_file():
        raise OptionError(f"checkpoint: there is no file {path}")
    return _read_own(path) if path.suffix == ".safetensors" else read_torch_deep_retina(path)


def save_checkpoint(path: str | Path, checkpoint: RetinaCheckpoint) -> None:
    """Write a network and what is known about it as ``.safetensors``, for `load_checkpoint`."""
    from safetensors.torch import save

    path = user_path(path)
    if path.suffix != ".safetensors":
        raise OptionError(f"{path}: a checkpoint is written as .safetensors; give such a name")
    layout = checkpoint.layout.to_dict()
    del layout["name"]
    known = {"layout": layout} | {name: getattr(checkpoint, name) for name in _KNOWN}
    state = checkpoint.network.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with writing(f"{path}: checkpoint"):
        write_file(path, save(tensors, {_KEY: json.dumps(known)}))


def load_retina_model(
    rest: str, weights: str | Path | None = None, *, folder: str | Path = "."
) -> LoadedModel:
    """Load ``retina:FILE`` for `condec.models.load_model`; it brings its weights."""
    refuse_weights(f"retina:{rest}", weights)
    found = load_checkpoint(user_path(rest, folder))
    known: Any = {"label_names": found.cells, "scaling": found.scaling}
    return LoadedModel(found.network, f"retina:{rest}", found.layout.image_shape, **known)


def _read_own(path: Path) -> RetinaCheckpoint:
    from safetensors import safe_open

    expected = "Expected what save_checkpoint writes, or a .pt of torch-deep-retina."
    with reading(path, "a network of the retina", expected, ModelError):
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {})[_KEY])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = {name: tuples(value) for name, value in known.items()}
        sizes = {name: tuples(value) for name, value in facts.pop("layout").items()}
        try:
            layout = RetinaLayout(**sizes)
        except OptionError as error:
            raise ModelError(str(error)) from error
        found = RetinaCheckpoint(network=network_for(layout, state), **facts)
    fill(f"{path}: its tensors", found.network, state)
    return found
