"""Numbers of whole matrices: dimensions, and how well a reconstruction fits."""

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.shapes import UnitMatrix

_ENTRIES_AT_ONCE: Final = 2**18
"""Converted to float64 at a time: sums over a large matrix need no second copy of it, and
blocks that stay in the processor's cache are several times faster."""


def pca_dimensions(matrix: UnitMatrix, variance: float = 0.95) -> int:
    """Number of principal components that hold a share of the variance.

    The smallest k whose k largest eigenvalues of the covariance between units (in float64)
    sum to at least `variance` of their total. Melander et al. 2026 apply it to class means;
    `matrix` may be those or single samples. 0 where nothing varies.

    Parameters
    ----------
    matrix : Tensor of shape [sample, unit]
    variance : float
        Share, above 0 and at most 1.

    Raises
    ------
    OptionError
        `variance` outside its range.
    DataError
        An entry is not finite.

    Examples
    --------
    >>> pca_dimensions(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))
    1
    """
    if not 0.0 < variance <= 1.0:
        raise OptionError(f"pca_dimensions: variance must be above 0 and at most 1; got {variance}")
    n_samples, n_units = matrix.shape
    if not n_samples or not n_units:
        raise DataError(f"pca_dimensions: needs rows and units; got shape {tuple(matrix.shape)}")
    mean = _column_mean(matrix)
    if not bool(mean.isfinite().all()):
        raise DataError(
            "pca_dimensions: the matrix holds NaN or infinite entries; drop those samples first"
        )
    if n_units <= n_samples:
        gram = mean.new_zeros(n_units, n_units)
        for rows in _blocks(matrix):
            centred = rows - mean
            gram.addmm_(centred.T, centred)
    else:  # Same eigenvalues but for zeros, from the smaller side.
        centred = matrix.to(torch.float64) - mean
        gram = centred @ centred.T
    shares = _eigenvalues(gram, max(n_samples, n_units)).flip(0)
    if not shares.numel():
        return 0
    short = int((shares.cumsum(0) < variance * (1 - 1e-12) * shares.sum()).sum())
    return min(short + 1, len(shares))


def r2(x: UnitMatrix, xhat: UnitMatrix) -> float:
    r"""Share of the variance within units that a reconstruction explains.

    .. math:: R^2 = 1 - \frac{\sum_{su} (x_{su} - \hat x_{su})^2}{\sum_{su} (x_{su} - \bar x_u)^2}

    Predicting every unit's own mean scores 0 (the paper's `r2_grand` scores that above 0).
    NaN where no unit varies.

    Parameters
    ----------
    x, xhat : Tensor of shape [sample, unit]

    Raises
    ------
    DataError
        The two differ in shape.
    """
    _same_shape(x, xhat, "r2")
    residual = _sum_of_squares(x, xhat)
    total = _sum_of_squares(x, _column_mean(x).expand_as(x))
    return 1.0 - residual / total if total else float("nan")


def r2_grand(x: UnitMatrix, xhat: UnitMatrix) -> float:
    r"""R2 as Melander et al. 2026 report it: against the mean of all entries.

    .. math:: R^2 = 1 - \frac{\mathrm{mean}(x - \hat x)^2}{\mathrm{mean}(x - \bar x)^2 + \epsilon}

    with epsilon = 1e-6. The mean of x is one number for the whole matrix, so differences
    between the means of units count as explained; compare with `r2`.

    Parameters
    ----------
    x, xhat : Tensor of shape [sample, unit]

    Raises
    ------
    DataError
        The two differ in shape.
    """
    _same_shape(x, xhat, "r2_grand")
    grand = _column_mean(x).mean()
    residual = _sum_of_squares(x, xhat) / x.numel()
    total = _sum_of_squares(x, grand.expand_as(x)) / x.numel()
    return 1.0 - residual / (total + 1e-6)


def shrinkage(x: UnitMatrix, xhat: UnitMatrix) -> float:
    r"""Length of a reconstruction relative to that of its row, mean over rows.

    .. math:: \left\langle \|\hat x_s\|_2 \,/\, \|x_s\|_2 \right\rangle_s

    1 where lengths are kept, below 1 where a penalty pulls loadings towards 0. Rows of zeros
    have no such ratio and are left out; NaN where all are.

    Parameters
    ----------
    x, xhat : Tensor of shape [sample, unit]

    Raises
    ------
    DataError
        The two differ in shape.

    Examples
    --------
    >>> shrinkage(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    0.55
    """
    _same_shape(x, xhat, "shrinkage")
    lengths = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    others = torch.linalg.vector_norm(xhat, dim=1, dtype=torch.float64)
    return float((others / lengths)[lengths != 0].mean())


def effective_rank(matrix: Float[torch.Tensor, "row column"]) -> float:
    r"""Number of directions that a matrix uses, weighed by its singular values.

    .. math:: \exp\left(-\sum_k p_k \log p_k\right), \qquad p_k = \frac{\sigma_k}{\sum_j \sigma_j}

    Roy and Vetterli (2007), "The effective rank". 1 for one direction, d for d orthogonal
    rows of one length; NaN for a matrix of zeros.

    Parameters
    ----------
    matrix : Tensor of shape [row, column]

    Raises
    ------
    DataError
        Another number of axes, no entries, or entries that are not finite.

    Examples
    --------
    >>> round(effective_rank(torch.eye(4)), 6)
    4.0
    """
    if matrix.ndim != 2 or not matrix.numel() or not bool(matrix.isfinite().all()):
        raise DataError(
            "effective_rank: expected a matrix of finite entries, at least one; got shape "
            f"{tuple(matrix.shape)}"
        )
    double = matrix.to(torch.float64)
    # Singular values by the smaller of the two products: seconds less for wide dictionaries.
    gram = double.T @ double if matrix.shape[0] > matrix.shape[1] else double @ double.T
    values = _eigenvalues(gram, max(matrix.shape)).sqrt()
    if not len(values):
        return float("nan")
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _eigenvalues(gram: Tensor, size: int) -> Tensor:
    """Eigenvalues above rounding noise, ascending; `size` is the longer side of the matrix."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    # Those of a rank-deficient matrix come out as rounding noise, some below 0.
    noise = values[-1] * size * torch.finfo(torch.float64).eps
    return values[values > noise.clamp_min(0.0)]


def _same_shape(x: Tensor, xhat: Tensor, who: str) -> None:
    if x.shape != xhat.shape or x.ndim != 2 or not x.numel():
        raise DataError(
            f"{who}: expected a matrix [sample, unit] and a reconstruction of the same shape; got "
            f"{tuple(x.shape)} and {tuple(xhat.shape)}"
        )


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    for rows in torch.split(matrix, max(1, _ENTRIES_AT_ONCE // max(matrix.shape[1], 1))):
        yield rows.to(torch.float64)


def _column_mean(matrix: Tensor) -> Tensor:
    total = matrix.new_zeros(matrix.shape[1], dtype=torch.float64)
    for rows in _blocks(matrix):
        total += rows.sum(0)
    return total / len(matrix)


def _sum_of_squares(x: Tensor, other: Tensor) -> float:
    """Sum of squared differences, in float64."""
    blocks = zip(_blocks(x), _blocks(other), strict=True)
    return sum(float((rows - others).square_().sum()) for rows, others in blocks)
