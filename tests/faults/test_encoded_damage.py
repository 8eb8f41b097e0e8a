"""Tars and parquet files, one bit or all behind a byte wrong: refused, named, or without effect."""

import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from condec.basis.errors import DataError
from condec.data import load_data
from encoded import pixels, png, write_tar

NAMES = ("a.png", "b.png", "c.png")


def outcome(source: str, folder: Path) -> str:
    try:
        found = load_data(source, folder=folder)
    except DataError:
        return "refused"
    if found.ids != NAMES or found.labels is None or found.labels.tolist() != [0, 1, 2]:
        return "other"
    named = 0
    for row in range(3):
        try:
            if not np.array_equal(found.read(row).numpy(), pixels(row)):
                return "other"
        except DataError:
            named += 1
    return "named" if named else "same"


def write(kind: str, folder: Path) -> Path:
    file = folder / f"a.{kind}"
    if kind == "tar":
        members = {name: png(row) for row, name in enumerate(NAMES)}
        labels = {f"{name[0]}.cls": str(row).encode() for row, name in enumerate(NAMES)}
        return write_tar(file, members | labels)
    columns = {"image": [png(row) for row in range(3)], "label": [0, 1, 2], "id": [*NAMES]}
    # Without a dictionary, whose pages have no checksum.
    options = {"use_dictionary": False, "write_page_checksum": True, "row_group_size": 2}
    parquet.write_table(pa.table(columns), file, **options)
    return file


def without_checksum(file: Path) -> set[int]:
    """Return places where another byte is as good: labels as text, and the footer of a parquet."""
    if file.suffix == ".parquet":
        content = file.read_bytes()
        n_bytes = int.from_bytes(content[-8:-4], "little") + 8
        return set(range(len(content) - n_bytes, len(content)))
    with tarfile.open(file) as tar:
        return {member.offset_data for member in tar if member.name.endswith("cls")}


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_damage_is_told(kind: str, number: int, tmp_path: Path) -> None:
    file = write(kind, tmp_path)
    whole, free, draw = file.read_bytes(), without_checksum(file), random.Random(number)
    source = "webdataset:a.tar" if kind == "tar" else "parquet:a.parquet?id=id"
    counts = Counter[str]()
    for _ in range(number):
        content, place = bytearray(whole), draw.randrange(len(whole))
        if cut := draw.random() < 0.2:
            del content[place:]
        else:
            content[place] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        found = outcome(source, tmp_path)
        counts["says other" if found == "other" and place in free and not cut else found] += 1
    print(kind, dict(counts))
    assert counts["refused"]
    assert counts["same"]
    assert not counts["other"], counts
