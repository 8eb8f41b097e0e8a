"""What `condec status` says of a run: one that is made, at work, dead, or not there."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import condec.report
from condec import cli
from condec.basis.errors import StoreError
from condec.basis.locks import held
from condec.run import Run, config
from condec.run.status import status_lines
from condec.run.tasks import logged
from condec.store import RunFolder
from small_runs import contents, quick_report, write_source


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_source(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condec.report, "build_report", quick_report)
        command = ["run", str(root / "run.toml"), "-q"]
        assert CliRunner().invoke(cli.app, command).exit_code == 0
    return root / "run"


def test_a_finished_run(whole: Path) -> None:
    before = contents(whole)
    result = CliRunner().invoke(cli.app, ["status", str(whole)])
    lines = result.output.splitlines()
    assert lines[0] == f"{whole}: no driver is at work"
    assert "contributions.zarr: 3 of 3 shards" in lines
    assert any(line.startswith("fit: done 20") and "7 results" in line for line in lines), lines
    assert contents(whole) == before


def test_a_run_at_work_and_its_workers(whole: Path, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(whole, tmp_path / "run"))
    (folder.store / "manifest" / "shard-00001.json").unlink()
    folder.log("start", link="fit")
    folder.log("tasks", link="fit", tasks=5)
    for task in ("fit block1", "fit block2"):
        folder.log("begin", worker="local-0", link="fit", task=task)
        folder.log("end", worker="local-0", link="fit", task=task, seconds=1.0)
    folder.log("begin", worker="local-1", link="fit", task="fit block3")
    with folder.worker_log("local-1").open("a") as log:
        log.write('{"time": "half a li')
    with held(folder.path):
        lines = list(status_lines(folder))
    assert "at work: " in lines[0]
    assert "contributions.zarr: 2 of 3 shards, " in lines[1]
    assert " a minute, about " in lines[1]
    assert any(line.startswith("fit: begun 20") for line in lines)
    assert "tasks of fit: 2 of 5 done, 1 in hand, 2 waiting" in lines
    assert "nothing in hand; last sign of life 0 s ago" in lines[-2]
    assert "fit block3 since 0 s ago; last sign of life 0 s ago" in lines[-1]
    lines = list(status_lines(folder))  # its driver was killed, without a word
    assert not any(line.startswith("tasks of") for line in lines)  # none is in hand any more
    again = f"; 'condec run {folder.path}' goes on, or the command that it was"
    assert any(line.startswith("fit: interrupted 20") and line.endswith(again) for line in lines)
    with pytest.raises(KeyboardInterrupt), logged(Run(config.read(folder.path)), "fit"):
        raise KeyboardInterrupt
    with held(folder.path):
        lines = list(status_lines(folder))
    assert any(line.startswith("fit: interrupted 20") and line.endswith(again) for line in lines)
    with pytest.raises(ValueError, match="no rows"), logged(Run(config.read(folder.path)), "fit"):
        raise ValueError("no rows")
    lines = list(status_lines(folder))
    assert "no driver is at work" in lines[0]
    assert any(line.startswith("fit: failed") and line.endswith("no rows") for line in lines)


def test_what_lies_there_instead_of_logs_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log_file.write_bytes(b"\xff\n[1]\n{}\n" + json.dumps({"time": 1}).encode())
    assert list(status_lines(folder)) == [f"{tmp_path}: no driver is at work"]
    line = {"time": 5, "event": "start", "link": "fit", "host": "here", "process": 1}
    folder.log_file.write_text(json.dumps(line))
    with pytest.raises(StoreError, match=r"cannot be read as a run with its logs.*Move log\.jsonl"):
        list(status_lines(folder))


def test_no_run(tmp_path: Path) -> None:
    plan = write_source(tmp_path) / "run.toml"
    result = CliRunner().invoke(cli.app, ["status", str(plan)])
    assert result.exit_code == 2
    assert "run: no such run folder; run 'condec collect " in result.stderr
