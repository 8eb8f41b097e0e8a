"""The links of the chain, each carried out on this machine, in one process.

Every function takes a `Run` and gives an `Outcome`. What a step was made from is recorded
beside it; a step whose inputs have not changed is kept, one that was interrupted is done
again, and contributions go on at the first missing shard.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from condec import collection
from condec.data import Inputs, load_data
from condec.dictionary import fit as fit_dictionary
from condec.effects import auc_difference, control_curve
from condec.errors import StoreError
from condec.files import to_json
from condec.maps import site_maps
from condec.models import LoadedModel, load_model
from condec.models.python import load_function
from condec.modes import Modes
from condec.runner.folder import RunFolder
from condec.runner.plan import LINKS, Link, Plan, digest
from condec.sites import Site, find_sites
from condec.statistics import layer_statistics
from condec.store import Store
from condec.twins import Control, collect_twin, is_twin


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one link did.

    Attributes
    ----------
    link : str
    state : str
        ``made``, ``kept`` (nothing had changed) or ``left out``.
    outputs : tuple of Path
    seconds : float
    notes : tuple of str
        What the user should know: inputs left out, and the like.
    """

    link: Link
    state: str
    outputs: tuple[Path, ...]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """A plan, and what it needs, loaded when first asked for.

    Attributes
    ----------
    plan : Plan
    progress : bool
        Show progress on standard error.
    again : bool
        Do steps again although nothing has changed. Shards of contributions are never
        computed twice.
    """

    plan: Plan
    progress: bool = True
    again: bool = False

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.plan.out)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, on a GPU where there is one."""
        plan = self.plan.model
        loaded = load_model(plan.spec, plan.weights, folder=self.plan.base)
        loaded.model.to(plan.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return loaded

    @cached_property
    def inputs(self) -> Inputs:
        """The data, as the model takes them."""
        plan, base = self.plan.data, self.plan.base
        own = None if plan.preprocess is None else load_function(plan.preprocess, folder=base)
        inputs = load_data(
            plan.source,
            csv=plan.csv,
            label_names=plan.label_names,
            preprocess=own or self.loaded.preprocess,
            shape=self.plan.model.input_shape or self.loaded.input_shape,
            limit=plan.limit,
            folder=base,
        )
        if inputs.label_names is None and self.loaded.label_names is not None:
            inputs = replace(inputs, label_names=self.loaded.label_names)
        return inputs

    @cached_property
    def store(self) -> Store:
        """The collected contributions.

        Raises
        ------
        StoreError
            There are none, some shards are missing, or the plan has another method or target.
        """
        path = self.folder.store
        if not path.exists():
            raise StoreError(f"{path}: no contributions yet; run 'condec collect' first")
        store = Store.open(path)
        plan = self.plan.collect
        for key, wanted in (("method", plan.method.to_dict()), ("target", plan.target.to_dict())):
            if store.recipe.get(key) != wanted:
                raise StoreError(
                    f"{path}: {key} is {store.recipe.get(key)}, the plan has {wanted}; choose "
                    "another run folder, or remove that store"
                )
        if not store.is_complete:
            raise StoreError(
                f"{path}: {len(store.missing())} of {store.n_shards} shards are missing; run "
                "'condec collect' again, it goes on where it stopped"
            )
        return store

    def twin(self, control: Control) -> Store:
        """The store of a control.

        Raises
        ------
        StoreError
            There is none, some shards are missing, or it belongs to another store.
        """
        path = self.folder.twin(control.name)
        if not path.exists():
            raise StoreError(f"{path}: no such control yet; run 'condec collect' first")
        twin = Store.open(path)
        if not is_twin(twin, self.store):
            raise StoreError(
                f"{path}: a control of another store than {self.folder.store}; remove that folder "
                "and run 'condec collect' again"
            )
        if not twin.is_complete:
            raise StoreError(
                f"{path}: {len(twin.missing())} of {twin.n_shards} shards are missing; run "
                "'condec collect' again, it goes on where it stopped"
            )
        return twin

    @cached_property
    def model_of_store(self) -> nn.Module:
        """The model, if it and the data are those that the store was made from.

        Raises
        ------
        StoreError
            The model or the data have changed since.
        """
        now = {"model": collection.fingerprint(self.loaded.model), "data": self.inputs.fingerprint}
        for key, found in now.items():
            if self.store.recipe.get(key) != found:
                raise StoreError(
                    f"{self.folder.store}: made from the {key} {self.store.recipe.get(key)}; the "
                    f"plan's {key} is now {found}. Give the {key} of that store again, or choose "
                    "another run folder and run 'condec collect' first"
                )
        return self.loaded.model

    def sites(self, patterns: Sequence[str], among: Sequence[Site]) -> tuple[Site, ...]:
        """Those of `among` that match the patterns; all of them without patterns."""
        if not patterns:
            return tuple(among)
        wanted = find_sites(self.loaded.model, patterns)
        missing = [site.key for site in wanted if site not in among]
        if missing:
            raise StoreError(
                f"{self.folder.path}: no result for {', '.join(missing[:5])}; there is "
                f"{', '.join(site.key for site in among)}"
            )
        return wanted

    def modes(self, patterns: Sequence[str] = ()) -> tuple[Modes, ...]:
        """Fitted modes of the sites that match.

        Raises
        ------
        StoreError
            A site has none.
        """
        fitted = self.sites(self.plan.fit.sites, self.store.sites)
        chosen = self.sites(patterns, fitted)
        folders = [self.folder.modes(site.key, self.plan.fit.name) for site in chosen]
        for site, folder in zip(chosen, folders, strict=True):
            if not (folder / "modes.zarr").is_dir():
                raise StoreError(f"{folder}: no modes of {site.key} yet; run 'condec fit' first")
        return tuple(Modes.load(folder, self.store) for folder in folders)

    def digest(self, *parts: Any) -> str:
        """Hash of what a step is made from: these, the store, and the version of condec."""
        return digest(*parts, self.store.config_hash, metadata.version("condec"))

    def each(self, items: Sequence[Any], text: str) -> Iterator[Any]:
        """Go through items behind a progress bar; one alone has none."""
        console = Console(stderr=True)
        yield from track(items, text, console=console, disable=not self.progress or len(items) < 2)


def collect(run: Run) -> Outcome:
    """Contributions of all inputs, into the store, then those of its controls.

    Goes on where it was interrupted.
    """
    plan, folder, started = run.plan.collect, run.folder, time.perf_counter()
    twins = {control.name: folder.twin(control.name) for control in plan.controls}
    stores = (folder.store, *twins.values())
    kept = all(path.exists() and Store.open(path).is_complete for path in stores)
    with _logged(run, "collect"):
        model, inputs, sites = run.loaded.model, run.inputs, run.plan.sites
        for control in plan.controls:
            control.check(model, inputs)
        options: dict[str, Any] = {
            "method": plan.method,
            "target": plan.target,
            "batch_size": plan.batch_size,
            "shard_size": plan.shard_size,
            "on_bad": plan.on_bad,
            "progress": run.progress,
        }
        store = collection.collect(model, inputs, sites, out=folder.store, **options)
        for control in plan.controls:
            if run.progress:
                Console(stderr=True).print(f"control {control.name}", markup=False)
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
    return _link(run, "stats", [_Step("stats", made_from, make)])


def fit(run: Run) -> Outcome:
    """A dictionary for every site, and its modes, into modes/<site>/<learner>/."""
    plan = run.plan.fit
    sites = run.sites(plan.sites, run.store.sites)

    def make(site: Site) -> list[Path]:
        report = fit_dictionary(
            plan.learner_for(run.store.info(site).n_units),
            run.store.matrix(site, sign=plan.sign),
            config=plan.train,
            progress=run.progress,
        )
        folder = run.folder.modes(site.key, plan.name)
        modes = Modes.build(
            report.dictionary,
            run.store,
            site,
            plan.sign,
            held_out_rows=report.held_out_rows,
            name=plan.name,
        )
        _forget_results(run.folder, site, plan.name)
        report.save(folder)
        return [modes.save(folder), folder / "dictionary.json"]

    steps = [_Step(f"fit {s.key}", _fit_digest(run, s), partial(make, s)) for s in sites]
    return _link(run, "fit", steps)


def _forget_results(folder: RunFolder, site: Site, name: str) -> None:
    """Remove what was made from a site's earlier modes: it says nothing about the new ones."""
    folder.forget("control", [folder.table("control"), folder.table("control_auc")])
    folder.forget(f"control {site.key}", [folder.table(folder.control(site.key, name))])
    folder.forget(f"map {site.key}", [folder.maps(site.key, name)])


def control(run: Run) -> Outcome:
    """Control curves of every chosen site, into analysis/control.parquet.

    A site of which no mode is alive is left out, with a note.
    """
    import pandas

    plan, folder, name = run.plan.control, run.folder, run.plan.fit.name
    run.inputs.needed_labels("control")
    chosen, notes = _with_modes(run.modes(plan.sites))

    def make(modes: Modes) -> list[Path]:
        curves = [
            control_curve(
                run.model_of_store,
                run.inputs,
                modes,
                labels=plan.labels or None,
                fractions=plan.fractions,
                edit=edit,
                replacement=replacement,
                n_random=plan.n_random,
                seed=plan.seed,
                batch_size=plan.batch_size,
            )
            for edit in plan.edits
            for replacement in plan.replacements
        ]
        return [folder.write_table(folder.control(modes.site.key, name), pandas.concat(curves))]

    def join() -> list[Path]:
        parts = [folder.table(folder.control(modes.site.key, name)) for modes in chosen]
        curves = pandas.concat([pandas.read_parquet(part) for part in parts], ignore_index=True)
        areas = auc_difference(curves)
        return [folder.write_table("control", curves), folder.write_table("control_auc", areas)]

    digests = {m.site.key: run.digest(_fit_digest(run, m.site), plan) for m in chosen}
    steps = [_Step(f"control {m.site.key}", digests[m.site.key], partial(make, m)) for m in chosen]
    if chosen:
        steps.append(_Step("control", run.digest(digests), join))
    return replace(_link(run, "control", steps), notes=notes)


def maps(run: Run) -> Outcome:
    """Input-space maps of every chosen site, into analysis/maps/<site>/<learner>.npz.

    A site of which no mode is alive is left out, with a note.
    """
    plan = run.plan.maps
    chosen, notes = _with_modes(run.modes(plan.sites))

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
        _Step(f"map {m.site.key}", run.digest(_fit_digest(run, m.site), plan), partial(make, m))
        for m in chosen
    ]
    return replace(_link(run, "map", steps), notes=notes)


def _with_modes(chosen: Sequence[Modes]) -> tuple[list[Modes], tuple[str, ...]]:
    """Those that have an alive mode, and a note for each of the others."""
    dead = tuple(f"{m.site.key}: left out, no mode is alive" for m in chosen if not len(m))
    return [modes for modes in chosen if len(modes)], dead


def report(run: Run) -> Outcome:
    """The static site, into report/index.html."""
    from condec.report import build_report

    folder = run.folder
    made_from = sorted(
        (file.name, file.read_text(encoding="utf-8"))
        for file in (folder.path / "steps").glob("*.json")
        if file.name != "report.json"
    )

    def make() -> list[Path]:
        build_report(folder.path)
        return [folder.report]

    controls = [control.name for control in run.plan.collect.controls]
    described = (run.plan.report, run.plan.model, run.plan.data, controls)
    return _link(run, "report", [_Step("report", run.digest(made_from, described), make)])


FUNCTIONS: Final[dict[Link, Callable[[Run], Outcome]]] = {
    "collect": collect,
    "stats": stats,
    "fit": fit,
    "control": control,
    "map": maps,
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


def _fit_digest(run: Run, site: Site) -> str:
    plan = run.plan.fit
    return run.digest(site.key, plan.learner, plan.modes_per_unit, plan.train, plan.sign)


@dataclass(frozen=True, eq=False)
class _Step:
    """A part of a link: its name, what it is made from, and how its outputs are made."""

    name: str
    made_from: str
    make: Callable[[], list[Path]]


def _link(run: Run, link: Link, steps: Sequence[_Step]) -> Outcome:
    """Do those steps of a link whose inputs have changed, or whose outputs are gone."""
    folder, started = run.folder, time.perf_counter()
    open_steps = [s for s in steps if run.again or not folder.is_done(s.name, s.made_from)]
    outputs: list[Path] = []
    with _logged(run, link):
        # Fitting shows a bar for every site by itself.
        for step in open_steps if link == "fit" else run.each(open_steps, link):
            # Gone first: outputs that are half replaced must not count as those of before.
            folder.forget(step.name)
            made = step.make()
            folder.mark_done(step.name, step.made_from, made)
            outputs += made
    state = "made" if open_steps else "kept" if steps else "left out"
    return Outcome(link, state, tuple(outputs), time.perf_counter() - started)


@contextmanager
def _logged(run: Run, link: Link) -> Iterator[None]:
    """One line in the log when a link begins, and one when it ends, however it ends."""
    started = time.perf_counter()
    run.folder.log("start", link=link)
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # On a full disk, the first error is the one to show.
            run.folder.log("failed", link=link, error=f"{type(error).__name__}: {error}")
        raise
    run.folder.log("end", link=link, seconds=round(time.perf_counter() - started, 3))
