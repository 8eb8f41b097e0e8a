"""Statistics of contributions and activations, site by site.

How sparse, how high-dimensional, and whether what a unit adds to the target and what it
takes away go together: figure 3 of Melander et al. 2026. To add one, add it to `STATISTICS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from condec.attribution import ActGrad, ActNormGrad
from condec.basis.errors import DataError
from condec.basis.metrics import (
    Dimensions,
    hoyer,
    participation_ratio,
    pca_dimensions,
    pearson,
)  # fmt: skip
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


QUARTILES: Final = {"": 0.5, "_q25": 0.25, "_q75": 0.75}
"""What is given of a figure that each sample has, by the ends of its columns."""


@dataclass(frozen=True, eq=False)
class SiteRows:
    """Some samples at a site: parts [sample, unit] of one quantity, those of the activation."""

    positive: Tensor
    negative: Tensor
    total: Tensor
    active: tuple[Tensor, Tensor]
    labels: Tensor


class Statistic(Protocol):
    """Takes samples block by block, and gives figures by the ends of their columns."""

    def add(self, rows: SiteRows) -> None:
        """Take more samples."""

    def figures(self) -> dict[str, float]:
        """Return what they give."""


class OfSamples:
    """Median and quartiles of a figure that each sample has by itself."""

    def __init__(self, figure: Callable[[SiteRows], Tensor]) -> None:
        self._figure, self._found = figure, list[Tensor]()

    def add(self, rows: SiteRows) -> None:
        """Take more samples."""
        self._found.append(self._figure(rows))

    def figures(self) -> dict[str, float]:
        """Return quantiles of defined figures; the mean of the middle two of an even number."""
        return quartiles(torch.cat(self._found))


class OfRows:
    """Dimensions of all samples."""

    def __init__(self) -> None:
        self._found = Dimensions()

    def add(self, rows: SiteRows) -> None:
        """Take more samples."""
        self._found.add(rows.total)

    def figures(self) -> dict[str, float]:
        """Return the number of components."""
        return {"": float(self._found.value())}


class OfMeans:
    """Dimensions of the labels' mean vectors; NaN with fewer than two labels."""

    def __init__(self) -> None:
        self._sums = dict[int, Tensor]()
        self._counts = dict[int, int]()

    def add(self, rows: SiteRows) -> None:
        """Take more samples."""
        for label in sorted({*rows.labels.tolist()} - {-1}):
            mine = rows.total[rows.labels == label]
            self._sums[label] = self._sums.get(label, 0) + mine.sum(0, dtype=torch.float64)
            self._counts[label] = self._counts.get(label, 0) + len(mine)

    def figures(self) -> dict[str, float]:
        """Return the number of components."""
        if len(self._sums) < 2:
            return {"": math.nan}
        means = [sums / self._counts[label] for label, sums in self._sums.items()]
        return {"": float(pca_dimensions(torch.stack(means)))}


@dataclass(frozen=True, kw_only=True)
class SiteStatistic:
    """One statistic of a site, and its words."""

    name: str
    start: Callable[[], Statistic]
    head: str  # of a table's column
    title: str  # of a figure
    axis: str
    subject: str  # in a sentence
    digits: int = 3  # after the point, in a table
    of: tuple[Quantity, ...] = QUANTITIES
    methods: tuple[str, ...] = ()  # of contributions for which it is defined; all where empty
    why: str = ""  # it is not defined for others, as a sentence

    def is_defined(self, store: Store) -> bool:
        """Tell whether it can be worked out from the contributions of a store."""
        return not self.methods or store.recipe.get("method", {}).get("name") in self.methods

    def column(self, quantity: Quantity) -> str:
        """Return the column of a quantity, for example ``hoyer_contribution``."""
        return f"{self.name}_{quantity}" if len(self.of) > 1 else self.name


def quartiles(values: Tensor) -> dict[str, float]:
    """Return `QUARTILES` of the values that are defined."""
    known = values.to(torch.float64)
    return {end: float(known.nanquantile(at)) for end, at in QUARTILES.items()}


def _undefined(rows: SiteRows) -> Tensor:
    return torch.full((len(rows.total),), math.nan)


def sign_excess(rows: SiteRows) -> Tensor:
    r"""Compute the sign correlation beyond that which a gradient constant over space forces.

    Of contributions :math:`g_{up} h_{up}` (`ActGrad`, `ActNormGrad`): if a unit's gradient
    :math:`g_u` is one number at all positions, they are divided by sign as its activations are.
    With :math:`T_u = P_u + |N_u|` its contributions' size, and
    :math:`a_u = A^+_u / (A^+_u + |A^-_u|)` the share of positive ones in that of its activations,
    its parts are

    .. math:: (P^0_u, |N^0_u|) = T_u (a_u, 1 - a_u) \quad\text{or}\quad T_u (1 - a_u, a_u),

    as :math:`g_u` is above 0 or below: the one of the two that is nearer to :math:`P_u`. The
    excess is :math:`r(P, |N|) - r(P^0, |N^0|)` over units. Where activations are not negative,
    :math:`a_u` is 1: every unit has one sign then, and :math:`r(P^0, |N^0|)` is below 0 whatever a
    network has learned. Returns [sample]; 0 where the gradient is constant over space.

    Contributions along a path are :math:`g_u (h_{up} - h_{0up})` there, from the activation at the
    baseline, which biases alone keep from 0. Their share is that of the parts of the difference,
    which stores do not hold: those of `rows.active` give no excess of them.
    """
    positive, negative = rows.positive, -rows.negative
    active, other = rows.active[0], -rows.active[1]
    size, both = positive + negative, active + other
    share = torch.where(both > 0, active / both, 1.0)
    up, down = size * share, size * (1 - share)
    above = (positive - up).abs() <= (positive - down).abs()
    constant = torch.where(above, up, down), torch.where(above, down, up)
    return pearson(positive, negative, 1) - pearson(*constant, 1)


def layer_statistics(store: Store) -> "pandas.DataFrame":
    """Work out sparsity, dimensions, sign correlation and completeness of every site of a store.

    Contributions are positive plus negative part, activations the sum over positions. Figures
    of a sample are given by their median over the samples for which they are defined, and by their
    quartiles, in columns of the same name with ``_q25`` and ``_q75`` behind it. Formulas: Melander
    et al. 2026 (CODEC), who take the dimensions of the classes' mean vectors.

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
          95 % of the variance over all samples (one number, without quartiles);
        - ``dims95_means_contribution``, ``dims95_means_activation``: the same of the labels' mean
          vectors, of which there are as many as labels; NaN with fewer than two;
        - ``participation_ratio_contribution``, ``participation_ratio_activation``: how many
          units take part, 1 to ``units``;
        - ``sign_correlation``: Pearson correlation over units of the positive part with the
          size of the negative part, 1 where the units that add also take away most; 0 for a
          sample whose one part does not vary;
        - ``sign_excess``: the same, less what a gradient that is constant over space would give
          (`condec.store.statistics.sign_excess`); 0 where it is, as before global pooling; NaN
          for methods other than `ActGrad` and `ActNormGrad`: along a path contributions begin at
          the activation of the baseline, whose difference by sign is not stored;
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
    return pandas.DataFrame(rows)


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
        at_end = name.endswith(tuple(filter(None, QUARTILES)))
        if f"{name} of the twin" not in both or name in ("units", "completeness") or at_end:
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
    mine = {
        one.column(of): (of, one.start() if one.is_defined(store) else OfSamples(_undefined))
        for one in STATISTICS
        for of in one.of
    }
    labels, sums, end = store.labels, list[Tensor](), 0
    blocks = [store.rows(info.site, quantity, "concat").each() for quantity in QUANTITIES]
    for both in zip(*blocks, strict=True):
        for parts in zip(*(torch.split(block, _ROWS_AT_ONCE) for block in both), strict=True):
            start, end = end, end + len(parts[0])
            halves = [(part[:, : info.n_units], part[:, info.n_units :]) for part in parts]
            rows = {
                quantity: SiteRows(up, down, up + down, halves[1], labels[start:end])
                for quantity, (up, down) in zip(QUANTITIES, halves, strict=True)
                if end > start
            }
            for quantity, taking in mine.values() if rows else ():
                taking.add(rows[quantity])
            if info.cut and rows:
                sums.append(rows["contribution"].total.sum(1, dtype=torch.float64))
    share = (torch.cat(sums) / change).to(torch.float32) if info.cut else _UNDEFINED
    every = {name: taking.figures() for name, (_, taking) in mine.items()}
    every["completeness"] = quartiles(share)
    return {f"{name}{end}": value for name, of in every.items() for end, value in of.items()}


STATISTICS: Final = (
    SiteStatistic(
        name="hoyer", head="Hoyer", title="Sparsity", subject="sparsity",
        start=lambda: OfSamples(
            lambda x: hoyer(x.total) if x.total.shape[1] > 1 else _undefined(x)
        ),
        axis="Hoyer index, median of inputs: 0 all units alike, 1 one unit",
    ),
    SiteStatistic(
        name="dims95", head="Dims 95 %", title="Dimensions", subject="the dimension",
        start=OfRows, digits=0,
        axis="principal components that hold 95 % of the variance",
    ),
    SiteStatistic(
        name="dims95_means", head="Of means", title="Dimensions of labels' means",
        subject="the dimension of labels' means", start=OfMeans, digits=0,
        axis="principal components that hold 95 % of the variance of the labels' mean vectors",
    ),
    SiteStatistic(
        name="participation_ratio", head="Part. ratio", title="Participation ratio",
        subject="the participation ratio", digits=1,
        start=lambda: OfSamples(lambda x: participation_ratio(x.total)),
        axis="units that take part, median of inputs",
    ),
    SiteStatistic(
        name="sign_correlation", head="Sign corr.", title="Positive against negative part",
        subject="the correlation of positive and negative part", of=("contribution",),
        start=lambda: OfSamples(lambda x: -pearson(x.positive, x.negative, 1)),
        axis="correlation over units, median of inputs",
    ),
    SiteStatistic(
        name="sign_excess", head="Sign excess", title="Signs beyond a constant gradient",
        subject="that correlation beyond what a gradient constant over space forces",
        of=("contribution",), start=lambda: OfSamples(sign_excess),
        axis="correlation less that which a gradient constant over space would give",
        methods=(ActGrad.__name__, ActNormGrad.__name__),
        why="It needs contributions that are activation times gradient. Other methods do not split "
        "them by the sign of the activation: a path begins at that of the baseline, and how the "
        "difference is split is not stored",
    ),
)  # fmt: skip
"""Statistics of every site, in the order of the table's columns."""
