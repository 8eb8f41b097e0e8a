"""Inputs from folders of image files."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.data.classes import numbers_of_names, written_numbers
from condec.data.inputs import Inputs, listed, spread
from condec.data.pictures import eight_bits

IMAGE_SUFFIXES: Final = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
_JUNK: Final = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__")
# Files of more bytes than this are not all read for the fingerprint, but so many of them.
WHOLE_BYTES: Final = 256 * 2**20
N_OPENED: Final = 1_000


def from_folder(path: Path, table: Path | None, names: Sequence[str] | None = None) -> Inputs:
    """Read images of a folder, one subfolder a class; or those that a table lists.

    Classes have the numbers of their `names`, where these are given. Folders that systems leave
    behind, and hidden ones, are passed over.
    """
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    if table is not None:
        return _from_table(path, table, names)
    files = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not _is_junk(file.relative_to(path))
    )
    given = [file.partition("/")[0] if "/" in file else "" for file in files]
    if names is None and any(given):
        _check_order(path, sorted(set(given) - {""}))
    return _named(path, files, given, names, str(path))


def _is_junk(path: Path) -> bool:
    return any(part.startswith(".") or part in _JUNK for part in path.parts)


def _check_order(path: Path, classes: Sequence[str]) -> None:
    """Refuse folders whose numbers by the alphabet may not be the ones that are meant."""
    problem, numbers = "", [str(number) for number in range(len(classes))]
    if all(name.isdecimal() for name in classes) and [str(int(n)) for n in classes] != numbers:
        problem = f"folders {listed(classes)} would be numbered {listed(numbers)}"
    below = [sub.relative_to(path) for sub in path.iterdir() if sub.is_dir()]
    if empty := sorted({sub.name for sub in below if not _is_junk(sub)} - set(classes)):
        problem = f"folders without an image, {listed(empty)}, may be classes, and have a number"
    if problem:
        raise DataError(
            f"{path}: {problem}. Remove or rename folders; or give label_names, a json list with "
            "the name of every output of the model; or a csv with the columns file,label that "
            "holds numbers"
        )


def _from_table(path: Path, table: Path, label_names: Sequence[str] | None) -> Inputs:
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
    given = [(row.get("label") or "").strip() for row in rows]
    numbers = written_numbers(f"{table}: labels", given, named=label_names is not None)
    if numbers is None:
        return _named(path, files, given, label_names, str(table))
    named = {n: row["name"] for n, row in zip(numbers, rows, strict=True) if row.get("name")}
    names = tuple(named.get(i, str(i)) for i in range(max(numbers) + 1)) if named else None
    return _from_images(path, files, torch.tensor(numbers), names)


def _named(
    path: Path, files: Sequence[str], given: Sequence[str], names: Sequence[str] | None, who: str
) -> Inputs:
    """Make inputs of images whose classes are given by name; an empty one is none."""
    if not any(given):
        return _from_images(path, files, None, None)
    labels = numbers_of_names(who, given, names)
    own = tuple(sorted(set(given) - {""})) if names is None else tuple(names)
    inputs = _from_images(path, files, labels, own)
    return replace(inputs, by_alphabet=names is None)


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
            return torch.from_numpy(np.array(eight_bits(image).convert("RGB")))
    # PIL raises SyntaxError and ValueError on damaged headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not readable as an image: {error}") from error
