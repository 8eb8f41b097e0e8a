r"""Dictionaries with a linear encoder in SAELens' layout: cfg.json, sae_weights.safetensors.

The files take rows in the data's own units: the preparation is folded into the weights,

.. math:: z = a(x W + b), \qquad \hat x = z D + o,

so that loadings are those of `Dictionary.encode`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from condec.basis.errors import DataError, StoreError
from condec.basis.files import to_json, user_path, write_file, writing
from condec.dictionary.base import Dictionary, Learner
from condec.dictionary.learners.sparse import JumpReLUSAE, ReLUSAE
from condec.dictionary.learners.topk import BatchTopKSAE, MatryoshkaSAE, TopKSAE

_CONFIG: Final = "cfg.json"
_WEIGHTS: Final = "sae_weights.safetensors"
_LAYOUT: Final = "6.0.0"
"""Version of SAELens with this layout; without one, its loader drops the metadata."""
_READ: Final[dict[str, type[Learner]]] = {
    "standard": ReLUSAE, "topk": TopKSAE, "jumprelu": JumpReLUSAE, "gated": JumpReLUSAE,
}  # fmt: skip
"""Learners by SAELens' name of their architecture."""
_WRITTEN: Final[dict[type, str]] = {
    ReLUSAE: "standard", TopKSAE: "topk",
    **dict.fromkeys((JumpReLUSAE, BatchTopKSAE, MatryoshkaSAE), "jumprelu"),
}  # fmt: skip
"""A threshold for all modes is one for every mode."""
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}  # fmt: skip
"""Tensors with one number for every mode."""
_FACTOR: Final = "finetuning_scaling_factor"
_SCALED: Final = (_FACTOR, "uses_scaling_factor", "use_scaling_factor")
"""Keys by which versions say that loadings are multiplied before they are decoded."""
_NORMS: Final[dict[Any, str]] = {
    "expected_average_only_in": (
        "activations multiplied by a factor that is not in the file; fold it into the weights "
        "(SAE.fold_activation_norm_scaling_factor) and save again"
    ),
    "layer_norm": "every row normalised by its own mean and deviation (layer_norm)",
    "constant_norm_rescale": "every row rescaled to one length (constant_norm_rescale)",
}  # fmt: skip
_HINTS: Final = dict.fromkeys(
    ("batchtopk", "matryoshka_batchtopk"),
    ", the state of its training; save_inference_model writes it as jumprelu",
)


def write_saelens(dictionary: Dictionary, folder: str | Path, *, hook_name: str = "") -> None:
    """Write a dictionary for SAELens (``SAE.load_from_disk``, version 6).

    `ReLUSAE` becomes "standard", `TopKSAE` "topk"; `JumpReLUSAE`, `BatchTopKSAE` and
    `MatryoshkaSAE` become "jumprelu". The folder gets cfg.json and sae_weights.safetensors;
    `hook_name`, the name of the place in the model, is a note for people. DataError where the
    learner has no linear encoder, StoreError where the folder cannot be written.
    """
    from safetensors.torch import save

    folder, learner = user_path(folder), dictionary.learner
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
        for name, data in ((_WEIGHTS, content), (_CONFIG, to_json(config))):
            write_file(folder / name, data, alone=True)


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
    r"""Read the layout of SAELens, as `write_saelens` writes it, too; without a `training`.

    It encodes and decodes as SAELens does in float32, also where the weights are kept in bfloat16.
    Its learner is a `ReLUSAE` ("standard"), a `TopKSAE` ("topk", or any with that activation
    function), or a `JumpReLUSAE` ("jumprelu", and "gated", where

    .. math:: z = [p + b_g > 0] \max(e^r p + b_m, 0), \qquad p = x W,

    is a threshold on :math:`e^r p + b_m`). Whether the decoder's bias is taken off the input, a
    scaling factor, and a rescaling by the length of the decoder's rows are heeded. Rows of
    attention heads ("hook_z") have their heads one after the other.

    StoreError where files are missing or damaged, or hold what no dictionary here does: another
    architecture or activation function, activations normalised row by row or by a factor that is
    not in the file, tensors that are not expected.
    """
    folder = user_path(folder)
    config = _read_config(folder)
    kind = config["architecture"]
    wide = _read_weights(folder, config)
    encoder, atoms, offset = wide["W_enc"].T, wide["W_dec"], wide["b_dec"]
    bias = wide["b_mag" if kind == "gated" else "b_enc"]
    if kind == "gated":
        grown = wide["r_mag"].exp()
        encoder = encoder * grown[:, None]
        wide["threshold"] = bias - grown * wide["b_gate"]
    if config.get("rescale_acts_by_decoder_norm"):
        lengths = atoms.norm(dim=1)
        encoder, bias = encoder * lengths[:, None], bias * lengths
        atoms = atoms / lengths.clamp(min=1e-12)[:, None]
    if not config.get("apply_b_dec_to_input", True):
        bias = bias + encoder @ offset
    if _FACTOR in wide:
        atoms = atoms * wide[_FACTOR][:, None]
    tensors = {"encoder": encoder, "bias": bias, "atoms": atoms, "offset": offset}
    if "threshold" in wide:
        # SAELens takes the ReLU besides: a threshold below 0 lets nothing more pass.
        tensors["threshold"] = wide["threshold"].clamp(min=0.0)
    floats = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    own = {"k": config["k"]} if kind == "topk" else {}
    return Dictionary(_READ[kind](len(atoms), **own), floats, scale=1.0)


def _read_config(folder: Path) -> dict[str, Any]:
    """Read cfg.json of any version as version 6 has it; refuse what is not read."""
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
    except OSError as error:
        raise _missing(folder, error) from error
    except ValueError as error:
        raise StoreError(f"{folder / _CONFIG}: not readable as json: {error}") from error
    if not isinstance(config, dict):
        raise _refusal(folder, "options in a table", type(config).__name__)
    architecture = config.get("architecture", "standard")
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    options = config.get("activation_fn_kwargs") or {}
    if (architecture, function) == ("standard", "topk"):
        architecture = "topk"
    if architecture not in _READ:
        hint = _HINTS.get(architecture, "")
        expected = f"architecture {', '.join(_READ)}"
        raise _refusal(folder, expected, repr(architecture), hint)
    known = ("relu", "topk") if architecture == "topk" else ("relu",)
    if function not in known or set(options) - {"k"} or config.get("normalize_decoder"):
        given = f"activation function {function!r} with {options}"
        raise _refusal(folder, f"activation function relu, or topk with k ({architecture})", given)
    if architecture == "topk":
        config["k"] = config.get("k", options.get("k"))
    norm = config.get("normalize_activations") or "none"
    norm = "expected_average_only_in" if norm is True else norm
    if norm != "none":
        raise _refusal(folder, "activations taken as they are", _NORMS.get(norm, repr(norm)))
    return config | {"architecture": architecture}


def _read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read sae_weights.safetensors in float64, and check names, shapes and numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        read = load((folder / _WEIGHTS).read_bytes())
    except OSError as error:
        raise _missing(folder, error) from error
    except SafetensorError as error:
        raise StoreError(f"{folder / _WEIGHTS}: not readable as safetensors: {error}") from error
    found = {name: tensor.double() for name, tensor in read.items()}
    if "log_threshold" in found:
        found["threshold"] = found.pop("log_threshold").exp()
    for name in ("scaling_factor", _FACTOR):
        if name in found:
            factor = found.pop(name)
            if any(config.get(key) for key in _SCALED):
                found[_FACTOR] = factor
            elif not bool((factor == 1.0).all()):
                raise _refusal(folder, f"{name} of ones, as {_FACTOR} is not set", "others")
    if "W_enc" not in found or found["W_enc"].ndim != 2:
        raise _refusal(folder, "W_enc [d_in, d_sae]", ", ".join(found) or "no tensors")
    width, n_modes = found["W_enc"].shape
    names = _NAMES[config["architecture"]]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        (*names, *({_FACTOR} & {*found})), (n_modes,)
    )
    shapes |= {"W_enc": (width, n_modes), "W_dec": (n_modes, width), "b_dec": (width,)}
    got = {name: tuple(tensor.shape) for name, tensor in found.items()}
    sizes = {"d_in": width, "d_sae": n_modes}
    said = {name: config[name] for name in sizes if config.get(name) is not None}
    if got != shapes or sizes != sizes | said:
        raise _refusal(folder, f"{config['architecture']} of {shapes}", f"{got}, {_CONFIG} {said}")
    bad = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise _refusal(folder, "finite numbers", f"NaN or infinite ones in {', '.join(bad)}")
    k = config.get("k")
    if config["architecture"] == "topk" and not (isinstance(k, int) and 1 <= k <= n_modes):
        raise _refusal(folder, f"k from 1 to {n_modes} for topk", repr(k))
    return found


def _missing(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder} holds no dictionary in SAELens' layout: expected {_CONFIG} and {_WEIGHTS} "
        f"({error})"
    )


def _refusal(folder: Path, expected: str, got: str, hint: str = "") -> StoreError:
    return StoreError(
        f"{folder}: cannot be read as SAELens' layout: expected {expected}; got {got}{hint}"
    )
