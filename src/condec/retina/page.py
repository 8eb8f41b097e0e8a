"""The page of a retina: rates, contributions and loadings over time, fields, modes and cells."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure

from condec.report import Page
from condec.report.drawing import Chart, Drawn, Studio
from condec.report.facts import Fact
from condec.report.reading import DictionaryPart, RunPart
from condec.report.words import count, fixed, percent
from condec.retina import figures
from condec.retina.combinations import CombinationFields, named
from condec.retina.fields import ReceptiveFields
from condec.retina.link import TABLES
from condec.retina.probes import PROBES
from condec.retina.responses import Responses
from condec.retina.sources import LEFT, PAST, FieldSources, FlipFields
from condec.store import RunFolder

if TYPE_CHECKING:
    import pandas

STRETCH: Final = 250
"""Frames that are drawn over time, as many as in Melander et al. 2026, figure 8B."""
_STRIP: Final = 8
_MODES: Final = 8
_COMBINATIONS: Final = 40


class Retina:
    """Results of a run about a retina, and the cell that stands out.

    `leading` is the place of the field with the largest share of squares that is not its mean,
    `number` its output of the model, `cell` its name; `stretch` has the samples to draw over time,
    where that cell's rate varies most.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.responses = folder.read_record(folder.analysis("retina", "responses.npz"), Responses)
        self.fields = folder.read_record(folder.analysis("retina", "fields.npz"), ReceptiveFields)
        pictures = self.fields.strength[..., None, None] * self.fields.spatial
        whole = pictures.square().mean(0).sum((1, 2)).clamp(min=1e-30)
        self.leading = int((pictures.var(0, correction=0).sum((1, 2)) / whole).argmax())
        self.number = int(self.fields.cells[self.leading])
        self.cell = self.responses.cells[self.number]
        rate = self.responses.rates[:, self.number].double()
        length = min(STRETCH, len(rate))
        start = int(rate.unfold(0, length, 1).var(1, correction=0).argmax())
        self.stretch = slice(start, start + length)


def _values(run: RunPart, studio: Studio) -> dict[str, Any]:
    retina = Retina(run.folder)
    rows, part = retina.fields.rows, retina.stretch
    inside = retina.fields.select((rows >= part.start) & (rows < part.stop))
    parts = []
    for site, one in run.parts:
        found = [run.folder.read_table("retina", site.key, one.name, name) for name in TABLES]
        tables = [table for table in found if table is not None]
        if len(tables) == len(TABLES):
            cells, combined, sources = tables
            parts.append({
                "site": site,
                "name": one.name,
                "charts": studio.charts(
                    _charts_of_site(retina, one, cells, combined, sources),
                    f"retina-{site.folder}-{one.name}-",
                ),
                "clusters": _cluster_words(cells),
                "rows": combined.head(_COMBINATIONS).to_dict("records"),
                "n_rows": len(combined),
                "sources_words": _sources_words(sources),
            })  # fmt: skip
    return {
        "found": list(_facts(retina)),
        "cell": retina.cell,
        "film": _film(retina, inside, studio),
        "charts": studio.charts(_charts(retina, inside), "retina-"),
        "site_parts": parts,
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
    silent = [c for c, one in zip(responses.cells, responses.rates.T, strict=True) if not one.any()]
    if silent:
        yield Fact(count(len(silent)), "cells without spikes", ", ".join(silent[:5]))
    changing = f"{both} of {polarity.shape[1]}"
    yield Fact(changing, "cells whose field changes its sign", "somewhere")


def _film(retina: Retina, inside: ReceptiveFields, studio: Studio) -> Drawn | None:
    """Draw the leading cell's field from frame to frame, as a moving picture."""
    if len(inside) < 2:
        return None
    pictures = figures.field_film(inside, retina.leading)
    file = studio.moving(pictures, "figures/retina-film", seconds=0.08)
    return Drawn(file, "Receptive field from frame to frame", f"{len(inside)} frames")


def _charts(retina: Retina, inside: ReceptiveFields) -> Iterator[Chart]:
    """Draw the leading cell's fields, and the rates to the standard probes that were shown."""
    if len(inside):
        # The strongest fields of the stretch that are apart in time.
        apart, chosen = max(1, len(inside) // (3 * _STRIP)), list[int]()
        for sample in inside.strength[:, retina.leading].argsort(descending=True).tolist():
            if len(chosen) < _STRIP and all(abs(sample - other) > apart for other in chosen):
                chosen.append(sample)
        fields = inside.select(sorted(chosen))
        yield Chart("strip", "fields", figures.fields_figure(
            fields, retina.leading,
            [f"{float(at):.2f} s" for at in retina.responses.seconds[fields.rows]],
            heading=f"Receptive field of cell {retina.cell}",
            seconds_per_frame=retina.responses.seconds_per_frame,
        ))  # fmt: skip
    files = {name: retina.folder.analysis("retina", "probes", f"{name}.npz") for name in PROBES}
    read, found = retina.folder.read_record, retina.folder.ledger.found
    shown = {name: read(file, Responses) for name, file in files.items() if found(file)}
    if shown:
        yield Chart("probes", "probes", figures.probes_figure(shown))


def _charts_of_site(
    retina: Retina, part: DictionaryPart, cells: "pandas.DataFrame", combined: "pandas.DataFrame",
    shares: "pandas.DataFrame",
) -> Iterator[Chart]:  # fmt: skip
    """Draw what is known of the modes of one site."""
    yield Chart("traces", "traces", _traces(retina, part))
    yield Chart("cells", "cells", figures.mode_cell_figure(cells))
    file = retina.folder.analysis("retina", part.modes.site.key, part.name, "fields.npz")
    if retina.folder.ledger.found(file):
        found = retina.folder.read_record(file, CombinationFields)
        active = [named(columns, part.modes.ids) for columns in found.combinations]
        yield Chart("combination_fields", "combination-fields", figures.fields_figure(
            found, retina.leading, [figures.short_combination(name, most=3) for name in active],
            heading=f"Mean field of cell {retina.cell} by the modes that are active",
            seconds_per_frame=retina.responses.seconds_per_frame,
            notes=[f"{int(n)} frames" for n in found.counts],
        ))  # fmt: skip
    yield Chart("combinations", "combinations", figures.combinations_figure(combined))
    names = retina.responses.cells
    yield Chart("sources", "sources", figures.sources_figure(shares, names))
    read = retina.folder.read_record
    place = partial(retina.folder.analysis, "retina", part.modes.site.key, part.name)
    sources = read(place("sources.npz"), FieldSources)
    inside = (sources.rows >= retina.stretch.start) & (sources.rows < retina.stretch.stop)
    if int(inside.sum()) > 1:
        near = replace(sources, rows=sources.rows[inside], amount=sources.amount[inside])
        seconds = retina.responses.seconds[near.rows]
        yield Chart("amounts", "amounts", figures.amounts_figure(
            near, retina.leading, seconds, retina.cell
        ))  # fmt: skip
    if retina.folder.ledger.found(place("flip.npz")):
        flip = read(place("flip.npz"), FlipFields)
        at = [f"{float(time):.2f} s" for time in retina.responses.seconds[flip.rows]]
        yield Chart("flip", "flip", figures.fields_figure(
            flip, 0, list(flip.names),
            heading=f"Cell {names[int(flip.cells[0])]} changes its sign: the field before, after, "
            "and what parts give to it",
            seconds_per_frame=retina.responses.seconds_per_frame, notes=at,
        ))  # fmt: skip


def _traces(retina: Retina, part: DictionaryPart) -> Figure:
    some, modes = retina.stretch, part.modes
    loadings = modes.loadings[some]
    used = loadings.double().std(0) / modes.loadings.double().std(0).clamp(min=1e-30)
    weight = used * (modes.loadings.double().norm(dim=0) * modes.atoms.double().norm(dim=1))
    leading = sorted(weight.argsort(descending=True)[:_MODES].tolist())
    return figures.traces_figure(
        retina.responses, retina.number, some,
        modes.store.matrix(modes.site, quantity=modes.quantity, sign="sum")[some],
        {f"mode {int(modes.ids[mode])}": loadings[:, mode] for mode in leading},
    )  # fmt: skip


def _cluster_words(table: "pandas.DataFrame") -> str:
    """Say how many groups of cells there are."""
    rows = table.drop_duplicates("cell")
    silhouette = float(rows["silhouette"].iloc[0])
    if silhouette != silhouette:
        return ""
    sizes = rows["cluster"].value_counts().sort_index()
    of, mean = ", ".join(map(str, sizes)), fixed(silhouette)
    return f"{len(sizes)} groups of cells by their modes (of {of} cells; mean silhouette {mean})."


def _sources_words(table: "pandas.DataFrame") -> str:
    """Say how much of the change of fields modes answer for, and which turn signs."""
    shares = table.pivot_table(index="cell", columns="part", values="share", dropna=False)
    ends = [end for end in (LEFT, PAST) if end in shares]
    modes = fixed(float(1 - shares[ends].sum(axis=1, skipna=False).median()))
    rest = ", ".join(f"{end} {fixed(float(shares[end].median()))}" for end in ends)
    words = f"Median of cells: modes {modes}, {rest}."
    still = int(shares[ends[-1]].isna().sum())
    if still:
        words += f" The fields of {still} cells never change and have no shares."
    led = table.groupby("part")["flips"].sum().sort_values(ascending=False)
    if not led.sum():
        return f"{words} No field changes its sign."
    most = ", ".join(f"{part} in {n}" for part, n in led.head(3).items() if n)
    return f"{words} Signs change {led.sum()} times; the largest part of the change has {most}."


PAGE: Final = Page(
    name="Retina",
    file="retina.html",
    template=Path(__file__).with_name("page.html.jinja"),
    applies=lambda folder: bool(folder.ledger.found(folder.analysis("retina", "fields.npz"))),
    values=_values,
)
"""The page of runs of a retina."""
