"""Numbers of vectors along an axis: sparsity, correlation, cosine, area."""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.shapes import ModeLabel


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
    x = at_least_single(x)
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
    x = at_least_single(x)
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
    loadings = at_least_single(loadings)
    others = _standardised(indicators.to(loadings.device, loadings.dtype), 0)
    return (_standardised(loadings, 0).T @ others).clamp_(-1.0, 1.0)


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
    return (unit_length(a, dim) * unit_length(b, dim)).sum(dim).clamp(-1.0, 1.0)


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


def at_least_single(x: Tensor) -> Tensor:
    """Float32 where it was less precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _size(x: Tensor, dim: int, who: str, *, least: int = 1) -> int:
    if not -x.ndim <= dim < x.ndim or x.shape[dim] < least:
        raise DataError(
            f"{who}: needs at least {least} {'entry' if least == 1 else 'entries'} along axis "
            f"{dim}; got shape {tuple(x.shape)}"
        )
    return int(x.shape[dim])


def unit_length(x: Tensor, dim: int) -> Tensor:
    """Scale to length 1 along `dim`; zero vectors stay zero, NaN stays NaN."""
    x = at_least_single(x)
    # By the largest entry first: squares of float32 vanish below 1e-23.
    return _divide_by_length(x / _or_one(x.abs().amax(dim, keepdim=True)), dim)


def _standardised(x: Tensor, dim: int) -> Tensor:
    """Centred and of length 1 along `dim`; exactly 0 where all entries are alike."""
    x = at_least_single(x)
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
