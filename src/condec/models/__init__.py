"""Ready models: the embedded default, those of three libraries, and functions in your own files.

Only `load_model` is needed; torchvision, timm and transformers are imported when one of theirs is
asked for.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from condec.basis import registry
from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.models.attention import expose_attention
from condec.models.language import LanguageModel

__all__ = [
    "FAMILIES",
    "LanguageModel",
    "LoadedModel",
    "expose_attention",
    "load_model",
    "refuse_weights",
]

FAMILIES: Final = (
    "digits", "torchvision:NAME", "timm:NAME", "huggingface:NAME", "python:FILE.py:FUNCTION",
)  # fmt: skip
"""Families of models here; others come from `condec.basis.registry`: ``condec.models``."""


@short_repr
@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode and what is known about its inputs and outputs.

    Attributes
    ----------
    model : torch.nn.Module
    name : str
        The text it was asked for by.
    input_shape : tuple of int, or None
        Shape of one preprocessed sample, without the sample axis; None if not known.
    preprocess : callable, or None
        From uint8 images [sample, y, x, channel] to what the model takes, float
        [sample, channel, y, x]; None means division by 255.
    label_names : tuple of str, or None
        Name of every output.
    scaling : (float, float), or None
        Mean and standard deviation of the movies that it was trained on.
    """

    model: nn.Module
    name: str
    input_shape: tuple[int, ...] | None = None
    preprocess: Callable[[Tensor], Tensor] | None = None
    label_names: tuple[str, ...] | None = None
    scaling: tuple[float, float] | None = None


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

    Returns
    -------
    LoadedModel
        The model is in evaluation mode, on the CPU.

    Raises
    ------
    OptionError
        No such family, model, or file.
    ModelError
        Weights that do not fit, or a user's file or function that fails.
    DependencyError
        torchvision, timm or transformers is needed and not installed.

    Examples
    --------
    >>> load_model("torchvison:resnet50")
    Traceback (most recent call last):
    condec.basis.errors.OptionError: model 'torchvison:resnet50': 'torchvison' is not a family ...
    """
    family, _, rest = spec.partition(":")
    folder = Path(folder)
    match family:
        case "digits" if not rest:
            from condec.models.digits import load_digits_model

            refuse_weights(spec, weights)
            return load_digits_model()
        case "torchvision" if rest:
            from condec.models.torchvision import load_torchvision_model

            return load_torchvision_model(rest, _located(weights, folder))
        case "timm" if rest:
            from condec.models.timm import load_timm_model

            return load_timm_model(rest, _located(weights, folder))
        case "huggingface" if rest:
            from condec.models.huggingface import load_huggingface_model

            given = weights if weights == "random" else _located(weights, folder)
            return load_huggingface_model(rest, given, folder=folder)
        case "python" if rest:
            from condec.models.python import load_python_model

            return load_python_model(rest, _located(weights, folder), folder=folder)
    if (load := registry.find("condec.models", family)) is not None:
        brought: LoadedModel = load(rest, weights, folder=folder)
        return brought
    known = (*FAMILIES, *registry.names("condec.models"))
    near = difflib.get_close_matches(family, [text.split(":")[0] for text in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near and near[0] != family else ""
    raise OptionError(
        f"model {spec!r}: {family!r} is not a family of models, or lacks what follows it; "
        f"expected one of {', '.join(known)}.{hint}"
    )


def refuse_weights(spec: str, weights: str | Path | None) -> None:
    """Raise OptionError where weights are given for a model that brings its own."""
    if weights is not None:
        raise OptionError(f"model {spec!r} brings its own weights; got {str(weights)!r}")


def _located(weights: str | Path | None, folder: Path) -> str | Path | None:
    """Weights as a path that exists; None and "default" as they are."""
    if weights is None or weights == "default":
        return weights
    path = folder / weights
    if not path.is_file():
        raise OptionError(
            f"weights {str(weights)!r}: there is no file {path}; expected a .safetensors, .pt or "
            "'.pth' file, or 'default'"
        )
    return path
