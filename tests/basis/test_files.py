"""Files are there whole or not at all."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from condec.basis.errors import DataError, StoreError
from condec.basis.files import (
    file_digest,
    remove_partial,
    to_json,
    write_file,
    write_folder,
    writing,
)


def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_file(path, b"old")

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_readable_by_others_as_any_file_is(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"1").hexdigest()


def test_leftovers_of_one_file_only_are_removed(tmp_path: Path) -> None:
    names = ["c.1", "c.1.ab.partial", "c.10.ab.partial", "c.1.partial"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_partial(tmp_path / "c.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.1", "c.1.partial", names[2]]


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "x" / "f", {"a/b": b"1", "c": b"2"})
    write_folder(tmp_path / "x" / "f", {"a/b": b"3"})
    assert (tmp_path / "x" / "f" / "a" / "b").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["f"]


def test_a_folder_that_cannot_be_finished_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "f", {"a": b"1"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"^here: the disk is full \(.*\)\. To go on, make room and run the same"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, r"^here: cannot write \(.*\)\. To go on, mend that and run the same comm"),
    ],
)
def test_failures_to_write_say_what_to_do(code: int, message: str) -> None:
    with pytest.raises(StoreError, match=message), writing("here"):
        raise OSError(code, os.strerror(code))


def test_other_errors_pass() -> None:
    with pytest.raises(StoreError, match=r"^mine$"), writing("here"):
        raise StoreError("mine")
    with pytest.raises(DataError, match=r"^theirs$"), writing("here"):
        raise DataError("theirs")


def test_json_ends_with_a_newline_and_keeps_letters() -> None:
    assert to_json({"ä": 1}).decode() == '{\n "ä": 1\n}\n'
