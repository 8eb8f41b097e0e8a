"""Statistics of contributions and activations, site by site.

How sparse, how high-dimensional, and whether what a unit adds to the target and what it
takes away go together: figure 3 of Melander et al. 2026. To add one, add it to `STATISTICS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import Dimensions, hoyer, participation_ratio, pearson
from condec.store.shards import QUANTITIES, Quantity, SiteInfo
from condec.store.store import Store

if TYPE_CHECKING:
    import pandas

_ROWS_AT_ONCE: Final = 4096
"""Samples worked on at a time: no more than some shards of a store are held."""
_UNDEFINED: Final = torch.tensor([math.nan])
_ALL_EXCHANGED: Final = 12
TREND: Final = 0.5
"""Rank correlation with the order of the sites from which on a figure rises or falls."""


class Median:
    """Median over samples of a figure that each has by itself."""

    def __init__(self, figure: Callable[..., Tensor]) -> None:
        self._figure, self._found = figure, list[Tensor]()

    def add(self, *rows: Tensor) -> None:
        """Take more samples."""
        self._found.append(self._figure(*rows))

    def value(self) -> float:
        """Return the median of defined figures; the mean of the middle two of an even number."""
        return float(torch.cat(self._found).to(torch.float64).nanquantile(0.5))


@dataclass(frozen=True, kw_only=True)
class SiteStatistic:
    """One statistic of a site, and its words."""

    name: str
    start: Callable[[], Median | Dimensions]  # whose `add` takes Tensor[sample, unit]
    head: str  # of a table's column
    title: str  # of a figure
    axis: str
    subject: str  # in a sentence
    digits: int = 3  # after the point, in a table
    of: tuple[Quantity, ...] = QUANTITIES
    signed: bool = False  # `add` takes the positive and the negative part

    def column(self, quantity: Quantity) -> str:
        """Return the column of a quantity, for example ``hoyer_contribution``."""
        return f"{self.name}_{quantity}" if len(self.of) > 1 else self.name


def layer_statistics(store: Store) -> "pandas.DataFrame":
    """Work out sparsity, dimensions, sign correlation and completeness of every site of a store.

    Contributions are positive plus negative part, activations the sum over positions. Figures
    of a sample are given by their median over the samples for which they are defined. Formulas:
    Melander et al. 2026 (CODEC), who take the dimensions, however, of the classes' mean vectors.

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
    change = (store.target - store.target_baseline).to(torch.float64)
    rows = [
        {"site": info.site.key, "units": info.n_units} | _of_site(store, info, change)
        for info in store.infos
    ]
    columns = [one.column(quantity) for one in STATISTICS for quantity in one.of]
    return pandas.DataFrame(rows, columns=["site", "units", *columns, "completeness"])


def compare_trends(statistics: "pandas.DataFrame", twin: "pandas.DataFrame") -> "pandas.DataFrame":
    """Tell which statistics rise or fall along the network, and whether those of a twin do, too.

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
        - ``p``: of a trend that is another one than the twin's: share of the ways to exchange
          network and twin at each site (all, or 4096 of more than 12 sites) under which
          straight lines through both differ as much in slope; NaN with fewer than three sites;
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
        columns = (both[name], both[f"{name} of the twin"])
        real, other = (torch.tensor(one.tolist(), dtype=torch.float64) for one in columns)
        trends = [_trend(values) for values in (real, other)]
        rows.append({
            "statistic": name,
            "trend": trends[0],
            "twin_trend": trends[1],
            "shared": min(map(abs, trends)) >= TREND and trends[0] * trends[1] > 0,
            "p": _exchanged(real, other),
            "above": int((real > other).sum()),
            "below": int((real < other).sum()),
            "sites": int((real.isfinite() & other.isfinite()).sum()),
        })  # fmt: skip
    return pandas.DataFrame(rows)


def _exchanged(real: Tensor, other: Tensor) -> float:
    """Test whether slopes differ by exchanging the values of a site; both signs count."""
    known = real.isfinite() & other.isfinite()
    n = int(known.sum())
    if n < 3:
        return math.nan
    apart = (real - other)[known] * (torch.arange(n).double() - (n - 1) / 2)
    if n <= _ALL_EXCHANGED:
        signs = 1 - 2 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, 2, (2**_ALL_EXCHANGED - 1, n), generator=generator)
        signs = torch.cat([torch.ones(1, n), 1 - 2 * drawn]).double()
    sizes = (signs @ apart).abs()
    return float((sizes >= sizes[0] * (1 - 1e-9)).double().mean())


def _trend(values: Tensor) -> float:
    """Correlate the ranks of the values that are defined (Spearman) with 0, 1, 2, ..."""
    import pandas

    known = values[values.isfinite()]
    if len(known) < 3:
        return math.nan
    ranks = torch.tensor(pandas.Series(known.tolist()).rank().tolist(), dtype=torch.float64)
    order = torch.arange(len(known), dtype=torch.float64)
    return float(pearson(ranks, order, 0))


def _of_site(store: Store, info: SiteInfo, change: Tensor) -> dict[str, float]:
    """Work out all statistics of a site shard by shard; each quantity is read once."""
    found, sums = dict[str, float](), list[Tensor]()
    for quantity in QUANTITIES:
        mine = {one: one.start() for one in STATISTICS if quantity in one.of}
        for block in store.rows(info.site, quantity, "concat").each():
            for rows in torch.split(block, _ROWS_AT_ONCE) if len(block) else ():
                parts = torch.split(rows, info.n_units, 1)
                total = torch.add(*parts)
                for one, taking in mine.items():
                    taking.add(*(parts if one.signed else (total,)))
                if info.cut and quantity == "contribution":
                    sums.append(total.sum(1, dtype=torch.float64))
        found |= {one.column(quantity): float(taking.value()) for one, taking in mine.items()}
    share = (torch.cat(sums) / change).to(torch.float32) if info.cut else _UNDEFINED
    found["completeness"] = float(share.double().nanquantile(0.5))
    return found


STATISTICS: Final = (
    SiteStatistic(
        name="hoyer", head="Hoyer", title="Sparsity", subject="sparsity",
        start=lambda: Median(lambda x: hoyer(x) if x.shape[1] > 1 else x[:, 0] * math.nan),
        axis="Hoyer index, median of inputs: 0 all units alike, 1 one unit",
    ),
    SiteStatistic(
        name="dims95", head="Dims 95 %", title="Dimensions", subject="the dimension",
        start=Dimensions, digits=0,
        axis="principal components that hold 95 % of the variance",
    ),
    SiteStatistic(
        name="participation_ratio", head="Part. ratio", title="Participation ratio",
        subject="the participation ratio", digits=1,
        start=lambda: Median(participation_ratio),
        axis="units that take part, median of inputs",
    ),
    SiteStatistic(
        name="sign_correlation", head="Sign corr.", title="Positive against negative part",
        subject="the correlation of positive and negative part", of=("contribution",), signed=True,
        start=lambda: Median(lambda p, n: -pearson(p, n, 1)),
        axis="correlation over units, median of inputs",
    ),
)  # fmt: skip
"""Statistics of every site, in the order of the table's columns."""
