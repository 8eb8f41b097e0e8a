"""Records of a fit: how it is done, what a learner hands over, and how well it went."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.shapes import SampleIndex

Schedule = Literal["cosine", "plateau", "constant"]
Scaling = Literal["global", "unit", "none"]
Freeze = Literal["encoder", "decoder"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    r"""How a dictionary is fitted: the split, the seeds, the scale, the optimisation.

    What decides how far a fit goes is the sum of its learning rates (Adam moves every
    weight by about that much): too little and atoms are not found, too much and codes that fall
    below a threshold, which gives them no gradient back, erode (`ThresholdSAE` as published).
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
    clip : float, optional
        Longest gradient, over all weights at once, of a learner by gradient descent.
    scaling : {"global", "unit", "none"}
        What rows are divided by before they are fitted: the standard deviation of all entries,
        that of every unit, nothing. Decoding puts it back; with "unit" the error of every
        unit counts alike.
    centre : bool
        Take the mean of every unit out of the rows; decoding puts it back. Rows are then
        partly negative: not for `NMF`.
    precision : {"float32", "bfloat16"}
        What a learner by gradient descent multiplies in; weights, their gradients and the
        optimiser stay in float32, and rows are encoded in float32 afterwards.
    patience : int, optional
        Stop after so many epochs in which the training loss of a learner by gradient descent
        did not fall by a thousandth; epochs in which the threshold rises do not count. By
        default all epochs are run.
    memory_gib : float
        Memory for rows, in GiB. A stored matrix (`Store.rows`) that needs more, with the
        copies that fitting makes, is read in blocks, pass by pass.
    freeze : {"encoder", "decoder"}, optional
        Half of a learner by gradient descent that stays as it was drawn: a control, see
        `condec.dictionary.fit_controls`.

    Raises
    ------
    OptionError
        A number outside its range, an unknown schedule, device or half.
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
    clip: float | None = None
    scaling: Scaling = "global"
    centre: bool = False
    precision: Precision = "float32"
    patience: int | None = None
    memory_gib: float = 4.0
    freeze: Freeze | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"TrainConfig: {name} must be at least 1; got {value}")
        for name in ("lr", "clip", "memory_gib"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise OptionError(f"TrainConfig: {name} must be above 0 and finite; got {value}")
        words = {
            "schedule": Schedule,
            "scaling": Scaling,
            "precision": Precision,
            "freeze": Freeze,
        }
        for name, kind in words.items():
            value = getattr(self, name)
            if value not in get_args(kind) and not (name == "freeze" and value is None):
                rest = ", or None" if name == "freeze" else ""
                raise OptionError(
                    f"TrainConfig: {name} must be one of {', '.join(get_args(kind))}{rest}; "
                    f"got {value!r}"
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
        _check_device(self.device)

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


def _check_device(device: str | None) -> None:
    if device is None:
        return
    try:
        torch.device(device)
    except RuntimeError as error:
        raise OptionError(
            f"TrainConfig: device {device!r} is not one of torch, such as 'cpu' or "
            f"'cuda:0' ({error})"
        ) from error


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
    dead_share : float, optional
        Share of the modes that are not alive. This and what follows are None where they are
        not defined, and for dictionaries saved before they were measured.
    shrinkage : float, optional
        Mean over rows of the reconstruction's length relative to the row's.
    atom_hoyer : float, optional
        Mean Hoyer sparsity of the atoms of alive modes.
    loading_hoyer : float, optional
        Mean over rows of the Hoyer sparsity of the loadings.
    coherence, mean_coherence : float, optional
        Largest and mean absolute cosine between two different atoms of alive modes.
    effective_rank : float, optional
        Directions that the atoms of alive modes use.
    """

    n_rows: int
    r2: float
    r2_grand: float
    cosine: float
    l0: float
    n_alive: int
    dead_share: float | None = None
    shrinkage: float | None = None
    atom_hoyer: float | None = None
    loading_hoyer: float | None = None
    coherence: float | None = None
    mean_coherence: float | None = None
    effective_rank: float | None = None


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


def complement(rows: SampleIndex, n_rows: int) -> Int[torch.Tensor, " other"]:
    """Rows out of `n_rows` that are not among `rows`, ascending."""
    rest = torch.ones(n_rows, dtype=torch.bool)
    rest[rows] = False
    return rest.nonzero().flatten()
