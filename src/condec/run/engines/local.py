"""Workers on this machine: one process a GPU, or cores divided among processes."""

import os
import shutil
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from condec.basis.processes import end_with, without_main
from condec.run.engines.pool import Hand, Pool, on_gpu
from condec.run.engines.worker import Given, RemoteWorker
from condec.run.run import Run

_worker: list[RemoteWorker] = []
"""That of this process."""


class LocalPool(Pool):
    """Processes of this machine, of which each shares neither cores nor a GPU with another."""

    died = (BrokenProcessPool,)

    def most(self, run: Run) -> int:
        """As many as the plan says, else one a GPU, else one a core."""
        return self.plan.workers or len(_devices(run)) or _cores()

    def least(self, run: Run) -> int:
        """All: they would have to load the model again."""
        return self.most(run)

    def start(self, run: Run, number: int) -> Hand:
        """Start a process; models are loaded with its first task."""
        devices = _devices(run)
        threads = max(1, min(torch.get_num_threads(), _cores() // self.most(run)))
        free = set(range(self.most(run))) - {h.number for h in self._hands()}
        number = min(free)
        device = devices[number % len(devices)] if devices else None
        return _Process(Given.of(run, threads), number, device)

    def _hands(self) -> "list[_Process]":
        return [place.hand for place in self.places if isinstance(place.hand, _Process)]


class _Process(Hand):
    """One process, by an executor of its own: the death of one takes no other with it."""

    def __init__(self, given: Given, number: int, device: str | None) -> None:
        self.number, self.place = number, Path(tempfile.mkdtemp(prefix="condec-worker-"))
        begin = (given, f"local-{number}", device, self.place, os.getpid())
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, begin)

    def submit(self, method: str, *given: Any) -> "Future[Any]":
        """Call a method of the worker; the first call starts the process."""
        try:
            with without_main():
                return self.pool.submit(_call, method, *given)
        except BrokenProcessPool as error:  # killed while it had nothing to do
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken

    def end(self) -> None:
        """End the process: it watches its folder."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.pool.shutdown(wait=False, cancel_futures=True)


def _begin(given: Given, name: str, device: str | None, place: Path, parent: int) -> None:
    end_with(place, parent)
    _worker.append(RemoteWorker(given, name, device))


def _call(method: str, *given: Any) -> Any:
    return getattr(_worker[0], method)(*given)


def _devices(run: Run) -> list[str]:
    """Return the devices of workers: those of the plan, else all GPUs where the model is on one."""
    named = [str(device) for device in run.plan.collect.devices]
    every = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return named or (every if on_gpu(run) and run.plan.model.device in (None, "cuda") else [])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
