"""Inputs from folders of image files."""

import csv
import hashlib
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import DataError
from condec.basis.files import reading
from condec.data.classes import numbers_of_names, written_numbers
from condec.data.inputs import Inputs, listed, repeated, spread
from condec.data.pictures import eight_bits

Orientation = Literal["stored", "exif"]
"""Pictures as their pixels are stored, or turned as their EXIF says."""

IMAGE_SUFFIXES: Final = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
_JUNK: Final = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__")
_ORIENTATION: Final = 274  # tag of EXIF
_LINE: Final = "line "  # no name of a column ends so
# Files of more bytes than this are not all read for the fingerprint, but so many of them.
WHOLE_BYTES: Final = 256 * 2**20
N_OPENED: Final = 1_000


def from_folder(
    path: Path, table: Path | None, names: Sequence[str] | None = None,
    orientation: Orientation | None = None,
) -> Inputs:  # fmt: skip
    """Read images of a folder, one subfolder a class; or those that a table lists.

    Classes have the numbers of their `names`, where these are given. Folders that systems leave
    behind, and hidden ones, are passed over.
    """
    orientation = orientation or "stored"
    one_of("data", "orientation", orientation, Orientation)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    found = _from_subfolders(path, names) if table is None else _from_table(path, table, names)
    if orientation == "stored":
        return found
    turned = _from_images(path, found.ids, None, None, orientation)
    return replace(found, read=turned.read, stored=turned.stored)


def from_image(
    path: Path, shape: tuple[int, ...] | None = None, orientation: Orientation | None = None
) -> Inputs:
    """Read one image file; in grey, where inputs of this `shape` have one channel."""
    mode = "L" if shape is not None and shape[:1] == (1,) else "RGB"
    read = _reader(orientation or "stored", mode)
    return Inputs(str(path), (path.name,), lambda _: read(path))


def _from_subfolders(path: Path, names: Sequence[str] | None) -> Inputs:
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


def _columns(table: Path) -> dict[str, tuple[str, ...]]:
    """Read the columns of a csv without the spaces around cells, and the line each row ends in.

    DataError, which names the line, where rows are not as the first line says.
    """
    expected = "Expected text in UTF-8 with the columns file,label[,name] and a row a file."
    with (
        reading(table, "csv", expected, DataError),
        table.open(newline="", encoding="utf-8-sig") as text,
    ):
        rows = csv.reader(text, strict=True)  # else a quote that does not end takes all that follow
        header = [cell.strip() for cell in next(rows, ())]
        found = [(rows.line_num, [cell.strip() for cell in row]) for row in rows if any(row)]
    if not found:
        raise DataError(f"{table}: empty; expected the columns file,label[,name] and a row a file")
    if header.count("file") != 1 or header.count("label") > 1 or header.count("name") > 1:
        number = "several columns of one name" if "file" in header else "no column 'file'"
        raise DataError(f"{table}: {number}; expected file,label[,name], got {','.join(header)}")
    for line, cells in found:
        if not "".join(cells[header.index("file") :][:1]):
            raise DataError(f"{table}: line {line} names no file; every row needs one")
        if any(cells[len(header) :]):
            raise DataError(
                f"{table}: line {line} has {len(cells)} cells, and the first line {len(header)}; "
                'put a text that holds commas into quotes, "..."'
            )
    named = [{**dict(zip(header, cells, strict=False)), _LINE: str(n)} for n, cells in found]
    return {
        name: tuple(row.get(name, "") for row in named) for name in ("file", "label", "name", _LINE)
    }


def _from_table(path: Path, table: Path, label_names: Sequence[str] | None) -> Inputs:
    columns = _columns(table)
    files, given, lines = columns["file"], columns["label"], columns[_LINE]
    if len(set(files)) < len(files):
        first, second = repeated(files)
        rows = f"lines {lines[first]} and {lines[second]}"
        raise DataError(f"{table}: {rows} both name {files[first]!r}; give it once")
    if not any(_is_file(path / file) for file in files):
        raise DataError(f"{table}: none of its {len(files)} files is in {path}")
    named = label_names is not None
    numbers = written_numbers(f"{table}: labels", given, lines, named=named)
    if numbers is None:
        return _named(path, files, given, label_names, str(table))
    names: dict[int, str] = {}
    for line, number, name in zip(lines, numbers, columns["name"], strict=True):
        if name and names.setdefault(number, name) != name:
            other = f"{names[number]!r} above and {name!r} in line {line}"
            raise DataError(f"{table}: label {number} is {other}; give a label one name")
    every = range(max(numbers) + 1) if names else ()
    own = tuple(names.get(number, str(number)) for number in every) or None
    return _from_images(path, files, torch.tensor(numbers), own)


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
    path: Path, files: Sequence[str], labels: Tensor | None, names: tuple[str, ...] | None,
    orientation: Orientation = "stored",
) -> Inputs:  # fmt: skip
    places, read = [path / file for file in files], _reader(orientation)
    turned = b"" if orientation == "stored" else orientation.encode()
    return Inputs(
        str(path), tuple(files), lambda row: read(places[row]), labels, names,
        stored=lambda rows: chain([turned], _stored([places[row] for row in rows])),
    )  # fmt: skip


def _is_file(path: Path) -> bool:
    with suppress(OSError):  # of names that are too long
        return path.is_file()
    return False


def _stored(files: Sequence[Path]) -> Iterator[bytes]:
    """Yield the size of every file, and hashes of all, or of some where they are large."""
    sizes = [file.stat().st_size if _is_file(file) else -1 for file in files]
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


def _reader(orientation: Orientation, mode: str = "RGB") -> Callable[[Path], Tensor]:
    """Make what reads an image, uint8 [y, x, channel]; it warns once where one lies as stored."""
    from PIL import Image, ImageOps

    lying: list[Path] = []

    def read(file: Path) -> Tensor:
        remedy = "Replace it, or leave it out, in a run by on_bad = 'skip'."
        with reading(file, "an image", remedy, DataError), Image.open(file) as image:
            image.load()  # a TIFF is turned by PIL itself
            turned = _turn_of(image.info.get("exif", b""))
            if turned and orientation == "exif":
                ImageOps.exif_transpose(image, in_place=True)
            elif not lying and (turned > 1 or orientation == "exif"):
                lying.append(file)
                turn = "To turn them, give orientation = 'exif' ([data] of a run.toml)"
                words = f"says that the picture is to be turned (orientation {turned})"
                what, do = (words, turn) if turned else ("is damaged", "Replace it")
                warnings.warn(
                    f"{file}: its EXIF {what}; it and others like it are taken as they are stored, "
                    f"as torchvision and timm do. {do}",
                    stacklevel=2,
                )
            pixels = np.array(eight_bits(image).convert(mode))
            return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))

    return read


def _turn_of(exif: bytes) -> int:
    """Return the orientation that EXIF gives, 1 for the one that it has; 0 where it is damaged.

    Pillow warns of damage, without the file, and goes on.
    """
    if not exif:
        return 1
    content = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[content[:4]]
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (number,) = struct.unpack_from(f"{order}H", content, start)
        places = range(start + 2, start + 2 + 12 * number, 12)
        tags = dict(struct.unpack_from(f"{order}H6xH2x", content, place) for place in places)
    except (KeyError, struct.error):
        return 0
    turned: int = tags.get(_ORIENTATION, 1)
    return turned if 1 < turned <= 8 else 1
