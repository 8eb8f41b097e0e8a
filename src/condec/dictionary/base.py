"""The contract of dictionaries: a learner (options) makes a dictionary (atoms).

A *learner* says how atoms are found and how loadings are worked out; a *dictionary* is the
result for one matrix. Every dictionary decodes linearly, ``loadings @ atoms + offset``.

On disk a dictionary is dictionary.safetensors (numbers) and dictionary.json (everything else).
Both are renamed into place whole; the json, written last, holds the digest of the tensors it
belongs to, and its own, so that a pair of different fits is never taken for one.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor

from condec.basis.digests import record_digest
from condec.basis.errors import DataError, OptionError
from condec.basis.files import (
    folder_in_place,
    folder_lock,
    read_checked,
    reading,
    user_path,
    with_checksum,
    write_file,
    writing,
)
from condec.basis.options import Option, option_from_dict
from condec.basis.records import short_repr
from condec.basis.shapes import Atom, Atoms, Loadings, RowIndex, UnitMatrix
from condec.dictionary.fitting.preparation import Preparation
from condec.dictionary.records import Learned, OnEpoch, TrainConfig, Training, check_fields

Parameters = Mapping[str, Tensor]
Tensors = dict[str, Tensor]
ATOMS: Final = "atoms"
"""Name of the decoder among the tensors of a learner."""
OFFSET: Final = "offset"
"""Name of the addend in decoding; with neither half of a learner is it frozen."""
ROWS_AT_ONCE: Final = 4096
"""Rows encoded at a time: the memory between matrix and loadings stays small."""
_HELD_OUT: Final = "held_out_rows"
_TENSORS: Final = "dictionary.safetensors"
_RECORD: Final = "dictionary.json"
_FORMAT: Final = 3
"""Still read: 2, without a digest of the record; 1, without centre and scales of units, too."""
_REMEDY: Final = "Fit again; 'condec fit' or Dictionary.save writes it."


@dataclass(frozen=True)
class Learner(Option, ABC):
    """Options of a way to learn a dictionary: a frozen dataclass, of which `n_modes` is first."""

    __slots__ = ()
    n_modes: int
    known: ClassVar[dict[str, type["Learner"]]] = {}
    freezes: ClassVar[bool] = False
    """Whether `learn` heeds `TrainConfig.freeze`."""
    by_descent: ClassVar[bool] = False
    """Whether it is a `GradientLearner`, which reads rows in batches."""
    rules: ClassVar[Mapping[str, str]] = {}
    """What fields other than `n_modes` must be, in the words of `check_fields`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # By name, so that a saved dictionary finds its learner, also one of another package.
        Learner.known[cls.__name__] = cls

    def __post_init__(self) -> None:
        check_fields(self, n_modes="count", **self.rules)

    def check(self, matrix: UnitMatrix) -> None:  # most learners take any data
        """Refuse training rows that this learner cannot fit, by a DataError with the reason."""

    @abstractmethod
    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Find atoms in training rows; the same for the same seed, `matrix` left as it is."""

    @abstractmethod
    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Encode rows, each by itself; `tensors` are those that `learn` gave."""

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Learner":
        """Invert `to_dict`; an unknown name or field is an OptionError."""
        learner: Learner = option_from_dict("learner", Learner.known, {}, record)
        return learner


@final
@short_repr
@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms, and how to find loadings for them: the result of a learner for one matrix.

    `tensors` are the learner's numbers, for prepared data, with the centre and scales of
    `Preparation`, whose `scale` is here; `training`, if known, says how the dictionary came about.
    """

    learner: Learner
    tensors: Parameters
    scale: float
    training: Training | None = None

    @property
    def preparation(self) -> Preparation:
        """Change of rows before they are encoded, undone in decoding."""
        return Preparation.of(self.scale, self.tensors)

    @cached_property
    def atoms(self) -> Atoms:
        """Atoms in the data's units, shape [mode, unit]."""
        return self.preparation.restore_size(self.tensors[ATOMS])

    @cached_property
    def offset(self) -> Atom:
        """Addend of every decoded row, in the data's units, shape [unit]."""
        offset = self.tensors.get(OFFSET)
        empty = self.tensors[ATOMS].new_zeros(self.n_units)
        return self.preparation.restore(empty if offset is None else offset)

    @property
    def n_modes(self) -> int:
        """Number of atoms, dead ones included."""
        return self.tensors[ATOMS].shape[0]

    @property
    def n_units(self) -> int:
        """Width of the rows it takes."""
        return self.tensors[ATOMS].shape[1]

    def encode(self, matrix: UnitMatrix | np.ndarray) -> Loadings:
        """Encode rows: loadings of shape [sample, mode], where the matrix is; float32.

        DataError where the rows have another width, or hold entries that are not finite.
        """
        rows = as_matrix(matrix, "encode")
        if rows.shape[1] != self.n_units:
            raise DataError(
                f"encode: the dictionary was fitted to rows of {self.n_units} units; got shape "
                f"{tuple(rows.shape)}. Take the same site, quantity and sign."
            )
        tensors = {name: tensor.to(rows.device) for name, tensor in self.tensors.items()}
        loadings = rows.new_empty(len(rows), self.n_modes)
        preparation = Preparation.of(self.scale, tensors)
        with torch.no_grad():
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = slice(start, start + ROWS_AT_ONCE)
                loadings[part] = self.learner.encode(tensors, preparation.apply(rows[part]))
        return loadings

    def decode(self, loadings: Loadings) -> UnitMatrix:
        r"""Decode loadings [sample, mode] to rows in the data's units: :math:`\hat X = Z D + o`."""
        if loadings.ndim != 2 or loadings.shape[1] != self.n_modes:
            raise DataError(
                f"decode: expected loadings [sample, {self.n_modes}], one for every mode, dead "
                f"ones included; got shape {tuple(loadings.shape)}"
            )
        # Where the loadings are, but in float32 as everything here.
        atoms, offset = self.atoms.to(loadings.device), self.offset.to(loadings.device)
        return loadings.to(torch.float32) @ atoms + offset

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that makes it: tensors, learner, scale and training."""
        return record_digest(self._files()[1])

    def _files(self) -> tuple[bytes, dict[str, Any]]:
        """Return the content of the tensors' file, and the record of everything else."""
        from safetensors.torch import save

        record: dict[str, Any] = {"learner": self.learner.to_dict(), "scale": self.scale}
        tensors = dict(self.tensors)
        if self.training is not None:
            record["training"] = self.training.to_dict()
            tensors[_HELD_OUT] = self.training.held_out_rows
        content = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        return content, {"sha256": hashlib.sha256(content).hexdigest(), **record}

    def save(self, folder: str | Path) -> None:
        """Write dictionary.safetensors and dictionary.json, replacing those of an earlier fit."""
        folder = user_path(folder)
        content, record = self._files()
        about = with_checksum({"format": _FORMAT, **record, "checksum": ""})
        with writing(f"{folder}: dictionary"):
            folder.mkdir(parents=True, exist_ok=True)
            with folder_lock(folder):
                for name, data in ((_TENSORS, content), (_RECORD, about)):
                    write_file(folder / name, data, alone=True)


def load_dictionary(folder: str | Path) -> Dictionary:
    """Read a dictionary that `Dictionary.save` or `FitReport.save` wrote; equal bit for bit.

    StoreError where files are missing, damaged, of another format, or name an unknown learner.
    """
    from safetensors.torch import load

    folder = folder_in_place(user_path(folder))
    record = _read_record(folder / _RECORD)
    with reading(folder / _TENSORS, "tensors of a dictionary", _REMEDY):
        content = (folder / _TENSORS).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if record.get("sha256") != digest:
            raise ValueError(
                f"it does not belong to its {_RECORD}: expected SHA-256 {record.get('sha256')}, "
                f"got {digest}. Writing was interrupted or a file exchanged"
            )
        tensors = load(content)
    with reading(folder / _RECORD, "the record of a dictionary", _REMEDY):
        held_out = tensors.pop(_HELD_OUT, torch.empty(0, dtype=torch.int64))
        try:
            learner, about = Learner.from_dict(record["learner"]), record.get("training")
            training = None if about is None else Training.from_dict(about, held_out)
        except OptionError as error:  # of what a file says, not of what a user asked for
            raise ValueError(str(error)) from error
        found = Dictionary(learner, tensors, record["scale"], training)
        if (found.n_modes, tensors[ATOMS].ndim) != (learner.n_modes, 2):
            raise ValueError(f"atoms of shape {tuple(tensors[ATOMS].shape)} for {learner}")
    return found


def saved_digest(folder: Path) -> str:
    """Return the digest of the dictionary in a folder, by its record; empty where there is none.

    Raises StoreError: the record cannot be read, or is damaged.
    """
    file = folder / _RECORD
    if not file.exists():
        return ""
    return record_digest({n: v for n, v in _read_record(file).items() if n != "format"})


def _read_record(file: Path) -> dict[str, Any]:
    with reading(file, "the record of a dictionary", _REMEDY):
        content = file.read_bytes()
        record = json.loads(content)
        if not isinstance(record, dict) or record.get("format") not in range(1, _FORMAT + 1):
            raise ValueError(f"expected a dictionary of format {_FORMAT}")
        return read_checked(content) if record["format"] == _FORMAT else record


def samples_of(matrix: Any) -> RowIndex | None:
    """Return which sample every row is of, where a matrix tells; else each is one of its own.

    That of positions does (`Store.matrix`): rows of one sample are held out together.
    """
    found: RowIndex | None = getattr(matrix, "samples", None)
    return found


def origin_of(matrix: Any) -> str:
    """Return which samples the rows are, where a matrix tells (`Store.matrix`); else nothing."""
    return str(getattr(matrix, "origin", ""))


def with_samples(matrix: Tensor, samples: RowIndex | None) -> Tensor:
    """Let a new tensor tell which sample every row is of."""
    if samples is not None:
        matrix.samples = samples  # type: ignore[attr-defined]
    return matrix


def as_matrix(matrix: Tensor | np.ndarray, who: str, first: int = 0) -> Tensor:
    """Return a finite matrix [sample, unit] as a float32 tensor; a copy only of another type.

    `first` is the number of its first row, for messages. Samples that it tells stay.
    """
    samples = samples_of(matrix)
    if not isinstance(matrix, Tensor):
        # A copy: torch cannot share memory that numpy marks read-only.
        matrix = torch.from_numpy(np.array(matrix, dtype=np.float32))
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise DataError(
            f"{who}: expected a matrix [sample, unit] with at least one unit; got shape "
            f"{tuple(matrix.shape)}"
        )
    matrix = with_samples(matrix.detach().to(torch.float32), samples)
    # The sum is finite where all entries are (one pass, no mask); it may overflow: then look.
    if not bool(matrix.sum().isfinite()):
        bad = (~matrix.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            some = ", ".join(str(first + b) for b in bad[:8]) + (", ..." if len(bad) > 8 else "")
            raise DataError(
                f"{who}: {len(bad)} of {len(matrix)} rows hold NaN or infinite entries (rows "
                f"{some}); leave those samples out, as Store.matrix does"
            )
    return matrix
