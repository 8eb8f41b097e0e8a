"""Inputs from WebDataset: tars of images, each with its label beside it.

A tar is read once from end to end for the places of its members, then picture by picture.
"""

import glob
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from condec.basis.errors import DataError, OptionError
from condec.basis.files import reading, user_path
from condec.data.classes import with_classes, with_labels
from condec.data.images import (
    Orientation,
    check_order,
    folder_of,
    is_image,
    is_junk,
    name_of,
    reader,
    stored,
)  # fmt: skip
from condec.data.inputs import Inputs

_WHOLE: Final = "Expected a whole tar, not compressed, as WebDataset writes it; write it again."
_ONE: Final = (
    "expected one image a sample, KEY.jpg for example, KEY without a dot; write the tar so"
)
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST: Final = 1_000_000
"""Bytes of a member that says a label; and files of a range."""

Member = tuple[str, int, int, str]
"""Name of an image, its first byte in the tar, their number, and what stands there as its label."""


def from_tars(
    files: Sequence[Path], keys: Mapping[str, str], names: Sequence[str] | None = None,
    orientation: Orientation | None = None,
) -> Inputs:  # fmt: skip
    """Read images of tars; their ids are their names, folders and endings included.

    The key ``label`` says what beside an image is its class: the content of KEY.cls or KEY.txt
    (``cls``, ``txt``), or an entry of KEY.json (``json.ENTRY``); by default ``cls`` or
    ``json.label``. Where there is none, the class is the image's folder.
    """
    ending, _, entry = keys.get("label", "").partition(".")
    if ending not in ("", "cls", "txt", "json") or bool(entry) != (ending == "json"):
        raise OptionError(f"data: label must be cls, txt or json.ENTRY; got {keys['label']!r}")
    kinds = {ending} if ending else {"cls", "json"}
    members: list[Member] = []
    n_members = [0]
    for file in files:
        with reading(file, "a tar of images", _WHOLE, DataError):
            members += _images_of(file, kinds, entry or "label")
        n_members.append(len(members))
    ids, starts, sizes, given = zip(*members, strict=True) if members else ((), (), (), ())
    first, bytes_at, n_bytes = (np.array(a, dtype=np.int64) for a in (n_members, starts, sizes))
    read = reader(orientation)

    def place(row: int) -> Path:
        return files[int(np.searchsorted(first, row, "right")) - 1]

    def content(row: int) -> bytes:
        with place(row).open("rb") as file:
            file.seek(int(bytes_at[row]))
            return file.read(int(n_bytes[row]))

    def stored_of(rows: Sequence[int]) -> Iterator[bytes]:
        return stored(rows, n_bytes[list(rows)].tolist(), content, orientation)

    def open_image(row: int) -> Any:
        who = f"{place(row)}: {ids[row]}"
        with reading(who, "a member of a tar", _WHOLE, DataError):
            found = content(row)
        return read(who, found)

    who = name_of(files)
    inputs = Inputs(who, ids, open_image, stored=stored_of)
    if any(given):
        return with_labels(inputs, given, names, who, ids)
    classes = [folder_of(name) for name in ids]
    if names is None:
        check_order(files[0], sorted({*classes} - {""}))
    return with_classes(inputs, classes, names, who)


def _images_of(file: Path, kinds: set[str], entry: str) -> list[Member]:
    """Find the images of a tar; members of other kinds, and hidden ones, are passed over."""
    images: dict[str, tuple[str, int, int]] = {}  # by keys of samples
    labels: dict[str, str] = {}
    others: dict[str, str] = {}  # such as KEY.mask.png
    with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
        for name, start, size in _members(opened, tar):
            name = name.removeprefix("./")
            above, slash, base = name.rpartition("/")
            key, _, kind = base.partition(".")
            key = f"{above}{slash}{key}"
            if is_junk(base) or _hidden(above):
                continue
            if kind not in kinds and is_image(base):
                if "." in kind:
                    others[key] = name
                elif images.setdefault(key, (name, start, size)) != (name, start, size):
                    raise DataError(f"{file}: {name} is another image of {key}; {_ONE}")
            elif kind in kinds and (kind == "cls" or key not in labels):
                if size > _MOST:
                    raise DataError(f"{file}: {name}, {size:,} bytes, is too large for a label")
                opened.seek(start)
                labels[key] = _label(opened.read(size).decode(), entry if kind == "json" else "")
    if alone := [name for key, name in others.items() if key not in images]:
        raise DataError(f"{file}: {alone[0]}: its name has more than one dot; {_ONE}")
    return [(*image, labels.get(key, "")) for key, image in images.items()]


@lru_cache(256)
def _hidden(folders: str) -> bool:
    return any(map(is_junk, folders.split("/")))


def _members(opened: BinaryIO, tar: Any) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of all files in a tar; ValueError where it is damaged.

    `tarfile` takes 33 us a member, minutes of a million: it reads only what is not quite ordinary,
    such as long names.
    """
    at, end = 0, opened.seek(0, 2)
    tar.firstmember = None
    while True:
        opened.seek(at)
        header = opened.read(tarfile.BLOCKSIZE)
        if len(header) < tarfile.BLOCKSIZE:
            raise ValueError(
                f"it ends at byte {end}, and not by the block of zeros that ends a tar"
            )
        if not header.strip(b"\0"):
            return
        found = _ordinary(header)
        if found is not None:
            name, size = found
            start = at + tarfile.BLOCKSIZE
            at = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            yield name, start, size
        else:
            opened.seek(at)  # at the first member `tarfile` wants to stand there
            tar.offset = at
            member = tar.next()
            tar.members.clear()  # else it keeps all of them
            if member is None or member.issparse():
                raise ValueError(f"no header of a plain member at byte {at}")
            at, start, size = tar.offset, member.offset_data, member.size
            if member.isreg():
                yield member.name, start, size


def _ordinary(header: bytes) -> tuple[str, int] | None:
    """Return name and size of a plain file; None where `tarfile` is to look, also for damage."""
    name = header[:100].partition(b"\0")[0]
    if header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    try:
        size, stated = int(header[124:136].strip(b" \0"), 8), int(header[148:156].strip(b" \0"), 8)
        name_text = name.decode()
    except ValueError:
        return None
    # The lower half of an Adler-32 is 1 and the sum of all bytes, modulo 65,521.
    total = stated - 8 * ord(" ") + sum(header[148:156])
    good = zlib.adler32(header) & 0xFFFF == (1 + total) % 65521
    return (name_text, size) if good and header[156:157] == b"0" and size >= 0 else None


def _label(text: str, entry: str) -> str:
    """Return what a member says as a label: its text, or an entry of its JSON."""
    if not entry:
        return text.strip()
    found = json.loads(text)
    value = found.get(entry) if isinstance(found, dict) else found
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"a label is a number or a name; {entry} is {str(value)[:40]}")
    return "" if value is None else str(value)


def files_of(pattern: str, folder: Path) -> list[Path]:
    """Return the files of a name, with ranges such as ``{000..012}``, or with ``*``, sorted.

    OptionError where it fits none.
    """
    ranges = [(int(a), int(b), len(a)) for a, b in _RANGE.findall(pattern)]
    n_names = 1
    for low, high, _ in ranges:
        n_names *= max(0, high - low + 1)
    if not 1 <= n_names <= _MOST:
        raise OptionError(f"data {pattern!r}: names {n_names} files; expected 1 to {_MOST:,}")
    numbers = (range(low, high + 1) for low, high, _ in ranges)
    form = _RANGE.sub("\0", pattern)
    found: list[Path] = []
    for chosen in itertools.product(*numbers):
        texts = [str(n).zfill(width) for n, (_, _, width) in zip(chosen, ranges, strict=True)]
        pieces = zip(form.split("\0"), [*texts, ""], strict=True)
        path = user_path("".join(itertools.chain.from_iterable(pieces)), folder)
        many = glob.has_magic(str(path)) and not path.exists()
        found += sorted(map(Path, glob.glob(str(path), recursive=True))) if many else [path]  # noqa: PTH207
    if not found:
        raise OptionError(f"data {pattern!r}: no file is named so in {folder}")
    return found
