"""Dictionaries of other libraries encode as these do; what is no dictionary is refused."""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF, PCA, DictionaryLearning, FastICA, TruncatedSVD
from torch import nn

from condec.basis.errors import DataError, StoreError
from condec.dictionary import ReLUSAE, TrainConfig, fit, load_dictionary, write_saelens
from condec.dictionary.imported import import_dictionary, measured

ROWS = torch.rand(80, 6, generator=torch.Generator().manual_seed(0))
X = ROWS.double().numpy()


def close(found: torch.Tensor, expected: Any, atol: float = 1e-5) -> None:
    expected = torch.as_tensor(np.asarray(expected, dtype=np.float32))
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    "model", [PCA(3), TruncatedSVD(3), FastICA(3, random_state=0, whiten="unit-variance")]
)
def test_directions_of_scikit_learn(model: Any) -> None:
    model.fit(X)
    found = import_dictionary(model, n_units=6)
    close(found.encode(ROWS), model.transform(X))
    close(found.decode(found.encode(ROWS)), model.inverse_transform(model.transform(X)))


def test_clusters_of_scikit_learn() -> None:
    model = KMeans(4, n_init=2, random_state=0).fit(X)
    close(import_dictionary(model).encode(ROWS), np.eye(4)[model.predict(X)])


def test_nmf_of_scikit_learn_approaches_the_exact_loadings() -> None:
    model = NMF(3, max_iter=4000, tol=1e-10, random_state=0).fit(X)
    found = import_dictionary(model)
    close(found.encode(ROWS), model.transform(X), atol=1e-3)
    left = (ROWS - found.decode(found.encode(ROWS))).square().sum()
    assert (
        float(left) <= float(((X - model.inverse_transform(model.transform(X))) ** 2).sum()) + 1e-4
    )


@pytest.fixture
def sae(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Overcomplete's autoencoders, without its figures and models, which need old versions."""
    if importlib.util.find_spec("overcomplete") is None:
        pytest.skip("Overcomplete is not installed")
    for name in ("visualization", "models"):
        monkeypatch.setitem(sys.modules, f"overcomplete.{name}", Stub(f"overcomplete.{name}"))
    return importlib.import_module("overcomplete.sae")


class Stub(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.mark.parametrize("name", ["SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE"])
def test_autoencoders_of_overcomplete(sae: Any, name: str) -> None:
    model = getattr(sae, name)(6, 12, **({"top_k": 3} if "TopK" in name else {}))
    model.train()
    for _ in range(3):  # running means of its batch normalisation, and a threshold
        model(ROWS)
    with pytest.raises(DataError, match=r"in training mode; call its \.eval"):
        import_dictionary(model)
    model.eval()
    found = import_dictionary(model)
    with torch.no_grad():
        _, own, decoded = model(ROWS)
    close(found.encode(ROWS), own)
    close(found.decode(own), decoded)


def test_an_encoder_that_is_not_linear_is_refused(sae: Any) -> None:
    model = sae.SAE(6, 12, encoder_module=sae.modules.MLPEncoder(6, 12, nb_blocks=3))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.normal_()
    with pytest.raises(DataError, match="SAE encodes otherwise than its parts say"):
        import_dictionary(model.eval())


class AutoEncoder(nn.Module):
    """As dictionary_learning has it, written anew from its description."""

    def __init__(self, kind: str = "relu") -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 10), nn.Linear(10, 6, bias=False)
        name = "bias" if kind == "relu" else "b_dec"
        setattr(self, name, nn.Parameter(torch.randn(6)))
        self.kind = kind
        if kind != "relu":
            self.register_buffer("k", torch.tensor(4))
            self.register_buffer("threshold", torch.tensor(0.3))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        offset = self.bias if self.kind == "relu" else self.b_dec
        z = torch.relu(self.encoder(x - offset))
        if self.kind == "batch":
            return z * (z > self.threshold)
        if self.kind == "topk":
            top = z.topk(4, dim=-1)
            return torch.zeros_like(z).scatter_(-1, top.indices, top.values)
        return z


class AutoEncoderTopK(AutoEncoder):
    """Goes by k, though it keeps a threshold."""

    def __init__(self) -> None:
        super().__init__("topk")


class BatchTopKSAE(AutoEncoder):
    """Goes by the threshold."""

    def __init__(self) -> None:
        super().__init__("batch")


class JumpReLU(nn.Module):
    """JumpReluAutoEncoder of dictionary_learning, written anew."""

    def __init__(self) -> None:
        super().__init__()
        self.W_enc, self.W_dec = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(10, 6))
        self.b_enc, self.b_dec = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(6))
        self.threshold = nn.Parameter(torch.full((10,), 0.2))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        pre = x @ self.W_enc + self.b_enc
        return torch.relu(pre * (pre > self.threshold))


@pytest.mark.parametrize("model", [AutoEncoder(), AutoEncoderTopK(), BatchTopKSAE(), JumpReLU()],
                         ids=["relu", "topk", "batch", "jump"])  # fmt: skip
def test_autoencoders_of_dictionary_learning(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "ae.pt")  # noqa: TID251  # as that library does
    about = {"trainer": {"dict_class": type(model).__name__}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with torch.no_grad():
        own = model.encode(ROWS)  # type: ignore[operator]
    for found in (import_dictionary(model), import_dictionary(tmp_path)):
        close(found.encode(ROWS), own)
        found.save(tmp_path / "again")
        close(load_dictionary(tmp_path / "again").encode(ROWS), own)


def test_weights_of_two_classes_are_not_guessed(tmp_path: Path) -> None:
    torch.save(AutoEncoderTopK().state_dict(), tmp_path / "ae.pt")  # noqa: TID251
    with pytest.raises(DataError, match=r"goes by k, BatchTopKSAE by .* config\.json"):
        import_dictionary(tmp_path)
    # MatryoshkaBatchTopKSAE, which takes the offset off the input, as JumpReluAutoEncoder does not.
    weights = {**JumpReLU().state_dict(), "k": torch.tensor(4), "group_sizes": torch.tensor([5, 5])}
    torch.save(weights, tmp_path / "ae.pt")  # noqa: TID251
    with pytest.raises(DataError, match=r"are known; got the weights .*group_sizes"):
        import_dictionary(tmp_path)


def test_folders_and_files(tmp_path: Path) -> None:
    report = fit(ReLUSAE(4), ROWS, config=TrainConfig(steps=20))
    write_saelens(report.dictionary, tmp_path / "sae")
    report.dictionary.save(tmp_path / "own")
    expected = report.dictionary.encode(ROWS)
    for name in ("sae", "own"):
        close(import_dictionary(tmp_path / name).encode(ROWS), expected)
    atoms = torch.rand(3, 6)
    np.save(tmp_path / "atoms.npy", atoms.numpy())
    np.savez(tmp_path / "atoms.npz", atoms=atoms.numpy(), other=np.ones(3))
    save_file({"w": atoms}, tmp_path / "atoms.safetensors")
    for suffix in ("npy", "npz", "safetensors"):
        torch.testing.assert_close(import_dictionary(tmp_path / f"atoms.{suffix}").atoms, atoms)


def test_atoms_alone() -> None:
    atoms = torch.tensor([[1.0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    rows = torch.tensor([[1.0, 3, 5, 0, 0, 0], [-1, 1, 0, 0, 0, 0]])
    by = {name: import_dictionary(atoms, encoder=name).encode(rows)  # type: ignore[arg-type]
          for name in ("nnls", "projection", "component")}  # fmt: skip
    # x = a d1 + b d2: b is the second unit, a what the first has beyond it.
    close(by["projection"], [[-2, 3], [-2, 1]])
    close(by["component"], [[1, 2], [-1, 0]])
    close(by["nnls"], [[0, 2], [0, 0]])
    units = import_dictionary(torch.eye(6), encoder="component")
    close(units.encode(rows), rows)


def test_quality_is_measured_as_that_of_a_fit() -> None:
    report = fit(ReLUSAE(4), ROWS, config=TrainConfig(steps=20))
    bare = import_dictionary(report.dictionary.atoms, encoder="projection")
    found = measured(bare, ROWS, TrainConfig(steps=20))
    assert found.training is not None
    assert found.training.held_out_rows.tolist() == report.held_out_rows.tolist()
    assert set(found.training.metrics) == {"train", "held_out"}
    with pytest.raises(DataError, match="atoms of 6 units, for rows of 5"):
        measured(bare, ROWS[:, :5])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.full((2, 3), torch.nan), "atoms hold NaN or infinite"),
        (torch.rand(3), r"expected atoms \[mode, unit\]; got shape \(3,\)"),
        (torch.rand(2, 3), "atoms of 3 units, for rows of 6"),
        (PCA(2), "PCA has no components_; fit it first"),
        (PCA(2, whiten=True).fit(X), "PCA that whitens"),
        (NMF(2, alpha_W=0.1, max_iter=2000).fit(X), "NMF with a penalty"),
        (DictionaryLearning(2, max_iter=2).fit(X), "DictionaryLearning is not known"),
        (object(), "object is not known; give a folder"),
    ],
)  # fmt: skip
def test_what_is_no_dictionary_is_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_dictionary(source, n_units=6)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no dictionary: expected a folder with cfg\.json"):
        import_dictionary(tmp_path)
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(StoreError, match="several arrays, none of them atoms: a, b"):
        import_dictionary(tmp_path / "two.npz")
    (tmp_path / "ae.pt").write_bytes(b"no weights")
    with pytest.raises(StoreError, match="cannot be read as weights of dictionary_learning"):
        import_dictionary(tmp_path)
    torch.save({"x": torch.ones(2)}, tmp_path / "ae.pt")  # noqa: TID251
    with pytest.raises(DataError, match=r"ae\.pt: .* got the weights x"):
        import_dictionary(tmp_path)
