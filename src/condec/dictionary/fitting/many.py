"""Many fits as one list: sites x learners x widths x seeds.

Small fits of one shape run as one; the others are shared out to processes of one thread each,
which is faster than threads within a step.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from condec.basis.digests import digest
from condec.basis.errors import CondecError, OptionError
from condec.basis.files import user_path, writing
from condec.basis.processes import end_with, without_main
from condec.basis.records import short_repr
from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import Learner, as_matrix, load_dictionary, origin_of, samples_of
from condec.dictionary.fitting.checkpoint import Keeper, forget_checkpoint
from condec.dictionary.fitting.descent import GradientLearner, steps_of
from condec.dictionary.fitting.rows import Prepared, StoredRows, draw_held_out, prepare
from condec.dictionary.fitting.train import FitReport, identity_of, reports_of, warn_of_dead_modes
from condec.dictionary.records import TrainConfig

_SMALL: Final = {"cpu": 10_000_000, "cuda": 1_000_000_000}
"""Products of one fit's step up to which fits gain by running as one (docs/decisions.md)."""
_MOST: Final = 32
"""Fits that run as one at most: memory grows with them."""
_PROCESS_SECONDS: Final = 20.0
"""Work that is worth starting processes for, each of which takes seconds to begin."""
_PRODUCTS_A_SECOND: Final = 1e10
"""Of one thread, with the backward pass; for a guess."""
_MATRIX: Final = "matrix"

Matrix = UnitMatrix | np.ndarray | StoredRows
_Done = tuple[list[FitReport], Path | None]
"""Reports of fits that ran as one, and the folder of their checkpoint."""


@short_repr
@dataclass(frozen=True, eq=False)
class Job:
    """One fit of a list: what `fit` takes; `matrix` may be that of other jobs."""

    learner: Learner
    matrix: Matrix
    _: KW_ONLY
    config: TrainConfig = field(default_factory=TrainConfig)
    held_out_rows: Int[torch.Tensor, " held_out"] | np.ndarray | None = None

    def __post_init__(self) -> None:
        # Drawn here: what a worker process gets does not tell samples.
        if self.held_out_rows is None and samples_of(self.matrix) is not None:
            object.__setattr__(self, "held_out_rows", draw_held_out(self.matrix, self.config))


def fit_many(
    jobs: Mapping[str, Job], *, folder: str | Path | None = None, checkpoint_seconds: float = 60.0,
    workers: int | None = None, on_done: Callable[[str, FitReport], None] | None = None,
    done: Collection[str] = (),
) -> dict[str, FitReport]:  # fmt: skip
    """Fit dictionaries; return the reports by the names of the jobs, in their order.

    Fits that run as one give what each would give alone, up to rounding; those with dropout run
    by themselves. They share `seconds` evenly. Errors and warnings are those of `fit`.

    Less than one worker is an OptionError, a folder that cannot be written a StoreError, a worker
    process that ended before its fits were done a CondecError.

    Parameters
    ----------
    folder : path, optional
        For checkpoints of this list alone: where interrupted fits by gradient descent go on.
        All that is left there is removed when all are done.
    checkpoint_seconds : float
        As in `fit`.
    workers : int, optional
        Processes; by default as many as torch has threads, where the work is worth it. They do
        not run the calling script again: no ``if __name__ == "__main__"`` is needed.
    on_done : callable, optional
        Called in this process with a job's name and report as soon as it is done, not always
        in order: the place to save it.
    done : names, optional
        Jobs that an interrupted call on the same list finished; they have no report. The others
        end with the same bits as if nothing had happened: a job that is done is done again where
        one that ran together with it is not.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"fit_many: workers must be at least 1; got {workers}")
    groups = _groups(jobs)
    number = min(len(groups), _workers(jobs) if workers is None else workers)
    place = None if folder is None else user_path(folder).resolve()
    if place is not None:
        with writing(f"{place}: checkpoints"):
            place.mkdir(parents=True, exist_ok=True)
    reports: dict[str, FitReport] = {}
    left = [names for names in groups if not set(names) <= set(done)]
    for names, (found, kept) in _results(jobs, groups, left, number, place, checkpoint_seconds):
        for name, report in zip(names, found, strict=True):
            if name in done:
                continue
            warn_of_dead_modes(report, stacklevel=3)
            reports[name] = report
            if on_done is not None:
                on_done(name, report)
        if kept is not None:
            forget_checkpoint(kept)
    if place is not None and place.exists():
        # Also those that earlier calls left.
        for path in filter(Path.is_dir, list(place.iterdir())):
            forget_checkpoint(path)
        if not any(place.iterdir()):
            place.rmdir()
    return {name: reports[name] for name in jobs if name in reports}


def _results(
    jobs: Mapping[str, Job], groups: Sequence[tuple[str, ...]], left: Sequence[tuple[str, ...]],
    workers: int, folder: Path | None, seconds: float,
) -> Iterator[tuple[tuple[str, ...], _Done]]:  # fmt: skip
    """Yield the groups that are left: in processes those that can go there, the others here.

    Where a group goes, and so its number of threads, depends on all groups alone.
    """
    away = {names for names in groups if workers > 1 and _can_leave(jobs[names[0]])}
    if len(away) <= 1:
        away = set()
    parts = {names: [jobs[name] for name in names] for names in left}
    going = {names: part for names, part in parts.items() if names in away}
    if going:
        yield from _in_processes(going, workers, folder, seconds)
    for names, part in parts.items():
        if names not in away:
            yield names, _carry_out(part, folder, seconds)


def _can_leave(job: Job) -> bool:
    """Tell whether a worker knows the learner, can be given the rows, and has the device."""
    known = type(job.learner).__module__.partition(".")[0] == "condec"
    return known and isinstance(job.matrix, Tensor | np.ndarray) and _device(job).type == "cpu"


def _carry_out(jobs: Sequence[Job], folder: Path | None, seconds: float) -> _Done:
    """Do fits that run as one."""
    learner, shared, keeper = jobs[0].learner, dict[Any, Prepared](), None
    fits, configs = list[Prepared](), [job.config for job in jobs]
    for job in jobs:
        held_out = None if job.held_out_rows is None else tuple(job.held_out_rows.tolist())
        key = (id(job.matrix), dataclasses.replace(job.config, seed=0), held_out)
        if key not in shared:
            shared[key] = prepare(learner, job.matrix, job.config, job.held_out_rows)
        fits.append(shared[key])
    if learner.by_descent and folder is not None:
        identity = identity_of(learner, fits, configs)
        keeper = Keeper(folder / digest(identity), identity, seconds)
    reports = reports_of(learner, fits, configs, lambda epoch: None, keeper)
    return reports, None if keeper is None else keeper.folder


def _in_processes(
    parts: Mapping[tuple[str, ...], Sequence[Job]], workers: int, folder: Path | None,
    seconds: float,
) -> Iterator[tuple[tuple[str, ...], _Done]]:  # fmt: skip
    """Do groups of fits in processes, which are given options and the names of files.

    They end when the folder of these files goes, or the process that made it.
    """
    from multiprocessing import get_context

    from safetensors.torch import save_file

    files: dict[int, Path] = {}
    waiting: dict[Future[tuple[list[float], Path | None]], tuple[tuple[str, ...], Path]] = {}
    place = Path(tempfile.mkdtemp(prefix="condec-fits-"))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (place, os.getpid()))
    try:
        for job in (job for jobs in parts.values() for job in jobs):
            if id(job.matrix) not in files and isinstance(job.matrix, Tensor | np.ndarray):
                files[id(job.matrix)] = file = place / f"{len(files)}.safetensors"
                rows = as_matrix(job.matrix, "fit_many").cpu().contiguous()
                save_file({_MATRIX: rows}, file)
        for number, (names, jobs) in enumerate(parts.items()):
            # Arrays: tensors would be sent as shared memory.
            apart = [job.held_out_rows for job in jobs]
            held = [None if a is None else torch.as_tensor(a).cpu().numpy() for a in apart]
            given = [
                (files[id(j.matrix)], origin_of(j.matrix), j.config, h)
                for j, h in zip(jobs, held, strict=True)
            ]
            out = place / f"fits-{number}"
            with without_main():
                future = pool.submit(_work, jobs[0].learner, given, out, folder, seconds)
            waiting[future] = (names, out)
        for future in as_completed(waiting):
            names, out = waiting[future]
            seconds_each, checkpoint = future.result()
            saved = ((load_dictionary(out / str(n)), each) for n, each in enumerate(seconds_each))
            yield names, ([FitReport.of(*pair) for pair in saved], checkpoint)
    except BrokenProcessPool as error:
        raise CondecError(
            "fit_many: a worker process ended before its fits were done (out of memory?); take "
            "fewer workers"
        ) from error
    finally:
        if not all(future.done() for future in waiting):
            shutil.rmtree(place, ignore_errors=True)  # Workers that are still at work end.
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(place, ignore_errors=True)


def _begin(place: Path, parent: int) -> None:
    """Begin a worker, of one thread."""
    torch.set_num_threads(1)
    end_with(place, parent)


def _work(
    learner: Learner, given: Sequence[tuple[Path, str, TrainConfig, np.ndarray | None]],
    out: Path, folder: Path | None, seconds: float,
) -> tuple[list[float], Path | None]:  # fmt: skip
    """Do fits that run as one, in a worker; return what `_Done` has, but save the reports."""
    from safetensors.torch import load_file

    read = {file: load_file(file)[_MATRIX] for file in {file for file, *_ in given}}
    for file, origin, *_ in given:
        read[file].origin = origin  # type: ignore[attr-defined]
    jobs = [Job(learner, read[f], config=c, held_out_rows=held) for f, _, c, held in given]
    reports, checkpoint = _carry_out(jobs, folder, seconds)
    for index, report in enumerate(reports):
        report.save(out / str(index))
    return [report.seconds for report in reports], checkpoint


def _groups(jobs: Mapping[str, Job]) -> list[tuple[str, ...]]:
    """Group the names of fits that run as one; the largest groups first."""
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
    """Return a key that is equal for fits that can run as one and gain by it."""
    config, matrix = job.config, job.matrix
    by_itself = config.schedule == "plateau" or config.patience is not None
    if by_itself or not isinstance(job.learner, GradientLearner) or job.learner.draws:
        return name
    device = _device(job)
    stored = not isinstance(matrix, Tensor | np.ndarray)
    if stored or _step_products(job) > _SMALL.get(device.type, 0):
        return name
    held_out = None if job.held_out_rows is None else len(job.held_out_rows)
    plain = dataclasses.replace(config, seed=0, split_seed=0)
    return (job.learner, plain, tuple(matrix.shape), held_out, device)


def _device(job: Job) -> torch.device:
    here = job.matrix.device if isinstance(job.matrix, Tensor) else "cpu"
    return torch.device(job.config.device or here)


def _step_products(job: Job) -> float:
    """Guess the products of a forward step."""
    n_units = job.matrix.shape[1]
    width = getattr(job.learner, "width", None) or n_units
    return job.config.batch_size * float(width * (n_units + job.learner.n_modes + width))


def _products(job: Job) -> float:
    """Guess the products of the whole fit."""
    return 3.0 * _step_products(job) * steps_of(job.config, job.matrix.shape[0])


def guessed_seconds(job: Job) -> float:
    """Guess how long a fit by gradient descent takes on one thread; of another, only its size."""
    return _products(job) / _PRODUCTS_A_SECOND


def _workers(jobs: Mapping[str, Job]) -> int:
    """Return how many processes are worth starting; the GPU is one."""
    if any(_device(job).type != "cpu" for job in jobs.values()):
        return 1
    seconds = sum(map(guessed_seconds, jobs.values()))
    return torch.get_num_threads() if seconds > _PROCESS_SECONDS else 1
