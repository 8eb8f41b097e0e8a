"""Sweeps: plans and what they refuse, what is fitted and kept, and what the results say."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from condec import cli, dictionary
from condec.basis.errors import DataError, OptionError, SiteError, StoreError
from condec.basis.files import store_path, write_file
from condec.basis.objects import object_path
from condec.dictionary import (
    KMeans,
    TopKSAE,
    alive_modes,
    best_at_equal_l0,
    fit,
    load_dictionary,
    over_seeds,
    pareto_front,
    seed_agreement,
    stability,
)
from condec.network.sites import Site, match_sites
from condec.run import sweep as sweeps
from condec.store import folder as store_folder
from condec.store.store import Store
from condec.testing.planted import Planted
from forked import Command
from small_runs import small_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "sweep"
GRID = {"learner": "topk", "n_modes": ["1x", 12], "k": [1, 2]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder with a store of two sites."""
    folder = tmp_path_factory.mktemp("sweep")
    small_run(folder / "run", links=())
    return folder


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path


def plan_of(folder, *grids, **changes):
    record = {
        "run": "run", "seeds": [0, 1], "train": {"steps": 30}, "sites": "block1",
        "grid": list(grids or [GRID]), **changes,
    }  # fmt: skip
    return sweeps.from_dict(record, folder=folder)


def sweep(plan):
    return sweeps.sweep(plan, progress=False)


# --- plans ----------------------------------------------------------------------------------


def test_a_grid_is_every_combination_of_its_choices(tmp_path):
    plan = plan_of(tmp_path, GRID, {"learner": "nmf", "n_modes": 4}, train={"held_out": [0.2, 0.3]})
    names = list(plan.configurations)
    assert len(names) == 8 + 2
    assert names[0] == "topk 1x held_out=0.2 k=1"
    assert names[-1] == "nmf 4 held_out=0.3"
    last = plan.configurations["topk 12 held_out=0.3 k=2"]
    assert last.learner_for(100, 1000) == TopKSAE(12, k=2)
    assert (last.train.held_out, plan.options) == (0.3, ("held_out", "k"))


def test_lists_are_choices_unless_the_value_is_a_list(tmp_path):
    grid = {"learner": "matryoshka", "prefixes": [0.5, 1.0]}
    (one,) = plan_of(tmp_path, grid).configurations.values()
    assert one.learner.prefixes == (0.5, 1.0)
    two = plan_of(tmp_path, grid | {"prefixes": [[0.5, 1.0], [1.0]]}).configurations
    assert list(two) == [
        "matryoshka 1x, rows/4 prefixes=0.5,1.0", "matryoshka 1x, rows/4 prefixes=1.0",
    ]  # fmt: skip


def test_the_same_configuration_of_two_grids_is_one(tmp_path):
    plan = plan_of(tmp_path, GRID, {"learner": "topk", "n_modes": 12, "k": [2, 4]})
    assert len(plan.configurations) == 5


def test_a_store_is_named_by_itself_by_its_folder_or_by_a_run_toml(tmp_path):
    (tmp_path / "run.toml").write_text('sites = "block*"\nout = "other"\n')
    stores = [
        plan_of(tmp_path, run=place).store.relative_to(tmp_path) for place in ("run", "run.toml")
    ]
    assert stores == [Path("run/contributions.zarr"), Path("other/contributions.zarr")]
    record = {"store": "a.zarr", "grid": [GRID]}
    assert sweeps.from_dict(record, folder=tmp_path).store == tmp_path / "a.zarr"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "x"}, r"there is no key 'site'; nearest: 'sites'. Keys: run, store"),
        ({"store": "b"}, "expected either run .* or store .*; got run and store"),
        ({"grid": []}, "grid: none is given; add one"),
        ({"grid": "topk"}, r"grid: expected tables; got 'topk'"),
        ({"grid": [{}]}, "grid 1: learner: expected one of sae, .*; got None"),
        (
            {"grid": [GRID, {"learner": "topc"}]},
            "grid 2: learner: expected one of .*; got 'topc'",
        ),
        ({"grid": [{"learner": "nmf", "k": 2}]}, r"grid 1: \[grid\] has no key 'k'; nearest: "),
        ({"grid": [GRID | {"k": []}]}, "grid 1: k: no value is given"),
        ({"grid": [GRID | {"k": "a"}]}, "grid 1: fit: k: expected a whole number"),
        ({"grid": [GRID | {"n_modes": "x"}]}, "grid 1: fit: n_modes: expected a number, a"),
        ({"grid": [GRID | {"seed": 1}]}, "grid 1: seeds are given once for all grids"),
        ({"train": 3}, "train: expected a table; got 3"),
        ({"train": {"step": 3}}, r"grid 1: \[grid\] has no key 'step'; nearest: 'steps'"),
        ({"train": {"held_out": 0.0}}, "topk 1x.* k=1: .* held-out rows: held_out is 0"),
        ({"seeds": []}, "seeds: expected one or more, all different; got none"),
        ({"seeds": [1, 1]}, "seeds: expected one or more, all different; got 1, 1"),
        ({"seeds": [0.5]}, "seeds: expected a whole number; got 0.5"),
        ({"seeds": [-1]}, "seed must be from 0 to"),
        ({"sites": 3}, "sites: expected text; got 3"),
        ({"quantity": "weight"}, "quantity: expected one of contribution, activation; got 'weig"),
        ({"run": []}, r"run: expected text; got \[\]"),
        ({"out": ["a", "b"]}, "out: expected text; got"),
        ({"sign": "both"}, "sign: expected one of positive, .*; got 'both'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_plans_that_cannot_be(changes, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        plan_of(tmp_path, **changes)


def test_files_that_are_no_plan(tmp_path):
    with pytest.raises(OptionError, match=r"none\.toml: not readable"):
        sweeps.read(tmp_path / "none.toml")
    (tmp_path / "sweep.toml").write_text("grid = [")
    with pytest.raises(OptionError, match=r"sweep\.toml: not TOML"):
        sweeps.read(tmp_path)
    with pytest.raises(OptionError, match="got neither"):
        sweeps.from_dict({"grid": [GRID]})


# --- sweeps ---------------------------------------------------------------------------------


def test_one_row_a_fit_as_its_dictionary_says(folder):
    plan = plan_of(folder, GRID, {"learner": "kmeans", "n_modes": 4}, sites=[])
    result = sweep(plan)
    table = pd.read_parquet(plan.out / "results.parquet")
    pd.testing.assert_frame_equal(table, result.table)
    assert len(table) == result.n_made == 2 * 5 * 2
    assert set(table["site"]) == {"block1", "block2:input"}
    row = table[(table["configuration"] == "topk 12 k=2") & (table["seed"] == 1)].iloc[0]
    found = load_dictionary(plan.out / row["folder"])
    measured = found.training.metrics
    for name in ("r2", "r2_grand", "l0", "cosine", "n_alive", "dead_share", "atom_hoyer"):
        assert row[name] == getattr(measured["held_out"], name)
        assert row[f"{name}_train"] == getattr(measured["train"], name)
    assert (found.learner.k, found.training.config.seed, row["n_modes"]) == (2, 1, 12)
    assert table.loc[table["learner"] == "kmeans", "k"].isna().all()
    assert (plan.out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not (plan.out / "checkpoints").exists()
    again = sweeps.read(plan.out)
    assert again.configurations == plan.configurations
    assert (again.store.resolve(), again.out.resolve()) == (plan.store, plan.out)
    assert (again.seeds, again.sites) == ((0, 1), ())


def test_every_fit_is_what_fit_gives(folder):
    plan = plan_of(folder, {"learner": "kmeans", "n_modes": 4})
    result = sweep(plan)
    (configuration,) = plan.configurations.values()
    matrix = Store.open(plan.store).matrix("block1")
    alone = fit(configuration.learner, matrix, config=configuration.train)
    assert result.table["r2"][0] == pytest.approx(alone.r2, abs=1e-5)


def test_done_is_kept_and_a_changed_plan_makes_only_what_it_changes(folder):
    plan = plan_of(folder)
    first = sweep(plan)
    times = {f: f.stat().st_mtime_ns for f in plan.out.glob("fits/**/fit.json")}
    again = sweep(plan)
    assert (first.n_made, again.n_made, again.n_kept) == (8, 0, 8)
    pd.testing.assert_frame_equal(first.table, again.table)
    more = sweep(plan_of(folder, GRID | {"k": [1, 2, 4]}))
    assert (more.n_made, more.n_kept) == (4, 8)
    fewer = sweep(plan_of(folder, GRID | {"k": 4}, seeds=[1]))
    assert (fewer.n_made, len(fewer.table)) == (0, 2)
    assert fewer.table["stability"].isna().all()
    assert all(file.stat().st_mtime_ns == before for file, before in times.items())
    assert sweep(plan_of(folder, train={"steps": 31})).n_made == 8
    assert sweep(plan_of(folder, quantity="activation")).n_made == 8
    with pytest.raises(OptionError, match="positions"):
        sweep(plan_of(folder, rows="positions"))


def test_a_store_in_an_object_store_is_swept_to_the_same_bytes(folder):
    here, there = folder / "run" / "contributions.zarr", store_path("memory://sweep/s.zarr")
    for file in here.rglob("*"):
        if file.is_file():
            write_file(there / file.relative_to(here), file.read_bytes())
    grid, found = {"learner": "topk", "n_modes": 4, "k": 1}, []
    for store in (here, there):
        plan = plan_of(
            folder, grid, run=None, store=str(store), seeds=[0], out=f"of {store.parent.name}"
        )
        sweep(plan)
        assert sweeps.read(plan.out).store.exists()
        found.append({f.name: f.read_bytes() for f in plan.out.rglob("dictionary.*")})
    assert found[0] == found[1] != {}


def test_a_fit_without_its_record_is_done_again(folder):
    plan = plan_of(folder)
    first = sweep(plan)
    (plan.out / first.table["folder"][2] / "fit.json").unlink()
    (plan.out / first.table["folder"][5] / "dictionary.safetensors").unlink()
    again = sweep(plan)
    assert (again.n_made, again.n_kept) == (2, 6)
    assert again.table["r2"].tolist() == pytest.approx(first.table["r2"].tolist())


def test_long_lists_are_done_in_parts(folder, monkeypatch):
    whole = sweep(plan_of(folder)).table
    lists = []
    fit_many = dictionary.fit_many

    def counted(jobs, **options):
        lists.append(len(jobs))
        return fit_many(jobs, **options)

    monkeypatch.setattr(dictionary, "fit_many", counted)
    monkeypatch.setattr(sweeps, "_AT_ONCE", 5 * 12 * 12 * 4)
    parts = sweep(plan_of(folder, out="parts")).table
    assert lists == [5, 3]
    assert parts["r2"].tolist() == pytest.approx(whole["r2"].tolist(), abs=1e-4)


def test_what_cannot_be_swept(folder):
    with pytest.raises(SiteError, match="'blok' fits none of the sites; there are block1, block2"):
        sweep(plan_of(folder, sites=["block1", "blok"]))
    with pytest.raises(StoreError, match=r"no contributions yet; run 'condec collect .* first"):
        sweep(plan_of(folder, run="elsewhere"))
    far = replace(plan_of(folder), store=object_path("memory://condec-nowhere/run.zarr"))
    with pytest.raises(StoreError, match=r"no contributions yet; run collect first"):
        sweep(far)
    # Found before any fit: the first grid could be fitted.
    plan = plan_of(folder, GRID, {"learner": "kmeans", "n_modes": 400})
    with pytest.raises(DataError, match=r"block1: kmeans 400: .*400"):
        sweep(plan)
    frozen = plan_of(folder, GRID, {"learner": "nmf", "n_modes": 4}, train={"freeze": "decoder"})
    with pytest.raises(OptionError, match=r"block1: nmf 4: fit: NMF has no decoder"):
        sweep(frozen)
    assert not (plan.out / "fits").exists()


@pytest.mark.parametrize("name", ["dictionary.safetensors", "dictionary.json", "fit.json"])
def test_a_damaged_fit_is_done_again(folder, name):
    plan = plan_of(folder, GRID | {"k": 2})
    first = sweep(plan)
    broken = next(plan.out.glob(f"fits/*/topk/*/{name}"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-9])
    for file in plan.out.glob("stability/*.json"):
        file.write_bytes(file.read_bytes().replace(b"0.", b"1."))
    again = sweep(plan)
    assert again.n_made == 1
    drop = ["seconds"]
    pd.testing.assert_frame_equal(first.table.drop(columns=drop), again.table.drop(columns=drop))


def test_sites_without_a_model():
    sites = [Site.parse(key) for key in ("a.0", "a.1:input", "b#1", "c@heads(4)[1:]")]
    assert match_sites(sites, "a.*") == tuple(sites[:2])
    assert match_sites(sites, ["b", "a.*:input"]) == (sites[1], sites[2])
    assert match_sites(sites, "c@heads(4)[1:]") == (sites[3],)


TOML = """
run = "run"
sites = "block1"
seeds = [0, 1]
[train]
steps = 30
[[grid]]
learner = "topk"
n_modes = ["1x", 12]
k = [1, 2]
"""


def killed_in_the_fourth_record(plan):
    """Carry a sweep out, in a process that ends with half a record written."""
    done, write = [], store_folder.write_file

    def dies(path, content, **how):
        done.extend([1] * (path.name == "fit.json"))
        if len(done) == 4:
            path.with_name("fit.json.0.partial").write_bytes(content[:20])
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content, **how)

    store_folder.write_file = dies
    sweep(plan)


def test_killed_while_a_record_is_written_and_done_again(folder):
    (folder / "sweep.toml").write_text(TOML)
    plan = sweeps.read(folder / "sweep.toml")
    killed = Command(folder / "output", partial(killed_in_the_fourth_record, plan))
    assert killed.end() == -signal.SIGKILL, killed.output
    out = folder / "sweep"
    assert not (out / "results.parquet").exists()
    records = list(out.glob("fits/**/fit.json"))
    assert len(records) == 3
    assert all(json.loads(record.read_text())["metrics"] for record in records)
    result = sweep(sweeps.read(folder / "sweep.toml"))
    assert (result.n_made, result.n_kept) == (5, 3)
    assert not list(out.rglob("*.partial"))
    straight = sweep(plan_of(folder, out="straight"))
    assert dictionaries(out) == dictionaries(folder / "straight")
    other = [name for name in straight.table if name != "seconds"]
    pd.testing.assert_frame_equal(result.table[other], straight.table[other])


def dictionaries(out):
    """Content of all dictionaries of a sweep, by their places in its folder."""
    found = out.glob("fits/**/dictionary.*")
    return {path.relative_to(out): path.read_bytes() for path in found}


@pytest.mark.parametrize("n_done", [1, 4])
def test_fits_that_run_as_one_do_so_again_after_an_interruption(folder, monkeypatch, n_done):
    plan = plan_of(folder, {"learner": "topk", "n_modes": 12, "k": [1, 2]}, seeds=[0, 1, 2])
    whole = sweep(plan_of(folder, plan.record["grid"][0], seeds=[0, 1, 2], out="whole"))
    save, saved = dictionary.FitReport.save, []

    def failing(report, place):
        if len(saved) == n_done:
            raise OSError(28, "No space left on device")
        saved.append(place)
        save(report, place)

    monkeypatch.setattr(dictionary.FitReport, "save", failing)
    with pytest.raises(OSError, match="No space left"):
        sweep(plan)
    monkeypatch.setattr(dictionary.FitReport, "save", save)
    kept = {place: (place / "fit.json").read_bytes() for place in saved}
    result = sweep(plan)
    assert (result.n_made, result.n_kept) == (6 - n_done, n_done)
    assert {place: (place / "fit.json").read_bytes() for place in saved} == kept
    assert dictionaries(plan.out) == dictionaries(folder / "whole")
    assert len(whole.table) == 6


def test_a_fit_that_goes_while_the_table_is_made_is_said(folder, monkeypatch):
    plan = plan_of(folder)
    sweep(plan)
    seed_agreement = dictionary.seed_agreement

    def another_sweep(atoms):
        for record in plan.out.glob("fits/**/fit.json"):
            record.unlink()
        return seed_agreement(atoms)

    shutil.rmtree(plan.out / "stability")
    monkeypatch.setattr(dictionary, "seed_agreement", another_sweep)
    with pytest.raises(StoreError, match="is another sweep at work in the same folder"):
        sweep(plan)


def test_a_record_of_something_else_is_no_fit(folder):
    plan = plan_of(folder)
    place = plan.out / sweep(plan).table["folder"][0]
    for text in ("[]", '{"metrics": {}}'):
        (place / "fit.json").write_text(text)
        assert sweep(plan).n_made == 1


def test_the_command_says_what_it_made_and_where(folder):
    (folder / "sweep.toml").write_text(TOML)
    first = CliRunner().invoke(cli.app, ["sweep", str(folder / "sweep.toml")])
    assert first.exit_code == 0, first.output
    assert "block1" in first.stdout
    assert "told_apart" in first.stdout
    assert "8 fits made, 0 kept" in first.stdout
    assert f"{folder}/sweep/results.parquet\n{folder}/sweep/pareto.png\n" in first.stdout
    again = CliRunner().invoke(cli.app, ["sweep", str(folder / "sweep"), "--quiet"])
    assert "0 fits made, 8 kept" in again.stdout
    (folder / "sweep.toml").write_text(TOML.replace("topk", "topc"))
    wrong = CliRunner().invoke(cli.app, ["sweep", str(folder / "sweep.toml")])
    assert wrong.exit_code == 2


# --- results --------------------------------------------------------------------------------


def fits(**columns):
    return pd.DataFrame({"site": "a", **columns})


def test_the_front_is_what_nothing_beats():
    generator = torch.Generator().manual_seed(0)
    l0, r2 = torch.randint(0, 9, (2, 60), generator=generator).double()
    table = fits(l0=l0, r2=r2 / 10)
    table.loc[3, "r2"] = math.nan
    table["site"] = ["a", "b"] * 30
    usable = table[(table["l0"] > 0) & table["r2"].notna()]
    expected = []
    for place, row in table.iterrows():
        others = usable[usable["site"] == row["site"]]
        as_good = others[(others["l0"] <= row["l0"]) & (others["r2"] >= row["r2"])]
        better = (as_good["l0"] < row["l0"]) | (as_good["r2"] > row["r2"])
        expected.append(place in usable.index and not better.any())
    assert pareto_front(table).tolist() == expected
    assert 2 < sum(expected) < 30


def test_tables_without_what_is_needed():
    for function in (over_seeds, pareto_front, best_at_equal_l0):
        with pytest.raises(DataError, match=f"{function.__name__}: the table has no column .*r2"):
            function(fits(l0=[1.0]))


def test_the_front_is_of_means_so_that_one_lucky_seed_is_not_on_it(folder):
    table = fits(
        configuration=["x", "x", "y", "y"], l0=[2.0, 2.0, 2.0, 2.0], r2=[0.9, 0.1, 0.6, 0.7]
    )
    means = over_seeds(table)
    assert means.loc[pareto_front(means), "configuration"].tolist() == ["y"]
    swept = sweep(plan_of(folder)).table
    means = over_seeds(swept).set_index("configuration")
    front = set(means.index[pareto_front(means.reset_index()).to_numpy()])
    assert set(swept.loc[swept["on_front"], "configuration"]) == front


def test_best_at_about_equal_l0():
    table = fits(
        configuration=list("xxyyzz"), learner=["p"] * 2 + ["q"] * 4,
        l0=[3.9, 4.1, 4.5, 4.5, 8.0, 8.0], r2=[0.8, 0.9, 0.5, 0.7, 0.95, 0.85],
        stability=[0.5] * 6, dead_share=[0.0, 0.3] * 3,
    )  # fmt: skip
    best = best_at_equal_l0(over_seeds(table))
    assert best["about_l0"].tolist() == [4.0, 8.0]
    assert best["configuration"].tolist() == ["x", "z"]
    assert best["next_configuration"].isna().tolist() == [False, True]
    assert best["told_apart"].tolist() == [True, False]
    words = sweeps.sweep_words(table)
    assert "a     4.000             x 4.000 0.850   0.800    0.900                  y" in words
    assert "3 of 6 dictionaries have more than 20% dead modes" in words
    table.loc[3, "r2"] = 0.81
    assert best_at_equal_l0(over_seeds(table))["told_apart"].tolist() == [False, False]


def test_stability_of_a_sweep_is_that_of_stability(folder):
    plan = plan_of(folder, seeds=[0, 1, 2, 3, 4])
    table = sweep(plan).table
    name, configuration = list(plan.configurations.items())[3]
    matrix = Store.open(plan.store).matrix("block1")
    learner = configuration.learner_for(matrix.shape[1], len(matrix))
    found = stability(learner, matrix, config=configuration.train)
    rows = table[table["configuration"] == name]
    assert rows["stability"].iloc[0] == pytest.approx(float(found.seed_cosine.nanmean()), abs=1e-3)


def test_agreement_of_atoms():
    data = Planted.small()
    atoms = data.atoms
    assert seed_agreement([atoms, atoms.flip(0)]).tolist() == pytest.approx([1.0, 1.0])
    empty = seed_agreement([atoms, atoms[:0]])
    assert (float(empty[0]), math.isnan(float(empty[1]))) == (0.0, True)
    with pytest.raises(OptionError, match="at least two fits are compared; got 1"):
        seed_agreement([atoms])


def test_alive_modes_are_those_that_rows_use():
    data = Planted.small()
    found = fit(KMeans(8), data.matrix).dictionary
    used = (found.encode(data.matrix[:3]) > 0).any(0)
    assert alive_modes(found, data.matrix[:3]).tolist() == used.tolist()
    assert 1 <= int(used.sum()) <= 3


# --- examples -------------------------------------------------------------------------------


def test_the_examples_are_the_grids_that_they_say():
    sizes = {file.stem: _size(file) for file in EXAMPLES.glob("*.toml") if "run" not in file.stem}
    assert sizes == {"digits": (16, 3), "resnet50": (27, 3), "resnet50_encoder": (8, 1)}
    assert sweeps.read(EXAMPLES / "resnet50.toml").seeds == (1001, 2002, 483)
    fits = sweeps.read(EXAMPLES / "digits.toml").configurations.values()
    sparsities = {getattr(fit.learner, "k", None) for fit in fits}
    assert len(sparsities - {None}) >= 5


def _size(file):
    plan = sweeps.read(file)
    return len(plan.configurations), len(plan.seeds)
