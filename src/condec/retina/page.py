"""The page of a retina: rates, contributions and loadings over time, fields, modes and cells."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from condec.basis.errors import StoreError
from condec.basis.npz import load_record
from condec.report import Page
from condec.report.drawing import Drawn, Studio
from condec.report.facts import Fact
from condec.report.reading import DictionaryPart, RunPart, SitePart
from condec.report.words import count, fixed, percent
from condec.retina import figures
from condec.retina.combinations import CombinationFields, named
from condec.retina.fields import ReceptiveFields
from condec.retina.probes import PROBES
from condec.retina.responses import Responses
from condec.store import RunFolder

if TYPE_CHECKING:
    import pandas

STRETCH: Final = 250
"""Frames that are drawn over time, as many as in Melander et al. 2026, figure 8B."""
_STRIP: Final = 8
_MODES: Final = 8
_COMBINATIONS: Final = 40


class Retina:
    """Results of a run about a retina, and the cell that stands out."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.responses = load_record(folder.analysis("retina", "responses.npz"), Responses)
        self.fields = load_record(folder.analysis("retina", "fields.npz"), ReceptiveFields)

    @cached_property
    def leading(self) -> int:
        """Return the place of the field with the largest share of squares that is not its mean."""
        fields = self.fields
        course = fields.strength[..., None, None] * fields.spatial
        whole = course.square().sum((0, 2, 3))
        constant = len(fields) * course.mean(0).square().sum((1, 2))
        return int(((whole - constant) / whole.clamp(min=1e-30)).argmax())

    @property
    def number(self) -> int:
        """Return the output of the model that is the leading cell."""
        return int(self.fields.cells[self.leading])

    @property
    def cell(self) -> str:
        """Return the name of the leading cell."""
        return self.responses.cells[self.number]

    @cached_property
    def stretch(self) -> slice:
        """Return the samples to draw over time: where the leading cell's rate varies most."""
        rate = self.responses.rates[:, self.number].double()
        length = min(STRETCH, len(rate))
        sums, squares = (torch.cat([torch.zeros(1), v.cumsum(0)]) for v in (rate, rate.square()))
        mean = (sums[length:] - sums[:-length]) / length
        start = int(((squares[length:] - squares[:-length]) / length - mean.square()).argmax())
        return slice(start, start + length)


def _values(run: RunPart, studio: Studio) -> dict[str, Any]:
    retina = Retina(run.folder)
    rows, part = retina.fields.rows, retina.stretch
    inside = retina.fields.select((rows >= part.start) & (rows < part.stop))
    return {
        "found": list(_facts(retina)),
        "cell": retina.cell,
        "film": _film(retina, inside, studio),
        "strip": _strip(retina, inside, studio),
        "probes": _probes(retina, studio),
        "site_parts": [
            _site(retina, site, part, studio)
            for site in run.sites
            for part in site.parts
            if run.folder.read_table("retina", site.key, part.name, "cells") is not None
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
        median = fixed(float(known.nanmedian()))
        yield Fact(median, "correlation with the recording", "median of cells")
    share = float(fields.separability.nanmedian())
    yield Fact(percent(share), "of a field is one picture times one time course", "median")
    polarity = fields.polarity
    both = int(((polarity > 0).any(0) & (polarity < 0).any(0)).sum())
    changing = f"{both} of {polarity.shape[1]}"
    yield Fact(changing, "cells whose field changes its sign", "somewhere")


def _film(retina: Retina, inside: ReceptiveFields, studio: Studio) -> Drawn | None:
    """Draw the leading cell's field from frame to frame, as a moving picture."""
    if len(inside) < 2:
        return None
    pictures = figures.field_film(_scaled(inside, retina.leading))
    file = studio.moving(pictures, "figures/retina-film", seconds=0.08)
    return Drawn(file, "Receptive field from frame to frame", f"{len(inside)} frames")


def _strip(retina: Retina, inside: ReceptiveFields, studio: Studio) -> list[Drawn]:
    """Draw the leading cell's strongest fields of the stretch that are apart in time."""
    if not len(inside):
        return []
    apart, place, chosen = max(1, len(inside) // (3 * _STRIP)), retina.leading, list[int]()
    for sample in inside.strength[:, place].argsort(descending=True).tolist():
        if len(chosen) < _STRIP and all(abs(sample - other) > apart for other in chosen):
            chosen.append(sample)
    fields = inside.select(sorted(chosen))
    figure = figures.fields_figure(
        _scaled(fields, place),
        fields.temporal[:, place],
        [f"{float(at):.2f} s" for at in retina.responses.seconds[fields.rows]],
        heading=f"Receptive field of cell {retina.cell}",
        unit="space above, time below; pictures on one scale; vermilion: light raises the rate",
        seconds_per_frame=retina.responses.seconds_per_frame,
    )
    alt = f"Receptive field of cell {retina.cell} over time"
    return [studio.figure(figure, "retina-fields", alt)]


def _scaled(fields: ReceptiveFields | CombinationFields, place: int) -> Tensor:
    """Return a cell's pictures times their strength."""
    return fields.spatial[:, place] * fields.strength[:, place, None, None]


def _probes(retina: Retina, studio: Studio) -> list[Drawn]:
    """Draw the rates of all cells to the standard probes that were shown."""
    files = {name: retina.folder.analysis("retina", "probes", f"{name}.npz") for name in PROBES}
    found = {n: load_record(file, Responses) for n, file in files.items() if file.is_file()}
    if not found:
        return []
    figure = figures.probes_figure(
        {name: one.rates for name, one in found.items()},
        {name: dict(zip(one.event_names, one.events, strict=True)) for name, one in found.items()},
        seconds_per_frame=retina.responses.seconds_per_frame,
    )
    return [studio.figure(figure, "retina-probes", "Rates of all cells to standard probes")]


def _site(retina: Retina, site: SitePart, part: DictionaryPart, studio: Studio) -> dict[str, Any]:
    """Draw everything that the page shows of one site."""

    def table(name: str) -> "pandas.DataFrame":
        found = retina.folder.read_table("retina", site.key, part.name, name)
        if found is None:
            raise StoreError(
                f"{retina.folder.path}: no table {name} of {site.key}; run 'condec retina' again"
            )
        return found

    def draw(figure: Any, name: str, alt: str) -> list[Drawn]:
        return [studio.figure(figure, f"retina-{site.folder}-{part.name}-{name}", alt)]

    cells, combined, explained = table("cells"), table("combinations"), table("explained")
    mean_fields = _combination_fields(retina, site, part)
    return {
        "site": site,
        "name": part.name,
        "traces": draw(
            _traces(retina, part), "traces", f"Rates, contributions and loadings, {site.key}"
        ),
        "cells": draw(_mode_cells(cells), "cells", "Correlation of every mode with every cell"),
        "clusters": _cluster_words(cells),
        "combinations": draw(
            figures.combinations_figure(combined), "combinations", "Counts of combinations"
        ),
        "combination_fields": [] if mean_fields is None else draw(
            mean_fields, "combination-fields",
            f"Mean receptive field of cell {retina.cell} for each combination of modes",
        ),
        "rows": combined.head(_COMBINATIONS).to_dict("records"),
        "n_rows": len(combined),
        "explained": draw(
            figures.explained_figure(explained, cell=retina.number),
            "explained", "What explains the change of fields",
        ),
        "explained_words": _explained_words(explained),
    }  # fmt: skip


def _traces(retina: Retina, part: DictionaryPart) -> Any:
    responses, some, modes = retina.responses, retina.stretch, part.modes
    rates = {"model": responses.rates[some, retina.number]}
    if responses.recorded is not None:
        rates["recorded"] = responses.recorded[some, retina.number]
    loadings = modes.loadings[some]
    used = loadings.double().std(0) / modes.loadings.double().std(0).clamp(min=1e-30)
    weight = used * (modes.loadings.double().norm(dim=0) * modes.atoms.double().norm(dim=1))
    leading = sorted(weight.argsort(descending=True)[:_MODES].tolist())
    return figures.traces_figure(
        responses.seconds[some],
        rates,
        modes.store.matrix(modes.site, quantity=modes.quantity, sign="sum")[some],
        {f"mode {int(modes.ids[mode])}": loadings[:, mode] for mode in leading},
        events=dict(zip(responses.event_names, responses.events[:, some], strict=True)),
        cell=retina.cell,
    )


def _mode_cells(table: "pandas.DataFrame") -> Any:
    by_place = table.pivot_table(index="cell_place", columns="mode_place", values="correlation")
    rows = table.drop_duplicates("cell_place").sort_values("cell_place")
    modes = table.drop_duplicates("mode_place").sort_values("mode_place")["mode"]
    return figures.mode_cell_figure(
        torch.tensor(by_place.to_numpy(), dtype=torch.float32),
        [str(cell) for cell in rows["cell"]],
        [str(mode) for mode in modes],
        clusters=[int(cluster) for cluster in rows["cluster"]],
    )


def _combination_fields(retina: Retina, site: SitePart, part: DictionaryPart) -> Any:
    """Draw the mean field of each frequent combination, if there is one."""
    file = retina.folder.analysis("retina", site.key, part.name, "fields.npz")
    if not file.is_file():
        return None
    found, place = load_record(file, CombinationFields), retina.leading
    names = [named(columns, part.modes.ids) for columns in found.combinations]
    return figures.fields_figure(
        _scaled(found, place),
        found.temporal[:, place],
        [figures.short_combination(name, most=3) for name in names],
        notes=[f"{int(n)} frames" for n in found.counts],
        heading=f"Mean field of cell {retina.cell} by the modes that are active",
        unit="pictures on one scale; vermilion: light raises the rate",
        seconds_per_frame=retina.responses.seconds_per_frame,
    )


def _cluster_words(table: "pandas.DataFrame") -> str:
    """Say how many groups of cells there are."""
    rows = table.drop_duplicates("cell")
    silhouette = float(rows["silhouette"].iloc[0])
    if silhouette != silhouette:
        return ""
    sizes = rows["cluster"].value_counts().sort_index()
    of, mean = ", ".join(map(str, sizes)), fixed(silhouette)
    return f"{len(sizes)} groups of cells by their modes (of {of} cells; mean silhouette {mean})."


def _explained_words(table: "pandas.DataFrame") -> str:
    """Say what modes explain of the median cell, and the best of what they must beat."""
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
    applies=lambda folder: folder.analysis("retina", "fields.npz").is_file(),
    values=_values,
)
"""The page of runs of a retina."""
