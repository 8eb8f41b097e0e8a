"""`condec verify`: every damage is named with its remedy, and repaired without the rest."""

import errno
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import condec.report
import damages
from condec import cli
from condec.basis.errors import OptionError, StoreError
from condec.basis.files import reading
from condec.basis.objects import object_path
from condec.run import Run, config, links
from condec.run.verify import repair_run, verify_run
from condec.store import Store
from small_runs import contents, quick_report, write_source

STORE = "contributions.zarr"


@pytest.fixture(autouse=True, scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with every kind of result, made once."""
    source = write_source(tmp_path_factory.mktemp("verify"))
    text = (source / "run.toml").read_text()
    text = text.replace("n_random = 1", "n_random = 1, matrix = true")
    text = text.replace('"predicted", ', '"predicted", twins = ["shuffled-labels"], ')
    (source / "run.toml").write_text(
        text.replace("held_out = 0.4", "held_out = 0.4, rivals = true")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condec.report, "build_report", quick_report)
        run = Run(config.read(source / "run.toml"), progress=False)
        config.write(run.plan)
        list(links.chain(run))
        yield source


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def command(folder: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["verify", str(folder), *options])
    return result.exit_code, result.stdout


def test_a_run_folder_goes_to_an_object_store_and_back(folder: Path, tmp_path: Path) -> None:
    """As any program copies it: contents alone, no times, no empty folders, no lock."""
    there, back = object_path("memory://runs/a"), tmp_path / "back" / "run"
    assert there is not None
    for name, content in contents(folder).items():
        (there / name).write_bytes(content)
    store, mine = Store.open(f"{there}/contributions.zarr"), Store.open(folder / STORE)
    assert torch.equal(store.matrix(store.sites[0]), mine.matrix(store.sites[0]))
    for name in contents(folder):
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        (back / name).write_bytes((there / name).read_bytes())
    assert verify_run(back).damages == ()
    plan = config.read(back)
    plan = replace(plan, base=config.read(folder).base)
    states = [outcome.state for outcome in links.chain(Run(plan, progress=False, trust_code=True))]
    assert {*states} == {"kept"}
    with pytest.raises(OptionError, match="to which you may copy what is there; only stores of"):
        verify_run(Path(f"{there}"))


def test_a_sound_run_is_sound(folder: Path) -> None:
    found = verify_run(folder)
    assert found.damages == ()
    assert found.n_files == sum(file.is_file() for file in folder.rglob("*"))
    assert command(folder) == (0, f"{found}\n")
    assert str(found).endswith(" MiB checked, all as it was written")


NAMES = [
    "analysis/statistics.parquet", "analysis/labels.json", "analysis/control.parquet",
    "analysis/control_matrix/block2/kmeans.parquet", "analysis/maps/block1/kmeans.npz",
    "analysis/rivals/block2/kmeans.parquet", "modes/block1/kmeans/dictionary.safetensors",
    "modes/block2/kmeans/modes.zarr/loadings/zarr.json", "log_odds/block2/modes.zarr/zarr.json",
    "report/index.html", "tasks/stats.json", "tasks/fit%20block1%20%28kmeans%29.json",
    "tasks/collect.json", "tasks/report.json",
    "contributions.zarr/sites/block1/contribution/c.0.0.0",
    "contributions.zarr/manifest/shard-00001.json",
    "twins/shuffled-labels/contributions.zarr/inputs/label/c.1",
    "log_odds/contributions.zarr/inputs/label/c.0",
]  # fmt: skip


@pytest.mark.parametrize("damage", ["flip", "delete"])
@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_named(folder: Path, name: str, damage: str) -> None:
    file = folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if damage == "delete":
        file.unlink()
    found = verify_run(folder)
    assert any(
        file.is_relative_to(one.file)
        or (damage == "delete" and name.startswith("tasks"))
        or "manifest" in name
        for one in found.damages
    )
    code, text = command(folder)
    assert code == 1
    assert text.count("\n") == len(found.damages) + 1
    assert " damaged\n" in text


@pytest.mark.parametrize("damage", [damages.scramble, damages.loop])
@pytest.mark.parametrize("name", [NAMES[i] for i in (0, 6, 10, 14)])
def test_repair_computes_that_part_again(folder: Path, name: str, damage: damages.Damage) -> None:
    before = contents(folder)
    damage(folder / name, random.Random(0), folder)
    code, text = command(folder, "--repair", "--quiet", "--trust-code")
    assert text.splitlines()[-1].endswith("all as it was written")
    assert code == 0
    assert contents(folder) == before
    link = {0: "stats", 6: "fit", 10: "stats", 14: "collect"}[NAMES.index(name)]
    assert f"\n{link:8} made " in text
    assert "\ncontrol  made" not in text


def test_shards_outlive_the_metadata_of_their_store(folder: Path) -> None:
    before, place = contents(folder), folder / "contributions.zarr"
    kept = {file: file.stat().st_ino for file in place.rglob("c.0*")}
    for name in ("zarr.json", "inputs/label/c.1"):
        (place / name).write_bytes(b"garbage")
    code, _ = command(folder, "--repair", "--quiet", "--trust-code")
    assert (code, contents(folder)) == (0, before)
    assert {file: file.stat().st_ino for file in kept} == kept


def test_causes_stand_before_what_follows_from_them(folder: Path) -> None:
    places = [folder / NAMES[i] for i in (5, 15, 3)]
    modes = folder / "modes" / "block2" / "kmeans" / "dictionary.json"
    for file in (*places, modes):
        file.write_bytes(b"garbage")
    found = verify_run(folder).damages
    names = [one.file.relative_to(folder).as_posix() for one in found]
    assert names[0] == NAMES[15]  # and the store, whose manifest it is, is not told again
    assert "contributions.zarr" not in names
    said = {name: one.problem for name, one in zip(names, found, strict=True)}
    assert said["modes/block1/kmeans"] == "follows from contributions.zarr"
    assert said["analysis/control/block2/kmeans.parquet"] == "follows from modes/block2/kmeans"
    assert said[NAMES[5]].startswith("not what 'rivals block2 (kmeans)' has made: ")
    chain = ("analysis/statistics.parquet", "modes/block2/kmeans", NAMES[5], NAMES[3], "report")
    order = [names.index(name) for name in chain]
    assert order == sorted(order)
    assert order[-1] == len(names) - 1
    assert str(found[-1]).endswith(". It is kept if that is made again the same.")


@pytest.mark.parametrize("name", [NAMES[6], NAMES[15]])
def test_repair_keeps_what_comes_out_the_same(folder: Path, name: str) -> None:
    before = contents(folder)
    kept = {file: (folder / file).stat().st_ino for file in NAMES[2:6]}
    (folder / name).write_bytes(b"garbage")
    code, text = command(folder, "--repair", "--quiet", "--trust-code")
    assert (code, contents(folder)) == (0, before)
    assert "follows from" in text
    assert {file: (folder / file).stat().st_ino for file in kept} == kept


def test_repair_removes_what_follows_from_what_is_not_made_again(folder: Path) -> None:
    """Here the modes of a learner that the plan has no more."""
    plan = folder / "run.toml"
    plan.write_text(plan.read_text().replace('"kmeans"', '"pca"').replace("n_starts = 4", ""))
    (folder / NAMES[6]).write_bytes(b"garbage")
    code, text = command(folder, "--repair", "--quiet", "--trust-code")
    assert code == 0, text
    assert not (folder / NAMES[4]).exists()
    assert (folder / NAMES[3]).exists()  # of modes that are sound


def test_a_store_that_is_not_finished_is_no_damage(folder: Path) -> None:
    for name in ("analysis", "modes", "report", "log_odds", "twins", "tasks"):
        shutil.rmtree(folder / name)
    (folder / NAMES[15]).unlink()
    found = verify_run(folder)
    assert found.damages == ()
    words = f"contributions.zarr: not finished: 2 of 3 shards; 'condec run {folder}' goes on\n"
    assert words in str(found)
    assert command(folder) == (0, f"{found}\n")


def test_a_store_that_cannot_be_read_is_not_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Store) -> None:
        with reading(self.path, "a shard", "Do."):
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Store, "damages", refused)
    run = Run(config.read(folder), progress=False)
    with pytest.raises(StoreError, match="Allow this user"):
        list(repair_run(run, verify_run(folder)))
    assert len(list(folder.glob("contributions.zarr/manifest/shard-*.json"))) == 3


def test_a_repair_that_is_interrupted_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    (folder / "report" / "index.html").write_text("x")
    (folder / NAMES[0]).write_bytes(b"garbage")

    def stopped(run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(links.FUNCTIONS, "stats", stopped)
    assert command(folder, "--repair", "--quiet", "--trust-code")[0] == 130
    monkeypatch.undo()
    (damage,) = verify_run(folder).damages
    assert damage.problem == "a repair was interrupted, to be made again: report, stats"
    code, text = command(folder, "--repair", "--quiet", "--trust-code")
    assert (code, text.splitlines()[-1].endswith("all as it was written")) == (0, True)
    assert contents(folder) == before
    (folder / "repair.json").write_text("[")
    (damage,) = verify_run(folder).damages
    assert damage.problem.endswith("to be made again: run")


def test_what_killed_writers_left_is_told_and_goes(folder: Path) -> None:
    before = contents(folder)
    left = [
        "analysis/labels.json.0a.partial",
        ".report.new/index.html",
        "modes/block1/.kmeans.new/x",
    ]
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    (folder / "analysis" / "mine.parquet").write_text("")
    (folder / "notes.txt").write_text("not the run's")
    found = [f"{one.file.name}: {one.problem}" for one in verify_run(folder).damages]
    killed = "left by a writer that was killed"
    assert sorted(found) == [
        f".kmeans.new: {killed}", f".report.new: {killed}", f"labels.json.0a.partial: {killed}",
        "mine.parquet: no record says what it was made from",
    ]  # fmt: skip
    assert command(folder, "--repair", "-q", "--trust-code")[0] == 0
    assert contents(folder) == before | {"notes.txt": b"not the run's"}


def test_a_plan_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "run.toml").write_text("sites = ")
    (damage,) = verify_run(folder).damages
    assert damage.problem.startswith("not TOML")


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a run folder; it has no contributions\.zarr"):
        verify_run(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_nothing_of_the_run_is_executed(folder: Path) -> None:
    (folder.parent / "net.py").write_text("raise SystemExit('executed')")
    assert command(folder)[0] == 0
