"""Sweeps: many dictionaries of one store, over learners, widths, sparsities and seeds.

>>> plan = from_dict({
...     "run": "runs/demo",
...     "seeds": [0, 1],
...     "grid": [{"learner": "topk", "n_modes": ["1x", "3x"], "k": [2, 4, 8]}],
... })
>>> list(plan.configurations)[:2]
['topk 1x k=2', 'topk 1x k=4']
>>> plan.configurations["topk 3x k=4"].learner_for(32, 500)
TopKSAE(n_modes=96, k=4, aux_weight=0.03125)

Besides what docs/how-to/sweep.md lists, the folder of a sweep has fit.json of every fit, written
last; stability/, how alike the fits of one configuration are; and checkpoints/ of fits that were
interrupted, gone when all are done.
"""

import dataclasses
import itertools
import math
import shutil
import typing
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli_w
import torch
from pydantic import ConfigDict, create_model
from torch import Tensor

from condec import dictionary
from condec.basis.digests import digest, joint_digest
from condec.basis.errors import CondecError, OptionError, StoreError
from condec.basis.files import file_name, read_checked, store_path, user_path, with_checksum
from condec.basis.locks import held
from condec.basis.objects import ObjectPath
from condec.basis.progress import progress_bar
from condec.basis.records import short_repr
from condec.dictionary import Learner, TrainConfig
from condec.dictionary.fitting.rows import StoredRows, check_freeze, prepare
from condec.dictionary.fitting.rows import fits as fits_in
from condec.dictionary.fitting.train import MANY_DEAD
from condec.network import Site, match_sites
from condec.run import config
from condec.run.plan import LEARNERS, FitPlan
from condec.store import Quantity, Rows, RunFolder, Sign, Store
from condec.store.folder import to_parquet
from condec.store.matrix import StoredMatrix

if TYPE_CHECKING:
    import pandas

Move = Callable[..., None]
_AT_ONCE: Final = 4 * 2**30
"""Bytes of dictionaries in memory at a time: longer lists of fits are done in parts."""
_MOST_FITS: Final = 100_000
_FILE: Final = create_model(
    "sweep", __config__=ConfigDict(extra="forbid", strict=True),
    run=(str | None, None), store=(str | None, None), out=(str, "sweep"),
    sites=(config.list_of(str), ()), seeds=(config.list_of(int), (0, 1, 2)),
    quantity=(Quantity, "contribution"), sign=(Sign, "positive"), rows=(Rows, "samples"),
    train=(dict[str, Any], {}), grid=(list[dict[str, Any]], ()),
)  # fmt: skip
"""Content of a sweep.toml; keys of [train] and [[grid]] depend on the learner."""


@short_repr
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """The fits of a sweep: every configuration, at every site, with every seed.

    Names of configurations are the learner, its number of modes, and the options in which fits
    differ; `options` are those that the grids name, columns of the table; `record` is the
    content of sweep.toml.
    """

    store: Path
    out: Path
    sites: tuple[str, ...]
    quantity: Quantity
    sign: Sign
    rows: Rows
    seeds: tuple[int, ...]
    configurations: Mapping[str, FitPlan]
    options: tuple[str, ...]
    record: Mapping[str, Any]


@short_repr
@dataclass(frozen=True, eq=False)
class SweepResult:
    """Results of a sweep.

    `table` has one row a fit: what was fitted, with the options that the plan names; every field of
    `Quality`, of the held-out rows, and with ``_train`` of the training rows; `stability` over the
    seeds (missing for a single one); `on_front`, whether the means over the seeds are on the front
    of R2 against L0; `folder` of the dictionary. `n_made` fits were made now, `n_kept` before;
    `files` are the table and the figure.
    """

    table: "pandas.DataFrame"
    n_made: int
    n_kept: int
    files: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class _Fit:
    """One fit of the list; it is done when its record and its dictionary are there."""

    site: Site
    configuration: str
    learner: Learner
    config: TrainConfig
    n_units: int
    folder: Path

    @property
    def record(self) -> dict[str, Any] | None:
        record = _read(self.folder / "fit.json")
        return record if record and record.get("sha256") == self.digest() else None

    def digest(self) -> str:
        parts = ("dictionary.json", "dictionary.safetensors")
        return joint_digest(self.folder, [self.folder / part for part in parts])

    @property
    def result(self) -> dict[str, Any]:
        """The record of a fit that was done a moment ago."""
        record = self.record
        if record is None:
            raise StoreError(
                f"{self.folder}: the fit was done and is gone; is another sweep at work in the "
                "same folder? Wait for its end, then run the same again"
            )
        return record


def read(path: str | Path) -> SweepPlan:
    """Read a plan from a sweep.toml, or the one in a folder of results; OptionError without."""
    return config.read_file(path, "sweep.toml", from_dict)


def from_dict(record: Mapping[str, Any], *, folder: str | Path = ".") -> SweepPlan:
    """Make a plan from the content of a sweep.toml; its paths start from `folder`.

    Raises OptionError: a key or a learner does not exist, a value is of the wrong kind, no grid or
    seed is given or one twice, or a configuration holds no rows out.
    """
    defaults = {name: field.default for name, field in _FILE.model_fields.items()}
    found = defaults | config.checked(_FILE, record)
    written = {key: found[key] for key in ("run", "store") if found[key] is not None}
    given = {key: store_path(text, folder) for key, text in written.items()}
    if len(given) != 1:
        raise OptionError(
            "expected either run (a run folder or a run.toml) or store (a store of "
            f"contributions); got {' and '.join(given) or 'neither'}"
        )
    ((kind, path),) = given.items()
    if kind == "run":
        path = RunFolder(config.read(path).out if path.suffix == ".toml" else path).store
    if not found["grid"]:
        raise OptionError('grid: none is given; add one, such as [[grid]] learner = "topk"')
    if not found["seeds"] or len(set(found["seeds"])) < len(found["seeds"]):
        shown = ", ".join(map(str, found["seeds"])) or "none"
        raise OptionError(f"seeds: expected one or more, all different; got {shown}")
    fits: list[tuple[str, FitPlan]] = []
    for number, grid in enumerate(found["grid"], 1):
        try:
            fits += _fits({**found["train"], **grid}, found["sign"])
        except OptionError as error:
            raise OptionError(f"grid {number}: {error}") from error
    keys = [key for table in (found["train"], *found["grid"]) for key in table]
    names = tuple(dict.fromkeys(key for key in keys if key not in ("learner", "n_modes")))
    texts = [{n: _text(v) for n, v in _options(fit, names).items()} for _, fit in fits]
    differ = [n for n in names if len({own[n] for own in texts if n in own}) > 1]
    configurations = dict[str, FitPlan]()
    for (size, fit), own in zip(fits, texts, strict=True):
        name = " ".join([fit.name, size, *(f"{n}={own[n]}" for n in differ if n in own)])
        configurations.setdefault(name, fit)
        if not fit.train.held_out:
            raise OptionError(f"{name}: fits are compared on held-out rows: held_out is 0")
        for seed in found["seeds"]:
            replace(fit.train, seed=seed)
    return SweepPlan(
        store=path, out=user_path(found["out"], folder), configurations=configurations,
        options=names, record=record,
        **{name: found[name] for name in ("sites", "quantity", "sign", "rows", "seeds")},
    )  # fmt: skip


def _fits(grid: Mapping[str, Any], sign: Sign) -> list[tuple[str, FitPlan]]:
    """Make every combination of a grid: a list is a choice, one value a choice of one."""
    learner = grid.get("learner")
    if not isinstance(learner, str) or learner not in LEARNERS:
        raise OptionError(f"learner: expected one of {', '.join(LEARNERS)}; got {learner!r}")
    if "seed" in grid:
        raise OptionError("seeds are given once for all grids, as seeds")
    kinds = typing.get_type_hints(TrainConfig) | typing.get_type_hints(LEARNERS[learner])
    choices = []
    for name, value in grid.items():
        if name not in kinds and name != "learner":
            raise OptionError(config.unknown_key("grid", name, kinds))
        values = value if isinstance(value, list) else [value]
        if not values:
            raise OptionError(f"{name}: no value is given; give one or more")
        # Values may be lists themselves: a list of numbers is then one value.
        if typing.get_origin(kinds.get(name)) is tuple and not isinstance(values[0], list):
            values = [values]
        choices.append(values)
    if (number := math.prod(map(len, choices))) > _MOST_FITS:
        raise OptionError(f"{number:,} configurations; expected {_MOST_FITS:,} at most in a grid")
    fits = []
    for chosen in itertools.product(*choices):
        record = {"sign": sign, **dict(zip(grid, chosen, strict=True))}
        size = record.get("n_modes", config.DEFAULT_MODES[learner])
        fits.append((str(size), config.from_dict({"sites": "*", "fit": record}).fit))
    return fits


def sweep(plan: SweepPlan, *, progress: bool = True) -> SweepResult:
    """Fit every configuration at every site with every seed, and compare them.

    A fit that is done is kept; one that was interrupted goes on at its checkpoint, and the sweep
    ends with the dictionaries of an undisturbed one, byte for byte; a changed plan or store makes
    only the fits that it changes. Fits of an earlier plan stay in the
    folder, and are in the table of a plan that asks for them again.

    Raises StoreError: there is no store, it is not complete, or the results cannot be written;
    SiteError: a pattern fits no site of the store; DataError: a learner cannot fit a site's rows,
    found before anything is fitted.
    """
    if not plan.store.exists():
        far = isinstance(plan.store, ObjectPath)
        first = "run collect first" if far else RunFolder(plan.store.parent).first("collect")
        raise StoreError(f"{plan.store}: no contributions yet; {first}")
    store = Store.open(plan.store)
    with held(plan.out):
        return _sweep(plan, store, progress=progress)


def _sweep(plan: SweepPlan, store: Store, *, progress: bool) -> SweepResult:
    folder = RunFolder(plan.out)
    fits = _all_fits(plan, store)
    undone = {fit.folder for fit in fits if fit.record is None}
    _check(plan, store, [fit for fit in fits if fit.folder in undone])
    paths = {n: config.relative(getattr(plan, n), plan.out.resolve()) for n in ("store", "out")}
    record = {name: value for name, value in plan.record.items() if name != "run"} | paths
    folder.write(plan.out / "sweep.toml", tomli_w.dumps(record).encode())
    with progress_bar("fits", len(fits), done=len(fits) - len(undone), shown=progress) as move:
        for _, of_site in itertools.groupby(fits, key=lambda fit: fit.site):
            every = list(of_site)
            # Of an entry of the atoms: float32, the encoder's weight for it, and some more.
            n_bytes = 12 * max(fit.learner.n_modes * fit.n_units for fit in every)
            n_at_once = max(1, _AT_ONCE // n_bytes)
            for start in range(0, len(every), n_at_once):
                # Parts are of all fits, done or not: they stay the same when a sweep goes on.
                part = every[start : start + n_at_once]
                checkpoints = plan.out / "checkpoints" / digest([fit.folder.name for fit in part])
                done = {fit.folder.name for fit in part if fit.folder not in undone}
                if len(done) < len(part):
                    _fit_together(plan, store, part, done, checkpoints, move)
    shutil.rmtree(plan.out / "checkpoints", ignore_errors=True)
    table = _table(plan, fits, _stability(plan, fits, progress=progress))
    files = [folder.write(plan.out / "results.parquet", to_parquet(table))]
    if bool((table["l0"] > 0).any()):
        from condec.report.figures import pareto_figure, save_figure

        files.append(save_figure(pareto_figure(table), plan.out / "pareto.png"))
    return SweepResult(table, len(undone), len(fits) - len(undone), tuple(files))


def _all_fits(plan: SweepPlan, store: Store) -> list[_Fit]:
    """List sites x configurations x seeds."""
    fits = []
    for site in match_sites(store.sites, plan.sites) if plan.sites else store.sites:
        n_units, n_rows = store.info(site).n_units, _rows(plan, store, site).shape[0]
        for (name, fit), seed in itertools.product(plan.configurations.items(), plan.seeds):
            learner, train = fit.learner_for(n_units, n_rows), replace(fit.train, seed=seed)
            version = [store.config_hash, metadata.version("condec")]
            version += [plan.rows] if plan.rows == "positions" else []
            identity = digest(site.key, plan.quantity, plan.sign, learner, train, *version)
            folder = plan.out / "fits" / file_name(site.key) / fit.name / identity
            fits.append(_Fit(site, name, learner, train, n_units, folder))
    return fits


def _rows(plan: SweepPlan, store: Store, site: Site) -> StoredMatrix:
    return store.rows(site, plan.quantity, plan.sign, plan.rows)


def _check(plan: SweepPlan, store: Store, fits: Sequence[_Fit]) -> None:
    """Refuse what a learner cannot fit, at the start and not after hours."""
    ready: dict[Any, Tensor] = {}
    for fit in fits:
        train, by_descent = fit.config, fit.learner.by_descent
        how = (fit.site, train.scaling, train.centre, train.held_out, train.split_seed, by_descent)
        try:
            check_freeze(fit.learner, train)
            if how not in ready:
                ready.clear()  # Prepared rows are copies: one at a time.
                rows = _rows(plan, store, fit.site)
                ready[how] = prepare(fit.learner, rows, train, None).rows.sample
            fit.learner.check(ready[how])
        except CondecError as error:
            raise type(error)(f"{fit.site.key}: {fit.configuration}: {error}") from error


def _fit_together(
    plan: SweepPlan, store: Store, fits: Sequence[_Fit], done: set[str], checkpoints: Path,
    move: Move,
) -> None:  # fmt: skip
    """Fit what is left of a list of one site; write each fit with its record as soon as it is done.

    The whole list says which fits run as one: an interrupted sweep ends with the same bits.
    """
    rows = _rows(plan, store, fits[0].site)
    # Small fits run as one only where their rows are in memory.
    in_memory = fits_in(rows, min(fit.config.memory_gib for fit in fits))
    matrix: Tensor | StoredRows = rows.all() if in_memory else rows
    by_name = {fit.folder.name: fit for fit in fits}

    def on_done(name: str, report: dictionary.FitReport) -> None:
        file = by_name[name].folder / "fit.json"
        file.unlink(missing_ok=True)
        report.save(file.parent)
        record = {
            "metrics": {k: dataclasses.asdict(v) for k, v in report.metrics.items()},
            "n_epochs": len(report.history),
            "seconds": report.seconds,
            "alive": dictionary.alive_modes(report.dictionary, matrix).nonzero().flatten().tolist(),
            "sha256": by_name[name].digest(),
            "checksum": "",
        }
        RunFolder(plan.out).write(file, with_checksum(record))
        move(advance=1)

    with warnings.catch_warnings():
        # Of dead modes: the table has their share, and the words at the end say how many fits.
        warnings.filterwarnings("ignore", message="fit: ", category=UserWarning)
        jobs = {n: dictionary.Job(f.learner, matrix, config=f.config) for n, f in by_name.items()}
        dictionary.fit_many(jobs, folder=checkpoints, on_done=on_done, done=done)


def _stability(plan: SweepPlan, fits: Sequence[_Fit], *, progress: bool) -> dict[str, float]:
    """Measure how alike the fits of a site and configuration are, by names of their folders."""
    groups: dict[tuple[str, str], list[_Fit]] = defaultdict(list)
    for fit in fits:
        groups[fit.site.key, fit.configuration].append(fit)
    found: dict[str, float] = {}
    with progress_bar("stability", len(groups), shown=progress) as move:
        for group in groups.values():
            names = [fit.folder.name for fit in group]
            file = plan.out / "stability" / f"{digest(names)}.json"
            known = {} if len(group) == 1 else _read(file)
            if known is None:
                values = dictionary.seed_agreement([_alive_atoms(fit) for fit in group])
                known = dict(zip(names, values.tolist(), strict=True))
                RunFolder(plan.out).write(file, with_checksum({**known, "checksum": ""}))
            found |= known
            move(advance=1)
    return found


def _alive_atoms(fit: _Fit) -> Tensor:
    found = dictionary.load_dictionary(fit.folder)
    return found.atoms[torch.tensor(fit.result["alive"]).long()]


def _table(
    plan: SweepPlan, fits: Sequence[_Fit], stability: Mapping[str, float]
) -> "pandas.DataFrame":
    """Make the table of a `SweepResult`."""
    import pandas as pd

    rows = []
    for fit in fits:
        record, n_modes = fit.result, fit.learner.n_modes
        train = {f"{name}_train": value for name, value in record["metrics"]["train"].items()}
        metrics = record["metrics"]["held_out"] | train
        fit_plan = plan.configurations[fit.configuration]
        values = _options(fit_plan, plan.options)
        rows.append({
            "site": fit.site.key, "configuration": fit.configuration, "learner": fit_plan.name,
            "n_units": fit.n_units, "n_modes": n_modes, "modes_per_unit": n_modes / fit.n_units,
            **dict.fromkeys(plan.options),
            **{n: _text(v) if isinstance(v, tuple) else v for n, v in values.items()},
            "seed": fit.config.seed,
            **{name: math.nan if value is None else value for name, value in metrics.items()},
            "n_epochs": record["n_epochs"], "seconds": record["seconds"],
            "stability": stability.get(fit.folder.name, math.nan),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    for name in plan.options:
        # Whole numbers stay whole although other learners have no such option.
        table[name] = table[name].astype(object).convert_dtypes()
    keys = ["site", "configuration"]
    means = dictionary.over_seeds(table)
    front = pd.MultiIndex.from_frame(means.loc[dictionary.pareto_front(means), keys])
    table["on_front"] = pd.MultiIndex.from_frame(table[keys]).isin(front)
    table["folder"] = [fit.folder.relative_to(plan.out).as_posix() for fit in fits]
    return table


def sweep_words(table: "pandas.DataFrame") -> str:
    """Say what the table of a `SweepResult` shows: which configuration is best at equal L0."""
    means = dictionary.over_seeds(table)
    stability = means[["site", "configuration", "stability"]]
    best = dictionary.best_at_equal_l0(means).merge(stability, how="left")
    best = best.drop(columns=["learner", "n_seeds", "next_learner", "next_n_seeds"])
    many = int((table["dead_share"] > MANY_DEAD).sum())
    return (
        "Best at about equal L0, on held-out rows, and the best of another learner (means over "
        f"seeds):\n{best.to_string(index=False, float_format='{:.3f}'.format, na_rep='')}\n"
        f"{many} of {len(table)} dictionaries have more than {MANY_DEAD:.0%} dead modes."
    )


def _options(fit: FitPlan, names: Sequence[str]) -> dict[str, Any]:
    """Return those options of the names that the learner or its training has."""
    parts: tuple[Any, ...] = (fit.train, fit.learner)
    found = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
    return {name: found[name] for name in names if name in found}


def _text(value: Any) -> str:
    """Return a value of an option as it stands in names and tables."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return read_checked(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # Damaged, or of an earlier version: it is done again.
