"""Dictionaries of a run side by side: the table that `condec judge` leaves, and where it stands."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from typer.testing import CliRunner

from condec.basis.errors import DataError, StoreError
from condec.cli import app
from condec.dictionary import import_dictionary
from condec.effects import judge
from condec.modes import Modes
from condec.report import build_report
from condec.report.reading import read_run
from condec.report.side_by_side import judged_rows
from condec.run import Run, chain, config
from condec.run.judging import judge_dictionaries
from condec.run.links import function
from condec.run.verify import verify_run
from small_runs import run_of, write_source

RANKINGS = 'control = {sites = "block2", rankings = ["modes", "activation_modes"], '


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_source(tmp_path_factory.mktemp("judging"))
    text = (folder / "run.toml").read_text()
    text = text.replace('control = {sites = "block2", ', RANKINGS)
    (folder / "run.toml").write_text(text)
    plan = replace(config.read(folder / "run.toml"), links=("collect", "fit", "control"))
    assert [one.state for one in chain(Run(plan, progress=False))] == ["made"] * 3
    config.write(plan)
    width = Run(plan).store.info("block2").n_units
    np.save(folder / "block2.npy", np.random.default_rng(0).random((3, width), np.float32))
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "it")
    return tmp_path / "it"


def test_all_dictionaries_of_a_site_stand_in_one_table_and_on_its_page(source: Path) -> None:
    run = run_of(source)
    text = str(source / "{site}.npy")
    outcome = judge_dictionaries(run, ["block2"], [text])
    assert (outcome.link, outcome.state) == ("judge", "made")
    table = run.folder.read_table("judged", "block2")
    assert table["name"].tolist() == [
        "kmeans", "activations, modes", "activations, block2.npy", "units of contributions",
        "units of activations", "mean_contribution", "contribution_difference", "random",
    ]  # fmt: skip
    (modes,) = run.modes(["block2"])
    known = import_dictionary(source / "block2.npy")
    other = Modes.build(known, run.store, "block2", quantity="activation")
    few = {"n_random": 1, "n_bootstrap": 1000, "n_shuffles": 5}
    expected = judge(
        {"kmeans": modes, "activations, block2.npy": other}, run.model_of_store, run.inputs,
        properties=run.properties, **few,
    )  # fmt: skip
    same = table[table["name"].isin(expected["name"])].reset_index(drop=True)
    pandas.testing.assert_frame_equal(same[expected.columns], expected)
    assert judge_dictionaries(run_of(source), ["block2"], [text]).state == "kept"
    assert verify_run(run.folder.path).damages == ()
    rows = judged_rows(read_run(run.folder.path))
    assert {row["site"] for row in rows} == {"block2"}
    report = build_report(run.folder.path)
    for page in (report, report.parent / "sites" / "block2.html"):
        assert "<th>contribution difference</th>" in page.read_text("utf-8")
    assert "Dictionaries side by side" not in (report.parent / "sites/block1.html").read_text()


def test_the_report_reads_how_modes_compare_with_units(source: Path) -> None:
    run = run_of(source)
    parts = {site.key: part for site, part in read_run(run.folder.path).parts}
    assert parts["block1"].against_units()["of"].tolist() == [
        "units of contributions", "units of activations", "modes of contributions"
    ]  # fmt: skip
    found = parts["block2"].against_units()
    assert found["of"].tolist()[-3:] == [
        "units of contributions", "units of activations", "modes of activations"
    ]  # fmt: skip
    assert found["sign"].tolist() == ["positive"] * 3 + ["sum"] * 3
    page = build_report(run.folder.path).parent / "sites" / "block2.html"
    assert "modes of activations" in page.read_text("utf-8")


def test_a_new_fit_removes_the_table(source: Path) -> None:
    run = run_of(source)
    judge_dictionaries(run, ["block2"])
    changed = run_of(source, fit=replace(run.plan.fit, train=replace(run.plan.fit.train, seed=7)))
    function("fit")(changed)
    assert changed.folder.read_table("judged", "block2") is None


def test_the_command_and_what_it_refuses(source: Path) -> None:
    command = ["judge", str(source / "run.toml"), "--site", "block2", "--quiet"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "judge    made" in said.output
    lost = CliRunner().invoke(app, [*command, "--of-activations", "nowhere.npy"])
    assert lost.exit_code == 2
    shutil.rmtree(source / "run" / "modes")
    for record in (source / "run" / "tasks").glob("fit*"):
        record.unlink()
    with pytest.raises(StoreError, match="no modes to judge yet; run 'condec fit"):
        judge_dictionaries(run_of(source))


def test_without_labels_nothing_judges(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(source)
    monkeypatch.setitem(run.__dict__, "properties", ())
    with pytest.raises(DataError, match="judge: the data have no labels or attributes, by which"):
        judge_dictionaries(run)
