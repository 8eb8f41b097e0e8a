"""Checkpoints of a fit: all that an interrupted one needs to end as if nothing had happened.

``checkpoint.safetensors`` holds the numbers, and everything else as JSON in its metadata, with a
digest of both. It is renamed into place whole: until then the checkpoint before counts.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from condec.basis.digests import differences
from condec.basis.errors import StoreError
from condec.basis.files import (
    reading,
    remove_partial,
    to_json,
    user_path,
    write_file,
    writing,
)
from condec.basis.options import digest_of

_FILE: Final = "checkpoint.safetensors"
_RECORD: Final = "record"
_FORMAT: Final = 3
"""1: a file of JSON next to the numbers; 2: without a digest. Neither is read."""
_EARLIER: Final = ("checkpoint.json*", "step-*.safetensors*")
"""Files of format 1."""


@dataclass(frozen=True, eq=False)
class State:
    """State of a fit: tensors, and a record of values that JSON holds (``"step"`` among them)."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


class Keeper:
    """Keeps the state of one fit in a folder of its own, made when there is something to keep.

    `identity` has options and rows of the fit, as JSON values: a checkpoint of anything else is
    refused. `seconds` pass between two checkpoints; 0 for one after every step.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], seconds: float) -> None:
        self.folder, self.seconds = user_path(folder), seconds
        self._file = self.folder / _FILE
        # As it comes back from JSON, so that both can be compared.
        self.identity = json.loads(to_json(dict(identity)))
        self._before, self._since = 0.0, time.monotonic()
        self._last = self._since

    @property
    def elapsed(self) -> float:
        """Seconds that the fit took, those before it was interrupted included."""
        return self._before + time.monotonic() - self._since

    def restore(self) -> State | None:
        """Read the last checkpoint, if there is one.

        StoreError where it is damaged, or belongs to another fit.
        """
        if not self._file.exists():
            return None
        from safetensors import safe_open
        from safetensors.torch import load

        with reading(self._file, "a checkpoint", f"Remove {self.folder} to start afresh."):
            tensors = load(self._file.read_bytes())
            with safe_open(self._file, "pt") as file:
                metadata = file.metadata()
            record = json.loads(metadata[_RECORD])
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']}, expected {_FORMAT}")
            if metadata["digest"] != _digest(tensors, metadata[_RECORD]):
                raise ValueError("its content is not what was written")
        if other := differences(record["identity"], self.identity):
            raise StoreError(
                f"{self.folder} holds the checkpoint of another fit: {'; '.join(other)}. Go on "
                "with the same options and rows, or take another folder (or remove this one) to "
                "start afresh."
            )
        self._before, self._since = record["seconds"], time.monotonic()
        return State(tensors, record["state"])

    def offer(self, state: Callable[[], State]) -> None:
        """Write a checkpoint if it is time."""
        if time.monotonic() - self._last >= self.seconds:
            self._write(state())

    def last(self, state: Callable[[], State]) -> None:
        """Write the end of a fit, if there is a checkpoint: it must not be done again."""
        if self._file.exists():
            self._write(state())

    def _write(self, state: State) -> None:
        from safetensors.torch import save

        record = {
            "format": _FORMAT, "seconds": self.elapsed, "identity": self.identity,
            "state": state.record,
        }  # fmt: skip
        tensors = {n: t.detach().cpu().contiguous() for n, t in state.tensors.items()}
        with writing(f"{self.folder}: checkpoint", lambda: "The last checkpoint counts. "):
            _remove_leftovers(self.folder)
            text = json.dumps(record)
            content = save(tensors, {_RECORD: text, "digest": _digest(tensors, text)})
            write_file(self._file, content)
        self._last = time.monotonic()


def forget_checkpoint(folder: str | Path) -> None:
    """Remove the checkpoint that `fit` left in a folder, if there is one."""
    folder = user_path(folder)
    if not folder.exists():
        return
    with writing(f"{folder}: checkpoint"):
        (folder / _FILE).unlink(missing_ok=True)
        _remove_leftovers(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers and earlier versions left."""
    remove_partial(folder / _FILE)
    for path in (path for pattern in _EARLIER for path in folder.glob(pattern)):
        path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], record: str) -> str:
    """Hash all that a checkpoint holds."""
    parts = [f"{name}: {digest_of(tensors[name])}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join([*parts, record]).encode()).hexdigest()
