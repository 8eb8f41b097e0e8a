"""torchvision and timm: their import beside a foreign torch build, weights, preprocessing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from condec.basis.errors import DependencyError, ModelError, OptionError
from condec.models import load_model
from condec.models.library import classifier, import_optional, load_weights
from condec.models.torchvision import import_torchvision


def picture(height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_torchvision_model_with_its_preprocessing() -> None:
    from PIL import Image

    loaded = load_model("torchvision:squeezenet1_1")
    assert loaded.input_shape == (3, 224, 224)
    assert loaded.preprocess is not None
    raw = picture(300, 400)
    got = loaded.preprocess(raw)
    weights = import_torchvision().models.SqueezeNet1_1_Weights.DEFAULT
    wanted = weights.transforms()(Image.fromarray(raw[0].numpy()))
    assert torch.equal(got[0], wanted)
    assert loaded.model(got).shape == (1, 1000)
    assert loaded.preprocess(raw[..., :1]).shape == (1, 3, 224, 224)


def test_random_weights_are_the_same_every_time() -> None:
    torch.manual_seed(3)
    first = load_model("torchvision:squeezenet1_1").model.state_dict()
    second = load_model("torchvision:squeezenet1_1").model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_timm_model_with_its_preprocessing() -> None:
    loaded = load_model("timm:resnet10t")
    assert loaded.input_shape == (3, 176, 176)
    assert loaded.preprocess is not None
    got = loaded.preprocess(picture(200, 260))
    assert got.shape == (1, 3, 176, 176)
    assert loaded.model(got).shape == (1, 1000)
    assert not loaded.model.training


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    state = load_model("torchvision:squeezenet1_1").model.state_dict()
    state = {name: value + 1 for name, value in state.items()}
    file = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state}, file)  # noqa: TID251  # as training scripts leave it
    else:
        save_file(state, file)
    loaded = load_model("torchvision:squeezenet1_1", file.name, folder=tmp_path)
    assert all(torch.equal(state[name], value) for name, value in loaded.model.state_dict().items())


def test_weights_with_a_flipped_bit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(torch.nn.Linear(40, 40).state_dict(), file)  # noqa: TID251
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"w.pt: cannot be .* the checksum of .*data/0 does not fit"
    ):
        load_weights(torch.nn.Linear(40, 40), file)


def test_weights_that_run_code_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "whole_model.pt"
    torch.save(torch.nn.Linear(2, 2), file)  # noqa: TID251
    with pytest.raises(
        ModelError,
        match=r"it holds Python objects torch.nn.*Linear, whose code condec never runs.*save_file",
    ):
        load_weights(torch.nn.Linear(2, 2), file)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "extra": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"1 entries missing \(bias\), 1 unexpected \(extra\)"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    save_file({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match=r"do not fit Linear: .*size mismatch"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "b.safetensors")
    torch.save([1, 2], tmp_path / "c.pt")  # noqa: TID251
    with pytest.raises(ModelError, match="expected tensors by name; got list"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet5O", "torchvision has no classifier 'resnet5O'; nearest of .*resnet50"),
        ("timm:resnet10x", "timm has no classifier 'resnet10x'; nearest of .*resnet10t"),
        ("tim:resnet10t", "'tim:resnet10t': expected one of .*Did you mean 'timm'?"),
        ("torchvision", "expected one of digits, torchvision:NAME, .*, circuit"),
        ("", "expected one of digits"),
    ],
)
def test_unknown_names_list_the_nearest(spec: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_model(spec)


def test_digits_takes_no_weights() -> None:
    with pytest.raises(OptionError, match="'digits' brings its own weights"):
        load_model("digits", "default")


def test_failed_download_says_what_to_do() -> None:
    def offline(trained: bool) -> torch.nn.Module:
        raise OSError("no route to host")

    with pytest.raises(ModelError, match=r"could not be fetched .*no route to host.*give a file"):
        classifier("timm:resnet10t", "default", Path(), offline)


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(DependencyError, match=r"a_package_nobody_has.*condec\[vision\]"):
        import_optional("a_package_nobody_has")


FOREIGN_BUILD = """
import importlib, torch
from condec.basis.errors import DependencyError
from condec.models import torchvision as ours

calls, message = [], "operator torchvision::nms does not exist"

def first_fails(name):
    calls.append(name)
    if len(calls) == 1:
        raise RuntimeError(message)
    return "imported"

importlib.import_module = first_fails
assert ours.import_torchvision() == "imported", calls
assert torch.ops.torchvision.nms.default and torch.ops.torchvision.qnms.default
assert calls == ["torchvision", "torchvision"]
# Asked for again after the repair.
assert ours.import_torchvision() == "imported"
assert len(ours._DECLARED) == 1

calls, message = [], "undefined symbol"
try:
    ours.import_torchvision()
except DependencyError as error:
    assert "fails: undefined symbol" in str(error)
else:
    raise SystemExit(1)
"""


def test_a_foreign_build_gets_the_two_schemas_and_other_failures_are_reported() -> None:
    """In a process of its own: schemas of torch cannot be taken back."""
    subprocess.run([sys.executable, "-c", FOREIGN_BUILD], check=True)


# --- what wrapped a model ----------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "net."])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_a_prefix_of_all_names_is_taken_off_and_said(
    tmp_path: Path, prefix: str, key: str | None
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    wanted = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    state = {f"{prefix}{name}": tensor for name, tensor in wanted.items()}
    torch.save(state if key is None else {key: state}, tmp_path / "w.pt")  # noqa: TID251
    with pytest.warns(UserWarning, match=f"w.pt: all 7 names begin with '{prefix}', as what wraps"):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(wanted[name], tensor) for name, tensor in model.state_dict().items())


def test_a_prefix_that_belongs_to_the_model_stays(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")


def test_a_prefix_of_some_names_is_not_taken_off(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2, 2), "bias": torch.ones(2)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 entries missing \(weight\), 1 unexpected \(module.w"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")
    save_file({"module.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with (
        pytest.warns(UserWarning, match="all 1 names begin with 'module.'"),
        pytest.raises(ModelError, match=r"1 entries missing \(bias\), 0 unexpected"),
    ):
        load_weights(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")
