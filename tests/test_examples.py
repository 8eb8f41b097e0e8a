"""The examples: small parts of them quickly, then all of them."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch

from condec.basis.npz import load_record
from condec.effects import summarise
from condec.explanation import SiteMaps
from condec.run import Run, chain, config
from condec.run.explain import names_of
from condec.store.statistics import compare_trends
from condec.store.store import Store

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted({path.parent.name for path in EXAMPLES.glob("*/run.toml")} - {"cluster"})

pytestmark = pytest.mark.needs_shared


def run_example(name: str, out: Path, **changes: object) -> Run:
    """Carry out an example's plan, or a part of it, into another folder."""
    plan = replace(config.read(EXAMPLES / name / "run.toml"), out=out, **changes)  # type: ignore[arg-type]
    run = Run(plan, progress=False)
    config.write(plan)
    for _ in chain(run):
        pass
    return run


def test_examples_are_here() -> None:
    assert NAMES == ["cifar10_resnet20", "photos_mobilenet", "stories"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "stories"])
def test_few_inputs_of_every_example(name: str, tmp_path: Path) -> None:
    plan = config.read(EXAMPLES / name / "run.toml")
    data = replace(plan.data, limit=4)
    run = run_example(name, tmp_path / "run", data=data, links=("collect", "stats"))
    assert len(run.store) == 4
    assert len(run.store.sites) == {"cifar10_resnet20": 9, "photos_mobilenet": 2}[name]
    assert bool((run.store.predictions == run.store.labels).any())
    assert run.inputs.label_names is not None
    table = pandas.read_parquet(tmp_path / "run" / "analysis" / "statistics.parquet")
    assert table["completeness"].between(0.8, 1.2).all()


def test_moments_of_stories_are_read_as_texts(tmp_path: Path) -> None:
    plan = config.read(EXAMPLES / "stories" / "run.toml")
    site = "lm.model.layers.4.mlp.down_proj:input"
    run = run_example(
        "stories", tmp_path / "run", data=replace(plan.data, limit=12), sites=(site,),
        collect=replace(plan.collect, twins=()),
        maps=replace(plan.maps, n_modes=2, n_inputs=2, sites=()),
        links=("collect", "fit", "map", "report"),
    )  # fmt: skip
    assert float((run.store.predictions == run.store.labels).double().mean()) > 0.8
    (modes,) = run.modes()
    maps = load_record(run.folder.maps(site, modes.name), SiteMaps)
    assert maps.places is not None
    assert maps.places.shape == (2, 2, 48)
    (page,) = (tmp_path / "run" / "report" / "sites").glob("*.html")
    texts = re.findall(r'<p class="text">.*?</p>', page.read_text(), re.DOTALL)
    assert len(texts) == 4
    ids, names = run.store.sample_ids, names_of(run)
    assert names is not None
    labels = [run.store.labels[ids.index(maps.ids[n])] for n in maps.samples.flatten().tolist()]
    wanted = [f'<b title="the token that came next">{names[one]}</b></p>' for one in labels]
    assert sorted(html.unescape(one[one.index("<b ") :]) for one in texts) == sorted(wanted)


# Narrow early sites leave many modes dead, as the report says on its first page.
@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sites", ["layer3.1", "layer*"], ids=["one", "all"])
def test_cifar_from_pixels_to_report(tmp_path: Path, sites: str) -> None:
    plan = config.read(EXAMPLES / "cifar10_resnet20" / "run.toml")
    whole = sites == "layer*"
    # The twins are as expensive as the run; `test_what_an_untrained_network_shows` has them.
    # Another seed of the same fit takes as long again; `tests/test_runner.py` has those steps.
    run_example(
        "cifar10_resnet20",
        tmp_path,
        data=plan.data if whole else replace(plan.data, limit=600),
        collect=replace(plan.collect, twins=()),
        fit=replace(plan.fit, rivals=False, stability_seeds=0, sites=() if whole else (sites,)),
        control=plan.control if whole else replace(plan.control, sites=(sites,)),
        maps=plan.maps if whole else replace(plan.maps, sites=(sites,)),
    )
    store = Store.open(tmp_path / "contributions.zarr")
    store.verify()
    assert len(store) == (1017 if whole else 600)
    assert float((store.predictions == store.labels).double().mean()) > 0.9
    table = pandas.read_parquet(tmp_path / "analysis" / "statistics.parquet").set_index("site")
    assert table.loc["layer3.2", "completeness"] == pytest.approx(1.0, abs=0.01)
    assert table.loc["layer1.0", "sign_correlation"] > 0.9
    assert table.loc["layer3.2", "sign_correlation"] < 0.1
    fitted = set(table.index) if whole else {sites}
    assert {path.name for path in (tmp_path / "modes").iterdir()} == fitted
    areas = summarise(pandas.read_parquet(tmp_path / "analysis" / "control.parquet"))
    late = areas[(areas["site"] == "layer3.1") & (areas["edit"] == "ablate")]
    by_ranking = late.groupby("ranking")["auc_difference"].median()
    assert set(late["label"]) == set(range(10))
    assert by_ranking["log_odds_modes"] < by_ranking["best_mode"] - 0.1 < -0.1
    assert abs(by_ranking["random"]) < 0.1
    assert (tmp_path / "report" / "index.html").is_file()


@pytest.mark.slow
def test_what_an_untrained_network_shows(tmp_path: Path) -> None:
    plan = config.read(EXAMPLES / "cifar10_resnet20" / "run.toml")
    data = replace(plan.data, limit=200)
    run_example("cifar10_resnet20", tmp_path, data=data, links=("collect", "stats"))
    analysis = tmp_path / "analysis"
    real = pandas.read_parquet(analysis / "statistics.parquet")
    untrained = pandas.read_parquet(analysis / "statistics_twins.parquet")
    trends = compare_trends(real, untrained).set_index("statistic")
    # Sign correlation falls without training, too, and sparsity does not come from it;
    # the number of dimensions does.
    assert trends.loc["sign_correlation", "shared"]
    assert trends.loc["hoyer_contribution", "below"] >= 5
    assert not trends.loc["dims95_contribution", "shared"]
    assert trends.loc["dims95_contribution", "above"] >= 7


@pytest.mark.slow
def test_photos_from_files_to_maps(tmp_path: Path) -> None:
    run = run_example("photos_mobilenet", tmp_path)
    correct = (run.store.predictions == run.store.labels).sum()
    assert int(correct) >= 16
    for site in ("blocks.6", "blocks.12"):
        maps = load_record(tmp_path / "analysis" / "maps" / site / "nmf.npz", SiteMaps)
        assert maps.pictures.shape[1:] == (224, 224, 3)
        assert maps.total.shape == (4, 4, 224, 224)
        assert bool(maps.total.isfinite().all())
        parts = maps.positive + maps.negative
        assert float((maps.total - parts).abs().max()) <= 1e-4 * float(maps.total.abs().max())
    names = json.loads((tmp_path / "analysis" / "labels.json").read_text())
    assert len(names) == 1000
    assert (tmp_path / "report" / "index.html").is_file()


def test_the_contrast_of_pronouns_adds_up(tmp_path: Path) -> None:
    plan = config.read(EXAMPLES / "stories" / "pronouns.toml")
    plan = replace(
        plan, out=tmp_path / "run", data=replace(plan.data, limit=24), links=("collect",),
        sites=("lm.model.layers.4",), collect=replace(plan.collect, twins=()),
    )  # fmt: skip
    run = Run(plan, progress=False)
    assert [outcome.state for outcome in chain(run)] == ["made"]
    store = run.store
    assert store.recipe["method"]["baseline"] == {"name": "MeanToken"}
    inputs = store.to_xarray()["inputs"]
    change = torch.from_numpy((inputs["target"] - inputs["target_baseline"]).to_numpy())
    sums = store.matrix("lm.model.layers.4", sign="sum").sum(1)
    assert (sums - change).abs().median() < 0.05 * change.abs().median()
    names = run.loaded.label_names or ()
    he = store.labels == names.index("H")
    assert 0 < int(he.sum()) < len(he)
    assert bool(((inputs["target"].to_numpy() > 0) == he.numpy()).mean() > 0.9)
