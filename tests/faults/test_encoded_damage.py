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


def label_bytes(file: Path) -> set[int]:
    """Where labels stand as text, of which another is one as well."""
    with tarfile.open(file) as tar:
        return {member.offset_data for member in tar if member.name.endswith("cls")}


@pytest.mark.parametrize("number", [150, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_damage_is_told(kind: str, number: int, tmp_path: Path) -> None:
    whole, draw = write(kind, tmp_path).read_bytes(), random.Random(number)
    source = "webdataset:a.tar" if kind == "tar" else "parquet:a.parquet?id=id"
    counts = Counter[str]()
    says = label_bytes(tmp_path / "a.tar") if kind == "tar" else set[int]()
    places = [place for place in range(len(whole)) if place not in says]
    for _ in range(number):
        content, place = bytearray(whole), draw.choice(places)
        if draw.random() < 0.2:
            del content[place:]
        else:
            content[place] ^= 1 << draw.randrange(8)
        (tmp_path / f"a.{kind}").write_bytes(content)
        counts[outcome(source, tmp_path)] += 1
    print(kind, dict(counts))
    assert counts["refused"]
    assert counts["same"]
    assert not counts["other"], counts
