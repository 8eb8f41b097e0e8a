"""Builds the pages of a report from a run folder."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
import tomli_w

from condec.basis import registry
from condec.basis.files import writing
from condec.report import facts, sentences, tables, words
from condec.report.cards import mode_cards
from condec.report.drawing import PARTS, Studio, charts_of_dictionary, charts_of_run
from condec.report.figures import display_for, smoothing
from condec.report.reading import DictionaryPart, RunPart, SitePart, read_run
from condec.store import RunFolder

LINES: Final = 400
"""So many modes at most are listed in the table of a dictionary."""
_HERE: Final = Path(__file__).parent
_SIGNS: Final = {
    "positive": "positive parts",
    "negative": "negative parts",
    "sum": "sums",
    "concat": "positive and negative parts",
}


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that a package adds to reports, declared in the group ``condec.pages``.

    Attributes
    ----------
    name, file : str
        What links to it are called, and its file: ``Retina``, ``retina.html``.
    template : Path
        Of Jinja; it may extend ``base.html.jinja`` and import macros of ``parts.html.jinja``.
    applies : callable
        From a run folder to whether it has what the page shows.
    values : callable
        From the run, and where figures are stored, to what the template takes.
    """

    name: str
    file: str
    template: Path
    applies: Callable[[RunFolder], bool]
    values: Callable[[RunPart, Studio], Mapping[str, Any]]


def build_report(run_folder: str | Path, pages: Sequence[Page] | None = None) -> Path:
    """Make the report of a run folder.

    An earlier report is replaced once the new one is whole.

    Parameters
    ----------
    run_folder : path
    pages : sequence of Page, optional
        Pages besides those of the sites; by default those of all installed packages. Only those
        that apply to the run are made.

    Returns
    -------
    Path
        ``report/index.html`` in the run folder; open it with any browser.

    Raises
    ------
    StoreError
        There is no complete store, a file is damaged, or the report cannot be written.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    if pages is None:
        pages = [registry.find("condec.pages", name) for name in registry.names("condec.pages")]
    fresh, final, old = (folder / name for name in (".report.new", "report", ".report.old"))
    try:
        with writing(f"{folder}: report"):
            for leftover in (fresh, old):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir()
            write_pages(run, fresh, [page for page in pages if page.applies(run.folder)])
            if final.exists():
                final.rename(old)
            fresh.rename(final)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final / "index.html"


def write_pages(run: RunPart, folder: Path, pages: Sequence[Page] = ()) -> None:
    """Write the pages of a run, with their pictures, into a folder that is there."""
    shutil.copytree(_HERE / "static", folder / "assets")
    (folder / "sites").mkdir()
    studio = Studio(folder)
    templates = _environment(_HERE / "templates", *(page.template.parent for page in pages))
    shared = {
        "run": run,
        "title": facts.title(run),
        "version": str(run.store.recipe.get("condec") or metadata.version("condec")),
        "pages": pages,
    }

    def write(file: str, template: str, values: Mapping[str, Any]) -> None:
        text = templates.get_template(template).render(**shared, **values)
        (folder / file).write_text(text, encoding="utf-8")

    write("index.html", "index.html.jinja", {"root": "", **_index(run, studio)})
    for page in pages:
        write(page.file, page.template.name, {"root": "", "page": page, **page.values(run, studio)})
    for number, site in enumerate(run.sites):
        values = {
            "root": "../",
            "site": site,
            "number": number,
            "before": run.sites[number - 1] if number else None,
            "after": run.sites[number + 1] if number + 1 < len(run.sites) else None,
            "facts": list(facts.of_site(site)),
            "fitted": [_dictionary(run, site, part, studio) for part in site.parts],
            "parts": PARTS,
        }
        write(f"sites/{site.folder}.html", "site.html.jinja", values)


def _index(run: RunPart, studio: Studio) -> dict[str, Any]:
    """Return what the first page shows."""
    lines, parts = tables.lines(run), [part for _, part in run.parts]
    statistics = [(words.twin_words(twin.twin), twin.statistics) for twin in run.twins]
    return {
        "lede": facts.lede(run),
        "facts": list(facts.of_run(run)),
        "warnings": list(sentences.warnings(run)),
        "sites": tables.table(tables.SITES, lines),
        "chance": tables.table(tables.CHANCE, [line for line in lines if line.part is not None]),
        "checked": all(
            any(map(found, parts)) for found in (tables.rivals_in_words, tables.stable_modes)
        ),
        "charts": studio.charts(charts_of_run(run)),
        "statistics": [
            (name, tables.table(tables.STATISTICS, found.to_dict("records")))
            for name, found in [("", run.statistics), *statistics]
            if found is not None
        ],
        "trends": sentences.trends(run),
        "recipe": list(facts.recipe(run)),
        "plan": tomli_w.dumps(dict(run.plan)) if run.plan else "",
    }


def _dictionary(
    run: RunPart, site: SitePart, part: DictionaryPart, studio: Studio
) -> dict[str, Any]:
    """Return what the page of a site shows of one dictionary."""
    stem, rows, maps = f"{site.folder}-{part.name}-", tables.mode_rows(run, part), part.maps
    drawn = charts_of_dictionary(run, site, part, [row["row"] for row in rows])
    first = None if maps is None else maps.pictures[0].numpy()
    return {
        "name": part.name,
        "learnt_from": f"{_SIGNS[part.modes.sign]} of the {part.modes.quantity}s",
        "learner": words.plain(part.dictionary.learner.to_dict()),
        "charts": studio.charts(drawn, stem),
        "numbers": tables.number_table(part),
        "curves": tables.table(tables.CURVES, list(tables.curve_rows(part))),
        "rivals": tables.rival_table(part),
        "modes": tables.table(tables.MODES, rows[:LINES]),
        "n_modes": len(rows),
        "about_curves": list(sentences.about_curves(part)),
        "about_effects": list(sentences.about_side_effects(part, site.info.n_units, run.hierarchy)),
        "about": list(sentences.about_dictionary(run, part)),
        "cards": [
            (card, list(studio.tiles(run, part, card["place"], f"{site.folder}/{part.name}")))
            for card in mode_cards(run, part, rows)
        ],
        "map_target": "" if maps is None else words.target_words(maps.target),
        "signed": first is not None and display_for(first) == "signed",
        "smoothed": 0.0 if first is None else smoothing(first),
        "n_map_units": 0 if maps is None else maps.units.shape[1],
    }


def _environment(*folders: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": words.fixed,
        "percent": words.percent,
        "count": words.count,
        "breakable": words.breakable,
        "url": lambda path: quote(path, safe="/"),
    }
    return environment
