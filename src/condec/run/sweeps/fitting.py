"""Carrying a sweep out: which fits are left to do, doing them, and what came of all of them."""

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from condec.basis.errors import CondecError, StoreError
from condec.dictionary import (
    FitReport,
    Job,
    Learner,
    TrainConfig,
    alive_modes,
    fit_many,
    seed_agreement,
)
from condec.dictionary.fitting.gradient import GradientLearner
from condec.dictionary.fitting.many import bar
from condec.dictionary.fitting.prepared import Prepared, check_freeze, prepare
from condec.dictionary.fitting.rows import StoredRows
from condec.dictionary.fitting.rows import fits as fits_in
from condec.network import Site, match_sites
from condec.report.figures import pareto_figure, save_figure
from condec.run.plan import digest
from condec.run.sweeps.folder import SweepFolder
from condec.run.sweeps.plan import Configuration, SweepPlan
from condec.run.sweeps.results import Fitted, results_table, sweep_words
from condec.store import Store

if TYPE_CHECKING:
    import pandas

_AT_ONCE: Final = 4 * 2**30
"""Bytes of dictionaries in memory at a time: longer lists of fits are done in parts."""
_BYTES_A_WEIGHT: Final = 12
"""Of an entry of the atoms: float32, the encoder's weight for it, and some more."""


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep did, and what came of it.

    Attributes
    ----------
    plan : SweepPlan
    table : pandas.DataFrame
        One row a fit, as `condec.run.sweeps.results.results_table` makes it.
    n_made, n_kept : int
        Fits that were made now, and that had been made before.
    seconds : float
    files : tuple of Path
        Table and figure.
    """

    plan: SweepPlan
    table: "pandas.DataFrame"
    n_made: int
    n_kept: int
    seconds: float
    files: tuple[Path, ...]

    def words(self) -> str:
        """What the sweep found, in words: at about equal L0, which configuration is best."""
        return sweep_words(self.table)


@dataclass(frozen=True, eq=False)
class _Fit:
    """One fit of the list."""

    site: Site
    configuration: Configuration
    learner: Learner
    config: TrainConfig
    n_units: int
    folder: Path

    @property
    def n_bytes(self) -> int:
        return _BYTES_A_WEIGHT * self.learner.n_modes * self.n_units


def sweep(plan: SweepPlan, *, progress: bool = True) -> SweepResult:
    """Fit every configuration at every site with every seed, as one list, and compare them.

    A fit that is done is kept; one that was interrupted goes on where it stopped; a changed
    plan or store makes only the fits that it changes. Fits of an earlier plan stay in the
    folder, and are in the table of a plan that asks for them again.

    Parameters
    ----------
    plan : SweepPlan
    progress : bool
        Show a bar on standard error.

    Raises
    ------
    StoreError
        There is no store, it is not complete, or the results cannot be written.
    SiteError
        A pattern fits no site of the store.
    DataError
        A learner cannot fit a site's rows; found before anything is fitted.
    """
    started = time.perf_counter()
    if not plan.store.exists():
        raise StoreError(f"{plan.store}: no contributions yet; run 'condec collect' first")
    store, folder = Store.open(plan.store), SweepFolder(plan.out)
    fits = _all_fits(plan, store, folder)
    undone = {f.folder.name for f in fits if folder.fit_record(f.folder) is None}
    _check(plan, store, [f for f in fits if f.folder.name in undone])
    folder.write_plan(plan)
    with bar(progress, "fits", len(fits), len(fits) - len(undone)) as advance:
        for part in _parts(fits):
            left = [f for f in part if f.folder.name in undone]
            if left:
                place = folder.checkpoints / digest([f.folder.name for f in part])
                _fit_part(plan, store, folder, left, place, advance)
    folder.clear_checkpoints()
    agreements = _stability(folder, fits, progress=progress)
    table = results_table([
        Fitted(
            site=f.site.key,
            configuration=f.configuration,
            learner=f.learner,
            seed=f.config.seed,
            n_units=f.n_units,
            folder=f.folder.relative_to(plan.out),
            record=folder.fit_record(f.folder) or {},
            stability=agreements.get(f.folder.name),
        )
        for f in fits
    ])  # fmt: skip
    files = (folder.write_table(table), *_figure(folder, table))
    seconds = time.perf_counter() - started
    return SweepResult(plan, table, len(undone), len(fits) - len(undone), seconds, files)


def _figure(folder: SweepFolder, table: "pandas.DataFrame") -> Iterator[Path]:
    """The figure, whole or not at all; none where no fit has loadings."""
    if bool((table["l0"] > 0).any()):
        with TemporaryDirectory() as place:
            content = save_figure(pareto_figure(table), Path(place) / "pareto.png").read_bytes()
        yield folder.write(folder.figure, content)


def _all_fits(plan: SweepPlan, store: Store, folder: SweepFolder) -> list[_Fit]:
    """Sites x configurations x seeds, each once."""
    sites = match_sites(store.sites, plan.sites) if plan.sites else store.sites
    found: dict[tuple[str, str, int], _Fit] = {}
    for site in sites:
        n_units = store.info(site).n_units
        for configuration in plan.configurations:
            learner = configuration.fit.learner_for(n_units)
            for seed in plan.seeds:
                config = replace(configuration.fit.train, seed=seed)
                identity = digest(
                    site.key, plan.quantity, plan.sign, learner, config,
                    store.config_hash, metadata.version("condec"),
                )  # fmt: skip
                place = folder.fit(site.key, configuration.fit.name, identity)
                key = (site.key, configuration.name, seed)
                found[key] = _Fit(site, configuration, learner, config, n_units, place)
    return list(found.values())


def _check(plan: SweepPlan, store: Store, fits: Sequence[_Fit]) -> None:
    """Refuse what a learner cannot fit, at the start and not after hours."""
    by_site: dict[Site, list[_Fit]] = defaultdict(list)
    for fit in fits:
        by_site[fit.site].append(fit)
    for site, those in by_site.items():
        rows = store.rows(site, plan.quantity, plan.sign)
        ready: tuple[object, Prepared] | None = None
        for fit in sorted(those, key=_preparation):
            try:
                check_freeze(fit.learner, fit.config)
                # One at a time: prepared rows are copies.
                if ready is not None and ready[0] == _preparation(fit):
                    fit.learner.check(ready[1].rows.sample)
                else:
                    ready = None
                    ready = (_preparation(fit), prepare(fit.learner, rows, fit.config, None))
            except CondecError as error:
                raise type(error)(f"{site.key}: {fit.configuration.name}: {error}") from error


def _preparation(fit: _Fit) -> tuple[str, ...]:
    """Equal for fits that see the same prepared rows."""
    config, by_descent = fit.config, isinstance(fit.learner, GradientLearner)
    how = (config.scaling, config.centre, config.held_out, config.split_seed, by_descent)
    return tuple(map(str, how))


def _parts(fits: Sequence[_Fit]) -> Iterator[list[_Fit]]:
    """The list, cut where the dictionaries would take too much memory.

    Of all fits, done or not, so that parts stay the same when a sweep goes on.
    """
    part: list[_Fit] = []
    for fit in fits:
        if part and sum(f.n_bytes for f in part) + fit.n_bytes > _AT_ONCE:
            yield part
            part = []
        part.append(fit)
    yield part


def _fit_part(
    plan: SweepPlan,
    store: Store,
    folder: SweepFolder,
    fits: Sequence[_Fit],
    checkpoints: Path,
    advance: Callable[[], None],
) -> None:
    matrices: dict[Site, Tensor | StoredRows] = {}
    least = min(fit.config.memory_gib for fit in fits)
    for site in dict.fromkeys(fit.site for fit in fits):
        rows = store.rows(site, plan.quantity, plan.sign)
        # Small fits run as one only where their rows are in memory.
        matrices[site] = rows.all() if fits_in(rows, least) else rows
    by_name = {fit.folder.name: fit for fit in fits}
    jobs = {n: Job(f.learner, matrices[f.site], config=f.config) for n, f in by_name.items()}

    def on_done(name: str, report: FitReport) -> None:
        fit = by_name[name]
        alive = alive_modes(report.dictionary, matrices[fit.site])
        folder.save_fit(fit.folder, report, alive)
        advance()

    with warnings.catch_warnings():
        # Of dead modes: the table has their share, and the words at the end say how many fits.
        warnings.filterwarnings("ignore", message="fit: ", category=UserWarning)
        fit_many(jobs, folder=checkpoints, on_done=on_done)


def _stability(folder: SweepFolder, fits: Sequence[_Fit], *, progress: bool) -> dict[str, float]:
    """Of every fit that has others of its site and configuration, by the name of its folder."""
    groups: dict[tuple[str, str], list[_Fit]] = defaultdict(list)
    for fit in fits:
        groups[fit.site.key, fit.configuration.name].append(fit)
    several = {digest([f.folder.name for f in g]): g for g in groups.values() if len(g) > 1}
    found: dict[str, float] = {}
    left = {}
    for identity, group in several.items():
        known = folder.stability(identity)
        if known is None:
            left[identity] = group
        found |= known or {}
    with bar(progress, "stability", len(left)) as advance:
        for identity, group in left.items():
            atoms = []
            for fit in group:
                alive = (folder.fit_record(fit.folder) or {})["alive"]
                atoms.append(folder.dictionary(fit.folder).atoms[torch.tensor(alive).long()])
            values = seed_agreement(atoms).tolist()
            measured = {f.folder.name: value for f, value in zip(group, values, strict=True)}
            folder.write_stability(identity, measured)
            found |= measured
            advance()
    return found
