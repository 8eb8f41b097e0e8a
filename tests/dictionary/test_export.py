import json
from dataclasses import replace

import pytest
import torch

from condec.basis.errors import DataError, StoreError
from condec.dictionary import (
    PCA,
    BatchTopKSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    read_saelens,
    write_saelens,
)
from condec.models.torchvision import import_torchvision

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")

LEARNERS = [
    ReLUSAE(6),
    TopKSAE(6, k=2),
    BatchTopKSAE(6, k=2),
    JumpReLUSAE(6, target_l0=2.0),
    MatryoshkaSAE(6, k=2),
]
FAST = TrainConfig(epochs=6, batch_size=16, lr=3e-3)


def _rows():
    units = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    return units * torch.rand(80, 5, generator=torch.Generator().manual_seed(0)) + 2.0


@pytest.mark.parametrize("scaling", ["global", "unit", "none"])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: type(learner).__name__)
def test_round_trip(learner, scaling, centre, tmp_path):
    config = TrainConfig(epochs=6, batch_size=16, lr=3e-3, scaling=scaling, centre=centre)
    dictionary = fit(learner, _rows(), config=config).dictionary
    write_saelens(dictionary, tmp_path / "export")
    code = read_saelens(tmp_path / "export")
    loadings, expected = code.encode(_rows()), dictionary.encode(_rows())
    assert bool((expected > 0).any())
    # Sums in another order: entries on the edge may fall on either side of it.
    assert float(((loadings > 0) == (expected > 0)).float().mean()) > 0.99
    same = (loadings > 0) == (expected > 0)
    torch.testing.assert_close(loadings[same], expected[same], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        code.decode(expected), dictionary.decode(expected), rtol=1e-5, atol=1e-5
    )


# Importing it brings in warnings of its own and of what it needs.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaling", ["global", "unit"])
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: type(learner).__name__)
def test_saelens_itself_reads_it(learner, scaling, tmp_path):
    import_torchvision()
    sae_lens = pytest.importorskip("sae_lens", reason="pip install sae-lens", exc_type=ImportError)
    config = replace(FAST, scaling=scaling, centre=scaling == "unit")
    dictionary = fit(learner, _rows(), config=config).dictionary
    write_saelens(dictionary, tmp_path / "ours", hook_name="layer2.1")
    sae = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    with torch.no_grad():
        loadings, expected = sae.encode(_rows()), dictionary.encode(_rows())
        torch.testing.assert_close(
            sae.decode(expected), dictionary.decode(expected), rtol=1e-5, atol=1e-5
        )
    same = (loadings > 0) == (expected > 0)
    assert float(same.float().mean()) > 0.99
    torch.testing.assert_close(loadings[same], expected[same], rtol=1e-3, atol=1e-4)
    assert sae.cfg.metadata.hook_name == "layer2.1"
    assert sae.cfg.metadata.condec_learner["name"] == type(learner).__name__
    sae.save_model(tmp_path / "theirs")
    torch.testing.assert_close(
        read_saelens(tmp_path / "theirs").encode(_rows()), loadings, rtol=1e-3, atol=1e-4
    )


def test_layout(tmp_path):
    from safetensors.torch import load_file

    dictionary = fit(TopKSAE(6, k=2), _rows(), config=FAST).dictionary
    write_saelens(dictionary, tmp_path, hook_name="layer2.1")
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "topk"
    assert (config["d_in"], config["d_sae"], config["k"]) == (5, 6, 2)
    assert config["apply_b_dec_to_input"] is False
    assert config["normalize_activations"] == "none"
    assert config["metadata"]["hook_name"] == "layer2.1"
    # Without it SAELens takes the file for one of an older layout and drops the metadata.
    assert config["metadata"]["sae_lens_version"] == "6.0.0"
    weights = load_file(tmp_path / "sae_weights.safetensors")
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    assert shapes == {"W_enc": (5, 6), "b_enc": (6,), "W_dec": (6, 5), "b_dec": (5,)}


def test_bias_of_the_decoder_on_the_input_is_read(tmp_path):
    from safetensors.torch import load_file

    dictionary = fit(ReLUSAE(6), _rows(), config=FAST).dictionary
    write_saelens(dictionary, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": True}))
    plain = load_file(tmp_path / "sae_weights.safetensors")
    expected = ((_rows() - plain["b_dec"]) @ plain["W_enc"] + plain["b_enc"]).relu()
    found = read_saelens(tmp_path).encode(_rows())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learner", [PCA(2), ThresholdSAE(6, threshold=0.3)])
def test_learners_without_a_linear_encoder(learner, tmp_path):
    dictionary = fit(learner, _rows(), config=FAST).dictionary
    with pytest.raises(DataError, match=r"cannot be written in SAELens' .* ReLUSAE, TopKSAE"):
        write_saelens(dictionary, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "expected architecture standard, topk or jumprelu"),
        ({"normalize_activations": "layer_norm"}, "without normalisation or rescaling"),
        ({"d_in": 7}, "W_enc of shape"),
        ({"architecture": "jumprelu"}, "threshold"),
    ],
)
def test_what_cannot_be_read(change, message, tmp_path):
    write_saelens(fit(ReLUSAE(6), _rows(), config=FAST).dictionary, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(StoreError, match=message):
        read_saelens(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(StoreError, match=r"expected cfg\.json and sae_weights"):
        read_saelens(tmp_path / "nothing")
    write_saelens(fit(ReLUSAE(6), _rows(), config=FAST).dictionary, tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="cannot be read as SAELens' layout"):
        read_saelens(tmp_path)
