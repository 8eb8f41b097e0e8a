"""Chosen modes: their toml, and control curves of each, against a plain pass."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from condec.basis.errors import DataError, OptionError, StoreError
from condec.cli import app
from condec.run import Run, chain, config
from condec.run.links import function
from condec.run.selection import (
    Selected,
    control_selection,
    read_selection,
    selection_toml,
    with_label,
)  # fmt: skip
from condec.run.verify import verify_run
from small_runs import write_source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_source(tmp_path_factory.mktemp("selection"))
    plan = replace(config.read(folder / "run.toml"), links=("collect", "fit"))
    assert [one.state for one in chain(Run(plan, progress=False))] == ["made"] * 2
    config.write(plan)
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "it")
    return tmp_path / "it"


def run_of(source: Path, **control: object) -> Run:
    plan = config.read(source / "run.toml")
    return Run(replace(plan, control=replace(plan.control, **control)), progress=False)


def two_of(run: Run) -> tuple[Selected, Selected]:
    modes = next(one for one in run.modes() if one.site.key == "block1")
    first, second = modes.ids[:2].tolist()
    return Selected("block1", first), Selected("block1", second)


def test_a_selection_is_written_and_read(tmp_path: Path) -> None:
    chosen = (Selected("block1", 3), Selected('a "site"', 0, 2, "1f"))
    (tmp_path / "it.toml").write_text(selection_toml(chosen))
    assert read_selection(tmp_path / "it.toml") == chosen


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[modes", "expected a selection of modes in TOML"),
        ("sites = 3", r"expected tables \[\[modes\]\], with site and mode"),
        ("modes = []", r"expected tables \[\[modes\]\]"),
        ("modes = [3]", "expected site, a text, mode, a number"),
        ("[[modes]]\nsite = 'a'", "a label, its number, or a dictionary, its digest; got"),
        ("[[modes]]\nsite = 'a'\nmode = 1\ndictionary = 2", "or a dictionary, its digest; got"),
        ("[[modes]]\nsite = 'a'\nmode = true", "expected site, a text, mode, a number"),
        ("[[modes]]\nsite = 'a'\nmode = 1\nname = 'x'", "no more than a label"),
    ],
)
def test_what_is_no_selection_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "it.toml").write_text(text)
    with pytest.raises(OptionError, match=problem):
        read_selection(tmp_path / "it.toml")
    with pytest.raises(OptionError, match="expected a selection of modes in TOML"):
        read_selection(tmp_path / "none.toml")


def test_units_go_by_the_atom_of_the_chosen_mode(source: Path) -> None:
    run = run_of(source)
    chosen, _ = two_of(run)
    outcome = control_selection(run, [chosen])
    assert (outcome.link, outcome.state) == ("control", "made")
    table = run.folder.read_table("mode_control", "block1", "kmeans")
    assert table is not None
    modes = next(one for one in run.modes() if one.site.key == "block1")
    row = modes.row(chosen.mode)
    label = int(modes.correlation(split="train")[row].argmax())
    assert set(table["label"]) == {label}
    assert set(table["of_mode"]) == {chosen.mode}
    assert {"mode", "random"} < set(table["ranking"])
    assert not {"best_mode", "modes"} & set(table["ranking"])
    # A plain pass with the first units of the atom at 0, by a hook.
    held = modes.held_out.nonzero().flatten().tolist()
    x, labels = run.inputs.batch(held), run.store.labels[modes.held_out]
    model, order = (
        run.loaded.model.requires_grad_(False),
        modes.atoms[row].argsort(descending=True, stable=True),
    )
    before = model(x).gather(1, labels[:, None])[:, 0]
    for fraction in (0.25, 0.5):
        units = order[: int(fraction * len(order))]

        def ablated(module: object, args: object, out: torch.Tensor, units=units) -> torch.Tensor:
            out = out.clone()
            out[:, units] = 0
            return out

        hook = model.get_submodule("block1").register_forward_hook(ablated)
        change = model(x).gather(1, labels[:, None])[:, 0] - before
        hook.remove()
        own = table[(table["ranking"] == "mode") & (table["fraction"] == fraction)].iloc[0]
        for name, mine in (("target", labels == label), ("off", labels != label)):
            expected = float(change[mine].mean())
            assert abs(expected) > 1e-4
            assert own[f"{name}_logit"] == pytest.approx(expected, rel=1e-4)
        assert own["mode"] == chosen.mode


def test_curves_are_kept_added_and_undone_by_another_plan(source: Path) -> None:
    run = run_of(source)
    first, second = two_of(run)
    control_selection(run, [first])
    assert control_selection(run_of(source), [first]).state == "kept"
    before = run.folder.read_table("mode_control", "block1", "kmeans")
    assert control_selection(run_of(source), [replace(second, label=1)]).state == "made"
    run = run_of(source)
    table = run.folder.read_table("mode_control", "block1", "kmeans")
    assert before is not None
    assert table is not None
    assert table[: len(before)].equals(before)
    assert set(table["of_mode"]) == {first.mode, second.mode}
    assert control_selection(run, [first, replace(second, label=1)]).state == "kept"
    assert not verify_run(source / "run").damages
    other = run_of(source, fractions=(0.25, 0.75))
    function("control")(other)
    assert other.folder.read_table("mode_control", "block1", "kmeans") is None
    control_selection(other, [first])
    table = other.folder.read_table("mode_control", "block1", "kmeans")
    assert table is not None
    assert (set(table["of_mode"]), set(table["fraction"])) == ({first.mode}, {0.25, 0.75})
    function("control")(other)
    assert other.folder.read_table("mode_control", "block1", "kmeans") is not None


def test_what_is_not_there_is_refused(source: Path) -> None:
    run = run_of(source)
    with pytest.raises(OptionError, match="'blok' has no modes in this run; block1"):
        control_selection(run, [Selected("blok", 0)])
    with pytest.raises(OptionError, match="block1: no input uses a mode 99; 3 of the dictionary"):
        control_selection(run, [Selected("block1", 99)])
    with pytest.raises(DataError, match=r"labels \[7\] have no training row"):
        control_selection(run, [replace(two_of(run)[0], label=7)])
    modes = replace(run.modes()[0], loadings=torch.zeros_like(run.modes()[0].loadings))
    with pytest.raises(DataError, match=r"mode \d goes with no label; name one"):
        with_label(modes, Selected("block1", int(modes.ids[0])))
    other = replace(two_of(run)[0], dictionary="1f")
    with pytest.raises(OptionError, match=r"block1: modes were fitted again since mode \d"):
        control_selection(run, [other])
    assert with_label(run.modes()[0], replace(other, dictionary=modes.dictionary)).label is not None
    shutil.rmtree(source / "run" / "modes")
    shutil.rmtree(source / "run" / "tasks")
    with pytest.raises(StoreError, match="no modes of block1 yet"):
        control_selection(run_of(source), [Selected("block1", 0)])


def test_the_command_takes_a_selection(source: Path) -> None:
    chosen = source / "chosen.toml"
    chosen.write_text(selection_toml([two_of(run_of(source))[0]]))
    asked = ["control", str(source / "run.toml"), "--selection", str(chosen), "-q"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("control  made")
    assert "mode_control" in result.output
    assert not (source / "run" / "analysis" / "control.parquet").exists()


def test_again_measures_what_is_asked_for_and_keeps_the_rest(source: Path) -> None:
    run = run_of(source)
    first, second = two_of(run)
    control_selection(run, [first, replace(second, label=1)])
    before = run.folder.read_table("mode_control", "block1", "kmeans")
    other = before.assign(target_accuracy=-1.0)  # of a measurement that is to be made again
    table = run.folder.write_table(other, "mode_control", "block1", "kmeans")
    entry = next(e for e in run.folder.ledger.entries.values() if e.task.startswith("mode_control"))
    places = [run.folder.modes("block1", "kmeans")]
    run.folder.ledger.mark_done(entry.task, entry.link, entry.made_from, places, [table])
    again = replace(run_of(source), again=True)
    assert control_selection(again, [first]).state == "made"
    now = again.folder.read_table("mode_control", "block1", "kmeans")
    mine = now["of_mode"] == first.mode
    assert set(now[~mine]["target_accuracy"]) == {-1.0}
    expected = before[before["of_mode"] == first.mode].reset_index(drop=True)
    assert now[mine].reset_index(drop=True).equals(expected)
    assert len(now) == len(before)
    assert control_selection(run_of(source), [first, replace(second, label=1)]).state == "kept"
