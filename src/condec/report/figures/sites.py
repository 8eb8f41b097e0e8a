"""Figures over the sites of a network: statistics of layers, and completeness."""

from collections.abc import Mapping
from itertools import cycle
from typing import Final

import numpy as np
import pandas
from matplotlib.figure import Figure
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import DataError
from condec.figures import style
from condec.figures.style import ACTIVATION, CONTRIBUTION, chart
from condec.store import STATISTICS

_QUANTITIES: Final = {one.name: one for one in STATISTICS}
_MOST_SITES: Final = 60
"""Sites whose completeness is drawn: of more, so many of them."""
_DASHES: Final = ((3.0, 2.0), (1.2, 1.6), (5.0, 1.5, 1.2, 1.5))
"""Dashes of one twin after the other."""


def layer_statistics_figure(
    statistics: pandas.DataFrame, quantity: str, *,
    twins: Mapping[str, pandas.DataFrame] | None = None,
) -> Figure:  # fmt: skip
    """Draw a statistic of contributions and activations over sites (Melander et al. 2026, fig. 3).

    `statistics` are from `layer_statistics`; the quantity is a name of `condec.store.STATISTICS`,
    and another is an OptionError. Bands are from the lower to the upper quartile of the samples.
    `twins` are the same statistics of twins, by the name that stands at their dashed lines.
    """
    one_of("layer_statistics_figure", "quantity", quantity, tuple(_QUANTITIES))
    style.not_empty(statistics, "layer_statistics_figure")
    sites, drawn, ends = [str(site) for site in statistics["site"]], _QUANTITIES[quantity], []
    tables = {name: table.set_index("site").reindex(sites) for name, table in (twins or {}).items()}
    lines = [
        ("activations", ACTIVATION, f"{quantity}_activation"),
        ("contributions", CONTRIBUTION, f"{quantity}_contribution"),
    ]
    if alone := len(drawn.of) == 1:
        lines = [("this network" if tables else "", CONTRIBUTION, quantity)]
    with chart(drawn.title, drawn.axis, height=2.9) as (figure, axis):
        if alone:
            axis.axhline(0, color=style.RULE, linewidth=0.9, zorder=0)
        for text, colour, column in lines:
            axis.plot(statistics[column].to_numpy(), "o-", color=colour, markersize=4)
            if f"{column}_q25" in statistics:
                low, high = (statistics[f"{column}_{end}"].to_numpy() for end in ("q25", "q75"))
                axis.fill_between(
                    range(len(sites)), low, high, color=colour, alpha=0.16, linewidth=0, zorder=1.5
                )  # fmt: skip
            ends.append((float(statistics[column].iloc[-1]), text, colour))
            for (twin, table), dashes in zip(tables.items(), cycle(_DASHES)):
                axis.plot(
                    table[column].to_numpy(), color=colour, linewidth=1.3, zorder=1.9,
                    linestyle=(0, dashes), dash_capstyle="butt",
                )  # fmt: skip
                ends.append((float(table[column].iloc[-1]), twin, colour))
        if not alone:
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
        style.name_lines(axis, ends)
        style.site_axis(axis, sites)
    return figure


def completeness_figure(completeness: Mapping[str, Tensor]) -> Figure:
    """Draw how completely the contributions of every cut site account for the target.

    `completeness` is from `Store.completeness`, [sample] by keys of sites: 1 is complete.
    """
    if not completeness:
        raise DataError("completeness_figure: no site cuts the network, so there is none to draw")
    step = -(-len(completeness) // _MOST_SITES)
    unit = "sum of contributions / change of the target, every input"
    if step > 1:
        unit += f"; one site of {step}"
    completeness = dict(list(completeness.items())[::step])
    number = len(completeness)
    with chart("Completeness", unit, height=0.95 + 0.24 * number) as (figure, axis):
        axis.axvline(1, color=style.MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
        for row, values in enumerate(completeness.values()):
            known = values[values.isfinite()].double().numpy()
            if not len(known):
                continue
            low, first, middle, third, high = np.percentile(known, [5, 25, 50, 75, 95])
            axis.plot([low, high], [row, row], color=CONTRIBUTION, linewidth=1.2)
            axis.plot([first, third], [row, row], color=CONTRIBUTION, linewidth=5, alpha=0.45)
            axis.plot(middle, row, "o", color=CONTRIBUTION, markersize=5)
        axis.set_yticks(range(number), style.short_names([*completeness]))
        axis.set_ylim(number - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.margins(x=0.08)
        axis.set_xlabel("dot: median; bar: middle half; line: 5th to 95th percentile")
    return figure
