"""Parquet files and data sets of Hugging Face: as the same folder, lazily, with damage named."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.data import images, load_data, tables
from encoded import NAMES, PICTURES, check_folder, pixels, png, write_folder

IMAGES = [{"bytes": content, "path": name} for name, content in PICTURES.items()]


def write(file: Path, columns: dict[str, Any], rows: int = 2, **options: Any) -> Path:
    parquet.write_table(pa.table(columns), file, row_group_size=rows, **options)
    return file


def loaded(file: Path, keys: str = "", **options: Any) -> Any:
    return load_data(f"parquet:{file}{keys}", **options)


def saved(
    place: Path, labels: Sequence[int] = (0, 0, 1), names: Sequence[str] = ("cat", "dog")
) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    features["file"] = datasets.Value("string")  # saving leaves the last name of a path
    columns = {"image": IMAGES, "label": list(labels), "file": list(NAMES)}
    found = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.disable_progress_bars()
    found.save_to_disk(place)
    return found


def test_tables_of_the_images_of_a_folder_are_that_folder(tmp_path: Path) -> None:
    folder = load_data(f"folder:{write_folder(tmp_path / 'photos')}")
    write(tmp_path / "a.parquet", {"image": IMAGES, "label": ["cat", "cat", "dog"]})
    made = saved(tmp_path / "saved")
    made.to_parquet(tmp_path / "hf.parquet")
    for source in ("parquet:a.parquet", "parquet:hf.parquet?id=file", "hf:saved?id=file"):
        inputs = load_data(source, folder=tmp_path)
        check_folder(inputs, folder)
        assert inputs.select([2]).fingerprint == folder.select([2]).fingerprint


def test_bytes_alone_have_ids_of_file_and_row_or_of_a_column(tmp_path: Path) -> None:
    for name, rows in (("a", (0, 1, 2)), ("b", (3,))):
        columns = {"img": [png(row) for row in rows], "n": [*rows], "labels": [1.0] * len(rows)}
        write(tmp_path / f"{name}.parquet", columns)
    inputs = load_data("parquet:*.parquet", folder=tmp_path)
    assert inputs.ids == ("a/0", "a/1", "a/2", "b/0")
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [1, 1, 1, 1]
    assert np.array_equal(inputs.read(3).numpy(), pixels(3))
    given = load_data("parquet:*.parquet?id=n&label=n&image=img", folder=tmp_path)
    assert given.ids == ("0", "1", "2", "3")
    twice = [{"bytes": png(0), "path": "x.png"}] * 2
    assert loaded(write(tmp_path / "c.parquet", {"image": twice})).ids == ("c/0", "c/1")


def test_a_row_group_is_read_once_when_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = write(tmp_path / "a.parquet", {"image": [png(n) for n in range(6)]}), []
    plain = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda s, n, **k: read.append(n) or plain(s, n, **k)
    )
    inputs = loaded(file)
    for row in (0, 1, 2, 3, 5):
        assert np.array_equal(inputs.read(row).numpy(), pixels(row))
    assert read == [0, 1, 2]


def test_names_of_classes_are_matched_with_those_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["ape", "Dog, hound", "cat"]')
    saved(tmp_path / "saved", labels=(0, -1, 1))
    inputs = load_data("hf:saved", label_names="names.json", folder=tmp_path)
    assert inputs.labels is not None
    assert inputs.labels.tolist() == [2, -1, 1]
    numbered = load_data("hf:saved", folder=tmp_path)
    with pytest.raises(DataError, match=r"which belongs to which is not known"):
        numbered.check_outputs(3)


def test_large_files_are_known_by_footers_and_some_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "WHOLE_BYTES", 0)
    monkeypatch.setattr(tables, "_SOME", 2)
    monkeypatch.setattr("condec.data.inputs._N_PREPARED", 1)
    contents = [png(n).ljust(400) for n in range(4)]
    options: dict[str, Any] = {"write_statistics": False, "compression": None}
    found = []
    for change in (None, 2, 3, 1):
        changed = [
            png(9).ljust(400 + (n == 1)) if n == change else c for n, c in enumerate(contents)
        ]
        file = write(tmp_path / "a.parquet", {"image": changed, "id": [*"abcd"]}, **options)
        found.append(loaded(file, "?id=id").fingerprint)
    assert found[0] != found[1]  # hashed
    assert found[0] == found[2]  # neither hashed nor prepared, of the same size
    assert found[0] != found[3]  # of another size


def test_images_that_cannot_be_read_are_named_and_the_others_load(tmp_path: Path) -> None:
    cells = [IMAGES[0], {"bytes": None, "path": "gone.png"}, {"bytes": b"text", "path": "c.png"}]
    inputs = loaded(write(tmp_path / "a.parquet", {"image": cells}))
    assert np.array_equal(inputs.read(0).numpy(), pixels(0))
    with pytest.raises(DataError, match=r"a.parquet: gone.png: .* table has no bytes of it"):
        inputs.load(1)
    with pytest.raises(DataError, match=r"a.parquet: c.png: cannot be read as an image"):
        inputs.load(2)
    assert inputs.fingerprint
    file = write(tmp_path / "b.parquet", {"image": [png(n) for n in range(4)]}, compression=None)
    content = bytearray(file.read_bytes())
    inputs = loaded(file)
    content[20:40] = bytes(20)  # the first page
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"b.parquet: cannot be read as a table in parquet|b/0"):
        inputs.load(0)
    assert np.array_equal(inputs.read(3).numpy(), pixels(3))


def test_a_row_group_that_does_not_fit_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_GROUP", 100)
    inputs = loaded(write(tmp_path / "a.parquet", {"image": IMAGES}))
    with pytest.raises(DataError, match=r"row group 0 says that it takes .*row_group_size"):
        inputs.load(0)


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"n": [1]}, "", r"got none named by image=COLUMN, and the columns are n \(int64\)"),
        ({"a": [b""], "b": [b""]}, "", "expected one column of images"),
        ({"a": [b""], "b": [1]}, "?image=b", "got b, and the columns"),
        ({"a": [b""]}, "?label=x", "no column 'x' for label; the columns are a"),
        ({"a": [b""], "label": [0.5]}, "", "expected whole numbers as labels"),
        ({"a": [b"", b""], "label": ["1", "x.png"]}, "", "'x.png' in a/1, among"),
        ({"a": [b"", b""], "b": [1, 1]}, "?id=b", "have the same id, '1'"),
        ({"a": [b"", b""], "b": ["x", None]}, "?id=b", "row 1 has no b; expected an id of every"),
    ],
)
def test_columns_that_do_not_fit(
    columns: dict[str, Any], keys: str, message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=message):
        loaded(file, keys)


def test_files_that_are_no_tables_or_of_another(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": IMAGES})
    write(tmp_path / "b.parquet", {"image": IMAGES, "more": [1, 2, 3]})
    (tmp_path / "c.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match=r"b.parquet: other columns than .*a.parquet"):
        load_data("parquet:[ab].parquet", folder=tmp_path)
    with pytest.raises(DataError, match=r"c.parquet: cannot be read as a table in parquet"):
        load_data("parquet:c.parquet", folder=tmp_path)
    with pytest.raises(OptionError, match=r"expected no key but image, label, id; got colour"):
        load_data("parquet:a.parquet?colour=b", folder=tmp_path)


def test_a_split_is_named_where_there_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    one, asked = saved(tmp_path / "one"), []
    both = datasets.DatasetDict({"train": one, "test": one.select([2])})
    both.save_to_disk(tmp_path / "both")
    assert load_data("hf:both?split=test", folder=tmp_path).ids == ("c.png",)
    with pytest.raises(OptionError, match=r"hf:both: split must be one of train, test; got None"):
        load_data("hf:both", folder=tmp_path)

    assert load_data("hf:one", folder=tmp_path).ids == ("a.png", "b.png", "c.png")
    for key in ("split=test", "config=small"):
        with pytest.raises(
            OptionError, match=r"hf:one: a folder of save_to_disk has no configurat"
        ):
            load_data(f"hf:one?{key}", folder=tmp_path)

    # The hub cannot be reached here: what would load from it is asked for the same.
    def load(*given: object, split: str | None) -> Any:
        asked.append((*given, split))
        return datasets.DatasetDict({"only": one}) if split is None else one

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_data("hf:owner/name?config=small&split=train[:3]")) == 3
    assert len(load_data("hf:owner/name")) == 3
    assert asked == [("owner/name", "small", "train[:3]"), ("owner/name", None, None)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match=r"hf:x/y: cannot be read as a data set of Hugging Face"):
        load_data("hf:x/y")


def test_a_data_set_that_names_files_reads_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    photos = write_folder(tmp_path / "photos")
    paths = [{"bytes": None, "path": str(photos / name)} for name in NAMES]
    features = datasets.Features({"image": datasets.Image()})
    made = datasets.Dataset.from_dict({"image": paths}, features=features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: made)
        inputs = load_data("hf:photos", folder=tmp_path)
    assert inputs.ids == NAMES
    assert np.array_equal(inputs.read(1).numpy(), pixels(1))


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r'pip install "condec\[hf\]"'):
        load_data("hf:owner/name")
