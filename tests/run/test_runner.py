"""The links on a run folder: what they make, what they keep, and what they refuse."""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import condec.report
from condec.attribution import UnitAblation, contribute
from condec.attribution.targets import Predicted
from condec.basis.errors import CondecError, DataError, OptionError, StoreError
from condec.basis.npz import load_record
from condec.dictionary import Dictionary, KMeans, TrainConfig, load_dictionary, stability
from condec.effects import LOG_ODDS, LOG_ODDS_NAMES, RANKINGS, ByModeSum, control_matrix
from condec.explanation import SiteMaps
from condec.modes import annotate
from condec.modes.modes import Modes
from condec.report import build_report, tables
from condec.report.reading import read_run
from condec.retina import Windows
from condec.run import FUNCTIONS, LINKS, Outcome, Run, chain, config, links
from condec.run.plan import ControlPlan
from condec.store import RunFolder
from condec.store.store import Store
from condec.store.twins import RandomWeights, ShuffledLabels, is_twin
from small_runs import NET, contents, quick_report, record, run_of, write_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path)


@pytest.fixture
def real_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for the report itself instead of a stand-in; its figures are drawn and not rendered."""
    monkeypatch.setattr(condec.report.figures, "save_figure", lambda figure, path: path.touch())


@pytest.fixture(autouse=True)
def _quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(condec.report, "build_report", quick_report)


def carry_out(run: Run) -> dict[str, Outcome]:
    config.write(run.plan)
    return {outcome.link: outcome for outcome in chain(run)}


MADE: dict[tuple[str, ...], Path] = {}


@pytest.fixture(autouse=True, scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    MADE[()] = tmp_path_factory.mktemp("made")
    yield MADE[()]
    MADE.clear()


def prepare(run: Run) -> None:
    """Carry a plan out, or copy what came of the same plan and data in an earlier test."""
    record = config.to_dict(replace(run.plan, out=Path("out"), base=Path()))
    data = [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(run.plan.base.glob("*.*z"))]
    key = (json.dumps(record), *data, (run.plan.base / "net.py").read_text())
    if run.plan.out.exists():
        carry_out(run)
    elif key in MADE:
        shutil.copytree(MADE[key], run.plan.out)
    else:
        carry_out(run)
        shutil.copytree(run.plan.out, MADE[()] / str(len(MADE)))
        MADE[key] = MADE[()] / str(len(MADE))


def table(source: Path, *parts: str) -> pandas.DataFrame:
    return pandas.read_parquet(RunFolder(source / "run").table(*parts))


def change(source: Path, old: str, new: str) -> None:
    text = (source / "run.toml").read_text()
    assert old in text
    (source / "run.toml").write_text(text.replace(old, new))


@pytest.mark.usefixtures("real_report")
def test_the_chain_makes_everything_the_report_reads(source: Path) -> None:
    outcomes = carry_out(run_of(source))
    assert list(outcomes) == list(LINKS)
    assert {outcome.state for outcome in outcomes.values()} == {"made"}
    out = source / "run"
    store = Store.open(out / "contributions.zarr")
    assert len(store) == 40
    assert store.sample_ids[:2] == ("0", "1")
    assert table(source, "statistics")["site"].tolist() == ["block1", "block2"]
    assert json.loads((out / "analysis" / "labels.json").read_text()) == ["a", "b", "c"]
    modes = Modes.load(out / "modes" / "block2" / "kmeans", store)
    assert modes.name == "kmeans"
    assert int(modes.held_out.sum()) == 16
    maps = load_record(out / "analysis" / "maps" / "block1" / "kmeans.npz", SiteMaps)
    assert maps.total.shape[2:] == (6, 6)
    assert maps.target == Predicted().to_dict()
    curves = table(source, "control")
    assert set(curves["site"]) == {"block2"}
    assert set(curves["ranking"]) == {*LOG_ODDS_NAMES, *RANKINGS}
    log_odds = Store.open(out / "log_odds" / "contributions.zarr")
    of_log_odds = Modes.load(out / "log_odds" / "block2", log_odds)
    assert torch.equal(of_log_odds.held_out, modes.held_out)
    assert set(curves["label_name"]) <= {"a", "b", "c"}
    assert outcomes["report"].outputs == (out / "report" / "index.html",)
    assert "Small" in (out / "report" / "index.html").read_text()


def test_log_has_a_line_an_event_with_time_and_host(source: Path) -> None:
    prepare(run_of(source, links=("collect", "stats")))
    lines = [json.loads(line) for line in (source / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["link"]) for line in lines] == [
        ("start", "collect"),
        ("end", "collect"),
        ("start", "stats"),
        ("end", "stats"),
    ]
    assert all(line["time"] and line["host"] for line in lines)
    assert all("host" not in path and b'"host"' not in content
               for path, content in contents(source / "run").items())  # fmt: skip


def test_a_second_run_keeps_everything(source: Path) -> None:
    prepare(run_of(source))
    before = contents(source / "run")
    times = {path: path.stat().st_mtime_ns for path in (source / "run" / "modes").rglob("*.json")}
    outcomes = carry_out(run_of(source))
    assert {outcome.state for outcome in outcomes.values()} == {"kept"}
    assert contents(source / "run") == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_two_runs_give_the_same_bytes(source: Path) -> None:
    prepare(run_of(source))
    carry_out(run_of(source, out=source / "other"))
    one, other = contents(source / "run"), contents(source / "other")
    assert one.keys() == other.keys()
    different = {name for name in one if one[name] != other[name]}
    assert different == set()


@pytest.mark.parametrize(
    ("old", "new", "made"),
    [
        ("n_modes = 3", "n_modes = 2", {"fit", "control", "map", "explain", "report"}),
        ("n_random = 1", "n_random = 2", {"control", "report"}),
        ("n_units = 1", "n_units = 2", {"map", "report"}),
        ('title = "Small"', 'title = "Tiny"', {"report"}),
    ],
)
def test_a_changed_option_makes_again_what_depends_on_it(
    source: Path, old: str, new: str, made: set[str]
) -> None:
    prepare(run_of(source))
    change(source, old, new)
    outcomes = carry_out(run_of(source))
    assert {link for link, outcome in outcomes.items() if outcome.state == "made"} == made


def test_what_is_gone_is_made_again(source: Path) -> None:
    prepare(run_of(source, links=("collect", "stats", "fit")))
    (source / "run" / "analysis" / "statistics.parquet").unlink()
    outcomes = carry_out(run_of(source, links=("collect", "stats", "fit")))
    assert {link: outcome.state for link, outcome in outcomes.items()} == {
        "collect": "kept",
        "stats": "made",
        "fit": "kept",
    }


def test_again_does_steps_again(source: Path) -> None:
    run = run_of(source, links=("collect", "stats"))
    carry_out(run)
    again = Run(run.plan, progress=False, again=True)
    assert [outcome.state for outcome in chain(again)] == ["kept", "made"]


def test_an_interrupted_fit_goes_on_at_the_next_site(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(source, links=("collect", "fit"))
    config.write(run.plan)
    real, calls = links.fit, []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(links, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chain(run))
    assert json.loads((source / "run" / "log.jsonl").read_text().splitlines()[-1])[
        "error"
    ].startswith("KeyboardInterrupt")
    assert [outcome.state for outcome in chain(run)] == ["kept", "made"]
    assert len(calls) == 3
    assert (source / "run" / "modes" / "block2" / "kmeans" / "modes.zarr").is_dir()


@pytest.mark.parametrize("link", ["stats", "fit", "control", "map", "explain", "report"])
def test_links_before_collect_say_what_to_do(source: Path, link: str) -> None:
    with pytest.raises(StoreError, match=r"no contributions yet; run 'condec collect PLAN"):
        FUNCTIONS[link](run_of(source))  # type: ignore[index]


@pytest.mark.parametrize("link", ["control", "map", "explain"])
def test_links_before_fit_say_what_to_do(source: Path, link: str) -> None:
    prepare(run_of(source, links=("collect",)))
    with pytest.raises(StoreError, match=r"no modes of block. yet; run 'condec fit .*' first"):
        FUNCTIONS[link](run_of(source))  # type: ignore[index]


def test_incomplete_store_is_refused(source: Path) -> None:
    prepare(run_of(source, links=("collect",)))
    next((source / "run" / "contributions.zarr" / "manifest").glob("shard-00001*")).unlink()
    with pytest.raises(StoreError, match="1 of 3 shards are missing; run 'condec collect"):
        links.stats_link(run_of(source))
    assert carry_out(run_of(source, links=("collect",)))["collect"].state == "made"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("ig:2", "ig:3", "method"), ('target = "predicted"', 'target = "top1"', "target")],
)
def test_a_folder_of_another_plan_is_refused(source: Path, old: str, new: str, key: str) -> None:
    prepare(run_of(source, links=("collect",)))
    change(source, old, new)
    with pytest.raises(StoreError, match=f"another plan: {key}.* had .*wants .* run folder"):
        links.stats_link(run_of(source))
    with pytest.raises(StoreError, match=f"made by another recipe:\n.*{key}"):
        links.collect_link(run_of(source))


def test_sites_without_results_are_refused(source: Path) -> None:
    prepare(run_of(source, links=("collect", "fit")))
    change(source, 'control = {sites = "block2"', 'control = {sites = "stem"')
    with pytest.raises(StoreError, match="no result for stem; there is block1, block2"):
        links.control_link(run_of(source))


def test_other_sites_of_control_are_measured_in_the_same_folder(source: Path) -> None:
    prepare(run_of(source))
    log_odds = source / "run" / "log_odds" / "contributions.zarr"
    change(source, 'control = {sites = "block2"', 'control = {sites = "block*"')
    links.control_link(run_of(source))
    assert [site.key for site in Store.open(log_odds).sites] == ["block1", "block2"]
    curves = table(source, "control")
    assert set(curves["site"]) == {"block1", "block2"}
    before = contents(log_odds)
    change(source, 'control = {sites = "block*"', 'control = {sites = "block1"')
    links.control_link(run_of(source))
    assert contents(log_odds) == before  # fewer sites: what is there has them
    curves = table(source, "control")
    assert set(curves["site"]) == {"block1"}


def test_another_method_of_the_log_odds_is_collected_and_fitted_anew(source: Path) -> None:
    prepare(run_of(source))
    place = source / "run" / "log_odds" / "contributions.zarr"
    before = Store.open(place).matrix("block2", sign="sum")
    change(source, 'control = {sites = "block2"', 'control = {log_odds = "unit_ablation"')
    links.control_link(run_of(source))
    store = Store.open(place)
    assert store.recipe["method"] == UnitAblation().to_dict()
    run = run_of(source)
    images = run.inputs.batch(range(len(run.inputs)))
    exact = contribute(
        run.model_of_store, images, "block2", method=UnitAblation(), target=LOG_ODDS,
        labels=run.inputs.labels,
    ).reduce()["block2"].contribution.sum(1)  # fmt: skip
    found = store.matrix("block2", sign="sum")
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)
    chosen = Modes.load(source / "run" / "log_odds" / "block2", store)
    assert torch.equal(chosen.matrix(), found)
    assert "log_odds_modes" in set(table(source, "control")["ranking"])


def test_fitted_sites_may_be_fewer_than_collected(source: Path) -> None:
    change(source, 'learner = "kmeans"', 'learner = "kmeans", sites = "block2"')
    prepare(run_of(source))
    assert [path.name for path in (source / "run" / "modes").iterdir()] == ["block2"]
    assert [path.name for path in (source / "run" / "analysis" / "maps").iterdir()] == ["block2"]


def without_labels(source: Path) -> None:
    with np.load(source / "data.npz") as arrays:
        images = arrays["images"]
    np.savez(source / "data.npz", images=images)


def test_without_labels_control_is_left_out_of_the_chain(source: Path) -> None:
    without_labels(source)
    outcomes = carry_out(run_of(source))
    assert outcomes["control"].state == "left out"
    assert outcomes["control"].notes == ("the data have no labels",)
    assert outcomes["map"].state == outcomes["report"].state == "made"
    assert json.loads((source / "run" / "analysis" / "labels.json").read_text()) is None


def test_without_labels_control_itself_is_an_error(source: Path) -> None:
    without_labels(source)
    run = run_of(source, links=("collect", "fit"))
    carry_out(run)
    with pytest.raises(DataError, match=r"data.npz: labels missing, and control needs them"):
        links.control_link(run)


def test_log_odds_need_a_label_for_every_sample(source: Path) -> None:
    with np.load(source / "data.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    labels[0] = -1
    np.savez(source / "data.npz", images=images, labels=labels)
    outcomes = carry_out(run_of(source))
    (note,) = outcomes["control"].notes
    assert note == (
        "log_odds_modes, log_odds_difference: left out, samples without label have no log-odds"
    )
    curves = table(source, "control")
    assert set(curves["ranking"]) == set(RANKINGS)
    assert not (source / "run" / "log_odds").exists()


def test_label_target_without_labels(source: Path) -> None:
    without_labels(source)
    change(source, 'target = "predicted"', 'target = "label"')
    with pytest.raises(DataError, match="Label: this target needs the label of every sample"):
        links.collect_link(run_of(source))


def test_logit_out_of_range(source: Path) -> None:
    change(source, 'target = "predicted"', 'target = "logit:7"')
    with pytest.raises(CondecError, match="index 7 is out of range; the output has 3 labels"):
        links.collect_link(run_of(source))


@pytest.fixture
def photos(source: Path) -> Path:
    """The same images as files, one of them damaged."""
    with np.load(source / "data.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = source / "photos" / "abc"[label] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    (source / "photos" / "b" / "19.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    grey = "def grey(images):\n    return images[..., :1].permute(0, 3, 1, 2) / 255\n"
    (source / "net.py").write_text(NET + grey)
    change(source, "npz:data.npz", "folder:photos")
    change(source, 'photos"}', 'photos", preprocess = "python:net.py:grey"}')
    return source


def test_damaged_image_ends_the_run_and_is_named(photos: Path) -> None:
    with pytest.raises(DataError, match=r"b/19.png: cannot be read as an image"):
        links.collect_link(run_of(photos))


def test_damaged_image_is_skipped_and_reported(photos: Path) -> None:
    change(photos, "shard_size = 16", 'shard_size = 16, on_bad = "skip"')
    outcomes = carry_out(run_of(photos))
    assert outcomes["collect"].notes == ("1 of 40 inputs could not be used, left out: b/19.png",)
    store = Store.open(photos / "run" / "contributions.zarr")
    assert len(store) == 39
    assert "b/19.png" not in store.sample_ids
    assert outcomes["map"].state == outcomes["report"].state == "made"


def test_a_run_that_a_damaged_image_ended_goes_on_without_it(photos: Path) -> None:
    change(photos, "shard_size = 16", "shard_size = 8")
    with pytest.raises(DataError, match=r"b/19.png"):
        links.collect_link(run_of(photos))
    done = Store.open(photos / "run" / "contributions.zarr").n_shards - len(
        Store.open(photos / "run" / "contributions.zarr").missing()
    )
    assert done >= 1
    change(photos, "shard_size = 8", 'shard_size = 8, on_bad = "skip"')
    assert "b/19.png" in links.collect_link(run_of(photos)).notes[0]
    Store.open(photos / "run" / "contributions.zarr").verify()


def test_images_of_another_shape_than_the_model_takes(source: Path) -> None:
    change(source, 'spec = "python:net.py:make"', 'spec = "digits"')
    with pytest.raises(
        DataError, match=r"sample '0' has shape \(1, 6, 6\); the model has \(1, 8, 8\)"
    ):
        links.collect_link(run_of(source))


def test_input_shape_in_the_plan_overrides_the_models(source: Path) -> None:
    change(source, 'device = "cpu"', 'device = "cpu", input_shape = [1, 7, 7]')
    with pytest.raises(DataError, match=r"the model has \(1, 7, 7\)"):
        links.collect_link(run_of(source))


def test_label_names_of_the_model_serve_data_without(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(source / "data.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    np.savez(source / "data.npz", images=images, labels=labels)
    make = "    from condec.models import LoadedModel\n    return LoadedModel("
    names = NET.replace("    return small_resnet(labels=3)", make + "small_resnet(labels=3), 'x', ")
    (source / "net.py").write_text(names + "label_names=('x', 'y', 'z'))\n")
    assert run_of(source).inputs.label_names == ("x", "y", "z")
    np.savez(source / "data.npz", images=images, labels=labels + 1)
    with pytest.raises(DataError, match=r"label 3 of sample '2' is out of range; expected 0 to 2"):
        _ = run_of(source).inputs


def test_movies_are_taken_as_the_model_wants_them(source: Path) -> None:
    numbers = np.random.default_rng(0)
    movie = numbers.normal(size=(12, 4, 4)).astype(np.float32)
    rates = numbers.random((12, 5)).astype(np.float32)
    np.savez(source / "movie.npz", movie=movie, rates=rates)
    make = "    from condec.models import LoadedModel\n    return LoadedModel("
    net = NET.replace("    return small_resnet(labels=3)", make + "small_resnet(labels=3), 'x', ")
    known = "input_shape=(5, 4, 4), scaling=(1.0, 2.0), label_names=('4', '1', '2'))\n"
    (source / "net.py").write_text(net + known)
    change(source, "npz:data.npz", "movie:movie.npz")
    inputs = run_of(source).inputs
    assert isinstance(inputs, Windows)
    assert inputs.ids[0] == "5"
    np.testing.assert_allclose(inputs.load(1), (movie[1:6] - 1) / 2, rtol=1e-5)
    assert inputs.recording.cells == ("4", "1", "2")
    assert inputs.recording.rates is not None
    np.testing.assert_array_equal(inputs.recording.rates, rates[:, [4, 1, 2]])


def test_parts_are_loaded_only_when_needed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(run_of(source, links=("collect",)))
    refuse: Callable[..., object] = lambda *_, **__: pytest.fail("loaded")  # noqa: E731
    monkeypatch.setattr("condec.run.run.load_model", refuse)
    monkeypatch.setattr("condec.run.run.load_data", refuse)
    assert links.stats_link(run_of(source)).state == "made"
    assert links.fit_link(run_of(source)).state == "made"


def other_weights(source: Path) -> None:
    made = "    model = small_resnet(labels=3)\n    next(model.parameters()).data *= 2\n"
    other = NET.replace("    return small_resnet(labels=3)", made + "    return model")
    (source / "other_net.py").write_text(other)
    change(source, "python:net.py:make", "python:other_net.py:make")


def other_images(source: Path) -> None:
    with np.load(source / "data.npz") as arrays:
        kept = dict(arrays)
    np.savez(source / "data.npz", **(kept | {"images": 255 - kept["images"]}))


@pytest.mark.parametrize(("alter", "key"), [(other_weights, "model"), (other_images, "data")])
def test_another_model_or_data_than_the_stores_is_refused(
    source: Path, alter: Callable[[Path], None], key: str
) -> None:
    prepare(run_of(source, links=("collect", "fit")))
    alter(source)
    for link in (links.control_link, links.map_link):
        with pytest.raises(StoreError, match=f"else than the plan's: {key}: had .*, wants"):
            link(run_of(source))


def test_a_step_killed_while_it_writes_is_not_kept_by_the_earlier_plan(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(run_of(source, links=("collect", "fit")))
    before = contents(source / "run" / "modes")
    change(source, "n_modes = 3", "n_modes = 2")

    def killed(self: Modes, folder: Path, dictionary: Dictionary) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Modes, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            links.fit_link(run_of(source))
    assert contents(source / "run" / "modes") == before
    for link in (links.control_link, links.map_link, links.report_link):
        with pytest.raises(StoreError, match=r"n_modes had 3, the plan wants 2: run 'condec fit "):
            link(run_of(source))
    assert links.fit_link(run_of(source)).state == "made"
    assert links.map_link(run_of(source)).state == "made"


@pytest.mark.parametrize(
    ("old", "new", "refused", "message"),
    [
        ("n_modes = 3", "n_modes = 2", ("control", "map", "explain", "report"),
         r"fit\.n_modes had 3, the plan wants 2: run 'condec fit .*run' first"),
        ('learner = "kmeans"', 'learner = "pca"', ("report",),
         "modes of kmeans are here, the plan's learner is pca: run 'condec fit .*run' first"),
        ("n_random = 1", "n_random = 2", ("report",),
         r"control block2 \(kmeans\): control\.n_random had 1, .*'condec control .*run' first"),
        ("n_units = 1", "n_units = 2", ("report",), r"maps\.n_units .* 'condec map .*run' first"),
        ('"npz:data.npz"', '"npz:data.npz", limit = 9', ("report",),
         r"collect: data\.limit had null, the plan wants 9: run 'condec collect .*run' first"),
    ],
)  # fmt: skip
def test_results_of_another_plan_do_not_pass_for_the_plans(
    source: Path, old: str, new: str, refused: tuple[str, ...], message: str
) -> None:
    prepare(run_of(source))
    change(source, old, new)
    for link in refused:
        with pytest.raises(StoreError, match=message):
            FUNCTIONS[link](run_of(source))


def test_sites_that_the_plan_no_longer_names_stay_and_say_what_they_are_of(source: Path) -> None:
    prepare(run_of(source))
    change(source, "n_modes = 3", 'n_modes = 2, sites = "block2"')
    change(source, 'sites = "block2", fractions', "fractions")
    outcomes = carry_out(run_of(source))
    assert outcomes["report"].state == "made"
    recipes = read_run(source / "run").recipes
    assert recipes["fit block1 (kmeans)"]["fit"]["n_modes"] == 3
    assert recipes["fit block2 (kmeans)"]["fit"]["n_modes"] == 2
    assert recipes["collect"]["model"]["spec"] == "python:net.py:make"


def test_what_fails_leaves_no_results_of_an_earlier_plan(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(run_of(source))
    change(source, "n_random = 1", "n_random = 2")

    def fails(run: Run) -> Outcome:
        raise DataError("it rains")

    monkeypatch.setitem(FUNCTIONS, "control", fails)
    with pytest.raises(DataError, match="it rains"):
        carry_out(run_of(source))
    run = read_run(source / "run")
    assert [list(part.tables) for _, part in run.parts] == [["meaning", "units"]] * 2
    assert run.left_out == ("control: it rains",)


def test_a_site_that_cannot_be_fitted_keeps_no_earlier_modes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(run_of(source))
    change(source, "n_modes = 3", "n_modes = 2")
    real, calls = links.fit, []

    def fit(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise DataError("too few rows")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(links, "fit", fit)
    carry_out(run_of(source))
    run = read_run(source / "run")
    assert [len(site.parts) for site in run.sites] == [0, 1]


@pytest.mark.parametrize("name", ["modes/block2/kmeans/dictionary.json", "tasks/stats.json"])
def test_damage_is_refused_by_links_and_mended_by_a_run(source: Path, name: str) -> None:
    prepare(run_of(source))
    before = contents(source / "run")
    file = source / "run" / name
    file.write_bytes(file.read_bytes()[:-9])
    if "modes" in name:
        for link in ("control", "map"):
            with pytest.raises(StoreError, match=r"kmeans: not what 'fit block2 .* has made"):
                FUNCTIONS[link](run_of(source))
    outcomes = carry_out(run_of(source))
    made = {link for link, outcome in outcomes.items() if outcome.state == "made"}
    assert made == ({"fit"} if "modes" in name else {"stats"})  # and no report
    assert contents(source / "run") == before


def test_a_new_fit_removes_what_was_made_from_the_earlier_one(source: Path) -> None:
    change(source, 'control = {sites = "block2", ', "control = {")
    prepare(run_of(source))
    analysis = source / "run" / "analysis"
    kept = {"control/block1/kmeans.parquet", "maps/block1/kmeans.npz", "labels.json"}
    kept |= {"statistics.parquet", "control_comparison/block1/kmeans.parquet"}
    kept |= {f"{n}/block{at}/kmeans.parquet" for n in ("meaning", "units") for at in (1, 2)}
    gone = {"control/block2/kmeans.parquet", "maps/block2/kmeans.npz"}
    gone |= {"control.parquet", "control_comparison/block2/kmeans.parquet"}
    gone |= {"families/kmeans.parquet"}
    gone |= {f"explained/{row}.npz" for row in (1, 16, 23)}
    assert contents(analysis).keys() == kept | gone
    change(source, "n_modes = 3", 'n_modes = 2, sites = "block2"')
    links.fit_link(run_of(source))
    assert contents(analysis).keys() == kept
    assert {file.name for file in (source / "run" / "tasks").iterdir()} == {
        f"{name}.json"
        for name in ("collect", "stats", "report", *(
            f"{kind}%20block1%20%28kmeans%29"
            for kind in ("fit", "meaning", "units", "control", "map")
        ), *(f"{kind}%20block2%20%28kmeans%29" for kind in ("fit", "meaning", "units")))
    }  # fmt: skip


@pytest.mark.parametrize("name", ["modes.zarr", "dictionary.json"])
def test_lost_modes_are_made_again(source: Path, name: str) -> None:
    prepare(run_of(source, links=("collect", "fit")))
    part = source / "run" / "modes" / "block2" / "kmeans" / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    outcome = links.fit_link(run_of(source))
    assert outcome.outputs == (part.parent,)
    assert part.exists()


def kill_modes(source: Path, *sites: str) -> None:
    store = Store.open(source / "run" / "contributions.zarr")
    for site in sites:
        folder = source / "run" / "modes" / site / "kmeans"
        modes = Modes.load(folder, store)
        loadings = modes.loadings[:, :0]
        replace(modes, atoms=modes.atoms[:0], loadings=loadings, ids=modes.ids[:0]).save(folder)
    record(source / "run")


@pytest.mark.usefixtures("real_report")
def test_a_site_without_alive_modes_is_left_out(source: Path) -> None:
    change(source, 'control = {sites = "block2", ', "control = {")
    prepare(run_of(source, links=("collect", "stats", "fit")))
    kill_modes(source, "block1")
    outcomes = carry_out(run_of(source))
    for link in ("control", "map"):
        assert outcomes[link].state == "made"
        assert outcomes[link].notes == ("block1: left out, no mode is alive",)
    curves = table(source, "control")
    assert set(curves["site"]) == {"block2"}
    assert outcomes["report"].state == "made"


def test_without_any_alive_mode_control_and_maps_are_left_out(source: Path) -> None:
    prepare(run_of(source, links=("collect", "fit")))
    kill_modes(source, "block1", "block2")
    outcomes = carry_out(run_of(source, links=("control", "map")))
    assert {outcome.state for outcome in outcomes.values()} == {"left out"}
    assert len(outcomes["map"].notes) == 2


def test_without_held_out_rows_control_is_left_out_of_the_chain(source: Path) -> None:
    change(source, "held_out = 0.4", "held_out = 0")
    outcomes = carry_out(run_of(source))
    assert outcomes["control"].state == "left out"
    assert outcomes["control"].notes == ("no rows are held out (fit.held_out is 0)",)
    assert outcomes["map"].state == outcomes["report"].state == "made"


@pytest.mark.parametrize("fractions", [(0.5,), (0.5, 0.25), (0.5, 0.5), (0.5, 1.5)])
def test_fractions_without_a_curve_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match=r"fractions lie between 0 and 1, at least two in asc"):
        ControlPlan(fractions=fractions)


def test_a_log_that_cannot_be_written_does_not_hide_the_first_error(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(run_of(source, links=("collect",)))
    log = source / "run" / "log.jsonl"

    def full(*_: object) -> None:
        log.unlink()
        log.mkdir()
        raise StoreError("the disk is full")

    monkeypatch.setattr(links, "layer_statistics", full)
    with pytest.raises(StoreError, match=r"^the disk is full$"):
        links.stats_link(run_of(source))
    with pytest.raises(StoreError, match=r"log.jsonl: cannot write .*run the same command"):
        links.stats_link(run_of(source))


def test_failure_to_write_names_the_file(source: Path) -> None:
    prepare(run_of(source, links=("collect",)))
    (source / "run" / "analysis" / "statistics.parquet").mkdir()
    with pytest.raises(StoreError, match=r"statistics.parquet: cannot write (?!.*ake room)"):
        links.stats_link(run_of(source))
    assert [p.name for p in (source / "run" / "analysis").iterdir()] == [
        "labels.json",
        "statistics.parquet",
    ]


@pytest.mark.parametrize("device", ["cuda:77", "meta"])
def test_a_device_that_is_not_there_is_told(source: Path, device: str) -> None:
    change(source, 'device = "cpu"', f'device = "{device}"')
    with pytest.raises(OptionError, match=f"device '{device}' cannot be used, there is cpu"):
        links.collect_link(run_of(source))
    assert not (source / "run" / "contributions.zarr").exists()


# --- twins -----------------------------------------------------------------------------

TWINS = 'shard_size = 16, twins = ["random-weights", "shuffled-labels"]'


def test_twins_are_stored_beside_the_run(source: Path) -> None:
    change(source, "shard_size = 16", TWINS)
    outcomes = carry_out(run_of(source, links=("collect", "stats")))
    out = source / "run"
    names = ("random-weights", "shuffled-labels")
    twins = [Store.open(out / "twins" / name / "contributions.zarr") for name in names]
    assert outcomes["collect"].outputs == (
        out / "contributions.zarr", *(twin.path for twin in twins),
    )  # fmt: skip
    store = Store.open(out / "contributions.zarr")
    assert all(is_twin(twin, store) for twin in twins)
    assert twins[0].labels.tolist() == store.labels.tolist() != twins[1].labels.tolist()
    assert twins[1].matrix("block1").equal(store.matrix("block1"))
    real = pandas.read_parquet(out / "analysis" / "statistics.parquet")
    controls = pandas.read_parquet(out / "analysis" / "statistics_twins.parquet")
    assert "twin" not in real
    # Shuffled labels change no number where the target does not use labels.
    assert controls["twin"].tolist() == ["random-weights"] * 2
    assert controls["site"].tolist() == ["block1", "block2"]
    assert (controls["hoyer_contribution"] != real["hoyer_contribution"]).all()


def test_statistics_of_shuffled_labels_where_the_target_uses_them(source: Path) -> None:
    change(source, "shard_size = 16", 'shard_size = 16, twins = ["shuffled-labels"]')
    change(source, 'target = "predicted"', 'target = "label"')
    prepare(run_of(source, links=("collect", "stats")))
    assert set(table(source, "statistics_twins")["twin"]) == {"shuffled-labels"}


def test_twins_added_later_are_made_and_the_rest_is_kept(source: Path) -> None:
    prepare(run_of(source, links=("collect", "stats")))
    before = contents(source / "run" / "contributions.zarr")
    change(source, "shard_size = 16", TWINS)
    with pytest.raises(StoreError, match=r"random-weights.*: no such twin yet; run 'condec c"):
        links.stats_link(run_of(source))
    assert links.collect_link(run_of(source)).state == "made"
    assert contents(source / "run" / "contributions.zarr") == before
    assert links.collect_link(run_of(source)).state == "kept"
    assert links.stats_link(run_of(source)).state == "made"
    assert links.stats_link(run_of(source)).state == "kept"
    change(source, TWINS, "shard_size = 16")
    assert links.stats_link(run_of(source)).state == "made"
    assert not (source / "run" / "analysis" / "statistics_twins.parquet").exists()


def test_a_twin_goes_on_at_its_first_missing_shard(source: Path) -> None:
    change(source, "shard_size = 16", TWINS)
    prepare(run_of(source, links=("collect",)))
    whole = contents(source / "run" / "twins")
    record = next((source / "run" / "twins").rglob("shard-00001.json"))
    record.unlink()
    run = run_of(source)
    with pytest.raises(StoreError, match=r"1 of 3 shards are missing; run 'condec collect"):
        [run.twin(twin) for twin in run.plan.collect.twins]
    assert links.collect_link(run_of(source)).state == "made"
    assert contents(source / "run" / "twins") == whole


def test_a_twin_of_another_store_is_refused(source: Path) -> None:
    change(source, "shard_size = 16", TWINS)
    prepare(run_of(source, links=("collect",)))
    shutil.rmtree(source / "run" / "contributions.zarr")
    change(source, "ig:2", "ig:3")
    with pytest.raises(StoreError, match="another recipe"):
        links.collect_link(run_of(source))
    with pytest.raises(StoreError, match=r"random-weights.*a twin of another store than .*again"):
        links.stats_link(run_of(source))


@pytest.mark.parametrize(
    ("twins", "message", "kind"),
    [
        ((RandomWeights(from_module="blok1"),), r"nearest: block1", OptionError),
        ((ShuffledLabels(),), r"labels missing", DataError),
    ],
)
def test_twins_that_cannot_be_are_told_before_the_run(
    source: Path, twins: tuple[object, ...], message: str, kind: type[CondecError]
) -> None:
    with np.load(source / "data.npz") as arrays:
        images = arrays["images"]
    np.savez(source / "data.npz", images=images)
    plan = config.read(source / "run.toml")
    plan = replace(plan, collect=replace(plan.collect, twins=twins))
    with pytest.raises(kind, match=message):
        links.collect_link(Run(plan, progress=False))
    assert not (source / "run" / "contributions.zarr").exists()


def test_dead_modes_are_a_note_and_no_warning(tmp_path: Path) -> None:
    plan = config.from_dict(
        {
            "sites": "block1",
            "out": str(tmp_path / "run"),
            "data": {"source": "digits", "limit": 60},
            "collect": {"method": "actgrad"},
            "fit": {"learner": "topk", "n_modes": "3x", "k": 1, "steps": 100},
        }
    )
    run = Run(plan, progress=False)
    links.collect_link(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = links.fit_link(run)
    (note,) = outcome.notes
    assert re.fullmatch(r"block1: \d+% of 48 modes are dead; take fewer, or train longer", note)
    assert links.fit_link(run).notes == ()  # nothing was fitted


# --- rivals and stability ---------------------------------------------------------------

CHECKS = "held_out = 0.4, rivals = true, stability_seeds = 5, check_sites = 'block2'"


def test_checks_that_fail_are_left_out_and_the_fit_stays(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("too few rows")

    change(source, "held_out = 0.4", CHECKS)
    monkeypatch.setattr("condec.run.links.dictionary.fit_rivals", fail)
    monkeypatch.setattr("condec.run.links.dictionary.stability", fail)
    outcomes = carry_out(run_of(source, links=("collect", "fit", "control")))
    assert outcomes["fit"].state == "made"
    assert any("too few rows" in note for note in outcomes["fit"].notes)
    assert outcomes["control"].state == "made"


def test_rivals_and_stability_are_steps_of_the_fit(source: Path) -> None:
    prepare(run_of(source, links=("collect", "fit", "map")))
    before = contents(source / "run" / "modes")
    change(source, "held_out = 0.4", CHECKS)
    outcome = carry_out(run_of(source, links=("fit", "map")))["fit"]
    analysis = source / "run" / "analysis"
    tables = [analysis / name / "block2" / "kmeans.parquet" for name in ("rivals", "stability")]
    assert outcome.outputs == tuple(tables)
    assert contents(source / "run" / "modes") == before  # nothing was fitted anew
    controls = pandas.read_parquet(tables[0])
    assert controls["rival"].tolist() == [
        "dictionary", "shuffled_units", "activations", "pca", "nmf",
    ]  # fmt: skip
    modes = run_of(source).modes(["block2"])[0]
    fitted = load_dictionary(source / "run" / "modes" / "block2" / "kmeans")
    assert fitted.training is not None
    assert controls["r2"][0] == pytest.approx(fitted.training.metrics["held_out"].r2)
    assert controls["label_correlation"].notna().all()
    stable = pandas.read_parquet(tables[1])
    assert stable["mode"][stable["seed_cosine"].notna()].tolist() == modes.ids.tolist()
    assert set(stable["n_seeds"]) == {5}
    matrix = run_of(source).store.matrix("block2")
    again = stability(KMeans(3), matrix, config=TrainConfig(held_out=0.4), fitted=fitted)
    assert stable["seed_cosine"].tolist() == again.table()["seed_cosine"].tolist()
    assert carry_out(run_of(source, links=("fit", "map")))["map"].state == "kept"
    tables[1].unlink()
    assert links.fit_link(run_of(source)).outputs == (tables[1],)


def test_a_new_dictionary_undoes_its_checks(source: Path) -> None:
    change(source, "held_out = 0.4", CHECKS)
    prepare(run_of(source, links=("collect", "fit")))
    analysis = source / "run" / "analysis"
    tables = [analysis / name / "block2" / "kmeans.parquet" for name in ("rivals", "stability")]
    # Lost modes come out the same: their checks are still of them.
    modes = source / "run" / "modes" / "block2" / "kmeans"
    shutil.rmtree(modes / "modes.zarr")
    assert links.fit_link(run_of(source)).outputs == (modes,)
    assert all(table.exists() for table in tables)
    change(source, CHECKS, "held_out = 0.3")
    links.fit_link(run_of(source))
    assert not [table for table in tables if table.exists()]


def test_checks_without_labels_or_activations(source: Path) -> None:
    images = np.load(source / "data.npz")["images"]
    np.savez(source / "data.npz", images=images)
    change(source, "held_out = 0.4", CHECKS.replace("stability_seeds = 5, ", "sign = 'negative', "))
    prepare(run_of(source, links=("collect", "fit")))
    rivals = table(source, "rivals", "block2", "kmeans")
    # After a ReLU the negative part of the activations is 0 throughout.
    assert rivals["rival"].tolist() == ["dictionary", "shuffled_units", "pca"]
    assert rivals["label_correlation"].isna().all()


# --- what else edits do -------------------------------------------------------------------

EFFECTS = (
    'control = {sites = "block2", fractions = [0.25, 0.5], edits = ["ablate"], n_random = 1, '
    "matrix = true, steering = true, interactions = 1, share = 0.5, strengths = [1.0], "
    'rankings = ["modes", "activation_modes", "head_weights"]}'
)
WITH_GROUPS = 'data = {source = "npz:data.npz", superclasses = "groups.json"}'


def with_effects(source: Path) -> None:
    text = (source / "run.toml").read_text()
    control = next(line for line in text.splitlines() if line.startswith("control"))
    change(source, control, EFFECTS)
    change(source, 'data = {source = "npz:data.npz"}', WITH_GROUPS)
    (source / "groups.json").write_text('["x", "x", "y"]')


def test_side_effects_are_steps_of_control_with_tables_of_their_own(source: Path) -> None:
    with_effects(source)
    run = run_of(source, links=("collect", "fit", "control"))
    assert carry_out(run)["control"].notes == ()
    analysis = source / "run" / "analysis"
    matrix, steering, interactions = (
        pandas.read_parquet(analysis / name / "block2" / "kmeans.parquet")
        for name in ("control_matrix", "steering", "interactions")
    )
    (modes,) = run.modes(("block2",))
    with torch.no_grad():
        expected = control_matrix(
            run.model_of_store, run.inputs, modes, fraction=0.5, ranking=ByModeSum(modes=modes)
        )
    pandas.testing.assert_frame_equal(matrix, expected.to_frame())
    assert set(steering["strength"]) == {1.0}
    assert set(steering["direction"]) >= {"activation", "mean_activation", "random"}
    assert len(interactions[["mode_a", "mode_b"]].drop_duplicates()) == 1
    curves = pandas.read_parquet(analysis / "control.parquet")
    assert set(curves["ranking"]) == {"modes", "activation_modes", "head_weights"}
    fitted = Modes.load(source / "run" / "activations" / "block2", run.store)
    assert (fitted.quantity, torch.equal(fitted.held_out, modes.held_out)) == ("activation", True)
    assert json.loads((analysis / "superclasses.json").read_text()) == ["x", "x", "y"]


def test_a_column_of_the_csv_is_enough_for_control_by_superclass(source: Path) -> None:
    from PIL import Image

    with np.load(source / "data.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    lines = ["file,label,kind"]
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(source / f"{row}.png")
        lines.append(f"{row}.png,{label},{'early' if label < 2 else 'late'}")
    (source / "photos.csv").write_text("\n".join(lines) + "\n")
    (source / "net.py").write_text(
        "from condec.testing.models import SmallResNet\n\n"
        "class Net(SmallResNet):\n"
        "    def forward(self, x):\n        return super().forward(x.mean(1, keepdim=True))\n\n"
        "def make():\n    return Net(labels=3).eval()\n"
    )
    with_effects(source)
    change(source, 'source = "npz:data.npz"', 'source = "folder:.", csv = "photos.csv"')
    change(source, '"groups.json"', '"kind"')
    change(source, "matrix = true", "superclasses = true, matrix = true")
    found = carry_out(run_of(source, links=("collect", "fit", "control")))["control"]
    table_of = source / "run" / "analysis" / "superclass_control" / "block2" / "kmeans.parquet"
    if not table_of.is_file():  # no mode goes with it
        assert "superclass early: left out" in " ".join(found.notes)
        pytest.fail(str(found.notes))
    means = pandas.read_parquet(table_of)
    assert set(means["superclass"]) == {"early"}  # one of a single label is no superclass
    assert set(means["group"]) == {"members", "others"}
    groups = json.loads((source / "run" / "analysis" / "superclasses.json").read_text())
    assert groups == ["early", "early", "late"]


def test_side_effects_are_kept_and_only_what_changed_is_made_again(source: Path) -> None:
    with_effects(source)
    some = ("collect", "fit", "control")
    prepare(run_of(source, links=some))
    assert carry_out(run_of(source, links=some))["control"].state == "kept"

    def made() -> set[str]:
        outputs = links.control_link(run_of(source, links=some)).outputs
        analysis = source / "run" / "analysis"
        return {output.relative_to(analysis).parts[0] for output in outputs}

    change(source, "share = 0.5", "share = 0.25")
    assert made() == {"control_matrix", "interactions"}
    change(source, "strengths = [1.0]", "strengths = [2.0]")
    assert made() == {"steering"}
    (source / "groups.json").write_text('["x", "y", "y"]')
    assert made() == {"superclasses.json"}
    change(source, "steering = true, interactions = 1", "interactions = 0")
    change(source, ', superclasses = "groups.json"', "")
    assert made() == set()
    analysis = source / "run" / "analysis"
    assert (analysis / "control_matrix" / "block2" / "kmeans.parquet").is_file()
    for gone in ("steering/block2/kmeans.parquet", "interactions/block2/kmeans.parquet"):
        assert not (analysis / gone).exists()
    assert not (analysis / "superclasses.json").exists()
    change(source, "n_modes = 3", "n_modes = 2")
    links.fit_link(run_of(source))
    assert not (analysis / "control_matrix" / "block2" / "kmeans.parquet").exists()


def test_what_cannot_be_measured_is_left_out_with_a_note(source: Path) -> None:
    with_effects(source)
    change(source, 'edits = ["ablate"]', 'edits = ["ablate"], replacements = ["resample"]')
    change(source, "n_modes = 3", "n_modes = 1")
    change(source, '"modes", ', "")
    notes = carry_out(run_of(source, links=("collect", "fit", "control")))["control"].notes
    assert notes == (
        "block2: control_matrix: left out, replacements: the control matrix knows zero and mean",
        (
            "block2: steering: left out, steering_direction: a direction has no length: the "
            "loading of mode 0 does not vary on training rows, or no activation goes with it"
        ),
        (
            "block2: interactions: left out, mode_interactions: 3 labels have one best mode "
            "between them, 0; a pair needs two: name more labels, or give pairs"
        ),
    )
    for kind in ("control_matrix", "steering", "interactions"):
        assert not list((source / "run" / "analysis").glob(f"{kind}/*/*"))


@pytest.mark.usefixtures("real_report")
def test_the_whole_chain_on_positions(source: Path) -> None:
    change(source, "shard_size = 16", "shard_size = 16, rows = 'positions', keep = 5")
    change(source, "held_out = 0.4", CHECKS.replace("stability_seeds = 5, ", ""))
    outcomes = carry_out(run_of(source))
    assert {outcome.state for outcome in outcomes.values()} == {"made"}
    run = run_of(source)
    (modes,) = run.modes(["block2"])
    assert (modes.rows, modes.loadings.shape[0], int(modes.held_out.sum())) == ("positions", 40, 16)
    assert modes.encoder is not None
    assert modes.encoder.training is not None
    assert modes.encoder.training.n_rows == 200
    assert table(source, "rivals", "block2", "kmeans")["rival"].tolist() == [
        "dictionary", "shuffled_units", "pca", "nmf",
    ]  # fmt: skip
    page = (source / "run" / "report" / "index.html").read_text()
    assert "Rows are positions, so many of every input: block1 5 of 36; block2 5 of 36." in page
    site = next((source / "run" / "report").rglob("block2.html")).read_text()
    assert "modes per position" in site
    assert "Modes per position" in site
    store = RunFolder(source / "run").log_odds
    assert "rows" not in Store.open(store).recipe  # choices of units are of whole samples
    assert all(outcome.state == "kept" for outcome in carry_out(run_of(source)).values())


# --- what modes stand for -----------------------------------------------------------------


@pytest.mark.usefixtures("real_report")
def test_modes_are_named_by_labels_and_attributes(source: Path) -> None:
    rows = [f"{row},{'new' if row % 2 else 'old'}" for row in range(40)]
    (source / "table.csv").write_text("\n".join(["id,age", *rows]) + "\n")
    change(source, "data = {source", 'data = {attributes = "table.csv", source')
    prepare(run_of(source, links=("collect", "fit")))
    found = table(source, "meaning", "block2", "kmeans")
    assert set(found["kind"]) <= {"label", "attribute"}
    assert found["id"].tolist() == run_of(source).modes()[1].ids.tolist()
    assert carry_out(run_of(source, links=("collect", "fit")))["fit"].state == "kept"
    (part,) = [part for site, part in read_run(source / "run").parts if site.key == "block2"]
    annotate(source / "run", part.modes, 1, name="stripes", group="textures")
    lines = tables.mode_rows(read_run(source / "run"), part)
    (said,) = [line["stands"] for line in lines if line["row"] == 1]
    assert said == f"stripes (textures); {found['name'][1]}"
    assert found["why"][1] == next(line["why"] for line in lines if line["row"] == 1) != ""
    build_report(source / "run")
    records = (source / "run" / "report" / "data").rglob("*.js")
    assert any(" fits it best (correlation" in file.read_text() for file in records)
    (source / "table.csv").write_text("\n".join(["id,age", *rows[1:]]) + "\n")
    notes = carry_out(run_of(source, links=("collect", "fit")))["fit"].notes
    assert len(notes) == 2
    assert "modes have no names" in notes[0]
    assert "1 of 40 samples have no row: '0'" in notes[0]


def test_modes_have_the_names_of_today(source: Path) -> None:
    def properties(*ages: str, labels: str) -> set[str]:
        rows = [f"{row},{ages[row % 2]}" for row in range(40)]
        (source / "table.csv").write_text("\n".join(["id,age", *rows]) + "\n")
        (source / "names.json").write_text(json.dumps([*labels]))
        outcomes = carry_out(run_of(source, links=("collect", "fit")))
        assert outcomes["fit"].state == "made"
        found = table(source, "meaning", "block2", "kmeans")
        return {*found["property"], *found["label"]}

    of_data = 'data = {label_names = "names.json", attributes = "table.csv", source'
    change(source, "data = {source", of_data)
    first = properties("new", "old", labels="abc")
    assert first <= {"a", "b", "c", "age: new", "age: old"}
    assert properties("new", "old", labels="xyz") <= {"x", "y", "z", "age: new", "age: old"}
    last = properties("modern", "ancient", labels="xyz")
    assert last <= {"x", "y", "z", "age: modern", "age: ancient"}
    modes = contents(source / "run" / "modes")
    assert carry_out(run_of(source, links=("collect", "fit")))["fit"].state == "kept"
    assert contents(source / "run" / "modes") == modes


def test_labels_with_a_sample_each_leave_modes_without_names(source: Path) -> None:
    with np.load(source / "data.npz") as arrays:
        images = arrays["images"]
    np.savez(source / "data.npz", images=images, labels=np.arange(40) % 3 + 3 * np.arange(40))
    outcome = carry_out(run_of(source, links=("collect", "fit")))["fit"]
    assert "block2: modes have no names: meaning: none of 40 labels" in " ".join(outcome.notes)


# --- dictionaries from elsewhere ----------------------------------------------------------


def test_a_dictionary_from_elsewhere_takes_the_place_of_a_fit(source: Path) -> None:
    (source / "atoms").mkdir()
    for block, units in (("block1", 4), ("block2", 4)):
        np.save(source / "atoms" / f"{block}.npy", np.eye(units, dtype=np.float32))
    change(source, 'learner = "kmeans", n_modes = 3', 'learner = "import:atoms/{site}.npy"')
    run = run_of(source, links=("collect", "fit"))
    prepare(run)
    (first, second) = run_of(source).modes()
    assert (first.name, second.n_modes) == ("import", 4)
    assert bool(first.held_out.any())
    rows = first.matrix()[:, first.ids]
    torch.testing.assert_close(first.loadings, rows.clamp(min=0), atol=1e-6, rtol=1e-5)
    assert first.encoder is not None
    assert first.encoder.training is not None
    assert set(first.encoder.training.metrics) == {"train", "held_out"}
    plan = config.read(source / "run")
    assert (plan.fit.name, config.to_dict(plan)["fit"]["path"]) == ("import", "atoms/{site}.npy")
    again = run_of(source, links=("collect", "fit"))
    assert carry_out(again)["fit"].state == "kept"
    np.save(source / "atoms" / "block2.npy", 2 * np.eye(4, dtype=np.float32)[:3])  # exported anew
    assert carry_out(run_of(source, links=("collect", "fit")))["fit"].state == "made"
    assert [len(modes.atoms[0]) for modes in run_of(source).modes()] == [4, 4]
    assert [modes.n_modes for modes in run_of(source).modes()] == [4, 3]
    for block in ("block1", "block2"):
        np.save(source / "atoms" / f"{block}.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(DataError, match="atoms of 3 units, for rows of 4; it is of another site"):
        links.fit_link(run_of(source))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"import:x", stability_seeds = 5', "stability fit the learner again, which is imported"),
        ('"import:"', "expected import:PATH"),
        ('"imports:x"', "expected one of sae, .*, or import:PATH; got 'imports:x'"),
    ],
)
def test_what_is_no_import_is_refused(source: Path, text: str, message: str) -> None:
    change(source, 'learner = "kmeans", n_modes = 3', f"learner = {text}")
    with pytest.raises(OptionError, match=message):
        config.read(source / "run.toml")
