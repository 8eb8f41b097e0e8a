"""Inputs from folders of image files."""

import csv
import hashlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import DataError
from condec.basis.files import reading
from condec.data.classes import with_classes, with_labels
from condec.data.inputs import Inputs, listed, repeated, spread
from condec.data.pictures import eight_bits

Orientation = Literal["stored", "exif"]
"""Pictures as their pixels are stored, or turned as their EXIF says."""

IMAGE_SUFFIXES: Final = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""All else that PIL knows is no picture here: for EPS it would run Ghostscript."""
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
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    if table is not None:
        return _from_table(path, table, names, orientation)
    with reading(path, "a folder of images", "Give the folder of the images.", DataError):
        files = sorted(_images_below(path))
    if names is None:
        check_order(path, sorted({folder_of(file) for file in files} - {""}))
    inputs = _from_images(path, files, orientation)
    return with_classes(inputs, [folder_of(file) for file in files], names, str(path))


def from_image(
    path: Path, shape: tuple[int, ...] | None = None, orientation: Orientation | None = None
) -> Inputs:
    """Read one image file; in grey, where inputs of this `shape` have one channel."""
    mode = "L" if shape is not None and shape[:1] == (1,) else "RGB"
    read = reader(orientation, mode)
    return Inputs(str(path), (path.name,), lambda _: read(path))


def _images_below(folder: Path, above: str = "") -> Iterator[str]:
    """Yield the names of all image files, from the folder on; links to folders are not followed."""
    with os.scandir(folder) as found:
        for entry in found:
            name = f"{above}{entry.name}"
            if is_junk(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _images_below(folder / entry.name, f"{name}/")
            elif is_image(name) and entry.is_file():
                yield name


def is_image(name: str) -> bool:
    """Tell the name of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_junk(name: str) -> bool:
    """Tell names that are hidden, or left behind by a system."""
    return name.startswith(".") or name in _JUNK


def name_of(files: Sequence[Path]) -> str:
    """Name the files of one data set, by the first and the last."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"


def folder_of(name: str) -> str:
    """Return the folder that an image lies in, which is its class; empty without one."""
    return name.partition("/")[0] if "/" in name else ""


def check_order(path: Path, classes: Sequence[str]) -> None:
    """Refuse folders whose numbers by the alphabet may not be the ones that are meant."""
    problem, numbers = "", [str(number) for number in range(len(classes))]
    if all(name.isdecimal() for name in classes) and [str(int(n)) for n in classes] != numbers:
        problem = f"folders {listed(classes)} would be numbered {listed(numbers)}"
    subs = path.iterdir() if classes and path.is_dir() else ()
    below = {sub.name for sub in subs if sub.is_dir() and not is_junk(sub.name)}
    if empty := sorted(below - set(classes)):
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


def _from_table(
    path: Path, table: Path, label_names: Sequence[str] | None, orientation: Orientation | None
) -> Inputs:
    columns = _columns(table)
    files, given, lines = columns["file"], columns["label"], columns[_LINE]
    if len(set(files)) < len(files):
        first, second = repeated(files)
        rows = f"lines {lines[first]} and {lines[second]}"
        raise DataError(f"{table}: {rows} both name {files[first]!r}; give it once")
    if not any(_is_file(path / file) for file in files):
        raise DataError(f"{table}: none of its {len(files)} files is in {path}")
    inputs = _from_images(path, files, orientation)
    inputs = with_labels(inputs, given, label_names, str(table), [f"line {n}" for n in lines])
    if inputs.labels is None or inputs.label_names is not None:
        return inputs
    names, numbers = dict[int, str](), inputs.labels.tolist()
    for line, number, name in zip(lines, numbers, columns["name"], strict=True):
        if name and names.setdefault(number, name) != name:
            other = f"{names[number]!r} above and {name!r} in line {line}"
            raise DataError(f"{table}: label {number} is {other}; give a label one name")
    every = range(max(numbers) + 1) if names else ()
    return replace(inputs, label_names=tuple(names.get(n, str(n)) for n in every) or None)


def _from_images(path: Path, files: Sequence[str], orientation: Orientation | None) -> Inputs:
    read = reader(orientation)

    def stored_of(rows: Sequence[int]) -> Iterator[bytes]:
        base = f"{path}{os.sep}"  # a Path for each takes three times as long
        sizes = [_size(base + files[row]) for row in rows]
        return stored(rows, sizes, lambda row: (path / files[row]).read_bytes(), orientation)

    return Inputs(str(path), tuple(files), lambda row: read(path / files[row]), stored=stored_of)


def _is_file(path: Path) -> bool:
    return _size(path) >= 0


def _size(path: str | Path) -> int:
    """Return the bytes of a file; -1 where there is none, or its name is too long for one."""
    with suppress(OSError, ValueError):
        found = os.stat(path)  # noqa: PTH116
        return found.st_size if stat.S_ISREG(found.st_mode) else -1
    return -1


def stored(
    rows: Sequence[int], sizes: Sequence[int], content: Callable[[int], bytes],
    orientation: Orientation | None,
) -> Iterator[bytes]:  # fmt: skip
    """Yield the size of the bytes of every picture, and hashes of all, or of some of large sets.

    They are the same wherever the same bytes lie: in files, in a tar, in a table.
    """
    yield b"" if orientation in (None, "stored") else orientation.encode()
    few = sum(sizes) <= WHOLE_BYTES
    opened = range(len(rows)) if few else frozenset(spread(len(rows), N_OPENED))
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        yield size.to_bytes(8, "little", signed=True)
        if number in opened:
            try:
                yield hashlib.sha256(content(row)).digest()
            except (OSError, DataError):
                yield b"unreadable"


Read = Callable[..., Tensor]
"""Of a file, or of what is said of a content, and that content: an image, uint8 [y, x, channel]."""


def reader(orientation: Orientation | None, mode: str = "RGB") -> Read:
    """Make what reads images; it warns once where one is taken lying, as it is stored."""
    from PIL import Image, ImageOps

    one_of("data", "orientation", orientation or "stored", Orientation)
    lying: list[str | Path] = []

    def read(file: str | Path, content: bytes | None = None) -> Tensor:
        remedy = "Replace it, or leave it out."
        source = file if content is None else io.BytesIO(content)
        with (
            reading(file, "an image", remedy, DataError),
            Image.open(source, formats=_FORMATS) as image,
        ):
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
