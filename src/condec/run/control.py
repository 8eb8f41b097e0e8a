"""The link that edits the network: control curves of every chosen site."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from condec.attribution import ActGrad
from condec.basis.errors import DataError
from condec.effects import LOG_ODDS, LOG_ODDS_NAMES, CurveOptions, compare, measure_curves
from condec.modes import Modes
from condec.run.rankings import SiteRankings
from condec.run.run import Outcome, Run
from condec.run.side_effects import (
    ONLY_SIDE_EFFECTS,
    forget_side_effects,
    side_effects,
    superclasses,
)
from condec.run.tasks import Task, carry_out, with_modes
from condec.store import Store, collect


def control_link(run: Run) -> Outcome:
    """Control curves: what ablating modes does to accuracy.

    They go into analysis/control.parquet, those of one site and the comparison of its rankings
    into analysis/control/ and analysis/control_comparison/. Rankings by log-odds need
    contributions of their own, in log_odds/contributions.zarr; where they cannot be had, they
    are left out, with a note. So is a site of which no mode is alive. What else edits do stands
    in tables of its own (`condec.run.side_effects`), as far as the plan asks for it.
    """
    plan = run.plan.control
    run.inputs.needed_labels("control")
    chosen, notes = with_modes(run.modes(plan.sites))
    wanted = [name for name in plan.rankings if name in LOG_ODDS_NAMES]
    store, reason = _log_odds(run, chosen) if wanted and chosen else (None, "")
    if reason:
        notes = (*notes, f"{', '.join(wanted)}: left out, {reason}")
    sites = [SiteRankings(run, modes, store) for modes in chosen]
    keys, name = [modes.site.key for modes in chosen], run.plan.fit.name
    made_from = run.made_from("control", without=ONLY_SIDE_EFFECTS, log_odds=reason)
    forget_side_effects(run, keys)
    tasks, more = [], list[str]()
    for site in sites:
        key = site.modes.site.key
        inputs, make = [run.folder.modes(key, name)], partial(_site_curves, run, site)
        tasks.append(Task(f"control {key}", made_from, make, inputs, name))
        tasks += side_effects(run, site, made_from, more)
    if chosen:
        inputs = [run.folder.table("control", key, name) for key in keys]
        tasks.append(Task("control", run.made_from(), partial(_join_curves, run, keys), inputs))
        tasks += superclasses(run)
    outcome = carry_out(run, "control", tasks)
    return replace(outcome, notes=(*notes, *more))


def _log_odds(run: Run, chosen: Sequence[Modes]) -> tuple[Store | None, str]:
    """Return contributions to the log-odds at all chosen sites; or none, and why."""
    out = run.folder.log_odds
    if bool((run.inputs.needed_labels("control") < 0).any()):
        return None, "samples without label have no log-odds"
    model, sites = run.model_of_store, [modes.site for modes in chosen]
    if out.exists():
        stored = Store.open(out).sites
        if set(sites) <= set(stored):
            sites = list(stored)
        else:  # Made from the run's own data, and can be made again, for the sites of today too.
            sites = [site for site in run.store.sites if site in {*sites, *stored}]
            shutil.rmtree(out)
    try:
        store = collect(
            model, run.inputs, sites, method=ActGrad(), target=LOG_ODDS, out=out, **run.collecting
        )
    except DataError as error:
        return None, str(error)
    if store.sample_ids != run.store.sample_ids:
        return None, "other samples could be used than for the run's contributions"
    return store, ""


def _site_curves(run: Run, site: SiteRankings) -> list[Path]:
    """Measure the curves of one site, and compare its rankings."""
    import pandas

    modes, plan, folder, name = site.modes, run.plan.control, run.folder, run.plan.fit.name
    key = modes.site.key
    model = run.model_of_store
    shared = CurveOptions(
        labels=plan.labels or None, fractions=plan.fractions, off=plan.off, rankings=site.found,
        n_bootstrap=plan.n_bootstrap, seed=plan.seed, batch_size=plan.batch_size,
        prove=run.plan.collect.prove,
    )  # fmt: skip
    each = [
        replace(shared, edit=e, replacement=r) for e, r in product(plan.edits, plan.replacements)
    ]
    curves = [measure_curves(model, run.inputs, modes, options) for options in each]
    made = {"control": pandas.concat([one.to_frame() for one in curves])}
    if plan.n_bootstrap:
        made["control_comparison"] = pandas.concat([compare(one) for one in curves])
    tables = [folder.write_table(table, kind, key, name) for kind, table in made.items()]
    for place, others in site.fitted.items():
        others.save(place)
    return [*tables, *(place / "modes.zarr" for place in site.fitted)]


def _join_curves(run: Run, sites: Sequence[str]) -> list[Path]:
    """Put the curves of all sites into one table."""
    import pandas

    folder, name = run.folder, run.plan.fit.name
    tables = [folder.read_table("control", site, name) for site in sites]
    return [folder.write_table(pandas.concat(tables, ignore_index=True), "control")]
