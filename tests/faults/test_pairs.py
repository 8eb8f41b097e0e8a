"""Two processes at once on one run, store or sweep: both end well, or one is told by words."""

import itertools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import condec
import condec.report
from condec import cli
from condec.modes import Modes
from condec.run.compare import compare_runs
from condec.store import RunFolder, Store
from condec.testing.models import small_resnet
from forked import Command
from small_runs import contents, quick_report, small_inputs, undo, write_source

LINKS = ("collect", "stats", "fit", "control", "map", "explain", "report")
ON_A_RUN = [*itertools.combinations_with_replacement((*LINKS, "run", "compare"), 2)]
SWEEP = 'run = "run.toml"\nseeds = [0, 1]\n[[grid]]\nlearner = "kmeans"\nn_modes = [2, 3]\n'
IN_USE = ("run: in use by ", "sweep: in use by ")
UNDONE = (" shards are missing", "no record says what it was made from")
FAST = {("fit", "fit"), ("report", "run")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a source and its whole run."""
    root = write_source(tmp_path_factory.mktemp("whole"))
    (root / "sweep.toml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condec.report, "build_report", quick_report)
        result = CliRunner().invoke(cli.app, ["run", str(root / "run.toml"), "-q"])
        assert result.exit_code == 0, result.output
        yield root


def both(first: list[str], second: list[str], place: Path, wait: float) -> None:
    commands = [Command(place / n, c, wait=wait) for n, c in (("a", first), ("b", second))]
    told = UNDONE if wait else (*UNDONE, *IN_USE)
    for command in commands:
        code = command.end()
        assert "Traceback" not in command.output
        refused = code == 2 and any(words in command.output for words in told)
        assert code == 0 or refused, command.output
    # Who holds the run is done, or told that the other is to make something first.
    assert any(
        command.process.exitcode == 0 or any(words in command.output for words in UNDONE)
        for command in commands
    )


@pytest.mark.parametrize("wait", [0.0, pytest.param(60.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "pair", [pytest.param(p, marks=[] if p in FAST else pytest.mark.slow) for p in ON_A_RUN],
    ids="-".join,
)  # fmt: skip
def test_two_commands_on_one_run(
    whole: Path, tmp_path: Path, pair: tuple[str, str], wait: float
) -> None:
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    for name in pair:  # made again, not kept
        undo(root / "run", name)
    run, plan = str(root / "run"), str(root / "run.toml")
    commands = [[n, run, run] if n == "compare" else [n, plan, "-q"] for n in pair]
    both(*commands, tmp_path / "out", wait)  # type: ignore[misc]
    for command in (*commands, ["run", plan, "-q"]):
        assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert compare_runs(root / "run", whole / "run") == ()


@pytest.mark.slow
def test_two_commands_that_begin_a_run(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    root = write_source(tmp_path / "root")
    command = ["run", str(root / "run.toml"), "-q"]
    both(command, command, tmp_path / "out", 0.0)
    assert compare_runs(root / "run", whole / "run") == ()


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 60.0])
def test_two_sweeps(whole: Path, tmp_path: Path, wait: float) -> None:
    root = tmp_path / "root"
    shutil.copytree(whole, root)
    command = ["sweep", str(root / "sweep.toml"), "-q"]
    both(command, command, tmp_path / "out", wait)
    again = CliRunner().invoke(cli.app, command)
    assert "0 fits made, 8 kept" in again.stdout, again.output


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_two_collects_into_one_store_end_with_the_same_bytes(tmp_path: Path, shards: int) -> None:
    model, inputs = small_resnet(), small_inputs(n_samples=32)

    def collect(name: str) -> Store:
        return condec.collect(model, inputs, "block*", out=tmp_path / name, progress=False,
                              shard_size=32 // shards, batch_size=8)  # fmt: skip

    alone = collect("alone.zarr")
    workers = [Command(tmp_path / n, lambda: collect("both.zarr")) for n in ("a", "b")]
    assert [worker.end() for worker in workers] == [0, 0], workers[0].output + workers[1].output
    assert contents(alone.path) == contents(tmp_path / "both.zarr")


@pytest.mark.parametrize("with_dictionary", [False, True])
def test_two_savers_leave_what_one_of_them_saved(tmp_path: Path, with_dictionary: bool) -> None:
    store = condec.collect(small_resnet(), small_inputs(), "block1", out=tmp_path / "s.zarr",
                           progress=False)  # fmt: skip
    rows = store.matrix("block1")
    dictionaries = [condec.fit(condec.PCA(n_modes=n), rows).dictionary for n in (1, 2)]
    found = [(Modes.build(one, store, "block1"), one) for one in dictionaries]
    folder = RunFolder(tmp_path / "run").modes("block1", "pca")

    def save(modes: Modes, dictionary: condec.Dictionary) -> None:
        for _ in range(20):
            if with_dictionary:
                modes.save(folder, dictionary)
            else:
                dictionary.save(folder)

    workers = [Command(tmp_path / f"w{len(m)}", partial(save, m, d)) for m, d in found]
    assert [worker.end() for worker in workers] == [0, 0], workers[0].output + workers[1].output
    kept = condec.load_dictionary(folder)
    assert kept.digest in [one.digest for one in dictionaries]
    if with_dictionary:
        assert Modes.load(folder, store).dictionary == kept.digest
