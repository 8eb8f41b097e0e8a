"""Digests of what lies on disk and of plain values, and how plain values differ."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from condec.basis.files import file_digest

_RECENT: Final = 2 * 10**9
"""Nanoseconds; what was written less than that ago may change and keep its time."""
_known: Final[dict[str, tuple[tuple[int, ...], str]]] = {}


def path_digest(path: Path) -> str:
    """Hash a file, or a folder with the names and the content of all its files (SHA-256).

    Empty where there is nothing. A file is read once a process, unless it changes.
    """
    return joint_digest(path, [path]) if path.is_dir() else _of_file(os.fspath(path))


def joint_digest(start: Path, parts: Sequence[Path]) -> str:
    """Hash files and folders below a folder together, with their names."""
    # Of texts: paths would take longer than all that is hashed.
    files = [os.fspath(p) for p in parts if not p.is_dir()] + [f for p in parts for f in _files(p)]
    skip = len(os.fspath(start)) + 1
    names = sorted((file[skip:].replace(os.sep, "/"), file) for file in files)
    return text_digest("".join(f"{_of_file(file)}  {name}\n" for name, file in names))


def text_digest(text: str) -> str:
    """Hash a text (SHA-256)."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest(*parts: Any) -> str:
    """Short hash of plain values and options: equal for equal content, in any process.

    >>> digest({"a": 1}) == digest({"a": 1}), digest((1, 2)) == digest((2, 1))
    (True, False)
    """
    return text_digest(json.dumps(parts, sort_keys=True, default=lambda one: one.to_dict()))[:16]


def record_digest(record: Mapping[str, Any]) -> str:
    """Hash plain values, whatever the order of keys."""
    plain = json.loads(json.dumps(record))
    return text_digest(json.dumps(plain, sort_keys=True, separators=(",", ":")))


def leaves(record: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values in nested mappings, by their keys with dots between."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{above}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def differences(had: Mapping[str, Any], wants: Mapping[str, Any]) -> list[str]:
    """Say in which entries, at whatever depth, mappings of plain values differ."""
    old, new = (
        {key: json.dumps(value, ensure_ascii=False) for key, value in leaves(each).items()}
        for each in (had, wants)
    )
    return [
        f"{key}: had {old.get(key, 'nothing')}, wants {new.get(key, 'nothing')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _files(folder: Path) -> list[str]:
    found = (f"{above}/{name}" for above, _, names in os.walk(folder) for name in names)
    # What killed writers left is nobody's.
    return [file for file in found if not file.endswith(".partial")]


def _of_file(place: str) -> str:
    try:
        found = os.stat(place)  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a loop of links is no file
            return ""
        raise
    state = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
    if (known := _known.get(place)) and known[0] == state:
        return known[1]
    content = file_digest(Path(place))
    if time.time_ns() - found.st_ctime_ns > _RECENT:
        _known[place] = (state, content)
    return content
