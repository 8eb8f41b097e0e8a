"""Reads a run folder into records, from which the pages are made."""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor

from condec.basis.errors import StoreError
from condec.basis.files import file_name, reading
from condec.basis.metrics import unit_length
from condec.basis.records import short_repr
from condec.dictionary import Dictionary, Training, load_dictionary
from condec.effects import summarise
from condec.explanation import ALIKE, SiteMaps, held_out_users
from condec.modes import Hierarchy, Modes, Split
from condec.report.words import label_words
from condec.store import RunFolder, SiteInfo, Store, is_twin
from condec.store.folder import TABLES

SPLITS: Mapping[str, str] = {"held_out": "held out", "train": "training"}
"""Rows that a dictionary was fitted to or not, in words; the ones to look at first."""


@short_repr
@dataclass(frozen=True, eq=False)
class DictionaryPart:
    """Results of one learner at one site, of which all that is large is read when asked for.

    `name` is the learner's, and that of the dictionary's folder, `place`; `tables` are those that
    were made, by kind (`condec.store.folder.TABLES`).
    """

    name: str
    site: str
    place: Path
    folder: RunFolder = field(repr=False)
    store: Store = field(repr=False)
    tables: Mapping[str, pandas.DataFrame]

    @cached_property
    def dictionary(self) -> Dictionary:
        """The dictionary."""
        return self.modes.encoder or load_dictionary(self.place)

    @cached_property
    def modes(self) -> Modes:
        """Its modes."""
        return Modes.load(self.place, self.store)

    @cached_property
    def maps(self) -> SiteMaps | None:
        """Maps of its modes; None where none were made."""
        file = self.folder.maps(self.site, self.name)
        found = self.folder.ledger.found(file)
        return self.folder.read_record(file, SiteMaps) if found else None

    @cached_property
    def training(self) -> Training | None:
        """How it was trained, and its numbers."""
        return self.dictionary.training

    @cached_property
    def n_modes(self) -> int:
        """Number of modes, dead ones counted."""
        return self.modes.n_modes

    @cached_property
    def rows(self) -> str:
        """What its rows are: ``samples`` or ``positions``."""
        return self.modes.rows

    @cached_property
    def n_used(self) -> int:
        """Number of modes that some input uses."""
        return len(self.modes)

    @cached_property
    def areas(self) -> pandas.DataFrame | None:
        """Summary of every control curve."""
        curve = self.tables.get("control")
        # From the curves, so that tables without all of today's columns can be read as well.
        return None if curve is None else summarise(curve)

    @property
    def split(self) -> str:
        """Rows of the numbers to look at: ``held_out``, or ``train``; empty without numbers."""
        found = {} if self.training is None else self.training.metrics
        return next((split for split in SPLITS if found.get(split)), "")

    def measured(self, name: str, split: str = "") -> float:
        """Return one number of the dictionary on a split, by default `split`; NaN without."""
        found = {} if self.training is None else self.training.metrics
        of = found.get(split or self.split)
        return math.nan if of is None else getattr(of, name)

    @cached_property
    def n_alike(self) -> int:
        """Number of modes whose atom is nearly equal to that of another one."""
        atoms = unit_length(self.modes.atoms, 1)
        return int(((atoms @ atoms.T > ALIKE).sum(1) > 1).sum())  # each is like itself

    @cached_property
    def has_labels(self) -> bool:
        """True where there are modes, and labels to compare them with."""
        return bool((self.store.labels >= 0).any()) and self.n_used > 0

    @cached_property
    def has_held_out(self) -> bool:
        """True where there are rows that were not fitted."""
        return bool(self.modes.held_out.any())

    @cached_property
    def users(self) -> Tensor:
        """Held-out inputs that use each mode, [mode]; of all inputs, where none were held out."""
        return held_out_users(self.modes)

    @property
    def dead_share(self) -> float:
        """Share of the dictionary's modes that none of these inputs uses."""
        return 1.0 - int((self.users > 0).sum()) / max(self.n_modes, 1)

    def density(self, split: Split) -> Tensor:
        """Return the share of a split's inputs that use each mode, [mode]; NaN without inputs."""
        rows = self.modes.held_out if split == "held_out" else ~self.modes.held_out
        return self.modes.of_loadings(lambda part: (part[rows] != 0).float().mean(0))

    @cached_property
    def correlation(self) -> Tensor:
        """Correlation with labels on training rows, shape [mode, label]."""
        return self.modes.correlation(split="train")

    @cached_property
    def held_out_correlation(self) -> Tensor:
        """The same on held-out rows; NaN where a label is missing among them, or alone."""
        labels = self.store.labels[self.modes.held_out]
        if not bool((labels >= 0).any()):
            return torch.full_like(self.correlation, torch.nan)
        counts = torch.bincount(labels[labels >= 0], minlength=self.correlation.shape[1])
        varies = (counts > 0) & (counts < counts.sum())
        return self.modes.correlation(split="held_out").where(varies, torch.nan)

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """Best label of every mode by training rows, and the held-out correlation with it.

        -1 and NaN where it goes with none: no correlation is above 0.
        """
        most, label = self.correlation.max(1)
        held = self.held_out_correlation.gather(1, label[:, None]).squeeze(1)
        return label.where(most > 0, -1), held.where(most > 0, torch.nan)

    def against_units(self) -> pandas.DataFrame:
        """Return how modes compare with units, and modes of activations where a run has them.

        Empty where no table says it, as without labels that enough samples have.
        """
        found = [self.tables[kind] for kind in ("units", "activation_units") if kind in self.tables]
        whole = pandas.concat(found) if found else pandas.DataFrame({"sign": [], "of": []})
        return whole.drop_duplicates(["sign", "of"])

    def forget(self) -> None:
        """Free the memory of all that is large, and keep what the first page needs of it."""
        _ = (self.training, self.rows, self.n_modes, self.n_alike, self.users, self.has_held_out)
        _ = self.has_labels and self.best
        for name in ("dictionary", "modes", "maps", "correlation", "held_out_correlation"):
            self.__dict__.pop(name, None)


@short_repr
@dataclass(frozen=True, eq=False)
class SitePart:
    """Results at one site: the finite values of completeness, [sample], and a part a learner.

    `judged` has all its dictionaries side by side, if `condec judge` was asked for that.
    """

    info: SiteInfo
    completeness: Tensor | None
    parts: tuple[DictionaryPart, ...]
    judged: pandas.DataFrame | None = None

    @property
    def key(self) -> str:
        """Key of the site."""
        return self.info.site.key

    @property
    def folder(self) -> str:
        """Name of its page and pictures, fit for any file system."""
        return file_name(self.key)


@short_repr
@dataclass(frozen=True, eq=False)
class TwinPart:
    """Results of one twin; `twin` is what the recipe of its store says."""

    twin: Mapping[str, Any]
    store: Store
    statistics: pandas.DataFrame | None


@short_repr
@dataclass(frozen=True, eq=False)
class RunPart:
    """Content of a run folder.

    `twins` are the complete ones of this store; `recipes` are what results
    were made from, in words, by the tasks that share it; `title` is that of the plan; `date` is
    the day on which the run ended, empty where the log does not say; `left_out` says what the run
    could not do, which twins are not shown, and why; `explained` are files of inputs that are
    explained, by their names.
    """

    folder: RunFolder
    store: Store
    sites: tuple[SitePart, ...]
    twins: tuple[TwinPart, ...]
    statistics: pandas.DataFrame | None
    recipes: Mapping[str, Mapping[str, Any]]
    title: str
    date: str
    label_names: tuple[str, ...] | None
    hierarchy: Hierarchy | None
    left_out: tuple[str, ...] = ()
    explained: Mapping[str, Path] = field(default_factory=dict)

    @property
    def parts(self) -> "list[tuple[SitePart, DictionaryPart]]":
        """Every dictionary with its site."""
        return [(site, part) for site in self.sites for part in site.parts]

    def recipe(self, section: str) -> Mapping[str, Any]:
        """Return a section of the plan by which contributions were collected; empty if unknown."""
        found: Mapping[str, Any] = self.recipes.get("collect", {}).get(section, {})
        return found

    @property
    def learners(self) -> list[str]:
        """Names of the learners, sorted."""
        return sorted({part.name for _, part in self.parts})

    def label(self, number: int) -> str:
        """Return the name of a label; a dash for none."""
        return label_words(self.label_names, number)

    def shuffled_best(self, part: DictionaryPart) -> Tensor | None:
        """Return each mode's highest correlation with a label, labels shuffled; training rows.

        None where there is no such twin, or nothing to compare.
        """
        for twin in self.twins:
            if twin.twin["name"] == "ShuffledLabels" and part.has_labels:
                return part.modes.correlation(twin.store.labels, split="train").max(1).values
        return None


def read_run(path: Path) -> RunPart:
    """Read a run folder; dictionaries, modes and maps are read when they are asked for.

    Raises StoreError: there is no complete store in it, or a part of it is damaged.
    """
    folder = RunFolder(path)
    if not folder.store.is_dir():
        raise StoreError(
            f"{path}: expected a run folder with contributions.zarr; {folder.first('collect')}"
        )
    folder.ledger.found(folder.store)
    store = Store.open(folder.store)
    completeness = store.completeness() if len(store) else {}
    groups = folder.read_json(folder.superclasses)
    left_out = list(folder.read_json(folder.left_out) or ())
    twins = tuple(_twins(folder, store, left_out))
    sites = []
    for site in store.sites:
        values = completeness.get(site.key, torch.empty(0))
        known, parts = values[values.isfinite()], tuple(_parts(folder, store, site.key))
        judged = folder.read_table("judged", site.key)
        sites.append(SitePart(store.info(site), known if len(known) else None, parts, judged))
    return RunPart(
        folder=folder, store=store, sites=tuple(sites), twins=twins,
        statistics=folder.read_table("statistics"),
        recipes=_recipes(folder), title=_title(folder.plan), date=_date(folder.log_file),
        label_names=_names(folder, folder.labels),
        hierarchy=None if groups is None else Hierarchy.read(groups),
        left_out=tuple(left_out), explained=dict(_explained(folder)),
    )  # fmt: skip


def _parts(folder: RunFolder, store: Store, key: str) -> Iterator[DictionaryPart]:
    for name in folder.learners(key):
        place = folder.modes(key, name)
        place = folder.ledger.found(place) or place
        tables = {kind: folder.read_table(kind, key, name) for kind in TABLES}
        known = {kind: table for kind, table in tables.items() if table is not None}
        if "rivals" in known:  # a learner is no rival of its own; earlier versions fitted it
            known["rivals"] = known["rivals"][known["rivals"]["rival"] != name]
        yield DictionaryPart(name, key, place, folder, store, known)


def _explained(folder: RunFolder) -> Iterator[tuple[str, Path]]:
    """Yield names of inputs that are explained, and files; those of the plan last, which count."""
    entries = [one for one in folder.ledger.entries.values() if one.link == "explain"]
    for entry in sorted(entries, key=lambda one: "why" in one.made_from):
        for name in (name for name in entry.outputs if name.endswith(".npz")):
            if found := folder.ledger.found(folder.path / name):
                yield str(entry.made_from.get("input", "")), found


def _twins(folder: RunFolder, store: Store, left_out: list[str]) -> Iterator[TwinPart]:
    """Yield the twins; why others are none is added to what was left out."""
    table = folder.read_table("statistics_twins")
    for name, path in folder.twins().items():
        folder.ledger.found(path)
        twin = Store.open(path)
        if not is_twin(twin, store):
            left_out.append(f"twin {name}: it is of another store")
        elif missing := twin.missing():
            left_out.append(f"twin {name}: {len(missing)} of {twin.n_shards} shards are missing")
        else:
            rows = pandas.DataFrame() if table is None else table[table["twin"] == name]
            yield TwinPart(twin.recipe["twin"], twin, None if rows.empty else rows)


def _names(folder: RunFolder, file: Path) -> tuple[str, ...] | None:
    names = folder.read_json(file)
    # JSON can hold half of a sign; no file and no table can.
    return names and tuple(str(name).encode(errors="replace").decode() for name in names)


def _recipes(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return what results were made from, by the tasks that share it; what is None is left out.

    Raises StoreError: a record is damaged, or a table that is not shown.
    """
    for file in folder.tables().values():
        folder.ledger.found(file)
    damaged = {file: one for file, one in folder.ledger.damaged.items() if file.stem != "report"}
    for damage in damaged.values():
        raise StoreError(str(damage))
    tasks: dict[str, list[str]] = {}
    for entry in folder.ledger.entries.values():
        if entry.link not in ("run", "explain", "report"):
            tasks.setdefault(json.dumps(entry.made_from, sort_keys=True), []).append(entry.task)
    return {_few(names): _said(json.loads(text)) for text, names in tasks.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    values = {n: _said(v) if isinstance(v, Mapping) else v for n, v in record.items()}
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}


def _title(file: Path) -> str:
    """Return the title that run.toml gives; empty where there is none."""
    if not file.is_file():
        return ""
    with reading(file, "TOML", "Write it again, or remove it."):
        return str(
            tomllib.loads(file.read_text(encoding="utf-8")).get("report", {}).get("title", "")
        )


def _date(file: Path) -> str:
    """Return the day of the last line that is not about the report itself."""
    day = ""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError):  # a run that was killed may leave half a line
            event = json.loads(line)
            if isinstance(event, dict) and event.get("link") != "report":
                day = str(event.get("time", ""))[:10] or day
    return day
