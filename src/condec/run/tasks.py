"""Tasks of a link: each is kept while what it was made from stays the same."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from condec.basis.errors import CondecError, DataError, ModelError, SiteError
from condec.basis.locks import held
from condec.basis.progress import in_lines, progress_bar
from condec.modes import Modes
from condec.run.run import Outcome, Run, record_name
from condec.store import Store
from condec.store.collection import Collecting

SHARDS: Final = "shards"
"""What an engine is asked for as if it were a link: shards, by their store and number."""


@dataclass(frozen=True, eq=False)
class Task:
    """A part of a link: its name, what it is made from, and how its outputs are made.

    `made_from` is what `Run.made_from` gives; `inputs` are other results that it is made from, as
    files and folders of the run folder. The `learner` is named where a run folder may have that of
    several. With `after`, the name of another task, it is passed over where that one was left out.
    A `late` one is made from what other tasks of the link make. What `make` adds to `notes`, a list
    that tasks may share, reaches the link from a worker as well.
    """

    name: str
    made_from: Mapping[str, Any]
    make: Callable[[], list[Path]]
    inputs: Sequence[Path] = ()
    learner: str = ""
    after: str = ""
    late: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def record(self) -> str:
        """Name of its record in the ledger."""
        return record_name(self.name, self.learner)


def with_modes(chosen: Sequence[Modes]) -> tuple[list[Modes], tuple[str, ...]]:
    """Return those that have an alive mode, and a note for each of the others."""
    dead = tuple(f"{m.site.key}: left out, no mode is alive" for m in chosen if not len(m))
    return [modes for modes in chosen if len(modes)], dead


def carry_out(run: Run, link: str, tasks: Sequence[Task], *, separate: bool = False) -> Outcome:
    """Do those tasks of a link whose inputs have changed, or whose outputs are gone.

    Where tasks are `separate`, one that the model or the data do not allow is left out with a
    note, unless all are.
    """
    if run.asked is not None:  # in a worker, which does those that it is told
        run.asked.update({task.name: task for task in tasks})
        return Outcome(link, "left out", (), 0.0)
    ledger, started = run.folder.ledger, time.perf_counter()
    outputs: list[Path] = []
    errors: dict[str, CondecError] = {}
    n_done = 0
    # Fitting shows a bar for every site by itself.
    shown = run.progress and len(tasks) > 1 and (link != "fit" or in_lines())
    with logged(run, link):
        found = _done_elsewhere(run, link, tasks)
        with progress_bar(link, len(tasks), shown=shown) as move:
            for task in tasks:
                # Asked at its turn: a new dictionary undoes rivals and stability of its modes.
                due = not _is_done(run, task)
                if not due and task.name in found:
                    outputs += [run.folder.path / n for n in ledger.entries[task.record].outputs]
                    n_done += 1
                elif (due or run.again) and task.after not in errors:
                    try:
                        outputs += make(run, link, task)
                    except (DataError, ModelError, SiteError) as error:
                        if not separate:
                            raise
                        ledger.forget(task.record)  # What lies there is of another plan.
                        errors[task.name] = error
                    else:
                        n_done += 1
                move(advance=1)
        first = [task.name for task in tasks if not (task.after or task.late)]
        if errors and all(name in errors for name in first):
            raise next(iter(errors.values()))
    run.left_out.update({name: str(error) for name, error in errors.items()})
    notes = tuple(f"{name}: left out, {error}" for name, error in errors.items())
    state = "made" if n_done else "kept" if tasks else "left out"
    return Outcome(link, state, tuple(outputs), time.perf_counter() - started, notes)


def make(run: Run, link: str, task: Task) -> list[Path]:
    """Do a task, and record that; return its outputs."""
    made = task.make()
    run.folder.ledger.mark_done(task.record, link, task.made_from, task.inputs, made)
    return made


def _done_elsewhere(run: Run, link: str, tasks: Sequence[Task]) -> set[str]:
    """Have the run's engine do what is due; return the names of what it did."""
    found: set[str] = set()
    if (engine := run.engine) is None:
        return found
    for late in (False, True):
        wave = [task for task in tasks if late == (task.late or bool(task.after))]
        due = {task.name: task for task in wave if run.again or not _is_done(run, task)}
        if len(due) > 1:
            for name, done in engine.do(run, link, list(due)).items():
                due[name].notes.extend(done.notes)
                found |= set() if done.error else {name}
            run.folder.ledger.read_again()
    return found


def _is_done(run: Run, task: Task) -> bool:
    return run.folder.ledger.is_done(task.record, task.made_from, task.inputs)


def collected_ahead(run: Run, collection: Collecting) -> Store:
    """Collect, most of it by the run's engine where there is one."""
    if (engine := run.engine) is None:
        return collection.collect(progress=run.progress)
    place = collection.out.relative_to(run.folder.path).as_posix()

    def elsewhere(store: Store, missing: Sequence[int]) -> set[str]:
        silent, left = {info.site.key for info in collection.plan.infos}, [*missing]
        while left:
            done = engine.do(run, SHARDS, [f"{place} {index}" for index in left])
            found = {int(name.rpartition(" ")[2]): each for name, each in done.items()}
            failed = {index: each.error for index, each in found.items() if each.error}
            silent.intersection_update(*(e.silent for e in found.values() if not e.error))
            for index, error in failed.items():  # shown at once, if it is not that worker's alone
                run.say(f"{place} {index}: {error}; done here")
                silent.intersection_update(collection.write(store, [index], lambda _: None))
            # A worker that dies may not have written what it has computed last.
            lost = {*store.missing()} & ({*left} if failed else {*found})
            left = [index for index in left if index in lost] if len(lost) < len(left) else []
        return silent

    return collection.collect(progress=run.progress, elsewhere=elsewhere)


@contextmanager
def logged(run: Run, link: str) -> Iterator[None]:
    """Hold the run folder while a link is at work; log when it begins, and how it ends."""
    started = time.perf_counter()
    with held(run.folder.path):
        run.folder.log("start", link=link)
        try:
            yield
        except BaseException as error:
            event = "failed" if isinstance(error, Exception) else "interrupted"
            with suppress(OSError):  # On a full disk, the first error is the one to show.
                run.folder.log(event, link=link, error=f"{type(error).__name__}: {error}")
            raise
        run.folder.log("end", link=link, seconds=round(time.perf_counter() - started, 3))
