r"""Dictionaries with a linear encoder in SAELens' layout: cfg.json, sae_weights.safetensors.

The files take rows in the data's own units: the preparation is folded into the weights,

.. math:: z = a(x W + b), \qquad \hat x = z D + o,

so that loadings are those of `Dictionary.encode`.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from condec.basis.errors import DataError, StoreError
from condec.basis.files import remove_partial, to_json, write_file, writing
from condec.dictionary.base import Dictionary, Learner
from condec.dictionary.learners.sparse import JumpReLUSAE, ReLUSAE
from condec.dictionary.learners.topk import BatchTopKSAE, MatryoshkaSAE, TopKSAE

_CONFIG: Final = "cfg.json"
_WEIGHTS: Final = "sae_weights.safetensors"
_LAYOUT: Final = "6.0.0"
"""Version of SAELens with this layout; without one, its loader drops the metadata."""
_READ: Final[dict[str, type[Learner]]] = {
    "standard": ReLUSAE, "topk": TopKSAE, "jumprelu": JumpReLUSAE,
}  # fmt: skip
"""Learners by SAELens' name of their activation."""
_WRITTEN: Final[dict[type, str]] = {kind: name for name, kind in _READ.items()} | {
    BatchTopKSAE: "jumprelu", MatryoshkaSAE: "jumprelu",
}  # fmt: skip
"""A threshold for all modes is one for every mode."""


def write_saelens(dictionary: Dictionary, folder: str | Path, *, hook_name: str = "") -> None:
    """Write a dictionary for SAELens (``SAE.load_from_disk``, version 6).

    `ReLUSAE` becomes "standard", `TopKSAE` "topk"; `JumpReLUSAE`, `BatchTopKSAE` and
    `MatryoshkaSAE` become "jumprelu". The folder gets cfg.json and sae_weights.safetensors;
    `hook_name`, the name of the place in the model, is a note for people. DataError where the
    learner has no linear encoder, StoreError where the folder cannot be written.
    """
    from safetensors.torch import save

    folder, learner = Path(folder), dictionary.learner
    architecture = _WRITTEN.get(type(learner))
    if architecture is None:
        raise DataError(
            f"export: {type(learner).__name__} cannot be written in SAELens' layout, which holds "
            f"one linear encoder; those that can: {', '.join(k.__name__ for k in _WRITTEN)}"
        )
    # The offset goes into the encoder's bias: the decoder's is not taken off the input.
    config: dict[str, Any] = {
        "architecture": architecture, "d_in": dictionary.n_units, "d_sae": dictionary.n_modes,
        "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _LAYOUT, "sae_lens_training_version": None,
            "hook_name": hook_name or None, "condec_learner": learner.to_dict(),
        },
    }  # fmt: skip
    if isinstance(learner, TopKSAE):
        config |= {"k": learner.k, "rescale_acts_by_decoder_norm": False}
    content = save(_folded(dictionary))
    with writing(f"{folder}: SAELens export"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((_WEIGHTS, content), (_CONFIG, to_json(config))):
            remove_partial(folder / name)
            write_file(folder / name, data)


def _folded(dictionary: Dictionary) -> dict[str, Tensor]:
    """Fold the preparation of a dictionary into its weights, by SAELens' names."""
    wide = {name: tensor.double() for name, tensor in dictionary.tensors.items()}
    preparation = dictionary.preparation
    size = torch.full_like(wide["offset"], preparation.scale)
    if preparation.unit_scale is not None:
        size = size * preparation.unit_scale.double()
    # x' = x / size - shift, as in Preparation.apply.
    shift = torch.zeros_like(size)
    if preparation.centre is not None:
        shift = preparation.centre.double() * preparation.scale / size
    weights = {
        "W_enc": (wide["encoder"] / size).T,
        "b_enc": wide["bias"] - wide["encoder"] @ (shift + wide["offset"]),
        "W_dec": dictionary.atoms,
        "b_dec": dictionary.offset,
    }
    if "threshold" in wide:
        weights["threshold"] = wide["threshold"].expand(dictionary.n_modes)
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}


def read_saelens(folder: str | Path) -> Dictionary:
    """Read the layout that `write_saelens` and SAELens write, as a dictionary without a `training`.

    Its learner is a `ReLUSAE`, `TopKSAE` or `JumpReLUSAE`, which encodes as SAELens does.
    StoreError where files are missing or damaged, or the architecture is one that is not read:
    gated, or with activations normalised or rescaled on the way.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        weights = load((folder / _WEIGHTS).read_bytes())
        architecture, n_modes = config["architecture"], config["d_sae"]
        changed = config.get("normalize_activations", "none") != "none"
        changed |= bool(config.get("rescale_acts_by_decoder_norm", False))
        if architecture not in _READ or changed:
            raise ValueError(
                f"{_CONFIG}: expected architecture standard, topk or jumprelu without "
                f"normalisation or rescaling; got {architecture!r}"
            )
        encoder, bias, offset = weights["W_enc"].T, weights["b_enc"], weights["b_dec"]
        if encoder.shape != (n_modes, config["d_in"]):
            raise ValueError(f"W_enc of shape {tuple(weights['W_enc'].shape)}")
        if not config.get("apply_b_dec_to_input", True):
            bias = bias + encoder @ offset
        tensors = {"encoder": encoder, "bias": bias, "atoms": weights["W_dec"], "offset": offset}
        if architecture == "jumprelu":
            tensors["threshold"] = weights["threshold"]
        own = {"k": int(config["k"])} if architecture == "topk" else {}
        learner = _READ[architecture](n_modes, **own)
    except OSError as error:
        raise StoreError(
            f"{folder} holds no dictionary in SAELens' layout: expected {_CONFIG} and {_WEIGHTS} "
            f"({error})"
        ) from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder}: cannot be read as SAELens' layout: {error!r}") from error
    floats = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    return Dictionary(learner, floats, scale=1.0)
