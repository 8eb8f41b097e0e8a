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
from condec.basis.files import to_json, writing

SECONDS: Final = 3.0
"""How long another process is waited for."""
_NAME: Final = ".lock"
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
            _write(handle, to_json(_words()))
        _held.add(key)
        try:
            yield
        finally:
            _held.remove(key)
            with suppress(OSError):
                _write(handle, b"")
    finally:
        os.close(handle)


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
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if os.path.commonpath([root, target]) != root:
                        raise StoreError(
                            f"{entry.path}: a link out of the run folder, to {target}, through "
                            "which nothing is written. Remove it, or move what it names to its "
                            "place; the run folder itself may be a link"
                        )
                elif entry.is_dir(follow_symlinks=False):
                    down = depth + 1 if depth >= 0 else 0 if entry.name.endswith(".zarr") else -1
                    if down < 3:  # sites/<site>/<array>
                        places.append((entry.path, down))


def _opened(folder: Path, shared: bool) -> int | None:
    if sys.platform == "win32" or (shared and not folder.is_dir()):
        return None
    file = folder / _NAME
    if shared:
        for how in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
            with suppress(OSError):
                return os.open(file, how | os.O_NOFOLLOW, 0o666)
        return None
    with writing(f"{folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _take(handle: int, folder: Path, shared: bool) -> None:
    import fcntl

    deadline = time.monotonic() + SECONDS
    while True:
        hint = ""
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(handle)
        except OSError:  # a file system without locks: what is written there has to do
            holder = _holder(handle)
            if not holder or not _lives(holder):
                return
            hint = f" If that process is no more, remove {folder / _NAME}."
        if time.monotonic() > deadline:
            raise StoreError(f"{folder}: in use by {_described(holder)}. {_TODO}{hint}")
        time.sleep(0.05)


_TODO: Final = "Wait until it is done, or stop it, then run the same command again."


def _words() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in containers
        user = str(os.getuid())
    name = Path(sys.argv[0]).name
    command = shlex.join(["condec" if name == "__main__.py" else name, *sys.argv[1:]])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {"user": user, "process": os.getpid(), "host": platform.node(), "time": now}
    return known | {"command": command[:300]}


def _holder(handle: int) -> dict[str, Any]:
    """Read who holds a folder alone; empty where nobody does, or it is just being written."""
    try:
        found: dict[str, Any] = json.loads(os.pread(handle, 10_000, 0))
        return {name: found[name] for name in _words()}
    except (ValueError, TypeError, KeyError, OSError):
        return {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process that reads it"
    return "{user} since {time}, process {process} on {host}: {command}".format_map(holder)


def _lives(holder: dict[str, Any]) -> bool:
    """Tell whether a holder may be at work: on another machine, that is not known."""
    if holder["host"] != platform.node():
        return True
    try:
        os.kill(int(holder["process"]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _write(handle: int, content: bytes) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, content, 0)
