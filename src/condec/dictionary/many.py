"""Many fits as one list."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int

from condec.dictionary.base import Learner, TrainConfig
from condec.dictionary.train import FitReport, fit
from condec.shapes import UnitMatrix


@dataclass(frozen=True, eq=False)
class Job:
    """One fit of a list.

    Parameters
    ----------
    learner : Learner
    matrix : Tensor of shape [sample, unit]
        May be that of other jobs.
    config : TrainConfig
    held_out_rows : Tensor of int, optional
        As in `fit`.
    """

    learner: Learner
    matrix: UnitMatrix
    _: KW_ONLY
    config: TrainConfig = field(default_factory=TrainConfig)
    held_out_rows: Int[torch.Tensor, " held_out"] | None = None


def fit_many(
    jobs: Mapping[str, Job],
    *,
    folder: str | Path | None = None,
    on_done: Callable[[str, FitReport], None] | None = None,
) -> dict[str, FitReport]:
    """Fit dictionaries; the reports by the names of the jobs, in their order.

    Parameters
    ----------
    jobs : mapping of str to Job
    folder : path, optional
        Where interrupted fits leave their checkpoints, a folder a job.
    on_done : callable, optional
        Called with a job's name and report as soon as it is done; not always in order.
    """
    del folder
    reports = {}
    for name, job in jobs.items():
        reports[name] = fit(
            job.learner, job.matrix, config=job.config, held_out_rows=job.held_out_rows
        )
        if on_done is not None:
            on_done(name, reports[name])
    return reports
