"""Code in files: whether it may be run.

A plan that somebody else sent may name a file of Python. Within `gated`, such a file is run only
where the user gave the plan, or said so; that is kept, with what the file held, in the user's own
folder of settings, so that it is asked once. Outside, files are run as the caller names them.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from os import environ
from pathlib import Path

from condec.basis.errors import OptionError, StoreError
from condec.basis.files import reading, to_json, user_path, write_file

_GATE: ContextVar[bool | None] = ContextVar("gate", default=None)
"""None: no gate. True: what is run is trusted from now on. False: only what is trusted is run."""

_ran: dict[str, str] = {}
"""Digests of the code that this process runs, by file and function."""
_only: Mapping[str, str] | None = None
"""In a worker: those of its driver; nothing else is run."""


def admitted_here() -> dict[str, str]:
    """Return what code this process has run, for `only` in its workers."""
    return dict(_ran)


def only(trusted: Mapping[str, str] | None) -> None:
    """Run in this process only code that its driver has run, whatever anybody trusts here."""
    global _only
    _only = trusted


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
    # The function belongs to it: others that a file imports must not be called by a stranger.
    name, digest = f"{file}:{function}", hashlib.sha256(content).hexdigest()
    known = _only if _only is not None else {} if gate is None else _read()
    if known.get(name) == digest or (gate is None and _only is None):
        _ran[name] = digest
        return content
    if _only is not None:
        raise OptionError(
            f"{file}: a worker runs only code that its driver has run, {function!r} of the same "
            "content; put the same file at the same place on all machines"
        )
    if not gate:
        before = "; it has changed since you trusted it" if name in known else ""
        raise OptionError(
            f"{file}: code that a run folder names is not run unasked{before}; only that of a plan "
            "that you give yourself, a .toml outside of run folders, is. Read it, and if you trust "
            f"it, give the same command with --trust-code, which remembers {function!r} of this "
            "content (in Python: Run(plan, trust_code=True))"
        )
    _write({**known, name: digest})
    _ran[name] = digest
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
