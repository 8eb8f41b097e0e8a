r"""Dictionaries from anywhere, as condec's own: files, folders, objects of other libraries, atoms.

Whatever can encode is asked for some rows before it is taken: loadings have to be those of its own
library, to rounding.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, StoreError
from condec.basis.files import reading, user_path
from condec.dictionary.base import ATOMS, OFFSET, Dictionary, Learner, load_dictionary
from condec.dictionary.export import read_saelens
from condec.dictionary.fitting.rows import prepare
from condec.dictionary.learners.classical import PCA, FastICA, KMeans
from condec.dictionary.learners.given import Encoder, GivenAtoms
from condec.dictionary.learners.sparse import JumpReLUSAE, ReLUSAE
from condec.dictionary.learners.topk import TopKSAE
from condec.dictionary.measure.quality import quality_of
from condec.dictionary.records import TrainConfig, Training

_FILES: Final = ".npy, .npz or .safetensors with a matrix of atoms [mode, unit]"
_ROWS: Final = 64
_CLOSE: Final = 1e-4
"""Largest difference of loadings, relative to the largest one, that is taken for rounding."""


def import_dictionary(
    source: Any, *, encoder: Encoder = "nnls", n_units: int | None = None
) -> Dictionary:
    """Take a dictionary that was made elsewhere.

    Parameters
    ----------
    source : path, array or object
        A folder in SAELens' layout (cfg.json, sae_weights.safetensors), of dictionary_learning
        (ae.pt, config.json), or of condec; a file (.npy, .npz, .safetensors) with one matrix of
        atoms; such a matrix [mode, unit], of concept vectors or, as ``torch.eye(n_units)``, single
        units; a fitted estimator of scikit-learn (NMF, PCA, TruncatedSVD, FastICA, KMeans); a
        sparse autoencoder of Overcomplete with a linear encoder, in evaluation mode; an object of
        dictionary_learning.
    encoder : {"nnls", "projection", "component"}
        Of a matrix of atoms, which has none of its own (`GivenAtoms`).
    n_units : int, optional
        Width of the rows that it is for, to be checked.

    Returns
    -------
    Dictionary
        Of rows in the units that it was made for; what it describes of the rows here, if anything,
        `quality` tells.

    Raises
    ------
    StoreError
        A file or folder is missing, damaged, or of an unknown kind.
    DataError
        Atoms that are not finite, or none; another width; an object that is not known, or encodes
        otherwise than its parts say.
    """
    if isinstance(source, str | Path):
        found = _from_path(user_path(source), encoder)
    elif isinstance(source, Tensor | np.ndarray):
        found = _given(source, encoder)
    else:
        found = _from_object(source)
    bad = [name for name, tensor in found.tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise DataError(f"import_dictionary: {', '.join(bad)} hold NaN or infinite numbers")
    if n_units is not None:
        _check_width(found, n_units)
    return found


def _check_width(dictionary: Dictionary, n_units: int) -> None:
    if dictionary.n_units != n_units:
        raise DataError(
            f"import_dictionary: atoms of {dictionary.n_units} units, for rows of {n_units}; it is "
            "of another site, or of another sign or quantity"
        )


def measured(dictionary: Dictionary, matrix: Any, config: TrainConfig | None = None) -> Dictionary:
    """Return the dictionary with a record of its quality, as if it had been fitted to the rows.

    Rows are held out as for a fit, so that modes are chosen and judged on the same ones.
    DataError where it has another width than the rows.
    """
    config = config or TrainConfig()
    _check_width(dictionary, matrix.shape[1])
    prepared = prepare(dictionary.learner, matrix, config, None)
    metrics, alive = {}, torch.zeros(dictionary.n_modes, dtype=torch.bool)
    for split, rows in (("train", prepared.train), ("held_out", prepared.held_out)):
        if len(rows):
            loadings = dictionary.encode(rows)
            metrics[split] = quality_of(dictionary, rows, loadings)
            alive |= (loadings > 0).any(0).cpu()
    about = Training(
        config=config, n_rows=prepared.n_rows, held_out_rows=prepared.held_out_rows,
        metrics=metrics, n_alive=int(alive.sum()), origin=prepared.origin,
    )  # fmt: skip
    return replace(dictionary, training=about)


def _given(atoms: Tensor | np.ndarray, encoder: Encoder) -> Dictionary:
    matrix = torch.as_tensor(np.array(atoms) if isinstance(atoms, np.ndarray) else atoms)
    if matrix.ndim != 2 or not matrix.numel() or matrix.is_complex():
        raise DataError(
            f"import_dictionary: expected atoms [mode, unit]; got shape {tuple(matrix.shape)}"
        )
    matrix = matrix.detach().cpu().to(torch.float32).contiguous()
    return Dictionary(GivenAtoms(len(matrix), encoder=encoder), {ATOMS: matrix}, scale=1.0)


def _from_path(path: Path, encoder: Encoder) -> Dictionary:
    if (path / "cfg.json").exists():
        return read_saelens(path)
    if (path / "dictionary.json").exists():
        return load_dictionary(path)
    if (path / "ae.pt").exists():
        remedy = "Expected a folder that dictionary_learning wrote: ae.pt and config.json."
        with reading(path / "ae.pt", "weights of dictionary_learning", remedy):
            weights = torch.load(path / "ae.pt", map_location="cpu", weights_only=True)
            about = path / "config.json"
            config = json.loads(about.read_bytes()) if about.exists() else {}
            return _of_weights(dict(weights), str(config.get("trainer", {}).get("dict_class", "")))
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise StoreError(
            f"{path}: no dictionary: expected a folder with cfg.json (SAELens), ae.pt "
            f"(dictionary_learning) or dictionary.json (condec), or a file {_FILES}"
        )
    with reading(path, "atoms", f"Expected {_FILES}."):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Mapping[str, Any] = load_file(path)
        else:
            loaded = np.load(path, allow_pickle=False)
            found = {ATOMS: loaded} if path.suffix == ".npy" else dict(loaded)
        if ATOMS not in found and len(found) != 1:
            raise ValueError(f"several arrays, none of them {ATOMS}: {', '.join(found)}")
        return _given(found[ATOMS] if ATOMS in found else next(iter(found.values())), encoder)


def _linear(kind: Learner, encoder: Tensor, bias: Tensor, atoms: Tensor, offset: Tensor,
            **more: Tensor) -> Dictionary:  # fmt: skip
    """Make a dictionary that reads (x - offset) @ encoder.T + bias."""
    tensors = {"encoder": encoder, "bias": bias, ATOMS: atoms, OFFSET: offset, **more}
    floats = {n: t.detach().cpu().to(torch.float32).contiguous() for n, t in tensors.items()}
    return Dictionary(kind, floats, scale=1.0)


def _of_weights(weights: dict[str, Tensor], kind: str) -> Dictionary:
    """Read the weights of an autoencoder of dictionary_learning, by their names."""
    if weights.keys() == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}:
        # JumpReluAutoEncoder: the offset is not taken off the input.
        encoder, offset = weights["W_enc"].double().T, weights["b_dec"].double()
        bias = weights["b_enc"].double() + encoder @ offset
        made = JumpReLUSAE(len(encoder))
        threshold = weights["threshold"].clamp(min=0)
        return _linear(made, encoder, bias, weights["W_dec"], offset, threshold=threshold)
    if not {"encoder.weight", "encoder.bias", "decoder.weight"} <= weights.keys():
        raise DataError(
            "import_dictionary: of dictionary_learning, AutoEncoder, AutoEncoderTopK, BatchTopKSAE "
            f"and JumpReluAutoEncoder are known; got the weights {', '.join(weights)}"
        )
    base = weights.get("b_dec", weights.get("bias"))
    known = {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "bias", "k", "threshold"}
    others = sorted(weights.keys() - known)
    if base is None or others:
        raise DataError(
            f"import_dictionary: {kind or 'dictionary_learning'}: weights that are not known: "
            f"{', '.join(others) or 'and none is the bias of the decoder'}"
        )
    decoder = weights["decoder.weight"].T
    parts = (weights["encoder.weight"], weights["encoder.bias"], decoder, base)
    n_modes = len(parts[0])
    at = weights.get("threshold")
    trained = at is not None and bool((at >= 0).all())
    if trained and "k" in weights and "TopK" not in kind:
        raise DataError(
            f"import_dictionary: {kind or 'dictionary_learning'}: weights with k and a threshold: "
            "AutoEncoderTopK goes by k, BatchTopKSAE by the threshold. Name the class in "
            "config.json, as trainer.dict_class"
        )
    if at is not None and trained and ("k" not in weights or "BatchTopK" in kind):
        each = at.double().expand(n_modes)
        return _linear(JumpReLUSAE(n_modes), *parts, threshold=each)
    if "k" in weights:
        if "BatchTopK" in kind:
            raise DataError("import_dictionary: BatchTopKSAE without a threshold: train it further")
        return _linear(TopKSAE(n_modes, k=int(weights["k"])), *parts)
    return _linear(ReLUSAE(n_modes), *parts)


def _from_object(source: Any) -> Dictionary:
    name, own = type(source).__name__, getattr(source, "encode", None)
    if hasattr(source, "get_dictionary") and hasattr(source, "encoder"):
        found = _of_overcomplete(source)
        return _checked(found, lambda rows: source.encode(rows)[1], name)
    weights = source.state_dict() if isinstance(source, torch.nn.Module) else {}
    if callable(own) and {"decoder.weight", "W_enc"} & weights.keys():
        return _checked(_of_weights(dict(weights), name), own, name)
    if hasattr(source, "get_params") and hasattr(source, "fit"):
        return _of_sklearn(source, name)
    raise DataError(
        f"import_dictionary: {name} is not known; give a folder, a file, a matrix of atoms, or an "
        "object of scikit-learn, Overcomplete or dictionary_learning"
    )


def _checked(found: Dictionary, encode: Callable[[Tensor], Any], name: str) -> Dictionary:
    """Refuse a dictionary that encodes rows otherwise than the object that it was read from."""
    generator = torch.Generator().manual_seed(0)
    size = found.tensors[ATOMS].abs().max().clamp(min=1e-6)
    rows = torch.randn(_ROWS, found.n_units, generator=generator) * size
    with torch.no_grad():
        own, ours = torch.as_tensor(encode(rows)).to(torch.float32), found.encode(rows)
    apart = float((own - ours).abs().max() / own.abs().max().clamp(min=1e-12))
    if not apart <= _CLOSE:
        raise DataError(
            f"import_dictionary: {name} encodes otherwise than its parts say (loadings differ by "
            f"{apart:.1g} of the largest): its encoder is not one that condec knows. Give "
            "its atoms as a matrix"
        )
    return found


def _of_overcomplete(source: Any) -> Dictionary:
    """Read an autoencoder of Overcomplete: its pre-codes at zero and at every unit."""
    name = type(source).__name__
    if getattr(source, "training", False):
        raise DataError(f"import_dictionary: {name} is in training mode; call its .eval() first")
    with torch.no_grad():
        atoms = source.get_dictionary().detach().double()
        n_units = atoms.shape[1]
        at = torch.cat([torch.zeros(1, n_units), torch.eye(n_units)]).to(atoms.device)
        pre = source.encoder(at.to(torch.float32))[0].double()
    bias, encoder = pre[0], (pre[1:] - pre[0]).T
    more, n_modes = {}, len(atoms)
    kind: Learner = ReLUSAE(n_modes)
    if hasattr(source, "thresholds"):
        kind, more = JumpReLUSAE(n_modes), {"threshold": source.thresholds.exp()}
    elif getattr(source, "running_threshold", None) is not None:
        # At the threshold itself, too.
        edge = torch.nextafter(source.running_threshold, torch.tensor(-torch.inf)).clamp(min=0)
        kind, more = JumpReLUSAE(n_modes), {"threshold": edge.expand(n_modes)}
    elif name == "TopKSAE":
        kind = TopKSAE(n_modes, k=source.top_k)
    return _linear(kind, encoder, bias, atoms, atoms.new_zeros(n_units), **more)


def _of_sklearn(source: Any, name: str) -> Dictionary:
    """Read a fitted estimator of scikit-learn."""
    needed = "cluster_centers_" if name.endswith("KMeans") else "components_"
    if not hasattr(source, needed):
        raise DataError(f"import_dictionary: {name} has no {needed}; fit it first")
    atoms = torch.tensor(np.asarray(getattr(source, needed)), dtype=torch.float32)
    zeros = torch.zeros(atoms.shape[1])
    transform = lambda rows: np.asarray(source.transform(rows.double().numpy()))  # noqa: E731
    n_modes = len(atoms)
    mean = getattr(source, "mean_", None)
    offset = zeros if mean is None else torch.tensor(np.asarray(mean), dtype=torch.float32)
    tensors = {ATOMS: atoms, OFFSET: offset}
    if name.endswith("KMeans"):
        made: Learner = KMeans(n_modes)
        del tensors[OFFSET]
        transform = lambda rows: np.eye(n_modes)[source.predict(rows.double().numpy())]  # noqa: E731
    elif name in ("PCA", "IncrementalPCA"):
        if source.whiten:
            raise DataError("import_dictionary: PCA that whitens; fit it with whiten=False")
        made = PCA(n_modes)
    elif name == "TruncatedSVD":
        made = PCA(n_modes)
    elif name == "FastICA":
        made = FastICA(n_modes)
        tensors["unmixing"] = atoms
        tensors[ATOMS] = torch.tensor(source.mixing_.T, dtype=torch.float32).contiguous()
    elif name in ("NMF", "MiniBatchNMF"):
        if source.alpha_W:
            raise DataError("import_dictionary: NMF with a penalty on loadings (alpha_W)")
        # The exact loadings, which those of scikit-learn approach to its tolerance.
        return Dictionary(GivenAtoms(n_modes, encoder="nnls"), {ATOMS: atoms}, scale=1.0)
    else:
        raise DataError(
            f"import_dictionary: {name} is not known; give its components as a matrix of atoms"
        )
    return _checked(Dictionary(made, tensors, scale=1.0), transform, name)
