"""Beforehand: what a run needs is checked before its first pass, and what it takes is guessed."""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from condec.attribution import prepare_inputs
from condec.basis.errors import CondecError, DataError, OptionError
from condec.basis.progress import duration
from condec.basis.records import short_repr
from condec.dictionary import split_rows
from condec.dictionary.fitting.descent import steps_of
from condec.dictionary.fitting.many import Job, guessed_seconds
from condec.dictionary.fitting.rows import memory_of
from condec.edits import Ablate
from condec.effects import LOG_ODDS_NAMES
from condec.effects.passes import Passes
from condec.explanation import EXAMPLES, mode_map
from condec.network import Site
from condec.run.explain import refuse_unknown
from condec.run.plugins import brought
from condec.run.run import Run
from condec.store import SiteInfo
from condec.store.batches import BatchPlan, first_good
from condec.store.collection import whole_store

OF_MODES: Final = ("control", "map", "explain")
"""Links of condec that need dictionaries."""
_RIVALS: Final = 5
"""Fits that rivals of a dictionary take, about."""
_STEP_SECONDS: Final = 2e-3
"""What a step of a fit takes at least."""
_TIMED: Final = 8
"""Sets of edits that are timed."""


def check_run(run: Run) -> dict[str, str]:
    """Check a run before its first pass; return the links that are left out, and why.

    One sample runs through the model, and through the map of every site that is to be mapped.

    Raises
    ------
    CondecError
        What the plan gets wrong, or the model or the data lack, for collecting and fitting: all
        that is found at once.
    """
    plan, fitted, packages = run.plan, list[Site](), brought()
    checks = [link.check for name, link in packages.items() if link.check and name in plan.links]
    if packages.keys() >= set(plan.links):  # of which only they know what they need
        _try_all([partial(check, run) for check in checks])
        return {}
    if "collect" not in plan.links:
        _ = run.store
    elif whole_store(run.folder.store) is None:
        run.check_devices()
    _try_all([lambda: run.loaded, lambda: run.inputs])
    model, inputs = run.loaded.model, run.inputs
    _try_all([
        lambda: run.superclasses, lambda: run.fit_on, lambda: run.known,
        *(partial(twin.check, model, inputs) for twin in plan.collect.twins),
        *(partial(check, run) for check in checks),
    ])  # fmt: skip
    infos, labels = run.known
    sites = [info.site for info in infos]
    _try_all([lambda: fitted.extend(run.sites(plan.fit.sites, sites, infos))])
    patterns = {
        "fit": plan.fit.check_sites,
        "control": plan.control.sites,
        "map": plan.maps.sites,
        "explain": plan.explain.sites,
    }
    named = set(plan.explain.inputs) - {*EXAMPLES} if "explain" in plan.links else ()
    asked = [some for name, some in patterns.items() if name in plan.links]
    _try_all([
        *(partial(run.sites, some, fitted, infos) for some in asked),
        *(partial(refuse_unknown, "explain: inputs", name, inputs.ids) for name in sorted(named)),
        *(partial(_check_fit, run, info, len(labels))
          for info in infos if info.site in fitted and "fit" in plan.links),
    ])  # fmt: skip
    found = dict[str, str]()
    if "control" in plan.links:
        found["control"] = control_reason(run, labels)
    if "map" in plan.links:
        found["map"] = _map_reason(run, run.sites(plan.maps.sites, fitted, infos))
    return {link: reason for link, reason in found.items() if reason}


def control_reason(run: Run, labels: Tensor) -> str:
    """Tell why edits cannot be measured on samples with these labels; empty where they can.

    OptionError where the plan names labels without training or held-out rows.
    """
    plan, fit = run.plan.control, run.plan.fit
    if not bool((labels >= 0).any()):
        return "the data have no labels"
    if not fit.train.held_out:
        return "no rows are held out (fit.held_out is 0)"
    apart = torch.zeros(len(labels), dtype=torch.bool)
    apart[split_rows(len(labels), fit.train.held_out, fit.train.split_seed)] = True
    both = {*labels[apart].tolist()} & {*labels[~apart].tolist()} - {-1}
    if not both:
        return "no label has both training and held-out rows"
    without = [label for label in plan.labels if label not in both]
    if without:
        raise OptionError(
            f"control: labels {without[:5]} have no training row or no held-out row; those with "
            f"both: {sorted(both)[:10]}{', ...' if len(both) > 10 else ''}"
        )
    try:
        next(Passes(run.loaded.model, [()]).outputs(_first(run)[1]))
    except CondecError as error:
        return str(error)
    return ""


def _map_reason(run: Run, sites: Sequence[Site]) -> str:
    """Tell why no site can be mapped; empty where one can."""
    try:
        run.inputs.picture(_first(run)[0])
    except CondecError as error:
        return str(error)
    reason = ""
    for site in sites:
        try:
            _one_map(run, site)
            return ""
        except CondecError as error:
            reason = reason or str(error)
    return reason


def _one_map(run: Run, site: Site) -> None:
    labels, (row, sample) = run.inputs.labels, _first(run)
    own = None if labels is None else labels[row : row + 1]
    mode_map(run.loaded.model, sample, site, [0], run.plan.maps.target, own)


def _check_fit(run: Run, info: SiteInfo, n_rows: int) -> None:
    """Refuse a learner that cannot be fitted to the rows of a site, whatever these are."""
    plan, key = run.plan.fit, info.site.key
    n_rows *= _rows_of_sample(run, info)
    n_units = info.n_units * (2 if plan.sign == "concat" else 1)
    n_train = n_rows - len(split_rows(n_rows, plan.train.held_out, plan.train.split_seed))
    entry = torch.full((), -1.0 if plan.sign == "negative" else 0.0)
    learner = plan.learner_for(info.n_units, n_rows)
    try:
        learner.check(entry.expand(n_train, n_units))
    except CondecError as error:
        raise OptionError(f"fit: {key}: {error}") from error
    if not learner.by_descent or plan.rivals or plan.stability_seeds:
        refuse_large(run, info.site, (n_rows, n_units))


def refuse_large(run: Run, site: Site, shape: tuple[int, int]) -> None:
    """Refuse rows of a site that do not fit in memory, with the copies that fitting makes."""
    fit = run.plan.fit
    if memory_of(shape) > fit.train.memory_gib * 2**30:
        raise DataError(
            f"fit: {site.key}: {shape[0]} rows of {shape[1]} units do not fit in "
            f"{fit.train.memory_gib:g} GiB with the copies that fitting makes, which "
            f"{type(fit.learner).__name__}, rivals and stability need; raise memory_gib, take "
            "another learner, or leave the site out (sites, check_sites)"
        )


def _rows_of_sample(run: Run, info: SiteInfo) -> int:
    return max(1, info.n_kept) if run.plan.rows == "positions" else 1


def _try_all(parts: Sequence[Callable[[], Any]]) -> None:
    """Do all parts, then raise what they raised: the error itself, or one that lists them."""
    errors: list[CondecError] = []
    for part in parts:
        try:
            part()
        except CondecError as error:
            errors.append(error)
    found = list({str(error): error for error in errors}.values())
    if len(found) == 1:
        raise found[0]
    if found:
        lines = "\n".join(f"- {error}" for error in found)
        raise OptionError(f"{len(found)} things keep this run from being done:\n{lines}")


def _first(run: Run) -> tuple[int, Tensor]:
    """Return the row of the first sample that can be used, and the sample as the model takes it."""
    row, sample = first_good(run.inputs, run.plan.collect.on_bad)
    return row, prepare_inputs(run.loaded.model, sample)


# --- what it takes --------------------------------------------------------------------------


@short_repr
@dataclass(frozen=True)
class Need:
    """What a link takes: seconds, bytes of memory, bytes of disk at most; and of what."""

    link: str
    seconds: float
    memory: int
    disk: int
    words: str

    def __str__(self) -> str:
        return (
            f"{self.link:8} about {duration(self.seconds)}, {_size(self.memory)} of memory, "
            f"at most {_size(self.disk)} of disk: {self.words}"
        )


def needs(run: Run, left_out: Mapping[str, str]) -> list[str]:
    """Say line by line what every link of a checked run takes, or why it is left out.

    One pass of a batch, some edits and one map are timed, everything else is counted, what a run
    folder holds already as well.
    """
    made = [need for need in _needs(run) if need.link not in left_out]
    lines = [str(need) for need in made]
    lines += [f"{link:8} left out: {reason}" for link, reason in left_out.items()]
    disk = sum(need.disk for need in made)
    memory = max((need.memory for need in made), default=0)
    seconds = sum(need.seconds for need in made)
    whole = Need(
        "in all",
        seconds,
        memory,
        disk,
        "statistics, pages of inputs and the report take little more",
    )
    place = next(one for one in (run.plan.out, *run.plan.out.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    short = [f"{place}: only {_size(free)} are free"] if free < disk else []
    return [*lines, str(whole), *short]


def _needs(run: Run) -> Iterator[Need]:
    plan, batches, (infos, labels) = run.plan, run.batches, run.known
    n_samples = len(run.inputs)
    size = min(run.batch_size, n_samples)
    each = batches.time_pass(size) / size
    memory = batches.memory(size, plan.collect.shard_size)
    passes = batches.method.n_passes
    differ = sum(twin.changes_numbers(plan.collect.target) for twin in plan.collect.twins)
    disk = batches.disk()
    if "collect" in plan.links:
        words = f"{n_samples} samples, {len(infos)} sites, {passes} passes a batch"
        twins = len(plan.collect.twins)
        words += f", once more for {differ} of {twins} twins" if twins else ""
        seconds = each * passes * n_samples * (1 + differ)
        yield Need("collect", seconds, memory, disk * (1 + twins), words)
    sites = run.sites(plan.fit.sites, [info.site for info in infos], infos)
    fitted = [info for info in infos if info.site in sites]
    if "fit" in plan.links:
        yield _need_of_fit(run, fitted, n_samples)
    chosen = run.sites(plan.control.sites, sites, infos)
    if "control" in plan.links:
        of = [info for info in fitted if info.site in chosen]
        yield _need_of_control(run, labels, of, each, memory, disk)
    mapped = run.sites(plan.maps.sites, sites, infos)
    if "map" in plan.links:
        yield _need_of_maps(run, mapped, batches)


def _need_of_fit(run: Run, infos: Sequence[SiteInfo], n_samples: int) -> Need:
    plan, seconds, memory, disk = run.plan.fit, 0.0, 0, 0
    checked = run.sites(plan.check_sites, [info.site for info in infos], infos)
    for info in infos:
        n_rows = n_samples * _rows_of_sample(run, info)
        shape = (n_rows, info.n_units * (2 if plan.sign == "concat" else 1))
        learner = plan.learner_for(info.n_units, n_rows)
        job = Job(learner, torch.empty(shape, device="meta"), config=plan.train)
        more = (_RIVALS * plan.rivals + plan.stability_seeds + 2 * bool(plan.stability_seeds)
                if info.site in checked else 0)  # fmt: skip
        steps = steps_of(plan.train, n_rows) if learner.by_descent else 0
        seconds += (guessed_seconds(job) + _STEP_SECONDS * steps) * (1 + more)
        memory = max(memory, memory_of(shape))
        disk += 4 * learner.n_modes * (3 * shape[1] + n_samples)
    extra = plan.rivals or plan.stability_seeds
    words = f"{len(infos)} sites" + (f"; rivals and stability of {len(checked)}" if extra else "")
    return Need("fit", seconds, memory, disk, words)


def _need_of_control(
    run: Run, labels: Tensor, infos: Sequence[SiteInfo], each: float, memory: int, disk: int
) -> Need:
    plan, fit = run.plan.control, run.plan.fit
    n_labels = len(plan.labels) or len({*labels.tolist()} - {-1})
    n_held_out = round(fit.train.held_out * len(labels))
    drawn = {"random", "random_modes"}
    orders = sum(plan.n_random if name in drawn else 1 for name in plan.rankings)
    kinds = len(plan.edits) * len(plan.replacements)
    sets = n_labels * orders * len(plan.fractions) * kinds
    log_odds = bool({*plan.rankings} & {*LOG_ODDS_NAMES})
    edits = sum(_time_edits(run, info) for info in infos) * sets * n_held_out
    seconds = edits + each * log_odds * len(labels)
    words = (
        f"{len(infos)} sites, at most {sets} sets of edits on {n_held_out} held-out samples each"
    )
    return Need("control", seconds, memory, disk * log_odds, words)


def _time_edits(run: Run, info: SiteInfo) -> float:
    """Measure the seconds of one sample under one set of edits, as several run together."""
    sets = [(Ablate(info.site, units=[n % info.n_units]),) for n in range(_TIMED)]
    _, sample = _first(run)
    inputs = sample.expand(min(run.batch_size, len(run.inputs)), *sample.shape[1:]).contiguous()
    passes = Passes(run.loaded.model, sets)
    seconds = _seconds(lambda: deque(passes.outputs(inputs), maxlen=0))
    return seconds / (len(sets) * len(inputs))


def _need_of_maps(run: Run, sites: Sequence[Site], batches: BatchPlan) -> Need:
    plan = run.plan.maps
    number = plan.n_modes * plan.n_inputs * len(sites)
    seconds = _seconds(partial(_one_map, run, sites[0])) * number
    pixels = math.prod(run.inputs.picture(_first(run)[0]).shape[:2])
    words = f"{len(sites)} sites, {plan.n_modes} modes on {plan.n_inputs} inputs each"
    return Need("map", seconds, 2 * batches.memory(plan.n_inputs), 15 * pixels * number, words)


def _seconds(do: Callable[[], object]) -> float:
    """Measure what takes long the first time: what follows a site is looked for, maps compile."""
    do()
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def _size(n_bytes: int) -> str:
    return f"{-(-n_bytes // 2**20)} MiB" if n_bytes < 2**33 else f"{n_bytes / 2**30:.0f} GiB"
