"""Modes against cells: which mode of the interneurons goes with which ganglion cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import correlation_matrix
from condec.basis.records import short_repr
from condec.retina.checks import finite_rows

if TYPE_CHECKING:
    import pandas

_KS: Final = range(2, 9)
_N_STARTS: Final = 10


@short_repr
@dataclass(frozen=True, eq=False)
class Clustering:
    """Groups of the rows of a matrix, and how well each number of groups would separate them.

    Attributes
    ----------
    labels : Tensor of shape [row], int64
        Cluster of every row; 0 is the largest, clusters of one size come in the order of their
        first rows.
    ks : tuple of int
        The numbers of clusters that were tried.
    silhouettes : Tensor of shape [k tried]
        Mean silhouette for each, -1 to 1.
    order : Tensor of shape [row], int64
        Rows in the order to draw them in: cluster by cluster, neighbours alike.
    """

    labels: Int[torch.Tensor, " row"]
    ks: tuple[int, ...]
    silhouettes: Float[torch.Tensor, " tried"]
    order: Int[torch.Tensor, " row"]


def mode_cell_correlation(
    loadings: Float[torch.Tensor, "sample mode"], rates: Float[torch.Tensor, "sample cell"]
) -> Float[torch.Tensor, "cell mode"]:
    """Correlate every mode's loading with every cell's rate over frames (Pearson).

    Melander et al. 2026, Figure 8C, take the rates of the model; recorded ones do as well. A
    mode or a cell that is the same at all frames has correlation 0.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
    rates : Tensor of shape [sample, cell]
        Of the same frames.

    Raises
    ------
    DataError
        Other numbers of frames, fewer than two, or entries that are not finite.

    Examples
    --------
    >>> loadings = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> mode_cell_correlation(loadings, torch.tensor([[5.0], [3.0], [1.0]])).round(decimals=3)
    tensor([[-1., 0.]])
    """
    if len(loadings) != len(rates) or len(rates) < 2:
        raise DataError(
            f"mode_cell_correlation: loadings of {len(loadings)} frames, rates of {len(rates)}; "
            "expected the same frames, two or more (a recording's responses begin after the "
            "history: Recording.responses)"
        )
    finite_rows("mode_cell_correlation: loadings", loadings)
    finite_rows("mode_cell_correlation: rates", rates)
    return correlation_matrix(rates, loadings)


def table_of_cells(
    correlation: Float[torch.Tensor, "cell mode"], cells: Sequence[str], modes: Sequence[int],
    seed: int,
) -> "pandas.DataFrame":  # fmt: skip
    """Return one row for each cell and mode, with groups of cells where there are three or more.

    Columns: ``cell`` (name), ``mode`` (number in the dictionary), ``correlation``, ``cluster`` of
    the cell, ``cell_place`` and ``mode_place`` in a drawing, ``silhouette`` of the clustering.
    """
    import pandas

    clusters, order, silhouette = [0] * len(cells), torch.arange(len(cells)), float("nan")
    if len(cells) > 2:
        groups = cluster(correlation, seed=seed)
        clusters, order = groups.labels.tolist(), groups.order
        silhouette = float(groups.silhouettes.max())
    # Modes by the cell that they go with most, in the order of the cells.
    place = order.argsort()
    mode_order = (place[correlation.argmax(0)] - correlation.amax(0) / 10).argsort()
    rows = {"cell": cells, "cluster": clusters, "cell_place": place}
    columns = {"mode": modes, "mode_place": mode_order.argsort()}
    pairs = pandas.DataFrame(rows).merge(pandas.DataFrame(columns), how="cross")
    return pairs.assign(correlation=correlation.double().flatten().numpy(), silhouette=silhouette)[
        ["cell", "mode", "correlation", "cluster", "cell_place", "mode_place", "silhouette"]
    ]


def cluster(matrix: Float[torch.Tensor, "row column"], *, seed: int = 0) -> Clustering:
    """Group the rows of a matrix by k-means, in as many clusters as have the best mean silhouette.

    Every column is first brought to mean 0 and standard deviation 1 (one that does not vary, to
    0). Tried are 2 to 8 clusters, fewer than rows and no more than different rows; the best of 10
    starts counts, and of equal silhouettes the smaller number. Melander et al. 2026, Figure 8C:
    cells by their correlations with modes. For groups of modes, give the transposed matrix.

    Parameters
    ----------
    matrix : Tensor of shape [row, column]
        As `mode_cell_correlation` gives it.
    seed : int

    Raises
    ------
    DataError
        Fewer than three rows, all rows alike, or entries that are not finite.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    finite_rows("cluster: the matrix", matrix)
    rows = _standardised(matrix).numpy()
    n_different = len(np.unique(rows, axis=0))
    if len(rows) < 3 or n_different < 2:
        raise DataError(
            f"cluster: {len(rows)} rows, {n_different} of them different; two clusters can be told "
            "apart from three rows on that are not all alike. Take more cells, check that loadings "
            "and rates vary, or do without clusters"
        )
    ks = tuple(k for k in _KS if k < len(rows) and k <= n_different)
    means = (KMeans(n_clusters=k, n_init=_N_STARTS, random_state=seed) for k in ks)
    groups = [each.fit_predict(rows) for each in means]
    scores = torch.tensor([float(silhouette_score(rows, labels)) for labels in groups])
    best = int((scores >= scores.max() - 1e-6).nonzero()[0])  # rounding is no reason for more
    labels = _by_size(groups[best])
    tree = linkage(rows, method="ward", optimal_ordering=True)
    leaves = torch.as_tensor(leaves_list(tree).copy(), dtype=torch.int64)
    order = leaves[labels[leaves].argsort(stable=True)]
    return Clustering(labels=labels, ks=ks, silhouettes=scores, order=order)


def _standardised(matrix: Tensor) -> Tensor:
    """Bring columns to mean 0 and standard deviation 1; to 0 where a column does not vary."""
    wide = matrix.double()
    away = wide - wide.mean(0)
    varies = wide.amax(0) > wide.amin(0)
    spread = away.square().mean(0).sqrt()
    return torch.where(varies, away / spread.where(varies, 1.0), 0.0)


def _by_size(labels: np.ndarray) -> Tensor:
    """Number the same clusters by size, and then by first row."""
    _, first, place, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    return torch.from_numpy(np.lexsort((first, -sizes)).argsort()[place])
