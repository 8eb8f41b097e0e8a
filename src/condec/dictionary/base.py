"""The contract of dictionaries: a learner (options) makes a dictionary (atoms).

A *learner* says how atoms are found and how loadings are worked out; a *dictionary* is what
it found in one matrix. Every dictionary decodes linearly, ``loadings @ atoms + offset``.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.options import Option, option_from_dict
from condec.basis.shapes import Atom, Atoms, Loadings, UnitMatrix
from condec.dictionary import io
from condec.dictionary.fitting.preparation import Preparation
from condec.dictionary.records import (
    Learned,
    OnEpoch,
    TrainConfig,
    Training,
)

_ROWS_AT_ONCE: Final = 4096
"""Rows encoded at a time: what lies between matrix and loadings stays small."""
_HELD_OUT: Final = "held_out_rows"


class Learner(Option, ABC):
    """Options of a way to learn a dictionary; a frozen dataclass with a field ``n_modes``."""

    __slots__ = ()
    n_modes: int
    known: ClassVar[dict[str, type["Learner"]]] = {}
    freezes: ClassVar[bool] = False
    """Whether `learn` heeds `TrainConfig.freeze`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # By name, so that a saved dictionary finds its learner, also one of another package.
        Learner.known[cls.__name__] = cls

    def check(self, matrix: UnitMatrix) -> None:  # most learners take any data
        """Refuse training rows that this learner cannot fit; they are finite and vary.

        Raises
        ------
        DataError
            With the reason.
        """

    @abstractmethod
    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Find atoms in training rows; the same for the same seed, `matrix` left as it is."""

    @abstractmethod
    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Loadings of rows, each worked out by itself; `tensors` as `learn` gave them."""

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Learner":
        """Inverse of `to_dict`.

        Raises
        ------
        OptionError
            No learner has that name or those fields.
        """
        if record.get("name") not in Learner.known:
            raise OptionError(
                f"learner: expected one of {', '.join(Learner.known)}; got {record.get('name')!r}. "
                "Import the module that defines it first."
            )
        learner: Learner = option_from_dict("learner", Learner.known, {}, record)
        return learner


def whole(learner: Learner, *names: str) -> None:
    """Refuse what is not a whole number of at least 1."""
    for name in names:
        value = getattr(learner, name)
        try:
            operator.index(value)
        except TypeError as error:
            raise OptionError(
                f"{type(learner).__name__}: {name} must be a whole number; got {value!r}"
            ) from error
        if value < 1:
            raise OptionError(f"{type(learner).__name__}: {name} must be at least 1; got {value}")


def not_negative(learner: Learner, *names: str) -> None:
    """Refuse numbers below 0 or not finite."""
    for name in names:
        value = getattr(learner, name)
        if not 0.0 <= value < math.inf:
            raise OptionError(
                f"{type(learner).__name__}: {name} must be finite and not negative; got {value}"
            )


@final
@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms, and how to find loadings for them: what a learner made of one matrix.

    Attributes
    ----------
    learner : Learner
    tensors : dict of str to Tensor
        The learner's numbers, for prepared data; and what `Preparation` took out.
    scale : float
        Standard deviation of all entries of the training rows (of their deviations from the
        centre, where that is taken out); 1 where nothing is scaled.
    training : Training, optional
        How it came about.
    """

    learner: Learner
    tensors: Mapping[str, Tensor]
    scale: float
    training: Training | None = None

    @property
    def preparation(self) -> Preparation:
        """What is taken out of rows before they are encoded, and put back in decoding."""
        return Preparation.of(self.scale, self.tensors)

    @cached_property
    def atoms(self) -> Atoms:
        """Atoms in the data's units, shape [mode, unit]."""
        return self.preparation.restore_size(self.tensors["atoms"])

    @cached_property
    def offset(self) -> Atom:
        """What decoding adds to every row, in the data's units, shape [unit]."""
        offset = self.tensors.get("offset")
        empty = self.tensors["atoms"].new_zeros(self.n_units)
        return self.preparation.restore(empty if offset is None else offset)

    @property
    def n_modes(self) -> int:
        """Number of atoms, dead ones included."""
        return self.tensors["atoms"].shape[0]

    @property
    def n_units(self) -> int:
        """Width of the rows it takes."""
        return self.tensors["atoms"].shape[1]

    def encode(self, matrix: UnitMatrix | np.ndarray) -> Loadings:
        """Loadings of rows, shape [sample, mode], where the matrix is; float32.

        Raises
        ------
        DataError
            The rows have another width, or hold entries that are not finite.
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
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                loadings[part] = self.learner.encode(tensors, preparation.apply(rows[part]))
        return loadings

    def decode(self, loadings: Loadings) -> UnitMatrix:
        r"""Rows described by loadings, in the data's units: :math:`\hat X = Z D + o`.

        Raises
        ------
        DataError
            The loadings are not of shape [sample, mode].
        """
        if loadings.ndim != 2 or loadings.shape[1] != self.n_modes:
            raise DataError(
                f"decode: expected loadings [sample, {self.n_modes}], one for every mode, dead "
                f"ones included; got shape {tuple(loadings.shape)}"
            )
        # Where the loadings are, but in float32 as everything here.
        atoms, offset = self.atoms.to(loadings.device), self.offset.to(loadings.device)
        return loadings.to(torch.float32) @ atoms + offset

    def save(self, folder: str | Path) -> None:
        """Write dictionary.safetensors and dictionary.json, replacing those of an earlier fit.

        Raises
        ------
        StoreError
            The folder cannot be written.
        """
        record: dict[str, Any] = {"learner": self.learner.to_dict(), "scale": self.scale}
        tensors = dict(self.tensors)
        if self.training is not None:
            record["training"] = self.training.to_dict()
            tensors[_HELD_OUT] = self.training.held_out_rows
        io.write(Path(folder), tensors, record)


def load_dictionary(folder: str | Path) -> Dictionary:
    """Read a dictionary that `Dictionary.save` or `FitReport.save` wrote; equal bit for bit.

    Raises
    ------
    StoreError
        The files are missing, damaged, of another format, or name an unknown learner.
    """
    saved = io.read(Path(folder))
    tensors, record = saved.tensors, saved.record
    held_out = tensors.pop(_HELD_OUT, torch.empty(0, dtype=torch.int64))
    try:
        learner = Learner.from_dict(record["learner"])
        about = record.get("training")
        training = None if about is None else Training.from_dict(about, held_out)
        found = Dictionary(learner, tensors, record["scale"], training)
        expected = (learner.n_modes, 2)
        if (found.n_modes, tensors["atoms"].ndim) != expected:
            raise ValueError(f"atoms of shape {tuple(tensors['atoms'].shape)} for {learner}")
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise StoreError(
            f"{Path(folder) / io.RECORD} cannot be used: {error!r}. Fit again."
        ) from error
    return found


def as_matrix(matrix: Tensor | np.ndarray, who: str) -> Tensor:
    """Float32 tensor of a finite matrix [sample, unit]; a copy only where the type differs.

    Raises
    ------
    DataError
        Another number of axes, no rows or units, or entries that are not finite.
    """
    if not isinstance(matrix, Tensor):
        # A copy: torch cannot share memory that numpy marks read-only.
        matrix = torch.from_numpy(np.array(matrix, dtype=np.float32))
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise DataError(
            f"{who}: expected a matrix [sample, unit] with at least one unit; got shape "
            f"{tuple(matrix.shape)}"
        )
    matrix = matrix.detach().to(torch.float32)
    # The sum is finite where all entries are (one pass, no mask); it may overflow: then look.
    if not bool(matrix.sum().isfinite()):
        bad = (~matrix.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            some = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
            raise DataError(
                f"{who}: {len(bad)} of {len(matrix)} rows hold NaN or infinite entries (rows "
                f"{some}); leave those samples out, as Store.matrix does"
            )
    return matrix
