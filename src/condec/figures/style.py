"""The visual language of all figures: colours, type, titles, names of lines, matrices."""

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle, takewhile
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from condec.basis.errors import DataError, OptionError, printable
from condec.basis.files import user_path

CONTRIBUTION: Final = "#0072B2"
ACTIVATION: Final = "#E69F00"
POSITIVE: Final = "#D55E00"
NEGATIVE: Final = "#5B3F8C"
SHUFFLED: Final = "#CC79A7"
GREEN: Final = "#009E73"
SKY: Final = "#56B4E9"
GREY: Final = "#8A8F96"
INK: Final = "#1B1F24"
MUTED: Final = "#5F6873"
RULE: Final = "#DFE3E8"
RANKINGS: Final = {
    "log_odds_modes": ("modes of log-odds", "#332288"),
    "modes": ("modes", CONTRIBUTION),
    "best_mode": ("best mode (paper)", SKY),
    "mode_sum": ("modes by correlation", "#44AA99"),
    "activation_modes": ("modes of activations", ACTIVATION),
    "log_odds_difference": ("log-odds less others'", "#117733"),
    "mean_contribution": ("mean contribution", GREEN),
    "contribution_difference": ("contribution less others'", "#7A9A01"),
    "activation_difference": ("activation less others'", "#A0522D"),
    "unit_correlation": ("best single units", SHUFFLED),
    "head_weights": ("final-layer weights", POSITIVE),
    "random": ("random units", GREY),
    "random_modes": ("random modes", MUTED),
}
"""Name and colour of every ranking of a control curve that has a known name."""
_MOST_NAMES: Final = 40
"""Sites that are named along an axis: of more, so many of them."""
_LONG: Final = 22
"""Characters of the longest name of a site that is drawn whole."""
_OTHER_COLOURS: Final = ("#AA4499", "#999933")

STYLE: Final[dict[str, Any]] = {
    "font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY, "axes.labelcolor": MUTED, "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 200,
    # Names come from models and data: a dollar is a dollar.
    "text.parse_math": False,
    # The same figure gives the same bytes: identifiers are hashed with this, not at random.
    "svg.hashsalt": "condec", "svg.fonttype": "none", "pdf.fonttype": 42,
} | {
    f"{side}tick.{key}": value
    for side in "xy"
    for key, value in (
        ("color", MUTED), ("labelsize", 8.5), ("major.width", 0.7), ("major.size", 3),
    )
}  # fmt: skip
_WEB_FONTS: Final = (
    "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
)
SIGNED: Final = LinearSegmentedColormap.from_list(
    "condec_signed", [NEGATIVE, "#B9AFD0", "#FFFFFF", "#F0B98F", POSITIVE]
)
"""Colours from negative (violet) over zero (white) to positive (vermilion)."""


def rankings_in(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return name for readers and colour of every ranking of a column, known ones first."""
    present = dict.fromkeys(names)
    others = (name for name in present if name not in RANKINGS)
    return {name: RANKINGS[name] for name in RANKINGS if name in present} | {
        name: (name.replace("_", " "), colour)
        for name, colour in zip(others, cycle(_OTHER_COLOURS))
    }


def styled() -> AbstractContextManager[None]:
    """Make figures in condec's style inside the context; matplotlib's settings come back after."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]  # matplotlib lists 320 keys


def literal(text: str, longest: int = 60) -> str:
    r"""Return a text from outside as one line to draw: no control characters, cut where long.

    >>> literal("one\n\x00two"), literal("abcdef", 4)
    ('one \\x00two', 'abc…')
    """
    line = printable(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, the same bytes every time: no date, no random identifier.

    The path ends in ``.svg`` or ``.pdf`` (line plots; text stays text) or ``.png``, or it is an
    OptionError.
    """
    path = user_path(path)
    with styled(), warnings.catch_warnings():
        # Names may have signs that the font lacks: browsers find them elsewhere.
        warnings.filterwarnings("ignore", r"Glyph \d+ |Matplotlib currently does not support")
        if path.suffix == ".svg":
            buffer = io.BytesIO()
            blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(buffer, format="svg", metadata=blank)
            text = buffer.getvalue().decode().replace("'DejaVu Sans', sans-serif", _WEB_FONTS)
            path.write_text(text.replace("'DejaVu Sans'", _WEB_FONTS), encoding="utf-8")
        elif path.suffix == ".png":
            figure.savefig(path, format="png", metadata={"Software": None})
        elif path.suffix == ".pdf":
            nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            figure.savefig(path, format="pdf", metadata=nothing)
        else:
            raise OptionError(
                f"save_figure: expected a path ending in .svg, .png or .pdf; got {path}"
            )
    return path


def panels(number: int, *, height: float, width: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes side by side; sizes in inches, the width of one."""
    figure = Figure(figsize=(width * number, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


@contextmanager
def chart(
    text: str, unit: str, *, height: float = 2.7, width: float = 5.0
) -> Iterator[tuple[Figure, Axes]]:
    """Give a styled figure of one panel with its title."""
    with styled():
        figure, (axis,) = panels(1, height=height, width=width)
        title(axis, text, unit)
        yield figure, axis


def title(axis: Axes, text: str, unit: str) -> None:
    """Write the title, and under it in grey what the axis counts: nothing to read sideways."""
    # Alone, a panel begins where its figure begins, so that figures in a column line up.
    alone = len(axis.figure.axes) == 1
    start: Any = ("figure fraction", "axes fraction") if alone else "axes fraction"
    axis.set_label(f"{text}: {unit}")  # not drawn: `described` reads it
    # Reserves the height; the words themselves take no part in the layout.
    axis.set_title(" \n ", pad=4)
    lines: list[tuple[str, float, dict[str, Any]]] = [
        (text, 18, {"fontsize": 10.5, "fontweight": "bold"}),
        (unit, 5, {"fontsize": 8.5, "color": MUTED}),
    ]
    for line, above, options in lines:
        axis.annotate(
            literal(line, 100), (0, 1), (2 * alone, above), xycoords=start,
            textcoords="offset points", annotation_clip=False, **options,
        ).set_in_layout(False)  # fmt: skip


def described(figure: Figure) -> str:
    """Say what a figure shows: the titles of its panels, and what they count."""
    return "; ".join(label for axis in figure.axes if ": " in (label := str(axis.get_label())))


def name_lines(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names at the right end of lines, moved apart where they would overlap."""
    named = sorted((float(y), text, colour) for y, text, colour in ends if text and np.isfinite(y))
    places: list[float] = []
    to_axes = axis.transData + axis.transAxes.inverted()
    for y, _, _ in named:
        place = float(to_axes.transform((axis.get_xlim()[1], y))[1])
        places.append(max(place, places[-1] + 0.085) if places else place)
    too_high = max(0.0, places[-1] - 0.97) if places else 0.0
    for place, (_, text, colour) in zip(places, named, strict=True):
        _name(axis, text, colour, (1.0, place - too_high), 0.0, "center")


def list_names(axis: Axes, names: Sequence[tuple[str, str]]) -> None:
    """Write names in their colours at the top right corner: no box, no keys."""
    for number, (text, colour) in enumerate(names):
        _name(axis, text, colour, (1.0, 1.0), -12.0 * number, "top")


def _name(
    axis: Axes, text: str, colour: str, at: tuple[float, float], above: float, va: str
) -> None:
    axis.annotate(
        literal(text), at, (5, above), xycoords="axes fraction", textcoords="offset points",
        color=colour, va=va, fontweight="bold",
    )  # fmt: skip


def in_percent(axis: Axis) -> None:
    """Write the ticks of an axis of shares in percent."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def draw_matrix(
    axis: Axes, values: np.ndarray, reach: float, *, middle: float = 0.0, aspect: Any = None,
    unknown: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Draw a matrix without frame: white is `middle`, full colour `reach` away from it.

    Cells of `unknown` are grey: what was not measured must not look like no change.
    """
    limits: dict[str, Any] = {"vmin": middle - reach, "vmax": middle + reach}
    image = axis.imshow(values, cmap=SIGNED, aspect=aspect, interpolation="nearest", **limits)
    if unknown is not None:
        axis.imshow(np.where(unknown, 1.0, np.nan), cmap=ListedColormap([RULE]))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    ticks = (middle - reach, middle, middle + reach)
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.035, pad=0.02, ticks=ticks)
    bar.ax.set_yticklabels([f"{tick:.3g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def name_cells(axis: Axes, names: Sequence[str], size: float) -> None:
    """Name rows and columns of a square matrix; long names stand upright below it."""
    names = [literal(name) for name in names]
    axis.set_yticks(range(len(names)), names, fontsize=size)
    flat = max(map(len, names), default=0) <= 2
    axis.set_xticks(range(len(names)), names, fontsize=size, rotation=0 if flat else 90)


def site_axis(axis: Axes, sites: Sequence[str]) -> None:
    """Name sites along x, slanted where names would run into each other."""
    names = short_names(sites)
    step = -(-len(names) // _MOST_NAMES)
    axis.set_xticks(range(0, len(names), step), names[::step])
    if sum(len(name) for name in names) > 44:
        for label in axis.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    side = max(0.35, 0.04 * len(names))
    axis.set_xlim(-side, len(names) - 1 + side)


def short(site: str) -> str:
    """Shorten a long site name to its end: that is where names mostly differ."""
    site = literal(site[-60:])
    return site if len(site) <= _LONG else f"...{site[-19:]}"


def short_names(sites: Sequence[str]) -> list[str]:
    """Shorten names of sites, where some are long, to the parts in which they differ.

    >>> short_names(["model.layers.0.mlp.down_proj:input", "model.layers.1.mlp.down_proj:input"])
    ['...layers.0...', '...layers.1...']
    """
    parts = [site.split(".") for site in sites]
    if len({*sites}) > 1 and any(len(site) > _LONG for site in sites):
        # One part of what comes before stays: a number alone names nothing.
        before = max(_n_common(parts) - 1, 0)
        after = _n_common([part[:before:-1] for part in parts])
        inner = [".".join(part[before : len(part) - after]) for part in parts]
        dots = ["..." if number else "" for number in (before, after)]
        sites = [f"{dots[0]}{name}{dots[1]}" for name in inner]
    return [short(site) for site in sites]


def _n_common(lists: Sequence[Sequence[str]]) -> int:
    columns = zip(*lists, strict=False)
    return sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))


def not_empty(table: pandas.DataFrame, what: str) -> None:
    """Refuse to draw nothing."""
    if table.empty:
        raise DataError(f"{what}: the table holds no such row; nothing to draw")
