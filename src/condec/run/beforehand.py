"""Beforehand: what a run needs is checked before its first pass."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from condec.attribution import prepare_inputs
from condec.basis.errors import CondecError, DataError, OptionError
from condec.dictionary import split_rows
from condec.dictionary.fitting.rows import memory_of
from condec.effects.passes import Passes
from condec.explanation import EXAMPLES, mode_map
from condec.network import PackedInput, Site
from condec.run.explain import refuse_unknown
from condec.run.plugins import brought
from condec.run.run import Run
from condec.store import SiteInfo
from condec.store.batches import first_good
from condec.store.collection import whole_store

OF_MODES: Final = ("control", "map", "explain")
"""Links of condec that need dictionaries."""


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
        next(Passes(run.loaded.model, [()]).outputs(first_sample(run)[1]))
    except CondecError as error:
        return str(error)
    return ""


def _map_reason(run: Run, sites: Sequence[Site]) -> str:
    """Tell why no site can be mapped; empty where one can."""
    if reads(run):
        return ""
    try:
        run.inputs.picture(first_sample(run)[0])
    except CondecError as error:
        return str(error)
    reason = ""
    for site in sites:
        try:
            one_map(run, site)
            return ""
        except CondecError as error:
            reason = reason or str(error)
    return reason


def reads(run: Run) -> bool:
    """Tell whether inputs are texts, whose tokens the model can say."""
    model = run.loaded.model
    return isinstance(model, PackedInput) and model.words(first_sample(run)[1]) is not None


def one_map(run: Run, site: Site) -> None:
    """Map one channel of a site for the first sample."""
    labels, (row, sample) = run.inputs.labels, first_sample(run)
    own = None if labels is None else labels[row : row + 1]
    mode_map(run.loaded.model, sample, site, [0], run.plan.maps.target, own)


def _check_fit(run: Run, info: SiteInfo, n_rows: int) -> None:
    """Refuse a learner that cannot be fitted to the rows of a site, whatever these are."""
    plan, key = run.plan.fit, info.site.key
    n_rows *= rows_of_sample(run, info)
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


def rows_of_sample(run: Run, info: SiteInfo) -> int:
    """Return how many rows a sample has in a fit."""
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


def first_sample(run: Run) -> tuple[int, Tensor]:
    """Return the row of the first sample that can be used, and the sample as the model takes it."""
    row, sample = first_good(run.inputs, run.plan.collect.on_bad)
    return row, prepare_inputs(run.loaded.model, sample)
