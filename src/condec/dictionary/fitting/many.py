"""Many fits as one list: sites x learners x widths x seeds.

Small fits whose shapes agree run as one, stacked along a first axis; the others are shared out
to processes of one thread each, which is faster than threads within a step.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.files import writing
from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import Learner, as_matrix
from condec.dictionary.fitting.checkpoint import Keeper
from condec.dictionary.fitting.descent import device_of, steps_of
from condec.dictionary.fitting.gradient import GradientLearner, learn_together
from condec.dictionary.fitting.prepared import Prepared, prepare
from condec.dictionary.fitting.processes import Found, Task, in_processes
from condec.dictionary.fitting.rows import StoredRows
from condec.dictionary.fitting.train import (
    FitReport,
    about_dead_modes,
    forget_checkpoint,
    identity_of,
    report_of,
)
from condec.dictionary.records import Epoch, TrainConfig

_SMALL: Final = {"cpu": 10_000_000, "cuda": 1_000_000_000}
"""Products of one fit's step up to which fits gain by running as one. On a CPU 16 units run
2 to 5 times as fast, 64 units 1.3 to 1.8 times, 256 units no faster (8 seeds, 128 rows)."""
_MOST: Final = 32
"""Fits that run as one at most: memory grows with them."""
_PROCESS_SECONDS: Final = 20.0
"""Work that is worth starting processes for, each of which takes seconds to begin."""
_PRODUCTS_A_SECOND: Final = 1e10
"""Of one thread, with the backward pass; for a guess."""


@dataclass(frozen=True, eq=False)
class Job:
    """One fit of a list.

    Parameters
    ----------
    learner : Learner
    matrix : Tensor of shape [sample, unit], or stored rows
        May be that of other jobs.
    config : TrainConfig
    held_out_rows : Tensor of int, optional
        As in `fit`.
    """

    learner: Learner
    matrix: UnitMatrix | np.ndarray | StoredRows
    _: KW_ONLY
    config: TrainConfig = field(default_factory=TrainConfig)
    held_out_rows: Int[torch.Tensor, " held_out"] | None = None


def fit_many(
    jobs: Mapping[str, Job],
    *,
    folder: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    workers: int | None = None,
    progress: bool = False,
    on_done: Callable[[str, FitReport], None] | None = None,
) -> dict[str, FitReport]:
    """Fit dictionaries; the reports by the names of the jobs, in their order.

    Fits that run as one give what each would give alone, up to rounding; those with dropout run
    by themselves. They share `seconds` evenly.

    Parameters
    ----------
    jobs : mapping of str to Job
    folder : path, optional
        For checkpoints of this list alone: where interrupted fits by gradient descent go on.
        What is left there is removed when all are done.
    checkpoint_seconds : float
        As in `fit`.
    workers : int, optional
        Processes; by default as many as torch has threads, where the work is worth it.
    progress : bool
        Show a bar.
    on_done : callable, optional
        Called in this process with a job's name and report as soon as it is done, not always
        in order: the place to save it.

    Raises
    ------
    OptionError
        Less than one worker.
    CondecError
        As from `fit`, of the first job that cannot be fitted; a worker process that ended.
    StoreError
        The folder cannot be written.

    Warns
    -----
    DeadModesWarning
        For every dictionary with many dead modes, as from `fit`.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"fit_many: workers must be at least 1; got {workers}")
    groups = _groups(jobs)
    number = min(len(groups), _workers(jobs) if workers is None else workers)
    place = None if folder is None else Path(folder)
    if place is not None:
        with writing(f"{place}: checkpoints"):
            place.mkdir(parents=True, exist_ok=True)
    reports: dict[str, FitReport] = {}
    with bar(progress, "fits", len(jobs)) as advance:
        for names, (found, kept) in _results(jobs, groups, number, place, checkpoint_seconds):
            for name, report in zip(names, found, strict=True):
                about_dead_modes(report, stacklevel=3)
                reports[name] = report
                if on_done is not None:
                    on_done(name, report)
                advance()
            if kept is not None:
                forget_checkpoint(kept)
    if place is not None:
        _clear(place)
    return {name: reports[name] for name in jobs}


def _results(
    jobs: Mapping[str, Job],
    groups: Sequence[tuple[str, ...]],
    workers: int,
    folder: Path | None,
    seconds: float,
) -> Iterator[tuple[tuple[str, ...], Found]]:
    """Groups as they are done: in processes those that can go there, the others here."""
    every = {id(job.matrix): job.matrix for job in jobs.values()}
    numbers = {key: number for number, key in enumerate(every)}
    tasks = {names: _task([jobs[name] for name in names], numbers) for names in groups}
    away = [names for names in groups if workers > 1 and _can_leave(jobs[names[0]])]
    if len(away) > 1:
        used = {number for names in away for number in tasks[names].matrices}
        tensors = {
            numbers[key]: as_matrix(matrix, "fit_many")
            for key, matrix in every.items()
            if numbers[key] in used and isinstance(matrix, Tensor | np.ndarray)
        }
        sent = [tasks[names] for names in away]
        for number, found in in_processes(sent, tensors, workers, folder, seconds):
            yield away[number], found
    here = {numbers[key]: matrix for key, matrix in every.items()}
    for names in groups:
        if len(away) <= 1 or names not in away:
            yield names, carry_out(tasks[names], here, folder, seconds)


def _task(jobs: Sequence[Job], numbers: Mapping[int, int]) -> Task:
    return Task(
        jobs[0].learner,
        [job.config for job in jobs],
        [numbers[id(job.matrix)] for job in jobs],
        [job.held_out_rows for job in jobs],
    )


def _can_leave(job: Job) -> bool:
    """Whether another process knows the learner, can be given the rows, and has the device."""
    known = type(job.learner).__module__.partition(".")[0] == "condec"
    return known and isinstance(job.matrix, Tensor | np.ndarray) and _device(job).type == "cpu"


def carry_out(
    task: Task,
    matrices: Mapping[int, Tensor | np.ndarray | StoredRows],
    folder: Path | None,
    seconds: float,
) -> Found:
    """Fits that run as one."""
    learner, shared = task.learner, dict[Any, Prepared]()
    fits: list[Prepared] = []
    for number, config, held_out in zip(
        task.matrices, task.configs, task.held_out_rows, strict=True
    ):
        rows = None if held_out is None else tuple(held_out.tolist())
        key = (number, dataclasses.replace(config, seed=0), rows)
        if key not in shared:
            shared[key] = prepare(learner, matrices[number], config, held_out)
        fits.append(shared[key])
    keeper, started = None, time.perf_counter()
    if isinstance(learner, GradientLearner):
        if folder is not None:
            each = zip(fits, task.configs, strict=True)
            identity = identity_of([(learner, fit, config) for fit, config in each])
            name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            keeper = Keeper(folder / name, identity, seconds)
        prepared = [fit.rows for fit in fits]
        learned = learn_together(learner, prepared, task.configs, _ignore, keeper)
    else:
        learned = [learner.learn(fits[0].rows.sample, task.configs[0], _ignore)]
    took = time.perf_counter() - started if keeper is None else keeper.elapsed
    share = took / len(fits)
    reports = [report_of(learner, fit, of, share) for fit, of in zip(fits, learned, strict=True)]
    return reports, None if keeper is None else keeper.folder


def _ignore(epoch: Epoch) -> None:
    del epoch


def _groups(jobs: Mapping[str, Job]) -> list[tuple[str, ...]]:
    """Names of fits that run as one; the largest groups first."""
    groups: dict[Any, list[str]] = {}
    for name, job in jobs.items():
        groups.setdefault(_alike(name, job), []).append(name)
    parts = [
        tuple(names[start : start + _MOST])
        for names in groups.values()
        for start in range(0, len(names), _MOST)
    ]
    return sorted(parts, key=lambda names: -sum(_products(jobs[name]) for name in names))


def _alike(name: str, job: Job) -> Any:
    """Equal for fits that can run as one and gain by it."""
    config, matrix = job.config, job.matrix
    if (
        not isinstance(job.learner, GradientLearner)
        or not isinstance(matrix, Tensor | np.ndarray)
        or config.schedule == "plateau"
        or config.patience is not None
        or job.learner.draws
    ):
        return name
    device = _device(job)
    if _step_products(job) > _SMALL.get(device.type, 0):
        return name
    held_out = None if job.held_out_rows is None else len(job.held_out_rows)
    plain = dataclasses.replace(config, seed=0, split_seed=0)
    return (job.learner, plain, tuple(matrix.shape), held_out, device)


def _device(job: Job) -> torch.device:
    """Where a job is fitted."""
    if isinstance(job.matrix, Tensor):
        return device_of(job.config, job.matrix)
    return torch.device(job.config.device or "cpu")


def _step_products(job: Job) -> float:
    """About as many as a forward step takes."""
    n_units = job.matrix.shape[1]
    width = getattr(job.learner, "width", None) or n_units
    return job.config.batch_size * float(width * (n_units + job.learner.n_modes + width))


def _products(job: Job) -> float:
    """About as many as the whole fit takes."""
    return 3.0 * _step_products(job) * steps_of(job.config, job.matrix.shape[0])


def _workers(jobs: Mapping[str, Job]) -> int:
    """Processes that are worth starting; the GPU is one."""
    if any(_device(job).type != "cpu" for job in jobs.values()):
        return 1
    seconds = sum(map(_products, jobs.values())) / _PRODUCTS_A_SECOND
    return torch.get_num_threads() if seconds > _PROCESS_SECONDS else 1


def _clear(folder: Path) -> None:
    """Remove what earlier calls left."""
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_dir():
            forget_checkpoint(path)
    if not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def bar(shown: bool, text: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on standard error, where it is asked for and something is left; what moves it on."""
    if not shown or done == total:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as found:
        task = found.add_task(text, total=total, completed=done)
        yield lambda: found.advance(task)
