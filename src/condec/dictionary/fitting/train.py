"""Fitting: the split, the scale, the learner, and how good the result is on either split."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int

from condec.basis.progress import progress_bar
from condec.basis.records import short_repr
from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import Dictionary, Learner
from condec.dictionary.fitting.checkpoint import Keeper
from condec.dictionary.fitting.descent import GradientLearner, learn_together, threads_for
from condec.dictionary.fitting.rows import Prepared, StoredRows, prepare
from condec.dictionary.measure.quality import quality_of
from condec.dictionary.records import Epoch, Learned, OnEpoch, TrainConfig, Training

MANY_DEAD: Final = 0.2
"""Share of dead modes on held-out rows above which `fit` warns."""


class DeadModesWarning(UserWarning):
    """More than 20 % of the modes of a dictionary are dead on its held-out rows."""


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class FitReport(Training):
    """A dictionary, how it came about, and how good it is.

    `r2`, `r2_grand`, `cosine` and `l0` are those of the held-out rows; `metrics` has them for both
    splits. `dictionary` carries all of this but `seconds`, the time that the learner took.
    """

    dictionary: Dictionary
    seconds: float

    @classmethod
    def of(cls, dictionary: Dictionary, seconds: float) -> "FitReport":
        """Join a dictionary with the record that it carries."""
        kept = Training.__dataclass_fields__
        fields = {name: getattr(dictionary.training, name) for name in kept}
        return cls(dictionary=dictionary, seconds=seconds, **fields)

    def save(self, folder: str | Path) -> None:
        """Save the dictionary with its split and metrics; `load_dictionary` reads it."""
        self.dictionary.save(folder)


def fit(
    learner: Learner, matrix: UnitMatrix | np.ndarray | StoredRows, *,
    config: TrainConfig | None = None,
    held_out_rows: Int[torch.Tensor, " held_out"] | np.ndarray | None = None,
    checkpoint: str | Path | None = None, checkpoint_seconds: float = 60.0, progress: bool = False,
    on_epoch: OnEpoch | None = None,
) -> FitReport:  # fmt: skip
    """Learn a dictionary from a matrix; scale and atoms are those of the training rows alone.

    Parameters
    ----------
    matrix : Tensor of shape [sample, unit], or stored rows
        In any unit: the scale is taken out and put back. Rows from `Store.rows` are read in
        blocks where they are larger than `TrainConfig.memory_gib` allows; metrics are then those
        of a sample of the rows (`Quality.n_rows`).
    held_out_rows : Tensor of int, optional
        Rows to hold out, instead of a share drawn by `config.split_seed`.
    checkpoint : path, optional
        Folder for the state of this one fit by gradient descent. If it was interrupted there,
        it goes on, and ends with the same bits. The folder stays, so that nothing is lost
        before the report is saved; `forget_checkpoint` removes it.
    checkpoint_seconds : float
        Between two checkpoints; none is written by fits that are done earlier.
    on_epoch : callable, optional
        Called with an `Epoch` after every pass.

    Raises
    ------
    OptionError
        `config.freeze` with a learner that has nothing to freeze.
    DataError
        The matrix holds NaN, is constant, does not suit the learner, or does not fit in memory for
        one that needs all rows there; rows to hold out that do not exist.
    StoreError
        The checkpoint is that of another fit, is damaged, or cannot be written.

    A DeadModesWarning says that more than 20 % of the modes are dead on the held-out rows.

    >>> matrix = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    >>> from condec.dictionary import PCA
    >>> report = fit(PCA(3), matrix)
    >>> report.metrics["train"].n_rows, round(report.r2, 4)
    (32, 1.0)
    """
    config, keeper = config or TrainConfig(), None
    prepared = prepare(learner, matrix, config, held_out_rows)
    if checkpoint is not None and learner.by_descent:
        keeper = Keeper(checkpoint, identity_of(learner, [prepared], [config]), checkpoint_seconds)
    shown = progress and learner.by_descent
    with progress_bar(type(learner).__name__, None, unit="epochs", shown=shown) as move:

        def after(epoch: Epoch) -> None:
            note = f"loss {epoch.loss:.4f}"
            move(completed=epoch.index + 1, total=epoch.n_epochs, note=note)
            if on_epoch is not None:
                on_epoch(epoch)

        report = reports_of(learner, [prepared], [config], after, keeper)[0]
    warn_of_dead_modes(report, stacklevel=3)
    return report


def identity_of(
    learner: Learner, fits: Sequence[Prepared], configs: Sequence[TrainConfig]
) -> dict[str, Any]:
    """Return all that tells the checkpoint of fits that run as one from others."""
    return {
        "versions": {"condec": metadata.version("condec"), "torch": torch.__version__},
        "learner": learner.to_dict(),
        "config": [config.to_dict() for config in configs],
        "rows": [prepared.rows.digest for prepared in fits],
    }


def reports_of(
    learner: Learner, fits: Sequence[Prepared], configs: Sequence[TrainConfig], on_epoch: OnEpoch,
    keeper: Keeper | None,
) -> list[FitReport]:  # fmt: skip
    """Do fits that run as one (one alone, unless by gradient descent), and measure each."""
    start, rows = time.perf_counter(), fits[0].rows
    # The whole fit of few rows, so that its bits do not depend on the number of threads.
    with threads_for(fits[0].n_rows * rows.n_units * learner.n_modes * len(fits)):
        if isinstance(learner, GradientLearner):
            found = learn_together(learner, [fit.rows for fit in fits], configs, on_epoch, keeper)
        else:
            found = [learner.learn(rows.sample, configs[0], on_epoch)]
        seconds = time.perf_counter() - start if keeper is None else keeper.elapsed
        each = zip(fits, found, strict=True)
        return [_report(learner, fit, learned, seconds / len(fits)) for fit, learned in each]


def _report(learner: Learner, prepared: Prepared, learned: Learned, seconds: float) -> FitReport:
    """Measure a learner's outcome on either split."""
    preparation = prepared.preparation
    tensors = {name: tensor.cpu() for name, tensor in learned.tensors.items()}
    tensors |= preparation.tensors
    bare = Dictionary(learner, tensors, preparation.scale)
    metrics, alive = {}, torch.zeros(bare.n_modes, dtype=torch.bool)
    for split, rows in (("train", prepared.train), ("held_out", prepared.held_out)):
        if len(rows):
            loadings = bare.encode(rows)
            metrics[split] = quality_of(bare, rows, loadings)
            alive |= (loadings > 0).any(0).cpu()
    training = Training(
        config=learned.config, n_rows=prepared.n_rows, held_out_rows=prepared.held_out_rows,
        metrics=metrics, n_alive=int(alive.sum()), history=learned.history, origin=prepared.origin,
    )  # fmt: skip
    return FitReport.of(Dictionary(learner, tensors, preparation.scale, training), seconds)


def warn_of_dead_modes(report: FitReport, stacklevel: int = 2) -> None:
    """Warn where many modes are dead."""
    n_modes, found = report.dictionary.n_modes, report.metrics.get("held_out")
    if not report.n_alive:
        warnings.warn(
            f"fit: all {n_modes} modes are dead: no row has a loading above 0. Train "
            "longer, raise TrainConfig.threshold_warmup, or lower the threshold or lr.",
            stacklevel=stacklevel,
        )
    elif found is not None and (found.dead_share or 0.0) > MANY_DEAD:
        n_dead, rare = n_modes - found.n_alive, report.metrics["train"].n_alive - found.n_alive
        said = (
            f"fit: {n_dead} of {n_modes} modes ({n_dead / n_modes:.0%}) are dead on the "
            f"{found.n_rows} held-out rows: no loading above 0. About {max(rare, 0)} of them are "
            "rare (training rows use them; hold out more rows to see them), the others are not "
            "used at all: take fewer modes, or train longer."
        )
        warnings.warn(said, DeadModesWarning, stacklevel=stacklevel)
