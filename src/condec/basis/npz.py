"""Frozen records of tensors and words in one ``.npz`` each, as a run folder keeps them."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy
import torch
from torch import Tensor

from condec.basis.files import reading, user_path, write_file, writing

Record = TypeVar("Record")
_WORDS: Final = "words"


def save_record(path: str | Path, record: Any) -> Path:
    """Write a frozen record of tensors and JSON values as one ``.npz``, whole or not at all.

    The same record gives the same bytes. StoreError where the place cannot be written.
    """
    path = user_path(path)
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    arrays: dict[str, Any] = {
        k: v.cpu().numpy() for k, v in fields.items() if isinstance(v, Tensor)
    }
    words = {name: value for name, value in fields.items() if name not in arrays}
    content = io.BytesIO()
    numpy.savez_compressed(content, **(arrays | {_WORDS: json.dumps(words)}))
    with writing(f"{path}: {type(record).__name__}"):
        write_file(path, content.getvalue(), alone=True)
    return path


def load_record(path: str | Path, kind: type[Record]) -> Record:
    """Read the file of `save_record`, lists as tuples; StoreError where it cannot be read."""
    path = user_path(path)
    remedy = (
        "Make it again with the command that wrote it, such as 'condec map' or 'condec retina'."
    )
    with reading(path, f"the record of a {kind.__name__}", remedy):
        with path.open("rb") as file, numpy.load(file, allow_pickle=False) as opened:
            words: dict[str, Any] = json.loads(str(opened[_WORDS]))
            tensors = {
                name: torch.from_numpy(opened[name]) for name in opened.files if name != _WORDS
            }
        return kind(**tensors, **{name: tuples(value) for name, value in words.items()})


def tuples(value: Any) -> Any:
    """Replace lists by tuples, at any depth."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
