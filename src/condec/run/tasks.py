"""Tasks of a link: each is kept while what it was made from stays the same."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condec.basis.errors import CondecError, DataError, ModelError, SiteError
from condec.basis.locks import held
from condec.basis.progress import progress_bar
from condec.modes import Modes
from condec.run.run import Outcome, Run, record_name


@dataclass(frozen=True, eq=False)
class Task:
    """A part of a link: its name, what it is made from, and how its outputs are made.

    `made_from` is what `Run.made_from` gives; `inputs` are other results that it is made from, as
    files and folders of the run folder. The `learner` is named where a run folder may have that of
    several. With `after`, the name of another task, it is passed over where that one was left out.
    """

    name: str
    made_from: Mapping[str, Any]
    make: Callable[[], list[Path]]
    inputs: Sequence[Path] = ()
    learner: str = ""
    after: str = ""

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
    ledger, started = run.folder.ledger, time.perf_counter()
    outputs: list[Path] = []
    errors: dict[str, CondecError] = {}
    n_done = 0
    # Fitting shows a bar for every site by itself.
    shown = run.progress and link != "fit" and len(tasks) > 1
    with logged(run, link), progress_bar(link, len(tasks), shown=shown) as move:
        for task in tasks:
            # Asked at its turn: a new dictionary undoes the rivals and the stability of its modes.
            due = run.again or not ledger.is_done(task.record, task.made_from, task.inputs)
            if due and task.after not in errors:
                try:
                    made = task.make()
                except (DataError, ModelError, SiteError) as error:
                    if not separate:
                        raise
                    ledger.forget(task.record)  # What lies there is of another plan.
                    errors[task.name] = error
                else:
                    ledger.mark_done(task.record, link, task.made_from, task.inputs, made)
                    outputs += made
                    n_done += 1
            move(advance=1)
        if errors and len(errors) == sum(not task.after for task in tasks):
            raise next(iter(errors.values()))
    run.left_out.update({name: str(error) for name, error in errors.items()})
    notes = tuple(f"{name}: left out, {error}" for name, error in errors.items())
    state = "made" if n_done else "kept" if tasks else "left out"
    return Outcome(link, state, tuple(outputs), time.perf_counter() - started, notes)


@contextmanager
def logged(run: Run, link: str) -> Iterator[None]:
    """Hold the run folder while a link is at work; log when it begins, and how it ends."""
    started = time.perf_counter()
    with held(run.folder.path):
        run.folder.log("start", link=link)
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # On a full disk, the first error is the one to show.
                run.folder.log("failed", link=link, error=f"{type(error).__name__}: {error}")
            raise
        run.folder.log("end", link=link, seconds=round(time.perf_counter() - started, 3))
