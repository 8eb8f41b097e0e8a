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

IMAGE_SUFFIXES: Final = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
WHOLE_BYTES: Final = 256 * 2**20
"""Files of more bytes than this are not all read for the fingerprint,"""
N_OPENED: Final = 1_000
"""but so many of them."""


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
    classes = sorted({file.split("/")[0] for file in files if "/" in file})
    labels = None
    if classes:
        index = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([index.get(f.split("/")[0], UNLABELLED) for f in files])
    return _from_images(path, files, labels, tuple(classes) or None)


def _from_table(path: Path, table: Path) -> Inputs:
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not readable as csv: {error}") from error
    if not rows:
        raise DataError(f"{table}: empty; expected the columns file,label[,name] and a row a file")
    if rows[0].get("file") is None:
        raise DataError(
            f"{table}: no column 'file'; expected file,label[,name], got {','.join(rows[0])}"
        )
    files = [row["file"] for row in rows]
    if not any((path / file).is_file() for file in files):
        raise DataError(f"{table}: none of its {len(files)} files is in {path}")
    given = [row.get("label") or "" for row in rows]
    if not any(given):
        return _from_images(path, files, None, None)
    if not all(text.lstrip("-").isdigit() for text in given if text):
        classes = sorted({text for text in given if text})
        labels = [classes.index(text) if text else UNLABELLED for text in given]
        return _from_images(path, files, torch.tensor(labels), tuple(classes))
    numbers = [int(text) if text else UNLABELLED for text in given]
    named = {n: row["name"] for n, row in zip(numbers, rows, strict=True) if row.get("name")}
    names = tuple(named.get(i, str(i)) for i in range(max(numbers) + 1)) if named else None
    return _from_images(path, files, torch.tensor(numbers), names)


def _from_images(
    path: Path, files: Sequence[str], labels: Tensor | None, names: tuple[str, ...] | None
) -> Inputs:
    return Inputs(
        str(path),
        tuple(files),
        lambda i: _read_image(path / files[i]),
        labels,
        names,
        stored=lambda rows: _stored([path / files[row] for row in rows]),
    )


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
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    # PIL raises SyntaxError and ValueError on damaged headers.
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{file}: not readable as an image: {error}") from error
