"""The flow of a target through the parts of sites, from left to right."""

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib.patheffects as effects
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.figures.style import GREY, INK, MUTED, NEGATIVE, POSITIVE, literal, styled

_MOST_NODES: Final = 40
_FEWEST: Final = 3
"""Nodes of a site that are drawn at least."""
_THINNEST: Final = 0.25
"""Width in points below which an edge is not drawn."""
_BODY, _LINE, _BAR, _GAP = 300.0, 12.0, 6.0, 3.0
"""Points: height of the column with most flow, of a name, width of a node, between nodes."""

_MEANING: Final = {
    "left over": "Left over: what no mode answers for.",
    "past it": "Past it: what goes past the site.",
    "quadrature": "Quadrature: what the steps of the path miss.",
}


@dataclass
class _Node:
    """A node that is drawn, in points: its left end and top, its height, where edges go on."""

    x: float
    y: float
    height: float
    left: float = 0.0
    right: float = 0.0


def flow_figure(
    nodes: pandas.DataFrame, edges: pandas.DataFrame, n_inputs: int = 1, width: float = 10.0
) -> Figure:
    """Draw what flows from the parts of every site to those of the next, and into the target.

    `nodes` and `edges` as in `condec.explanation.Graph`, with a column ``goes_with``: what is said
    of a node besides. `width` in inches. OptionError for more than 13 sites, or a width below 3.
    """
    at_least("figure", 3.0, width=width)
    columns = dict.fromkeys(nodes["site"])
    if len(columns) > (most := _MOST_NODES // _FEWEST + 1):
        raise OptionError(
            f"figure: {len(columns) - 1} sites make more than {_MOST_NODES} nodes; explain with "
            f"modes of at most {most - 1} sites"
        )
    kept = _kept(nodes, len(columns))
    through = _through(edges, kept["name"])
    size = max(sum(through[name] for name in part["name"]) for _, part in kept.groupby("site"))
    scale = _BODY / size if size else 0.0
    seen = kept["name"].map(through) * scale >= 2 * _THINNEST
    kept = kept[seen | kept["part"].map(_is_mode)]
    drawn = edges[edges["from"].isin(kept["name"]) & edges["to"].isin(kept["name"])]
    drawn = drawn[drawn["flow"].abs() * scale >= _THINNEST]
    whole = float(edges["flow"].abs().sum())
    left_out = 1 - float(drawn["flow"].abs().sum()) / whole if whole else 0.0
    head = _head(n_inputs, left_out, set(kept["part"]), width)
    with styled():
        return _draw(kept, drawn, through, scale, list(columns), head, 72 * width)


def _kept(nodes: pandas.DataFrame, n_columns: int) -> pandas.DataFrame:
    """Keep the strongest nodes of every site: modes by what they add, then what is no mode."""
    size = nodes[["adds", "takes"]].abs().max(axis=1)
    rest = ~nodes["part"].map(_is_mode)
    order = nodes.assign(size=size, rest=rest).sort_values("size", ascending=False)
    kept = order.groupby("site", sort=False).head((_MOST_NODES - 1) // max(n_columns - 1, 1))
    modes = kept[~kept["rest"]].sort_values("net", ascending=False, kind="stable")
    return pandas.concat([modes, kept[kept["rest"]].sort_index()])


def _through(edges: pandas.DataFrame, names: pandas.Series) -> Mapping[str, float]:
    """What flows through every node, without signs: the larger of what comes and what goes."""
    sizes = edges.assign(flow=edges["flow"].abs())
    sums = [sizes.groupby(side)["flow"].sum() for side in ("from", "to")]
    return {name: max(float(side.get(name, 0.0)) for side in sums) for name in names}


def _head(n_inputs: int, left_out: float, parts: Collection[str], width: float) -> list[str]:
    of = "for one input" if n_inputs == 1 else f"mean over {n_inputs} inputs"
    words = (
        "Width: how much of the target flows from part to part of the sites, from left to right, "
        f"{of}. Numbers: what each part adds to the target, less what it takes. "
    ) + _not_drawn(left_out)
    for part, meaning in _MEANING.items():
        words += f" {meaning}" * (part in parts)
    return textwrap.wrap(words, int(width * 72 / 4.4))


def _not_drawn(left_out: float) -> str:
    if left_out < 1e-9:
        return "All flow is drawn."
    share = f"{100 * left_out:.1f} %" if left_out >= 0.0005 else "Less than 0.1 %"
    return f"{share} of all flow, the thinnest, is not drawn."


def _draw(
    nodes: pandas.DataFrame, edges: pandas.DataFrame, through: Mapping[str, float], scale: float,
    columns: Sequence[str], head: Sequence[str], width: float,
) -> Figure:  # fmt: skip
    narrow = width < 500
    font, margin = (6.5, 48.0) if narrow else (8.0, 96.0)
    apart = (width - margin - 8) / (len(columns) - 1)
    top = 58 + 11.0 * len(head)
    placed: dict[str, _Node] = {}
    bottom = top
    for number, site in enumerate(columns):
        y = top
        for name in nodes.loc[nodes["site"] == site, "name"]:
            height = max(through[name] * scale, 1.0)
            slot = max(height, _LINE)
            placed[name] = _Node(8 + apart * number, y + (slot - height) / 2, height)
            y += slot + _GAP
        bottom = max(bottom, y)
    figure = Figure(figsize=(width / 72, (bottom + 6) / 72))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(bottom + 6, 0))
    axis.set_axis_off()
    _write_head(axis, head)
    letters = max(8, int(apart / (0.62 * font)))
    for number, site in enumerate(columns):
        text = literal(site if len(site) < letters else f"...{site[5 - letters :]}")
        axis.text(8 + apart * number, top - 8, text, fontsize=font + 0.5, fontweight="bold")
    _draw_edges(axis, edges, placed, scale)
    digits = math.floor(math.log10(float(nodes["net"].abs().max()) or 1.0))
    halo = [effects.withStroke(linewidth=2, foreground="white", alpha=0.8)]
    columns_of = nodes[["name", "part", "goes_with", "net", "error"]]
    for name, part, goes_with, net, error in columns_of.itertuples(index=False):
        at, is_rest = placed[str(name)], not _is_mode(str(part))
        axis.add_patch(
            Rectangle((at.x, at.y), _BAR, at.height, color=GREY if is_rest else INK, lw=0)
        )
        words = _words(str(part), str(goes_with), net, error, max(0, (2 if narrow else 3) - digits))
        text = next((some for some in words if len(some) <= letters), words[-1])
        axis.text(
            at.x + _BAR + 2, at.y + at.height / 2, literal(text), va="center", fontsize=font,
            path_effects=halo, color=MUTED if is_rest else INK,
        )  # fmt: skip
    return figure


def _write_head(axis: Axes, lines: Sequence[str]) -> None:
    title = "From layer to layer"
    axis.text(8, 14, title, fontsize=10.5, fontweight="bold")
    for x, text, colour in ((8, "raises the target", POSITIVE), (96, "lowers it", NEGATIVE)):
        axis.text(x, 26, text, fontsize=8, fontweight="bold", color=colour)
    for number, line in enumerate(lines):
        axis.text(8, 38 + 11.0 * number, line, fontsize=8, color=MUTED)
    axis.set_label(f"{title}: {' '.join(lines)}")  # not drawn: `described` reads it


def _draw_edges(
    axis: Axes, edges: pandas.DataFrame, placed: Mapping[str, _Node], scale: float
) -> None:
    """Draw ribbons; at every node they stand in the order of what is at their other end."""
    ribbons = [
        [placed[start], placed[end], abs(flow) * scale, flow > 0, 0.0, 0.0]
        for start, end, flow in zip(edges["from"], edges["to"], edges["flow"], strict=True)
    ]
    for ribbon in sorted(ribbons, key=lambda r: r[1].y):
        ribbon[4] = ribbon[0].y + ribbon[0].right
        ribbon[0].right += ribbon[2]
    for ribbon in sorted(ribbons, key=lambda r: r[0].y):
        ribbon[5] = ribbon[1].y + ribbon[1].left
        ribbon[1].left += ribbon[2]
    for start, end, thick, rises, y0, y1 in ribbons:
        x0, x1 = start.x + _BAR, end.x
        middle = (x0 + x1) / 2
        corners = [
            (x0, y0), (middle, y0), (middle, y1), (x1, y1), (x1, y1 + thick), (middle, y1 + thick),
            (middle, y0 + thick), (x0, y0 + thick), (x0, y0),
        ]  # fmt: skip
        codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
        colour = POSITIVE if rises else NEGATIVE
        axis.add_patch(PathPatch(Path(corners, codes), facecolor=colour, alpha=0.45, lw=0))


def _words(part: str, goes_with: str, net: Any, error: Any, decimals: int) -> list[str]:
    """Return what is written beside a node, the longest first."""
    number = f"{net:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    number = number if any(digit in number for digit in "123456789") else "0"
    spread = f" \N{PLUS-MINUS SIGN} {error:.{decimals}f}" if error == error else ""
    if part == "target":
        return [number + spread, number]
    short = part.replace("other modes", "others")
    found = [f"{part} {number}", f"{short} {number}", short, short.removeprefix("mode ")]
    if spread:
        found.insert(0, f"{part} {number}{spread}")
    if goes_with:
        also = f" \N{MIDDLE DOT} {literal(goes_with.split(',')[0], 16)}"
        found = [text.replace(part, part + also) for text in found[:-2]] + found
    return found


def _is_mode(part: str) -> bool:
    return part == "target" or part.startswith("mode ")
