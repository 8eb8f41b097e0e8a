"""Fitting: the split, the scale, the learner, and how well it did on either split."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int

from condec.basis.errors import DataError
from condec.basis.shapes import SampleIndex, UnitMatrix
from condec.dictionary.base import Dictionary, Learner
from condec.dictionary.fitting.checkpoint import Keeper
from condec.dictionary.fitting.gradient import GradientLearner, learn_together
from condec.dictionary.fitting.prepared import Prepared, prepare
from condec.dictionary.fitting.rows import StoredRows
from condec.dictionary.measure.quality import quality
from condec.dictionary.records import (
    DictionaryMetrics,
    Epoch,
    Learned,
    OnEpoch,
    TrainConfig,
    Training,
)

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
    matrix: UnitMatrix | np.ndarray | StoredRows,
    *,
    config: TrainConfig | None = None,
    held_out_rows: Int[torch.Tensor, " held_out"] | np.ndarray | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = False,
    on_epoch: OnEpoch | None = None,
) -> FitReport:
    """Learn a dictionary from a matrix.

    Rows are held out first; scale and atoms are those of the training rows alone.

    Parameters
    ----------
    learner : Learner
        `ThresholdSAE`, `NMF`, `PCA`, `KMeans`, or one of another package.
    matrix : Tensor of shape [sample, unit], or stored rows
        In any unit: the scale is taken out and put back. What `Store.rows` gives is read in
        blocks where it is larger than `TrainConfig.memory_gib` allows; metrics are then those
        of a sample of the rows (`DictionaryMetrics.n_rows`), and the first pass works out the
        scale.
    config : TrainConfig, optional
    held_out_rows : Tensor of int, optional
        Rows to hold out, instead of a share drawn by `config.split_seed`.
    checkpoint : path, optional
        Folder for the state of this one fit by gradient descent. If it was interrupted there,
        it goes on, and ends with the same bits. The folder stays, so that nothing is lost
        before the report is saved; `forget_checkpoint` removes it.
    checkpoint_seconds : float
        Between two checkpoints; none is written by fits that are done earlier.
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
        that do not exist; stored rows that do not fit in memory, for a learner that needs
        them there.
    StoreError
        The checkpoint is that of another fit, is damaged, or cannot be written.

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
    prepared = prepare(learner, matrix, config, held_out_rows)
    keeper = None
    if checkpoint is not None and isinstance(learner, GradientLearner):
        identity = identity_of([(learner, prepared, config)])
        keeper = Keeper(checkpoint, identity, checkpoint_seconds)
    start = time.perf_counter()
    with epoch_bar(progress, type(learner).__name__) as advance:

        def after(epoch: Epoch) -> None:
            advance(epoch)
            if on_epoch is not None:
                on_epoch(epoch)

        if isinstance(learner, GradientLearner):
            learned = learn_together(learner, [prepared.rows], [config], after, keeper)[0]
        else:
            learned = learner.learn(prepared.rows.sample, config, after)
    seconds = time.perf_counter() - start if keeper is None else keeper.elapsed
    report = report_of(learner, prepared, learned, seconds)
    about_dead_modes(report, stacklevel=3)
    return report


def forget_checkpoint(folder: str | Path) -> None:
    """Remove the checkpoint that `fit` left in a folder; nothing happens where there is none.

    Raises
    ------
    StoreError
        A file cannot be removed.
    """
    Keeper(folder, {}, 0.0).remove()


def identity_of(fits: Sequence[tuple[Learner, Prepared, TrainConfig]]) -> dict[str, Any]:
    """What tells the checkpoint of fits that run as one from others."""
    return {
        "versions": {"condec": metadata.version("condec"), "torch": torch.__version__},
        "learner": [learner.to_dict() for learner, _, _ in fits],
        "config": [config.to_dict() for _, _, config in fits],
        "rows": [prepared.rows.digest for _, prepared, _ in fits],
    }


def report_of(learner: Learner, prepared: Prepared, learned: Learned, seconds: float) -> FitReport:
    """Measure what was learned on either split."""
    preparation = prepared.preparation
    tensors = {name: tensor.cpu() for name, tensor in learned.tensors.items()}
    tensors |= preparation.tensors
    bare = Dictionary(learner, tensors, preparation.scale)
    measured = {"train": quality(bare, prepared.train)}
    if len(prepared.held_out_rows):
        measured["held_out"] = quality(bare, prepared.held_out)
    alive = torch.stack([found.alive for found in measured.values()]).any(0)
    training = Training(
        config=learned.config,
        n_rows=prepared.n_rows,
        held_out_rows=prepared.held_out_rows,
        metrics={name: found.metrics() for name, found in measured.items()},
        n_alive=int(alive.sum()),
        history=learned.history,
    )
    return FitReport(Dictionary(learner, tensors, preparation.scale, training), training, seconds)


def about_dead_modes(report: FitReport, stacklevel: int = 2) -> None:
    """Warn where many modes are dead."""
    learner, training = report.dictionary.learner, report.training
    if not training.n_alive:
        warnings.warn(
            f"fit: all {learner.n_modes} modes are dead: no row has a loading above 0. Train "
            "longer, raise TrainConfig.threshold_warmup, or lower the threshold or lr.",
            stacklevel=stacklevel,
        )
    elif said := _many_dead(learner, training):
        warnings.warn(said, DeadModesWarning, stacklevel=stacklevel)


def _many_dead(learner: Learner, training: Training) -> str:
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
def epoch_bar(shown: bool, title: str) -> Iterator[OnEpoch]:
    """What to call after every epoch to move a progress bar on standard error, if it is shown."""
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
