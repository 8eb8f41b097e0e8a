"""Fits compared at equal sparsity: those that no other one beats, and the best of each L0."""

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from condec.basis.errors import DataError

if TYPE_CHECKING:
    import pandas

_CONFIGURATION: Final = ["site", "configuration"]
_RANGES: Final = ("l0", "r2")
_SAID: Final = ["configuration", "learner", "l0", "r2", "r2_low", "r2_high", "n_seeds"]


def over_seeds(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """Average fits over their seeds: one row a site and configuration, in the order of `table`.

    `table` has one row a fit: `site`, `configuration`, `l0`, `r2`, and columns to be carried along
    (of texts and truth values the first, of numbers the mean). The result has `n_seeds`, `l0_low`,
    `l0_high`, `r2_low`, `r2_high` over the seeds, and no `seed`.

    >>> import pandas
    >>> fits = pandas.DataFrame({
    ...     "site": "block1", "configuration": "topk 1x", "l0": [3.0, 5.0], "r2": [0.5, 0.75],
    ... })
    >>> over_seeds(fits)[["l0", "r2", "r2_low", "r2_high", "n_seeds"]].values.tolist()
    [[4.0, 0.625, 0.5, 0.75, 2.0]]
    """
    import pandas as pd

    _need(table, [*_CONFIGURATION, *_RANGES], "over_seeds")
    groups = table.groupby(_CONFIGURATION, sort=False)
    how: dict[str, Any] = {
        str(name): "mean"
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        else "first"
        for name, column in table.items()
        if name not in (*_CONFIGURATION, "seed")
    }
    found = groups.agg(how)
    for name in _RANGES:
        found[f"{name}_low"], found[f"{name}_high"] = groups[name].min(), groups[name].max()
    found["n_seeds"] = groups.size()
    return found.reset_index()


def pareto_front(table: "pandas.DataFrame") -> "pandas.Series[bool]":
    """Mark the rows that no other row of their site beats: R2 as high, L0 as low, one better.

    Equal rows do not beat each other; a row with an L0 of 0 or without a finite R2 is never on the
    front. `table` is of fits, or of `over_seeds`, where luck counts less.

    >>> import pandas
    >>> fits = pandas.DataFrame({"site": "block1", "l0": [2, 4, 8], "r2": [0.5, 0.8, 0.7]})
    >>> pareto_front(fits).tolist()
    [True, True, False]
    """
    import pandas as pd

    _need(table, ["site", *_RANGES], "pareto_front")
    on_front = np.zeros(len(table), dtype=bool)
    l0, r2 = (table[name].to_numpy(dtype=float, na_value=np.nan) for name in _RANGES)
    can_be = np.isfinite(r2) & np.isfinite(l0) & (l0 > 0)
    for each in table.groupby("site", sort=False).indices.values():
        rows = np.asarray(each)
        best, best_l0 = -math.inf, math.nan
        ordered = rows[np.lexsort((-r2[rows], l0[rows]))]
        for row in ordered[can_be[ordered]]:
            # Those before are as sparse or sparser: it has to be better, or the same twice.
            if r2[row] > best or (r2[row] == best and l0[row] == best_l0):
                on_front[row] = True
                best, best_l0 = r2[row], l0[row]
    return pd.Series(on_front, index=table.index, name="on_front", dtype=bool)


def best_at_equal_l0(table: "pandas.DataFrame") -> "pandas.DataFrame":
    """Find the configuration of highest R2 at about equal L0, and the best of another learner.

    About equal is within half a power of two of 1, 2, 4, 8 and so on. `table` is that of
    `over_seeds`, with `learner`. The result has one row a site and power of two: `site`,
    `about_l0`, then `configuration`, `learner`, `l0`, `r2`, `r2_low`, `r2_high`, `n_seeds` of the
    best; of the best of another learner the same as `next_...`; `told_apart`, whether the ranges of
    R2 over at least two seeds of each do not overlap; `n_configurations`, how many there were.
    """
    import pandas as pd

    _need(table, ["site", *_SAID], "best_at_equal_l0")
    usable = table[(table["l0"] > 0) & np.isfinite(table["r2"])]
    about = 2.0 ** np.round(np.log2(usable["l0"].astype(float)))
    usable, found = usable.assign(about_l0=about), []
    groups = (
        (site, l0, group)
        for site in table["site"].unique()
        for l0, group in usable[usable["site"] == site].groupby("about_l0")
    )
    for site, l0, group in groups:
        ordered = group.sort_values("r2", ascending=False, kind="stable")
        best = ordered.iloc[0]
        others = ordered[ordered["learner"] != best["learner"]]
        row = {"site": site, "about_l0": l0, **best[_SAID], "told_apart": False}
        if len(others):
            other = others.iloc[0]
            row |= {f"next_{name}": other[name] for name in _SAID}
            row["told_apart"] = bool(
                min(best["n_seeds"], other["n_seeds"]) > 1 and best["r2_low"] > other["r2_high"]
            )
        found.append({**row, "n_configurations": len(group)})
    columns = ["site", "about_l0", *_SAID, *(f"next_{name}" for name in _SAID)]
    return pd.DataFrame(found, columns=[*columns, "told_apart", "n_configurations"])


def _need(table: "pandas.DataFrame", columns: list[str], who: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(
            f"{who}: the table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}"
        )
