"""Ctrl-C and SIGTERM at any time: words and the exit status within two seconds, and it goes on."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from condec import cli
from condec.run.compare import compare_runs
from forked import Command
from small_runs import write_source

KILLS = 20
SECONDS = 2.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_source(tmp_path_factory.mktemp("whole"))
    result = CliRunner().invoke(cli.app, ["run", str(root / "run.toml"), "-q"])
    assert result.exit_code == 0, result.output
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["collect", "fit", "control", "map", "report"])
def test_signals_at_any_time(whole: Path, tmp_path: Path, name: str) -> None:
    root, chance = tmp_path / "root", random.Random(name)
    shutil.copytree(whole, root)
    command, longest, stopped = [name, str(root / "run.toml"), "-q"], 0.0, 0
    if name != "collect":
        command.append("--again")
    taken = 0.0
    for trial in range(KILLS + 1):
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
            assert "the same command goes on" in process.output or longest >= 1.5
    print(f"{name}: {stopped} of {KILLS} stopped, at most {longest:.2f} s")
    assert longest < SECONDS + 1.0  # of a busy machine
    for again in (name, "run"):  # what was made from it is made again, too
        result = CliRunner().invoke(cli.app, [again, str(root / "run.toml"), "-q"])
        assert result.exit_code == 0, result.output
    assert compare_runs(root / "run", whole / "run") == ()
