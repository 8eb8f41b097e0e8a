"""The link that edits the network: control curves of every chosen site."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from condec.basis.errors import DataError
from condec.effects import (
    LOG_ODDS_NAMES,
    CurveOptions,
    collect_log_odds,
    compare,
    measure_curves,
    summarise,
)
from condec.modes import Modes
from condec.run.rankings import SiteRankings
from condec.run.run import Outcome, Run
from condec.run.side_effects import forget_side_effects, side_effects, superclasses
from condec.run.steps import Step, carry_out, fit_digest, with_modes
from condec.store import RunFolder, Store

if TYPE_CHECKING:
    import pandas


def control(run: Run) -> Outcome:
    """Control curves of every chosen site, into analysis/control.parquet.

    Their summaries go into control_auc.parquet, and what is said of their rankings into
    control_comparison.parquet. Rankings by log-odds need contributions of their own, in
    log_odds/contributions.zarr; where they cannot be had, they are left out, with a note. So is
    a site of which no mode is alive. What else edits do stands in tables of its own
    (`condec.run.side_effects`), as far as the plan asks for it.
    """
    plan = run.plan.control
    run.inputs.needed_labels("control")
    chosen, notes = with_modes(run.modes(plan.sites))
    wanted = [name for name in plan.rankings if name in LOG_ODDS_NAMES]
    store, reason = _log_odds(run, chosen) if wanted and chosen else (None, "")
    if reason:
        notes = (*notes, f"{', '.join(wanted)}: left out, {reason}")
    sites = [SiteRankings(run, modes, store) for modes in chosen]
    of_curves, more = run.plan.control.of_curves, list[str]()
    digests = {m.site.key: run.digest(fit_digest(run, m.site), of_curves, reason) for m in chosen}
    forget_side_effects(run, [m.site.key for m in chosen])
    steps = []
    for site in sites:
        key = site.modes.site.key
        steps.append(Step(f"control {key}", digests[key], partial(_site_curves, run, site)))
        steps += side_effects(run, site, digests[key], more)
    if chosen:
        join = partial(_join_curves, run, [modes.site.key for modes in chosen])
        steps.append(Step("control", run.digest(digests), join))
        steps += superclasses(run)
    outcome = carry_out(run, "control", steps)
    return replace(outcome, notes=(*notes, *more))


def _log_odds(run: Run, chosen: Sequence[Modes]) -> tuple[Store | None, str]:
    """Contributions to the log-odds at all chosen sites; or none, and why."""
    plan = run.plan.collect
    if bool((run.inputs.needed_labels("control") < 0).any()):
        return None, "samples without label have no log-odds"
    try:
        store = collect_log_odds(
            run.model_of_store,
            run.inputs,
            [modes.site for modes in chosen],
            out=run.folder.log_odds,
            batch_size=plan.batch_size,
            shard_size=plan.shard_size,
            on_bad=plan.on_bad,
            compute=plan.compute,
            devices=plan.devices,
            progress=run.progress,
        )
    except DataError as error:
        return None, str(error)
    if store.sample_ids != run.store.sample_ids:
        return None, "other samples could be used than for the run's contributions"
    return store, ""


def _site_curves(run: Run, site: SiteRankings) -> list[Path]:
    """Curves of one site, and the comparison of its rankings."""
    import pandas

    modes, plan, folder, name = site.modes, run.plan.control, run.folder, run.plan.fit.name
    key = modes.site.key
    curves = [
        measure_curves(
            run.model_of_store,
            run.inputs,
            modes,
            CurveOptions(
                labels=plan.labels or None,
                fractions=plan.fractions,
                edit=edit,
                replacement=replacement,
                off=plan.off,
                rankings=site.found,
                n_bootstrap=plan.n_bootstrap,
                seed=plan.seed,
                batch_size=plan.batch_size,
            ),
        )
        for edit in plan.edits
        for replacement in plan.replacements
    ]
    made = {folder.control(key, name): pandas.concat([one.to_frame() for one in curves])}
    if plan.n_bootstrap:
        made[folder.comparison(key, name)] = pandas.concat([compare(one) for one in curves])
    folder.forget(f"control {key}", [folder.table(folder.comparison(key, name))])
    return [folder.write_table(place, table) for place, table in made.items()]


def _join_curves(run: Run, sites: Sequence[str]) -> list[Path]:
    """The tables of all sites together, and a summary of every curve."""
    folder, name = run.folder, run.plan.fit.name
    curves = _joined(folder, [folder.control(site, name) for site in sites])
    made = {"control": curves, "control_auc": summarise(curves)}
    if run.plan.control.n_bootstrap:
        parts = [folder.comparison(site, name) for site in sites]
        made["control_comparison"] = _joined(folder, parts)
    folder.forget("control", [folder.table("control_comparison")])
    return [folder.write_table(place, table) for place, table in made.items()]


def _joined(folder: RunFolder, parts: Sequence[str]) -> "pandas.DataFrame":
    """Tables of several sites, one below the other."""
    import pandas

    tables = [pandas.read_parquet(folder.table(part)) for part in parts]
    return pandas.concat(tables, ignore_index=True)
