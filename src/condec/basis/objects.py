"""Places in an object store (s3, gs, az; http read-only; memory), as paths of whole objects.

An object is written by one request, and is there whole or not at all. Requests are obstore's, which
tries again what failed on the way, and finds the credentials: none stands in an address.
"""

import errno
import functools
import io
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path, PosixPath, PurePath
from typing import Any, Final, TypeVar

from condec.basis.errors import DependencyError, OptionError, StoreError

Given = TypeVar("Given")
Result = TypeVar("Result")

_ADDRESS: Final = re.compile(
    r"(?:(?P<kind>s3|gs|az|https?|memory):/|[a-z][\w.+-]*://)/*(?P<rest>.*)", re.DOTALL
)
"""An address; with one slash where it went through a Path."""
_AT_ONCE: Final = 16
RETRIES: Final[dict[str, Any]] = {}
"""How often obstore tries again (10 times within 3 minutes), where that is not as it decides."""
_asker: dict[str, int] = {}
_FORKED: Final = (
    "object stores answer no process that was forked from one that asked them; start it by spawn"
)
_CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"}


class ObjectPath(PosixPath):
    """An object, or the common beginning of the names of some, as ``s3://bucket/folder/name``.

    Names are made as those of files are. Whatever needs a file on this machine is refused.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        raise StoreError(f"{self}: expected a place on this machine, not in an object store")

    def is_absolute(self) -> bool:
        """Return True: no address starts from a folder."""
        return True

    def absolute(self) -> "ObjectPath":
        """Return itself."""
        return self

    @property
    def writable(self) -> bool:
        """Tell whether there are such requests at all: by http(s) one only reads."""
        return not self.parts[0].startswith("http")

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        with self._asked() as (store, key):
            return bytes(store.get(key).bytes())

    def write_bytes(self, data: Any) -> int:
        """Write the object, whole."""
        with self._asked(write=True) as (store, key):
            store.put(key, data)
        return len(data)

    def create(self, data: bytes) -> None:
        """Write the object, whole; FileExistsError where it is there, whoever wrote it."""
        with self._asked(write=True) as (store, key):
            store.put(key, data, mode="create")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object, if it is there; tried again, which obstore does not if it lasts."""
        for again in (True, True, False):
            try:
                with self._asked(write=True) as (store, key):
                    store.delete(key)
                return
            except ConnectionAbortedError:
                if not again:
                    raise

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Return the whole object as a file that is read."""
        return io.BytesIO(self.read_bytes()) if mode == "rb" else self.__fspath__()

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: there are no folders."""

    def is_file(self) -> bool:
        """Ask for it by its name, which no delayed listing hides."""
        try:
            with self._asked() as (store, key):
                store.head(key)
        except FileNotFoundError:
            return False
        return True

    def is_symlink(self) -> bool:
        """Return False: there are none."""
        return False

    def is_dir(self) -> bool:
        """Tell whether objects are listed below this name."""
        return any(True for _ in self.rglob("*"))

    def exists(self) -> bool:
        """Tell whether it is an object, or the beginning of the names of some."""
        return self.is_file() or self.is_dir()

    def rglob(self, pattern: str) -> Generator["ObjectPath", None, None]:
        """List the objects below of whose names the last parts match; none of http(s)."""
        with self._asked() as (store, key):
            for some in store.list(key) if self.writable else ():
                for one in some:
                    found = self / one["path"][len(key) :].lstrip("/")
                    if found.match(pattern):
                        yield found

    def glob(self, pattern: str) -> Generator["ObjectPath", None, None]:
        """List the objects whose names below match a pattern of as many parts."""
        parts = PurePath(pattern).parts
        start = self.joinpath(*takewhile(lambda part: not set(part) & set("*?["), parts))
        depth = len(self.parts) + len(parts)
        return (one for one in start.rglob(pattern) if len(one.parts) == depth)

    @contextmanager
    def _asked(self, *, write: bool = False) -> Iterator[tuple[Any, str]]:
        """Give the store and the key; failures are OSErrors as of files, without any secret."""
        if write and not self.writable:
            raise StoreError(f"{self}: {READ_ONLY}")
        n = 1 if self.parts[0] == "memory:" else 2
        store = _store(f"{self.parts[0]}//{'/'.join(self.parts[1:n])}")
        from obstore import exceptions

        if _asker.setdefault("process", os.getpid()) != os.getpid():
            raise StoreError(f"{self}: {_FORKED}")
        try:
            yield store, "/".join(self.parts[n:])
        except FileNotFoundError:
            what = "bucket, or not in that region" if write else "object"
            problem: OSError = FileNotFoundError(
                errno.ENOENT, f"there is no such {what}", str(self)
            )
        except exceptions.AlreadyExistsError:
            problem = FileExistsError(errno.EEXIST, "there is such an object", str(self))
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            problem = PermissionError(errno.EACCES, _said(error), str(self))
        except (exceptions.BaseError, ValueError) as error:
            problem = OSError(errno.ECONNABORTED, _said(error), str(self))
        else:
            return
        raise problem from None  # no traceback shows what the library said in full


READ_ONLY: Final = (
    "by http(s) one only reads; write to s3://, gs://, az:// or to a place on this machine"
)


def object_path(path: str | Path) -> ObjectPath | None:
    """Return the place of an address; None for what is a path on this machine.

    OptionError where the address holds credentials (as a URL with a password, or one that is
    signed), or is none of an object store.
    """
    if isinstance(path, ObjectPath):
        return path
    if not (found := _ADDRESS.fullmatch(str(path))):
        return None
    text = str(path)
    shown = f"address {_without_secrets(text)!r}"
    if "@" in found["rest"].partition("/")[0] or "?" in text or "#" in text:
        raise OptionError(
            f"{shown}: expected no user, password, query or '#' in it; credentials come from "
            "the environment, a profile or the machine (docs/how-to/store.md)"
        )
    made = ObjectPath(f"{found['kind']}:/{found['rest']}")
    n = 2 if found["kind"] == "memory" else 3
    if found["kind"] is None or len(made.parts) < n or ".." in made.parts or not text.isprintable():
        raise OptionError(
            f"{shown}: expected s3://BUCKET/NAME, gs://BUCKET/NAME, az://CONTAINER/NAME, "
            "http(s)://HOST/NAME or memory://NAME"
        )
    return made


def at_once(
    do: Callable[[Given], Result], items: Iterable[Given], path: Path
) -> list[Result]:  # fmt: skip
    """Do the same with all items, in order; at once where `path` is in an object store."""
    if not isinstance(path, ObjectPath):
        return list(map(do, items))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(do, items))


@functools.cache
def _store(root: str) -> Any:
    """Open the store of a bucket, or a server, with the credentials of the environment."""
    try:
        stores: Any = import_module("obstore.store")
    except ImportError as error:
        raise DependencyError(
            f"{root}: object stores are read by obstore, which is not installed; "
            "pip install 'condec[cloud]'"
        ) from error
    if root == "memory://":
        return stores.MemoryStore()
    if root.startswith("http"):
        return stores.HTTPStore(root, client_options={"allow_http": True}, retry_config=RETRIES)
    more: dict[str, Any] = {}
    failures = [ValueError, import_module("obstore.exceptions").BaseError]
    try:
        if root.startswith("s3") and not os.environ.keys() & _CREDENTIALS and find_spec("boto3"):
            failures.append(import_module("botocore.exceptions").BotoCoreError)
            chain = import_module("obstore.auth.boto3")
            more["credential_provider"] = chain.Boto3CredentialProvider()
        return stores.from_url(root, retry_config=RETRIES, **more)
    except tuple(failures) as error:
        raise StoreError(
            f"{root}: no credentials ({_said(error)}). They are looked for where the provider's "
            "own programs do (docs/how-to/store.md): for S3 set AWS_PROFILE, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for what everybody may read."
        ) from None


def _said(error: Exception) -> str:
    """Return what a library said in a line: without what a server answered, and what was signed."""
    return _without_secrets(re.split(r"\n|<\?xml|<html|: <", str(error))[0])[:500]


def _without_secrets(text: str) -> str:
    return re.sub(r"[?#]\S*", "?...", re.sub(r"/[^/\s]*@", "/...@", text))
