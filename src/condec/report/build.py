"""Builds the pages of a report from a run folder."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
import tomli_w

from condec.basis.files import writing
from condec.report import checks, summary, words
from condec.report.cards import LINES, mode_cards, mode_lines
from condec.report.control import control_lines, control_sentences
from condec.report.drawing import PARTS, Studio
from condec.report.figures import display_for, smoothing
from condec.report.reading import Fitted, RunPart, SitePart, read_run
from condec.report.side_effects import side_effect_sentences

_HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class MorePage:
    """A page beside the first one, of what only some runs have.

    Attributes
    ----------
    file, name : str
        Of the page: ``retina.html``, and what links to it are called.
    template : str
        Its name among the templates.
    values : callable
        From the run and where figures are drawn to what the template takes.
    """

    file: str
    name: str
    template: str
    values: Callable[[RunPart, Studio], dict[str, Any]]


def build_report(run_folder: str | Path, more: Sequence[MorePage] = ()) -> Path:
    """Make the report of a run folder.

    An earlier report is replaced once the new one is whole.

    Parameters
    ----------
    run_folder : path
        See the module's description for what is read.
    more : sequence of MorePage, optional
        Pages that stand beside those of the sites.

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
    fresh, final, old = (folder / name for name in (".report.new", "report", ".report.old"))
    try:
        with writing(f"{folder}: report"):
            for leftover in (fresh, old):
                shutil.rmtree(leftover, ignore_errors=True)
            fresh.mkdir()
            _write_pages(run, fresh, more)
            if final.exists():
                final.rename(old)
            fresh.rename(final)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final / "index.html"


def _write_pages(run: RunPart, folder: Path, more: Sequence[MorePage] = ()) -> None:
    shutil.copytree(_HERE / "static", folder / "assets")
    (folder / "sites").mkdir()
    studio, pages = Studio(folder), _environment()
    shared = {
        "run": run,
        "title": summary.title(run),
        "version": str(run.store.recipe.get("condec") or metadata.version("condec")),
        "more": more,
    }
    index = pages.get_template("index.html.jinja").render(
        **shared,
        root="",
        lede=summary.lede(run),
        facts=summary.facts(run),
        warnings=list(summary.warnings(run)),
        lines=[summary.site_line(site) for site in run.sites],
        figures=studio.overview(run),
        checks=checks.check_lines(run),
        statistics=_records(run.statistics),
        twins=[
            (words.control_words(twin.control), _records(twin.statistics))
            for twin in run.twins
            if twin.statistics is not None
        ],
        trends=summary.trends(run),
        recipe=summary.recipe(run),
        plan=tomli_w.dumps(dict(run.plan)) if run.plan else "",
    )
    (folder / "index.html").write_text(index, encoding="utf-8")
    for one in more:
        content = pages.get_template(one.template).render(
            **shared, root="", page=one, **one.values(run, studio)
        )
        (folder / one.file).write_text(content, encoding="utf-8")
    template = pages.get_template("site.html.jinja")
    for number, site in enumerate(run.sites):
        page = template.render(
            **shared,
            root="../",
            site=site,
            line=summary.site_line(site),
            number=number,
            before=run.sites[number - 1] if number else None,
            after=run.sites[number + 1] if number + 1 < len(run.sites) else None,
            control=studio.control(site),
            control_lines=control_lines(site),
            control_words=list(control_sentences(site)),
            fitted=[_dictionary(run, site, fitted, studio) for fitted in site.fitted],
            parts=PARTS,
        )
        (folder / "sites" / f"{site.folder}.html").write_text(page, encoding="utf-8")


def _dictionary(run: RunPart, site: SitePart, fitted: Fitted, studio: Studio) -> dict[str, Any]:
    """Everything that a page shows of one dictionary."""
    lines = mode_lines(run, fitted)
    cards = mode_cards(run, fitted, lines)
    maps = fitted.maps
    tiles = {
        card.place: list(studio.tiles(run, site, fitted, card.place))
        for card in cards
        if card.place is not None
    }
    return {
        "name": fitted.name,
        "learner": words.plain(fitted.dictionary.learner.to_dict()),
        "modes": fitted.modes,
        "numbers": checks.numbers(fitted),
        "use": studio.use(site, fitted),
        "side_effects": studio.side_effects(run, site, fitted),
        "steering": studio.steering(site, fitted),
        "side_effect_words": list(side_effect_sentences(fitted, site.info.n_units, run.hierarchy)),
        "figures": studio.fitted(run, site, fitted, lines),
        "sentences": list(checks.sentences(run, fitted)),
        "controls": checks.control_rows(fitted),
        "stability": studio.stability(site, fitted),
        "training": studio.training(site, fitted),
        "cards": [(card, [] if card.place is None else tiles[card.place]) for card in cards],
        "lines": lines[:LINES],
        "n_lines": len(lines),
        "has_labels": fitted.has_labels,
        "map_target": "" if maps is None else words.target_words(maps.target),
        "signed": maps is not None and display_for(maps.pictures[0].numpy()) == "signed",
        "smoothed": 0.0 if maps is None else smoothing(maps.pictures[0].numpy()),
        "n_map_units": 0 if maps is None else maps.units.shape[1],
    }


def _records(table: Any) -> list[dict[str, Any]]:
    return [] if table is None else table.to_dict("records")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
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
