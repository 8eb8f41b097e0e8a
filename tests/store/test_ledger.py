"""The ledger of a run folder: what counts as done, what is read, and what is refused."""

import re
import shutil
from pathlib import Path

import pandas
import pytest

from condec.basis.errors import StoreError
from condec.basis.files import read_checked, with_checksum
from condec.store import RunFolder
from condec.store.ledger import Ledger


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three results in a row: a table, a folder made from it, and a file made from that."""
    place = RunFolder(tmp_path / "run")
    table = place.write_table(pandas.DataFrame({"x": [1.0, 2.0]}), "first")
    place.ledger.mark_done("first", "stats", {"fit": {"k": 3}}, (), [table])
    write_modes(place, b"modes")
    last = place.write(place.analysis("last.json"), b'["a"]')
    place.ledger.mark_done("last", "map", {}, [place.modes("a", "sae")], [last])
    return RunFolder(place.path)


def write_modes(place: RunFolder, content: bytes) -> None:
    modes = place.modes("a", "sae")
    place.write(modes / "modes.zarr" / "zarr.json", content)
    place.write(modes / "dictionary.json", b"{}")
    place.ledger.mark_done("modes", "fit", {}, [place.table("first")], [modes])


def test_what_is_as_it_was_left_is_done_and_read(folder: RunFolder) -> None:
    first, modes = folder.table("first"), folder.modes("a", "sae")
    assert folder.ledger.is_done("first", {"fit": {"k": 3}}, ())
    assert folder.ledger.is_done("modes", {}, [first])
    assert not folder.ledger.is_done("first", {"fit": {"k": 4}}, ())
    assert not folder.ledger.is_done("modes", {}, ())
    assert not folder.ledger.is_done("other", {}, ())
    assert folder.ledger.found(first) == first
    table = folder.read_table("first")
    assert table is not None
    assert table["x"].tolist() == [1, 2]
    assert folder.read_json(folder.analysis("last.json")) == ["a"]
    assert folder.ledger.found(modes) == modes
    assert folder.ledger.found(folder.analysis("nothing")) is folder.read_table("nothing") is None
    assert folder.learners("a") == ("sae",)
    assert list(folder.tables()) == ["first"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "folder", "exchange"])
@pytest.mark.parametrize("name", ["analysis/first.parquet", "modes/a/sae", "analysis/last.json"])
def test_what_is_not_as_it_was_left_is_refused(folder: RunFolder, name: str, damage: str) -> None:
    path = folder.path / name
    file = path / "modes.zarr" / "zarr.json" if path.is_dir() else path
    content = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "truncate":
            file.write_bytes(content[:-1])
        case "exchange":
            file.write_bytes((folder.path / "tasks" / "last.json").read_bytes())
        case _:
            file.unlink()
            if damage == "folder":
                file.mkdir()
    task = {"first.parquet": "first", "sae": "modes", "last.json": "last"}[path.name]
    with pytest.raises(StoreError, match=rf"{path.name}: not what '{task}' has made.*--repair"):
        folder.ledger.found(path)
    assert not folder.ledger.is_done(task, *made_from(folder, task))


def made_from(folder: RunFolder, task: str) -> tuple[dict[str, object], list[Path]]:
    entry = folder.ledger.entries[task]
    return dict(entry.made_from), [folder.path / name for name in entry.inputs]


def test_what_is_gone_altogether_is_missed(folder: RunFolder) -> None:
    shutil.rmtree(folder.path / "modes")
    shutil.rmtree(folder.path / "analysis")
    folder = RunFolder(folder.path)
    assert folder.learners("a") == ("sae",)
    assert list(folder.tables()) == ["first"]
    with pytest.raises(StoreError, match=r"first\.parquet: not what 'first' has made: it is gone"):
        folder.read_table("first")


def test_what_has_no_record_is_refused(folder: RunFolder) -> None:
    (folder.path / "tasks" / "last.json").unlink()
    with pytest.raises(StoreError, match=r"last\.json: no record says what it was made from\. Run"):
        RunFolder(folder.path).read_json(folder.analysis("last.json"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"garbage", "JSONDecodeError|Expecting value"),
        (b"{}", "not have the checksum that it states"),
        (with_checksum({"task": "other", "checksum": ""}), "missing "),
        (b"sibling", "it is that of 'first'"),
        (b"outside", r"'\.\./x' is not in the run folder"),
        (b"changed", "not have the checksum that it states"),
    ],
)
def test_damaged_records_do_not_count(folder: RunFolder, content: bytes, problem: str) -> None:
    file = folder.path / "tasks" / "last.json"
    record = read_checked(file.read_bytes())
    match content:
        case b"sibling":
            content = (file.parent / "first.json").read_bytes()
        case b"outside":
            content = with_checksum({**record, "outputs": {"../x": "0"}, "checksum": ""})
        case b"changed":
            content = file.read_bytes().replace(b'"map"', b'"mop"')
    file.write_bytes(content)
    folder = RunFolder(folder.path)
    assert "last" not in folder.ledger.entries
    with pytest.raises(StoreError, match=r"no record .*, and tasks/last\.json is damaged"):
        folder.read_json(folder.analysis("last.json"))
    (damage,) = folder.ledger.damaged.values()
    assert re.search(problem, str(damage))
    last = folder.analysis("last.json")
    folder.ledger.mark_done("last", "map", {}, (), [last])
    assert folder.ledger.damaged == {}
    assert folder.read_json(last) == ["a"]


def test_results_of_other_inputs_are_refused_then_removed(folder: RunFolder) -> None:
    modes, last = folder.modes("a", "sae"), folder.analysis("last.json")
    folder.write(modes / "dictionary.json", b"[]")  # Its writer is killed before the record.
    with pytest.raises(StoreError, match=r"last\.json: made from another modes/a/sae than lies th"):
        RunFolder(folder.path).ledger.found(last)
    folder = RunFolder(folder.path)
    folder.ledger.mark_done("modes", "fit", {}, [folder.table("first")], [modes])
    assert not last.exists()
    assert folder.ledger.entries.keys() == {"first", "modes"}


def test_what_was_made_again_equally_keeps_what_was_made_from_it(folder: RunFolder) -> None:
    write_modes(folder, b"modes")
    assert folder.read_json(folder.analysis("last.json")) == ["a"]


def test_outputs_that_a_task_no_longer_has_go_with_all_that_was_made_from_them(
    folder: RunFolder,
) -> None:
    folder.ledger.mark_done("first", "stats", {}, (), [])
    assert folder.ledger.found(folder.table("first")) is None
    assert [file.name for file in folder.path.rglob("*") if file.is_file()] == ["first.json"]
    folder.ledger.forget("first")
    folder.ledger.forget("first")
    assert not list((folder.path / "tasks").iterdir())


def test_stores_are_never_removed(folder: RunFolder) -> None:
    folder.write(folder.store / "manifest" / "shard-00000.json", b"{}")
    folder.ledger.mark_done("collect", "collect", {}, (), [folder.store])
    folder.write(folder.store / "sites" / "c.0", b"data")
    assert folder.ledger.found(folder.store) == folder.store  # Its shards are in its manifest.
    folder.ledger.forget("collect")
    assert len(list(folder.store.rglob("*"))) == 4
    assert folder.ledger.found(folder.store) == folder.store  # Stores from elsewhere may be used.


def test_nothing_outside_is_removed_through_a_link(folder: RunFolder, tmp_path: Path) -> None:
    (folder.path / "analysis").rename(tmp_path / "victim")
    (folder.path / "analysis").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="leads out of the run folder; remove that link"):
        folder.ledger.forget("last")
    assert (tmp_path / "victim" / "last.json").exists()


def test_ledgers_of_empty_folders_are_empty(tmp_path: Path) -> None:
    assert Ledger(tmp_path).entries == {}


def test_a_result_that_cannot_be_removed_is_an_error_with_words(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    for undone in (
        lambda: folder.ledger.forget("modes"),
        lambda: folder.ledger.mark_done("modes", "fit", {}, (), []),
    ):
        write_modes(folder, b"others")
        with pytest.raises(StoreError, match=r"'modes'.*: cannot write"):
            undone()


def test_only_records_that_changed_are_read_again(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs, read = folder.ledger, Ledger(folder.path), list[bytes]()
    assert {*mine.entries} == {"first", "modes", "last"}

    def counted(content: bytes) -> object:
        read.append(content)
        return read_checked(content)

    monkeypatch.setattr("condec.store.ledger.read_checked", counted)
    mine.read_again()
    assert {*mine.entries} == {"first", "modes", "last"}
    assert read == []
    theirs.mark_done("first", "stats", {"fit": {"k": 4}}, (), [folder.table("first")])
    theirs.forget("last")
    read.clear()
    mine.read_again()
    assert mine.entries["first"].made_from == {"fit": {"k": 4}}
    assert {*mine.entries} == {"first", "modes"}
    assert len(read) == 1
    mine.file("modes").write_bytes(b"{}")
    mine.read_again()
    assert {*mine.entries} == {"first"}
    assert [*mine.damaged] == [mine.file("modes")]
