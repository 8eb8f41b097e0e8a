"""Reads a run folder: everything that the pages show, in the form of records."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import torch
from torch import Tensor

from condec.basis.errors import StoreError
from condec.dictionary import Dictionary, load_dictionary
from condec.effects import summarise
from condec.explain import SiteMaps
from condec.modes import Hierarchy, Modes, Split, label_name, membership
from condec.store import SiteInfo, Store, is_twin

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Fitted:
    """One dictionary at one site.

    Attributes
    ----------
    name : str
        Its folder's name.
    dictionary : Dictionary
    modes : Modes
    maps : SiteMaps, or None
    controls : pandas.DataFrame, or None
        Of `fit_rivals`.
    stability : pandas.DataFrame, or None
        Of `Stability.table`, and columns `between_halves` and `n_seeds`; by number of the mode.
    matrix, steering, interactions : pandas.DataFrame, or None
        What else edits do (`condec.effects`), by its modes.
    """

    name: str
    dictionary: Dictionary
    modes: Modes
    maps: SiteMaps | None
    controls: "pandas.DataFrame | None" = None
    stability: "pandas.DataFrame | None" = None
    matrix: "pandas.DataFrame | None" = None
    steering: "pandas.DataFrame | None" = None
    interactions: "pandas.DataFrame | None" = None

    @property
    def has_labels(self) -> bool:
        """Whether modes can be compared with labels."""
        return bool((self.modes.store.labels >= 0).any())

    @property
    def has_held_out(self) -> bool:
        """Whether there are rows that were not fitted."""
        return bool(self.modes.held_out.any())

    @cached_property
    def dead_share(self) -> float:
        """Share of the dictionary's modes that no held-out input uses; NaN without such inputs."""
        if not self.has_held_out:
            return math.nan
        used = (self.modes.loadings[self.modes.held_out] > 0).any(0)
        return 1.0 - int(used.sum()) / max(self.modes.n_modes, 1)

    def density(self, split: Split) -> Tensor:
        """Share of the inputs of a split that use each mode, shape [mode]; NaN without inputs."""
        rows = self.modes.held_out if split == "held_out" else ~self.modes.held_out
        return (self.modes.loadings[rows] != 0).float().mean(0)

    @cached_property
    def stable(self) -> Mapping[int, tuple[float, float]]:
        """Cosine over seeds, and over halves, by number of the mode; empty if not measured."""
        if self.stability is None:
            return {}
        columns = (self.stability[key] for key in ("mode", "seed_cosine", "half_cosine"))
        return {mode: (seeds, halves) for mode, seeds, halves in zip(*columns, strict=True)}

    @cached_property
    def correlation(self) -> Tensor:
        """Correlation with labels on training rows, shape [mode, label]."""
        return self.modes.correlation(split="train")

    @cached_property
    def held_out_correlation(self) -> Tensor:
        """The same on held-out rows; NaN where a label is not among them, or no other is."""
        nowhere = torch.full_like(self.correlation, torch.nan)
        labels = self.modes.store.labels[self.modes.held_out]
        if not bool((labels >= 0).any()):
            return nowhere
        shares = membership(labels, self.correlation.shape[1])[labels >= 0].float().mean(0)
        varies = (shares > 0) & (shares < 1)
        return torch.where(varies, self.modes.correlation(split="held_out"), nowhere)

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """Best label of every mode by training rows, and the held-out correlation with it."""
        label = self.correlation.argmax(1)
        return label, self.held_out_correlation.gather(1, label[:, None]).squeeze(1)


@dataclass(frozen=True, eq=False)
class SitePart:
    """What a run has for one site.

    Attributes
    ----------
    info : SiteInfo
    completeness : Tensor of shape [sample], or None
    fitted : tuple of Fitted
    curve, areas, comparison : pandas.DataFrame, or None
        Control curves of the site, a summary of each, and which ranking is more selective.
    """

    info: SiteInfo
    completeness: Tensor | None
    fitted: tuple[Fitted, ...]
    curve: "pandas.DataFrame | None"
    areas: "pandas.DataFrame | None"
    comparison: "pandas.DataFrame | None" = None

    @property
    def key(self) -> str:
        """Key of the site."""
        return self.info.site.key

    @property
    def folder(self) -> str:
        """Name of its page and folders, fit for any file system."""
        return quote(self.key, safe="")


@dataclass(frozen=True, eq=False)
class TwinPart:
    """One control.

    Attributes
    ----------
    control : dict
        From the recipe of its store.
    store : Store
    statistics : pandas.DataFrame, or None
    """

    control: Mapping[str, Any]
    store: Store
    statistics: "pandas.DataFrame | None"


@dataclass(frozen=True, eq=False)
class RunPart:
    """What a run folder holds.

    Attributes
    ----------
    folder : Path
    store : Store
    plan : dict
        Content of run.toml; empty where there is none.
    date : str
        Day on which the run ended; empty where the log does not say.
    label_names : tuple of str, or None
    statistics, areas : pandas.DataFrame, or None
    sites : tuple of SitePart
    twins : tuple of TwinPart
        Complete ones of this store; others are passed over.
    hierarchy : Hierarchy, or None
    """

    folder: Path
    store: Store
    plan: Mapping[str, Any]
    date: str
    label_names: tuple[str, ...] | None
    statistics: "pandas.DataFrame | None"
    areas: "pandas.DataFrame | None"
    sites: tuple[SitePart, ...]
    twins: tuple[TwinPart, ...] = ()
    hierarchy: Hierarchy | None = None

    def label(self, number: int) -> str:
        """Name of a label; a dash for none."""
        return "\N{EN DASH}" if number < 0 else label_name(self.label_names, number)

    def shuffled_best(self, fitted: Fitted) -> Tensor | None:
        """Highest correlation of every mode with any label, labels shuffled; training rows.

        None where there is no such control, or nothing to compare.
        """
        for twin in self.twins:
            if twin.control["name"] == "ShuffledLabels" and fitted.has_labels and len(fitted.modes):
                return fitted.modes.correlation(twin.store.labels, split="train").max(1).values
        return None

    @property
    def n_labels(self) -> int:
        """One more than the largest label."""
        return int(self.store.labels.max()) + 1 if len(self.store) else 0


def read_run(folder: Path) -> RunPart:
    """Read a run folder.

    Raises
    ------
    StoreError
        There is no complete store in it, or a part of it is damaged.
    """
    if not (folder / "contributions.zarr").is_dir():
        raise StoreError(
            f"{folder}: expected a run folder with contributions.zarr; run 'condec collect' first"
        )
    store = Store.open(folder / "contributions.zarr")
    completeness = {} if not len(store) else store.completeness()
    curves = _table(folder / "analysis" / "control.parquet")
    # From the curves, so that tables without all of today's columns can be read as well.
    areas = None if curves is None else summarise(curves)
    comparison = _table(folder / "analysis" / "control_comparison.parquet")
    return RunPart(
        folder=folder,
        store=store,
        plan=_plan(folder / "run.toml"),
        date=_date(folder / "log.jsonl"),
        label_names=_label_names(folder / "analysis" / "labels.json"),
        statistics=_table(folder / "analysis" / "statistics.parquet"),
        areas=areas,
        sites=tuple(
            SitePart(
                info=store.info(site),
                completeness=_finite(completeness.get(site.key)),
                fitted=_fitted(folder, store, site.key),
                curve=_of_site(curves, site.key),
                areas=_of_site(areas, site.key),
                comparison=_of_site(comparison, site.key),
            )
            for site in store.sites
        ),
        twins=tuple(_twins(folder, store)),
        hierarchy=_hierarchy(folder / "analysis" / "superclasses.json"),
    )


def _twins(folder: Path, store: Store) -> Iterator[TwinPart]:
    table = _table(folder / "analysis" / "statistics_twins.parquet")
    for path in sorted((folder / "twins").glob("*/contributions.zarr")):
        twin = Store.open(path)
        if not is_twin(twin, store) or not twin.is_complete:
            continue
        rows = None if table is None else table[table["twin"] == unquote(path.parent.name)]
        yield TwinPart(
            control=twin.recipe["twin"],
            store=twin,
            statistics=None if rows is None or rows.empty else rows,
        )


def _finite(values: Tensor | None) -> Tensor | None:
    known = None if values is None else values[values.isfinite()]
    return None if known is None or not len(known) else known


def _fitted(folder: Path, store: Store, key: str) -> tuple[Fitted, ...]:
    place = folder / "modes" / quote(key, safe="")
    found = []
    for one in sorted(place.iterdir()) if place.is_dir() else ():
        if not (one / "modes.zarr").is_dir():
            continue
        analysis, site = folder / "analysis", quote(key, safe="")
        maps = analysis / "maps" / site / f"{one.name}.npz"
        found.append(
            Fitted(
                name=one.name,
                dictionary=load_dictionary(one),
                modes=Modes.load(one, store),
                maps=SiteMaps.load(maps) if maps.is_file() else None,
                controls=_table(analysis / "rivals" / site / f"{one.name}.parquet"),
                stability=_table(analysis / "stability" / site / f"{one.name}.parquet"),
                matrix=_table(analysis / "control_matrix" / site / f"{one.name}.parquet"),
                steering=_table(analysis / "steering" / site / f"{one.name}.parquet"),
                interactions=_table(analysis / "interactions" / site / f"{one.name}.parquet"),
            )
        )
    return tuple(found)


def _of_site(table: "pandas.DataFrame | None", key: str) -> "pandas.DataFrame | None":
    part = None if table is None else table[table["site"] == key]
    return None if part is None or part.empty else part


def _table(file: Path) -> "pandas.DataFrame | None":
    import pandas

    if not file.is_file():
        return None
    try:
        table = pandas.read_parquet(file)
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: not readable as parquet ({error}); make it again") from error
    return None if table.empty else table


def _plan(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{file}: not TOML: {error}") from error


def _label_names(file: Path) -> tuple[str, ...] | None:
    try:
        names = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise StoreError(f"{file}: not JSON ({error}); expected a list of names") from error
    return None if names is None else tuple(str(name) for name in names)


def _hierarchy(file: Path) -> Hierarchy | None:
    names = _label_names(file)
    return None if names is None else Hierarchy(names)


def _date(file: Path) -> str:
    """Day of the last line that is not about the report itself."""
    day = ""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            event = json.loads(line)
        except ValueError:  # a run that was killed may leave half a line
            continue
        if isinstance(event, dict) and event.get("link") != "report":
            day = str(event.get("time", ""))[:10] or day
    return day
