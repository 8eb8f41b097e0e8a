"""Side effects of edits: control matrix, superclass, interactions of modes, steering."""

from typing import Any, Final

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condec.basis.checks import one_of
from condec.effects.matrix import ControlMatrix, MatrixQuantity
from condec.effects.superclass import SuperclassControl, SuperclassQuantity
from condec.figures import style
from condec.figures.style import MUTED, chart, draw_matrix, name_cells, panels, styled, title
from condec.modes import Hierarchy

_MOST_NAMES: Final = 120
"""Labels of a matrix that are named; above it only groups are."""
_QUANTITIES: Final = {
    "accuracy": "accuracy / unedited", "probability": "change of the label's probability",
    "logit": "change of the label's output", "top1": "accuracy",
    "top5": "accuracy among the five largest outputs",
}  # fmt: skip
_GROUPS: Final = {"member": ("members", style.POSITIVE), "other": ("the rest", style.CONTRIBUTION)}
_DIRECTIONS: Final = {
    "activation": ("mode, activation", style.CONTRIBUTION),
    "atom": ("mode, atom", style.SKY),
    "mean_activation": ("mean activation", style.GREEN),
    "random_mode": ("random modes", style.SHUFFLED),
    "random": ("random", style.GREY),
}
_STEERED: Final = (
    ("converted", "Converted", "share of other labels' samples that become the label"),
    ("probability", "Probability", "of the label, mean of other labels' samples"),
    ("own_accuracy", "Own label kept", "accuracy on other labels' samples / unedited"),
)


def control_matrix_figure(
    matrix: ControlMatrix, hierarchy: Hierarchy | None = None, *,
    quantity: MatrixQuantity = "accuracy",
) -> Figure:  # fmt: skip
    """Draw the effect of editing every label's units (rows) on every label (columns).

    White is no change, violet is loss, vermilion gain; grey is not defined. With a hierarchy,
    labels of a superclass stand together, with a line between superclasses; without it, labels
    that share much do. Another quantity is an OptionError.
    """
    one_of("control_matrix_figure", "quantity", quantity, MatrixQuantity)
    matrix = matrix.ordered(hierarchy)
    values = getattr(matrix, quantity).numpy()
    middle = 1.0 if quantity == "accuracy" else 0.0
    finite = np.abs(values - middle)[np.isfinite(values)]
    reach = float(finite.max(initial=0.0)) or 1.0
    if quantity != "logit":  # An output has no bounds; small changes of a share must look small.
        reach = min(max(reach, 0.2), 1.0)
    number = len(matrix.labels)
    cell = float(np.clip(6.4 / number, 0.085, 0.34))
    names = matrix.label_names if number <= _MOST_NAMES else ()
    size = min(8.5, 62 * cell)
    side = cell * number + 0.4 + 0.0085 * size * max(map(len, map(style.literal, names)), default=0)
    unit = f"{_QUANTITIES[quantity]}; row: edited, column: seen"
    to = "0" if matrix.replacement == "zero" else "their mean"
    others = "" if matrix.edit == "ablate" else "others "
    text = f"{matrix.edit.capitalize()} {matrix.count} of {matrix.n_units} units of each label"
    size_of = {"height": side + 0.75, "width": side + 1.5}
    with chart(f"{text}, {others}to {to}", unit, **size_of) as (figure, axis):
        axis.set_facecolor(style.RULE)
        draw_matrix(axis, values, reach, middle=middle)
        name_cells(axis, names, size)
        _group_lines(axis, matrix, hierarchy)
    return figure


def _group_lines(axis: Axes, matrix: ControlMatrix, hierarchy: Hierarchy | None) -> None:
    """Draw lines between superclasses, and name them at the right."""
    if hierarchy is None:
        return
    named = dict(enumerate(hierarchy.groups))
    groups = [named.get(label, "") for label in matrix.labels]
    starts = [i for i in range(len(groups)) if not i or groups[i] != groups[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
        if start:
            axis.axhline(start - 0.5, color=MUTED, linewidth=0.6)
            axis.axvline(start - 0.5, color=MUTED, linewidth=0.6)
        axis.annotate(
            style.literal(groups[start].replace("_", " "), 32), (1, (start + end - 1) / 2), (4, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=8, color=MUTED,
        )  # fmt: skip


def interactions_figure(table: pandas.DataFrame, *, label: int | None = None) -> Figure:
    """Draw interactions of pairs of modes below the diagonal, and each mode alone on it.

    Grey pairs were not measured. `table` is from `mode_interactions`, of one site. The output is
    that of `label`, with a dot on pairs whose interval excludes 0; by default the mean over all
    labels of the table.
    """
    part = table[table["quantity"] == "logit"]
    part = part if label is None else part[part["label"] == label]
    style.not_empty(part, f"interactions_figure: label {label}")
    pairs = part.groupby(["mode_a", "mode_b"], sort=False)[["single_a", "single_b", "interaction"]]
    names = dict(zip(part["mode_a"], part["name_a"], strict=True))
    names |= dict(zip(part["mode_b"], part["name_b"], strict=True))
    place = {mode: i for i, mode in enumerate(names)}
    values = np.full((len(place), len(place)), np.nan)
    for row in pairs.mean().reset_index().to_dict("records"):
        a, b = place[row["mode_a"]], place[row["mode_b"]]
        values[a, a], values[b, b] = row["single_a"], row["single_b"]
        values[max(a, b), min(a, b)] = row["interaction"]
    who = "mean of labels" if label is None else str(part["label_name"].iloc[0])
    unit = f"{_QUANTITIES['logit']}, pair - sum; diagonal: mode alone"
    cell = float(np.clip(4.2 / len(place), 0.16, 0.4))
    size = {"height": cell * len(place) + 1.7, "width": cell * len(place) + 2.5}
    with chart(f"Interactions of modes: {who}", unit, **size) as (figure, axis):
        unknown = np.tril(np.isnan(values))
        draw_matrix(axis, values, float(np.nanmax(np.abs(values))) or 1.0, unknown=unknown)
        name_cells(axis, [f"{names[mode]} ({mode})" for mode in place], min(8.5, 50 * cell))
        if label is not None:
            sure = part[(part["low"] > 0) | (part["high"] < 0)]
            ends = np.sort([sure["mode_a"].map(place), sure["mode_b"].map(place)], axis=0)
            axis.plot(*ends, "o", color=style.INK, markersize=2.2)
    return figure


def steering_figure(curve: pandas.DataFrame) -> Figure:
    """Draw what becomes of other labels' samples over the strength of steering; label means.

    `curve` is from `steering_curve`, of one site.
    """
    style.not_empty(curve, "steering_figure")
    with styled():
        figure, axes = panels(len(_STEERED), height=2.9, width=3.9)
        for axis, (column, text, unit) in zip(axes, _STEERED, strict=True):
            title(axis, text, unit)
            ends = []
            for direction, (name, colour) in _DIRECTIONS.items():
                rows = curve[curve["direction"] == direction]
                if rows.empty:
                    continue
                mean = rows.groupby("strength")[column].mean()
                axis.plot(mean.index, mean, "o-", color=colour, markersize=3.5)
                ends.append((float(mean.iloc[-1]), name if axis is axes[-1] else "", colour))
            style.name_lines(axis, ends)
            axis.set_ylim(-0.02, 1.04)
            style.in_percent(axis.yaxis)
            axis.set_xlabel("length added / length of the activation")
    return figure


def superclass_figure(
    control: SuperclassControl, *, quantity: SuperclassQuantity = "top1"
) -> Figure:
    """Draw every label before and after a superclass is edited, a panel for each ranking.

    A line leads from the unedited network (its end) to the edited one (the dot), for every
    label; black lines are means over samples, before (dashed) and after. Where labels have one
    sample each, the probability says most. Another quantity is an OptionError.
    """
    one_of("superclass_figure", "quantity", quantity, SuperclassQuantity)
    table = control.to_frame()
    verb = "ablated" if control.edit == "ablate" else "preserved"
    what = {**_QUANTITIES, "probability": "probability of the label"}[quantity]
    rankings = list(dict.fromkeys(table["ranking"]))
    with styled():
        figure, axes = panels(len(rankings), height=3.0, width=3.6)
        for axis, ranking in zip(axes, rankings, strict=True):
            title(axis, f"By {style.RANKINGS[ranking][0]}", f"{what}; {control.name} {verb}")
            _draw_labels(axis, table[table["ranking"] == ranking], quantity)
    return figure


def _draw_labels(axis: Axes, rows: pandas.DataFrame, quantity: str) -> None:
    """Draw a line for every label, groups side by side, and the means of each group."""
    n_labels = len(rows)
    gap = max(1.0, 0.03 * n_labels)
    size: dict[str, Any] = {"markersize": float(np.clip(90 / n_labels, 1.2, 4))}
    place, names = 0.0, list[tuple[str, str]]()
    for group, (name, colour) in _GROUPS.items():
        part = rows[rows["group"] == group]
        if part.empty:
            continue
        x = place + np.arange(len(part))
        before, after = part[f"{quantity}_unedited"], part[quantity]
        axis.vlines(x, before, after, color=colour, alpha=0.35, linewidth=min(2.0, 120 / n_labels))
        axis.plot(x, after, "o", color=colour, **size)
        ends = [float(np.average(values, weights=part["n_samples"])) for values in (before, after)]
        dashes: Any = [(0, (2, 2)), "-"]
        axis.hlines(ends, x[0] - 0.5, x[-1] + 0.5, style.INK, dashes, linewidth=1.3)
        names += [(name, colour), (f"{ends[0]:.2f} to {ends[1]:.2f}", colour)]
        place = float(x[-1]) + 1 + gap
    style.list_names(axis, names)
    axis.set_xticks([])
    axis.set_ylim(-0.03, 1.05)
