"""Every metric again: loops over Python floats, from the formulas, no library helpers."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from condec.basis import metrics


def _vector(n: int, seed: int) -> list[float]:
    gen = torch.Generator().manual_seed(seed)
    return [float(v) for v in torch.randn(n, generator=gen, dtype=torch.float64) ** 3]


def _rows(n: int, d: int, seed: int) -> list[list[float]]:
    flat = _vector(n * d, seed)
    return [[flat[i * d + j] + 2.0 * j for j in range(d)] for i in range(n)]


def _tensor(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _pearson(a: list[float], b: list[float]) -> float:
    mean_a = sum(a) / len(a)
    mean_b = sum(b) / len(b)
    top = bottom_a = bottom_b = 0.0
    for u, v in zip(a, b, strict=True):
        top += (u - mean_a) * (v - mean_b)
        bottom_a += (u - mean_a) ** 2
        bottom_b += (v - mean_b) ** 2
    return top / math.sqrt(bottom_a * bottom_b)


@pytest.mark.parametrize("seed", range(3))
def test_hoyer(seed: int) -> None:
    v = _vector(7, seed)
    one = two = 0.0
    for entry in v:
        one += abs(entry)
        two += entry * entry
    wanted = (math.sqrt(7) - one / (math.sqrt(two) + 1e-6)) / (math.sqrt(7) - 1)
    assert float(metrics.hoyer(_tensor(v))) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_participation_ratio(seed: int) -> None:
    v = _vector(9, seed)
    squares = fourths = 0.0
    for entry in v:
        squares += entry**2
        fourths += entry**4
    wanted = squares**2 / fourths
    assert float(metrics.participation_ratio(_tensor(v))) == pytest.approx(wanted, rel=1e-12)


def test_pearson() -> None:
    a, b = _vector(11, 0), _vector(11, 1)
    assert float(metrics.pearson(_tensor(a), _tensor(b))) == pytest.approx(_pearson(a, b))


def test_correlation_matrix_is_pearson_of_every_pair() -> None:
    loadings = _rows(13, 4, 0)
    labels = [i % 3 for i in range(13)]
    indicators = [[float(label == c) for c in range(3)] for label in labels]
    got = metrics.correlation_matrix(_tensor(loadings), _tensor(indicators))
    for mode, label in itertools.product(range(4), range(3)):
        wanted = _pearson([row[mode] for row in loadings], [row[label] for row in indicators])
        assert float(got[mode, label]) == pytest.approx(wanted, abs=1e-12)


def _jacobi_eigenvalues(matrix: list[list[float]]) -> list[float]:
    """Eigenvalues of a symmetric matrix by Jacobi's plane rotations."""
    a = [row[:] for row in matrix]
    n = len(a)
    for _ in range(60):
        for p, q in itertools.combinations(range(n), 2):
            if abs(a[p][q]) < 1e-300:
                continue
            angle = 0.5 * math.atan2(2 * a[p][q], a[q][q] - a[p][p])
            c, s = math.cos(angle), math.sin(angle)
            for k in range(n):
                a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
            for k in range(n):
                a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
    return sorted((a[i][i] for i in range(n)), reverse=True)


@pytest.mark.parametrize(("n", "d"), [(20, 6), (5, 9)])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 0.99])
def test_pca_dimensions(n: int, d: int, share: float) -> None:
    rows = _rows(n, d, 3)
    means = [sum(row[j] for row in rows) / n for j in range(d)]
    covariance = [
        [sum((r[i] - means[i]) * (r[j] - means[j]) for r in rows) for j in range(d)]
        for i in range(d)
    ]
    values = _jacobi_eigenvalues(covariance)
    wanted, held = 0, 0.0
    while held < share * sum(values):
        held += values[wanted]
        wanted += 1
    assert metrics.pca_dimensions(_tensor(rows), share) == wanted
    in_blocks = metrics.Dimensions()
    for block in (_tensor(rows) + 1e6).split(3):  # far from zero
        in_blocks.add(block)
    assert in_blocks.value(share) == wanted


def test_both_r2() -> None:
    x, xhat = _rows(8, 3, 0), _rows(8, 3, 1)
    grand = sum(v for row in x for v in row) / 24
    means = [sum(row[j] for row in x) / 8 for j in range(3)]
    residual = about_grand = about_means = 0.0
    for row, hat in zip(x, xhat, strict=True):
        for j in range(3):
            residual += (row[j] - hat[j]) ** 2
            about_grand += (row[j] - grand) ** 2
            about_means += (row[j] - means[j]) ** 2
    assert metrics.r2(_tensor(x), _tensor(xhat)) == pytest.approx(1 - residual / about_means)
    assert metrics.r2_grand(_tensor(x), _tensor(xhat)) == pytest.approx(
        1 - (residual / 24) / (about_grand / 24 + 1e-6), rel=1e-12
    )


def test_cosine_and_l0() -> None:
    a, b = _vector(6, 0), _vector(6, 1)
    top = sum(u * v for u, v in zip(a, b, strict=True))
    wanted = top / math.sqrt(sum(u * u for u in a) * sum(v * v for v in b))
    assert float(metrics.cosine(_tensor(a), _tensor(b))) == pytest.approx(wanted, abs=1e-12)
    code = [0.0, 0.95, 0.0, -0.1, 0.0, 1e-30]
    assert int(metrics.l0(_tensor(code))) == sum(1 for v in code if v != 0)


@pytest.mark.parametrize(("n_a", "n_b"), [(4, 4), (3, 5), (5, 3)])
def test_matched_cosine_tries_every_assignment(n_a: int, n_b: int) -> None:
    a, b = _tensor(_rows(n_a, 6, 5)), _tensor(_rows(n_b, 6, 6))
    similarity = [[float(metrics.cosine(u, v)) for v in b] for u in a]
    best = -math.inf
    fewer = min(n_a, n_b)
    for rows in itertools.permutations(range(n_a), fewer):
        for columns in itertools.permutations(range(n_b), fewer):
            total = sum(similarity[i][j] for i, j in zip(rows, columns, strict=True))
            best = max(best, total)
    got = metrics.matched_cosine(a, b)
    assert int(got.isnan().sum()) == n_a - fewer
    assert float(got.nansum()) == pytest.approx(best, abs=1e-12)
