"""Costs: what a run takes, link by link, in seconds, bytes and money, on one worker or several.

A batch, some edits and one map are timed here, steps of fits are counted, and the rest is
arithmetic; `condec.store.collection` says the same of a collection before it begins.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import torch
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import counted
from condec.basis.progress import duration
from condec.basis.records import short_repr
from condec.dictionary.fitting.descent import steps_of
from condec.dictionary.fitting.many import Job, guessed_seconds
from condec.dictionary.fitting.rows import memory_of
from condec.edits import Ablate
from condec.effects import LOG_ODDS_NAMES
from condec.effects.passes import Passes
from condec.explanation import EXAMPLES
from condec.network import Site
from condec.run.beforehand import first_sample, one_map, reads, rows_of_sample
from condec.run.run import Run
from condec.store import SiteInfo

_EXPLAINING: Final = 4
"""Times as long as its contributions takes the page of an input, about."""
_RIVALS: Final = 5
"""Fits that rivals of a dictionary take, about."""
_STEP_SECONDS: Final = 4e-3
"""What a step of a fit takes besides its products (benchmarks/costs.py)."""
_TIMED: Final = 8
"""Sets of edits that are timed."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does a run: so many workers, and what an hour of one costs.

    `images_per_second` is how many inputs a worker collects, by default as a batch that is timed
    here; other passes are taken to be faster, or slower, by the same factor, and fits are not.
    """

    number: int = 1
    price: float = 0.0
    images_per_second: float | None = None

    def __post_init__(self) -> None:
        at_least("plan", 1, workers=self.number)
        at_least("plan", 0, price=self.price)
        if self.images_per_second is not None:
            at_least("plan", 1e-9, images_per_second=self.images_per_second)


@short_repr
@dataclass(frozen=True, kw_only=True)
class Need:
    """What a link takes: seconds of one worker, bytes of memory of each, bytes of disk at most.

    It is done in `tasks` of about one size, that workers share; `words` say of what.
    """

    link: str
    seconds: float
    tasks: int
    memory: int
    disk: int
    words: str

    def on(self, workers: int) -> float:
        """Return the seconds that several workers take; none of them shares a task."""
        return self.seconds * math.ceil(self.tasks / workers) / self.tasks


@short_repr
@dataclass(frozen=True)
class Costs:
    """What all links of a run take, and those that are left out, with the reason; see `costs`."""

    needs: tuple[Need, ...]
    left_out: Mapping[str, str]
    workers: Workers
    head: str
    free: int  # bytes of the disk that the run folder is on

    @cached_property
    def seconds(self) -> float:
        """Seconds of the whole run on these workers."""
        return sum(need.on(self.workers.number) for need in self.needs)

    @property
    def money(self) -> float:
        """Price of all workers for so long."""
        return self.workers.number * self.workers.price * self.seconds / 3600

    def __str__(self) -> str:
        number, whole = self.workers.number, "statistics and the report take little more"
        disk = sum(need.disk for need in self.needs)
        memory = max((need.memory for need in self.needs), default=0)
        rows = [("link", "1 worker", f"{number} workers", "memory", "disk", "of")]
        parts = [(n.link, n.seconds, n.on(number), n.memory, n.disk, n.words) for n in self.needs]
        one = sum(need.seconds for need in self.needs)
        for link, alone, shared, room, kept, words in (
            *parts, ("in all", one, self.seconds, memory, disk, whole),
        ):  # fmt: skip
            rows.append((link, duration(alone), duration(shared), _size(room), _size(kept), words))
        lines = [self.head]
        alone = number == 1  # then the second column of times would say the same again
        lines += [
            f"{a:8} {b:>9}{'' if alone else f' {c:>10}'} {d:>9} {e:>9}  {f}"
            for a, b, c, d, e, f in rows
        ]
        lines += [f"{link:8} left out: {reason}" for link, reason in self.left_out.items()]
        for what, unit, sizes in (
            ("time", self.seconds, {need.link: need.on(number) for need in self.needs}),
            ("disk", disk, {need.link: float(need.disk) for need in self.needs}),
        ):
            most = max(sizes, key=lambda link: sizes[link], default="")
            if unit:
                lines.append(f"most {what}: {most}, {100 * sizes[most] / unit:.0f} %")
        if self.workers.price:
            lines.append(f"money: {self.money:,.2f}, at {self.workers.price:g} a worker and hour")
        if self.free < disk:
            lines.append(f"only {_size(self.free)} of disk are free")
        return "\n".join(lines)


def costs(run: Run, left_out: Mapping[str, str], workers: Workers | None = None) -> Costs:
    """Work out what every link of a checked run takes; what the run folder holds is counted, too.

    Raises
    ------
    OptionError
        Workers, a price or a rate that are none.
    """
    workers = workers or Workers()
    batches, n_samples = run.batches, len(run.inputs)
    size = min(run.batch_size, n_samples)
    measured = batches.time_input(size)
    each = measured if workers.images_per_second is None else 1 / workers.images_per_second
    how = "stated" if workers.images_per_second else f"{size} timed here"
    passes = batches.method.n_passes
    head = (
        f"{counted(n_samples, 'input')}, {counted(len(batches.infos), 'site')}, "
        f"{passes} passes a batch, {1 / each:,.3g} inputs a second and worker ({how})"
    )
    # What is left out could not be timed.
    links = tuple(link for link in run.plan.links if link not in left_out)
    needs = tuple(_needs(run, links, each, each / measured))
    place = next(one for one in (run.plan.out, *run.plan.out.absolute().parents) if one.exists())
    return Costs(needs, dict(left_out), workers, head, shutil.disk_usage(place).free)


def _needs(run: Run, links: Collection[str], each: float, slower: float) -> Iterator[Need]:
    """Yield what links take: `each` second an input that is collected; passes are `slower`."""
    plan, batches, (infos, labels) = run.plan, run.batches, run.known
    n_samples, shard = len(run.inputs), plan.collect.shard_size
    memory, disk = batches.memory(min(run.batch_size, n_samples), shard), batches.disk()
    differ = len(plan.collect.differing_twins)
    if "collect" in links:
        words, twins = counted(n_samples, "input"), len(plan.collect.twins)
        words += f", once more for {differ} of {twins} twins" if twins else ""
        seconds, shards = each * n_samples * (1 + differ), math.ceil(n_samples / shard)
        yield Need(
            link="collect", seconds=seconds, tasks=shards * (1 + differ), memory=memory,
            disk=disk * (1 + twins), words=words,
        )  # fmt: skip
    sites = run.sites(plan.fit.sites, [info.site for info in infos], infos)
    fitted = [info for info in infos if info.site in sites]
    if "fit" in links:
        yield _need_of_fit(run, fitted, n_samples)
    chosen = run.sites(plan.control.sites, sites, infos)
    if "control" in links:
        of = [info for info in fitted if info.site in chosen]
        yield _need_of_control(run, labels, of, each, slower, memory, disk)
    mapped = run.sites(plan.maps.sites, sites, infos)
    if "map" in links:
        yield _need_of_maps(run, mapped, slower)
    if "explain" in links:
        kinds = {*EXAMPLES} & {*plan.explain.inputs}
        number = len(kinds) * plan.explain.n_inputs + len({*plan.explain.inputs} - kinds)
        yield Need(
            link="explain", seconds=_EXPLAINING * each * number, tasks=number, memory=memory,
            disk=0, words=f"pages of {number} inputs, with what flows between sites",
        )  # fmt: skip


def _need_of_fit(run: Run, infos: Sequence[SiteInfo], n_samples: int) -> Need:
    plan, seconds, memory, disk = run.plan.fit, 0.0, 0, 0
    checked = run.sites(plan.check_sites, [info.site for info in infos], infos)
    for info in infos:
        n_rows = n_samples * rows_of_sample(run, info)
        shape = (n_rows, info.n_units * (2 if plan.sign == "concat" else 1))
        learner = plan.learner_for(info.n_units, n_rows)
        job = Job(learner, torch.empty(shape, device="meta"), config=plan.train)
        more = (_RIVALS * plan.rivals + plan.stability_seeds + 2 * bool(plan.stability_seeds)
                if info.site in checked else 0)  # fmt: skip
        steps = steps_of(plan.train, n_rows) if learner.by_descent else 0
        seconds += (guessed_seconds(job) + _STEP_SECONDS * steps) * (1 + more)
        # Larger rows than that are fitted in blocks.
        memory = max(memory, min(memory_of(shape), int(plan.train.memory_gib * 2**30)))
        disk += 4 * learner.n_modes * (3 * shape[1] + n_samples)
    extra = plan.rivals or plan.stability_seeds
    words = counted(len(infos), "site") + (
        f"; rivals and stability of {len(checked)}" if extra else ""
    )
    return Need(
        link="fit", seconds=seconds, tasks=len(infos), memory=memory, disk=disk, words=words
    )


def _need_of_control(
    run: Run, labels: Tensor, infos: Sequence[SiteInfo], each: float, slower: float, memory: int,
    disk: int,
) -> Need:  # fmt: skip
    plan, fit = run.plan.control, run.plan.fit
    n_labels = len(plan.labels) or len({*labels.tolist()} - {-1})
    n_held_out = round(fit.train.held_out * len(labels))
    drawn = {"random", "random_modes"}
    orders = sum(plan.n_random if name in drawn else 1 for name in plan.rankings)
    kinds = len(plan.edits) * len(plan.replacements)
    sets = n_labels * orders * len(plan.fractions) * kinds
    log_odds = bool({*plan.rankings} & {*LOG_ODDS_NAMES})
    edits = slower * sum(_time_edits(run, info) for info in infos) * sets * n_held_out
    passes = log_odds * plan.log_odds.n_passes / run.batches.method.n_passes
    seconds = edits + each * passes * len(labels)
    words = (
        f"{counted(len(infos), 'site')}, at most {counted(sets, 'set')} of edits on {n_held_out} "
        "held-out inputs each"
    )
    return Need(
        link="control", seconds=seconds, tasks=len(infos), memory=memory, disk=disk * log_odds,
        words=words,
    )  # fmt: skip


def _time_edits(run: Run, info: SiteInfo) -> float:
    """Measure the seconds of one sample under one set of edits, as several run together."""
    sets = [(Ablate(info.site, units=[n % info.n_units]),) for n in range(_TIMED)]
    _, sample = first_sample(run)
    inputs = sample.expand(min(run.batch_size, len(run.inputs)), *sample.shape[1:]).contiguous()
    passes = Passes(run.loaded.model, sets)
    seconds = _seconds(lambda: deque(passes.outputs(inputs), maxlen=0))
    return seconds / (len(sets) * len(inputs))


def _need_of_maps(run: Run, sites: Sequence[Site], slower: float) -> Need:
    plan = run.plan.maps
    number, where = plan.n_modes * plan.n_inputs * len(sites), counted(len(sites), "site")
    again = slower * number * run.batches.time_input(1)  # where inputs of no two modes are the same
    if reads(run):  # contributions of the inputs again, and no map of pixels
        return Need(
            link="map", seconds=again, tasks=len(sites), disk=0,
            memory=2 * run.batches.memory(plan.n_inputs),
            words=f"{where}, texts of {plan.n_modes} modes, {plan.n_inputs} each",
        )  # fmt: skip
    seconds = slower * _seconds(partial(one_map, run, sites[0])) * number + again
    pixels = math.prod(run.inputs.picture(first_sample(run)[0]).shape[:2])
    return Need(
        link="map", seconds=seconds, tasks=len(sites), disk=15 * pixels * number,
        memory=2 * run.batches.memory(plan.n_inputs),
        words=f"{where}, {counted(plan.n_modes, 'mode')} on {plan.n_inputs} inputs each",
    )  # fmt: skip


def _seconds(do: Callable[[], object]) -> float:
    """Measure what takes long the first time: what follows a site is looked for, maps compile."""
    do()
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def _size(n_bytes: int) -> str:
    units = (("TiB", 2**40), ("GiB", 2**30))
    unit, size = next((one for one in units if n_bytes >= 8 * one[1]), ("MiB", 2**20))
    return f"{-(-n_bytes // size):,} {unit}"
