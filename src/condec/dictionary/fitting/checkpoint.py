"""Checkpoints of a fit: all that an interrupted one needs to end as if nothing had happened.

``step-N.safetensors`` holds the numbers, ``checkpoint.json`` everything else, with the name and
the digest of the numbers it belongs to. It is renamed into place last: until then the
checkpoint before counts.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from condec.basis.errors import StoreError
from condec.basis.files import remove_partial, to_json, write_file, writing

_RECORD: Final = "checkpoint.json"
_FORMAT: Final = 1


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
        self.folder, self.seconds = Path(folder), seconds
        # As it comes back from JSON, so that both can be compared.
        self.identity = json.loads(to_json(dict(identity)))
        self._before, self._since = 0.0, time.monotonic()
        self._last = self._since
        self._written = (self.folder / _RECORD).exists()

    @property
    def elapsed(self) -> float:
        """Seconds that the fit took, those before it was interrupted included."""
        return self._before + time.monotonic() - self._since

    def restore(self) -> State | None:
        """Read the last checkpoint, if there is one.

        StoreError where it is damaged, or belongs to another fit.
        """
        if not (self.folder / _RECORD).exists():
            return None
        from safetensors.torch import load

        try:
            record = json.loads(self._read(_RECORD))
        except ValueError as error:
            raise self._damaged(_RECORD, f"cannot be read ({error})") from error
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise self._damaged(_RECORD, f"expected a checkpoint of format {_FORMAT}")
        self._check(record["identity"])
        content = self._read(record["tensors"])
        found = hashlib.sha256(content).hexdigest()
        if found != record["sha256"]:
            expected = f"expected SHA-256 {record['sha256']}, got {found}"
            raise self._damaged(record["tensors"], f"{expected}: the file is damaged")
        self._before, self._since = record["seconds"], time.monotonic()
        return State(load(content), record["state"])

    def offer(self, state: Callable[[], State]) -> None:
        """Write a checkpoint if it is time."""
        if time.monotonic() - self._last >= self.seconds:
            self._write(state())

    def last(self, state: Callable[[], State]) -> None:
        """Write the end of a fit, if there is a checkpoint: it must not be done again."""
        if self._written:
            self._write(state())

    def remove(self) -> None:
        """Forget the fit, once its result is saved elsewhere."""
        if not self.folder.exists():
            return
        with writing(f"{self.folder}: checkpoint"):
            for path in (self.folder / _RECORD, *self.folder.glob("step-*.safetensors*")):
                path.unlink(missing_ok=True)
            remove_partial(self.folder / _RECORD)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _write(self, state: State) -> None:
        from safetensors.torch import save

        content = save({n: t.detach().cpu().contiguous() for n, t in state.tensors.items()})
        name = f"step-{state.record['step']}.safetensors"
        with writing(f"{self.folder}: checkpoint", lambda: "The last checkpoint counts. "):
            self.folder.mkdir(parents=True, exist_ok=True)
            # The end of a fit may have the step of the last checkpoint: never overwrite that one.
            if (self.folder / name).exists():
                name = f"step-{state.record['step']}-end.safetensors"
            record = {
                "format": _FORMAT,
                "tensors": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "seconds": self.elapsed,
                "identity": self.identity,
                "state": state.record,
            }
            write_file(self.folder / name, content)
            write_file(self.folder / _RECORD, to_json(record))
            for old in self.folder.glob("step-*.safetensors*"):
                if old.name != name:
                    old.unlink(missing_ok=True)
            remove_partial(self.folder / _RECORD)
        self._written, self._last = True, time.monotonic()

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise self._damaged(name, f"cannot be read ({error})") from error

    def _check(self, had: Mapping[str, Any]) -> None:
        names = sorted({*had, *self.identity})
        other = [n for n in names if had.get(n) != self.identity.get(n)]
        if other:
            each = "; ".join(f"{n}: had {had.get(n)}, wants {self.identity.get(n)}" for n in other)
            raise StoreError(
                f"{self.folder} holds the checkpoint of another fit: {each}. Go on with the same "
                "options and rows, or take another folder (or remove this one) to start afresh."
            )

    def _damaged(self, name: str, why: str) -> StoreError:
        return StoreError(f"{self.folder / name}: {why}; remove {self.folder} to start afresh")
