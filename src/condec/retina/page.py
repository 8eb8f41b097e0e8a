"""The page of a retina: rates, contributions and loadings over time, fields, modes and cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import torch
from torch import Tensor

from condec.basis.errors import StoreError
from condec.report import Page
from condec.report.drawing import Drawn, Studio
from condec.report.facts import Fact
from condec.report.reading import DictionaryPart, RunPart, SitePart
from condec.report.words import count, fixed, percent
from condec.retina import figures
from condec.retina.analysis import named
from condec.retina.combinations import CombinationFields
from condec.retina.fields import ReceptiveFields
from condec.retina.probes import PROBES
from condec.retina.records import load_record
from condec.retina.responses import Responses

if TYPE_CHECKING:
    import pandas

STRETCH: Final = 250
"""Frames that are drawn over time, as many as in Melander et al. 2026, figure 8B."""
_STRIP: Final = 8
_MODES: Final = 8
_COMBINATIONS: Final = 40


@dataclass(frozen=True, eq=False)
class Retina:
    """What a run has of a retina.

    Attributes
    ----------
    folder : Path
        ``analysis/retina`` of the run folder.
    responses : Responses
    fields : ReceptiveFields
    """

    folder: Path
    responses: Responses
    fields: ReceptiveFields

    @classmethod
    def read(cls, run_folder: str | Path) -> "Retina":
        """From a run folder.

        Raises
        ------
        StoreError
            There are no results, or they are damaged.
        """
        folder = Path(run_folder) / "analysis" / "retina"
        return cls(
            folder,
            load_record(folder / "responses.npz", Responses),
            load_record(folder / "fields.npz", ReceptiveFields),
        )

    def table(self, site: SitePart, fitted: DictionaryPart, part: str) -> "pandas.DataFrame | None":
        """A table of one site; None where it was not made."""
        import pandas

        file = self.folder / quote(site.key, safe="") / fitted.name / f"{part}.parquet"
        return pandas.read_parquet(file) if file.is_file() else None

    def combination_fields(
        self, site: SitePart, fitted: DictionaryPart
    ) -> CombinationFields | None:
        """Mean fields of combinations of one site; None where none is frequent enough."""
        file = self.folder / quote(site.key, safe="") / fitted.name / "fields.npz"
        return load_record(file, CombinationFields) if file.is_file() else None

    def probes(self) -> dict[str, Responses]:
        """Rates to each of the standard probes that were shown, in their order."""
        files = {name: self.folder / "probes" / f"{quote(name)}.npz" for name in PROBES}
        return {n: load_record(file, Responses) for n, file in files.items() if file.is_file()}

    @property
    def leading(self) -> int:
        """Place among the cells with fields of the one whose field changes most.

        By the share of the squared fields that is not in their mean.
        """
        fields = self.fields
        course = fields.strength[..., None, None] * fields.spatial
        whole = course.square().sum((0, 2, 3))
        constant = len(fields) * course.mean(0).square().sum((1, 2))
        return int(((whole - constant) / whole.clamp(min=1e-30)).argmax())

    @property
    def stretch(self) -> slice:
        """The samples that are drawn over time: where the leading cell's rate varies most."""
        rate = self.responses.rates[:, int(self.fields.cells[self.leading])].double()
        length = min(STRETCH, len(rate))
        sums, squares = (torch.cat([torch.zeros(1), v.cumsum(0)]) for v in (rate, rate.square()))
        mean = (sums[length:] - sums[:-length]) / length
        start = int(((squares[length:] - squares[:-length]) / length - mean.square()).argmax())
        return slice(start, start + length)


def _values(run: RunPart, studio: Studio) -> dict[str, Any]:
    retina = Retina.read(run.folder.path)
    responses, place = retina.responses, retina.leading
    cell = responses.cells[int(retina.fields.cells[place])]
    return {
        "responses": responses,
        "found": list(_facts(retina)),
        "cell": cell,
        "film": _film(retina, studio, place),
        "strip": _strip(retina, studio, place, cell),
        "probes": _probes(retina, studio),
        "site_parts": [
            _site(retina, site, fitted, studio, place)
            for site in run.sites
            for fitted in site.parts
            if retina.table(site, fitted, "cells") is not None
        ],
    }


def _facts(retina: Retina) -> Iterator[Fact]:
    """Give the large numbers of the page."""
    responses, fields = retina.responses, retina.fields
    seconds = len(responses.rates) * responses.seconds_per_frame
    yield Fact(count(len(responses.rates)), "frames", f"{seconds:.0f} seconds")
    yield Fact(count(len(responses.cells)), "cells", responses.name)
    known = responses.correlation
    if bool(known.isfinite().any()):
        yield Fact(
            fixed(float(known.nanmedian())), "correlation with the recording", "median of cells"
        )
    share = float(fields.separability.nanmedian())
    yield Fact(percent(share), "of a field is one picture times one time course", "median")
    polarity = fields.polarity
    both = ((polarity > 0).any(0) & (polarity < 0).any(0)).sum()
    yield Fact(
        f"{int(both)} of {polarity.shape[1]}", "cells whose field changes its sign", "somewhere"
    )


def _film(retina: Retina, studio: Studio, place: int) -> Drawn | None:
    """The leading cell's field from frame to frame, as a moving picture."""
    inside = _inside(retina)
    if len(inside) < 2:
        return None
    fields = retina.fields.select(inside)
    pictures = figures.field_film(fields.spatial[:, place] * fields.strength[:, place, None, None])
    file = studio.moving(pictures, "figures/retina-film", seconds=0.08)
    return Drawn(file, "Receptive field from frame to frame", f"{len(inside)} frames")


def _strip(retina: Retina, studio: Studio, place: int, cell: str) -> list[Drawn]:
    """The strongest fields of the stretch that are apart in time."""
    inside = _inside(retina)
    if not len(inside):
        return []
    fields = retina.fields.select(_strongest(retina.fields.select(inside), place) + inside[0])
    seconds = retina.responses.seconds[fields.rows]
    figure = figures.fields_figure(
        fields.spatial[:, place] * fields.strength[:, place, None, None],
        fields.temporal[:, place],
        [f"{float(at):.2f} s" for at in seconds],
        heading=f"Receptive field of cell {cell}",
        unit="space above, time below; pictures on one scale; vermilion: light raises the rate",
        seconds_per_frame=retina.responses.seconds_per_frame,
    )
    return [studio.figure(figure, "retina-fields", f"Receptive field of cell {cell} over time")]


def _probes(retina: Retina, studio: Studio) -> list[Drawn]:
    """Rates of all cells to the standard probes, where they were shown."""
    found = retina.probes()
    if not found:
        return []
    figure = figures.probes_figure(
        {name: one.rates for name, one in found.items()},
        {name: dict(zip(one.event_names, one.events, strict=True)) for name, one in found.items()},
        seconds_per_frame=retina.responses.seconds_per_frame,
    )
    return [studio.figure(figure, "retina-probes", "Rates of all cells to standard probes")]


def _strongest(fields: ReceptiveFields, place: int) -> Tensor:
    """Places of the strongest fields of a cell that are apart in time, in its order."""
    apart = max(1, len(fields) // (3 * _STRIP))
    chosen: list[int] = []
    for sample in fields.strength[:, place].argsort(descending=True).tolist():
        if len(chosen) < _STRIP and all(abs(sample - other) > apart for other in chosen):
            chosen.append(sample)
    return torch.tensor(sorted(chosen))


def _inside(retina: Retina) -> Tensor:
    """Places of the fields that lie in the stretch."""
    rows, part = retina.fields.rows, retina.stretch
    inside: Tensor = (rows >= part.start) & (rows < part.stop)
    return inside.nonzero().flatten()


def _site(
    retina: Retina, site: SitePart, fitted: DictionaryPart, studio: Studio, place: int
) -> dict[str, Any]:
    """Everything that the page shows of one site."""
    stem = f"retina-{site.folder}-{fitted.name}"
    cells, table, explained = (
        _needed(retina, site, fitted, part) for part in ("cells", "combinations", "explained")
    )
    return {
        "site": site,
        "name": fitted.name,
        "traces": [_traces(retina, site, fitted, studio, place, stem)],
        "cells": [_mode_cells(cells, studio, stem)],
        "clusters": _cluster_words(cells),
        "combinations": [_counts(table, studio, stem)],
        "combination_fields": _combination_fields(retina, site, fitted, studio, place, stem),
        "rows": table.head(_COMBINATIONS).to_dict("records"),
        "n_rows": len(table),
        "explained": _explained(explained, int(retina.fields.cells[place]), studio, stem),
        "explained_words": _explained_words(explained),
    }


def _needed(
    retina: Retina, site: SitePart, fitted: DictionaryPart, part: str
) -> "pandas.DataFrame":
    table = retina.table(site, fitted, part)
    if table is None:
        raise StoreError(
            f"{retina.folder}: no table {part} of {site.key}; run 'condec retina' again"
        )
    return table


def _traces(
    retina: Retina, site: SitePart, fitted: DictionaryPart, studio: Studio, place: int, stem: str
) -> Drawn:
    responses, part, modes = retina.responses, retina.stretch, fitted.modes
    number = int(retina.fields.cells[place])
    rates = {"model": responses.rates[part, number]}
    if responses.recorded is not None:
        rates["recorded"] = responses.recorded[part, number]
    loadings = modes.loadings[part]
    used = loadings.double().std(0) / modes.loadings.double().std(0).clamp(min=1e-30)
    weight = used * (modes.loadings.double().norm(dim=0) * modes.atoms.double().norm(dim=1))
    leading = sorted(weight.argsort(descending=True)[:_MODES].tolist())
    figure = figures.traces_figure(
        responses.seconds[part],
        rates,
        modes.store.matrix(modes.site, quantity=modes.quantity, sign="sum")[part],
        {f"mode {int(modes.ids[mode])}": loadings[:, mode] for mode in leading},
        events=dict(zip(responses.event_names, responses.events[:, part], strict=True)),
        cell=responses.cells[number],
    )
    return studio.figure(figure, f"{stem}-traces", f"Rates, contributions and loadings, {site.key}")


def _mode_cells(table: "pandas.DataFrame", studio: Studio, stem: str) -> Drawn:
    by_place = table.pivot_table(index="cell_place", columns="mode_place", values="correlation")
    rows = table.drop_duplicates("cell_place").sort_values("cell_place")
    modes = table.drop_duplicates("mode_place").sort_values("mode_place")["mode"]
    figure = figures.mode_cell_figure(
        torch.tensor(by_place.to_numpy(), dtype=torch.float32),
        [str(cell) for cell in rows["cell"]],
        [str(mode) for mode in modes],
        clusters=[int(cluster) for cluster in rows["cluster"]],
    )
    return studio.figure(figure, f"{stem}-cells", "Correlation of every mode with every cell")


def _cluster_words(table: "pandas.DataFrame") -> str:
    """How many groups of cells there are."""
    rows = table.drop_duplicates("cell")
    silhouette = float(rows["silhouette"].iloc[0])
    if silhouette != silhouette:
        return ""
    sizes = rows["cluster"].value_counts().sort_index()
    groups = ", ".join(str(size) for size in sizes)
    return (
        f"{len(sizes)} groups of cells by their modes (of {groups} cells; mean silhouette "
        f"{fixed(silhouette)})."
    )


def _counts(table: "pandas.DataFrame", studio: Studio, stem: str) -> Drawn:
    figure = figures.combinations_figure(table)
    return studio.figure(figure, f"{stem}-combinations", "Counts of combinations")


def _combination_fields(
    retina: Retina, site: SitePart, fitted: DictionaryPart, studio: Studio, place: int, stem: str
) -> list[Drawn]:
    """Mean field of each frequent combination."""
    found = retina.combination_fields(site, fitted)
    if found is None:
        return []
    names = [named(columns, fitted.modes.ids) for columns in found.combinations]
    cell = retina.responses.cells[int(found.cells[place])]
    figure = figures.fields_figure(
        found.spatial[:, place] * found.strength[:, place, None, None],
        found.temporal[:, place],
        [figures.short_combination(name, most=3) for name in names],
        notes=[f"{int(n)} frames" for n in found.counts],
        heading=f"Mean field of cell {cell} by the modes that are active",
        unit="pictures on one scale; vermilion: light raises the rate",
        seconds_per_frame=retina.responses.seconds_per_frame,
    )
    alt = f"Mean receptive field of cell {cell} for each combination of modes"
    return [studio.figure(figure, f"{stem}-combination-fields", alt)]


def _explained(table: "pandas.DataFrame", cell: int, studio: Studio, stem: str) -> Sequence[Drawn]:
    figure = figures.explained_figure(table, cell=cell)
    return [studio.figure(figure, f"{stem}-explained", "What explains the change of fields")]


def _explained_words(table: "pandas.DataFrame") -> str:
    """What modes explain of the median cell, and the best of what they must beat."""
    median = table.groupby("predictor", sort=False)["r2"].median()
    others = median.drop(["modes", "shifted modes"], errors="ignore").dropna()
    words = (
        f"Median of cells: modes {fixed(float(median['modes']))}, the same modes shifted in time "
        f"{fixed(float(median.get('shifted modes', float('nan'))))}"
    )
    if others.empty:
        return f"{words}."
    best = str(others.idxmax())
    rows = table[table["predictor"] == best]
    won, lost = (int(n) for n in ((rows["lead_low"] > 0).sum(), (rows["lead_high"] < 0).sum()))
    return (
        f"{words}; the best of the others, {best}, {fixed(float(others.max()))}. Modes explain "
        f"more in {won} of {len(rows)} cells and less in {lost}, beyond the 95 % interval."
    )


PAGE: Final = Page(
    name="Retina",
    file="retina.html",
    template=Path(__file__).with_name("page.html.jinja"),
    applies=lambda folder: folder.retina("fields.npz").is_file(),
    values=_values,
)
"""The page of runs of a retina."""
