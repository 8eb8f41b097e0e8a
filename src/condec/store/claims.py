"""Claims: which process has a shard in hand, where several share a store without a driver.

A claim is a small file that one process makes, and renews while it is at work. It expires by the
clock of the file system, as those of hosts differ and jump. Claims say who does what, and not what
counts: a shard that two processes write has the same bytes.
"""

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from condec.basis.files import writing

SECONDS: Final = 600.0
"""Age at which a claim that is not renewed counts no longer."""
_FOLDER: Final = "claims"


def claim(store: Path, index: int, who: str) -> bool:
    """Take a shard in hand; tell whether nobody else has it. An earlier claim of `who` counts not.

    Raises StoreError where claims cannot be written.
    """
    file = _file(store, index)
    with writing(f"{store}: the claim of shard {index}"):
        for _ in range(3):
            file.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # the folder is gone again, or the claim is
                try:
                    with file.open("x", encoding="utf-8") as made:
                        made.write(who)
                    return True
                except FileExistsError:
                    if file.read_text("utf-8") != who and _age(file) < SECONDS:
                        return False
                    file.unlink()
    return False


def renew(store: Path, index: int, *_: object) -> None:
    """Say that a shard is still in hand."""
    with suppress(OSError):
        os.utime(_file(store, index))


def release(store: Path, index: int | None = None) -> None:
    """Give a shard back; all shards of a store without an index."""
    if index is None:
        shutil.rmtree(store / _FOLDER, ignore_errors=True)
        return
    with suppress(OSError):
        _file(store, index).unlink(missing_ok=True)
        (store / _FOLDER).rmdir()  # the last one


def _file(store: Path, index: int) -> Path:
    return store / _FOLDER / f"shard-{index:05d}"


def _age(file: Path) -> float:
    """Return the seconds between a file and one that is made now, whichever is older."""
    now = file.with_name(f"now-{secrets.token_hex(4)}")
    now.touch(exist_ok=False)
    try:
        return abs(now.stat().st_mtime - file.stat().st_mtime)
    finally:
        now.unlink(missing_ok=True)
