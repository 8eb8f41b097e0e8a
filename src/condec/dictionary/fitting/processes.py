"""Fits in other processes: tasks and results are files, safetensors and json; nothing is pickled.

A worker reads the folder of a task from its standard input, carries it out, answers with a line,
and ends when the input does. Matrices are mapped from one file by all workers.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch import Tensor

from condec.basis import errors
from condec.basis.errors import CondecError
from condec.basis.files import to_json, write_file
from condec.dictionary.base import Learner, load_dictionary
from condec.dictionary.fitting.train import FitReport
from condec.dictionary.records import TrainConfig

_TASK: Final = "task.json"
_MATRIX: Final = "matrix"
_SERVE: Final = "from condec.dictionary.fitting.processes import serve; serve()"


@dataclass(frozen=True, eq=False)
class Task:
    """Fits that run as one, without their rows.

    Attributes
    ----------
    learner : Learner
        One of condec: a worker knows no other.
    configs : sequence of TrainConfig
    matrices : sequence of int
        Which matrix each is fitted to.
    held_out_rows : sequence of Tensor or None
    """

    learner: Learner
    configs: Sequence[TrainConfig]
    matrices: Sequence[int]
    held_out_rows: Sequence[Tensor | None]


Found = tuple[list[FitReport], Path | None]
"""Reports, and the folder of their checkpoint."""
Carry = Callable[[Task, Mapping[int, Tensor], Path | None, float], Found]
"""Carries out a task, given the matrices, where checkpoints go, and the seconds between them."""


def in_processes(
    tasks: Sequence[Task],
    matrices: Mapping[int, Tensor],
    workers: int,
    checkpoints: Path | None,
    seconds: float,
) -> Iterator[tuple[int, Found]]:
    """Number and result of every task, as they are done.

    Raises
    ------
    CondecError
        As raised in a worker.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="condec-fits-") as name:
        folder = Path(name)
        for number, matrix in matrices.items():
            save_file({_MATRIX: matrix.detach().cpu().contiguous()}, _rows_file(folder, number))
        for number, task in enumerate(tasks):
            _write_task(folder / str(number), task, checkpoints, seconds)
        idle: SimpleQueue[_Worker] = SimpleQueue()
        team = [_Worker() for _ in range(workers)]
        for worker in team:
            idle.put(worker)

        def carry(number: int) -> Found:
            worker = idle.get()
            try:
                return worker.carry(folder / str(number))
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(workers, thread_name_prefix="condec-fits") as pool:
            waiting: dict[Future[Found], int] = {}
            try:
                waiting = {pool.submit(carry, number): number for number in range(len(tasks))}
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                for future in waiting:
                    future.cancel()
                for worker in team:
                    worker.end()


class _Worker:
    """A process that carries out tasks, one at a time."""

    def __init__(self) -> None:
        where = str(Path(errors.__file__).parents[1])
        paths = os.pathsep.join(filter(None, (where, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def carry(self, folder: Path) -> Found:
        process = self._process
        answer = ""
        with contextlib.suppress(OSError, ValueError):  # it is gone: said below
            assert process.stdin is not None and process.stdout is not None  # noqa: PT018
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            raise CondecError(
                f"fit_many: a worker process ended with status {process.wait()} before its fits "
                "were done (out of memory?); take fewer workers"
            )
        return _read_answer(folder, json.loads(answer))

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate()


def _rows_file(folder: Path, number: int) -> Path:
    return folder / f"matrix-{number}.safetensors"


def _write_task(folder: Path, task: Task, checkpoints: Path | None, seconds: float) -> None:
    held_out = [None if rows is None else rows.tolist() for rows in task.held_out_rows]
    record = {
        "learner": task.learner.to_dict(),
        "configs": [config.to_dict() for config in task.configs],
        "matrices": list(task.matrices),
        "held_out_rows": held_out,
        "checkpoints": None if checkpoints is None else str(checkpoints.resolve()),
        "seconds": seconds,
    }
    folder.mkdir()
    write_file(folder / _TASK, to_json(record))


def _read_answer(folder: Path, answer: Mapping[str, Any]) -> Found:
    if "error" in answer:
        kind: Any = getattr(errors, answer["error"], CondecError)
        raise kind(answer["message"])
    reports = []
    for index, seconds in enumerate(answer["seconds"]):
        dictionary = load_dictionary(folder / f"fit-{index}")
        if dictionary.training is None:
            raise CondecError(f"fit_many: a worker saved no figures in {folder / f'fit-{index}'}")
        reports.append(FitReport(dictionary, dictionary.training, seconds))
    checkpoint = answer["checkpoint"]
    return reports, None if checkpoint is None else Path(checkpoint)


def serve() -> None:
    """What a worker does: tasks from standard input, answers to standard output."""
    from condec.dictionary.fitting.many import carry_out

    torch.set_num_threads(1)
    answers, watcher = sys.stdout, _Watcher()
    watcher.start()
    # What a library prints must not be taken for an answer.
    sys.stdout = sys.stderr
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            folder = Path(line.strip())
            watcher.folder = folder.parent
            answers.write(json.dumps(_serve_one(folder, carry_out)) + "\n")
            answers.flush()


class _Watcher(threading.Thread):
    """Ends this process, and removes the tasks, when the one that made them is gone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.folder: Path | None = None
        self._parent = os.getppid()

    def run(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1.0)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(1)


def _serve_one(folder: Path, carry_out: Carry) -> dict[str, Any]:
    from safetensors.torch import load_file

    record = json.loads((folder / _TASK).read_bytes())
    try:
        held_out = record["held_out_rows"]
        task = Task(
            Learner.from_dict(record["learner"]),
            [TrainConfig.from_dict(config) for config in record["configs"]],
            record["matrices"],
            [None if rows is None else torch.tensor(rows, dtype=torch.int64) for rows in held_out],
        )
        files = {number: _rows_file(folder.parent, number) for number in set(task.matrices)}
        matrices = {number: load_file(path)[_MATRIX] for number, path in files.items()}
        checkpoints = None if record["checkpoints"] is None else Path(record["checkpoints"])
        reports, kept = carry_out(task, matrices, checkpoints, record["seconds"])
        for index, report in enumerate(reports):
            report.save(folder / f"fit-{index}")
    except CondecError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001  # it is said again where the list was given
        traceback.print_exc()
        what = f"fit_many: {type(error).__name__} in a worker process: {error}"
        return {"error": "CondecError", "message": what}
    return {
        "seconds": [report.seconds for report in reports],
        "checkpoint": None if kept is None else str(kept),
    }
