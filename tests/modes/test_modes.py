"""Modes: alive ones with their numbers, correlated with labels on the split that is asked for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condec.attribution import ActGrad
from condec.attribution.targets import Logit, Target, TopK
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.files import with_checksum
from condec.dictionary import (
    PCA,
    Dictionary,
    KMeans,
    TopKSAE,
    TrainConfig,
    fit,
    load_dictionary,
    read_saelens,
    write_saelens,
)
from condec.modes.modes import Modes
from condec.run import config
from condec.run.plan import LEARNERS
from condec.store.collection import collect
from condec.store.store import Store
from condec.testing.models import small_resnet

# Dictionaries of a few dozen rows may well have modes that no held-out row uses.
pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")

N = 60


def images() -> torch.Tensor:
    return torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    labels = torch.arange(N) % 3
    labels[7] = -1
    out = tmp_path_factory.mktemp("modes") / "s.zarr"
    sites, data = "block*, block1.conv2", (images(), labels)
    return collect(small_resnet(), data, sites, out=out, method=ActGrad(), progress=False)


@pytest.fixture(scope="module")
def dictionary(store: Store) -> Dictionary:
    return fit(KMeans(n_modes=4), store.matrix("block2")).dictionary


HELD_OUT = torch.arange(0, N, 4)


@pytest.fixture(scope="module")
def modes(store: Store, dictionary: Dictionary) -> Modes:
    return Modes.build(dictionary, store, "block2", held_out_rows=HELD_OUT)


def test_only_alive_modes_with_their_numbers(modes: Modes, dictionary: Dictionary) -> None:
    loadings = dictionary.encode(modes.matrix())
    alive = [k for k in range(4) if bool((loadings[:, k] > 0).any())]
    assert modes.ids.tolist() == alive
    assert torch.equal(modes.loadings, loadings[:, alive])
    assert torch.equal(modes.atoms, dictionary.atoms[alive])
    assert len(modes) == len(alive)
    assert modes.share_dead == 1 - len(alive) / 4


def test_dead_modes_are_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = fit(PCA(n_modes=3), store.matrix("block1")).dictionary
    encode = type(dictionary).encode

    def without_second(self: Dictionary, matrix: torch.Tensor) -> torch.Tensor:
        loadings = encode(self, matrix).clone()
        loadings[:, 1] = 0
        return loadings

    monkeypatch.setattr(type(dictionary), "encode", without_second)
    modes = Modes.build(dictionary, store, "block1")
    assert modes.ids.tolist() == [0, 2]
    assert modes.share_dead == pytest.approx(1 / 3)


@pytest.mark.parametrize("split", ["all", "train", "held_out"])
def test_correlation_is_pearson_on_the_split(modes: Modes, split) -> None:  # type: ignore[no-untyped-def]
    rows = {"all": range(N), "train": set(range(N)) - set(HELD_OUT.tolist()),
            "held_out": HELD_OUT.tolist()}[split]  # fmt: skip
    rows = [row for row in rows if row != 7]  # the unlabelled sample
    found = modes.correlation(split=split)
    for mode in range(len(modes)):
        for label in range(found.shape[1]):
            a = modes.loadings[rows, mode].double().numpy()
            b = (modes.store.labels[rows] == label).double().numpy()
            expected = 0.0 if a.std() == 0 or b.std() == 0 else np.corrcoef(a, b)[0, 1]
            assert float(found[mode, label]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(found, modes.correlation(modes.store.labels, split=split))


def test_best_ranks_by_correlation_on_the_training_rows(modes: Modes) -> None:
    train = modes.correlation(split="train")
    for label in range(train.shape[1]):
        ranked = [modes.best(label, rank) for rank in range(len(modes))]
        assert [m.correlation for m in ranked] == sorted(train[:, label].tolist(), reverse=True)
        first = ranked[0]
        assert first.id == int(modes.ids[first.mode])
        assert torch.equal(first.atom, modes.atoms[first.mode])
        assert torch.equal(first.loadings, modes.loadings[:, first.mode])


def test_held_out_rows_are_those_of_the_same_samples(store: Store, tmp_path: Path) -> None:
    fitted = fit(KMeans(n_modes=3), store.rows("block2")).dictionary
    fitted.save(tmp_path / "dictionary")
    known = load_dictionary(tmp_path / "dictionary")
    assert known.digest == fitted.digest
    assert fit(KMeans(n_modes=3), store.matrix("block2")).dictionary.digest == fitted.digest
    first = Modes.build(known, store, "block2").held_out
    assert int(first.sum()) == N / 5

    def other(name: str, x: torch.Tensor, target: Target) -> Modes:
        options: dict[str, Any] = {"out": tmp_path / name, "target": target, "progress": False}
        made = collect(small_resnet(), (x, store.labels), "block2", method=ActGrad(), **options)
        return Modes.build(known, made, "block2")

    assert torch.equal(other("target", images(), Logit(1)).held_out, first)
    assert not other("data", images().flip(0), TopK(1)).held_out.any()
    assert known.training is not None
    before = replace(known, training=replace(known.training, origin=""))  # of an earlier version
    assert before.training is not None
    assert "origin" not in before.training.to_dict()
    assert torch.equal(Modes.build(before, store, "block2").held_out, first)


def test_a_label_without_training_rows_has_no_best_mode(modes: Modes) -> None:
    label = int(modes.store.labels.max())
    other = replace(modes, held_out=modes.store.labels == label)
    with pytest.raises(DataError, match=f"no sample of the split train has label {label}, so no"):
        other.best(label)
    assert other.best(label, split="held_out").mode == 0  # alone there: correlations are 0


def test_modes_with_another_split_are_correlated_anew(modes: Modes) -> None:
    before = modes.correlation(split="held_out")
    other = replace(modes, held_out=~modes.held_out)
    assert torch.equal(other.correlation(split="train"), before)
    assert not torch.equal(other.correlation(split="held_out"), before)


@pytest.mark.parametrize("sign", ["positive", "negative", "sum", "concat"])
def test_every_sign_and_quantity(store: Store, sign, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    matrix = store.matrix("block1.conv2", quantity="activation", sign=sign)
    learned = fit(PCA(n_modes=2), matrix).dictionary
    modes = Modes.build(learned, store, "block1.conv2", sign, quantity="activation")
    assert torch.equal(modes.matrix(), matrix)
    assert modes.atoms.shape == (2, 8 if sign == "concat" else 4)


def test_saved_and_loaded_modes_are_equal(modes: Modes, store: Store, tmp_path: Path) -> None:
    for _ in range(2):  # the second time replaces the first
        path = modes.save(tmp_path)
    assert path == tmp_path / "modes.zarr"
    again = Modes.load(tmp_path, store)
    for name in ("atoms", "loadings", "ids", "held_out"):
        assert torch.equal(getattr(again, name), getattr(modes, name))
    assert (again.site, again.sign, again.quantity, again.n_modes, again.name) == (
        modes.site, "positive", "contribution", 4, "modes",
    )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["modes.zarr"]


@pytest.mark.parametrize("name", ["atoms", "loadings", "ids", "held_out"])
def test_arrays_that_are_gone_or_changed_are_refused(
    modes: Modes, store: Store, name: str, tmp_path: Path
) -> None:
    whole = modes.save(tmp_path / "whole")
    for damage in ("chunk", "array", "bit", "fill"):
        path = tmp_path / damage / "modes.zarr"
        shutil.copytree(whole, path)
        (chunk,) = (file for file in (path / name / "c").rglob("*") if file.is_file())
        file = path / name / "zarr.json"
        match damage:
            case "chunk":
                chunk.unlink()
            case "array":
                shutil.rmtree(path / name)
            case "bit":
                chunk.write_bytes(chunk.read_bytes()[:-1] + bytes([chunk.read_bytes()[-1] ^ 4]))
            case "fill":
                file.write_text(file.read_text().replace('"fill_value"', '"fill_value" '))
        with pytest.raises(StoreError, match=rf"{name} are damaged, or of other modes.*Fit again"):
            Modes.load(path.parent, store)


def test_words_that_changed_are_refused(modes: Modes, store: Store, tmp_path: Path) -> None:
    file = modes.save(tmp_path) / "zarr.json"
    kept = file.read_text()
    file.write_text(kept.replace('"positive"', '"negative"'))
    with pytest.raises(StoreError, match=r"cannot be read as modes .*the checksum that it states"):
        Modes.load(tmp_path, store)
    file.write_text(kept.replace('"schema": 2', '"schema": 1'))
    with pytest.raises(StoreError, match=r"written in schema 1; .* reads schema 2.*encode again"):
        Modes.load(tmp_path, store)


def test_modes_beside_another_dictionary_are_refused(
    modes: Modes, dictionary: Dictionary, store: Store, tmp_path: Path
) -> None:
    modes.save(tmp_path)
    assert Modes.load(tmp_path, store).encoder is None
    dictionary.save(tmp_path)
    again = Modes.load(tmp_path, store)
    assert again.dictionary == dictionary.digest
    assert again.encoder is not None
    assert again.encoder.digest == dictionary.digest
    assert modes.encoder is dictionary
    assert "encoder" not in repr(again)
    m_dictionary(modes).save(tmp_path)
    with pytest.raises(StoreError, match="encoded by another dictionary than the one beside it"):
        Modes.load(tmp_path, store)


def test_a_pair_is_replaced_at_once(
    modes: Modes, dictionary: Dictionary, store: Store, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place, other = tmp_path / "pair", m_dictionary(modes)
    later = Modes.build(other, store, "block2")
    modes.save(place, dictionary)
    real = Path.rename
    for n_renames in range(2):  # killed before the earlier pair is moved away, and after
        renames = []

        def rename(self: Path, to: Path, left: int = n_renames, seen: Any = renames) -> Path:
            if self.name == "pair" or ".pair." in self.name:
                seen.append(self)
                if len(seen) > left:
                    raise KeyboardInterrupt
            return real(self, to)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                later.save(place, other)
        assert load_dictionary(place).digest == dictionary.digest
        assert torch.equal(Modes.load(place, store).loadings, modes.loadings)
    later.save(place, other)
    assert torch.equal(Modes.load(place, store).loadings, later.loadings)
    assert sorted(file.name for file in place.iterdir()) == [
        "dictionary.json", "dictionary.safetensors", "modes.zarr",
    ]  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["pair"]
    (place / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds notes\.txt besides a dictionary and its modes"):
        modes.save(place, dictionary)


def test_modes_are_readable_by_xarray(modes: Modes, tmp_path: Path) -> None:
    import xarray

    dataset = xarray.open_zarr(modes.save(tmp_path), consolidated=False, chunks=None)
    assert dataset["loadings"].dims == ("sample", "mode")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.best(9), OptionError, "label 9 is out of range; the store's labels are 0 to"),
        (lambda m: m.best(0, rank=99), OptionError, "rank 99 is out of range; . modes are alive"),
        (lambda m: m.samples("test"), OptionError, "one of all, train, held_out; got 'test'"),
        (lambda m: m.correlation(torch.ones(3).long()), DataError, r"whole numbers of shape \(60,"),
        (
            lambda m: built(m, held_out_rows=m.held_out),
            OptionError,
            r"expected numbers of rows, got torch.bool. Of a mask take",
        ),
        (
            lambda m: built(m, held_out_rows=[N]),
            OptionError,
            "held_out_rows: expected rows 0 to 59",
        ),
        (lambda m: built(m, sign="concat"), DataError, "4"),
        (lambda m: Modes.load(Path("nowhere"), m.store), StoreError, "no modes are there"),
    ],
)
def test_bad_requests_are_explained(unchecked: None, modes: Modes, call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call(modes)


def built(modes: Modes, **options: Any) -> Modes:
    return Modes.build(m_dictionary(modes), modes.store, "block2", **options)


def m_dictionary(modes: Modes) -> Dictionary:
    return fit(PCA(n_modes=2), modes.matrix()).dictionary


def test_rows_held_out_are_those_of_the_dictionary(store: Store, dictionary: Dictionary) -> None:
    assert dictionary.training is not None
    modes = Modes.build(dictionary, store, "block2")
    assert modes.held_out.nonzero().flatten().tolist() == dictionary.training.held_out_rows.tolist()


def test_a_mode_that_only_subtracts_is_not_alive(
    store: Store, dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Dictionary.encode

    def second_is_negative(self: Dictionary, matrix: torch.Tensor) -> torch.Tensor:
        loadings = encode(self, matrix)
        loadings[:, 1] = -1.0
        return loadings

    monkeypatch.setattr(Dictionary, "encode", second_is_negative)
    assert 1 not in Modes.build(dictionary, store, "block2").ids.tolist()


def test_a_dictionary_without_record_holds_nothing_out(
    store: Store, dictionary: Dictionary
) -> None:
    bare = Dictionary(dictionary.learner, dictionary.tensors, dictionary.scale)
    modes = Modes.build(bare, store, "block2")
    with pytest.raises(OptionError, match="no row is in the split 'held_out'"):
        modes.correlation(split="held_out")


@pytest.mark.parametrize("fails", [OSError, KeyboardInterrupt], ids=["refused", "killed"])
@pytest.mark.parametrize("at", [1, 2])
def test_modes_are_readable_whatever_stops_the_switch(
    modes: Modes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, fails: type
) -> None:
    modes.save(tmp_path)
    rename, calls = Path.rename, []

    def stop(self: Path, target: Path) -> Path:
        calls.append(self.name)
        assert len(Modes.load(tmp_path, modes.store)) == len(modes)
        if len(calls) == at:
            raise fails("no")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        if fails is OSError:
            with pytest.raises(StoreError, match=r"modes.zarr: cannot write \(no\)"):
                modes.save(tmp_path)
            assert [path.name for path in tmp_path.iterdir()] == ["modes.zarr"]
        else:
            with pytest.raises(KeyboardInterrupt):
                modes.save(tmp_path)
    assert calls[:at] == ["modes.zarr", ".modes.zarr.new"][:at]
    assert torch.equal(Modes.load(tmp_path, modes.store).loadings, modes.loadings)
    modes.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["modes.zarr"]


def test_modes_print_as_one_table(modes: Modes) -> None:
    text = repr(modes)
    assert text.startswith("Modes\n  atoms     Tensor[")
    assert text.count("\n") < 12
    assert repr(modes.best(0)).startswith("ModeMatch(mode=")


def test_changing_a_correlation_changes_no_other(modes: Modes) -> None:
    before = modes.correlation().clone()
    modes.correlation().fill_(9)
    assert torch.equal(modes.correlation(), before)


def test_modes_of_another_store_are_refused(modes: Modes, tmp_path: Path) -> None:
    other = collect(
        small_resnet(), images(), "block2", out=tmp_path / "o.zarr", method=ActGrad(),
        progress=False,
    )  # fmt: skip
    modes.save(tmp_path)
    with pytest.raises(StoreError, match="modes of another store"):
        Modes.load(tmp_path, other)
    with pytest.raises(DataError, match="labels missing"):
        Modes.build(m_dictionary(modes), other, "block2").best(0)


def test_a_dictionary_read_from_saelens_makes_modes(store: Store, tmp_path: Path) -> None:
    matrix = store.matrix("block2")
    write_saelens(fit(TopKSAE(6, k=2), matrix, config=TrainConfig(steps=40)).dictionary, tmp_path)
    found = read_saelens(tmp_path)
    modes = Modes.build(found, store, "block2", held_out_rows=HELD_OUT)
    loadings = found.encode(matrix)
    alive = (loadings > 0).any(0)
    assert torch.equal(modes.loadings, loadings[:, alive])
    assert torch.equal(modes.atoms, found.atoms[alive])
    modes.save(tmp_path)
    again = Modes.load(tmp_path, store)
    assert torch.equal(again.correlation(), modes.correlation())
    assert again.best(label=int(store.labels.max())).correlation >= 0


def test_examples_of_a_mode_by_a_slow_loop(modes: Modes) -> None:
    store, mode = modes.store, 1
    loading = modes.loadings[:, mode].tolist()
    users = sorted((row for row in range(N) if loading[row] > 0), key=lambda row: -loading[row])
    top = modes.top(mode, 5)
    assert top["row"].tolist() == users[:5]
    assert top["id"].tolist() == [store.sample_ids[row] for row in users[:5]]
    assert top["held_out"].tolist() == [row % 4 == 0 for row in users[:5]]
    typical, middle = modes.typical(mode, 3)["row"].tolist(), len(users) // 2
    assert typical == users[middle - 1 : middle + 2]
    assert modes.typical(mode, 2 * N)["row"].tolist() == users
    drawn = modes.random(mode, N, seed=1)
    assert sorted(drawn["row"]) == sorted(users)
    assert drawn.equals(modes.random(mode, N, seed=1))
    assert not drawn.equals(modes.random(mode, N, seed=2))

    rows = store.matrix("block2", quantity="activation", sign="sum").double()
    atom = modes.atoms[mode].double().abs()
    active = [sum(float(a * w) for a, w in zip(row, atom, strict=True)) for row in rows]
    higher = {
        row: sum(a < active[row] for a in active) - sum(z < loading[row] for z in loading)
        for row in range(N)
    }
    found = modes.counter_examples(mode, N)
    assert [higher[row] for row in found["row"]] == sorted(
        (h for h in higher.values() if h > 0), reverse=True
    )
    assert found["activation"].tolist() == pytest.approx([active[row] for row in found["row"]])


def test_counter_examples_fold_the_halves_of_an_atom(store: Store) -> None:
    dictionary = fit(KMeans(n_modes=2), store.matrix("block2", sign="concat")).dictionary
    found = Modes.build(dictionary, store, "block2", "concat").counter_examples(0, 3)
    assert list(found) == [
        "row", "id", "label", "prediction", "held_out", "loading", "activation",
    ]  # fmt: skip


def test_examples_that_cannot_be_given(modes: Modes, store: Store) -> None:
    with pytest.raises(OptionError, match="no mode in row 9; 4 modes are alive"):
        modes.top(9)
    with pytest.raises(OptionError, match="n must be at least 1; got 0"):
        modes.random(0, 0)
    matrix = store.matrix("block2", quantity="activation")
    active = Modes.build(
        fit(KMeans(n_modes=2), matrix).dictionary, store, "block2", quantity="activation"
    )
    with pytest.raises(DataError, match="modes of activations have no counter-examples"):
        active.counter_examples(0)


# --- modes of places ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("modes") / "places.zarr"
    return collect(
        small_resnet(), images()[:24], "block1.conv2", out=out, method=ActGrad(), shard_size=10,
        progress=False, rows="positions", keep=6,
    )  # fmt: skip


@pytest.mark.parametrize("learner", LEARNERS)
def test_modes_of_places_by_every_learner(places: Store, learner: str, tmp_path: Path) -> None:
    option = {"learner": learner, "n_modes": 3, "steps": 60}
    option |= {"k": 2} if hasattr(LEARNERS[learner], "k") else {}
    plan = config.from_dict({"sites": "*", "fit": option}).fit
    matrix = places.matrix("block1.conv2", rows="positions")
    report = fit(plan.learner, matrix, config=plan.train)
    modes = Modes.build(report.dictionary, places, "block1.conv2", rows="positions")
    assert modes.loadings.shape == (24, len(modes))
    encoded = report.dictionary.encode(matrix).view(24, 6, -1)[..., modes.ids]
    torch.testing.assert_close(modes.loadings, encoded.sum(1) * 6, rtol=1e-4, atol=1e-5)
    assert torch.equal(modes.matrix(), matrix)
    assert int(modes.held_out.sum()) == 5
    modes.save(tmp_path / "m", report.dictionary)
    again = Modes.load(tmp_path / "m", places)
    assert again.rows == "positions"
    assert torch.equal(again.loadings, modes.loadings)


def test_modes_saved_before_there_were_places_are_of_samples(
    modes: Modes, store: Store, tmp_path: Path
) -> None:
    file = modes.save(tmp_path) / "zarr.json"
    record = json.loads(file.read_text())
    del record["attributes"]["rows"]
    record["attributes"]["checksum"] = ""
    file.write_bytes(with_checksum(record))
    assert Modes.load(tmp_path, store).rows == "samples"


def test_places_that_do_not_fit_are_refused(store: Store, places: Store) -> None:
    matrix = places.matrix("block1.conv2", rows="positions")
    mixed = fit(PCA(2), matrix.clone()).dictionary
    with pytest.raises(OptionError, match=r"of \d+ samples, some positions are held out and some"):
        Modes.build(mixed, places, "block1.conv2", rows="positions")
    apart = (places.places("block1.conv2").sample >= 20).nonzero().flatten()
    modes = Modes.build(mixed, places, "block1.conv2", rows="positions", held_out_rows=apart)
    assert modes.held_out.nonzero().flatten().tolist() == [20, 21, 22, 23]
    with pytest.raises(OptionError, match=r"no positions of block1\.conv2 were kept; collect with"):
        Modes.build(mixed, store, "block1.conv2", rows="positions")
    with pytest.raises(OptionError, match=r"fitted to 144 rows, .* kept positions .*rows=.positi"):
        Modes.build(mixed, places, "block1.conv2")
