"""Pure numbers from tensors: sparsity, dimensions, correlation, reconstruction, matching.

Nothing here knows of sites, stores or dictionaries. Inputs are never modified, half
precision is computed in float32, and a NaN among the inputs comes out as NaN: it is never
replaced by a number. Formulas are those of Melander et al. 2026 (CODEC) where it has one.

>>> import torch
>>> hoyer(torch.tensor([0.0, 0.0, 0.0, 2.0])).round(decimals=4)
tensor(1.)
>>> participation_ratio(torch.tensor([1.0, 1.0, 1.0, 1.0]))
tensor(4.)
"""

import math
from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from condec.errors import DataError, OptionError
from condec.shapes import ModeLabel, UnitMatrix

__all__ = [
    "auc",
    "correlation_matrix",
    "cosine",
    "hoyer",
    "l0",
    "matched_cosine",
    "participation_ratio",
    "pca_dimensions",
    "pearson",
    "r2",
    "r2_grand",
]

_ENTRIES_AT_ONCE: Final = 2**18
"""Converted to float64 at a time: sums over a large matrix need no second copy of it, and
blocks that stay in the processor's cache are several times faster."""


def hoyer(
    x: Float[torch.Tensor, "..."], dim: int = -1, *, eps: float = 1e-6
) -> Float[torch.Tensor, "..."]:
    r"""Hoyer sparsity of every vector along an axis: 0 all entries alike, 1 a single one.

    .. math:: H(v) = \frac{\sqrt d - \|v\|_1 / (\|v\|_2 + \epsilon)}{\sqrt d - 1}

    Melander et al. 2026, "Hoyer sparsity", per sample over units. Their `eps` bends the
    scale for tiny vectors: a zero vector gets sqrt(d) / (sqrt(d) - 1), above 1. With
    ``eps=0`` the value does not depend on the vector's length, and is NaN for a zero vector.

    Parameters
    ----------
    x : Tensor
    dim : int
        Axis of the d entries of a vector; its axis is removed.
    eps : float

    Raises
    ------
    DataError
        Vectors of fewer than two entries.

    Examples
    --------
    >>> hoyer(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 0.0, 0.0]])).round(decimals=4)
    tensor([0., 1.])
    """
    entries = _size(x, dim, "hoyer", least=2)
    x = _at_least_single(x)
    ones = torch.linalg.vector_norm(x, 1, dim=dim)
    twos = torch.linalg.vector_norm(x, 2, dim=dim)
    root = math.sqrt(entries)
    sparsity: Tensor = (root - ones / (twos + eps)) / (root - 1.0)
    return sparsity


def participation_ratio(x: Float[torch.Tensor, "..."], dim: int = -1) -> Float[torch.Tensor, "..."]:
    r"""How many entries of every vector take part: 1 a single one, d all alike.

    .. math:: PR(v) = \frac{(\sum_i v_i^2)^2}{\sum_i v_i^4}

    As in the library of Melander et al. 2026 (no figure of theirs uses it). NaN for a zero
    vector, of which nothing takes part.

    Parameters
    ----------
    x : Tensor
    dim : int
        Axis of the d entries of a vector; it is removed.
    """
    _size(x, dim, "participation_ratio")
    x = _at_least_single(x)
    # Fourth powers of float32 vanish below 1e-11; the ratio does not depend on the scale.
    squares = (x / x.abs().amax(dim, keepdim=True)).square()
    return squares.sum(dim).square() / squares.square().sum(dim)


def pearson(
    a: Float[torch.Tensor, "..."], b: Float[torch.Tensor, "..."], dim: int = -1
) -> Float[torch.Tensor, "..."]:
    """Pearson correlation of two tensors along an axis.

    Where one of the two is constant along `dim` the correlation is not defined; it is given
    as 0, as in Melander et al. 2026 ("NaN is replaced by 0"). Constant means that all
    entries are equal bit for bit, not that a rounded variance happens to be 0.

    Parameters
    ----------
    a, b : Tensor
        Of shapes that broadcast, and of one size along `dim`.
    dim : int
        Axis to correlate over; it is removed.

    Raises
    ------
    DataError
        The two differ in size along `dim`.

    Examples
    --------
    >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])).round(decimals=4)
    tensor(-1.)
    """
    if _size(a, dim, "pearson") != _size(b, dim, "pearson"):
        raise DataError(
            f"pearson: both tensors must have one size along axis {dim}; got shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )
    return (_standardised(a, dim) * _standardised(b, dim)).sum(dim).clamp(-1.0, 1.0)


def correlation_matrix(
    loadings: Float[torch.Tensor, "sample mode"], indicators: Shaped[torch.Tensor, "sample label"]
) -> ModeLabel:
    """Pearson correlation of every mode with every label, over samples.

    One matrix product of the standardised columns: 50,000 samples, 6,144 modes and 1,000
    labels are a matter of seconds and of one copy of the loadings.

    A constant column (a mode never used, a label nobody has) has correlation 0 with
    everything, as in Melander et al. 2026 ("NaN is replaced by 0").

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
    indicators : Tensor of shape [sample, label]
        Membership (bool, 0 or 1), or any number a sample.

    Returns
    -------
    Tensor of shape [mode, label], in the dtype of `loadings`, at least float32.

    Raises
    ------
    DataError
        The two differ in the number of samples.
    """
    if loadings.shape[0] != indicators.shape[0]:
        raise DataError(
            f"correlation_matrix: loadings of {loadings.shape[0]} samples cannot be compared with "
            f"indicators of {indicators.shape[0]}; select the same rows of both"
        )
    _size(loadings, 0, "correlation_matrix")
    loadings = _at_least_single(loadings)
    others = _standardised(indicators.to(loadings.device, loadings.dtype), 0)
    return (_standardised(loadings, 0).T @ others).clamp_(-1.0, 1.0)


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
    shares = torch.linalg.eigvalsh(gram).flip(0)
    # Eigenvalues of a rank-deficient matrix come out as rounding noise, some below 0.
    noise = shares[0] * max(n_samples, n_units) * torch.finfo(torch.float64).eps
    shares = shares[shares > noise.clamp_min(0.0)]
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


def cosine(
    a: Float[torch.Tensor, "..."], b: Float[torch.Tensor, "..."], dim: int = -1
) -> Float[torch.Tensor, "..."]:
    """Cosine of the angle between two tensors along an axis; 0 where one of them is zero.

    Parameters
    ----------
    a, b : Tensor
        Of shapes that broadcast.
    dim : int
        Axis of a vector's entries; it is removed.
    """
    return (_unit_length(a, dim) * _unit_length(b, dim)).sum(dim).clamp(-1.0, 1.0)


def l0(loadings: Float[torch.Tensor, "..."], dim: int = -1) -> Int[torch.Tensor, "..."]:
    """Number of entries that are not exactly 0 along an axis: modes in use, per sample.

    Parameters
    ----------
    loadings : Tensor
    dim : int
        Axis to count over; it is removed.
    """
    return loadings.count_nonzero(dim)


def auc(y: Float[torch.Tensor, " point"], x: Float[torch.Tensor, " point"]) -> float:
    """Area under a curve through points, by the trapezoid rule.

    Parameters
    ----------
    y, x : Tensor of shape [point]
        `x` in ascending order.

    Raises
    ------
    DataError
        Fewer than two points, `y` and `x` of different lengths, or `x` not ascending.

    Examples
    --------
    >>> auc(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 3.0]))
    2.5
    """
    if y.shape != x.shape or y.ndim != 1 or len(x) < 2:
        raise DataError(
            "auc: expected y and x of one length, at least 2 points; got shapes "
            f"{tuple(y.shape)} and {tuple(x.shape)}"
        )
    if bool((x.diff() < 0).any()):
        raise DataError(f"auc: x must be in ascending order; got {x.tolist()}")
    return float(torch.trapezoid(y.to(torch.float64), x.to(torch.float64)))


def matched_cosine(
    atoms_a: Float[torch.Tensor, "mode unit"], atoms_b: Float[torch.Tensor, "other unit"]
) -> Float[torch.Tensor, " mode"]:
    """Cosine of every atom with its partner in another dictionary.

    Partners are assigned one to one so that the sum of cosines is largest (Hungarian
    method). With more atoms in the first dictionary than in the second, those left over get
    NaN; ``nanmean()`` of the result is the stability of a dictionary over two fits.

    Parameters
    ----------
    atoms_a : Tensor of shape [mode, unit]
    atoms_b : Tensor of shape [other mode, unit]

    Raises
    ------
    DataError
        The dictionaries differ in the number of units.
    """
    from scipy.optimize import linear_sum_assignment

    if atoms_a.ndim != 2 or atoms_b.ndim != 2 or atoms_a.shape[1] != atoms_b.shape[1]:
        raise DataError(
            "matched_cosine: expected two [mode, unit] matrices over the same units; got shapes "
            f"{tuple(atoms_a.shape)} and {tuple(atoms_b.shape)}"
        )
    similarity = (_unit_length(atoms_a, 1) @ _unit_length(atoms_b, 1).T).clamp_(-1.0, 1.0)
    rows, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    matched = similarity.new_full((len(atoms_a),), float("nan"))
    matched[torch.from_numpy(rows)] = similarity[torch.from_numpy(rows), torch.from_numpy(columns)]
    return matched


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _size(x: Tensor, dim: int, who: str, *, least: int = 1) -> int:
    if not -x.ndim <= dim < x.ndim or x.shape[dim] < least:
        raise DataError(
            f"{who}: needs at least {least} {'entry' if least == 1 else 'entries'} along axis "
            f"{dim}; got shape {tuple(x.shape)}"
        )
    return int(x.shape[dim])


def _same_shape(x: Tensor, xhat: Tensor, who: str) -> None:
    if x.shape != xhat.shape or x.ndim != 2 or not x.numel():
        raise DataError(
            f"{who}: expected a matrix [sample, unit] and a reconstruction of the same shape; got "
            f"{tuple(x.shape)} and {tuple(xhat.shape)}"
        )


def _unit_length(x: Tensor, dim: int) -> Tensor:
    """Scale to length 1 along `dim`; zero vectors stay zero, NaN stays NaN."""
    x = _at_least_single(x)
    # By the largest entry first: squares of float32 vanish below 1e-23.
    return _divide_by_length(x / _or_one(x.abs().amax(dim, keepdim=True)), dim)


def _standardised(x: Tensor, dim: int) -> Tensor:
    """Centred and of length 1 along `dim`; exactly 0 where all entries are alike."""
    x = _at_least_single(x)
    mean = x.mean(dim, keepdim=True)
    highest, lowest = x.amax(dim, keepdim=True), x.amin(dim, keepdim=True)
    scale = _or_one(torch.maximum(highest - mean, mean - lowest))
    centred = (x - mean).div_(scale)
    # A NaN is equal to nothing, so a column that holds one is not constant and stays NaN.
    return _divide_by_length(centred.masked_fill_(highest == lowest, 0.0), dim)


def _divide_by_length(x: Tensor, dim: int) -> Tensor:
    """In place: `x` must be a fresh tensor."""
    return x.div_(_or_one(torch.linalg.vector_norm(x, dim=dim, keepdim=True)))


def _or_one(size: Tensor) -> Tensor:
    return size.masked_fill(size == 0, 1.0)


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
