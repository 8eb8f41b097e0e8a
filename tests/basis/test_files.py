"""Files are there whole or not at all."""

import errno
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import condec
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.files import (
    checksum_holds,
    file_digest,
    reading,
    remove_all_partial,
    remove_partial,
    remove_whatever,
    to_json,
    user_path,
    with_checksum,
    write_file,
    writing,
)
from condec.models.digits import DigitsNet
from condec.run import config
from condec.store import RunFolder


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


def test_leftovers_anywhere_are_removed_but_no_folder_of_such_a_name(tmp_path: Path) -> None:
    for name in ("a.json.0123abcd.partial", "sites/b.0123abcd.partial/c.0.89abcdef.partial"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    remove_all_partial(tmp_path)
    left = [path.name for path in tmp_path.rglob("*")]
    assert left == ["sites", "b.0123abcd.partial"]


def test_whatever_is_there_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    for name in ("link", "folder", "none"):
        remove_whatever(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "kept"]


def test_any_other_byte_changes_a_checksum() -> None:
    value = {"checksum": "its own", "files": {"a": "b"}, "last": {"checksum": ""}}
    content = with_checksum(value)
    assert checksum_holds(content)
    assert json.loads(content)["files"] == {"a": "b"}
    assert json.loads(content)["checksum"] == "its own"
    for place in range(len(content)):
        for bit in (1, 64):
            other = bytearray(content)
            other[place] ^= bit
            assert not checksum_holds(bytes(other))
    for other in (b"", content[:-1], content + b" ", b"garbage", content[:70]):
        assert not checksum_holds(other)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, r"^here: the disk is full \(.*\)\. To go on, make room and run the same"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "To go on, allow this user to use it .*and run the same command"),
        (errno.EROFS, "choose a place on a disk that can be written and run the same"),
        (errno.EIO, r"^here: cannot write \(.*\)\. To go on, mend that and run the same comm"),
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


# --- paths that users give --------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and a working folder in which nothing may be left."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert user_path("~/a/b") == home / "a" / "b"
    assert user_path(Path("~")) == home
    assert user_path("a", "~/b") == home / "b" / "a"
    assert user_path("~/a", "/b") == home / "a"
    assert user_path("a/~", "/b") == Path("/b/a/~")
    assert user_path("~nobody_of_this_name/a") == Path("~nobody_of_this_name/a")
    assert user_path("a") == Path("a")


def test_no_path_of_a_user_goes_around_it() -> None:
    """`Path(...)` of anything that a user gave would take ``~`` for a folder."""
    source = Path(condec.__file__).parent
    known = ("__file__", "tempfile.", "os.path.re", "above", "home", "place", "timm.origin")
    call = re.compile(r"(?<![\w.])Path\(([^()]+)")
    for file in set(source.rglob("*.py")) - {source / "basis" / "files.py"}:
        if "from pathlib import Path" in (text := file.read_text(encoding="utf-8")):
            others = [given for given in call.findall(text) if not given.startswith(known)]
            assert not others, f"{file}: {others}; use condec.basis.files.user_path"


def test_everything_written_to_and_read_from_the_home_folder(home: Path) -> None:
    model = DigitsNet().eval()
    np.savez(home / "a.npz", images=np.random.default_rng(0).random((12, 1, 8, 8)))
    inputs = condec.load_data("npz:~/a.npz")
    assert len(condec.load_data("npz:a.npz", folder="~")) == 12
    store = condec.collect(
        model, inputs, "block1", out="~/c.zarr", method=condec.ActGrad(), progress=False
    )
    assert len(condec.Store.open("~/c.zarr")) == 12
    rows = store.matrix("block1")
    report = condec.fit(condec.PCA(n_modes=1), rows, config=condec.TrainConfig(held_out=0.0))
    report.save("~/dictionary")
    modes = condec.Modes.build(condec.load_dictionary("~/dictionary"), store, site="block1")
    modes.save("~/modes")
    condec.Modes.load("~/modes", store)
    save_file(model.state_dict(), home / "w.safetensors")
    (home / "net.py").write_text(
        "from condec.models.digits import DigitsNet\n\n\ndef make(weights=None):\n"
        "    return DigitsNet()\n"
    )
    condec.load_model("python:~/net.py:make", "~/w.safetensors")
    (home / "run.toml").write_text('sites = "block1"\nout = "~/run"\n')
    plan = config.read("~/run.toml")
    assert plan.out == home / "run"
    assert replace(plan, out=Path("~/other")).out == home / "other"
    assert RunFolder("~/run").path == home / "run"
    assert sorted(file.name for file in home.iterdir()) == [
        "a.npz", "c.zarr", "dictionary", "modes", "net.py", "run.toml", "w.safetensors"
    ]  # fmt: skip
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (FileNotFoundError(2, "gone"), "there is no such file; expected a table. Make it again"),
        (ValueError("no magic"), r"cannot be read as a table \(ValueError: no magic\). Make it"),
        (MemoryError(), r"as a table \(MemoryError\). Make it again"),
        (RecursionError("deep"), "RecursionError: deep"),
        (PermissionError(errno.EACCES, "no"), "Allow this user to use it"),
        (OSError(errno.EMFILE, "many"), "Allow more open files"),
        (OSError(errno.EIO, "disk"), r"cannot be read as a table \(.*disk\). Make it again"),
    ],
)
def test_failures_of_reading_name_file_and_remedy(failure: Exception, words: str) -> None:
    with (
        pytest.raises(StoreError, match=f"^some/file: .*{words}"),
        reading("some/file", "a table", "Make it again."),
    ):
        raise failure


def test_own_errors_pass_through_reading_and_name_the_file() -> None:
    for said in ("own", "a/file: own"):
        with (
            pytest.raises(OptionError, match=r"^a/file: own$"),
            reading("a/file", "a table", "Again."),
        ):
            raise OptionError(said)


def test_what_is_read_says_which_error_it_raises() -> None:
    with (
        pytest.raises(DataError, match=r"a/file: there is no such file; expected a table. Again."),
        reading("a/file", "a table", "Again.", DataError),
    ):
        raise FileNotFoundError


@pytest.mark.parametrize(
    "advice",
    [
        "Object arrays cannot be loaded when allow_pickle=False",
        "Re-running with `weights_only` set to `False`: Unsupported global: GLOBAL os.system was",
    ],
)
def test_the_advice_to_run_what_is_pickled_is_not_passed_on(advice: str) -> None:
    objects = " os.system" if "os." in advice else ""
    message = rf"a table .it holds Python objects{objects}, whose code condec never runs.. Again"
    with pytest.raises(StoreError, match=message), reading("file", "a table", "Again."):
        raise ValueError(advice)


def test_paths_that_no_system_can_have_are_refused() -> None:
    for path in ("a\0b", "a" * 256, "b/" + "\N{SNOWMAN}" * 86, "\ud800"):
        with pytest.raises(OptionError, match="expected names of at most 255 bytes, without the"):
            user_path(path)
