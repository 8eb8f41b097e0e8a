"""Families of modes over depth, as the first page lists them: by flow, else by loadings."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

import pandas
import torch
from markupsafe import Markup

from condec.modes import UNNAMED
from condec.modes.families import chains, flowing
from condec.report.numbers import Flows
from condec.report.reading import RunPart
from condec.report.tables import Column
from condec.report.words import breakable, count, fixed

SHOWN: Final = 20
"""Families that are listed, those over most sites first."""


def family_rows(run: RunPart, learner: str, flows: Flows) -> list[dict[str, Any]]:
    """List the families of a learner's modes over two sites or more, the longest first.

    Each has its `modes`, in order: page, site, number and name; and `least`, its weakest link.
    Those by flow, where inputs were explained; else those of the run's table, by loadings.
    """
    table = _by_flow(run, learner, flows)
    if table is None:
        table = run.folder.read_table("families", learner)
    if table is None:
        return []
    names = {(site.key, number): name for site, part in run.parts if part.name == learner
             for number, name in _names(part.tables.get("meaning"))}  # fmt: skip
    pages = {site.key: f"{site.folder}/{learner}" for site in run.sites}
    found = list[dict[str, Any]]()
    for _, rows in table[table["length"] > 1].groupby("family", sort=False):
        pairs = list(zip(rows["site"], rows["mode"].tolist(), strict=True))
        modes = [(pages[site], site, number, names.get((site, number), ""))
                 for site, number in pairs]  # fmt: skip
        found.append({"modes": modes, "least": float(rows["link"].min())})
    return sorted(found, key=lambda one: (-len(one["modes"]), -one["least"]))


def by_flow(learner: str, flows: Flows) -> bool:
    """Tell whether the families of a learner are those by flow."""
    return any(name == learner for _, name, _ in flows.mean)


def _by_flow(run: RunPart, learner: str, flows: Flows) -> pandas.DataFrame | None:
    """Join modes by the mean flow over the inputs that were explained; None without any."""
    if not by_flow(learner, flows):
        return None
    seen = {*flows.mean, *(end for into in flows.mean.values() for end in into)}
    sites = {
        site.key: sorted(n for key, name, n in seen if (key, name) == (site.key, learner))
        for site in run.sites
    }
    sites = {key: numbers for key, numbers in sites.items() if numbers}
    links = []
    for (one, starts), (other, ends) in pairwise(sites.items()):
        flow = torch.tensor([
            [flows.mean.get((one, learner, a), {}).get((other, learner, b), 0.0) for b in ends]
            for a in starts
        ])  # fmt: skip
        links.append(flowing(flow))
    return chains(sites, links)


def _names(meaning: pandas.DataFrame | None) -> Sequence[tuple[int, str]]:
    if meaning is None:
        return ()
    named = meaning[meaning["name"] != UNNAMED]
    return list(zip(named["id"].tolist(), named["name"].astype(str), strict=True))


def _chain(row: Mapping[str, Any]) -> Markup:
    """Write the modes of a family, each with its page."""
    one = Markup('{} <a href="mode.html#{}/{}">mode {}</a>')
    named = Markup('{} <span class="faint">{}</span>')
    modes = [
        named.format(link, name) if name else link
        for page, site, number, name in row["modes"]
        for link in [one.format(breakable(site), quote(page), number, number)]
    ]
    return Markup(" &rarr; ").join(modes)


FAMILIES: Final = (
    Column("Modes, from site to site", _chain, kind="head"),
    Column("Sites", lambda row: count(len(row["modes"]))),
    Column("Weakest link", lambda row: fixed(row["least"]), "flow, or correlation of loadings"),
)  # fmt: skip
"""The table of families."""
