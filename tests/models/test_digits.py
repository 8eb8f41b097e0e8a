"""The embedded network: accurate on images it never saw, the same every time, cached safely."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import condec.models.digits as digits
from condec.data import load_data
from condec.models import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds freshly trained weights."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        load_model("digits")
    return home


@pytest.fixture
def cache(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained))
    return trained / "condec"


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("trained although the weights were cached")

    monkeypatch.setattr(digits, "trained", refuse)


@pytest.mark.usefixtures("cache", "untrainable")
def test_right_on_the_half_it_never_saw() -> None:
    loaded = load_model("digits")
    inputs = load_data("digits", preprocess=loaded.preprocess)
    with torch.no_grad():
        predicted = loaded.model(inputs.batch(range(len(inputs)))).argmax(1)
    accuracy = (predicted == inputs.labels).float().mean().item()
    assert 0.975 <= accuracy < 1.0
    assert not loaded.model.training
    assert loaded.input_shape == inputs.sample_shape == (1, 8, 8)
    assert loaded.label_names == inputs.label_names == tuple("0123456789")


@pytest.mark.usefixtures("cache")
def test_training_again_gives_the_same_weights_and_leaves_the_callers_seed_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = digits.trained(*digits._training_half(), epochs=2)
    torch.manual_seed(8)
    with torch.no_grad():
        again = digits.trained(*digits._training_half(), epochs=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.manual_seed(7)
    assert load_model("digits").model.linear.weight.shape == (10, 256)
    assert torch.equal(state, torch.get_rng_state())
    digits.trained(*digits._training_half(), epochs=2)
    assert torch.equal(state, torch.get_rng_state())


def test_held_out_images_are_not_among_the_training_images() -> None:
    seen = {image.numpy().tobytes() for image in digits._training_half()[0]}
    held_out = load_data("digits")
    fresh = [held_out.load(i).numpy().tobytes() not in seen for i in range(len(held_out))]
    assert len(seen) == 900
    assert len(held_out) == 897
    assert all(fresh)


@pytest.mark.parametrize("damage", ["cut", "other network", "a bit"])
def test_damaged_cache_is_made_anew(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    state = load_file(next(cache.glob("digits-*.safetensors")))
    monkeypatch.setattr(digits, "trained", lambda *_: state)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_model("digits")
    file = next((tmp_path / "condec").glob("digits-*.safetensors"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "a bit":
        content = bytearray(file.read_bytes())
        content[-3] ^= 64  # of a weight: a valid file of another network
        file.write_bytes(content)
    else:
        save_file({"weight": torch.zeros(3)}, file)
    load_model("digits")
    assert load_file(file).keys() == state.keys()


def test_unwritable_cache_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    state = load_file(next(cache.glob("digits-*.safetensors")))
    monkeypatch.setattr(digits, "trained", lambda *_: state)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_model("digits").label_names is not None


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "condec" / "digits.safetensors"
    state = digits.DigitsNet().state_dict()
    file.parent.mkdir()
    seen: list[bool] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(10):
                digits.write_file(file, digits.save(state))
                seen.append(load_file(file).keys() == state.keys())
        except Exception as error:  # noqa: BLE001  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == [True] * 30
    assert [path.name for path in file.parent.iterdir()] == ["digits.safetensors"]
