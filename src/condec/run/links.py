"""The links of the chain, each carried out on this machine, in one process.

Every function takes a `Run` and gives an `Outcome`. What a task was made from is recorded
with its outputs; a task whose inputs have not changed is kept, one that was interrupted is done
again, and contributions go on at the first missing shard.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from condec.basis.errors import CondecError
from condec.basis.files import to_json
from condec.basis.npz import save_record
from condec.data import Inputs
from condec.dictionary import DeadModesWarning, fit, forget_checkpoint
from condec.dictionary.fitting.train import MANY_DEAD
from condec.explain import site_maps
from condec.modes import Modes
from condec.network import Site
from condec.run.beforehand import OF_MODES, check_run, control_reason
from condec.run.checks import fit_rivals, measure_stability
from condec.run.control import control_link
from condec.run.plugins import brought, link_names
from condec.run.run import Outcome, Run
from condec.run.tasks import Task, carry_out, fit_digest, forget_table, logged, with_modes
from condec.store import Store, collect_twin, layer_statistics
from condec.store.collection import collect_planned, whole_store
from condec.store.folder import TABLES

_CHECKPOINT: Final = "checkpoint-"
"""Folders of fits that are under way, named by what they are made from."""


def collect_link(run: Run) -> Outcome:
    """Contributions of all inputs, into the store; then those of its twins.

    Goes on at the first missing shard where it was interrupted.
    """
    plan, folder, started = run.plan.collect, run.folder, time.perf_counter()
    twins = {folder.twin(twin.name): twin for twin in plan.twins}
    stores = (folder.store, *twins)
    kept = all(whole_store(path) is not None for path in stores)
    with logged(run, "collect"):
        model, inputs, sites = run.loaded.model, run.inputs, run.plan.sites
        for twin in plan.twins:
            twin.check(model, inputs)
        own = {"method": plan.method, "target": plan.target, "fit_on": run.fit_on}
        options: dict[str, Any] = run.collecting | own
        store = collect_planned(
            run.batches, out=folder.store, batch_size=plan.batch_size, shard_size=plan.shard_size,
            devices=plan.devices, progress=run.progress,
        )  # fmt: skip
        for path, twin in twins.items():
            run.say(f"twin {twin.name}")
            collect_twin(twin, model, inputs, sites, out=path, of=store, **options)
        names = inputs.label_names
        folder.write(folder.labels, to_json(None if names is None else list(names)))
    seconds = time.perf_counter() - started
    state = "kept" if kept else "made"
    return Outcome("collect", state, stores, seconds, _left_out(inputs, store))


def _left_out(inputs: Inputs, store: Store) -> tuple[str, ...]:
    ids = [inputs.ids[row] for row in (~store.valid).nonzero().flatten().tolist()]
    if not ids:
        return ()
    some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return (f"{len(ids)} of {store.n_samples} inputs could not be used, left out: {some}",)


def stats_link(run: Run) -> Outcome:
    """Statistics of contributions and activations, site by site.

    Those of twins under which the numbers differ go into statistics_twins.parquet.
    """
    import pandas

    target, folder = run.plan.collect.target, run.folder
    differ = [twin for twin in run.plan.collect.twins if twin.changes_numbers(target)]
    twins = {twin.name: run.twin(twin) for twin in differ}

    def make() -> list[Path]:
        made = [folder.write_table(layer_statistics(run.store), "statistics")]
        if not twins:
            folder.forget("stats", [folder.table("statistics_twins")])
            return made
        tables = [layer_statistics(twin).assign(twin=name) for name, twin in twins.items()]
        return [*made, folder.write_table(pandas.concat(tables), "statistics_twins")]

    made_from = run.digest("stats", *(twin.config_hash for twin in twins.values()))
    return carry_out(run, "stats", [Task("stats", made_from, make)])


def fit_link(run: Run) -> Outcome:
    """A dictionary for every site, and its modes.

    Where the plan asks for them, rivals into analysis/rivals/, and how stable modes are into
    analysis/stability/. A site that cannot be fitted is left out, with a note, unless none can.
    """
    plan = run.plan.fit
    sites = run.sites(plan.sites, run.store.sites)
    checked = run.sites(plan.check_sites, sites) if plan.rivals or plan.stability_seeds else ()
    notes: list[str] = []
    tasks = []
    for site in sites:
        make = partial(_fit_site, run, site, notes)
        tasks.append(Task(f"fit {site.key}", fit_digest(run, site), make))
        tasks += _checks(run, site) if site in checked else ()
    outcome = carry_out(run, "fit", tasks, separate=True)
    return replace(outcome, notes=(*outcome.notes, *notes))


def _fit_site(run: Run, site: Site, notes: list[str]) -> list[Path]:
    plan, store = run.plan.fit, run.store
    folder = run.folder.modes(site.key, plan.name)
    with warnings.catch_warnings():
        # Said below, for all sites together; the report says it again.
        warnings.simplefilter("ignore", DeadModesWarning)
        report = fit(
            plan.learner_for(store.info(site).n_units, len(store)),
            store.rows(site, sign=plan.sign), config=plan.train,
            checkpoint=folder / f"{_CHECKPOINT}{fit_digest(run, site)[:12]}",
            progress=run.progress,
        )  # fmt: skip
    dead = list(report.metrics.values())[-1].dead_share or 0.0
    if dead > MANY_DEAD:
        number = f"{dead:.0%} of {report.dictionary.n_modes} modes"
        notes.append(f"{site.key}: {number} are dead; take fewer, or train longer")
    held_out, on = report.metrics.get("held_out"), report.metrics["train"].r2
    if held_out is not None and held_out.r2 <= 0:
        found = f"R2 is {held_out.r2:.2f} on held-out inputs, {on:.2f} on those fitted"
        notes.append(f"{site.key}: {found}; collect more inputs, or try nmf or pca")
    modes = Modes.build(
        report.dictionary, store, site, plan.sign, held_out_rows=report.held_out_rows,
        name=plan.name,
    )  # fmt: skip
    _forget_results(run, site.key)
    report.save(folder)
    saved = modes.save(folder)
    for left in folder.glob(f"{_CHECKPOINT}*"):
        forget_checkpoint(left)
    return [saved, folder / "dictionary.json"]


def _checks(run: Run, site: Site) -> Iterator[Task]:
    """Yield the tasks of rivals and stability, as far as the plan asks for them."""
    plan, digest, after = run.plan.fit, fit_digest(run, site), f"fit {site.key}"
    if plan.rivals:
        made_from = run.digest(digest, "rivals")
        yield Task(f"rivals {site.key}", made_from, partial(fit_rivals, run, site), after)
    if plan.stability_seeds:
        made_from = run.digest(digest, "stability", plan.stability_seeds)
        make = partial(measure_stability, run, site)
        yield Task(f"stability {site.key}", made_from, make, after)


def _forget_results(run: Run, site: str) -> None:
    """Remove what was made from a site's earlier modes: it says nothing about the new ones."""
    folder, name = run.folder, run.plan.fit.name
    folder.forget("control", [folder.table("control")])
    for kind in TABLES:
        forget_table(run, kind, site)
    folder.forget(f"map {site}", [folder.maps(site, name)])
    for link in brought().values():
        if link.forget is not None:
            link.forget(run, site, name)


def map_link(run: Run) -> Outcome:
    """Input-space maps of modes.

    A site of which no mode is alive, or that no map leads to, is left out, with a note.
    """
    plan = run.plan.maps
    chosen, notes = with_modes(run.modes(plan.sites))

    def make(modes: Modes) -> list[Path]:
        made = site_maps(
            run.model_of_store, run.inputs, modes, n_modes=plan.n_modes, n_inputs=plan.n_inputs,
            n_units=plan.n_units, target=plan.target,
        )  # fmt: skip
        return [save_record(run.folder.maps(modes.site.key, run.plan.fit.name), made)]

    tasks = [
        Task(f"map {m.site.key}", run.digest(fit_digest(run, m.site), plan), partial(make, m))
        for m in chosen
    ]
    outcome = carry_out(run, "map", tasks, separate=True)
    return replace(outcome, notes=(*notes, *outcome.notes))


def report_link(run: Run) -> Outcome:
    """The static site of a run folder."""
    from condec.report import build_report

    folder = run.folder

    def make() -> list[Path]:
        build_report(folder.path)
        return [folder.report]

    twins = [twin.name for twin in run.plan.collect.twins]
    described = (run.plan.report, run.plan.model, run.plan.data, twins, folder.notes_left_out())
    made_from = run.digest(folder.done(besides="report"), described)
    return carry_out(run, "report", [Task("report", made_from, make)])


FUNCTIONS: Final[dict[str, Callable[[Run], Outcome]]] = {
    "collect": collect_link, "stats": stats_link, "fit": fit_link,
    "control": control_link, "map": map_link, "report": report_link,
}  # fmt: skip
"""Links of condec itself; see `function` for those of packages as well."""


def function(link: str) -> Callable[[Run], Outcome]:
    """Return what carries a link out."""
    return FUNCTIONS[link] if link in FUNCTIONS else brought()[link].function


def chain(run: Run, left_out: Mapping[str, str] | None = None) -> Iterator[Outcome]:
    """Carry out the links of the plan, one after the other, in the order of the data flow.

    Before the first pass all that can be known is checked (`check_run`, whose result is
    `left_out`). A link that the model or the data do not allow is left out with a note; one that
    fails later is noted as well, and raises its error once the report is written.
    """
    run.left_out.update(check_run(run) if left_out is None else left_out)
    errors: list[CondecError] = []
    for link in (link for link in link_names() if link in run.plan.links):
        if (
            link == "control"
            and link not in run.left_out
            and (why := control_reason(run, run.store.labels))
        ):
            run.left_out[link] = why  # known now that unreadable inputs are
        if link in run.left_out:
            yield Outcome(link, "left out", (), 0.0, (run.left_out[link],))
            continue
        if link == "report":
            run.folder.note_left_out([f"{name}: {why}" for name, why in run.left_out.items()])
        try:
            outcome = function(link)(run)
        except CondecError as error:
            if link in ("collect", "report"):
                raise (errors[0] if errors else error) from None
            errors.append(error)
            run.left_out[link] = str(error)
            if link == "fit":
                run.left_out.update(dict.fromkeys(OF_MODES, "no dictionary could be fitted"))
            outcome = Outcome(link, "failed", (), 0.0, (str(error),))
        yield outcome
    if errors:
        raise errors[0]
