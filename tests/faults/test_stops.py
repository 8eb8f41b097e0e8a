"""Commands that are stopped and killed: Ctrl-C and SIGTERM are answered, and all goes on."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import condec.report
from condec import cli
from condec.run.compare import compare_runs
from forked import Command
from small_runs import contents, quick_report, undo, write_source

SIGNALS, KILLS = 20, 50
SECONDS = 2.0
LINKS = ("collect", "fit", "control", "map", "report")
DAMAGED = ("analysis/statistics.parquet", "modes/block2/kmeans/dictionary.safetensors",
           "contributions.zarr/sites/block1/contribution/c.0.0.0")  # fmt: skip


def make(folder: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    """Write a source and its whole run; the real report where `name` is that."""
    if name != "report":
        patch.setattr(condec.report, "build_report", quick_report)
    root = write_source(folder)
    result = CliRunner().invoke(cli.app, ["run", str(root / "run.toml"), "-q"])
    assert result.exit_code == 0, result.output
    return root


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LINKS)
def test_signals_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    root, chance = make(tmp_path, name, monkeypatch), random.Random(name)
    whole = shutil.copytree(root / "run", tmp_path / "whole")
    command, longest, stopped = [name, str(root / "run.toml"), "-q"], 0.0, 0
    if name != "collect":
        command.append("--again")
    taken = 0.0
    for trial in range(SIGNALS + 1):
        if name == "collect":
            shutil.rmtree(root / "run" / "contributions.zarr", ignore_errors=True)
        started = time.monotonic()
        process = Command(tmp_path / f"out{trial}", command)
        if not trial:  # how long it takes
            assert process.end() == 0, process.output
            taken = time.monotonic() - started
            continue
        time.sleep(chance.uniform(0.1, 1.0) * taken)
        number = chance.choice((signal.SIGINT, signal.SIGTERM))
        sent = time.monotonic()
        assert process.process.pid is not None
        if process.process.is_alive():
            os.kill(process.process.pid, number)
        code = process.end()
        longest = max(longest, time.monotonic() - sent)
        assert code in (0, 128 + number), process.output
        assert "Traceback" not in process.output
        if code:
            stopped += 1
            # A process that was ended by force has said it past the stream that is kept here.
            assert "the same command keeps what is whole" in process.output or longest >= 1.5
    print(f"{name}: {stopped} of {SIGNALS} stopped, at most {longest:.2f} s")
    assert longest < SECONDS + 1.0  # of a busy machine
    for again in (name, "run"):  # what was made from it is made again, too
        result = CliRunner().invoke(cli.app, [again, str(root / "run.toml"), "-q"])
        assert result.exit_code == 0, result.output
    assert compare_runs(root / "run", whole) == ()


def begin(run: Path, name: str) -> list[str]:
    """Have a finished run something to do; return the command that does it."""
    if name == "verify":
        for damaged in DAMAGED:
            (run / damaged).write_bytes(b"garbage")
        return ["verify", str(run), "--repair", "-q", "--trust-code"]
    undo(run, name)
    if name == "collect":
        shutil.rmtree(run / "contributions.zarr")
    return [name, str(run.parent / "run.toml"), "-q"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "kills"),
    [("map", 2), *(pytest.param(n, KILLS, marks=pytest.mark.slow) for n in (*LINKS, "verify"))],
)
def test_kills_at_any_change_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kills: int
) -> None:
    """Spread over all files that are written, renamed and removed; then the same command."""
    root, chance = make(tmp_path, name, monkeypatch), random.Random(name)
    run, kept, changes = root / "run", contents(root / "run"), 0
    whole = shutil.copytree(run, tmp_path / "whole")
    for kill in range(kills + 1):  # the first time to count
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        command = begin(run, name)
        at = 1 + int((kill - 1 + chance.random()) / kills * changes) if kill else -1
        first = Command(tmp_path / "out", command, kill_at=at)
        assert first.end() == (-signal.SIGKILL if kill else 0), first.output
        changes = changes or first.changes.value
        # What was made from a fit goes with it, and takes long: that is made again now and then.
        whole_chain = name == "fit" and kill % 10 == 0
        for again in (command, ["run", str(root / "run.toml"), "-q"])[: 1 + whole_chain]:
            ended = Command(tmp_path / "out", again)
            assert ended.end() == 0, ended.output
        left = contents(run)
        assert left.items() <= kept.items(), (kill, at)
        assert left.keys() == kept.keys() or (name == "fit" and not whole_chain)
    print(f"{name}: {kills} kills, at as many of its {changes} changes of files")
