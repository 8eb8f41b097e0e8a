"""A worker: one `Run`, whose tasks are done one by one as it is told."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from condec.basis import trust
from condec.basis.errors import CondecError
from condec.basis.locks import lent
from condec.run import config
from condec.run.control import log_odds_of
from condec.run.links import function
from condec.run.run import Done, Run
from condec.run.tasks import SHARDS, Task, make
from condec.store import Store
from condec.store.batches import joined
from condec.store.collection import Collecting


@dataclass(frozen=True)
class Given:
    """What every worker of an engine is given: plain values, no object of a user's code.

    The `plan` is a run.toml that starts from `folder`, the run folder; `trusted` is the code that
    the driver has run, by `condec.basis.trust`, and `threads` are those of torch.
    """

    plan: str
    folder: str
    trusted: Mapping[str, str]
    threads: int

    @staticmethod
    def of(run: Run, threads: int) -> "Given":
        """Say what workers of a run need; the model and the data of the run are loaded first."""
        _ = run.loaded, run.inputs  # what code is trusted is known then
        folder = run.folder.path.absolute()
        plan = json.dumps(config.to_dict(run.plan, folder=folder))
        return Given(plan, str(folder), trust.admitted_here(), threads)


class Worker:
    """Shards of a run, one by one, each with two lines in the log of the worker."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name, self.link = run, name, ""
        self.collecting: Callable[[str], tuple[Collecting, Store]] = cache(self._collecting)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._note("start")

    def shard(
        self, collecting: Collecting, store: Store, index: int, alive: Callable[[int], None],
        after: Callable[[], None] = lambda: None,
    ) -> list[str]:  # fmt: skip
        """Compute a shard; return the sites that are silent in it.

        It is written beside the passes of the next one, then `after` is called. An error of the one
        before is raised here.
        """
        place, handed_on = store.path.relative_to(self.run.folder.path).as_posix(), False
        try:
            with self._noted(link=SHARDS, task=f"{place} {index}"):
                ((_, parts),) = collecting.computed(store, [index], alive)
                rows = joined(parts)
                self.written()  # no more than two shards are in memory
                self._writing = self._writer.submit(_write, store, index, rows, after)
                handed_on = True
                return collecting.silent(rows)
        finally:
            if not handed_on:
                after()

    def written(self) -> None:
        """Wait until all shards are written; raise the error of one that could not be, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @contextmanager
    def _noted(self, **details: str) -> Iterator[None]:
        self._note("begin", **details)
        started, error = time.perf_counter(), ""
        try:
            yield
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            seconds = round(time.perf_counter() - started, 3)
            self._note("end", **details, seconds=seconds, error=error)

    def _collecting(self, place: str) -> tuple[Collecting, Store]:
        run, out = self.run, self.run.folder.path / place
        if out == run.folder.log_odds:
            found = log_odds_of(run, Store.open(out).sites)
        else:
            twins = {run.folder.twin(twin.name): twin for twin in run.plan.collect.twins}
            found = run.collection(twins.get(out))
        return found, found.begin()

    def _note(self, event: str, **details: Any) -> None:
        with suppress(CondecError):  # what is told is no result
            self.run.folder.log(event, worker=self.name, **details)


def _write(store: Store, index: int, rows: dict[str, Any], after: Callable[[], None]) -> None:
    try:
        store.write_shard(index, rows)
    finally:
        after()


class RemoteWorker(Worker):
    """A worker in a process of its own, as engines start it; a `device` stands for the plan's."""

    def __init__(self, given: Given, name: str, device: str | None = None) -> None:
        torch.set_num_threads(given.threads)
        trust.only(given.trusted)
        plan = config.from_dict(json.loads(given.plan), folder=given.folder)
        model = plan.model if device is None else replace(plan.model, device=device)
        plan = replace(plan, model=model, collect=replace(plan.collect, devices=()))
        lent(plan.out)
        super().__init__(Run(plan, progress=False, asked={}), name)

    def __repr__(self) -> str:
        return f"condec {self.name}"

    def ready(self) -> None:
        """Do nothing: who waits for that knows that there is a worker."""

    def do(self, link: str, name: str, left_out: Mapping[str, str]) -> Done:
        """Do one task of a link, by its name; an error of condec is told, not raised."""
        self.run.left_out.update(left_out)
        done = Done()
        with warnings.catch_warnings(record=True) as said:
            try:
                if link == SHARDS:
                    place, _, index = name.rpartition(" ")
                    found = self.shard(*self.collecting(place), int(index), self._alive)
                    done = Done(silent=tuple(found))
                else:
                    done = self._task(link, name)
            except CondecError as error:
                done = Done(error=str(error))
        return replace(done, warnings=tuple(dict.fromkeys(str(one.message) for one in said)))

    def _task(self, link: str, name: str) -> Done:
        run = self.run
        run.folder.ledger.read_again()
        if link != self.link or name not in (run.asked or {}):
            assert run.asked is not None
            run.asked.clear()
            function(link)(run)
            self.link = link
        task: Task = (run.asked or {})[name]
        task.notes.clear()
        with self._noted(link=link, task=name):
            make(run, link, task)
        return Done(notes=tuple(task.notes))

    def _alive(self, _: int) -> None:
        with suppress(OSError):
            os.utime(self.run.folder.worker_log(self.name))
