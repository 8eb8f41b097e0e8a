"""Numbers from tensors: sparsity, dimensions, correlation, reconstruction, matching of atoms.

Inputs are never modified, half precision is computed in float32, and a NaN among the inputs comes
out as NaN: it is never replaced by a number. Formulas are those of Melander et al. 2026 (CODEC)
where it has one.

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

from condec.basis.errors import DataError, OptionError
from condec.basis.shapes import Atoms, ModeLabel, UnitMatrix

__all__ = [
    "Dimensions", "atom_coherence", "correlation_matrix", "cosine", "effective_rank", "hoyer",
    "in_columns", "l0", "matched_cosine", "mean_coherence", "participation_ratio", "pca_dimensions",
    "pearson", "r2", "r2_grand", "shrinkage", "unit_length",
]  # fmt: skip

_ENTRIES_AT_ONCE: Final = 2**18
"""Converted to float64 at a time: sums over a large matrix need no second copy of it, and
blocks that stay in the processor's cache are several times faster."""
_COPIED_AT_ONCE: Final = 2**26
_PARTS: Final = 8


def hoyer(
    x: Float[torch.Tensor, "..."], dim: int = -1, *, eps: float = 1e-6
) -> Float[torch.Tensor, "..."]:
    r"""Compute the Hoyer sparsity along an axis: 0 all entries alike, 1 a single one.

    .. math:: H(v) = \frac{\sqrt d - \|v\|_1 / (\|v\|_2 + \epsilon)}{\sqrt d - 1}

    Melander et al. 2026, "Hoyer sparsity", per sample over units. Their `eps` bends the
    scale for tiny vectors: a zero vector gets sqrt(d) / (sqrt(d) - 1), above 1. With
    ``eps=0`` the value does not depend on the vector's length, and is NaN for a zero vector.
    The axis `dim`, of at least two entries, is removed.
    """
    entries = _size(x, dim, "hoyer", least=2)
    x = _at_least_single(x)
    ones = torch.linalg.vector_norm(x, 1, dim=dim)
    twos = torch.linalg.vector_norm(x, 2, dim=dim)
    root = math.sqrt(entries)
    sparsity: Tensor = (root - ones / (twos + eps)) / (root - 1.0)
    return sparsity


def participation_ratio(x: Float[torch.Tensor, "..."], dim: int = -1) -> Float[torch.Tensor, "..."]:
    r"""Compute how many entries take part along an axis: 1 a single one, d all alike.

    .. math:: PR(v) = \frac{(\sum_i v_i^2)^2}{\sum_i v_i^4}

    As in the library of Melander et al. 2026 (no figure of theirs uses it). NaN for a zero
    vector, of which nothing takes part. The axis `dim` is removed.
    """
    _size(x, dim, "participation_ratio")
    x = _at_least_single(x)
    # Fourth powers of float32 vanish below 1e-11; the ratio does not depend on the scale.
    squares = (x / x.abs().amax(dim, keepdim=True)).square()
    return squares.sum(dim).square() / squares.square().sum(dim)


def pearson(
    a: Float[torch.Tensor, "..."], b: Float[torch.Tensor, "..."], dim: int = -1
) -> Float[torch.Tensor, "..."]:
    """Compute the Pearson correlation of two tensors along an axis, which is removed.

    Where one of the two is constant along `dim` the correlation is not defined; it is given
    as 0, as in Melander et al. 2026 ("NaN is replaced by 0"). Constant means that all
    entries are equal bit for bit, not that a rounded variance happens to be 0. Shapes broadcast,
    but not along `dim`.
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
    """Compute the Pearson correlation of every mode with every label, over samples.

    One matrix product of the standardised columns. A constant column (a mode never used, a
    label nobody has) has correlation 0 with everything, as in `pearson`. `indicators` are
    membership (bool, 0 or 1), or any number a sample; the result has the dtype of `loadings`, at
    least float32.
    """
    if loadings.shape[0] != indicators.shape[0]:
        raise DataError(
            f"correlation_matrix: loadings of {loadings.shape[0]} samples cannot be compared with "
            f"indicators of {indicators.shape[0]}; select the same rows of both"
        )
    _size(loadings, 0, "correlation_matrix")
    loadings = _at_least_single(loadings)
    found = list[Tensor]()
    for few in in_columns(indicators):
        others = _standardised(few.to(loadings.device, loadings.dtype), 0)
        found.append(
            torch.cat([_standardised(part, 0).T @ others for part in in_columns(loadings)])
        )
    return torch.cat(found, 1).clamp_(-1.0, 1.0)


def in_columns(x: Tensor) -> tuple[Tensor, ...]:
    """Split a large matrix by columns, so that a copy of a part takes 256 MiB, or an eighth."""
    width = max(1, _COPIED_AT_ONCE // max(1, len(x)), -(-x.shape[1] // _PARTS))
    return torch.split(x, width, 1)


def correlation_by_label(
    loadings: Float[torch.Tensor, "sample mode"], labels: Int[torch.Tensor, " sample"],
    n_labels: int,
) -> ModeLabel:  # fmt: skip
    """Compute `correlation_matrix` with the indicators of labels from 0, without making them.

    The standardised loadings of a label's n of N samples are summed, and divided by the standard
    deviation of its indicator, sqrt(n (1 - n / N)).
    """
    counts = torch.bincount(labels, minlength=n_labels)
    values = _standardised(loadings, 0)
    sums = values.new_zeros(n_labels, values.shape[1]).index_add_(0, labels, values)
    scale = (counts * (1.0 - counts / max(len(labels), 1))).sqrt().to(values.dtype)[:, None]
    return sums.div_(_or_one(scale)).mul_(scale > 0).T.clamp_(-1.0, 1.0)


def cosine(
    a: Float[torch.Tensor, "..."], b: Float[torch.Tensor, "..."], dim: int = -1
) -> Float[torch.Tensor, "..."]:
    """Compute the cosine of two tensors along an axis; 0 where one of them is zero."""
    return (unit_length(a, dim) * unit_length(b, dim)).sum(dim).clamp(-1.0, 1.0)


def unit_length(x: Tensor, dim: int) -> Tensor:
    """Scale to length 1 along `dim`; zero vectors stay zero, NaN stays NaN."""
    x = _at_least_single(x)
    # By the largest entry first: squares of float32 vanish below 1e-23.
    return _divide_by_length(x / _or_one(x.abs().amax(dim, keepdim=True)), dim)


def l0(loadings: Float[torch.Tensor, "..."], dim: int = -1) -> Int[torch.Tensor, "..."]:
    """Count entries that are not exactly 0 along an axis: modes in use, per sample."""
    return loadings.count_nonzero(dim)


def pca_dimensions(matrix: UnitMatrix, variance: float = 0.95) -> int:
    """Count the principal components that hold a share of the variance.

    The smallest k whose k largest eigenvalues of the covariance between units (in float64)
    sum to at least `variance` of their total. Melander et al. 2026 apply it to class means;
    `matrix` may be those or single samples, all finite. 0 where nothing varies.
    """
    if not 0.0 < variance <= 1.0:
        raise OptionError(f"pca_dimensions: variance must be above 0 and at most 1; got {variance}")
    n_samples, n_units = matrix.shape
    if not n_samples or not n_units:
        raise DataError(f"pca_dimensions: needs rows and units; got shape {tuple(matrix.shape)}")
    mean = _column_mean(matrix)
    _refuse_infinite(mean)
    if n_units <= n_samples:
        gram = mean.new_zeros(n_units, n_units)
        for rows in _blocks(matrix):
            centred = rows - mean
            gram.addmm_(centred.T, centred)
    else:  # Same eigenvalues but for zeros, from the smaller side.
        centred = matrix.to(torch.float64) - mean
        gram = centred @ centred.T
    return _holding(gram, max(n_samples, n_units), variance)


class Dimensions:
    """`pca_dimensions` of rows that come in blocks; as many are kept as there are units."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._n_rows = 0
        self._gram: Tensor | None = None

    def add(self, rows: UnitMatrix) -> None:
        """Take more rows."""
        self._n_rows += len(rows)
        if self._gram is None:
            self._rows.append(rows)
            if self._n_rows < rows.shape[1]:
                return
            rows = torch.cat(self._rows)
            self._rows.clear()
            # About a mean that is nearly that of all, squares lose nothing.
            self._near = _column_mean(rows)
            self._gram = self._near.new_zeros(rows.shape[1], rows.shape[1])
            self._off = torch.zeros_like(self._near)
        for block in _blocks(rows):
            centred = block - self._near
            self._gram.addmm_(centred.T, centred)
            self._off += centred.sum(0)

    def value(self, variance: float = 0.95) -> int:
        """Count the components; errors as `pca_dimensions`."""
        if self._gram is None:
            return pca_dimensions(torch.cat(self._rows), variance)
        _refuse_infinite(self._off)
        gram = self._gram - torch.outer(self._off, self._off) / self._n_rows
        return _holding(gram, self._n_rows, variance)


def r2(x: UnitMatrix, xhat: UnitMatrix) -> float:
    r"""Compute the share of the variance within units that a reconstruction explains.

    .. math:: R^2 = 1 - \frac{\sum_{su} (x_{su} - \hat x_{su})^2}{\sum_{su} (x_{su} - \bar x_u)^2}

    Predicting every unit's own mean scores 0 (the paper's `r2_grand` scores that above 0).
    NaN where no unit varies.
    """
    _same_shape(x, xhat, "r2")
    residual = _sum_of_squares(x, xhat)
    total = _sum_of_squares(x, _column_mean(x).expand_as(x))
    return 1.0 - residual / total if total else float("nan")


def r2_grand(x: UnitMatrix, xhat: UnitMatrix) -> float:
    r"""Compute R2 as Melander et al. 2026 report it: against the mean of all entries.

    .. math:: R^2 = 1 - \frac{\mathrm{mean}(x - \hat x)^2}{\mathrm{mean}(x - \bar x)^2 + \epsilon}

    with epsilon = 1e-6. The mean of x is one number for the whole matrix, so differences
    between the means of units count as explained; compare with `r2`.
    """
    _same_shape(x, xhat, "r2_grand")
    grand = _column_mean(x).mean()
    residual = _sum_of_squares(x, xhat) / x.numel()
    total = _sum_of_squares(x, grand.expand_as(x)) / x.numel()
    return 1.0 - residual / (total + 1e-6)


def shrinkage(x: UnitMatrix, xhat: UnitMatrix) -> float:
    r"""Compute the length of a reconstruction relative to that of its row, mean over rows.

    .. math:: \left\langle \|\hat x_s\|_2 \,/\, \|x_s\|_2 \right\rangle_s

    1 where lengths are kept, below 1 where a penalty pulls loadings towards 0. Rows of zeros
    have no such ratio and are left out; NaN where all are.

    >>> shrinkage(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    0.55
    """
    _same_shape(x, xhat, "shrinkage")
    lengths = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    others = torch.linalg.vector_norm(xhat, dim=1, dtype=torch.float64)
    return float((others / lengths)[lengths != 0].mean())


def effective_rank(matrix: Float[torch.Tensor, "row column"]) -> float:
    r"""Compute how many directions a matrix uses, weighed by its singular values.

    .. math:: \exp\left(-\sum_k p_k \log p_k\right), \qquad p_k = \frac{\sigma_k}{\sum_j \sigma_j}

    Roy and Vetterli (2007), "The effective rank". 1 for one direction, d for d orthogonal
    rows of one length; NaN for a matrix of zeros.

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


def matched_cosine(
    atoms_a: Float[torch.Tensor, "mode unit"], atoms_b: Float[torch.Tensor, "other unit"]
) -> Float[torch.Tensor, " mode"]:
    """Compute the cosine of every atom with its partner in another dictionary.

    Partners are assigned one to one so that the sum of cosines is largest (Hungarian
    method). With more atoms in the first dictionary than in the second, those left over get
    NaN; ``nanmean()`` of the result is the stability of a dictionary over two fits.
    """
    from scipy.optimize import linear_sum_assignment

    if atoms_a.ndim != 2 or atoms_b.ndim != 2 or atoms_a.shape[1] != atoms_b.shape[1]:
        raise DataError(
            "matched_cosine: expected two [mode, unit] matrices over the same units; got shapes "
            f"{tuple(atoms_a.shape)} and {tuple(atoms_b.shape)}"
        )
    similarity = (unit_length(atoms_a, 1) @ unit_length(atoms_b, 1).T).clamp_(-1.0, 1.0)
    pairs = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    rows, columns = (torch.from_numpy(side) for side in pairs)
    matched = similarity.new_full((len(atoms_a),), float("nan"))
    matched[rows] = similarity[rows, columns]
    return matched


def atom_coherence(atoms: Atoms) -> Float[torch.Tensor, " mode"]:
    r"""Compute the largest absolute cosine of every atom with another one.

    .. math:: \mu_m = \max_{n \ne m} |\cos(d_m, d_n)|

    The maximum over modes is the coherence of a dictionary: 0 for orthogonal atoms, 1 where
    two are the same up to a factor. NaN for a single atom.
    """
    if len(atoms) < 2:
        return torch.full_like(unit_length(atoms, 1)[:, 0], float("nan"))
    return _between_atoms(atoms).amax(1).clamp_(0.0, 1.0)


def mean_coherence(atoms: Atoms) -> float:
    """Compute the mean absolute cosine between two different atoms; NaN for a single one."""
    number = len(atoms)
    if number < 2:
        return float("nan")
    return float(_between_atoms(atoms).sum(dtype=torch.float64)) / (number * (number - 1))


def _between_atoms(atoms: Tensor) -> Tensor:
    """Compute absolute cosines, 0 on the diagonal."""
    unit = unit_length(atoms, 1)
    return (unit @ unit.T).abs_().fill_diagonal_(0.0)


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


def _standardised(x: Tensor, dim: int) -> Tensor:
    """Centre and scale to length 1 along `dim`; exactly 0 where all entries are alike."""
    x = _at_least_single(x)
    mean = x.mean(dim, keepdim=True)
    highest, lowest = x.amax(dim, keepdim=True), x.amin(dim, keepdim=True)
    scale = _or_one(torch.maximum(highest - mean, mean - lowest))
    centred = (x - mean).div_(scale)
    # A NaN is equal to nothing, so a column that holds one is not constant and stays NaN.
    return _divide_by_length(centred.masked_fill_(highest == lowest, 0.0), dim)


def _divide_by_length(x: Tensor, dim: int) -> Tensor:
    """Divide in place: `x` must be a fresh tensor."""
    return x.div_(_or_one(torch.linalg.vector_norm(x, dim=dim, keepdim=True)))


def _or_one(size: Tensor) -> Tensor:
    return size.masked_fill(size == 0, 1.0)


def _refuse_infinite(mean: Tensor) -> None:
    if not bool(mean.isfinite().all()):
        raise DataError(
            "pca_dimensions: the matrix holds NaN or infinite entries; drop those samples first"
        )


def _holding(gram: Tensor, size: int, variance: float) -> int:
    """Count the largest eigenvalues that hold a share of all."""
    shares = _eigenvalues(gram, size).flip(0)
    if not shares.numel():
        return 0
    short = int((shares.cumsum(0) < variance * (1 - 1e-12) * shares.sum()).sum())
    return min(short + 1, len(shares))


def _eigenvalues(gram: Tensor, size: int) -> Tensor:
    """Compute eigenvalues above rounding noise, ascending; `size` is the matrix's longer side."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    # Those of a rank-deficient matrix come out as rounding noise, some below 0.
    noise = values[-1] * size * torch.finfo(torch.float64).eps
    return values[values > noise.clamp_min(0.0)]


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    for rows in torch.split(matrix, max(1, _ENTRIES_AT_ONCE // max(matrix.shape[1], 1))):
        yield rows.to(torch.float64)


def _column_mean(matrix: Tensor) -> Tensor:
    total = matrix.new_zeros(matrix.shape[1], dtype=torch.float64)
    for rows in _blocks(matrix):
        total += rows.sum(0)
    return total / len(matrix)


def _sum_of_squares(x: Tensor, other: Tensor) -> float:
    """Sum squared differences, in float64."""
    blocks = zip(_blocks(x), _blocks(other), strict=True)
    return sum(float((rows - others).square_().sum()) for rows, others in blocks)
