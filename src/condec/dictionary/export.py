r"""Dictionaries with a linear encoder in SAELens' layout: cfg.json, sae_weights.safetensors.

The files take rows in the data's own units: the preparation is folded into the weights,

.. math:: z = a(x W + b), \qquad \hat x = z D + o,

so that loadings are those of `Dictionary.encode`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from condec.basis.errors import DataError, StoreError
from condec.basis.files import remove_partial, to_json, write_file, writing
from condec.basis.records import short_repr
from condec.basis.shapes import Atom, Atoms, Loadings, UnitMatrix
from condec.dictionary.base import Dictionary
from condec.dictionary.learners.sparse import JumpReLUSAE, ReLUSAE, above, largest
from condec.dictionary.learners.topk import BatchTopKSAE, MatryoshkaSAE, TopKSAE

Architecture = Literal["standard", "topk", "jumprelu"]

_CONFIG: Final = "cfg.json"
_WEIGHTS: Final = "sae_weights.safetensors"
_LAYOUT: Final = "6.0.0"
"""Version of SAELens with this layout; without one, its loader drops the metadata."""
_EXPORTED: Final[dict[type, Architecture]] = {
    ReLUSAE: "standard", TopKSAE: "topk",
    JumpReLUSAE: "jumprelu", BatchTopKSAE: "jumprelu", MatryoshkaSAE: "jumprelu",
}  # fmt: skip
"""Architectures by learner; a threshold for all modes is one for every mode."""


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class LinearCode:
    """A linear encoder, its activation, and the decoder; in the data's units.

    `architecture` is SAELens' name of the activation; `encoder` [unit, mode], `bias` [mode],
    `atoms` [mode, unit], `offset` [unit]; `threshold` [mode] belongs to "jumprelu", `k` to "topk".
    """

    architecture: Architecture
    encoder: Tensor
    bias: Tensor
    atoms: Atoms
    offset: Atom
    threshold: Tensor | None = None
    k: int | None = None

    def encode(self, matrix: UnitMatrix) -> Loadings:
        """Encode rows."""
        pre = matrix @ self.encoder + self.bias
        if self.threshold is not None:
            return above(pre, self.threshold).relu()
        return pre.relu() if self.k is None else largest(pre, self.k)

    def decode(self, loadings: Loadings) -> UnitMatrix:
        """Decode loadings."""
        return loadings @ self.atoms + self.offset


def linear_code(dictionary: Dictionary) -> LinearCode:
    """Fold the preparation of a dictionary into its weights.

    DataError where its learner has no linear encoder, or none with an activation of SAELens.
    """
    learner, tensors = dictionary.learner, dictionary.tensors
    architecture = _EXPORTED.get(type(learner))
    if architecture is None:
        raise DataError(
            f"export: {type(learner).__name__} cannot be written in SAELens' layout, which holds "
            f"one linear encoder; those that can: {', '.join(k.__name__ for k in _EXPORTED)}"
        )
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    preparation = dictionary.preparation
    size = torch.full_like(wide["offset"], preparation.scale)
    if preparation.unit_scale is not None:
        size = size * preparation.unit_scale.double()
    # x' = x / size - shift, as in Preparation.apply.
    shift = torch.zeros_like(size)
    if preparation.centre is not None:
        shift = preparation.centre.double() * preparation.scale / size
    bias = wide["bias"] - wide["encoder"] @ (shift + wide["offset"])
    threshold = wide.get("threshold")
    if threshold is not None:
        threshold = threshold.expand(dictionary.n_modes).to(torch.float32).contiguous()
    return LinearCode(
        architecture=architecture,
        encoder=(wide["encoder"] / size).T.to(torch.float32).contiguous(),
        bias=bias.to(torch.float32),
        atoms=dictionary.atoms,
        offset=dictionary.offset,
        threshold=threshold,
        k=learner.k if isinstance(learner, TopKSAE) else None,
    )


def write_saelens(dictionary: Dictionary, folder: str | Path, *, hook_name: str = "") -> None:
    """Write a dictionary for SAELens (``SAE.load_from_disk``, version 6).

    `ReLUSAE` becomes "standard", `TopKSAE` "topk"; `JumpReLUSAE`, `BatchTopKSAE` and
    `MatryoshkaSAE` become "jumprelu". The folder gets cfg.json and sae_weights.safetensors;
    `hook_name`, the name of the place in the model, is a note for people. DataError where the
    learner has no linear encoder, StoreError where the folder cannot be written.
    """
    from safetensors.torch import save

    code, folder = linear_code(dictionary), Path(folder)
    weights = {"W_enc": code.encoder, "b_enc": code.bias, "W_dec": code.atoms, "b_dec": code.offset}
    # The offset is in the encoder's bias already: the decoder's is not taken off the input.
    config: dict[str, Any] = {
        "architecture": code.architecture, "d_in": dictionary.n_units, "d_sae": dictionary.n_modes,
        "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _LAYOUT, "sae_lens_training_version": None,
            "hook_name": hook_name or None, "condec_learner": dictionary.learner.to_dict(),
        },
    }  # fmt: skip
    if code.threshold is not None:
        weights["threshold"] = code.threshold
    if code.k is not None:
        config |= {"k": code.k, "rescale_acts_by_decoder_norm": False}
    content = save({name: tensor.contiguous() for name, tensor in weights.items()})
    with writing(f"{folder}: SAELens export"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((_WEIGHTS, content), (_CONFIG, to_json(config))):
            remove_partial(folder / name)
            write_file(folder / name, data)


def read_saelens(folder: str | Path) -> LinearCode:
    """Read the layout that `write_saelens` and SAELens write.

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
        if architecture not in ("standard", "topk", "jumprelu") or changed:
            raise StoreError(
                f"{folder / _CONFIG}: expected architecture standard, topk or jumprelu without "
                f"normalisation or rescaling; got {architecture!r}"
            )
        bias = weights["b_enc"]
        if config.get("apply_b_dec_to_input", True):
            bias = bias - weights["b_dec"] @ weights["W_enc"]
        code = LinearCode(
            architecture=architecture,
            encoder=weights["W_enc"],
            bias=bias,
            atoms=weights["W_dec"],
            offset=weights["b_dec"],
            threshold=weights["threshold"] if architecture == "jumprelu" else None,
            k=int(config["k"]) if architecture == "topk" else None,
        )
        if code.encoder.shape != (config["d_in"], n_modes):
            raise ValueError(f"W_enc of shape {tuple(code.encoder.shape)}")
    except OSError as error:
        raise StoreError(
            f"{folder} holds no dictionary in SAELens' layout: expected {_CONFIG} and {_WEIGHTS} "
            f"({error})"
        ) from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder}: cannot be read as SAELens' layout: {error!r}") from error
    return code
