"""The run in a few numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch

from condec.report.reading import SPLITS, DictionaryPart, RunPart, SitePart
from condec.report.tables import SITES, Line
from condec.report.words import DASH, count, fixed, percent
from condec.store import STATISTICS


@dataclass(frozen=True)
class Fact:
    """One large number on a page, and what it counts."""

    value: str
    name: str
    note: str = ""


def of_run(run: RunPart) -> Iterator[Fact]:
    """Give the large numbers of the first page."""
    store = run.store
    skipped = store.n_samples - len(store)
    yield Fact(count(len(store)), "inputs", f"{count(skipped)} skipped" if skipped else "")
    labelled = (store.labels >= 0) & (store.predictions >= 0)
    if bool(labelled.any()):
        right = (store.labels == store.predictions)[labelled].float().mean()
        yield Fact(percent(right, 1), "accuracy of the model", "on these inputs")
    yield Fact(count(len(run.sites)), "sites" if len(run.sites) > 1 else "site")
    for learner in run.learners:
        parts = [part for _, part in run.parts if part.name == learner]
        of = f", {learner}" if len(run.learners) > 1 else ""
        used = count(sum(part.n_used for part in parts))
        whole = count(sum(part.n_modes for part in parts))
        yield Fact(used, f"modes in use{of}", f"of {whole}")
        middle = _median([part.measured("r2") for part in parts])
        yield Fact(fixed(middle), _r2(parts) + of, "median of the sites")
    known = [site.completeness for site in run.sites if site.completeness is not None]
    if known:
        middle = _median([float(values.quantile(0.5)) for values in known])
        yield Fact(
            fixed(middle), "completeness", f"median of {len(known)} cut{'s' * (len(known) > 1)}"
        )


def of_site(site: SitePart) -> Iterator[Fact]:
    """Give the large numbers of a site's page."""
    info, complete = site.info, site.completeness
    yield Fact(count(info.n_units), "units", str(info.units))
    yield Fact(count(info.n_positions), f"position{'s' * (info.n_positions != 1)} a unit")
    if info.cut:
        middle = None if complete is None else complete.quantile(0.5)
        yield Fact(fixed(middle), "completeness", "median")
    else:
        yield Fact("no", "cut of the network", "flow passes around it")
    for part in site.parts:
        of = f", {part.name}" if len(site.parts) > 1 else ""
        yield Fact(count(part.n_used), f"modes in use{of}", f"of {count(part.n_modes)}")
        yield Fact(fixed(part.measured("r2")), _r2([part]) + of)
        row = "position" if part.rows == "positions" else "input"
        yield Fact(fixed(part.measured("l0"), 1), f"modes per {row}{of}")


def _r2(parts: Sequence[DictionaryPart]) -> str:
    splits = " or ".join(sorted({SPLITS[part.split] for part in parts if part.split}))
    return "R\N{SUPERSCRIPT TWO}" + (f", {splits}" if splits else "")


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanquantile(0.5))


def title(run: RunPart) -> str:
    """Return the title of the report."""
    model = str(run.recipe("model").get("spec", "")) or str(run.store.recipe.get("model", ""))
    data = str(run.recipe("data").get("source", ""))
    named = " on ".join(map(_without_folders, filter(None, (model, data))))
    return run.title or named or run.folder.path.name


def _without_folders(source: str) -> str:
    """Name a model or data set by its file or folder, where it is one."""
    place = source.partition(":")[2].partition("?")[0]
    return PurePath(place).name if place[:1] in ("/", ".", "~") else source


def site_numbers(run: RunPart, line: Line) -> Iterator[tuple[str, str, str]]:
    """Give a few numbers of a site, and those that the first twin has there; empty without."""
    for column in SITES[5:9]:
        yield column.name, column.text(line), ""
    tables = [run.statistics, *(twin.statistics for twin in run.twins[:1])]
    rows = [None if one is None else one[one["site"] == line.site.key] for one in tables]
    for one in STATISTICS:
        name = one.column(one.of[0])
        values = [  # tables of earlier versions lack some
            fixed(row[name].iloc[0], one.digits) if row is not None and name in row and len(row)
            else "" for row in rows
        ]  # fmt: skip
        if values[0] not in ("", DASH):
            yield one.title, values[0], values[1] if len(values) > 1 else ""
