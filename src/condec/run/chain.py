"""The links of the chain, each carried out on this machine, in one process.

Every function takes a `Run` and gives an `Outcome`. What a step was made from is recorded
beside it; a step whose inputs have not changed is kept, one that was interrupted is done
again, and contributions go on at the first missing shard.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from condec.basis.files import to_json
from condec.data import Inputs
from condec.dictionary import DeadModesWarning, FitReport, forget_checkpoint
from condec.dictionary import fit as fit_dictionary
from condec.dictionary.fitting.train import MANY_DEAD
from condec.explain import site_maps
from condec.modes import Modes
from condec.network import Site
from condec.run.checks import fit_controls, measure_stability
from condec.run.control import control
from condec.run.plan import LINKS, Link
from condec.run.retina import forget_retina, retina
from condec.run.run import Outcome, Run
from condec.run.side_effects import forget_site
from condec.run.steps import Step, carry_out, fit_digest, logged, with_modes
from condec.store import RunFolder, Store, collect_twin, collection, layer_statistics

_CHECKPOINT: Final = "checkpoint-"
"""Folders of fits that are under way, named by what they are made from."""


def collect(run: Run) -> Outcome:
    """Contributions of all inputs, into the store, then those of its controls.

    Goes on where it was interrupted.
    """
    plan, folder, started = run.plan.collect, run.folder, time.perf_counter()
    twins = {control.name: folder.twin(control.name) for control in plan.controls}
    stores = (folder.store, *twins.values())
    kept = all(path.exists() and Store.open(path).is_complete for path in stores)
    with logged(run, "collect"):
        model, inputs, sites = run.loaded.model, run.inputs, run.plan.sites
        for control in plan.controls:
            control.check(model, inputs)
        options: dict[str, Any] = {
            "method": plan.method,
            "target": plan.target,
            "batch_size": plan.batch_size,
            "shard_size": plan.shard_size,
            "on_bad": plan.on_bad,
            "compute": plan.compute,
            "devices": plan.devices,
            "fit_on": run.fit_on,
            "progress": run.progress,
        }
        store = collection.collect(model, inputs, sites, out=folder.store, **options)
        for control in plan.controls:
            run.say(f"control {control.name}")
            path = twins[control.name]
            collect_twin(control, model, inputs, sites, out=path, of=store, **options)
        names = run.inputs.label_names
        content = to_json(None if names is None else list(names))
        folder.write(folder.path / "analysis" / "labels.json", content)
    seconds = time.perf_counter() - started
    state = "kept" if kept else "made"
    return Outcome("collect", state, stores, seconds, _left_out(run.inputs, store))


def _left_out(inputs: Inputs, store: Store) -> tuple[str, ...]:
    ids = [inputs.ids[row] for row in (~store.valid).nonzero().flatten().tolist()]
    if not ids:
        return ()
    some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return (f"{len(ids)} of {store.n_samples} inputs could not be used, left out: {some}",)


def stats(run: Run) -> Outcome:
    """Statistics of every site, into analysis/statistics.parquet.

    Those of controls under which the numbers differ go into statistics_controls.parquet.
    """
    import pandas

    target, folder = run.plan.collect.target, run.folder
    twins = {
        control.name: run.twin(control)
        for control in run.plan.collect.controls
        if control.changes_numbers(target)
    }

    def make() -> list[Path]:
        made = [folder.write_table("statistics", layer_statistics(run.store))]
        if not twins:
            folder.forget("stats", [folder.table("statistics_controls")])
            return made
        tables = [layer_statistics(twin).assign(control=name) for name, twin in twins.items()]
        return [*made, folder.write_table("statistics_controls", pandas.concat(tables))]

    made_from = run.digest("stats", *(twin.config_hash for twin in twins.values()))
    return carry_out(run, "stats", [Step("stats", made_from, make)])


def fit(run: Run) -> Outcome:
    """A dictionary for every site, and its modes, into modes/<site>/<learner>/.

    Where the plan asks for them, controls into analysis/fit_controls/, and how stable modes are
    into analysis/stability/.
    """
    plan = run.plan.fit
    sites = run.sites(plan.sites, run.store.sites)
    notes: list[str] = []

    def make(site: Site) -> list[Path]:
        folder = run.folder.modes(site.key, plan.name)
        with warnings.catch_warnings():
            # Said below, for all sites together; the report says it again.
            warnings.simplefilter("ignore", DeadModesWarning)
            report = fit_dictionary(
                plan.learner_for(run.store.info(site).n_units),
                run.store.rows(site, sign=plan.sign),
                config=plan.train,
                checkpoint=folder / f"{_CHECKPOINT}{fit_digest(run, site)[:12]}",
                progress=run.progress,
            )
        notes.extend(_about_dead_modes(site, report))
        modes = Modes.build(
            report.dictionary,
            run.store,
            site,
            plan.sign,
            held_out_rows=report.held_out_rows,
            name=plan.name,
        )
        _forget_results(run.folder, site, plan.name)
        forget_site(run, site.key)
        forget_retina(run, site)
        report.save(folder)
        saved = modes.save(folder)
        for left in folder.glob(f"{_CHECKPOINT}*"):
            forget_checkpoint(left)
        return [saved, folder / "dictionary.json"]

    checked = run.sites(plan.check_sites, sites) if plan.controls or plan.stability_seeds else ()
    steps = []
    for site in sites:
        steps.append(Step(f"fit {site.key}", fit_digest(run, site), partial(make, site)))
        steps += _checks(run, site) if site in checked else ()
    return replace(carry_out(run, "fit", steps), notes=tuple(notes))


def _checks(run: Run, site: Site) -> Iterator[Step]:
    """Steps of controls and stability, as far as the plan asks for them."""
    plan, digest = run.plan.fit, fit_digest(run, site)
    if plan.controls:
        made_from = run.digest(digest, "controls")
        yield Step(f"controls {site.key}", made_from, partial(fit_controls, run, site))
    if plan.stability_seeds:
        made_from = run.digest(digest, "stability", plan.stability_seeds)
        yield Step(f"stability {site.key}", made_from, partial(measure_stability, run, site))


def _about_dead_modes(site: Site, report: FitReport) -> Iterator[str]:
    last = list(report.metrics.values())[-1]
    if last.dead_share is not None and last.dead_share > MANY_DEAD:
        number = f"{last.dead_share:.0%} of {report.dictionary.n_modes} modes"
        yield f"{site.key}: {number} are dead; take fewer, or train longer"


def _forget_results(folder: RunFolder, site: Site, name: str) -> None:
    """Remove what was made from a site's earlier modes: it says nothing about the new ones."""
    joined = ("control", "control_auc", "control_comparison")
    folder.forget("control", [folder.table(table) for table in joined])
    tables = folder.control(site.key, name), folder.comparison(site.key, name)
    folder.forget(f"control {site.key}", [folder.table(table) for table in tables])
    folder.forget(f"map {site.key}", [folder.maps(site.key, name)])
    folder.forget(f"controls {site.key}", [folder.table(folder.fit_controls(site.key, name))])
    folder.forget(f"stability {site.key}", [folder.table(folder.stability(site.key, name))])


def maps(run: Run) -> Outcome:
    """Input-space maps of every chosen site, into analysis/maps/<site>/<learner>.npz.

    A site of which no mode is alive is left out, with a note.
    """
    plan = run.plan.maps
    chosen, notes = with_modes(run.modes(plan.sites))

    def make(modes: Modes) -> list[Path]:
        made = site_maps(
            run.model_of_store,
            run.inputs,
            modes,
            n_modes=plan.n_modes,
            n_inputs=plan.n_inputs,
            n_units=plan.n_units,
            target=plan.target,
        )
        return [made.save(run.folder.maps(modes.site.key, run.plan.fit.name))]

    steps = [
        Step(f"map {m.site.key}", run.digest(fit_digest(run, m.site), plan), partial(make, m))
        for m in chosen
    ]
    return replace(carry_out(run, "map", steps), notes=notes)


def report(run: Run) -> Outcome:
    """The static site, into report/index.html."""
    from condec.report import build_report
    from condec.retina.page import retina_page

    folder = run.folder
    made_from = sorted(
        (file.name, file.read_text(encoding="utf-8"))
        for file in (folder.path / "steps").glob("*.json")
        if file.name != "report.json"
    )

    def make() -> list[Path]:
        more = [retina_page(folder.path)] if folder.retina("fields.npz").is_file() else []
        build_report(folder.path, more)
        return [folder.report]

    controls = [control.name for control in run.plan.collect.controls]
    described = (run.plan.report, run.plan.model, run.plan.data, controls)
    return carry_out(run, "report", [Step("report", run.digest(made_from, described), make)])


FUNCTIONS: Final[dict[Link, Callable[[Run], Outcome]]] = {
    "collect": collect,
    "stats": stats,
    "fit": fit,
    "control": control,
    "map": maps,
    "retina": retina,
    "report": report,
}


def chain(run: Run) -> Iterator[Outcome]:
    """The links of the plan, one after the other, in the order of the data flow.

    Control is left out, with a note, where the data have no labels or no rows are held out.
    """
    for link in LINKS:
        if link not in run.plan.links:
            continue
        reason = _no_control(run) if link == "control" else None
        if reason is not None:
            yield Outcome("control", "left out", (), 0.0, (reason,))
            continue
        yield FUNCTIONS[link](run)


def _no_control(run: Run) -> str | None:
    """Why there can be no control curves, if so."""
    if not bool((run.store.labels >= 0).any()):
        return "the data have no labels"
    return None if run.plan.fit.train.held_out else "no rows are held out (fit.held_out is 0)"
