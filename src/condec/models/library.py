"""Shared by the libraries of models: optional imports, weights, preprocessing."""

import importlib
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from condec.basis.checks import nearest
from condec.basis.errors import DependencyError, ModelError, OptionError
from condec.basis.files import reading, user_path

Made = TypeVar("Made")
CONVERT: Final = (
    "Expected .safetensors, or a .pt/.pth of tensors only: where the file was made, save "
    "safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')."
)


def import_optional(name: str, *, extra: str = "vision") -> ModuleType:
    """Import an optional package, or raise DependencyError, naming the `extra` that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise DependencyError(
            f'{name} is needed for this model and is not installed: pip install "condec[{extra}]"'
        ) from error


def check_name(library: str, name: str, wanted: str, known: list[str]) -> None:
    """Raise OptionError, with the nearest names, where a library has no such model."""
    if wanted not in known:
        near = ", ".join(nearest(name, known, 5))
        raise OptionError(f"{library} has no classifier {name!r}; nearest of {len(known)}: {near}")


def classifier(
    name: str, weights: str | Path | None, folder: Path, make: Callable[[bool], nn.Module]
) -> nn.Module:
    """Make a library's model; `make` takes whether to fetch the library's trained weights."""
    if weights != "default":
        model = seeded(lambda: make(False))
        if weights is not None:
            load_weights(model, located(weights, folder))
        return model
    try:
        return make(True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{name}: its default weights could not be fetched ({type(error).__name__}: {error}); "
            "give a file instead: weights = 'FILE.safetensors'"
        ) from error


def located(weights: str | Path, folder: Path) -> Path:
    """Return weights as a path that exists."""
    path = user_path(weights, folder)
    if not path.is_file():
        raise OptionError(
            f"weights {str(weights)!r}: there is no file {path}; expected a .safetensors, .pt or "
            ".pth file, or 'default'"
        )
    return path


def seeded(make: Callable[[], Made]) -> Made:
    """Call `make` under seed 0, so that the same text gives the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` or a tensors-only ``.pt`` file into a model that it fits."""
    state = without_prefix(read_state(path), model.state_dict().keys(), path.name)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = f"do not fit {type(model).__name__}: {' '.join(str(error).split())}"
        raise ModelError(f"weights {path.name} {reason}") from error
    # Files made for inference leave these counters out; evaluation does not read them.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ModelError(
            f"weights {path.name} do not fit {type(model).__name__}: {len(missing)} entries "
            f"missing ({', '.join(missing[:3])}), {len(unexpected)} unexpected "
            f"({', '.join(unexpected[:3])})"
        )


def without_prefix(
    state: Mapping[str, Tensor], known: Collection[str], file: str
) -> Mapping[str, Tensor]:
    """Take off what a wrapper put before every name, such as ``module.`` or ``_orig_mod.``.

    That is done where every name without it is one that the model knows, and a UserWarning says
    so; otherwise the weights are returned as they are.
    """
    if all(name in known for name in state):
        return state
    first = next(iter(state))
    for end in (place for place, letter in enumerate(first, 1) if letter == "."):
        prefix = first[:end]
        if all(n.startswith(prefix) and n.removeprefix(prefix) in known for n in state):
            warnings.warn(
                f"weights {file}: all {len(state)} names begin with {prefix!r}, as what wraps a "
                "model leaves them; read without it",
                UserWarning,
                stacklevel=2,
            )
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read tensors by name, from a ``.safetensors`` or a tensors-only ``.pt`` file.

    A file that cannot be read without running code from it is refused, by ModelError.
    """
    from safetensors.torch import load_file

    with reading(path, "weights, tensors alone by their names", CONVERT, ModelError):
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = load_plain(path)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"weights {path}: expected tensors by name; got {type(state).__name__}")
    return state


def load_plain(path: Path) -> Any:
    """Load a ``.pt`` and run no code from it; ValueError where its own checksums do not fit."""
    if zipfile.is_zipfile(path):  # torch does not look at them
        with zipfile.ZipFile(path) as parts:
            if damaged := parts.testzip():
                raise ValueError(f"the checksum of {damaged} does not fit")
    return torch.load(path, map_location="cpu", weights_only=True)


def per_picture(transform: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
    """Apply a library's transform for PIL images to uint8 images [sample, y, x, channel]."""

    # The libraries resize PIL images and tensors differently; their accuracies are of the former.
    def preprocess(images: Tensor) -> Tensor:
        from PIL import Image

        pictures = (Image.fromarray(i.squeeze(-1).numpy()).convert("RGB") for i in images)
        return torch.stack([transform(picture) for picture in pictures])

    return preprocess
