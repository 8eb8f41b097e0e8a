"""One number for a control curve: areas under target and off-target."""

import math
from typing import TYPE_CHECKING, Final

import torch

from condec.errors import DataError
from condec.metrics import auc

if TYPE_CHECKING:
    import pandas

_CURVE: Final = ("site", "label", "label_name", "ranking", "edit", "replacement")
_POINT: Final = ("fraction", "target_accuracy", "off_accuracy")


def auc_difference(curve: "pandas.DataFrame") -> "pandas.DataFrame":
    r"""Selectivity of every curve: area under the target against that under off-target.

    .. math:: \frac{A_\text{target} - A_\text{off}}{A_\text{off}}

    with areas by the trapezoid rule over the fractions (Melander et al. 2026, figure 6E).
    Below 0 the target suffers more than the others; -1, the lowest value, is a target lost
    from the first fraction on. 0 is no selectivity. When units are preserved, the higher
    the better.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `control_curve`; several may be concatenated.

    Returns
    -------
    pandas.DataFrame
        One row for every site, label, ranking, edit and replacement, with the columns
        ``auc_target``, ``auc_off``, ``auc_difference`` and ``defined`` (False, and the
        difference NaN, where an accuracy is not defined or the off-target area is 0).

    Raises
    ------
    DataError
        The table is not one of `control_curve`, or a curve has fewer than two fractions.
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
        points = points.sort_values("fraction")
        x = torch.tensor(points["fraction"].to_numpy())
        target, off = (
            auc(torch.tensor(points[f"{of}_accuracy"].to_numpy()), x) for of in ("target", "off")
        )
        difference = (target - off) / off if off else math.nan
        rows.append({
            **key, "auc_target": target, "auc_off": off, "auc_difference": difference,
            "defined": not math.isnan(difference),
        })  # fmt: skip
    areas = ["auc_target", "auc_off", "auc_difference", "defined"]
    return pandas.DataFrame(rows, columns=[*_CURVE, *areas])
