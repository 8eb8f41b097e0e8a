"""The link that edits the network: control curves of every chosen site."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from condec.dictionary import DeadModesWarning, ThresholdSAE
from condec.effects import (
    LOG_ODDS_NAMES,
    RANKINGS,
    CurveOptions,
    Ranking,
    collect_log_odds,
    compare,
    fit_log_odds,
    measure_curves,
    named_rankings,
    summarise,
)
from condec.errors import DataError
from condec.modes import Modes
from condec.runner.folder import RunFolder
from condec.runner.run import Outcome, Run
from condec.runner.steps import Step, carry_out, fit_digest, with_modes
from condec.store import Store

if TYPE_CHECKING:
    import pandas


def control(run: Run) -> Outcome:
    """Control curves of every chosen site, into analysis/control.parquet.

    Their summaries go into control_auc.parquet, and what is said of their rankings into
    control_comparison.parquet. Rankings by log-odds need contributions of their own, in
    log_odds/contributions.zarr; where they cannot be had, they are left out, with a note. So is
    a site of which no mode is alive.
    """
    plan = run.plan.control
    run.inputs.needed_labels("control")
    chosen, notes = with_modes(run.modes(plan.sites))
    wanted = [name for name in plan.rankings if name in LOG_ODDS_NAMES]
    store, reason = _log_odds(run, chosen) if wanted and chosen else (None, "")
    if reason:
        notes = (*notes, f"{', '.join(wanted)}: left out, {reason}")
    digests = {m.site.key: run.digest(fit_digest(run, m.site), plan, reason) for m in chosen}
    steps = [
        Step(f"control {m.site.key}", digests[m.site.key], partial(_site_curves, run, m, store))
        for m in chosen
    ]
    if chosen:
        join = partial(_join_curves, run, [modes.site.key for modes in chosen])
        steps.append(Step("control", run.digest(digests), join))
    return replace(carry_out(run, "control", steps), notes=notes)


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


def _site_rankings(run: Run, modes: Modes, store: Store | None) -> list[Ranking]:
    """The rankings of the plan, as far as there is what they are made from."""
    plan = run.plan.control
    log_odds = None if store is None else _log_odds_modes(run, modes, store)
    names = [name for name in plan.rankings if log_odds is not None or name not in LOG_ODDS_NAMES]
    return named_rankings(
        modes, names or RANKINGS, log_odds=log_odds, n_random=plan.n_random, seed=plan.seed
    )


def _log_odds_modes(run: Run, modes: Modes, store: Store) -> Modes | None:
    """Modes of contributions to the log-odds, by the run's learner where that takes signs."""
    plan, site = run.plan.fit, modes.site
    learner = plan.learner_for(store.info(site).n_units)
    try:
        learner.check(store.matrix(site, sign="sum"))
    except DataError:
        learner = ThresholdSAE(learner.n_modes)
    try:
        with warnings.catch_warnings():
            # Modes that order units are not shown one by one.
            warnings.simplefilter("ignore", DeadModesWarning)
            found = fit_log_odds(store, modes, learner=learner, config=plan.train)
    except DataError as error:
        run.say(f"{site.key}: {', '.join(LOG_ODDS_NAMES)} left out: {error}")
        return None
    found.save(run.folder.log_odds_modes(site.key))
    return found


def _site_curves(run: Run, modes: Modes, store: Store | None) -> list[Path]:
    """Curves of one site, and the comparison of its rankings."""
    import pandas

    plan, folder, key, name = run.plan.control, run.folder, modes.site.key, run.plan.fit.name
    rankings = _site_rankings(run, modes, store)
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
                rankings=rankings,
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
