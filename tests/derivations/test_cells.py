"""Modes against cells again: correlation, k-means and silhouettes by loops."""

import itertools
import math

import pytest
import torch

from condec.retina.cells import cluster, mode_cell_correlation

Rows = list[list[float]]


def random_rows(n: int, columns: int, seed: int) -> Rows:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=gen, dtype=torch.float64).tolist()


def tensor(rows: Rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True))
    squares = sum((u - mean_a) ** 2 for u in a) * sum((v - mean_b) ** 2 for v in b)
    return top / math.sqrt(squares)


def test_correlation() -> None:
    loadings, rates = random_rows(15, 3, 0), random_rows(15, 2, 1)
    by_mode, by_cell = (list(map(list, zip(*rows, strict=True))) for rows in (loadings, rates))
    got = mode_cell_correlation(tensor(loadings), tensor(rates))
    for cell in range(2):
        for mode in range(3):
            r = pearson(by_cell[cell], by_mode[mode])
            assert float(got[cell, mode]) == pytest.approx(r, abs=1e-12)


def standardised(rows: Rows) -> Rows:
    columns = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        spread = math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
        columns.append([(v - mean) / spread for v in column])
    return list(map(list, zip(*columns, strict=True)))


def best_groups(rows: Rows, k: int) -> list[set[int]]:
    """Find the k groups with the least sum of squares among all that there are."""

    def squares(members: set[int]) -> float:
        means = [sum(rows[i][j] for i in members) / len(members) for j in range(len(rows[0]))]
        return sum((rows[i][j] - means[j]) ** 2 for i in members for j in range(len(rows[0])))

    found: dict[float, list[set[int]]] = {}
    for member in itertools.product(range(k), repeat=len(rows)):
        groups = [{i for i, group in enumerate(member) if group == g} for g in range(k)]
        if all(groups):
            found[sum(map(squares, groups))] = groups
    return found[min(found)]


def silhouette(rows: Rows, clusters: list[set[int]]) -> float:
    total = 0.0
    for own in clusters:
        for i in own:
            if len(own) == 1:
                continue
            inside = sum(math.dist(rows[i], rows[j]) for j in own if j != i) / (len(own) - 1)
            outside = min(
                sum(math.dist(rows[i], rows[j]) for j in other) / len(other)
                for other in clusters
                if other is not own
            )
            total += (outside - inside) / max(inside, outside)
    return total / len(rows)


def test_clusters_and_silhouettes() -> None:
    rows = [[v + 4.0 * (i % 3) for v in row] for i, row in enumerate(random_rows(7, 3, 2))]
    found = cluster(tensor(rows))
    assert found.ks == (2, 3, 4, 5, 6)
    at = standardised(rows)
    for k, score in zip((2, 3), found.silhouettes.tolist(), strict=False):
        assert score == pytest.approx(silhouette(at, best_groups(at, k)), abs=1e-6)
    sizes = found.labels.bincount().tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == found.ks[int(found.silhouettes.argmax())]
    got = [set((found.labels == group).nonzero().flatten().tolist()) for group in range(len(sizes))]
    assert float(found.silhouettes.max()) == pytest.approx(silhouette(at, got), abs=1e-6)
