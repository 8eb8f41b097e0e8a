"""A pool of workers: who does which task next, and what follows when a worker dies."""

import warnings
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import torch

from condec.basis import signals
from condec.basis.progress import progress_bar
from condec.run.plan import EnginePlan
from condec.run.run import Done, Run
from condec.run.tasks import SHARDS

QUEUED: Final = 2
"""Tasks that a worker has at most, with the one in hand: the next need not be waited for."""
TRIES: Final = 3
"""Workers that may die with a task in hand; then it is left to the driver, which shows why."""
GRACE: Final = 5.0
"""Seconds for the tasks in hand when the run is stopped."""


def on_gpu(run: Run) -> bool:
    """Tell whether the driver's model is on a GPU."""
    return next(run.loaded.model.parameters(), torch.empty(0)).is_cuda


class Hand(ABC):
    """A process that holds a `Worker`."""

    @abstractmethod
    def submit(self, method: str, *given: Any) -> "Future[Any]":
        """Call a method of the worker."""

    @abstractmethod
    def end(self) -> None:
        """End the process at once."""


@dataclass(eq=False)
class _Place:
    """A worker of the pool, with its tasks, the first of which is in hand.

    One without a name is the wait for shards that it has computed, until they are written.
    """

    hand: Hand
    ready: "Future[Any]"
    tasks: "dict[Future[Done], str]" = field(default_factory=dict)


class Pool(ABC):
    """An engine whose workers are processes, here or elsewhere."""

    died: ClassVar[tuple[type[BaseException], ...]]
    """What a call raises whose worker is gone."""

    def __init__(self, plan: EnginePlan) -> None:
        self.plan = plan
        self.places: list[_Place] = []
        self.n_started = self.n_failed = 0

    @abstractmethod
    def most(self, run: Run) -> int:
        """Return how many workers there may be."""

    def least(self, run: Run) -> int:
        """Return how many of them stay where there is nothing to do."""
        return self.plan.least_workers

    @abstractmethod
    def start(self, run: Run, number: int) -> Hand:
        """Start a worker."""

    def close(self) -> None:
        """End all workers."""
        while self.places:
            self.places.pop().hand.end()

    def do(self, run: Run, link: str, names: Sequence[str]) -> dict[str, Done]:
        """Have workers do tasks of a link; return those that they did, or failed at, by name.

        A task whose worker dies is given to another one, a few times; then it is left to the
        driver. Where no worker can be started at all, everything is. Once a shard has failed, no
        more are given out.
        """
        waiting, done, said = deque(names), dict[str, Done](), set[str]()
        tries, patience, self.n_failed = Counter[str](), 60, 0
        title = f"{link} ({self.plan.kind})"
        run.folder.log("tasks", link=link, tasks=len(names))
        with (
            signals.allowing(GRACE + signals.SECONDS), self._finishing(),
            progress_bar(title, len(names), shown=run.progress) as move,
        ):  # fmt: skip
            while waiting or any(place.tasks for place in self.places):
                self._man(run, link, waiting)
                for name, found in self._finished(run, waiting, tries):
                    move(advance=1, note=f"{len(self.places)} workers, {len(waiting)} waiting")
                    for text in {*found.warnings} - said:
                        warnings.warn(text, stacklevel=2)
                    said |= {*found.warnings}
                    done[name] = found
                    if found.error:
                        run.folder.log("task failed", link=link, task=name, error=found.error)
                    if found.error and link == SHARDS:
                        waiting.clear()
                patience -= not any(place.ready.done() for place in self.places)
                if not patience:
                    run.say(f"{self.plan.kind}: there is no room for a worker yet; tasks wait")
                if self._gives_up(run) and not any(place.tasks for place in self.places):
                    run.say(f"{self.plan.kind}: no worker can be started; all is done here")
                    break
        run.folder.log("tasks done", link=link, tasks=len(names), done=len(done))
        self._shrink(self.least(run))
        return done

    @contextmanager
    def _finishing(self) -> Iterator[None]:
        """Where a run is stopped, let workers finish what they have in hand, for some seconds."""
        try:
            yield
        except BaseException:
            wait([p.hand.submit("written") for p in self.places if p.tasks], GRACE)
            self.close()
            raise

    # --- workers ----------------------------------------------------------------------------

    def _gives_up(self, run: Run) -> bool:
        """Tell whether starting workers has failed so often, one after another, that it stops."""
        return self.n_failed > TRIES + self.most(run)

    def _man(self, run: Run, link: str, waiting: "deque[str]") -> None:
        """Start the workers that are wanted, and give tasks to those that are ready."""
        wanted = min(self.most(run), len(waiting) + sum(bool(p.tasks) for p in self.places))
        while len(self.places) < wanted and not self._gives_up(run):
            self.n_started += 1
            hand = self.start(run, self.n_started)
            self.places.append(_Place(hand, hand.submit("ready")))
        given = False
        ready = [p for p in self.places if p.ready.done() and p.ready.exception() is None]
        for depth in range(QUEUED):
            for place in ready:
                if waiting and len(place.tasks) == depth:
                    name = waiting.popleft()
                    future = place.hand.submit("do", link, name, dict(run.left_out))
                    place.tasks[future] = name
                    given = True
        if given and not waiting:
            for place in ready:
                place.tasks[place.hand.submit("written")] = ""
        if not waiting:
            self._shrink(max(wanted, self.least(run)))

    def _shrink(self, number: int) -> None:
        """End workers that have nothing to do, as far as there are more than so many."""
        for place in [p for p in self.places if not p.tasks][: max(0, len(self.places) - number)]:
            self.places.remove(place)
            place.hand.end()

    def _finished(
        self, run: Run, waiting: "deque[str]", tries: "Counter[str]"
    ) -> Iterator[tuple[str, Done]]:
        """Wait until something happens; yield what is finished, take back what is lost."""
        every = [future for p in self.places for future in (p.ready, *p.tasks)]
        wait([future for future in every if not future.done()], 1.0, FIRST_COMPLETED)
        for place in list(self.places):
            for future in [one for one in (place.ready, *place.tasks) if one.done()]:
                error, name = future.exception(), place.tasks.pop(future, "")
                if isinstance(error, self.died) or (error and future is place.ready):
                    tries[name] += 1
                    back = [name] if name and tries[name] < TRIES else []
                    waiting.extendleft(reversed([*back, *filter(None, place.tasks.values())]))
                    run.folder.log("worker died", task=name, tries=tries[name], error=str(error))
                    self.n_failed += not name
                    self.places.remove(place)
                    place.hand.end()
                    break
                if error and not name:  # of a shard that was computed; it is done again
                    run.folder.log("not written", error=f"{type(error).__name__}: {error}")
                if name:
                    self.n_failed = 0
                    text = f"{type(error).__name__}: {error}"
                    yield name, Done(error=text) if error else future.result()
