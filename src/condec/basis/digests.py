"""Digests of what lies on disk, and records that hold their own.

>>> record = sealed({"task": "stats", "inputs": {}})
>>> opened(record)["task"]
'stats'
>>> opened(record | {"task": "fit"})
Traceback (most recent call last):
...
ValueError: its content does not have the digest that it states
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from condec.basis.files import file_digest

SEAL: Final = "seal"
"""Key of the digest that a record holds of itself."""
_RECENT: Final = 2 * 10**9
"""Nanoseconds; what was written less than that ago may change and keep its time."""
_known: Final[dict[str, tuple[tuple[int, ...], str]]] = {}


def path_digest(path: Path) -> str:
    """Hash a file, or a folder with the names and the content of all its files (SHA-256).

    Empty where there is nothing. A file is read once a process, unless it changes.
    """
    return joint_digest(path, [path]) if path.is_dir() else _of_file(path)


def joint_digest(start: Path, parts: Sequence[Path]) -> str:
    """Hash files and folders below a folder together, with their names."""
    files = [file for part in parts for file in (_files(part) if part.is_dir() else [part])]
    names = sorted((file.relative_to(start).as_posix(), file) for file in files)
    return text_digest("".join(f"{_of_file(file)}  {name}\n" for name, file in names))


def text_digest(text: str) -> str:
    """Hash a text (SHA-256)."""
    return hashlib.sha256(text.encode()).hexdigest()


def record_digest(record: Mapping[str, Any]) -> str:
    """Hash plain values, whatever the order of keys."""
    plain = json.loads(json.dumps(record))
    return text_digest(json.dumps(plain, sort_keys=True, separators=(",", ":")))


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of plain values with its own digest."""
    return {**record, SEAL: record_digest(record)}


def opened(record: Any) -> dict[str, Any]:
    """Return a sealed record without its digest; ValueError where it does not fit."""
    if not isinstance(record, dict) or SEAL not in record:
        raise ValueError("expected a record with a digest of its content")
    found = {name: value for name, value in record.items() if name != SEAL}
    if record[SEAL] != record_digest(found):
        raise ValueError("its content does not have the digest that it states")
    return found


def _files(folder: Path) -> list[Path]:
    found = (Path(above, name) for above, _, names in os.walk(folder) for name in names)
    # What killed writers left is nobody's.
    return [file for file in found if file.suffix != ".partial"]


def _of_file(path: Path) -> str:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    state = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
    name = os.fspath(path.absolute())
    if (known := _known.get(name)) and known[0] == state:
        return known[1]
    digest = file_digest(path)
    if time.time_ns() - found.st_ctime_ns > _RECENT:
        _known[name] = (state, digest)
    return digest
