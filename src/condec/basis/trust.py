"""Code in files: whether it may be run.

A plan that somebody else sent may name a file of Python. Within `gated`, such a file is run only
where the user gave the plan, or said so; that is kept, with what the file held, in the user's own
folder of settings, so that it is asked once. Outside, files are run as the caller names them.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from os import environ
from pathlib import Path

from condec.basis.errors import OptionError, StoreError
from condec.basis.files import reading, to_json, user_path, write_file

_GATE: ContextVar[bool | None] = ContextVar("gate", default=None)
"""None: no gate. True: what is run is trusted from now on. False: only what is trusted is run."""


@contextmanager
def gated(*, trusted: bool) -> Iterator[None]:
    """Run files of code in the context only where they are trusted, or all `trusted` from here."""
    token = _GATE.set(trusted)
    try:
        yield
    finally:
        _GATE.reset(token)


def admitted(file: Path, function: str) -> bytes:
    """Return the content of a file of code whose function may be called.

    OptionError where a gate is closed, and this user never trusted the file with this content.
    """
    gate = _GATE.get()
    with reading(file, "a file of Python", "Name one that can be read."):
        content = file.read_bytes()
    if gate is None:
        return content
    # The function belongs to it: others that a file imports must not be called by a stranger.
    name, digest = f"{file}:{function}", hashlib.sha256(content).hexdigest()
    known = _read()
    if known.get(name) == digest:
        return content
    if not gate:
        before = "; it has changed since you trusted it" if name in known else ""
        raise OptionError(
            f"{file}: code that a run folder names is not run unasked{before}; only that of a plan "
            "that you give yourself, a .toml outside of run folders, is. Read it, and if you trust "
            f"it, give the same command with --trust-code, which remembers {function!r} of this "
            "content (in Python: Run(plan, trust_code=True))"
        )
    _write(known | {name: digest})
    return content


def _file() -> Path:
    return user_path("condec/trusted.json", environ.get("XDG_CONFIG_HOME") or "~/.config")


def _read() -> dict[str, str]:
    """Read digests by file and function; nothing where there are none, or they are damaged."""
    try:
        with reading(_file(), "the list of trusted files", "Nothing counts as trusted."):
            found = json.loads(_file().read_bytes())["trusted"]
            return {str(name): str(digest) for name, digest in found.items()}
    except StoreError as error:
        if _file().exists():
            warnings.warn(str(error), UserWarning, stacklevel=2)
        return {}


def _write(trusted: dict[str, str]) -> None:
    with suppress(OSError):  # then it will be asked again
        write_file(_file(), to_json({"trusted": trusted}))
