"""One process at a time in a folder of results, and no way out of it.

Who holds a folder stands in its file ``.lock``, for whom it refuses. The system lifts the lock
when its holder ends, however it ends.
"""

import getpass
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from condec.basis.errors import StoreError
from condec.basis.files import to_json, user_path, writing

SECONDS: Final = 3.0
"""How long another process is waited for."""
_HOLDER: Final = "{user} since {time}, process {process} on {host}: {command}"
_held: set[str] = set()
"""Folders that this process holds alone."""


@contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder, which is made, while the context lasts; `shared` with others that only read.

    A process that holds a folder alone may do so again. What only reads writes nothing, and holds
    nothing where it cannot, as on a read-only disk.

    Raises StoreError: another process holds the folder (the message has who, since when, and by
    which command), the folder cannot be written, or a link in it leads out of it.
    """
    key = os.path.realpath(folder)
    handle = None if key in _held else _opened(folder, shared)
    if handle is None:
        yield
        return
    try:
        _take(handle, folder, shared)
        if shared:
            yield
            return
        refuse_links(folder)
        with writing(f"{folder}"):
            os.ftruncate(handle, 0)  # of what a killed holder left, which may be longer
            os.pwrite(handle, to_json(_words()), 0)
        _held.add(key)
        yield
    finally:
        if not shared and key in _held:
            _held.remove(key)
            with suppress(OSError):
                os.ftruncate(handle, 0)
        os.close(handle)


def holder(folder: Path) -> str:
    """Say who holds a folder alone, as far as can be seen from here; nothing where nobody does."""
    with suppress(OSError), (folder / ".lock").open("rb") as file:
        found = _holder(file.fileno())
        return _HOLDER.format_map(found) if _lives(found) else ""
    return ""


def lent(folder: Path) -> None:
    """Take a folder as held: the process that holds it has started this one, and waits for it."""
    _held.add(os.path.realpath(folder))


def refuse_links(folder: Path) -> None:
    """Raise StoreError where a link below a folder leads out of it: nothing is written through it.

    Arrays of a store hold files only, which are replaced and not followed: they are passed over.
    """
    root = os.path.realpath(folder)
    places = [(root, -1)]  # with the number of folders down from a store
    while places:
        place, depth = places.pop()
        with suppress(PermissionError), os.scandir(place) as entries:
            for entry in entries:
                target = os.path.realpath(entry.path) if entry.is_symlink() else root
                if os.path.commonpath([root, target]) != root:
                    raise StoreError(
                        f"{entry.path}: a link out of the run folder, to {target}, through which "
                        "nothing is written. Remove it, or move what it names to its place; the "
                        "run folder itself may be a link"
                    )
                down = depth + 1 if depth >= 0 or entry.name.endswith(".zarr") else -1
                if down < 3 and entry.is_dir(follow_symlinks=False):  # sites/<site>/<array>
                    places.append((entry.path, down))


def _opened(folder: Path, shared: bool) -> int | None:
    if sys.platform == "win32" or (shared and not folder.is_dir()):
        return None
    file, how = folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    if not shared:
        with writing(f"{folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(file, how, 0o666)
    for way in (how, os.O_RDONLY | os.O_NOFOLLOW):
        with suppress(OSError):
            return os.open(file, way, 0o666)
    return None


def _take(handle: int, folder: Path, shared: bool) -> None:
    import fcntl

    how, deadline = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + SECONDS
    while True:
        hint = ""
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            found = _holder(handle)
        except OSError:  # a file system without locks: what is written there has to do
            found = _holder(handle)
            if not _lives(found):
                return
            hint = f" If that process is no more, remove {folder / '.lock'}."
        if time.monotonic() > deadline:
            by = _HOLDER.format_map(found) if found else "another process that reads it"
            raise StoreError(
                f"{folder}: in use by {by}. Wait until it is done, or stop it, then run the same "
                f"command again.{hint}"
            )
        time.sleep(0.05)


def _user() -> str:
    with suppress(KeyError, OSError):  # an id that has no name
        return getpass.getuser()
    return f"user {os.getuid()}"


def _words() -> dict[str, Any]:
    return {
        "user": _user(), "process": os.getpid(),
        "host": platform.node(), "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([user_path(sys.argv[0]).name, *sys.argv[1:]])[:300],
    }  # fmt: skip


def _holder(handle: int) -> dict[str, Any]:
    """Read who holds a folder alone; empty where nobody does, or it is just being written."""
    try:
        found: dict[str, Any] = json.loads(os.pread(handle, 10_000, 0))
        return {name: found[name] for name in _words()}
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        return {}


def _lives(holder: dict[str, Any]) -> bool:
    """Tell whether a holder may be at work: on another machine, that is not known."""
    if not holder or holder["host"] != platform.node():
        return bool(holder)
    try:
        os.kill(int(holder["process"]), 0)
    except (OSError, ValueError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True
