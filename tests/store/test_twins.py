"""Twin stores: what differs from the real one, what must not, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from condec.attribution import IntegratedGradients
from condec.attribution.precision import Compute
from condec.attribution.targets import Label, Margin, Predicted, TopK
from condec.basis.errors import DataError, OptionError, StoreError
from condec.data import Inputs, as_inputs, load_data
from condec.models import load_model
from condec.store.collection import collect
from condec.store.random_weights import randomize
from condec.store.statistics import layer_statistics
from condec.store.store import Store
from condec.store.twins import (
    TWINS,
    RandomWeights,
    ShuffledLabels,
    Twin,
    collect_twin,
    is_twin,
)
from condec.testing.models import small_resnet
from small_runs import contents


def images(n: int = 10) -> torch.Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def labels(n: int = 10) -> torch.Tensor:
    found = torch.arange(n) % 3
    found[4] = -1
    return found


OPTIONS: dict[str, Any] = {
    "method": IntegratedGradients(steps=3), "batch_size": 4, "shard_size": 4, "progress": False,
}  # fmt: skip


def real(out: Path, model: nn.Module | None = None, **options: Any) -> Store:
    data = options.pop("data", (images(), labels()))
    return collect(model or small_resnet(), data, "block*", out=out, **(OPTIONS | options))


def twin(kind: Twin, out: Path, model: nn.Module | None = None, **options: Any) -> Store:
    data = options.pop("data", (images(), labels()))
    model = model or small_resnet()
    return collect_twin(kind, model, data, "block*", out=out, **(OPTIONS | options))


def norm_net() -> nn.Sequential:
    """conv-BN-relu, then pooling and linear."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()),
            nn.Flatten(), nn.Linear(48, 3),
        ).eval()  # fmt: skip


# --- random weights -----------------------------------------------------------------------


def test_numbers_are_those_of_the_network_with_weights_drawn_again(tmp_path: Path) -> None:
    found = twin(RandomWeights(seed=2), tmp_path / "t")
    wanted = real(tmp_path / "w", randomize(small_resnet(), seed=2))
    assert found.sample_ids == wanted.sample_ids
    assert torch.equal(found.labels, wanted.labels)
    for site in ("block1", "block2"):
        for quantity in ("contribution", "activation"):
            ours, theirs = (s.matrix(site, quantity, "concat") for s in (found, wanted))  # type: ignore[arg-type]
            assert torch.equal(ours, theirs)
    trained = real(tmp_path / "r")
    assert not torch.allclose(trained.matrix("block2"), found.matrix("block2"))


def test_recipe_is_the_real_ones_and_the_control(tmp_path: Path) -> None:
    trained = real(tmp_path / "r")
    found = twin(RandomWeights(seed=2, from_module="block2"), tmp_path / "t").recipe
    kind = found.pop("twin")
    assert found == trained.recipe
    parameters = kind.pop("parameters")
    assert kind == {"name": "RandomWeights", "seed": 2, "from_module": "block2"}
    assert len(parameters) == 16
    mixed = twin(ShuffledLabels(seed=1), tmp_path / "s").recipe
    assert mixed.pop("twin") == {"name": "ShuffledLabels", "seed": 1}
    assert mixed == trained.recipe


def test_before_the_first_module_drawn_activations_are_the_trained_ones(tmp_path: Path) -> None:
    trained = real(tmp_path / "r")
    found = twin(RandomWeights(from_module="block2"), tmp_path / "t")
    same = [
        torch.equal(trained.matrix(site, "activation"), found.matrix(site, "activation"))
        for site in ("block1", "block2")
    ]
    assert same == [True, False]
    # Contributions at the first block depend on what lies behind it.
    assert not torch.equal(trained.matrix("block1"), found.matrix("block1"))


def test_batch_normalization_is_estimated_on_samples_spread_over_the_data(tmp_path: Path) -> None:
    many = images(600)
    many[300:] += 4
    data = as_inputs(many)
    found = collect_twin(
        RandomWeights(), norm_net(), data, "0", out=tmp_path / "t", method=OPTIONS["method"],
        progress=False, shard_size=600, batch_size=300,
    )  # fmt: skip
    rows = [index * 600 // 256 for index in range(256)]
    batches = [many[rows[start : start + 64]] for start in range(0, 256, 64)]
    wanted = collect(
        randomize(norm_net(), inputs=batches), data, "0", out=tmp_path / "w",
        method=OPTIONS["method"], progress=False, shard_size=600, batch_size=300,
    )  # fmt: skip
    assert torch.equal(found.matrix("0", "activation"), wanted.matrix("0", "activation"))
    # Half of the inputs are brighter: statistics of the first ones alone would not do.
    assert float(found.matrix("0", "activation").gt(0).float().mean()) > 0.5


def test_same_seed_same_bytes_other_seed_other_numbers(tmp_path: Path) -> None:
    one = twin(RandomWeights(seed=1), tmp_path / "a")
    torch.manual_seed(6)
    again = twin(RandomWeights(seed=1), tmp_path / "b")
    other = twin(RandomWeights(seed=2), tmp_path / "c")
    assert contents(one.path) == contents(again.path)
    assert not torch.equal(one.matrix("block2"), other.matrix("block2"))


@pytest.mark.parametrize("kind", [RandomWeights(), ShuffledLabels()], ids=lambda c: c.name)
def test_resumes_to_the_same_bytes(tmp_path: Path, kind: Twin) -> None:
    trained = real(tmp_path / "r")
    whole = twin(kind, tmp_path / "whole", of=trained)
    part = twin(kind, tmp_path / "part", of=trained)
    (part.path / "manifest" / "shard-00001.json").unlink()
    (part.path / "manifest" / "shard-00002.json").unlink()
    assert part.open(part.path).missing() == (1, 2)
    assert twin(kind, part.path, of=trained).missing() == ()
    assert contents(part.path) == contents(whole.path)
    whole.verify()


def test_statistics_in_other_last_bits_do_not_stop_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudged(*args: Any, **kwargs: Any) -> nn.Module:
        net = randomize(*args, **kwargs)
        net[0][1].running_mean *= 1 + 1e-6  # type: ignore[index]
        return net

    def made() -> Store:
        return collect_twin(
            RandomWeights(), norm_net(), images(64), "0", out=tmp_path / "t", **OPTIONS
        )

    found = made()
    monkeypatch.setattr("condec.store.twins.randomize", nudged)
    assert made().config_hash == found.config_hash


def test_another_control_at_that_place_is_refused(tmp_path: Path) -> None:
    twin(RandomWeights(), tmp_path / "t")
    with pytest.raises(StoreError, match=r"another recipe:\n(.*\n)*.*twin.seed: had 0, wants 1"):
        twin(RandomWeights(seed=1), tmp_path / "t")
    real(tmp_path / "r")
    with pytest.raises(StoreError, match=r"another recipe:\n(.*\n)*.*twin.name: had nothing"):
        twin(RandomWeights(), tmp_path / "r")


def test_unusable_inputs_are_left_out_of_both(tmp_path: Path) -> None:
    bad = images(10)
    bad[3] = torch.nan
    options: dict[str, Any] = {"data": (bad, labels(10)), "on_bad": "skip"}
    trained = real(tmp_path / "r", norm_net_of(), **options)
    found = twin(RandomWeights(), tmp_path / "t", norm_net_of(), **options)
    assert torch.equal(found.valid, trained.valid)
    assert bool(found.matrix("block1").isfinite().all())
    with pytest.raises(DataError, match=r"sample '3'"):
        twin(RandomWeights(), tmp_path / "u", norm_net_of(), data=options["data"])


def norm_net_of() -> nn.Module:
    """The small residual network with a normalization in front."""
    net = small_resnet()
    net.stem = nn.Sequential(net.stem, nn.BatchNorm2d(4))  # type: ignore[assignment]
    return net.eval()


def test_the_trained_digits_model_differs_from_its_twin(tmp_path: Path) -> None:
    model, data = load_model("digits").model, load_data("digits", limit=60)
    options: dict[str, Any] = {"method": IntegratedGradients(steps=4), "progress": False}
    trained = collect(model, data, "block*", out=tmp_path / "r", target=Predicted(), **options)
    found = collect_twin(
        RandomWeights(), model, data, "block*", out=tmp_path / "t", target=Predicted(), **options
    )
    ours, theirs = layer_statistics(trained), layer_statistics(found)
    for name in ("hoyer_contribution", "dims95_contribution", "sign_correlation"):
        assert ((ours[name] - theirs[name]).abs() > 0.02).sum() >= 3, name
    assert float((found.labels == found.predictions).float().mean()) < 0.5
    assert float((trained.labels == trained.predictions).float().mean()) > 0.9


# --- shuffled labels ----------------------------------------------------------------------


def test_labels_are_permuted_among_the_labelled_and_none_keeps_its_own() -> None:
    before = labels(60)
    kept = before.clone()
    after = ShuffledLabels().shuffle(before)
    assert torch.equal(before, kept)
    assert torch.equal(before == -1, after == -1)
    assert torch.equal(before.sort().values, after.sort().values)
    assert torch.equal(after, ShuffledLabels().shuffle(before))
    assert not torch.equal(after, ShuffledLabels(seed=1).shuffle(before))
    for seed in range(50):
        own = torch.tensor([3, 0, -1, 1, 2])
        assert (ShuffledLabels(seed=seed).shuffle(own) == own).tolist() == [0, 0, 1, 0, 0]


def test_numbers_are_copied_and_equal_those_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = images()
    bad[7] = torch.nan
    options: dict[str, Any] = {"data": (bad, labels()), "on_bad": "skip", "target": TopK()}
    trained = real(tmp_path / "r", **options)
    collected = twin(ShuffledLabels(), tmp_path / "c", **options)
    with monkeypatch.context() as patch:
        patch.setattr("condec.store.twins.collect", lambda *_, **__: pytest.fail("computed again"))
        copied = twin(ShuffledLabels(), tmp_path / "t", of=trained, **options)
    assert contents(copied.path) == contents(collected.path)
    copied.verify()
    wanted = ShuffledLabels().shuffle(labels())[trained.valid]
    assert copied.labels.tolist() == wanted.tolist() != trained.labels.tolist()
    assert torch.equal(copied.matrix("block1"), trained.matrix("block1"))
    assert torch.equal(copied.target, trained.target)
    assert copied.sample_ids == trained.sample_ids


def test_a_target_that_uses_labels_is_collected(tmp_path: Path) -> None:
    full = torch.arange(10) % 3
    options: dict[str, Any] = {"target": Label(), "data": (images(), full)}
    trained = real(tmp_path / "r", **options)
    found = twin(ShuffledLabels(), tmp_path / "t", of=trained, **options)
    other = ShuffledLabels().shuffle(full)
    wanted = real(tmp_path / "w", target=Label(), data=(images(), other))
    assert torch.equal(found.matrix("block2"), wanted.matrix("block2"))
    assert not torch.equal(found.matrix("block2"), trained.matrix("block2"))
    assert found.recipe["data"] == trained.recipe["data"] != wanted.recipe["data"]
    assert is_twin(found, trained)


def test_which_twins_change_the_numbers() -> None:
    assert RandomWeights().changes_numbers(TopK())
    assert not ShuffledLabels().changes_numbers(TopK())
    assert not ShuffledLabels().changes_numbers(lambda output: output[:, 0])
    assert ShuffledLabels().changes_numbers(Label())
    assert ShuffledLabels().changes_numbers(Margin())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": small_resnet(seed=3)}, r'  model: had "SmallResNet \w+", wants "SmallResNet'),
        ({"data": (images() + 1, labels())}, r'  data: had "\w+", wants'),
        ({"method": IntegratedGradients(steps=4)}, r"  method.steps: had 3, wants 4\n"),
        (
            {"compute": Compute(precision="bfloat16")},
            r'  compute.precision: had "model", wants "bfloat',
        ),
        ({"target": Predicted()}, r'(  .*\n)*  target.name: had "TopK", wants "Pred'),
        ({"sites": "block1"}, r"  sites: had .*block2.*, wants \[.block1.\]"),
    ],
)
def test_a_store_of_something_else_is_not_copied(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    trained = real(tmp_path / "r")
    given: dict[str, Any] = {"model": small_resnet(), "data": (images(), labels())}
    given |= {"sites": "block*"} | OPTIONS | changes
    with pytest.raises(StoreError, match=rf"not the real store of this twin:\n{line}"):
        collect_twin(ShuffledLabels(), out=tmp_path / "t", of=trained, **given)
    assert not (tmp_path / "t").exists()


def test_a_store_of_another_number_of_samples_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of a source whose fingerprint sees some samples only.
    monkeypatch.setattr(Inputs, "fingerprint", "the same")
    trained = real(tmp_path / "r", data=(images(12), labels(12)))
    with pytest.raises(StoreError, match="  n_samples: had 12, wants 10"):
        twin(ShuffledLabels(), tmp_path / "t", of=trained)


# --- what cannot be -----------------------------------------------------------------------


def test_a_module_that_is_not_there_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"random weights from 'blok2': .* nearest: block2"):
        twin(RandomWeights(from_module="blok2"), tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (images(), r"labels missing, and the twin shuffled-labels needs them"),
        ((images(), torch.full((10,), -1)), r"labels missing, and the twin shuffled-labels"),
        ((images(), torch.ones(10, dtype=torch.int64)), r"needs two different labels or more"),
    ],
)
def test_labels_that_cannot_be_shuffled(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        twin(ShuffledLabels(), tmp_path / "t", data=data)


def test_which_stores_are_twins(tmp_path: Path) -> None:
    trained = real(tmp_path / "r")
    assert is_twin(twin(ShuffledLabels(), tmp_path / "b", of=trained), trained)
    assert not is_twin(trained, trained)
    steps = IntegratedGradients(steps=2)
    assert not is_twin(twin(RandomWeights(), tmp_path / "c", method=steps), trained)
    assert not is_twin(twin(RandomWeights(), tmp_path / "d", small_resnet(seed=1)), trained)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RandomWeights(), "random-weights"),
        (RandomWeights(from_module="a.b", seed=3), "random-weights:a.b#3"),
        (ShuffledLabels(), "shuffled-labels"),
        (ShuffledLabels(seed=1), "shuffled-labels#1"),
    ],
)
def test_names(kind: Twin, name: str) -> None:
    assert kind.name == name
    assert TWINS.parse(name) == kind


@pytest.mark.parametrize("text", ["random", "shuffled-labels:fc", "random-weights#x", ""])
def test_texts_of_no_twin(text: str) -> None:
    with pytest.raises(OptionError, match=rf"twin '{text}': expected random-weights.*\[#SEED\], "):
        TWINS.parse(text)
