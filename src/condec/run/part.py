"""A part of a collection: what one of several processes does that know nothing of each other.

Each begins with shards of its own; then it takes what is missing and nobody has in hand, from the
other end (`condec.store.claims`).
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from condec.basis.errors import OptionError, command, counted
from condec.basis.progress import progress_bar
from condec.run.engines.worker import Worker
from condec.run.run import Outcome, Run
from condec.store.claims import claim, release, renew

_NAMED: Final = {
    "slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    "torchrun": ("RANK", "", "WORLD_SIZE"),
}
"""Who says which part this is: variables of the environment for number, first number and count."""


@dataclass(frozen=True)
class Part:
    """Part `number`, from 1 on, of so many."""

    number: int
    of: int

    @staticmethod
    def parse(text: str, environment: Mapping[str, str] = os.environ) -> "Part":
        """Read ``K/N``; of a job of Slurm or torchrun where the text is its name.

        >>> Part.parse("2/8"), Part.parse("torchrun", {"RANK": "3", "WORLD_SIZE": "4"})
        (Part(number=2, of=8), Part(number=4, of=4))
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, of = (int(found[1]), int(found[2])) if found else (0, 0)
        if text in _NAMED:
            names = [name for name in _NAMED[text] if name]
            values = [environment.get(name, "") for name in names]
            if not all(value.isdecimal() for value in values):
                raise OptionError(f"--part {text}: {', '.join(names)} do not stand in this job's "
                                  "environment; give --part K/N")  # fmt: skip
            number, of = int(values[0]) + 1, int(values[-1])
            number -= int(values[1]) if len(values) > 2 else 0
        if not 1 <= number <= of:
            words = f"K/N with K from 1 to N, {' or '.join(_NAMED)}"
            raise OptionError(f"--part {text!r}: expected {words}; got part {number} of {of}")
        return Part(number, of)


def collect_part(run: Run, part: Part) -> Outcome:
    """Collect shards of a run's stores, but for those that other parts have in hand.

    What only a whole store allows (twins that copy it, the record of the link) is left to
    `collect_link`, once all parts have ended.
    """
    if run.plan.collect.batch_size == "auto":
        raise OptionError("--part: each part would time batches by itself, and stores of others "
                          "refuse its size; give a number, --batch-size 64")  # fmt: skip
    started, who = time.perf_counter(), f"part {part.number} of {part.of}"
    worker, made, left = Worker(run, who.replace(" ", "-")), 0, 0
    twins = (run.folder.twin(twin.name) for twin in run.plan.collect.differing_twins)
    stores = [run.folder.store, *twins]
    for path in stores:
        place = path.relative_to(run.folder.path).as_posix()
        collecting, store = worker.collecting(place)
        missing = store.missing()
        with progress_bar(place, len(missing), unit="shards", shown=run.progress) as move:
            for index in _order(missing, part):
                if claim(path, index, who):
                    mine, freed = partial(renew, path, index), partial(release, path, index)
                    with ExitStack() as claimed:
                        claimed.callback(freed)
                        if not store.counts(index):
                            claimed.pop_all()  # the worker frees it
                            worker.shard(collecting, store, index, mine, freed)
                            made += 1
                move(advance=1)
        worker.written()
        left += len(store.missing())
    notes = (f"in the hands of other parts: {counted(left, 'shard')}",) if left else ()
    then = f"when all parts have ended, {command('collect', run.folder.path)} finishes what is left"
    seconds = time.perf_counter() - started
    state = "made" if made else "kept"
    return Outcome(
        "collect",
        state,
        tuple(stores),
        seconds,
        (f"{who}: {counted(made, 'shard') if made else 'nothing to do'}", *notes, then),
    )


def _order(missing: tuple[int, ...], part: Part) -> Iterator[int]:
    own = [index % part.of == part.number - 1 for index in missing]
    yield from (index for index, mine in zip(missing, own, strict=True) if mine)
    yield from reversed([index for index, mine in zip(missing, own, strict=True) if not mine])
