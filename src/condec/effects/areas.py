"""Numbers of whole control curves, and comparison of two rankings by them."""

import math
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import DataError, OptionError
from condec.effects.intervals import lead, mean_of_resampled, selectivity
from condec.effects.table import Curves

if TYPE_CHECKING:
    import pandas

_CURVE: Final = ("site", "label", "label_name", "ranking", "edit", "replacement")
_POINT: Final = ("fraction", "target_accuracy", "off_accuracy")
_AUC: Final = ("auc_target", "auc_off", "auc_difference", "auc_low", "auc_high", "defined")
_SUMMARY: Final = ("area_between", "half_dose", "off_damage")
_HALF: Final = 0.5

By = Literal["auc_difference", "area_between"]


def auc_difference(curve: "pandas.DataFrame") -> "pandas.DataFrame":
    r"""Return the selectivity of every curve: area under the target against that off-target.

    .. math:: \frac{A_\text{target} - A_\text{off}}{A_\text{off}}

    with areas by the trapezoid rule over the fractions (Melander et al. 2026, figure 6E).

    Parameters
    ----------
    curve : pandas.DataFrame
        From `control_curve`; several may be concatenated.

    Returns
    -------
    pandas.DataFrame
        One row for every site, label, ranking, edit and replacement, with the areas, the
        difference and its interval, and ``defined`` (False, and the difference NaN, where an
        accuracy is not defined or the off-target area is 0).

    Raises
    ------
    DataError
        The table is not one of `control_curve`, or a curve has fewer than two fractions.
    """
    return summarise(curve)[[*_CURVE, *_AUC]]


def summarise(curve: "pandas.DataFrame") -> "pandas.DataFrame":
    """Return every curve in a few numbers. Parameters and errors are those of `auc_difference`.

    Between the points a curve is a straight line. Both accuracies are 1 at fraction 0 of an
    ablated, and at fraction 1 of a preserved site, whether or not the curve has the point.
    The columns are those of `auc_difference` and

    - ``area_between``: the mean of off-target minus target accuracy over the fractions
      (ablate), or of target minus off-target (preserve); above 0 is selective;
    - ``half_dose``: the smallest fraction at which half the target is lost (ablate) or
      kept (preserve), at most that where the first fraction keeps half; NaN where none does;
    - ``off_damage``: share of the off-target accuracy that is lost at that dose.
    """
    import pandas

    missing = [name for name in (*_CURVE, *_POINT) if name not in curve.columns]
    if missing:
        raise DataError(
            "auc_difference: expected a table made by control_curve; it lacks the columns "
            f"{', '.join(missing)}"
        )
    rows = []
    for values, points in curve.groupby(list(_CURVE), sort=False, dropna=False):
        key = dict(zip(_CURVE, values, strict=True))
        if points["fraction"].nunique() < 2:
            raise DataError(
                f"auc_difference: an area needs at least two fractions; the curve {key} has "
                f"{points['fraction'].tolist()}"
            )
        rows.append(key | _numbers(points.sort_values("fraction"), str(key["edit"])))
    return pandas.DataFrame(rows, columns=[*_CURVE, *_AUC, *_SUMMARY])


def _numbers(points: "pandas.DataFrame", edit: str) -> dict[str, object]:
    """Return the numbers of one curve, points by fraction."""
    x, target, off = (torch.tensor(points[name].to_numpy()).double() for name in _POINT)
    fractions, relative = x.tolist(), torch.stack([target, off])[:, None]
    area_target, area_off = torch.trapezoid(relative[:, 0], x).tolist()
    difference, between = float(selectivity(relative, fractions)), float(lead(relative, fractions))
    half_dose, off_damage = _half(x, target, off, edit)
    found = {
        "auc_target": area_target, "auc_off": area_off, "auc_difference": difference,
        "defined": not math.isnan(difference),
        "area_between": between if edit == "ablate" else -between,
        "half_dose": half_dose, "off_damage": off_damage,
    }  # fmt: skip
    bounds = [name for name in ("auc_low", "auc_high") if name in points.columns]
    return found | {name: float(points[name].iloc[0]) for name in bounds}


def _half(x: Tensor, target: Tensor, off: Tensor, edit: str) -> tuple[float, float]:
    """Return the dose at which half the target is lost or kept, and what is lost off-target."""
    known = torch.tensor([0.0 if edit == "ablate" else 1.0]).double()
    if bool(torch.cat([target, off]).isnan().any()):
        return math.nan, math.nan
    if not bool((x == known).any()):
        one = torch.ones(1).double()
        ends = (known, x), (one, target), (one, off)
        x, target, off = (torch.cat(end if edit == "ablate" else end[::-1]) for end in ends)
    reached = target <= _HALF if edit == "ablate" else target >= _HALF
    if not bool(reached.any()):
        return math.nan, math.nan
    after = int(reached.nonzero()[0])
    if after == 0:
        return float(x[0]), float(1.0 - off[0])
    share = (_HALF - target[after - 1]) / (target[after] - target[after - 1])
    dose, kept = (v[after - 1] + share * (v[after] - v[after - 1]) for v in (x, off))
    return float(dose), float(1.0 - kept)


def compare(
    curves: Curves, *, by: By | None = None, against: str | None = None
) -> "pandas.DataFrame":
    r"""Compare rankings two at a time: which is more selective, beyond chance.

    The difference is taken label by label and averaged over the labels for which both are defined.
    Its 95 % interval is by bootstrap over images within each label and over labels, the same for
    both rankings.

    Parameters
    ----------
    curves : Curves
        From `measure_curves`, with ``n_bootstrap`` above 0.
    by : {"auc_difference", "area_between"}, optional
        See `summarise`. By default the first where units are ablated, the second where they are
        preserved: a ratio to an off-target area near 0 says little.
    against : str, optional
        Only pairs with this ranking. By default all, each once.

    Returns
    -------
    pandas.DataFrame
        One row a pair. ``value`` and ``against_value`` are means over ``n_labels`` labels,
        ``low`` to ``high`` the interval of their ``difference``. The ``verdict`` on ``ranking`` is
        ``better``, ``equal`` (0 lies within the interval), ``worse``, or ``undefined``.

    Raises
    ------
    OptionError
        Another `by`, no such ranking, or curves without resamples.
    """
    import pandas

    options, rankings = curves.options, curves.rankings
    if by is None:
        by = "auc_difference" if options.edit == "ablate" else "area_between"
    one_of("compare", "by", by, By)
    if against is not None and against not in rankings:
        raise OptionError(f"compare: no ranking {against!r}; there are {', '.join(rankings)}")
    if not options.n_bootstrap or len(options.fractions) < 2:
        raise OptionError(
            "compare: expected curves with n_bootstrap above 0 and at least two fractions; got "
            f"n_bootstrap={options.n_bootstrap}, fractions={options.fractions}"
        )
    values = _by_ranking(curves, by)
    sign = -1.0 if by == "auc_difference" and options.edit == "ablate" else 1.0
    rows = []
    for one, other in combinations(rankings, 2) if against is None else (
        (name, against) for name in rankings if name != against
    ):  # fmt: skip
        both = ~(values[one][:, 0].isnan() | values[other][:, 0].isnan())
        mine, others = values[one][both], values[other][both]
        difference, low, high = mean_of_resampled(mine - others, options.seed + 1).tolist()
        better, worse = (min(s * low, s * high) > 0.0 for s in (sign, -sign))
        verdict = "better" if better else "worse" if worse else "equal"
        rows.append({
            "site": curves.site, "edit": options.edit,
            "replacement": options.replacement, "by": by, "ranking": one, "against": other,
            "value": float(mine[:, 0].mean()), "against_value": float(others[:, 0].mean()),
            "difference": difference, "low": low, "high": high, "n_labels": int(both.sum()),
            "verdict": verdict if bool(both.any()) else "undefined",
        })  # fmt: skip
    return pandas.DataFrame(rows)


def _by_ranking(curves: Curves, by: By) -> dict[str, Float[Tensor, "label resample"]]:
    """Return what is compared, for every label and resample."""
    found: dict[str, list[Tensor]] = {name: [] for name in curves.rankings}
    turned = by == "area_between" and curves.options.edit == "preserve"
    for curve, relative in zip(curves.curves, curves.relative, strict=True):
        number = selectivity if by == "auc_difference" else lead
        value = number(relative, curves.options.fractions)
        found[curve.ranked.name].append(-value if turned else value)
    return {name: torch.stack(values) for name, values in found.items()}
