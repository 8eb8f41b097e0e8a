"""Ready models: the embedded default, those of three libraries, and functions in your own files.

A family of models is a line in `FAMILIES` and a function there named, ``load(rest, weights, *,
folder)`` to `LoadedModel`; other packages bring theirs by `condec.basis.registry`, in the group
``condec.models``. Libraries are imported when one of their models is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Final, Literal

from torch import Tensor, nn

from condec.basis import registry
from condec.basis.errors import OptionError
from condec.basis.files import user_path
from condec.basis.records import short_repr
from condec.models.attention import expose_attention
from condec.models.language import LanguageModel

__all__ = [
    "FAMILIES", "LanguageModel", "LoadedModel", "expose_attention", "load_model", "refuse_weights",
]  # fmt: skip

FAMILIES: Final = {
    "digits": "condec.models.digits:load_digits_model",
    "torchvision:NAME": "condec.models.torchvision:load_torchvision_model",
    "timm:NAME": "condec.models.timm:load_timm_model",
    "huggingface:NAME": "condec.models.huggingface:load_huggingface_model",
    "python:FILE.py:FUNCTION": "condec.models.python:load_python_model",
}
"""Families of models here, as they are written, and what loads them."""


@short_repr
@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, on the CPU, and facts about its inputs and outputs.

    Attributes
    ----------
    model : torch.nn.Module
    name : str
        The text it was asked for by.
    input_shape : tuple of int, or None
        Shape of one preprocessed sample, without the sample axis, where it is known.
    preprocess : callable, or None
        As in `condec.Inputs`; None means division by 255.
    label_names : tuple of str, or None
        Name of every output.
    scaling : (float, float), or None
        Mean and standard deviation of the movies that it was trained on.
    orientation : {"stored", "exif"}
        What its library does with pictures that are stored turned; see `condec.load_data`.
    """

    model: nn.Module
    name: str
    input_shape: tuple[int, ...] | None = None
    preprocess: Callable[[Tensor], Tensor] | None = None
    label_names: tuple[str, ...] | None = None
    scaling: tuple[float, float] | None = None
    orientation: Literal["stored", "exif"] = "stored"


def load_model(
    spec: str, weights: str | Path | None = None, *, folder: str | Path = "."
) -> LoadedModel:
    """Load a model by its text form.

    Parameters
    ----------
    spec : str
        ``digits``: the embedded convolutional network on 8 x 8 handwritten digits.
        ``torchvision:NAME``, ``timm:NAME``: a classifier of that library.
        ``huggingface:NAME``: an image classifier, image encoder or causal language model, by
        its folder or its name on the hub.
        ``circuit``, ``circuit:SEED``, ``retina:FILE``: models of `condec.retina`. Other packages
        bring families of their own (`condec.basis.registry`).
        ``python:FILE.py:FUNCTION``: what your function returns; it is called with the path
        of the weights if there are any, else without arguments.
    weights : str or Path, optional
        Nothing: random weights (seed 0). ``"default"``: the library's own trained weights,
        downloaded by it. Else a ``.safetensors`` file, or a ``.pt``/``.pth`` file that holds
        tensors only. `digits`, `circuit` and `retina` bring their own and take none. Models of
        Hugging Face come with their weights; ``"random"`` leaves them out.
    folder : path
        What relative paths start from.

    Raises
    ------
    OptionError
        No such family, model, or file.
    ModelError
        Weights that do not fit, or a user's file or function that fails.
    DependencyError
        A library is needed and not installed, or a package that declares the family fails.
    """
    load = registry.opener("model", spec, FAMILIES, "condec.models")
    load = resolve_name(load) if isinstance(load, str) else load
    loaded: LoadedModel = load(spec.partition(":")[2], weights, folder=user_path(folder))
    return loaded


def refuse_weights(spec: str, weights: str | Path | None) -> None:
    """Raise OptionError where weights are given for a model that brings its own."""
    if weights is not None:
        raise OptionError(f"model {spec!r} brings its own weights; got {str(weights)!r}")
