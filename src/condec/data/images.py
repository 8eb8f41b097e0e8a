"""Inputs from folders of image files."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.data.inputs import UNLABELLED, Inputs, spread

IMAGE_SUFFIXES: Final = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
# Files of more bytes than this are not all read for the fingerprint, but so many of them.
WHOLE_BYTES: Final = 256 * 2**20
N_OPENED: Final = 1_000


def from_folder(path: Path, table: Path | None) -> Inputs:
    """Read images of a folder, one subfolder a class; or those that a table lists."""
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    if table is not None:
        return _from_table(path, table)
    files = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    given = [file.partition("/")[0] if "/" in file else "" for file in files]
    return _from_images(path, files, *_numbered(given))


def _from_table(path: Path, table: Path) -> Inputs:
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not readable as csv: {error}") from error
    if not rows:
        raise DataError(f"{table}: empty; expected the columns file,label[,name] and a row a file")
    if rows[0].get("file") is None:
        got = ",".join(rows[0])
        raise DataError(f"{table}: no column 'file'; expected file,label[,name], got {got}")
    files = [row["file"] for row in rows]
    if not any((path / file).is_file() for file in files):
        raise DataError(f"{table}: none of its {len(files)} files is in {path}")
    given = [row.get("label") or "" for row in rows]
    if not any(given) or not all(text.lstrip("-").isdigit() for text in given if text):
        return _from_images(path, files, *_numbered(given))
    numbers = [int(text) if text else UNLABELLED for text in given]
    named = {n: row["name"] for n, row in zip(numbers, rows, strict=True) if row.get("name")}
    names = tuple(named.get(i, str(i)) for i in range(max(numbers) + 1)) if named else None
    return _from_images(path, files, torch.tensor(numbers), names)


def _numbered(given: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Number names of classes in the order of the alphabet; an empty one is none."""
    numbers = {name: number for number, name in enumerate(sorted(set(given) - {""}))}
    labels = torch.tensor([numbers.get(name, UNLABELLED) for name in given])
    return (labels, tuple(numbers)) if numbers else (None, None)


def _from_images(
    path: Path, files: Sequence[str], labels: Tensor | None, names: tuple[str, ...] | None
) -> Inputs:
    places = [path / file for file in files]
    return Inputs(
        str(path), tuple(files), lambda row: _read_image(places[row]), labels, names,
        stored=lambda rows: _stored([places[row] for row in rows]),
    )  # fmt: skip


def _stored(files: Sequence[Path]) -> Iterator[bytes]:
    """Yield the size of every file, and hashes of all, or of some where they are large."""
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    few = sum(sizes) <= WHOLE_BYTES
    opened = range(len(files)) if few else frozenset(spread(len(files), N_OPENED))
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        yield size.to_bytes(8, "little", signed=True)
        if number in opened:
            try:
                with file.open("rb") as content:
                    yield hashlib.file_digest(content, "sha256").digest()
            except OSError:
                yield b"unreadable"


def _read_image(file: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    # PIL raises SyntaxError and ValueError on damaged headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not readable as an image: {error}") from error
