"""Modes against cells: which mode of the interneurons goes with which ganglion cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import correlation_matrix, cosine

if TYPE_CHECKING:
    import numpy
    import pandas

ClusterMethod = Literal["kmeans", "hierarchical"]

_N_STARTS: Final = 10


@dataclass(frozen=True, eq=False)
class Clustering:
    """Groups of the rows of a matrix, and how well each number of groups would separate them.

    Attributes
    ----------
    labels : Tensor of shape [row], int64
        Cluster of every row; 0 is the largest, clusters of one size come in the order of their
        first rows.
    k : int
        Number of clusters.
    ks : tuple of int
        The numbers that were tried.
    silhouettes : Tensor of shape [k tried]
        Mean silhouette for each, -1 to 1.
    order : Tensor of shape [row], int64
        Rows in the order to draw them in: cluster by cluster, neighbours alike.
    """

    labels: Int[torch.Tensor, " row"]
    k: int
    ks: tuple[int, ...]
    silhouettes: Float[torch.Tensor, " tried"]
    order: Int[torch.Tensor, " row"]


def mode_cell_correlation(
    loadings: Float[torch.Tensor, "sample mode"], rates: Float[torch.Tensor, "sample cell"]
) -> Float[torch.Tensor, "cell mode"]:
    """Pearson correlation, over frames, of every mode's loading with every cell's rate.

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
    _check_frames(loadings, rates)
    return correlation_matrix(rates, loadings)


def mode_cell_p(
    loadings: Float[torch.Tensor, "sample mode"],
    rates: Float[torch.Tensor, "sample cell"],
    *,
    n_shifts: int = 500,
    seed: int = 0,
) -> Float[torch.Tensor, "cell mode"]:
    """How often chance gives any pair of cell and mode as large a correlation, in size.

    Loadings and rates last, so that any two of them correlate. Here the rates of all cells are
    shifted together around the recording's end by a random number of frames: what cells have to
    do with each other, and modes with each other, is kept. The largest correlation of any pair
    is compared, so that p holds for the whole matrix; the recording itself counts as one shift.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
        Frames in the order of time.
    rates : Tensor of shape [sample, cell]
    n_shifts, seed : int

    Raises
    ------
    OptionError
        No shifts.
    DataError
        As in `mode_cell_correlation`.
    """
    if n_shifts < 1:
        raise OptionError(f"mode_cell_p: n_shifts must be 1 or more; got {n_shifts}")
    here = mode_cell_correlation(loadings, rates).abs()
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(len(rates), (n_shifts,), generator=generator).tolist()
    shifted = (correlation_matrix(rates.roll(offset, 0), loadings) for offset in offsets)
    largest = torch.stack([each.abs().max() for each in shifted])
    # Equal correlations are equally large, whatever rounding says.
    as_large = (largest[:, None, None] >= here - 1e-6).sum(0)
    return (1 + as_large) / (1 + n_shifts)


def cluster(
    matrix: Float[torch.Tensor, "row column"],
    method: ClusterMethod = "kmeans",
    *,
    ks: Sequence[int] = range(2, 9),
    seed: int = 0,
) -> Clustering:
    """Group the rows of a matrix, in as many clusters as separate best by the mean silhouette.

    Every column is first brought to mean 0 and standard deviation 1 (one that does not vary, to
    0). Melander et al. 2026, Figure 8C: cells by their correlations with modes, k-means, k from
    2 to 8. For groups of modes, give the transposed matrix. The number of columns is free: there
    may be fewer modes than clusters.

    Parameters
    ----------
    matrix : Tensor of shape [row, column]
        As `mode_cell_correlation` gives it.
    method : {"kmeans", "hierarchical"}
        scikit-learn's k-means, best of 10 starts, or SciPy's tree by Ward's criterion.
    ks : sequence of int
        Numbers of clusters to try. Those above the number of rows minus 1, for which there is no
        silhouette, and above the number of different rows are left out. Of equal silhouettes
        the smaller number is taken.
    seed : int
        Of k-means.

    Raises
    ------
    DataError
        Fewer than three rows, all rows alike, or entries that are not finite.
    OptionError
        Another method, or no number of clusters that can be tried.
    """
    from sklearn.metrics import silhouette_score

    if method not in get_args(ClusterMethod):
        raise OptionError(
            f"cluster: method must be one of {', '.join(get_args(ClusterMethod))}; got {method!r}"
        )
    _check_finite("cluster: the matrix", matrix)
    rows = _standardised(matrix).numpy()
    tried = _ks(rows, ks)
    tree = _tree(rows)
    groups = [_groups(rows, tree, k, method, seed) for k in tried]
    scores = torch.tensor([float(silhouette_score(rows, labels)) for labels in groups])
    best = int((scores >= scores.max() - 1e-6).nonzero()[0])  # rounding is no reason for more
    labels = _by_size(torch.as_tensor(groups[best], dtype=torch.int64))
    return Clustering(
        labels=labels,
        k=tried[best],
        ks=tried,
        silhouettes=scores,
        order=_order(labels, tree),
    )


def near_duplicates(
    loadings: Float[torch.Tensor, "sample mode"],
    atoms: Float[torch.Tensor, "mode unit"] | None = None,
    *,
    least: float = 0.9,
) -> "pandas.DataFrame":
    """Pairs of modes that say the same: their loadings rise and fall together.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
    atoms : Tensor of shape [mode, unit], optional
    least : float
        Smallest correlation of loadings that is reported.

    Returns
    -------
    pandas.DataFrame
        One row a pair, the most alike first, with the columns ``mode`` and ``other`` (int,
        ``mode`` the smaller), ``correlation`` of their loadings, and ``cosine`` of their atoms
        (NaN without atoms).

    Raises
    ------
    OptionError
        `least` is not above 0 and at most 1.
    DataError
        Atoms and loadings of different numbers of modes, or entries that are not finite.
    """
    import pandas

    if not 0 < least <= 1:
        raise OptionError(f"near_duplicates: least must be above 0 and at most 1; got {least}")
    _check_finite("near_duplicates: loadings", loadings)
    if atoms is not None and len(atoms) != loadings.shape[1]:
        raise DataError(
            f"near_duplicates: {len(atoms)} atoms, but loadings of {loadings.shape[1]} modes"
        )
    # Rounding must not hide a copy from least=1.
    together = correlation_matrix(loadings, loadings).triu(1)
    pairs = (together >= least - 1e-6).nonzero()
    one, other = pairs.unbind(1)
    likeness = torch.full((len(pairs),), torch.nan)
    if atoms is not None:
        likeness = cosine(atoms[one], atoms[other])
    table = pandas.DataFrame(
        {
            "mode": one.numpy(),
            "other": other.numpy(),
            "correlation": together[one, other].double().numpy(),
            "cosine": likeness.double().numpy(),
        }
    )
    return table.sort_values(
        ["correlation", "mode", "other"], ascending=[False, True, True], ignore_index=True
    )


def _standardised(matrix: Tensor) -> Tensor:
    """Columns of mean 0 and standard deviation 1; 0 where a column does not vary."""
    wide = matrix.double()
    away = wide - wide.mean(0)
    varies = wide.amax(0) > wide.amin(0)
    spread = away.square().mean(0).sqrt()
    return torch.where(varies, away / spread.where(varies, 1.0), 0.0)


def _ks(rows: "numpy.ndarray", ks: Sequence[int]) -> tuple[int, ...]:
    import numpy as np

    n_rows, n_different = len(rows), len(np.unique(rows, axis=0))
    if n_rows < 3:
        raise DataError(
            f"cluster: {n_rows} rows; two clusters can be judged from three rows on. Take more "
            "cells, or do without clusters"
        )
    if n_different < 2:
        raise DataError(
            f"cluster: all {n_rows} rows are alike, so there is nothing to tell them apart by; "
            "check that loadings and rates vary"
        )
    top = min(n_rows - 1, n_different)
    tried = tuple(sorted({int(k) for k in ks if 2 <= k <= top}))
    if not tried:
        raise OptionError(
            f"cluster: ks must hold a number from 2 to {top} for {n_rows} rows, {n_different} of "
            f"them different; got {list(ks)}"
        )
    return tried


def _tree(rows: "numpy.ndarray") -> "numpy.ndarray":
    from scipy.cluster.hierarchy import linkage

    tree: numpy.ndarray = linkage(rows, method="ward", optimal_ordering=True)
    return tree


def _groups(
    rows: "numpy.ndarray", tree: "numpy.ndarray", k: int, method: ClusterMethod, seed: int
) -> "numpy.ndarray":
    from scipy.cluster.hierarchy import cut_tree
    from sklearn.cluster import KMeans

    if method == "hierarchical":
        labels: numpy.ndarray = cut_tree(tree, n_clusters=k)[:, 0]
    else:
        labels = KMeans(n_clusters=k, n_init=_N_STARTS, random_state=seed).fit_predict(rows)
    return labels


def _by_size(labels: Tensor) -> Tensor:
    """The same clusters, numbered by size and then by first row."""
    numbers = sorted(
        set(labels.tolist()),
        key=lambda c: (-int((labels == c).sum()), int((labels == c).nonzero()[0])),
    )
    return torch.tensor([numbers.index(label) for label in labels.tolist()])


def _order(labels: Tensor, tree: "numpy.ndarray") -> Tensor:
    """Cluster by cluster; within a cluster as the leaves of the tree."""
    from scipy.cluster.hierarchy import leaves_list

    leaves = torch.as_tensor(leaves_list(tree).copy(), dtype=torch.int64)
    return leaves[labels[leaves].argsort(stable=True)]


def _check_frames(loadings: Tensor, rates: Tensor) -> None:
    if len(loadings) != len(rates) or len(rates) < 2:
        raise DataError(
            f"mode_cell_correlation: loadings of {len(loadings)} frames, rates of {len(rates)}; "
            "expected the same frames, two or more (a recording's responses begin after the "
            "history: Recording.responses)"
        )
    _check_finite("mode_cell_correlation: loadings", loadings)
    _check_finite("mode_cell_correlation: rates", rates)


def _check_finite(what: str, values: Tensor) -> None:
    wrong = (~values.isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{what}: {len(wrong)} of {len(values)} rows hold NaN or infinity; the first are "
            f"{wrong[:5]}. Leave those out"
        )
