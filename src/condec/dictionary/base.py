"""The contract of dictionaries: a learner (options) makes a dictionary (atoms).

A *learner* says how atoms are found and how loadings are worked out; a *dictionary* is what
it found in one matrix. Every dictionary decodes linearly, ``loadings @ atoms + offset``.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from condec.dictionary import io
from condec.errors import DataError, OptionError, StoreError
from condec.shapes import Atom, Atoms, Loadings, SampleIndex, UnitMatrix

Schedule = Literal["cosine", "plateau", "constant"]

_ROWS_AT_ONCE: Final = 4096
"""Rows encoded at a time: what lies between matrix and loadings stays small."""
_HELD_OUT: Final = "held_out_rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    r"""How a dictionary is fitted: the split, the seeds, and for ThresholdSAE the optimisation.

    What decides how far a fit goes is the sum of its learning rates (Adam moves every
    weight by about that much): too little and atoms are not found, too much and codes erode,
    because a code that falls below the threshold gets no gradient that could bring it back.
    The default therefore fixes the number of steps and that sum, for any number of rows;
    give `epochs` or `lr` to set them by hand.

    Parameters
    ----------
    epochs : int, optional
        Passes over the training rows. By default as many as make about `steps` steps.
    steps : int
        Steps of the optimiser where `epochs` is not given.
    batch_size : int
        Rows in a step.
    lr : float, optional
        Learning rate of Adam at its highest. By default chosen by the learner for the number
        of steps and units; `FitReport.config` says which.
    schedule : {"cosine", "plateau", "constant"}
        Cosine decay to 0; halved after 10 epochs without a better training loss; constant.
    threshold_warmup : float
        Share of the steps in which the threshold of the codes rises from where about 64
        codes of a row pass it to its value; 0 starts at its value, and then most or all
        modes are dead on small data.
    held_out : float
        Share of the rows split off before anything is fitted; 0 for none.
    seed : int
        Of initial values, order of the batches and dropout.
    split_seed : int
        Of the split. Apart from `seed`, so that fits of several seeds share their rows.
    device : str, optional
        Where to fit; by default where the matrix is.

    Raises
    ------
    OptionError
        A number outside its range, an unknown schedule or device.
    """

    epochs: int | None = None
    steps: int = 3000
    batch_size: int = 128
    lr: float | None = None
    schedule: Schedule = "cosine"
    threshold_warmup: float = 0.6
    held_out: float = 0.2
    seed: int = 0
    split_seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"TrainConfig: {name} must be at least 1; got {value}")
        if self.lr is not None and not 0.0 < self.lr < float("inf"):
            raise OptionError(f"TrainConfig: lr must be above 0 and finite; got {self.lr}")
        if self.schedule not in get_args(Schedule):
            raise OptionError(
                f"TrainConfig: schedule must be one of {', '.join(get_args(Schedule))}; "
                f"got {self.schedule!r}"
            )
        for name in ("threshold_warmup", "held_out"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise OptionError(
                    f"TrainConfig: {name} must be a share from 0 to below 1; "
                    f"got {getattr(self, name)}"
                )
        for name in ("seed", "split_seed"):
            if not 0 <= getattr(self, name) < 2**32:
                raise OptionError(
                    f"TrainConfig: {name} must be from 0 to 2**32 - 1; got {getattr(self, name)}"
                )
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise OptionError(
                    f"TrainConfig: device {self.device!r} is not one of torch, such as 'cpu' or "
                    f"'cuda:0' ({error})"
                ) from error

    @classmethod
    def paper(cls, **changes: Any) -> "TrainConfig":
        """Optimisation of Melander et al. 2026: Adam at 5e-5, plateau, 128 rows, 300 epochs.

        Made for 50,000 rows; with few it is far from converged. `changes` override fields.

        >>> TrainConfig.paper(seed=1).lr
        5e-05
        """
        recipe: dict[str, Any] = {
            "epochs": 300,
            "batch_size": 128,
            "lr": 5e-5,
            "schedule": "plateau",
            "threshold_warmup": 0.0,
        }
        return cls(**recipe | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain form."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "TrainConfig":
        """Inverse of `to_dict`.

        Raises
        ------
        OptionError
            A field that does not exist, or a value that cannot be used.
        """
        try:
            return cls(**record)
        except TypeError as error:
            raise OptionError(f"TrainConfig: {error}") from error


@dataclass(frozen=True, eq=False)
class Epoch:
    """One pass over the training rows, as handed to ``fit(..., on_epoch=...)``.

    Attributes
    ----------
    index : int
        From 0.
    n_epochs : int
    loss : float
        Mean of the training loss over the batches, of the scaled data.
    lr : float
        Learning rate of the last step.
    """

    index: int
    n_epochs: int
    loss: float
    lr: float


OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, eq=False)
class Learned:
    """What a learner hands over.

    Attributes
    ----------
    tensors : dict of str to Tensor
        On any device; ``"atoms"`` [mode, unit], where the data have one ``"offset"`` [unit],
        and what else encoding needs; for data divided by their scale.
    config : TrainConfig
        With what was left open filled in.
    history : tuple of float
        Training loss by epoch; empty where there are no epochs.
    """

    tensors: dict[str, Tensor]
    config: TrainConfig
    history: tuple[float, ...] = ()


class Learner(ABC):
    """Options of a way to learn a dictionary; a frozen dataclass with a field ``n_modes``."""

    __slots__ = ()
    n_modes: int
    known: ClassVar[dict[str, type["Learner"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # By name, so that a saved dictionary finds its learner, also one of another package.
        Learner.known[cls.__name__] = cls

    def check(self, matrix: UnitMatrix) -> None:  # noqa: B027  # most learners take any data
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

    def to_dict(self) -> dict[str, Any]:
        """Plain form: the class name and its fields."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
        return {"name": type(self).__name__} | {f.name: getattr(self, f.name) for f in fields}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Learner":
        """Inverse of `to_dict`.

        Raises
        ------
        OptionError
            No learner has that name or those fields.
        """
        fields = dict(record)
        name = fields.pop("name", None)
        if name not in Learner.known:
            raise OptionError(
                f"learner: expected one of {', '.join(Learner.known)}; got {name!r}. Import the "
                "module that defines it first."
            )
        try:
            return Learner.known[name](**fields)
        except TypeError as error:
            raise OptionError(f"learner {name}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class DictionaryMetrics:
    """How well a dictionary describes the rows of one split.

    Attributes
    ----------
    n_rows : int
    r2 : float
        Share of the variance within units explained: predicting every unit's mean scores 0.
    r2_grand : float
        The paper's R2, against one mean for all entries.
    cosine : float
        Mean over rows of the cosine between row and reconstruction.
    l0 : float
        Mean number of loadings that are not 0.
    n_alive : int
        Modes with a loading above 0 in at least one row.
    """

    n_rows: int
    r2: float
    r2_grand: float
    cosine: float
    l0: float
    n_alive: int


@dataclass(frozen=True, eq=False)
class Training:
    """How a dictionary came about; saved with it.

    Attributes
    ----------
    config : TrainConfig
        With what was left open filled in.
    n_rows : int
        Rows of the matrix, of both splits.
    held_out_rows : Tensor of shape [sample]
        Rows of the matrix that took no part, ascending.
    metrics : dict
        By split: ``"train"`` and, where rows were held out, ``"held_out"``.
    n_alive : int
        Modes with a loading above 0 in any row of either split.
    history : tuple of float
        Training loss by epoch.
    """

    config: TrainConfig
    n_rows: int
    held_out_rows: SampleIndex
    metrics: dict[str, DictionaryMetrics]
    n_alive: int
    history: tuple[float, ...] = ()

    @property
    def train_rows(self) -> SampleIndex:
        """Rows of the matrix that were fitted, ascending."""
        return complement(self.held_out_rows, self.n_rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain form, but for `held_out_rows`."""
        return {
            "config": self.config.to_dict(),
            "n_rows": self.n_rows,
            "metrics": {k: dataclasses.asdict(v) for k, v in self.metrics.items()},
            "n_alive": self.n_alive,
            "history": list(self.history),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], held_out_rows: SampleIndex) -> "Training":
        """Inverse of `to_dict`."""
        return cls(
            config=TrainConfig.from_dict(record["config"]),
            n_rows=record["n_rows"],
            held_out_rows=held_out_rows,
            metrics={k: DictionaryMetrics(**v) for k, v in record["metrics"].items()},
            n_alive=record["n_alive"],
            history=tuple(record["history"]),
        )


@final
@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms, and how to find loadings for them: what a learner made of one matrix.

    Attributes
    ----------
    learner : Learner
    tensors : dict of str to Tensor
        The learner's numbers, for data divided by `scale`.
    scale : float
        Standard deviation of all entries of the training rows.
    training : Training, optional
        How it came about.
    """

    learner: Learner
    tensors: Mapping[str, Tensor]
    scale: float
    training: Training | None = None

    @cached_property
    def atoms(self) -> Atoms:
        """Atoms in the data's units, shape [mode, unit]."""
        return self.tensors["atoms"] * self.scale

    @cached_property
    def offset(self) -> Atom:
        """What decoding adds to every row, in the data's units, shape [unit]; 0 but for PCA."""
        offset = self.tensors.get("offset")
        return self.atoms.new_zeros(self.n_units) if offset is None else offset * self.scale

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
        with torch.no_grad():
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                loadings[part] = self.learner.encode(tensors, rows[part] / self.scale)
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


def complement(rows: SampleIndex, n_rows: int) -> Int[torch.Tensor, " other"]:
    """Rows out of `n_rows` that are not among `rows`, ascending."""
    rest = torch.ones(n_rows, dtype=torch.bool)
    rest[rows] = False
    return rest.nonzero().flatten()
