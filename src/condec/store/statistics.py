"""Statistics of contributions and activations, site by site.

How sparse, how high-dimensional, and whether what a unit adds to the target and what it
takes away go together: figure 3 of Melander et al. 2026.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import hoyer, participation_ratio, pca_dimensions, pearson
from condec.network import Site
from condec.store.store import Store

if TYPE_CHECKING:
    import pandas

_ROWS_AT_ONCE: Final = 4096
"""Samples worked on at a time: a whole matrix is held once, its by-products are not."""
_UNDEFINED: Final = torch.tensor([math.nan])
TREND: Final = 0.5
"""Rank correlation with the order of the sites from which on a figure rises or falls."""


def layer_statistics(store: Store) -> "pandas.DataFrame":
    """Sparsity, dimensions, sign correlation and completeness of every site of a store.

    Contributions are positive plus negative part, activations the sum over positions. Of
    figures that every sample has for itself, the median over samples is given, after
    leaving out samples for which the figure is not defined. Formulas: Melander et al. 2026
    (CODEC); the dimensions, however, are those of single samples, where the paper takes
    the mean vectors of the classes.

    Parameters
    ----------
    store : Store
        Complete, with at least one valid sample.

    Returns
    -------
    pandas.DataFrame
        One row a site, in the order of the store, with the columns

        - ``site``: key of the site; ``units``: its number of units;
        - ``hoyer_contribution``, ``hoyer_activation``: Hoyer sparsity over units, 0 all
          alike, 1 a single unit; NaN for a site of one unit;
        - ``dims95_contribution``, ``dims95_activation``: principal components that hold
          95 % of the variance over all samples;
        - ``participation_ratio_contribution``, ``participation_ratio_activation``: how many
          units take part, 1 to ``units``;
        - ``sign_correlation``: Pearson correlation over units of the positive part with the
          size of the negative part, 1 where the units that add also take away most; 0 for a
          sample whose one part does not vary;
        - ``completeness``: sum of contributions over the change of the target; NaN where the
          site does not cut the network, or the method has no baseline.

    Raises
    ------
    DataError
        The store has no valid sample.
    """
    import pandas

    if len(store) == 0:
        raise DataError(
            f"layer_statistics: {store.path} has no valid sample; collect contributions first"
        )
    completeness = store.completeness()
    rows = [
        {"site": site.key, "units": store.info(site).n_units}
        | _of_contributions(store, site)
        | _of_activations(store, site)
        | {"completeness": _median(completeness.get(site.key, _UNDEFINED))}
        for site in store.sites
    ]
    names = ("hoyer", "dims95", "participation_ratio")
    pairs = [f"{name}_{of}" for name in names for of in ("contribution", "activation")]
    columns = ["site", "units", *pairs, "sign_correlation", "completeness"]
    return pandas.DataFrame(rows, columns=columns)


def compare_trends(statistics: "pandas.DataFrame", twin: "pandas.DataFrame") -> "pandas.DataFrame":
    """Which statistics rise or fall along the network, and whether those of a twin do, too.

    A trend that an untrained network shows as well is no result of the training.

    Parameters
    ----------
    statistics, twin : pandas.DataFrame
        From `layer_statistics`, of the real store and of its twin; the sites that both have
        are compared, in the order of the first.

    Returns
    -------
    pandas.DataFrame
        One row for each statistic that both have, with the columns

        - ``statistic``: its column;
        - ``trend``, ``twin_trend``: Spearman's rank correlation of the statistic with the order
          of the sites, 1 where it rises from each to the next, -1 where it falls; NaN with
          fewer than three sites;
        - ``shared``: whether both trends are of size 0.5 at least, and of one sign;
        - ``above``, ``below``: at how many sites the real value is above, or below, the twin's;
          ``sites``: of how many where both are defined.

    Raises
    ------
    DataError
        The tables have no site in common.
    """
    import pandas

    both = statistics.merge(twin, on="site", suffixes=("", " of the twin"))
    if both.empty:
        raise DataError("compare_trends: no site is in both tables; give those of store and twin")
    rows = []
    for name in statistics.columns:
        if f"{name} of the twin" not in both or name in ("units", "completeness"):
            continue
        real, other = (
            torch.tensor(both[column].tolist(), dtype=torch.float64)
            for column in (name, f"{name} of the twin")
        )
        trends = [_trend(values) for values in (real, other)]
        rows.append({
            "statistic": name,
            "trend": trends[0],
            "twin_trend": trends[1],
            "shared": min(map(abs, trends)) >= TREND and trends[0] * trends[1] > 0,
            "above": int((real > other).sum()),
            "below": int((real < other).sum()),
            "sites": int((real.isfinite() & other.isfinite()).sum()),
        })  # fmt: skip
    return pandas.DataFrame(rows)


def _trend(values: Tensor) -> float:
    """Spearman's rank correlation with 0, 1, 2, ..., of the values that are defined."""
    import pandas

    known = values[values.isfinite()]
    if len(known) < 3:
        return math.nan
    ranks = torch.tensor(pandas.Series(known.tolist()).rank().tolist(), dtype=torch.float64)
    order = torch.arange(len(known), dtype=torch.float64)
    return float(pearson(ranks, order, 0))


def _of_contributions(store: Store, site: Site) -> dict[str, float]:
    positive = store.matrix(site, quantity="contribution", sign="positive")
    negative = store.matrix(site, quantity="contribution", sign="negative")
    correlation = _per_sample(lambda p, n: -pearson(p, n, 1), positive, negative)
    total = positive + negative
    del positive, negative
    return {
        "hoyer_contribution": _median_hoyer(total),
        "dims95_contribution": pca_dimensions(total),
        "participation_ratio_contribution": _median(_per_sample(participation_ratio, total)),
        "sign_correlation": _median(correlation),
    }


def _of_activations(store: Store, site: Site) -> dict[str, float]:
    total = store.matrix(site, quantity="activation", sign="sum")
    return {
        "hoyer_activation": _median_hoyer(total),
        "dims95_activation": pca_dimensions(total),
        "participation_ratio_activation": _median(_per_sample(participation_ratio, total)),
    }


def _median_hoyer(matrix: Tensor) -> float:
    return math.nan if matrix.shape[1] < 2 else _median(_per_sample(hoyer, matrix))


def _per_sample(figure: Callable[..., Tensor], *matrices: Tensor) -> Tensor:
    """A figure of every sample, shape [sample], a block of rows at a time."""
    blocks = zip(*(torch.split(matrix, _ROWS_AT_ONCE) for matrix in matrices), strict=True)
    return torch.cat([figure(*rows) for rows in blocks])


def _median(values: Tensor) -> float:
    """Median of the values that are defined; the mean of the middle two of an even number."""
    return float(values.to(torch.float64).nanquantile(0.5))
