import json
import math
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
    load_dictionary,
    quality,
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


def _written(folder, config, seed=0, dtype=torch.float32, **more):
    """Small files as SAELens writes them: 5 inputs, 6 modes."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weights = {"W_enc": draw(5, 6), "b_enc": draw(6), "W_dec": draw(6, 5), "b_dec": draw(5)}
    if config.get("architecture") == "gated":
        del weights["b_enc"]
        weights |= {"b_gate": draw(6), "r_mag": draw(6), "b_mag": draw(6)}
    weights |= {name: draw(6) if value is None else value for name, value in more.items()}
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 5, "d_sae": 6} | config))
    return {name: tensor.double() for name, tensor in weights.items()}


def _by_hand(weights, config, row):
    """SAELens' encode and decode of one row, entry by entry, in float64; its versions 3 and 6."""
    w, modes, units = weights, range(6), range(5)
    centred = [float(x) for x in row]
    if config.get("apply_b_dec_to_input", True):
        centred = [x - float(w["b_dec"][u]) for u, x in enumerate(centred)]
    p = [sum(x * float(w["W_enc"][u, m]) for u, x in enumerate(centred)) for m in modes]
    norms = [sum(float(w["W_dec"][m, u]) ** 2 for u in units) ** 0.5 for m in modes]
    if config.get("architecture") == "gated":
        on = [p[m] + float(w["b_gate"][m]) > 0 for m in modes]
        size = [p[m] * math.exp(float(w["r_mag"][m])) + float(w["b_mag"][m]) for m in modes]
        z = [max(size[m], 0.0) * on[m] for m in modes]
    else:
        pre = [p[m] + float(w["b_enc"][m]) for m in modes]
        if config.get("rescale_acts_by_decoder_norm"):
            pre = [a * n for a, n in zip(pre, norms, strict=True)]
        k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k") or 6
        kept = sorted(modes, key=lambda m: -pre[m])[:k]
        z = [max(pre[m], 0.0) if m in kept else 0.0 for m in modes]
        if config.get("architecture") == "jumprelu":
            z = [z[m] * (pre[m] > float(w["threshold"][m])) for m in modes]
    acts = z
    if config.get("rescale_acts_by_decoder_norm"):
        acts = [a / n for a, n in zip(acts, norms, strict=True)]
    if "finetuning_scaling_factor" in w:
        acts = [a * float(w["finetuning_scaling_factor"][m]) for m, a in enumerate(acts)]
    decoded = [
        sum(acts[m] * float(w["W_dec"][m, u]) for m in modes) + float(w["b_dec"][u]) for u in units
    ]
    return z, decoded


READ = {
    "standard": ({"architecture": "standard"}, {}),
    "of before version 3": ({"activation_fn": "relu", "normalize_activations": False}, {}),
    "not centred": ({"architecture": "standard", "apply_b_dec_to_input": False}, {}),
    "topk": ({"architecture": "topk", "k": 2, "apply_b_dec_to_input": False}, {}),
    "topk of version 3": (
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}},
        {},
    ),
    "topk rescaled": ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}, {}),
    "jumprelu": ({"architecture": "jumprelu"}, {"threshold": None}),  # some below 0
    "gated": ({"architecture": "gated", "apply_b_dec_to_input": False}, {}),
    "scaled": (
        {"architecture": "standard", "finetuning_scaling_factor": True},
        {"finetuning_scaling_factor": None},
    ),
    "heads": ({"architecture": "standard", "reshape_activations": "hook_z"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", READ)
def test_every_architecture_by_a_loop(name, dtype, tmp_path):
    config, more = READ[name]
    weights = _written(tmp_path, config, dtype=dtype, **more)
    rows = 2.0 * torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    found = read_saelens(tmp_path)
    loadings = found.encode(rows)
    rebuilt = found.decode(loadings)
    for row, z, decoded in zip(rows, loadings, rebuilt, strict=True):
        expected, expected_row = _by_hand(weights, config, row)
        assert z.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert decoded.tolist() == pytest.approx(expected_row, rel=1e-4, abs=1e-5)
    assert 0 < int((loadings > 0).sum()) < loadings.numel()


def test_threshold_kept_as_its_logarithm_and_factors_of_one(tmp_path):
    config = {"architecture": "jumprelu"}
    weights = _written(tmp_path, config, log_threshold=None, scaling_factor=torch.ones(6))
    threshold = read_saelens(tmp_path).tensors["threshold"]
    torch.testing.assert_close(threshold, weights["log_threshold"].exp().float())


REFUSED = {
    "activations taken as they are; got every row normalised": {
        "normalize_activations": "layer_norm"
    },
    "got every row rescaled to one length": {"normalize_activations": "constant_norm_rescale"},
    "a factor that is not in the file; fold it": {"normalize_activations": True},
    "expected architecture standard.*got 'batchtopk'.*save_inference_model": {
        "architecture": "batchtopk"
    },
    "expected architecture standard.*got 'temporal'": {"architecture": "temporal"},
    "expected activation function relu.*got activation function 'tanh-relu'": {
        "activation_fn_str": "tanh-relu"
    },
    "activation function relu, or topk with k .jumprelu.; got activation function 'topk'": {
        "architecture": "jumprelu", "activation_fn_str": "topk",
    },
    "with {'k': 2, 'postact_fn': 'tanh'}": {
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2, "postact_fn": "tanh"},
    },
    "k from 1 to 6 for topk; got None": {"activation_fn_str": "topk"},
    "k from 1 to 6 for topk; got 7": {"architecture": "topk", "k": 7},
    r"standard of .*'W_enc': \(5, 6\).*cfg.json {'d_in': 7": {"d_in": 7},
    r"jumprelu of {'b_enc': .*'threshold': \(6,\)": {"architecture": "jumprelu"},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_read(message, tmp_path):
    _written(tmp_path, REFUSED[message])
    with pytest.raises(StoreError, match=message) as caught:
        read_saelens(tmp_path)
    assert "Error(" not in str(caught.value)


def test_tensors_that_cannot_be_read(tmp_path):
    _written(tmp_path, {}, W_skip=None)
    with pytest.raises(StoreError, match=r"standard of .*; got .*'W_skip': \(6,\)"):
        read_saelens(tmp_path)
    _written(tmp_path, {}, scaling_factor=None)
    with pytest.raises(StoreError, match="scaling_factor of ones, as finetuning_scaling_factor is"):
        read_saelens(tmp_path)
    _written(tmp_path, {}, b_enc=torch.full((6,), torch.nan))
    with pytest.raises(StoreError, match="finite numbers; got NaN or infinite ones in b_enc"):
        read_saelens(tmp_path)
    _written(tmp_path, {}, W_enc=torch.zeros(3))
    with pytest.raises(StoreError, match=r"expected W_enc \[d_in, d_sae\]"):
        read_saelens(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(StoreError, match=r"expected cfg\.json and sae_weights"):
        read_saelens(tmp_path / "nothing")
    _written(tmp_path, {})
    (tmp_path / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StoreError, match=r"sae_weights.safetensors: not readable as safetensors"):
        read_saelens(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(StoreError, match=r"expected cfg\.json and sae_weights"):
        read_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(StoreError, match="expected options in a table; got list"):
        read_saelens(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(StoreError, match=r"cfg\.json: not readable as json"):
        read_saelens(tmp_path)


def test_what_was_read_can_be_kept_and_written_again(tmp_path):
    _written(tmp_path / "sae", *READ["gated"][:1])
    found = read_saelens(tmp_path / "sae")
    rows = torch.randn(30, 5)
    loadings = found.encode(rows)
    found.save(tmp_path / "kept")
    kept = load_dictionary(tmp_path / "kept")
    assert kept.training is None
    assert torch.equal(kept.encode(rows), loadings)
    write_saelens(found, tmp_path / "again")
    torch.testing.assert_close(read_saelens(tmp_path / "again").encode(rows), loadings)
    assert quality(found, rows).n_rows == 30
