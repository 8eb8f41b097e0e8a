"""Modes against cells again: correlation, silhouettes and Ward's tree by loops."""

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


def ward(rows: Rows, k: int) -> list[set[int]]:
    """Merge the two clusters whose union adds least to the sum of squares, down to k."""
    clusters = [{i} for i in range(len(rows))]

    def squares(members: set[int]) -> float:
        means = [sum(rows[i][j] for i in members) / len(members) for j in range(len(rows[0]))]
        return sum((rows[i][j] - means[j]) ** 2 for i in members for j in range(len(rows[0])))

    while len(clusters) > k:
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a)]
        a, b = min(
            pairs,
            key=lambda pair: squares(clusters[pair[0]] | clusters[pair[1]])
            - squares(clusters[pair[0]]) - squares(clusters[pair[1]]),
        )  # fmt: skip
        clusters[b] |= clusters.pop(a)
    return clusters


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


def test_hierarchical_clusters_and_silhouettes() -> None:
    rows = random_rows(9, 3, 2)
    found = cluster(tensor(rows), "hierarchical", ks=(2, 3, 4, 5))
    at = standardised(rows)
    groups = {k: ward(at, k) for k in (2, 3, 4, 5)}
    scores = [silhouette(at, groups[k]) for k in (2, 3, 4, 5)]
    assert found.silhouettes.tolist() == pytest.approx(scores, abs=1e-6)
    assert found.k == 2 + scores.index(max(scores))
    got = {frozenset((found.labels == c).nonzero().flatten().tolist()) for c in range(found.k)}
    assert got == {frozenset(group) for group in groups[found.k]}
    sizes = found.labels.bincount().tolist()
    assert sizes == sorted(sizes, reverse=True)
