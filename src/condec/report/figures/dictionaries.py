"""Figures of one dictionary: training, use of its modes, other fits, labels."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch import Tensor

from condec.basis.errors import DataError
from condec.figures import style
from condec.figures.style import chart, draw_matrix, in_percent, list_names, literal
from condec.modes import UNNAMED
from condec.modes.naming import LEAST_CORRELATION

_BINS: Final = tuple(-5.0 + 0.5 * step for step in range(11))
"""Edges, in powers of ten: from 1 row of 100,000 to every row."""


def training_history_figure(history: Sequence[float]) -> Figure:
    """Draw the training loss of a dictionary over its epochs, from `FitReport.history`."""
    if not history:
        raise DataError("training_history_figure: the history is empty; nothing was trained")
    with chart("Training", "loss over epochs, logarithmic") as (figure, axis):
        axis.plot(range(1, len(history) + 1), history, color=style.CONTRIBUTION, linewidth=1.5)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.set_xlabel("epoch")
    return figure


def density_figure(density: Mapping[str, Float[Tensor, " mode"]]) -> Figure:
    """Draw how many modes are used by how many inputs; dead ones stand apart on the left.

    Bins are half a power of ten each; the first holds all rarer ones, too. `density` is the share
    of the inputs of a split that use each mode, 0 for dead ones, of one or two splits; without
    modes, or of more splits, it is a DataError.
    """
    shares = {name: values.double().numpy() for name, values in density.items()}
    if not 1 <= len(shares) <= 2 or not all(len(values) for values in shares.values()):
        raise DataError(
            "density_figure: expected the densities of one or two splits, of at least one mode "
            f"each; got {', '.join(f'{k}: {len(v)}' for k, v in shares.items()) or 'none'}"
        )
    inner = np.array(_BINS[1:-1])
    # Rounded: a hundredth in float32 is just below -2.
    places = [np.digitize(np.log10(v[v > 0]).round(6), inner) for v in shares.values()]
    counts = [np.bincount(place, minlength=len(inner) + 1) for place in places]
    first = min(int(place.min(initial=len(inner))) for place in places)
    colours = (style.GREY, style.CONTRIBUTION)[-len(shares) :]
    width = 0.84 / len(shares)
    unit = "number of modes by the share of the inputs that use them"
    with chart("Density", unit) as (figure, axis):
        for number, (values, used) in enumerate(zip(shares.values(), counts, strict=True)):
            kept = [np.sum(values == 0), 0, *used[first:]]
            x = np.arange(len(kept)) + (number - (len(shares) - 1) / 2) * width
            axis.bar(x, kept, width * 0.94, color=colours[number])
        edges = _BINS[first:]
        whole = [(place, edge) for place, edge in enumerate(edges) if edge == round(edge)]
        axis.set_xticks(
            [0, *(place + 1.5 for place, _ in whole)],
            ["dead", *(f"{100 * 10.0**edge:g} %" for _, edge in whole)],
        )
        axis.set_xlim(-0.6, len(edges) + 0.6)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.set_xlabel("share of the inputs, logarithmic")
        list_names(axis, list(zip(shares, colours, strict=True)))
    return figure


def stability_figure(
    seeds: Float[Tensor, " mode"], halves: Float[Tensor, " mode"], chance: Float[Tensor, " mode"]
) -> Figure:
    """Draw how well modes are found again: by other seeds, on either half of the data, by chance.

    The cosines are `seed_cosine`, `half_cosine` and `chance` of a `Stability`; NaN for dead modes.
    """
    named = {"other seeds": seeds, "half the data": halves, "chance": chance}
    if not all(bool(values.isfinite().any()) for values in named.values()):
        raise DataError("stability_figure: every mode is dead; nothing to draw")
    unit = "cosine of each mode with its partner in another fit"
    colours = (style.CONTRIBUTION, style.GREEN, style.SHUFFLED)
    return _shares("Stability", unit, named, colours, "cosine")


def correlation_histogram_figure(best: Mapping[str, Tensor]) -> Figure:
    """Draw how well modes, and single units, single out a label (Melander et al. 2026, fig. 5).

    `best` is the highest correlation with any label: first of the modes, then of what they
    compare with.
    """
    if not any(bool(values.isfinite().any()) for values in best.values()):
        raise DataError("correlation_histogram_figure: no finite correlations to draw")
    unit = "highest correlation of each with any label"
    colours = (style.CONTRIBUTION, style.GREY, style.SHUFFLED)
    return _shares("Top label correlation", unit, best, colours, "Pearson correlation")


def _shares(
    text: str, unit: str, series: Mapping[str, Tensor], colours: Sequence[str], x: str
) -> Figure:
    """Draw histograms over each other, each as shares of its own values, with their medians."""
    known = {name: values[values.isfinite()].numpy() for name, values in series.items()}
    edges = np.linspace(min(float(v.min(initial=0)) for v in known.values()), 1, 31)
    names = []
    with chart(text, unit) as (figure, axis):
        for (name, values), colour in zip(known.items(), colours, strict=False):
            if not len(values):
                continue
            heights, middle = np.histogram(values, edges)[0] / len(values), float(np.median(values))
            axis.stairs(heights, edges, color=colour, fill=True, alpha=0.28)
            axis.stairs(heights, edges, color=colour, linewidth=1.4)
            axis.axvline(middle, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
            names += [(name, colour), (f"median {middle:.2f}", colour)]
        list_names(axis, names)
        in_percent(axis.yaxis)
        axis.set_xlabel(x)
    return figure


def meaning_figure(modes: pandas.DataFrame, *, most: int = 24, width: float = 4.6) -> Figure:
    """Draw what modes stand for: held-out correlations with their 95 % intervals, highest first.

    `modes` are those of a `Meaning`; the `most` first are drawn, unnamed ones in grey, on a width
    in inches. A table without modes is a DataError.
    """
    style.not_empty(modes, "meaning_figure")
    shown = modes.sort_values("correlation", ascending=False, kind="stable").head(most)
    unit = "held-out correlation with what each mode goes with best; 95 %"
    if len(modes) > most:
        unit += f"; {most} of {len(modes)} modes"
    named = (shown["name"] != UNNAMED).to_numpy()
    with chart("What modes stand for", unit, height=0.9 + 0.17 * len(shown), width=width) as (
        figure, axis,
    ):  # fmt: skip
        axis.axvline(LEAST_CORRELATION, color=style.MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        axis.axvline(0, color=style.RULE, linewidth=0.9)
        for colour, which in ((style.CONTRIBUTION, named), (style.GREY, ~named)):
            at, rows = np.flatnonzero(which), shown[which]
            axis.hlines(at, rows["low"], rows["high"], color=colour, linewidth=1.4)
            axis.plot(rows["correlation"], at, "o", color=colour, markersize=4)
        of = [row["name"] if is_named else f"unnamed ({row['property']})"
              for is_named, row in zip(named, shown.to_dict("records"), strict=True)]  # fmt: skip
        names = [f"{literal(str(n), 26)}, mode {i}" for n, i in zip(of, shown["id"], strict=True)]
        axis.set_yticks(range(len(shown)), names)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("dashed: from here on a lower end gives a name")
    return figure


def correlation_heatmap_figure(
    correlation: Float[Tensor, "mode label"], label_names: Sequence[str], mode_ids: Sequence[int],
    *, n_labels: int | None = None,
) -> Figure:  # fmt: skip
    """Draw the correlation of every mode with every label; modes ordered by their best label.

    `n_labels` is the number of all labels, where those given are the ones that correlate most.
    Where names or ids do not fit the matrix, or it is empty, it is a DataError.
    """
    values = correlation.nan_to_num().numpy()
    if values.shape != (len(mode_ids), len(label_names)) or not values.size:
        raise DataError(
            f"correlation_heatmap_figure: expected a matrix of {len(mode_ids)} modes x "
            f"{len(label_names)} labels, at least 1 x 1; got {tuple(values.shape)}"
        )
    order = np.lexsort((-values.max(1), values.argmax(1)))
    unit = "Pearson correlation of loading and label"
    if n_labels is not None and n_labels > len(label_names):
        unit += f"; the {len(label_names)} of {n_labels} labels that correlate most"
    height = 1.1 + 0.17 * min(len(label_names), 30)
    with chart("Modes against labels", unit, height=height) as (figure, axis):
        draw_matrix(axis, values[order].T, 1.0, aspect="auto")
        names = [literal(n, 32) for n in label_names] if len(label_names) <= 40 else []
        axis.set_yticks(range(len(names)), names)
        axis.set_xticks([])
        axis.set_xlabel(f"{len(mode_ids)} modes, ordered by their best label")
    return figure
