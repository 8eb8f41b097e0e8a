"""One function for every result that is a line, a bar, a histogram or a matrix."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.report.figures.style import (
    ACTIVATION,
    CONTRIBUTION,
    MUTED,
    NEGATIVE,
    POSITIVE,
    RULE,
    SHUFFLED,
    SIGNED,
    draw_shares,
    name_lines,
    not_empty,
    panels,
    short,
    site_axis,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas

_QUANTITIES: Final = {
    "hoyer": ("Sparsity", "Hoyer index, median of inputs: 0 all units alike, 1 one unit"),
    "dims95": ("Dimensions", "principal components that hold 95 % of the variance"),
    "participation_ratio": ("Participation ratio", "units that take part, median of inputs"),
    "sign_correlation": (
        "Positive against negative part",
        "correlation over units, median of inputs",
    ),
}


_DASHES: Final = ((3.0, 2.0), (1.2, 1.6), (5.0, 1.5, 1.2, 1.5))
"""Dashes of one twin after the other."""


def layer_statistics_figure(
    statistics: "pandas.DataFrame",
    quantities: Sequence[str] = tuple(_QUANTITIES),
    *,
    twins: "Mapping[str, pandas.DataFrame] | None" = None,
) -> Figure:
    """Statistics of contributions and activations over the sites (Melander et al. 2026, fig. 3).

    Parameters
    ----------
    statistics : pandas.DataFrame
        From `layer_statistics`.
    quantities : sequence of str
        Of ``hoyer``, ``dims95``, ``participation_ratio``, ``sign_correlation``; a panel each.
    twins : mapping of str to pandas.DataFrame, optional
        The same statistics of controls, by the name that stands at their dashed lines.

    Raises
    ------
    OptionError
        Another quantity.
    DataError
        The table is empty.
    """
    unknown = [name for name in quantities if name not in _QUANTITIES]
    if unknown or not quantities:
        raise OptionError(
            f"layer_statistics_figure: expected quantities of {', '.join(_QUANTITIES)}; got "
            f"{', '.join(unknown) or 'none'}"
        )
    not_empty(statistics, "layer_statistics_figure")
    sites = [str(site) for site in statistics["site"]]
    tables = {name: table.set_index("site").reindex(sites) for name, table in (twins or {}).items()}
    with styled():
        figure, axes = panels(len(quantities), height=2.9)
        for axis, name in zip(axes, quantities, strict=True):
            title(axis, *_QUANTITIES[name])
            if name == "sign_correlation":
                lines = [("this network" if tables else "", CONTRIBUTION, name)]
                axis.axhline(0, color=RULE, linewidth=0.9, zorder=0)
            else:
                lines = [
                    ("activations", ACTIVATION, f"{name}_activation"),
                    ("contributions", CONTRIBUTION, f"{name}_contribution"),
                ]
            ends = []
            for text, colour, column in lines:
                values = statistics[column]
                axis.plot(range(len(sites)), values, "o-", color=colour, markersize=4)
                ends.append((float(values.iloc[-1]), text, colour))
                for number, (twin, table) in enumerate(tables.items()):
                    dashes = (0, _DASHES[number % len(_DASHES)])
                    axis.plot(
                        range(len(sites)), table[column], color=colour, linewidth=1.3, zorder=1.9,
                        linestyle=dashes, dash_capstyle="butt",
                    )  # fmt: skip
                    ends.append((float(table[column].iloc[-1]), twin, colour))
            if name != "sign_correlation":
                axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
            name_lines(axis, ends)
            site_axis(axis, sites)
    return figure


def completeness_figure(completeness: Mapping[str, Tensor]) -> Figure:
    """How completely the contributions of every cut site account for the target.

    Parameters
    ----------
    completeness : mapping of site key to Tensor of shape [sample]
        From `Store.completeness`: 1 is complete.

    Raises
    ------
    DataError
        There is no cut site.
    """
    if not completeness:
        raise DataError("completeness_figure: no site cuts the network, so there is none to draw")
    with styled():
        figure, (axis,) = panels(1, height=0.95 + 0.24 * len(completeness))
        title(axis, "Completeness", "sum of contributions / change of the target, every input")
        axis.axvline(1, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
        for row, values in enumerate(completeness.values()):
            known = values.double().numpy()
            known = known[np.isfinite(known)]
            if not len(known):
                continue
            low, first, middle, third, high = np.percentile(known, [5, 25, 50, 75, 95])
            axis.plot([low, high], [row, row], color=CONTRIBUTION, linewidth=1.2)
            axis.plot([first, third], [row, row], color=CONTRIBUTION, linewidth=5, alpha=0.45)
            axis.plot(middle, row, "o", color=CONTRIBUTION, markersize=5)
        axis.set_yticks(range(len(completeness)), [short(key) for key in completeness])
        axis.set_ylim(len(completeness) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.margins(x=0.08)
        axis.set_xlabel("dot: median; bar: middle half; line: 5th to 95th percentile")
    return figure


def training_history_figure(history: Sequence[float]) -> Figure:
    """Training loss of a dictionary over its epochs.

    Parameters
    ----------
    history : sequence of float
        From `FitReport.history`.

    Raises
    ------
    DataError
        The history is empty.
    """
    if not history:
        raise DataError("training_history_figure: the history is empty; nothing was trained")
    with styled():
        figure, (axis,) = panels(1, height=2.5)
        title(axis, "Training", "loss over epochs, logarithmic")
        axis.plot(range(1, len(history) + 1), history, color=CONTRIBUTION, linewidth=1.5)
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.set_xlabel("epoch")
    return figure


def correlation_histogram_figure(best: Mapping[str, Tensor]) -> Figure:
    """How well modes, and single units, single out one label (Melander et al. 2026, fig. 5).

    Parameters
    ----------
    best : mapping of str to Tensor of shape [mode]
        Highest correlation with any label; first the modes, then what they compare with.

    Raises
    ------
    DataError
        There are no values.
    """
    kept = {name: values.numpy()[np.isfinite(values.numpy())] for name, values in best.items()}
    if not any(len(values) for values in kept.values()):
        raise DataError("correlation_histogram_figure: no finite correlations to draw")
    edges = np.linspace(min(0.0, *(float(v.min(initial=0)) for v in kept.values())), 1, 31)
    with styled():
        figure, (axis,) = panels(1, height=2.5)
        title(axis, "Top label correlation", "highest correlation of each with any label")
        draw_shares(axis, edges, kept, (CONTRIBUTION, "#8A8F96", SHUFFLED))
        axis.set_xlabel("Pearson correlation")
    return figure


def correlation_heatmap_figure(
    correlation: Float[Tensor, "mode label"],
    label_names: Sequence[str],
    mode_ids: Sequence[int],
) -> Figure:
    """Correlation of every mode with every label; modes ordered by their best label.

    Parameters
    ----------
    correlation : Tensor of shape [mode, label]
    label_names : sequence of str
    mode_ids : sequence of int

    Raises
    ------
    DataError
        Names or ids do not fit the matrix, or it is empty.
    """
    values = correlation.nan_to_num().numpy()
    if values.shape != (len(mode_ids), len(label_names)) or not values.size:
        raise DataError(
            f"correlation_heatmap_figure: expected a matrix of {len(mode_ids)} modes x "
            f"{len(label_names)} labels, at least 1 x 1; got {tuple(values.shape)}"
        )
    best = values.argmax(1)
    order = np.lexsort((-values.max(1), best))
    with styled():
        figure, (axis,) = panels(1, height=1.1 + 0.17 * min(len(label_names), 30))
        title(axis, "Modes against labels", "Pearson correlation of loading and label")
        image = axis.imshow(
            values[order].T, cmap=SIGNED, vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        shown = len(label_names) <= 40
        axis.set_yticks(range(len(label_names)) if shown else [], label_names if shown else [])
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_xlabel(f"{len(mode_ids)} modes, ordered by their best label")
        bar = figure.colorbar(image, ax=axis, fraction=0.035, pad=0.02, ticks=[-1, 0, 1])
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    return figure


def atom_figure(
    atom: Float[Tensor, " unit"], *, top: int = 5, unit_names: Sequence[str] | None = None
) -> Figure:
    """Which units a mode holds: a stem for every unit, the strongest ones named.

    Parameters
    ----------
    atom : Tensor of shape [unit]
    top : int
        How many of the largest entries to name.
    unit_names : sequence of str, optional
        Default: the units' numbers.
    """
    values = atom.numpy()
    names = [str(unit) for unit in range(len(values))] if unit_names is None else unit_names
    strongest = np.argsort(-values, kind="stable")[:top]
    with styled():
        figure, (axis,) = panels(1, height=1.9)
        title(axis, "Atom", "weight of every unit in the mode")
        colours = np.where(values > 0, POSITIVE, NEGATIVE)
        faint = np.ones(len(values), dtype=bool)
        faint[strongest] = False
        axis.vlines(
            np.flatnonzero(faint), 0, values[faint], colors=colours[faint].tolist(), alpha=0.4
        )
        axis.vlines(
            strongest, 0, values[strongest], colors=colours[strongest].tolist(), linewidth=2.2
        )
        axis.axhline(0, color=MUTED, linewidth=0.7)
        for unit in strongest:
            axis.annotate(
                names[unit], (float(unit), float(values[unit])),
                (0, 3 if values[unit] >= 0 else -9), textcoords="offset points",
                ha="center", fontsize=7.5, fontweight="bold",
            )  # fmt: skip
        axis.margins(y=0.2)
        axis.spines["bottom"].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.set_xlabel("unit")
    return figure
