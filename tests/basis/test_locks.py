"""One process at a time in a folder: who holds it, what follows its end, and no way out of it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from condec.basis import locks
from condec.basis.errors import StoreError
from condec.basis.locks import held

HOLD = """
import sys, time
from pathlib import Path
from condec.basis.locks import held
with held(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SECONDS", 0.1)


@contextmanager
def holder(folder: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        for shared in (False, True):
            words = rf"run: in use by .* since .*, process {process.pid} on .*-c .*Wait until it"
            with pytest.raises(StoreError, match=words), held(folder, shared=shared):
                pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with held(folder), held(folder), held(folder, shared=True):  # again, by the same process
            assert json.loads((folder / ".lock").read_text())["process"] == os.getpid()
        assert (folder / ".lock").read_text() == ""


def test_an_id_without_a_name_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_711_000)
    assert locks._words()["user"] == "user 4711000"


def test_longer_words_of_a_killed_holder_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder):
        pass
    (folder / ".lock").write_text((folder / ".lock").read_text() + "x" * 200)
    words = "in use by .* since .*, process"
    with holder(folder), pytest.raises(StoreError, match=words), held(folder):
        pass


def test_the_second_process_waits_a_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SECONDS", 60.0)
    with holder(tmp_path) as process:
        process.kill()
        with held(tmp_path):
            pass


def test_readers_read_together_and_keep_writers_out(tmp_path: Path) -> None:
    with holder(tmp_path, "shared"):
        with held(tmp_path, shared=True):
            pass
        with pytest.raises(StoreError, match="in use by another process that reads it"):
            with held(tmp_path):
                pass


def test_readers_make_no_folder_and_need_no_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(tmp_path / "gone", shared=True):
        assert not (tmp_path / "gone").exists()

    def read_only(path: str, flags: int, mode: int = 0) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(locks.os, "open", read_only)
    with held(tmp_path, shared=True):
        assert not (tmp_path / ".lock").exists()
    with pytest.raises(StoreError, match=r"cannot write .*choose a place on a disk that can be"):
        with held(tmp_path):
            pass


def test_words_stand_in_for_locks_where_the_disk_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock = tmp_path / ".lock"
    with held(tmp_path):
        words = json.loads(lock.read_text())
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], check=True,
                           capture_output=True, text=True)  # fmt: skip
    lock.write_text(json.dumps(words | {"process": int(ended.stdout)}))
    with held(tmp_path):  # taken over
        pass
    for other in ({"host": "elsewhere"}, {"process": 1}):
        lock.write_text(json.dumps(words | other))
        with pytest.raises(
            StoreError, match=r"in use by .*If that process is no more, remove .*ck"
        ):
            with held(tmp_path):
                pass
    for damaged in ("[]", "{", '{"process": 1}', json.dumps(words | {"process": "x"})):
        lock.write_text(damaged)
        with held(tmp_path):
            pass


def test_links_that_lead_out_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    for name in ("report", "log.jsonl", "modes/block1", "analysis/a/b.parquet", "tasks",
                 "contributions.zarr", "contributions.zarr/sites/block1/contribution",
                 "twins/x/contributions.zarr/manifest"):  # fmt: skip
        run = tmp_path / "runs" / name.replace("/", "-")
        (run / name).parent.mkdir(parents=True)
        (run / name).symlink_to(tmp_path / "victim" / "gone")
        with pytest.raises(StoreError, match=r"a link out of the run folder, to .*victim/gone"):
            with held(run):
                pass
    (tmp_path / "victim" / "file").write_text("kept")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(tmp_path / "victim" / "file")
    with pytest.raises(StoreError, match="cannot write"), held(run):
        pass
    assert [file.read_text() for file in (tmp_path / "victim").iterdir()] == ["kept"]


def test_links_that_stay_inside_and_a_run_that_is_a_link_are_fine(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "run"
    (run / "modes" / "block1").mkdir(parents=True)
    (run / "modes" / "block2").symlink_to("block1")
    (tmp_path / "link").symlink_to(run)
    with held(tmp_path / "link"), ExitStack() as stack:
        stack.enter_context(held(run))


def test_shards_are_not_looked_at(tmp_path: Path) -> None:
    """They are many, and replaced, never followed."""
    array = tmp_path / "contributions.zarr" / "sites" / "block1" / "contribution"
    array.mkdir(parents=True)
    (array / "c.0.0.0").symlink_to("/etc/hostname")
    with held(tmp_path):
        pass
