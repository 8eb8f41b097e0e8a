"""Fitting: the split, the scale, the learner, and how well it did on either split."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from condec.dictionary.base import (
    Dictionary,
    DictionaryMetrics,
    Epoch,
    Learner,
    OnEpoch,
    TrainConfig,
    Training,
    as_matrix,
    complement,
)
from condec.dictionary.measure import quality
from condec.dictionary.preparation import Preparation
from condec.errors import DataError, OptionError
from condec.shapes import SampleIndex, UnitMatrix

MANY_DEAD: Final = 0.2
"""Share of dead modes on held-out rows above which `fit` warns."""


class DeadModesWarning(UserWarning):
    """More than 20 % of the modes of a dictionary are dead on its held-out rows."""


@dataclass(frozen=True, eq=False)
class FitReport:
    """A dictionary and how well it fits.

    `r2`, `r2_grand`, `cosine` and `l0` are those of the held-out rows; `metrics` has them
    for both splits.

    Attributes
    ----------
    dictionary : Dictionary
        Carries all of this but `seconds`, and saves it.
    training : Training
    seconds : float
        Time the learner took.
    """

    dictionary: Dictionary
    training: Training
    seconds: float

    @property
    def config(self) -> TrainConfig:
        """How it was fitted, with what was left open filled in."""
        return self.training.config

    @property
    def metrics(self) -> dict[str, DictionaryMetrics]:
        """Metrics of the splits ``"train"`` and, where rows were held out, ``"held_out"``."""
        return self.training.metrics

    @property
    def history(self) -> tuple[float, ...]:
        """Training loss by epoch; empty for learners without epochs."""
        return self.training.history

    @property
    def train_rows(self) -> SampleIndex:
        """Rows that were fitted, ascending."""
        return self.training.train_rows

    @property
    def held_out_rows(self) -> SampleIndex:
        """Rows that took no part, ascending."""
        return self.training.held_out_rows

    @property
    def n_alive(self) -> int:
        """Modes with a loading above 0 in any row of either split: those that `Modes` keeps."""
        return self.training.n_alive

    @property
    def r2(self) -> float:
        """Share of the variance within units explained on the held-out rows."""
        return self._held_out.r2

    @property
    def r2_grand(self) -> float:
        """The paper's R2, against one mean for all entries, on the held-out rows."""
        return self._held_out.r2_grand

    @property
    def cosine(self) -> float:
        """Mean cosine between row and reconstruction on the held-out rows."""
        return self._held_out.cosine

    @property
    def l0(self) -> float:
        """Mean number of loadings that are not 0 on the held-out rows."""
        return self._held_out.l0

    @property
    def _held_out(self) -> DictionaryMetrics:
        if "held_out" not in self.metrics:
            raise DataError(
                "FitReport: no rows were held out, so there is no held-out figure; take "
                "metrics['train'], or fit with TrainConfig(held_out=0.2)"
            )
        return self.metrics["held_out"]

    def save(self, folder: str | Path) -> None:
        """Save the dictionary with its split and metrics; `load_dictionary` reads it."""
        self.dictionary.save(folder)


def fit(
    learner: Learner,
    matrix: UnitMatrix | np.ndarray,
    *,
    config: TrainConfig | None = None,
    held_out_rows: Int[torch.Tensor, " held_out"] | None = None,
    progress: bool = False,
    on_epoch: OnEpoch | None = None,
) -> FitReport:
    """Learn a dictionary from a matrix.

    Rows are held out first; scale and atoms are those of the training rows alone.

    Parameters
    ----------
    learner : Learner
        `ThresholdSAE`, `NMF`, `PCA`, `KMeans`, or one of another package.
    matrix : Tensor of shape [sample, unit]
        In any unit: the scale is taken out and put back.
    config : TrainConfig, optional
    held_out_rows : Tensor of int, optional
        Rows to hold out, instead of a share drawn by `config.split_seed`.
    progress : bool
        Show a bar.
    on_epoch : callable, optional
        Called with an `Epoch` after every pass.

    Raises
    ------
    OptionError
        `config.freeze` with a learner that has nothing to freeze.
    DataError
        The matrix holds NaN, is constant, or does not suit the learner; rows to hold out
        that do not exist.

    Warns
    -----
    DeadModesWarning
        More than 20 % of the modes are dead on the held-out rows.
    UserWarning
        Every mode is dead.

    Examples
    --------
    >>> matrix = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    >>> from condec.dictionary import PCA
    >>> report = fit(PCA(3), matrix)
    >>> report.metrics["train"].n_rows, report.metrics["held_out"].n_rows
    (32, 8)
    >>> round(report.r2, 4)
    1.0
    """
    config = config or TrainConfig()
    rows = as_matrix(matrix, "fit")
    held_out = _held_out(rows, config, held_out_rows)
    train = rows[complement(held_out, len(rows)).to(rows.device)]
    preparation = Preparation.fitted(train, config.scaling, config.centre)
    prepared = preparation.apply(train)
    if config.freeze is not None and not learner.freezes:
        raise OptionError(
            f"fit: {type(learner).__name__} has no {config.freeze} that could stay as it was "
            "drawn; leave TrainConfig.freeze at None"
        )
    learner.check(prepared)
    start = time.perf_counter()
    with _bar(progress, type(learner).__name__) as advance:

        def after(epoch: Epoch) -> None:
            advance(epoch)
            if on_epoch is not None:
                on_epoch(epoch)

        learned = learner.learn(prepared, config, after)
    seconds = time.perf_counter() - start
    tensors = {name: tensor.cpu() for name, tensor in learned.tensors.items()}
    tensors |= preparation.tensors
    scale = preparation.scale
    bare = Dictionary(learner, tensors, scale)
    measured = {"train": quality(bare, train)}
    if len(held_out):
        measured["held_out"] = quality(bare, rows[held_out.to(rows.device)])
    alive = torch.stack([found.alive for found in measured.values()]).any(0)
    training = Training(
        config=learned.config,
        n_rows=len(rows),
        held_out_rows=held_out,
        metrics={name: found.metrics() for name, found in measured.items()},
        n_alive=int(alive.sum()),
        history=learned.history,
    )
    if not training.n_alive:
        warnings.warn(
            f"fit: all {learner.n_modes} modes are dead: no row has a loading above 0. Train "
            "longer, raise TrainConfig.threshold_warmup, or lower the threshold or lr.",
            stacklevel=2,
        )
    elif said := _about_dead_modes(learner, training):
        warnings.warn(said, DeadModesWarning, stacklevel=2)
    return FitReport(Dictionary(learner, tensors, scale, training), training, seconds)


def split_rows(n_rows: int, held_out: float, seed: int = 0) -> SampleIndex:
    """Rows to hold out: a share of `n_rows` drawn at random, ascending.

    At least one row, and never all, where `held_out` is above 0.

    Raises
    ------
    DataError
        Fewer than two rows to split.

    Examples
    --------
    >>> split_rows(10, 0.2).shape
    torch.Size([2])
    """
    if held_out and n_rows < 2:
        raise DataError(f"split: at least 2 rows are needed to hold some out; got {n_rows}")
    number = min(max(round(held_out * n_rows), 1), n_rows - 1) if held_out else 0
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return order[:number].sort().values


def _held_out(rows: Tensor, config: TrainConfig, wanted: Tensor | None) -> Tensor:
    if not len(rows):
        raise DataError(f"fit: expected at least one row; got shape {tuple(rows.shape)}")
    if wanted is None:
        return split_rows(len(rows), config.held_out, config.split_seed)
    wanted = torch.unique(wanted.cpu().to(torch.int64))
    if len(wanted) and not 0 <= int(wanted[0]) <= int(wanted[-1]) < len(rows):
        raise DataError(
            f"fit: held_out_rows must be among 0 ... {len(rows) - 1}; got {int(wanted[0])} ... "
            f"{int(wanted[-1])}"
        )
    if len(wanted) == len(rows):
        raise DataError(f"fit: all {len(rows)} rows are held out; none is left to fit")
    return wanted


def _about_dead_modes(learner: Learner, training: Training) -> str:
    """What to say where many modes are dead; empty where few are."""
    found = training.metrics.get("held_out")
    if found is None or (found.dead_share or 0.0) <= MANY_DEAD:
        return ""
    n_modes, n_dead = learner.n_modes, learner.n_modes - found.n_alive
    rare = training.metrics["train"].n_alive - found.n_alive
    return (
        f"fit: {n_dead} of {n_modes} modes ({n_dead / n_modes:.0%}) are dead on the "
        f"{found.n_rows} held-out rows: no loading above 0. About {max(rare, 0)} of them are rare "
        "(training rows use them; hold out more rows to see them), the others are not used at "
        "all: take fewer modes, or train longer."
    )


@contextlib.contextmanager
def _bar(shown: bool, title: str) -> Iterator[OnEpoch]:
    if not shown:
        yield lambda epoch: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, loss="-")
        yield lambda epoch: bar.update(
            task, completed=epoch.index + 1, total=epoch.n_epochs, loss=f"{epoch.loss:.4f}"
        )
