"""A dictionary on disk: dictionary.safetensors (numbers) and dictionary.json (everything else).

Both are renamed into place whole; the json, written last, holds the digest of the tensors it
belongs to, so that a pair of different fits is never taken for one. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from condec.basis.errors import StoreError
from condec.basis.files import remove_partial, to_json, write_file, writing

TENSORS: Final = "dictionary.safetensors"
RECORD: Final = "dictionary.json"
FORMAT: Final = 2
"""1: without a centre or a scale for every unit among the tensors; still read."""


@dataclass(frozen=True, eq=False)
class Saved:
    """What the two files hold.

    Attributes
    ----------
    tensors : dict of str to Tensor
    record : dict
        As given to `write`.
    """

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def write(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write both files, replacing those of an earlier fit.

    Raises
    ------
    StoreError
        The folder cannot be written.
    """
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    about = {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest(), **record}
    with writing(f"{folder}: dictionary"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((TENSORS, content), (RECORD, to_json(about))):
            remove_partial(folder / name)
            write_file(folder / name, data)


def read(folder: Path) -> Saved:
    """Read both files.

    Raises
    ------
    StoreError
        A file is missing, is no dictionary of condec, is of another format, or the two do
        not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        record = json.loads((folder / RECORD).read_bytes())
        content = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise StoreError(
            f"{folder} holds no dictionary: expected {RECORD} and {TENSORS} ({error}). "
            "'condec fit' or Dictionary.save writes them."
        ) from error
    except ValueError as error:
        raise StoreError(f"{folder / RECORD} is not JSON ({error}); fit again") from error
    if not isinstance(record, dict) or record.get("format") not in (1, FORMAT):
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise StoreError(
            f"{folder / RECORD}: expected a dictionary of format {FORMAT}, got {found!r}; read it "
            "with the version of condec that wrote it, or fit again"
        )
    digest = hashlib.sha256(content).hexdigest()
    if record.get("sha256") != digest:
        raise StoreError(
            f"{folder / TENSORS} does not belong to the {RECORD} beside it: expected SHA-256 "
            f"{record.get('sha256')}, got {digest}. Writing was interrupted or a file was "
            "exchanged: fit again."
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise StoreError(f"{folder / TENSORS} is not a safetensors file ({error})") from error
    return Saved(tensors, {k: v for k, v in record.items() if k not in ("format", "sha256")})
