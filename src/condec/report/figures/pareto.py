"""R2 against L0 of many dictionaries: what a sweep found."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any, Final

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from condec.basis.errors import DataError
from condec.dictionary import over_seeds, pareto_front
from condec.figures import style
from condec.figures.style import MUTED, not_empty, styled, title

_COLOURS: Final = (
    style.CONTRIBUTION, style.POSITIVE, style.GREEN, style.ACTIVATION, style.NEGATIVE,
    style.SHUFFLED, style.SKY, style.INK, style.GREY,
)  # fmt: skip
"""Of learners, in the order of the table."""
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Of widths, from narrow to wide."""
_MOST_COLUMNS: Final = 4
_FRONT: Final[dict[str, Any]] = {"color": MUTED, "linewidth": 5, "alpha": 0.28}


def pareto_figure(table: pandas.DataFrame) -> Figure:
    """Draw R2 against L0 on held-out rows, a panel a site, with the front of each.

    A point is the mean of a configuration over its seeds; its cross reaches from the lowest to
    the highest of them. Colours are learners, markers numbers of modes relative to the units.
    The scale of R2 is logarithmic in the rest, 1 - R2, and begins at 0. The table has one row a
    fit: `site`, `configuration`, `learner`, `modes_per_unit`, `l0`, `r2`; where it is empty, a
    column is missing, or no fit has loadings, it is a DataError.
    """
    not_empty(table, "pareto_figure")
    for name in ("learner", "modes_per_unit"):
        if name not in table:
            raise DataError(f"pareto_figure: the table has no column {name}")
    means = over_seeds(table)
    means["width"] = means["modes_per_unit"].astype(float).round(2)
    drawn = means[(means["l0"] > 0) & np.isfinite(means["r2"].astype(float))]
    if drawn.empty:
        raise DataError("pareto_figure: no fit has loadings; nothing to draw")
    learners = dict(zip(means["learner"].unique(), cycle(_COLOURS)))
    markers = dict(zip(sorted(means["width"].unique()), cycle(_MARKERS)))
    sites = list(means["site"].unique())
    # One scale for all panels, so that sites compare; points below 0 are only counted.
    l0 = (0.8 * drawn["l0_low"].clip(lower=0.05).min(), 1.25 * drawn["l0_high"].max())
    least = max(1 - float(drawn["r2_high"].max()), 1e-6)
    most = min(1 - float(drawn["r2_low"].min()), 1.0)
    rest = (min(max(most, 2 * least) * 1.3, 1.0), 0.7 * least)
    with styled():
        # As square as it goes: 4 sites are 2 x 2, 16 are 4 x 4.
        columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(sites))))
        rows = math.ceil(len(sites) / columns)
        figure = Figure(figsize=(3.9 * columns + 1.3, 3.2 * rows), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes[len(sites) :]:
            axis.remove()
        for axis, site in zip(axes, sites, strict=False):
            title(axis, style.short(str(site)), "R2 on held-out rows against L0, both logarithmic")
            _points(axis, drawn[drawn["site"] == site], learners, markers)
            _scales(axis, l0, rest)
        _legend(figure, learners, markers, several=bool((means["n_seeds"] > 1).any()))
    return figure


def _points(
    axis: Axes, means: pandas.DataFrame, learners: Mapping[str, str], markers: Mapping[float, str]
) -> None:
    front = means[pareto_front(means)].sort_values("l0")
    axis.plot(front["l0"], 1 - front["r2"], zorder=1, **_FRONT)
    for (learner, _), some in means.groupby(["learner", "width"], sort=False):
        colour, marker = learners[str(learner)], markers[some["width"].iloc[0]]
        y = 1 - some["r2"]
        spread: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.7, "zorder": 2}
        axis.hlines(y, some["l0_low"], some["l0_high"], **spread)
        axis.vlines(some["l0"], 1 - some["r2_low"], 1 - some["r2_high"], **spread)
        axis.plot(
            some["l0"], y, marker, color=colour, markersize=5.5, markeredgecolor="white",
            markeredgewidth=0.5, zorder=3,
        )  # fmt: skip
    below = int((means["r2"] < 0).sum())
    if below:
        axis.annotate(
            f"{below} of {len(means)} below 0", (0.98, 0.03), xycoords="axes fraction",
            ha="right", color=MUTED, fontsize=8,
        )  # fmt: skip


def _scales(axis: Axes, l0: tuple[float, float], rest: tuple[float, float]) -> None:
    """Make both logarithmic: R2 by the variance that is left, where good fits differ."""
    powers = [2.0**power for power in range(-6, 20) if l0[0] <= 2.0**power <= l0[1]]
    left = [step * 10.0**-power for power in range(7) for step in (1, 0.5, 0.2)]
    axis.set(xscale="log", yscale="log", xlim=l0, ylim=rest)
    axis.xaxis.set_major_locator(FixedLocator(powers[:: math.ceil(len(powers) / 9)]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(FixedLocator([y for y in left if rest[1] <= y <= rest[0]]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - value:.7g}"))
    for one in (axis.xaxis, axis.yaxis):
        one.set_minor_locator(NullLocator())
    axis.grid(axis="y", color=style.RULE, linewidth=0.6, zorder=0)
    axis.set_axisbelow(True)


def _legend(
    figure: Figure, learners: Mapping[str, str], markers: Mapping[float, str], *, several: bool
) -> None:
    plain: dict[str, Any] = {"linestyle": "", "markersize": 6}
    looks = [(name, "o", colour) for name, colour in learners.items()]
    if len(markers) > 1:
        looks += [(f"{width:g}x the units", m, MUTED) for width, m in markers.items()]
    keys = [Line2D([], [], marker=m, color=c, label=name, **plain) for name, m, c in looks]
    keys.append(Line2D([], [], label="front", **_FRONT))
    if several:
        keys.append(Line2D([], [], color=MUTED, linewidth=0.9, label="over seeds"))
    figure.legend(handles=keys, loc="outside right upper", frameon=False, fontsize=8.5)
