"""Side effects of edits: control matrix, superclass, interactions of modes, steering."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from condec.basis.errors import OptionError
from condec.effects.matrix import ControlMatrix, MatrixQuantity
from condec.effects.superclass import SuperclassControl, SuperclassQuantity
from condec.modes import Hierarchy
from condec.report.figures.style import (
    ACTIVATION,
    CONTRIBUTION,
    INK,
    MUTED,
    POSITIVE,
    RANKINGS,
    RULE,
    SHUFFLED,
    SIGNED,
    list_names,
    name_lines,
    not_empty,
    panels,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas

_MOST_NAMES: Final = 120
"""Labels of a matrix that are named; above it only groups are."""
_QUANTITIES: Final = {
    "accuracy": "accuracy / unedited",
    "probability": "change of the label's probability",
    "logit": "change of the label's output",
    "top1": "accuracy",
    "top5": "accuracy among the five largest outputs",
}
_GROUPS: Final = {
    "member": ("members", POSITIVE),
    "neighbour": ("neighbours", ACTIVATION),
    "other": ("the rest", CONTRIBUTION),
}
_DIRECTIONS: Final = {
    "activation": ("mode, activation", CONTRIBUTION),
    "atom": ("mode, atom", "#56B4E9"),
    "mean_activation": ("mean activation", "#009E73"),
    "random_mode": ("random modes", SHUFFLED),
    "random": ("random", "#8A8F96"),
}


def control_matrix_figure(
    matrix: ControlMatrix,
    hierarchy: Hierarchy | None = None,
    *,
    quantity: MatrixQuantity = "accuracy",
) -> Figure:
    """Every label's units edited (rows), the effect on every label (columns).

    White is no change, violet is loss, vermilion gain; grey is not defined.

    Parameters
    ----------
    matrix : ControlMatrix
    hierarchy : Hierarchy, optional
        Labels of a superclass stand together, with a line between superclasses; without it,
        labels that share much do.
    quantity : {"accuracy", "probability", "logit"}

    Raises
    ------
    OptionError
        Another quantity.
    """
    if quantity not in get_args(MatrixQuantity):
        raise OptionError(
            f"control_matrix_figure: quantity must be one of "
            f"{', '.join(get_args(MatrixQuantity))}; got {quantity!r}"
        )
    matrix = matrix.ordered(hierarchy)
    values = getattr(matrix, quantity).numpy()
    middle = 1.0 if quantity == "accuracy" else 0.0
    finite = np.abs(values - middle)[np.isfinite(values)]
    # An output has no bounds: its scale ends where the largest change does.
    reach = float(finite.max(initial=0.0)) or 1.0 if quantity == "logit" else 1.0
    number = len(matrix.labels)
    cell = float(np.clip(6.4 / number, 0.085, 0.34))
    named = number <= _MOST_NAMES
    longest = max(len(name) for name in matrix.label_names) if named else 0
    size = min(8.5, 62 * cell)
    room = 0.4 + 0.0085 * size * longest
    with styled():
        figure, (axis,) = panels(
            1, height=cell * number + room + 0.75, width=cell * number + room + 1.5
        )
        title(axis, _matrix_title(matrix), f"{_QUANTITIES[quantity]}; row: edited, column: seen")
        axis.set_facecolor(RULE)
        image = axis.imshow(
            values, cmap=SIGNED, vmin=middle - reach, vmax=middle + reach, interpolation="nearest"
        )
        _name_cells(axis, matrix.label_names if named else (), size)
        _group_lines(axis, matrix, hierarchy)
        _scale(axis, image, (middle - reach, middle, middle + reach))
    return figure


def superclass_figure(
    control: SuperclassControl, *, quantity: SuperclassQuantity = "top1"
) -> Figure:
    """Every label before and after a superclass is edited, a panel for each ranking.

    A line leads from the unedited network (its end) to the edited one (the dot), for every
    label; black lines are means over samples, before (dashed) and after.

    Parameters
    ----------
    control : SuperclassControl
    quantity : {"top1", "top5", "probability"}
        Where labels have one sample each, the probability says most.

    Raises
    ------
    OptionError
        Another quantity.
    """
    if quantity not in get_args(SuperclassQuantity):
        raise OptionError(
            f"superclass_figure: quantity must be one of "
            f"{', '.join(get_args(SuperclassQuantity))}; got {quantity!r}"
        )
    table = control.to_frame()
    verb = "ablated" if control.edit == "ablate" else "preserved"
    what = {**_QUANTITIES, "probability": "probability of the label"}[quantity]
    rankings = list(dict.fromkeys(table["ranking"]))
    with styled():
        figure, axes = panels(len(rankings), height=3.0, width=3.6)
        for axis, ranking in zip(axes, rankings, strict=True):
            title(axis, f"By {RANKINGS[ranking][0]}", f"{what}; {control.name} {verb}")
            rows = table[table["ranking"] == ranking]
            _draw_labels(axis, rows, quantity)
    return figure


def interactions_figure(
    table: "pandas.DataFrame",
    *,
    label: int | None = None,
    quantity: Literal["logit", "probability"] = "logit",
) -> Figure:
    """Interactions of pairs of modes, below the diagonal; on it, each mode by itself.

    Grey pairs were not measured.

    Parameters
    ----------
    table : pandas.DataFrame
        From `mode_interactions`, of one site.
    label : int, optional
        Whose output or probability; by default means over all labels of the table. For one
        label a dot marks pairs whose interval excludes 0.
    quantity : {"logit", "probability"}

    Raises
    ------
    DataError
        The table holds no such row.
    """
    part = table[table["quantity"] == quantity]
    part = part if label is None else part[part["label"] == label]
    not_empty(part, f"interactions_figure: label {label}, quantity {quantity!r}")
    keys = ["mode_a", "mode_b"]
    pairs = part.groupby(keys, sort=False)[["single_a", "single_b", "interaction"]].mean()
    names = dict(zip(part["mode_a"], part["name_a"], strict=True))
    names |= dict(zip(part["mode_b"], part["name_b"], strict=True))
    place = {mode: i for i, mode in enumerate(names)}
    values = np.full((len(place), len(place)), np.nan)
    for row in pairs.reset_index().to_dict("records"):
        a, b = row["mode_a"], row["mode_b"]
        low, high = sorted((place[a], place[b]))
        values[place[a], place[a]] = row["single_a"]
        values[place[b], place[b]] = row["single_b"]
        values[high, low] = row["interaction"]
    reach = float(np.nanmax(np.abs(values))) or 1.0
    who = "mean of labels" if label is None else str(part["label_name"].iloc[0])
    cell = float(np.clip(4.2 / len(place), 0.16, 0.4))
    size = min(8.5, 50 * cell)
    with styled():
        side = cell * len(place) + 1.3
        figure, (axis,) = panels(1, height=side + 0.4, width=side + 1.2)
        title(
            axis, f"Interactions of modes: {who}",
            f"{_QUANTITIES[quantity]}, pair - sum; diagonal: mode alone",
        )  # fmt: skip
        image = axis.imshow(values, cmap=SIGNED, vmin=-reach, vmax=reach)
        # White is no interaction: pairs that were not measured must not look like it.
        unknown = np.tril(np.isnan(values))
        axis.imshow(np.where(unknown, 1.0, np.nan), cmap=ListedColormap([RULE]))
        _name_cells(axis, [f"{names[mode]} ({mode})" for mode in place], size)
        if label is not None:
            sure = part[(part["low"] > 0) | (part["high"] < 0)]
            ends = [
                sorted((place[a], place[b]))
                for a, b in zip(sure["mode_a"], sure["mode_b"], strict=True)
            ]
            axis.plot([x for x, _ in ends], [y for _, y in ends], "o", color=INK, markersize=2.2)
        _scale(axis, image, (-reach, 0.0, reach))
    return figure


def steering_figure(curve: "pandas.DataFrame") -> Figure:
    """What becomes of other labels' samples over the strength of steering; means over labels.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `steering_curve`, of one site.

    Raises
    ------
    DataError
        The table is empty.
    """
    not_empty(curve, "steering_figure")
    shown = (
        ("converted", "Converted", "share of other labels' samples that become the label"),
        ("probability", "Probability", "of the label, mean of other labels' samples"),
        ("own_accuracy", "Own label kept", "accuracy on other labels' samples / unedited"),
    )
    with styled():
        figure, axes = panels(len(shown), height=2.9, width=3.9)
        for axis, (column, text, unit) in zip(axes, shown, strict=True):
            title(axis, text, unit)
            ends = []
            for direction, (name, colour) in _DIRECTIONS.items():
                rows = curve[curve["direction"] == direction]
                if rows.empty:
                    continue
                mean = rows.groupby("strength")[column].mean()
                axis.plot(mean.index, mean, "o-", color=colour, markersize=3.5)
                ends.append((float(mean.iloc[-1]), name if axis is axes[-1] else "", colour))
            name_lines(axis, ends)
            axis.set_ylim(-0.02, 1.04)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
            axis.set_xlabel("length added / length of the activation")
    return figure


def _matrix_title(matrix: ControlMatrix) -> str:
    to = "0" if matrix.replacement == "zero" else "their mean"
    begin = f"{matrix.count} of {matrix.n_units} units of each label"
    return (
        f"Ablate {begin}, to {to}"
        if matrix.edit == "ablate"
        else f"Preserve {begin}, others to {to}"
    )


def _name_cells(axis: Axes, names: Sequence[str], size: float) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=size)
    flat = max(map(len, names), default=0) <= 2
    axis.set_xticks(range(len(names)), names, fontsize=size, rotation=0 if flat else 90)


def _scale(axis: Axes, image: Any, ticks: Sequence[float]) -> None:
    """The colour scale beside a matrix, which needs no frame."""
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.035, pad=0.02, ticks=ticks)
    bar.ax.set_yticklabels([f"{tick:.3g}" for tick in ticks])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _group_lines(axis: Axes, matrix: ControlMatrix, hierarchy: Hierarchy | None) -> None:
    """Lines between superclasses, and their names at the right where they fit."""
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
            groups[start].replace("_", " "), (1, (start + end - 1) / 2), (4, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=8, color=MUTED,
        )  # fmt: skip


def _draw_labels(axis: Axes, rows: "pandas.DataFrame", quantity: str) -> None:
    """A line for every label, groups side by side, and a bar for each group's means."""
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
        weights = part["n_samples"].to_numpy()
        ends = [float(np.average(values, weights=weights)) for values in (before, after)]
        for value, dashes in zip(ends, ((0, (2, 2)), "-"), strict=True):
            axis.plot(
                [x[0] - 0.5, x[-1] + 0.5],
                [value, value],
                color=INK,
                linewidth=1.3,
                linestyle=dashes,
            )
        names += [(name, colour), (f"{ends[0]:.2f} to {ends[1]:.2f}", colour)]
        place = float(x[-1]) + 1 + gap
    list_names(axis, names)
    axis.set_xticks([])
    axis.set_ylim(-0.03, 1.05)
