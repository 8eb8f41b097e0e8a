"""Figures of control curves: accuracy over the share of units, and the areas under it."""

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condec.effects import mean_over_labels
from condec.report.figures.style import (
    INK,
    MUTED,
    RULE,
    list_names,
    name_lines,
    not_empty,
    panels,
    rankings_in,
    site_axis,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas

_FEW: Final = 4
"""With more rankings, bars become dots, and most bands are left out."""
_WITH_BANDS: Final = ("log_odds_modes", "modes", "random")
_REPLACED: Final = {
    "zero": "set to zero",
    "mean": "set to their mean",
    "class_mean": "set to the label's mean",
    "resample": "taken from another image",
}


def control_figure(curve: "pandas.DataFrame", *, edit: str, replacement: str) -> Figure:
    """Accuracy over the share of units edited (Melander et al. 2026, fig. 6 D).

    Means over labels; solid: the label's own images, dashed: all others. Bands are 95 %
    intervals of the means, labels drawn again; those of a single label are over its images.
    Of more than four rankings only modes and random units have bands.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `control_curve`, of one site; further edits and replacements are left out.
    edit : {"ablate", "preserve"}
    replacement : {"zero", "mean", "class_mean", "resample"}

    Raises
    ------
    DataError
        The curve holds no row of that edit and replacement.
    """
    part = curve[(curve["edit"] == edit) & (curve["replacement"] == replacement)]
    not_empty(part, f"control_figure: edit {edit!r}, replacement {replacement!r}")
    verb = {"ablate": "ablated", "preserve": "preserved"}.get(edit, edit)
    ends, names = [], rankings_in(part)
    with styled():
        figure, (axis,) = panels(1, height=2.9 if len(names) < 6 else 3.6, width=4.6)
        title(
            axis,
            f"{'Ablate' if edit == 'ablate' else 'Preserve'}, "
            f"{'units' if edit == 'ablate' else 'all others'} {_REPLACED[replacement]}",
            "accuracy / unedited; solid: label's images, dashed: others",
        )
        for ranking, (name, colour) in names.items():
            rows = part[part["ranking"] == ranking]
            front = 2 if ranking.startswith("random") else 3
            for which, dashes in (("target", "-"), ("off", (0, (3, 2)))):
                x, mean, low, high = _mean_curve(rows, which)
                width = 1.8 if which == "target" else 1.1
                axis.plot(x, mean, color=colour, linestyle=dashes, zorder=front, linewidth=width)
                if len(names) <= _FEW or ranking in _WITH_BANDS:
                    axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
                if which == "target":
                    ends.append((float(mean[-1]), name, colour))
        axis.axhline(1, color=RULE, linewidth=0.9, zorder=0)
        axis.set_ylim(bottom=0)
        _share_axis(axis, float(part["fraction"].min()), float(part["fraction"].max()))
        axis.set_xlabel(f"share of units {verb}")
        name_lines(axis, ends)
    return figure


def _mean_curve(
    rows: "pandas.DataFrame", which: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fractions, mean accuracies over labels, and their intervals; NaN where there are none."""
    table = rows.pivot_table(
        index="label", columns="fraction", values=f"{which}_accuracy", dropna=False
    )
    mean, low, high = mean_over_labels(torch.from_numpy(table.to_numpy(copy=True))).numpy()
    if len(table) == 1 and f"{which}_low" in rows.columns:
        ordered = rows.sort_values("fraction")
        low, high = (ordered[f"{which}_{bound}"].to_numpy() for bound in ("low", "high"))
    return table.columns.to_numpy(), mean, low, high


def _share_axis(axis: Axes, first: float, last: float) -> None:
    """Shares of units along x; small ones are what matters: the square root gives them room."""
    axis.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    axis.set_xlim(max(first - 0.01, 0), last)
    ticks = [v for v in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1) if first <= v <= last]
    axis.set_xticks(ticks, [f"{100 * v:g} %" for v in ticks])
    axis.minorticks_off()


def auc_figure(differences: "pandas.DataFrame", *, edit: str, by: str = "site") -> Figure:
    """Selectivity of edits: (AUC target - AUC off-target) / AUC off-target, by site or label.

    Parameters
    ----------
    differences : pandas.DataFrame
        From `auc_difference`: columns ``site``, ``label_name``, ``ranking``, ``edit``,
        ``auc_difference``.
    edit : {"ablate", "preserve"}
    by : {"site", "label_name"}
        Bars (dots, of more than four rankings) are means over the labels of a site, with their
        95 % interval, labels drawn again; or one label's mean over sites, with that over its
        images where there is one site.

    Raises
    ------
    DataError
        No row of that edit.
    """
    part = differences[differences["edit"] == edit]
    not_empty(part, f"auc_figure: edit {edit!r}")
    groups = [str(group) for group in part[by].drop_duplicates()]
    present = rankings_in(part)
    width = 0.8 / max(len(present), 1)
    with styled():
        figure, (axis,) = panels(1, height=2.9)
        better = "below 0" if edit == "ablate" else "above 0"
        title(
            axis,
            f"Selectivity of {'ablation' if edit == 'ablate' else 'preservation'}",
            f"(AUC label - AUC others) / AUC others; {better}: selective",
        )
        axis.axhline(0, color=MUTED, linewidth=0.7)
        for number, (ranking, (_, colour)) in enumerate(present.items()):
            rows = part[part["ranking"] == ranking]
            bounds = np.stack([_mean_bar(rows[rows[by] == group], by) for group in groups], 1)
            x = np.arange(len(groups)) + (number - (len(present) - 1) / 2) * width
            if len(present) <= _FEW:
                axis.bar(x, bounds[0], width * 0.92, color=colour)
                axis.vlines(x, bounds[1], bounds[2], color=INK, linewidth=0.8)
            else:
                axis.plot(x, bounds[0], "o", color=colour, markersize=3.5)
                axis.vlines(x, bounds[1], bounds[2], color=colour, linewidth=1.2)
        list_names(axis, list(present.values()))
        site_axis(axis, groups)
        axis.set_xlim(-0.6, len(groups) - 0.4)
    return figure


def _mean_bar(rows: "pandas.DataFrame", by: str) -> np.ndarray:
    """Mean selectivity of some rows, and its interval; NaN where there is none."""
    values = torch.tensor(rows["auc_difference"].to_numpy())
    if not len(values):
        return np.full(3, np.nan)
    if by == "label_name" and len(values) == 1 and "auc_low" in rows.columns:
        columns = ["auc_difference", "auc_low", "auc_high"]
        return np.array([float(rows[name].iloc[0]) for name in columns])
    bounds = mean_over_labels(values).numpy()
    return bounds if by == "site" else np.array([bounds[0], np.nan, np.nan])
