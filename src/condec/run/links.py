"""The links of the chain, each carried out on this machine, in one process.

Every function takes a `Run` and gives an `Outcome`. What a task was made from is recorded
with its outputs; a task whose inputs have not changed is kept, one that was interrupted is done
again, and contributions go on at the first missing shard.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from condec import dictionary
from condec.basis.digests import digest, path_digest
from condec.basis.errors import CondecError, DataError, StoreError
from condec.basis.files import file_digest, reading, to_json, user_path
from condec.basis.npz import save_record
from condec.basis.shapes import UnitMatrix
from condec.data import Inputs
from condec.dictionary import DeadModesWarning, fit, forget_checkpoint
from condec.dictionary.fitting.train import MANY_DEAD
from condec.explanation import site_maps
from condec.modes import Modes, against_units, meaning, membership, mode_families
from condec.modes.annotations import FILE as ANNOTATIONS
from condec.network import Site
from condec.run.beforehand import OF_MODES, check_run, control_reason, refuse_large
from condec.run.control import control_link
from condec.run.explain import explain_link
from condec.run.plugins import brought, link_names
from condec.run.run import Outcome, Run
from condec.run.tasks import Task, carry_out, collected_ahead, logged, with_modes
from condec.store import Quantity, Store, collect_twin, layer_statistics
from condec.store.collection import whole_store


def collect_link(run: Run) -> Outcome:
    """Contributions of all inputs, into the store; then those of its twins.

    Goes on where it was interrupted at the first missing shard, which is begun again.
    """
    plan, folder, started = run.plan.collect, run.folder, time.perf_counter()
    twins = {folder.twin(twin.name): twin for twin in plan.twins}
    stores = (folder.store, *twins)
    kept = all(whole_store(path) is not None for path in stores)
    with logged(run, "collect"):
        model, inputs, sites = run.loaded.model, run.inputs, run.plan.sites
        for twin in plan.twins:
            twin.check(model, inputs)
        options = {name: getattr(plan, name) for name in ("method", "target", "compute", "on_bad")}
        options |= {"fit_on": run.fit_on, "target": run.target}
        store = collected_ahead(run, run.collection())
        for path, twin in twins.items():
            run.say(f"twin {twin.name}")
            if twin.changes_numbers(plan.target):
                collected_ahead(run, run.collection(twin))
            else:
                collect_twin(twin, model, inputs, sites, out=path, of=store, **options)
        names = inputs.label_names
        folder.write(folder.labels, to_json(None if names is None else list(names)))
        made_from = run.made_from("model", without=["device"])
        made_from |= run.made_from("data", without=["superclasses"])
        folder.ledger.mark_done("collect", "collect", made_from, (), [folder.labels, *stores])
    seconds = time.perf_counter() - started
    state = "kept" if kept else "made"
    notes = (*inputs.notes, *_left_out(inputs, store))
    return Outcome("collect", state, stores, seconds, notes)


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

    folder = run.folder
    twins = {twin.name: run.twin(twin) for twin in run.plan.collect.differing_twins}

    def make() -> list[Path]:
        made = [folder.write_table(layer_statistics(run.store), "statistics")]
        if not twins:
            return made
        tables = [layer_statistics(twin).assign(twin=name) for name, twin in twins.items()]
        return [*made, folder.write_table(pandas.concat(tables), "statistics_twins")]

    inputs = [folder.store, *map(folder.twin, twins)]
    return carry_out(run, "stats", [Task("stats", run.made_from(), make, inputs)])


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
        make, inputs = partial(_fit_site, run, site, notes), [run.folder.store]
        name = f"fit {site.key}"
        tasks.append(Task(name, _fit_options(run, site), make, inputs, plan.name, notes=notes))
        tasks += [_meaning_task(run, site, notes), _units_task(run, site)]
        tasks += _checks(run, site) if site in checked else ()
    if len(sites) > 1:
        inputs = [run.folder.modes(site.key, plan.name) for site in sites]
        join = partial(_families, run, sites)
        tasks.append(Task("families", run.made_from(), join, inputs, plan.name, late=True))
    outcome = carry_out(run, "fit", tasks, separate=True)
    return replace(outcome, notes=(*outcome.notes, *notes))


def _fit_options(run: Run, site: Site) -> dict[str, Any]:
    """Return what the fit of a site is made from; of a dictionary from elsewhere its digest too."""
    learner, file = run.plan.fit.learner, dict[str, str]()
    if isinstance(learner, dictionary.Imported):
        place = _place(run, site, learner)
        with reading(place, "a dictionary to import", "Name a file or folder that can be read."):
            file["file"] = path_digest(place)
    return run.made_from("fit", without=("rivals", "stability_seeds"), **file)


def _fit_site(run: Run, site: Site, notes: list[str]) -> list[Path]:
    plan, store = run.plan.fit, run.store
    if isinstance(plan.learner, dictionary.Imported):
        return _import_site(run, site, plan.learner)
    checkpoint = run.folder.checkpoint(site.key, digest(_fit_options(run, site), store.config_hash))
    with warnings.catch_warnings():
        # Said below, for all sites together; the report says it again.
        warnings.simplefilter("ignore", DeadModesWarning)
        rows = store.rows(site, sign=plan.sign, rows=run.plan.rows)
        learner = plan.learner_for(store.info(site).n_units, rows.shape[0])
        report = fit(learner, rows, config=plan.train, checkpoint=checkpoint, progress=run.progress)
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
        name=plan.name, rows=run.plan.rows,
    )  # fmt: skip
    saved = modes.save(run.folder.modes(site.key, plan.name), report.dictionary)
    for left in checkpoint.parent.glob("*"):
        forget_checkpoint(left)
    return [saved.parent]


def _import_site(run: Run, site: Site, learner: dictionary.Imported) -> list[Path]:
    """Take a site's dictionary from elsewhere, and measure it on the rows of the plan."""
    plan, store = run.plan.fit, run.store
    place = _place(run, site, learner)
    rows = store.rows(site, sign=plan.sign, rows=run.plan.rows)
    found = dictionary.measured(dictionary.import_dictionary(place), rows, plan.train)
    modes = Modes.build(found, store, site, plan.sign, name=plan.name, rows=run.plan.rows)
    return [modes.save(run.folder.modes(site.key, plan.name), found).parent]


def _place(run: Run, site: Site, learner: dictionary.Imported) -> Path:
    return user_path(learner.path.replace("{site}", site.key), run.plan.base)


def _meaning_task(run: Run, site: Site, notes: list[str]) -> Task:
    """Return the task that says what the modes of a site stand for."""
    folder, name = run.folder, run.plan.fit.name
    place = folder.modes(site.key, name)

    def make() -> list[Path]:
        modes = Modes.load(folder.ledger.found(place) or place, run.store)
        try:
            if not len(modes) or not run.properties:
                return []
            found = meaning(modes, run.properties, seed=run.plan.fit.train.seed)
        except DataError as error:  # of labels with a sample each
            notes.append(f"{site.key}: modes have no names: {error}")
            return []
        return [folder.write_table(found.modes, "meaning", site.key, name)]

    groups = None if run.superclasses is None else digest(run.superclasses.to_record())
    file = run.plan.data.attributes
    table = None if file is None else path_digest(user_path(file, run.plan.base))
    made_from = run.made_from("data", "attributes", groups=groups, table=table)
    after, inputs = f"fit {site.key}", [place, folder.labels]
    return Task(f"meaning {site.key}", made_from, make, inputs, name, after, notes=notes)


def _units_task(run: Run, site: Site) -> Task:
    """Return the task that compares the modes of a site with its units, by labels."""
    folder, name = run.folder, run.plan.fit.name
    place = folder.modes(site.key, name)

    def make() -> list[Path]:
        modes = Modes.load(folder.ledger.found(place) or place, run.store)
        if not len(modes) or not bool((run.store.labels >= 0).any()):
            return []
        with suppress(DataError):  # too few samples of each label, which the names say
            return [folder.write_table(against_units([modes]), "units", site.key, name)]
        return []

    return Task(f"units {site.key}", run.made_from(), make, [place], name, f"fit {site.key}")


def _families(run: Run, sites: Sequence[Site]) -> list[Path]:
    """Follow modes over the sites that have some, by loadings: into analysis/families."""
    folder, name = run.folder, run.plan.fit.name
    places = [folder.modes(site.key, name) for site in sites]
    found = (Modes.load(place, run.store) for place in places if folder.ledger.found(place))
    table = mode_families(modes for modes in found if len(modes))
    return [folder.write_table(table, "families", name)]


def _checks(run: Run, site: Site) -> Iterator[Task]:
    """Yield the tasks of rivals and stability, as far as the plan asks for them."""
    plan = run.plan.fit
    inputs = [run.folder.modes(site.key, plan.name)]
    for kind, asked in (("rivals", plan.rivals), ("stability", plan.stability_seeds)):
        if asked:
            own = {"stability_seeds": asked} if kind == "stability" else {}
            make, made_from = partial(_check, run, site, kind), _fit_options(run, site) | own
            name, after = f"{kind} {site.key}", f"fit {site.key}"
            yield Task(name, made_from, make, inputs, plan.name, after)


def _check(run: Run, site: Site, kind: str) -> list[Path]:
    """Fit rivals of a site's dictionary, or measure how stable its modes are: in one table."""
    plan, folder, store = run.plan.fit, run.folder, run.store
    run.say(f"{site.key}: {kind}")
    rows = _matrix(run, site, "contribution")
    learner = plan.learner_for(store.info(site).n_units, len(rows))
    fitted = dictionary.load_dictionary(folder.modes(site.key, plan.name))
    if kind == "stability":
        again = dictionary.stability(
            learner, rows, seeds=plan.stability_seeds, config=plan.train, fitted=fitted
        )
        table = again.table().assign(between_halves=again.between_halves, n_seeds=len(again.seeds))
    else:
        activations, labels, member = None, store.labels, None
        if run.plan.rows == "positions":  # of which no activations are kept
            labels = labels[store.places(site).sample]
        else:
            activations = _matrix(run, site, "activation")
            # A part that is 0 throughout, such as the negative one after a ReLU, does not compare.
            if bool((activations == activations[0]).all()):
                activations = None
        if bool((labels >= 0).any()):
            member = membership(labels)
            member = member[:, member.any(0)]
        table = dictionary.fit_rivals(
            learner, rows, activations=activations, indicators=member, config=plan.train,
            fitted=fitted,
        )  # fmt: skip
    return [folder.write_table(table, kind, site.key, plan.name)]


def _matrix(run: Run, site: Site, quantity: Quantity) -> UnitMatrix:
    """Read the rows of a site into memory, where they fit there as they do in a fit."""
    rows = run.store.rows(site, quantity, run.plan.fit.sign, run.plan.rows)
    refuse_large(run, site, rows.shape)
    return rows.all()


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
            method=run.method, contributes_to=run.fitted_target,
        )  # fmt: skip
        return [save_record(run.folder.maps(modes.site.key, run.plan.fit.name), made)]

    name, made_from = run.plan.fit.name, run.made_from("maps")
    tasks = []
    for modes in chosen:
        inputs = [run.folder.modes(modes.site.key, name)]
        tasks.append(Task(f"map {modes.site.key}", made_from, partial(make, modes), inputs, name))
    outcome = carry_out(run, "map", tasks, separate=True)
    return replace(outcome, notes=(*notes, *outcome.notes))


def report_link(run: Run) -> Outcome:
    """The static site of a run folder.

    Raises StoreError: a result was made with other options than the plan's.
    """
    from condec.report import build_report

    _ = run.store  # There is one, of the plan's method and target.
    folder, entries = run.folder, run.folder.ledger.entries.values()
    others = [entry for entry in entries if entry.link != "report"]
    learners = {place.name for place in folder.ledger.outputs(folder.all_modes)}
    left_out = any(name.startswith("fit") for name in run.left_out)
    if learners and run.plan.fit.name not in learners and not left_out:
        raise StoreError(
            f"{folder.path}: modes of {', '.join(sorted(learners))} are here, the plan's learner "
            f"is {run.plan.fit.name}: {folder.first('fit')}"
        )
    for entry in others:
        if differ := run.outdated(entry):
            raise StoreError(f"{folder.path}: {entry.task}: {differ}: {folder.first(entry.link)}")

    def make() -> list[Path]:
        build_report(folder.path)
        return [folder.report.parent]

    parts = digest({entry.task: entry.made_from for entry in others})
    said = file_digest(names) if (names := folder.path / ANNOTATIONS).exists() else None
    made_from = run.made_from("report", parts=parts, names=said)
    inputs = [folder.path / name for entry in others for name in entry.outputs]
    outcome = carry_out(run, "report", [Task("report", made_from, make, inputs)])
    return replace(outcome, outputs=(folder.report,) if outcome.outputs else ())


FUNCTIONS: Final[dict[str, Callable[[Run], Outcome]]] = {
    "collect": collect_link, "stats": stats_link, "fit": fit_link,
    "control": control_link, "map": map_link, "explain": explain_link, "report": report_link,
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
            run.forget_outdated(link)
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
            run.forget_outdated(link)
            if link == "fit":
                run.left_out.update(dict.fromkeys(OF_MODES, "no dictionary could be fitted"))
            outcome = Outcome(link, "failed", (), 0.0, (str(error),))
        yield outcome
    if errors:
        raise errors[0]
