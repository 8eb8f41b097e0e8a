"""The visual language of all figures: colours, type, titles, names at line ends."""

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from condec.basis.errors import DataError, OptionError

if TYPE_CHECKING:
    import pandas

CONTRIBUTION: Final = "#0072B2"
ACTIVATION: Final = "#E69F00"
POSITIVE: Final = "#D55E00"
NEGATIVE: Final = "#5B3F8C"
SHUFFLED: Final = "#CC79A7"
INK: Final = "#1B1F24"
MUTED: Final = "#66707C"
RULE: Final = "#D9DDE2"
RANKINGS: Final = {
    "log_odds_modes": ("modes of log-odds", "#332288"),
    "modes": ("modes", CONTRIBUTION),
    "best_mode": ("best mode (paper)", "#56B4E9"),
    "mode_sum": ("modes by correlation", "#44AA99"),
    "activation_modes": ("modes of activations", ACTIVATION),
    "log_odds_difference": ("log-odds less others'", "#117733"),
    "mean_contribution": ("mean contribution", "#009E73"),
    "contribution_difference": ("contribution less others'", "#7A9A01"),
    "activation_difference": ("activation less others'", "#A0522D"),
    "act_grad": ("act x grad less others'", "#882255"),
    "unit_correlation": ("best single units", SHUFFLED),
    "head_weights": ("final-layer weights", POSITIVE),
    "random": ("random units", "#8A8F96"),
    "random_modes": ("random modes", "#5B6470"),
}
"""Name and colour of every ranking of a control curve that has a known name."""
_OTHER_COLOURS: Final = ("#AA4499", "#999933")

STYLE: Final[dict[str, Any]] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#9AA1A9",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
    # The same figure gives the same bytes: identifiers are hashed with this, not at random.
    "svg.hashsalt": "condec",
    "svg.fonttype": "none",
}
_WEB_FONTS: Final = (
    "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
)
SIGNED: Final = LinearSegmentedColormap.from_list(
    "condec_signed", [NEGATIVE, "#B9AFD0", "#FFFFFF", "#F0B98F", POSITIVE]
)
"""Colours from negative (violet) over zero (white) to positive (vermilion)."""


def rankings_in(table: "pandas.DataFrame") -> dict[str, tuple[str, str]]:
    """Name for readers and colour of every ranking of a table: known ones, then the others."""
    present = list(dict.fromkeys(table["ranking"]))
    others = [name for name in present if name not in RANKINGS]
    return {name: RANKINGS[name] for name in RANKINGS if name in present} | {
        name: (name.replace("_", " "), _OTHER_COLOURS[number % len(_OTHER_COLOURS)])
        for number, name in enumerate(others)
    }


def styled() -> AbstractContextManager[None]:
    """Inside it, figures are made in condec's style; matplotlib's settings come back after."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]  # matplotlib lists 320 keys


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, the same bytes every time: no date, no random identifier.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path
        Ends in ``.svg`` (line plots; its text stays text) or ``.png``.

    Returns
    -------
    Path

    Raises
    ------
    OptionError
        Another ending.
    """
    path = Path(path)
    with styled():
        if path.suffix == ".svg":
            buffer = io.BytesIO()
            blank = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(buffer, format="svg", metadata=blank)
            text = buffer.getvalue().decode().replace("'DejaVu Sans', sans-serif", _WEB_FONTS)
            path.write_text(text.replace("'DejaVu Sans'", _WEB_FONTS), encoding="utf-8")
        elif path.suffix == ".png":
            figure.savefig(path, format="png", metadata={"Software": None})
        else:
            raise OptionError(f"save_figure: expected a path ending in .svg or .png; got {path}")
    return path


def panels(number: int, *, height: float, width: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with `number` axes side by side; sizes in inches, the width of one."""
    figure = Figure(figsize=(width * number, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def title(axis: Axes, text: str, unit: str) -> None:
    """Title, and under it in grey what the axis counts: nothing to read sideways."""
    # Alone, a panel begins where its figure begins, so that figures in a column line up.
    alone = len(axis.figure.axes) == 1
    start: Any = ("figure fraction", "axes fraction") if alone else "axes fraction"
    # Reserves the height; the words themselves take no part in the layout.
    axis.set_title(" \n ", pad=4)
    lines: list[tuple[str, float, dict[str, Any]]] = [
        (text, 18, {"fontsize": 10.5, "fontweight": "bold"}),
        (unit, 5, {"fontsize": 8.5, "color": MUTED}),
    ]
    for line, above, options in lines:
        axis.annotate(
            line, (0, 1), (2 * alone, above), xycoords=start, textcoords="offset points",
            annotation_clip=False, **options,
        ).set_in_layout(False)  # fmt: skip


def name_lines(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the right end of lines, moved apart where they would overlap."""
    named = sorted((float(y), text, colour) for y, text, colour in ends if text and np.isfinite(y))
    places: list[float] = []
    to_axes = axis.transData + axis.transAxes.inverted()
    for y, _, _ in named:
        place = float(to_axes.transform((axis.get_xlim()[1], y))[1])
        places.append(max(place, places[-1] + 0.085) if places else place)
    too_high = max(0.0, places[-1] - 0.97) if places else 0.0
    for place, (_, text, colour) in zip(places, named, strict=True):
        axis.annotate(
            text, (1, place - too_high), (5, 0), xycoords="axes fraction",
            textcoords="offset points", color=colour, va="center", fontweight="bold",
        )  # fmt: skip


def list_names(axis: Axes, names: Sequence[tuple[str, str]]) -> None:
    """Names in their colours beside the top right corner: no box, no keys."""
    for number, (text, colour) in enumerate(names):
        axis.annotate(
            text, (1, 1), (5, -12 * number), xycoords="axes fraction",
            textcoords="offset points", color=colour, va="top", fontweight="bold",
        )  # fmt: skip


def draw_shares(
    axis: Axes, edges: np.ndarray, series: Mapping[str, np.ndarray], colours: Sequence[str]
) -> None:
    """Histograms over each other, each as shares of its own values, with names and medians."""
    names = []
    for (name, values), colour in zip(series.items(), colours, strict=False):
        if not len(values):
            continue
        heights = np.histogram(values, edges)[0] / len(values)
        axis.stairs(heights, edges, color=colour, fill=True, alpha=0.28)
        axis.stairs(heights, edges, color=colour, linewidth=1.4)
        middle = float(np.median(values))
        axis.axvline(middle, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
        names += [(name, colour), (f"median {middle:.2f}", colour)]
    list_names(axis, names)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))


def site_axis(axis: Axes, sites: Sequence[str]) -> None:
    """Names of sites along x, slanted where they would run into each other."""
    names = [short(site) for site in sites]
    axis.set_xticks(range(len(sites)), names)
    if sum(len(name) for name in names) > 44:
        for label in axis.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    side = max(0.35, 0.04 * len(names))
    axis.set_xlim(-side, len(names) - 1 + side)


def short(site: str) -> str:
    """Long site names keep their ends: that is where they differ."""
    return site if len(site) <= 22 else f"...{site[-19:]}"


def not_empty(table: "pandas.DataFrame", what: str) -> None:
    """Refuse to draw nothing."""
    if table.empty:
        raise DataError(f"{what}: the table holds no such row; nothing to draw")
