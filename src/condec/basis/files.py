"""Files that are on disk whole, or not at all, whatever kills the process that writes them.

Every file is written under another name, flushed to the disk and renamed into place; an object of
an object store by one request. What users give as a path becomes one in `user_path`, or in
`store_path` where an object store will do.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from condec.basis.errors import CondecError, OptionError, StoreError
from condec.basis.objects import READ_ONLY, ObjectPath, at_once, object_path

_LONGEST: Final = 255
"""Bytes of a name of a file, on most systems."""


def user_path(path: str | Path, folder: str | Path = ".") -> Path:
    """Return a path as users mean it: ``~`` is the home folder, a relative one starts in `folder`.

    As in a shell, a ``~name`` of nobody's stays as it is. Every path that comes from outside
    passes here; OptionError for one that no system can have, or the address of an object store.
    """
    if place := object_path(path):
        raise OptionError(
            f"{place}: expected a place on this machine, to which you may copy what is there; only "
            "stores of contributions are read and written in an object store"
        )
    try:
        names = [os.fsencode(name) for name in Path(path).parts]
    except UnicodeEncodeError:
        names = [b"\0"]
    if any(b"\0" in name or len(name) > _LONGEST for name in names):
        shown = str(path).encode("utf-8", "replace").decode()[:100]
        raise OptionError(
            f"path {shown!r}: expected names of at most {_LONGEST} bytes, without the byte 0"
        )

    def expanded(some: Path) -> Path:
        try:
            return some.expanduser()
        except RuntimeError:
            return some

    return expanded(Path(folder)) / expanded(Path(path))


def store_path(path: str | Path, folder: str | Path = ".", *, write: bool = False) -> Path:
    """Return the path of a store as users mean it: as `user_path`, or an address.

    What is to be written is refused where one can only read.
    """
    place = object_path(path)
    if place and write and not place.writable:
        raise StoreError(f"{place}: {READ_ONLY}")
    return place or user_path(path, folder)


_LONGEST_NAME: Final = 200
"""Bytes of a name: file systems take 255, and endings and names of parts follow it."""


def file_name(text: str) -> str:
    """Return a name for a file or folder of any text: quoted, and with a hash where it is long.

    >>> file_name("block2:input"), len(file_name("block." * 50))
    ('block2%3Ainput', 200)
    """
    name = quote(text, safe="", errors="surrogatepass")
    if name[:1] in ("", "."):  # neither hidden, nor a folder above
        name = f"%2E{name[1:]}"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - 17]}-{digest}"


def to_json(value: Any) -> bytes:
    """Write readable JSON."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


_CHECKSUM = b'"checksum": "'


def with_checksum(value: Mapping[str, Any]) -> bytes:
    """Write readable JSON, and fill in the last ``"checksum": ""`` that it holds, at any depth.

    It is the SHA-256 of all the other bytes.

    >>> checksum_holds(with_checksum({"a": 1, "checksum": ""}))
    True
    """
    head, key, tail = to_json(value).rpartition(_CHECKSUM)
    digest = hashlib.sha256(head + key + tail).hexdigest()
    return head + key + digest.encode() + tail


def checksum_holds(content: bytes) -> bool:
    """Tell whether all bytes are as `with_checksum` wrote them, whatever they say."""
    head, key, tail = content.rpartition(_CHECKSUM)
    return hashlib.sha256(head + key + tail[64:]).hexdigest().encode() == tail[:64]


def read_checked(content: bytes) -> dict[str, Any]:
    """Read a record of `with_checksum`; ValueError where a byte is not what was written."""
    found = json.loads(content)
    if not checksum_holds(content):
        raise ValueError("its content does not have the checksum that it states")
    return {name: value for name, value in found.items() if name != "checksum"}


def write_file(path: Path, content: bytes, *, alone: bool = False) -> None:
    """Write a file under another name, make sure that it is on disk, rename it into place.

    Folders are made. Where no other process writes it, `alone`, what a killed one left goes.
    """
    if isinstance(path, ObjectPath):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        remove_partial(path)
    # Unique, so that two processes that write one shard by mistake do not write into one file.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_partial(path: Path) -> None:
    """Remove what a killed writer of `path` left."""
    for partial in path.parent.glob(f"{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


def remove_all_partial(folder: Path) -> None:
    """Remove what killed writers left anywhere in a folder, unless one holds it (`folder_lock`)."""
    with folder_lock(folder, wait=False) as alone:
        for partial in folder.rglob(f"*.{'?' * 8}.partial") if alone else ():
            if not partial.is_dir():
                partial.unlink(missing_ok=True)


def remove_whatever(path: Path) -> None:
    """Remove a file, if it is there, or the folder that stands in its place."""
    if not isinstance(path, ObjectPath) and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_back(files: Mapping[Path, bytes]) -> None:
    """Write files, all of one store, in the place of whatever is there."""

    def put(path: Path) -> None:
        if not isinstance(path, ObjectPath):  # which is replaced as it is written
            remove_whatever(path)
        write_file(path, files[path])

    at_once(put, files, next(iter(files), Path()))


def replace_folder(path: Path, fresh: Path) -> None:
    """Put a folder in the place of another; `folder_in_place` finds one or the other meanwhile."""
    earlier = _earlier(path)
    if path.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        path.rename(earlier)
    try:
        fresh.rename(path)
    except OSError:
        if earlier.exists():
            earlier.rename(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    _sync_folder(path.parent)


def folder_in_place(path: Path) -> Path:
    """Return a folder, or the earlier one where a process was killed that was to replace it."""
    return _earlier(path) if not path.exists() and _earlier(path).exists() else path


def _earlier(path: Path) -> Path:
    return path.with_name(f".{path.name}.earlier")


@contextlib.contextmanager
def writing(who: str, so_far: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn a failure to write into a StoreError that says what counts and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        problem = "the disk is full" if full else "cannot write"
        cure = "make room" if full else _CURES.get(error.errno or 0, "mend that")
        raise StoreError(
            f"{who}: {problem} ({error}). {so_far()}To go on, {cure} and run the same command "
            "again."
        ) from error


@contextlib.contextmanager
def reading(
    path: str | Path, kind: str, remedy: str, error_type: type[CondecError] = StoreError
) -> Iterator[None]:
    """Turn any failure to read a file into one error: the file, what is wrong, what to do.

    Only the reading belongs into the block: whatever a library raises there, from a damaged header
    to a number that claims more memory than there is, says that the file is not what it should be.

    Parameters
    ----------
    path : path
        What is read.
    kind : str
        What it should be, such as ``"a table in parquet"``.
    remedy : str
        What to do where the file is missing or damaged, as a sentence.
    error_type : class
        The error that is raised.
    """
    try:
        yield
    except CondecError as error:
        if str(path) in Exception.__str__(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error_type(f"{path}: there is no such file; expected {kind}. {remedy}") from error
        cure = _CURES.get(error.errno or 0)
        todo = remedy if cure is None else f"{cure[0].upper()}{cure[1:]}, then try again."
        raise error_type(f"{path}: cannot be read as {kind} ({error}). {todo}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if found := _PICKLED.search(what):  # what libraries say goes on to advise to run it
            what = f"it holds Python objects{found[1] or ''}, whose code condec never runs"
        raise error_type(f"{path}: cannot be read as {kind} ({what[:500]}). {remedy}") from error


_PICKLED: Final = re.compile(r"allow_pickle|weights_only(?:.*GLOBAL( \S+))?", re.DOTALL)
"""What numpy and torch say of files that they would unpickle."""


_CURES: Mapping[int, str] = {
    errno.EACCES: "allow this user to use it (its permissions)",
    errno.EPERM: "allow this user to use it (its permissions)",
    errno.EROFS: "choose a place on a disk that can be written",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close what holds files open on this machine",
    errno.ELOOP: "remove the links that lead to one another",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOMEM: "free some memory",
    errno.ECONNABORTED: "see to the connection to the object store, and its settings",
}
"""What to do about failures that say nothing about the content of a file."""


@contextlib.contextmanager
def folder_lock(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Lock a folder, by advice; the system lifts it when its holder is killed.

    Gives whether the lock is held. Where there are no locks (object stores, some network file
    systems, Windows) those who wait go on as if it were.
    """
    if sys.platform == "win32" or isinstance(folder, ObjectPath):
        yield wait
        return
    import fcntl

    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    handle = os.open(folder, os.O_RDONLY)
    held = wait
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, kind)
            held = True
        yield held
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path) -> str:
    """Hash a file (SHA-256)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
