"""Figures of control curves: accuracy over the share of units, and the areas under it."""

from typing import Final

import numpy as np
import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from condec.basis.checks import one_of
from condec.effects import mean_over_labels
from condec.figures import style
from condec.figures.style import chart, list_names, name_lines, not_empty, rankings_in

_FEW: Final = 4
"""With more rankings, bars become dots, and most bands are left out."""
IMAGES: Final = {"own": "the label's images", "other": "all other images"}
"""Images of which control curves are drawn, and their words."""
_WITH_BANDS: Final = ("log_odds_modes", "modes", "random")
_REPLACED: Final = {
    "zero": "set to zero", "mean": "set to their mean", "class_mean": "set to the label's mean",
    "resample": "taken from another image",
}  # fmt: skip


def control_figure(
    curve: pandas.DataFrame, *, edit: str, replacement: str, images: str = "own"
) -> Figure:
    """Draw accuracy over the share of units edited (Melander et al. 2026, fig. 6 D).

    Means over labels, of a label's ``own`` images or of all ``other`` ones, on one scale. Bands are
    95 % intervals of the means, labels drawn again; those of a single label are over its images. Of
    more than four rankings only modes and random units have bands. `curve` is from `control_curve`,
    of one site; edits and replacements other than those given are left out.
    """
    one_of("control_figure", "images", images, tuple(IMAGES))
    part = curve[(curve["edit"] == edit) & (curve["replacement"] == replacement)]
    not_empty(part, f"control_figure: edit {edit!r}, replacement {replacement!r}")
    what, units, verb = ("Ablate", "units", "ablated")
    if edit != "ablate":
        what, units, verb = ("Preserve", "all others", "preserved")
    ends, names, lowest = [], rankings_in(part["ranking"]), 1.0
    text, whose = f"{what}, {units} {_REPLACED[replacement]}", IMAGES[images]
    with chart(text, f"accuracy of {whose} / unedited", height=3.2) as (figure, axis):
        for ranking, (name, colour) in names.items():
            rows = part[part["ranking"] == ranking]
            curves = {which: _mean_curve(rows, which) for which in ("target", "off")}
            lowest = min(lowest, *(float(np.nanmin(y, initial=1.0)) for _, y in curves.values()))
            x, (mean, low, high) = curves["target" if images == "own" else "off"]
            front = 2 if ranking.startswith("random") else 3
            axis.plot(x, mean, color=colour, zorder=front)
            if len(names) <= _FEW or ranking in _WITH_BANDS:
                axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            ends.append((float(mean[-1]), name, colour))
        axis.axhline(1, color=style.RULE, linewidth=0.9, zorder=0)
        axis.set_ylim(bottom=max(0.0, np.floor(10 * lowest) / 10))
        _share_axis(axis, float(part["fraction"].min()), float(part["fraction"].max()))
        axis.set_xlabel(f"share of units {verb}")
        name_lines(axis, ends)
    return figure


def _mean_curve(rows: pandas.DataFrame, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Return fractions, and mean, low and high over labels, [3, fraction]; NaN where undefined."""
    table = rows.pivot_table(f"{which}_accuracy", "label", "fraction", dropna=False)
    bounds = mean_over_labels(torch.from_numpy(table.to_numpy(copy=True))).numpy()
    if len(table) == 1 and f"{which}_low" in rows.columns:
        bounds[1:] = rows.sort_values("fraction")[[f"{which}_low", f"{which}_high"]].to_numpy().T
    return table.columns.to_numpy(), bounds


def _share_axis(axis: Axes, first: float, last: float) -> None:
    """Set shares of units along x; small ones matter: the square root gives them room."""
    axis.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    axis.set_xlim(max(first - 0.01, 0), last)
    ticks = [v for v in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1) if first <= v <= last]
    axis.set_xticks(ticks, [f"{100 * v:g} %" for v in ticks])
    axis.minorticks_off()


def auc_figure(
    differences: pandas.DataFrame, *, edit: str, by: str = "site", of: str = ""
) -> Figure:
    """Draw selectivity of edits, (AUC target - AUC off-target) / AUC off-target, by site or label.

    `differences` are from `auc_difference`. By ``site``, bars (dots, of more than four rankings)
    are means over the labels of a site, with their 95 % interval, labels drawn again; by
    ``label_name``, one label's mean over sites, with that over its images where there is one site.
    `of` stands after the title.
    """
    part = differences[differences["edit"] == edit]
    not_empty(part, f"auc_figure: edit {edit!r}")
    groups = [str(group) for group in part[by].drop_duplicates()]
    present = rankings_in(part["ranking"])
    width = 0.8 / len(present)
    what, better = ("ablation", "below") if edit == "ablate" else ("preservation", "above")
    unit = f"(AUC label - AUC others) / AUC others; {better} 0: selective"
    with chart(f"Selectivity of {what}{of}", unit, height=3.2) as (figure, axis):
        axis.axhline(0, color=style.MUTED, linewidth=0.7)
        for number, (ranking, (_, colour)) in enumerate(present.items()):
            rows = part[part["ranking"] == ranking]
            mean, low, high = np.stack([_mean_bar(rows[rows[by] == one], by) for one in groups], 1)
            x = np.arange(len(groups)) + (number - (len(present) - 1) / 2) * width
            if len(present) <= _FEW:
                axis.bar(x, mean, width * 0.92, color=colour)
                axis.vlines(x, low, high, color=style.INK, linewidth=0.8)
            else:
                axis.plot(x, mean, "o", color=colour, markersize=3.5)
                axis.vlines(x, low, high, color=colour, linewidth=1.2)
        list_names(axis, list(present.values()))
        style.site_axis(axis, groups)
        axis.set_xlim(-0.6, len(groups) - 0.4)
    return figure


def _mean_bar(rows: pandas.DataFrame, by: str) -> np.ndarray:
    """Return mean selectivity of some rows, and its interval; NaN where there is none."""
    values = torch.tensor(rows["auc_difference"].to_numpy())
    if not len(values):
        return np.full(3, np.nan)
    if by == "label_name" and len(values) == 1 and "auc_low" in rows.columns:
        return np.asarray(rows[["auc_difference", "auc_low", "auc_high"]].iloc[0], dtype=float)
    bounds = mean_over_labels(values).numpy()
    return bounds if by == "site" else np.array([bounds[0], np.nan, np.nan])
