"""Sweeps: many dictionaries of one store, over learners, widths, sparsities and seeds.

The folder of a sweep:

sweep.toml                         the plan
fits/<site>/<learner>/<id>/        dictionary.json, dictionary.safetensors, and last fit.json
stability/<id>.json                how alike the fits of one configuration are
checkpoints/                       of fits that were interrupted; gone when all are done
results.parquet                    one row a fit
pareto.png                         R2 against L0, a panel a site
"""

import dataclasses
import itertools
import json
import math
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import tomli_w
import torch
from torch import Tensor

from condec.basis.errors import CondecError, StoreError
from condec.basis.files import to_json
from condec.basis.progress import progress_bar
from condec.basis.records import short_repr
from condec.dictionary import (
    FitReport,
    Job,
    Learner,
    TrainConfig,
    alive_modes,
    best_at_equal_l0,
    fit_many,
    load_dictionary,
    over_seeds,
    pareto_front,
    seed_agreement,
)
from condec.dictionary.fitting.gradient import GradientLearner
from condec.dictionary.fitting.rows import StoredRows, check_freeze, prepare
from condec.dictionary.fitting.rows import fits as fits_in
from condec.dictionary.fitting.train import MANY_DEAD
from condec.network import Site, match_sites
from condec.run.plan import digest
from condec.run.sweep_plan import Configuration, SweepPlan, from_dict, option_text, read, to_dict
from condec.store import RunFolder, Store
from condec.store.folder import to_parquet

__all__ = ["SweepPlan", "SweepResult", "from_dict", "read", "sweep", "sweep_words", "to_dict"]

if TYPE_CHECKING:
    import pandas

Move = Callable[..., None]
_AT_ONCE: Final = 4 * 2**30
"""Bytes of dictionaries in memory at a time: longer lists of fits are done in parts."""


@short_repr
@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a sweep did, and what came of it.

    Attributes
    ----------
    plan : SweepPlan
    table : pandas.DataFrame
        One row a fit: `site`, `configuration`, `learner`, `n_units`, `n_modes`,
        `modes_per_unit`, the options that the plan names (missing where a learner has no such),
        `seed`; every field of `Quality`, of the held-out rows, and with ``_train`` of
        the training rows; `n_epochs`, `seconds`; `stability` over the seeds (missing for a
        single one); `on_front`, whether the means over the seeds are on the front of R2 against
        L0; `folder` of the dictionary.
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


@dataclass(frozen=True, eq=False)
class _Fit:
    """One fit of the list; it is done when its record is there."""

    site: Site
    configuration: Configuration
    learner: Learner
    config: TrainConfig
    n_units: int
    folder: Path

    @property
    def n_bytes(self) -> int:
        # Of an entry of the atoms: float32, the encoder's weight for it, and some more.
        return 12 * self.learner.n_modes * self.n_units

    @property
    def record(self) -> dict[str, Any] | None:
        parts = ("dictionary.json", "dictionary.safetensors")
        whole = all((self.folder / part).is_file() for part in parts)
        return _read(self.folder / "fit.json") if whole else None


def sweep(plan: SweepPlan, *, progress: bool = True) -> SweepResult:
    """Fit every configuration at every site with every seed, and compare them.

    A fit that is done is kept; one that was interrupted goes on where it stopped; a changed
    plan or store makes only the fits that it changes. Fits of an earlier plan stay in the
    folder, and are in the table of a plan that asks for them again.

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
    store, folder = Store.open(plan.store), RunFolder(plan.out)
    fits = _all_fits(plan, store)
    undone = {fit.folder for fit in fits if fit.record is None}
    _check(plan, store, [fit for fit in fits if fit.folder in undone])
    content = tomli_w.dumps(to_dict(plan, folder=plan.out)).encode()
    folder.write(plan.out / "sweep.toml", content)
    with progress_bar("fits", len(fits), done=len(fits) - len(undone), shown=progress) as move:
        for _, of_site in itertools.groupby(fits, key=lambda fit: fit.site):
            every = list(of_site)
            n_at_once = max(1, _AT_ONCE // max(fit.n_bytes for fit in every))
            for start in range(0, len(every), n_at_once):
                # Parts are of all fits, done or not: they stay the same when a sweep goes on.
                part = every[start : start + n_at_once]
                left = [fit for fit in part if fit.folder in undone]
                checkpoints = plan.out / "checkpoints" / digest([fit.folder.name for fit in part])
                if left:
                    _fit_together(plan, store, left, checkpoints, move)
    shutil.rmtree(plan.out / "checkpoints", ignore_errors=True)
    table = _table(plan, fits, _stability(plan, fits, progress=progress))
    files = [folder.write(plan.out / "results.parquet", to_parquet(table))]
    if bool((table["l0"] > 0).any()):
        from condec.report.figures import pareto_figure, save_figure

        with TemporaryDirectory() as place:
            content = save_figure(pareto_figure(table), Path(place) / "pareto.png").read_bytes()
        files.append(folder.write(plan.out / "pareto.png", content))
    seconds, n_made = time.perf_counter() - started, len(undone)
    return SweepResult(plan, table, n_made, len(fits) - n_made, seconds, tuple(files))


def _all_fits(plan: SweepPlan, store: Store) -> list[_Fit]:
    """List sites x configurations x seeds."""
    fits = []
    for site in match_sites(store.sites, plan.sites) if plan.sites else store.sites:
        n_units = store.info(site).n_units
        for configuration, seed in itertools.product(plan.configurations, plan.seeds):
            learner = configuration.fit.learner_for(n_units)
            train = replace(configuration.fit.train, seed=seed)
            version = (store.config_hash, metadata.version("condec"))
            identity = digest(site.key, plan.quantity, plan.sign, learner, train, *version)
            folder = plan.out / "fits" / quote(site.key, safe="") / configuration.fit.name
            fits.append(_Fit(site, configuration, learner, train, n_units, folder / identity))
    return fits


def _check(plan: SweepPlan, store: Store, fits: Sequence[_Fit]) -> None:
    """Refuse what a learner cannot fit, at the start and not after hours."""

    def preparation(fit: _Fit) -> tuple[str, ...]:
        train, by_descent = fit.config, isinstance(fit.learner, GradientLearner)
        how = (train.scaling, train.centre, train.held_out, train.split_seed, by_descent)
        return (fit.site.key, *map(str, how))

    for _, alike in itertools.groupby(sorted(fits, key=preparation), key=preparation):
        ready = None  # Prepared rows are copies: one at a time, for all fits that see the same.
        for fit in alike:
            try:
                check_freeze(fit.learner, fit.config)
                if ready is None:
                    rows = store.rows(fit.site, plan.quantity, plan.sign)
                    ready = prepare(fit.learner, rows, fit.config, None)
                fit.learner.check(ready.rows.sample)
            except CondecError as error:
                raise type(error)(f"{fit.site.key}: {fit.configuration.name}: {error}") from error


def _fit_together(
    plan: SweepPlan, store: Store, fits: Sequence[_Fit], checkpoints: Path, move: Move
) -> None:
    """Fit a list of one site, and write each fit with its record as soon as it is done."""
    rows = store.rows(fits[0].site, plan.quantity, plan.sign)
    # Small fits run as one only where their rows are in memory.
    in_memory = fits_in(rows, min(fit.config.memory_gib for fit in fits))
    matrix: Tensor | StoredRows = rows.all() if in_memory else rows
    by_name = {fit.folder.name: fit for fit in fits}

    def on_done(name: str, report: FitReport) -> None:
        file = by_name[name].folder / "fit.json"
        file.unlink(missing_ok=True)
        report.save(file.parent)
        record = {
            "metrics": {k: dataclasses.asdict(v) for k, v in report.metrics.items()},
            "n_epochs": len(report.history),
            "seconds": report.seconds,
            "alive": alive_modes(report.dictionary, matrix).nonzero().flatten().tolist(),
        }
        RunFolder(plan.out).write(file, to_json(record))
        move(advance=1)

    with warnings.catch_warnings():
        # Of dead modes: the table has their share, and the words at the end say how many fits.
        warnings.filterwarnings("ignore", message="fit: ", category=UserWarning)
        jobs = {name: Job(fit.learner, matrix, config=fit.config) for name, fit in by_name.items()}
        fit_many(jobs, folder=checkpoints, on_done=on_done)


def _stability(plan: SweepPlan, fits: Sequence[_Fit], *, progress: bool) -> dict[str, float]:
    """Measure how alike the fits of a site and configuration are, by names of their folders."""
    groups: dict[tuple[str, str], list[_Fit]] = defaultdict(list)
    for fit in fits:
        groups[fit.site.key, fit.configuration.name].append(fit)
    found: dict[str, float] = {}
    with progress_bar("stability", len(groups), shown=progress) as move:
        for group in groups.values():
            file = plan.out / "stability" / f"{digest([fit.folder.name for fit in group])}.json"
            known = {} if len(group) == 1 else _read(file)
            if known is None:
                values = seed_agreement([_alive_atoms(fit) for fit in group]).tolist()
                known = {fit.folder.name: v for fit, v in zip(group, values, strict=True)}
                RunFolder(plan.out).write(file, to_json(known))
            found |= known
            move(advance=1)
    return found


def _alive_atoms(fit: _Fit) -> Tensor:
    try:
        dictionary = load_dictionary(fit.folder)
    except StoreError as error:
        raise StoreError(f"{error} Remove {fit.folder} and run the same sweep again.") from error
    return dictionary.atoms[torch.tensor((fit.record or {})["alive"]).long()]


def _table(
    plan: SweepPlan, fits: Sequence[_Fit], stability: Mapping[str, float]
) -> "pandas.DataFrame":
    """Make the table of a `SweepResult`."""
    import pandas as pd

    named = dict.fromkeys(name for c in plan.configurations for name in c.options)
    rows = []
    for fit in fits:
        record = fit.record or {}
        metrics = record["metrics"]["held_out"] | {
            f"{name}_train": value for name, value in record["metrics"]["train"].items()
        }
        options = {name: fit.configuration.options.get(name) for name in named}
        rows.append({
            "site": fit.site.key,
            "configuration": fit.configuration.name,
            "learner": fit.configuration.fit.name,
            "n_units": fit.n_units,
            "n_modes": fit.learner.n_modes,
            "modes_per_unit": fit.learner.n_modes / fit.n_units,
            **{n: option_text(v) if isinstance(v, tuple) else v for n, v in options.items()},
            "seed": fit.config.seed,
            **{name: math.nan if value is None else value for name, value in metrics.items()},
            "n_epochs": record["n_epochs"],
            "seconds": record["seconds"],
            "stability": stability.get(fit.folder.name, math.nan),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    for name in named:
        # Whole numbers stay whole although other learners have no such option.
        table[name] = table[name].astype(object).convert_dtypes()
    keys = ["site", "configuration"]
    means = over_seeds(table)
    front = pd.MultiIndex.from_frame(means.loc[pareto_front(means), keys])
    table["on_front"] = pd.MultiIndex.from_frame(table[keys]).isin(front)
    table["folder"] = [fit.folder.relative_to(plan.out).as_posix() for fit in fits]
    return table


def sweep_words(table: "pandas.DataFrame") -> str:
    """Say what the table of a `SweepResult` shows: which configuration is best at equal L0."""
    means = over_seeds(table)
    best = best_at_equal_l0(means).merge(means[["site", "configuration", "stability"]], how="left")
    best = best.drop(columns=["learner", "n_seeds", "next_learner", "next_n_seeds"])
    many = int((table["dead_share"] > MANY_DEAD).sum())
    return (
        "Best at about equal L0, on held-out rows, and the best of another learner (means over "
        f"seeds):\n{best.to_string(index=False, float_format='{:.3f}'.format, na_rep='')}\n"
        f"{many} of {len(table)} dictionaries have more than {MANY_DEAD:.0%} dead modes."
    )


def _read(file: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record
