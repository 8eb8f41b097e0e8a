"""Correlation of modes with cells, and clusters of cells."""

import math

import pytest
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.retina.cells import cluster, mode_cell_correlation


def groups(sizes: tuple[int, ...] = (2, 5, 3), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around far centres, and the group of each."""
    gen = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(len(sizes), 4, generator=gen)
    member = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    shuffled = member[torch.randperm(len(member), generator=gen)]
    return centres[shuffled] + 0.1 * torch.randn(len(member), 4, generator=gen), shuffled


# --- correlation --------------------------------------------------------------------------


def test_correlation_does_not_depend_on_the_order_of_frames() -> None:
    loadings, rates = torch.rand(20, 3), torch.rand(20, 2)
    order = torch.randperm(20)
    matrix = mode_cell_correlation(loadings, rates)
    assert matrix.shape == (2, 3)
    torch.testing.assert_close(mode_cell_correlation(loadings[order], rates[order]), matrix)


def test_a_mode_that_is_a_cells_rate_correlates_fully() -> None:
    rates = torch.rand(20, 2)
    loadings = torch.stack((3 * rates[:, 1] + 1, torch.ones(20)), 1)
    matrix = mode_cell_correlation(loadings, rates)
    assert float(matrix[1, 0]) == pytest.approx(1)
    assert matrix[:, 1].tolist() == [0, 0]  # a constant mode goes with nothing


def test_correlation_refuses(unchecked: None) -> None:
    with pytest.raises(DataError, match=r"loadings of 5 frames, rates of 4; .* history"):
        mode_cell_correlation(torch.rand(5, 2), torch.rand(4, 2))
    with pytest.raises(DataError, match=r"rates of 1; .* two or more"):
        mode_cell_correlation(torch.rand(1, 2), torch.rand(1, 2))
    bad = torch.rand(4, 2)
    bad[2, 1] = math.inf
    with pytest.raises(DataError, match=r"rates: 1 of 4 rows hold NaN or infinity; .* \[2\]"):
        mode_cell_correlation(torch.rand(4, 2), bad)
    with pytest.raises(DataError, match=r"loadings: 1 of 4 rows"):
        mode_cell_correlation(bad, torch.rand(4, 2))


# --- clusters -----------------------------------------------------------------------------


def test_groups_are_found() -> None:
    matrix, member = groups()
    found = cluster(matrix)
    assert found.ks == (2, 3, 4, 5, 6, 7, 8)
    assert int(found.silhouettes.argmax()) == 1
    # The largest is cluster 0, the smallest 2.
    assert torch.equal(found.labels, torch.tensor([2, 0, 1])[member])


def test_order_goes_cluster_by_cluster() -> None:
    found = cluster(groups()[0])
    assert sorted(found.order.tolist()) == list(range(10))
    assert found.labels[found.order].tolist() == [0] * 5 + [1] * 3 + [2] * 2


def test_permuted_rows_are_permuted_clusters() -> None:
    matrix, _ = groups((4, 3, 2))
    order = torch.randperm(9)
    assert torch.equal(cluster(matrix[order]).labels, cluster(matrix).labels[order])


def test_units_of_columns_do_not_matter() -> None:
    matrix, _ = groups()
    scaled = matrix * torch.tensor([1e-3, 1.0, 50.0, 7.0]) + 3
    assert torch.equal(cluster(scaled).labels, cluster(matrix).labels)


def test_fewer_columns_than_clusters_and_columns_that_do_not_vary() -> None:
    matrix = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
    alone = cluster(matrix)
    beside = cluster(torch.cat((matrix, torch.full((6, 2), 4.0)), 1))
    assert alone.labels.max() == 2
    assert torch.equal(alone.labels, beside.labels)


def test_copies_among_rows() -> None:
    rows = torch.tensor([[0.0, 1.0], [2.0, 5.0]])[[0, 1, 0, 0, 1]]
    found = cluster(rows)
    assert found.ks == (2,)  # only two different rows
    assert found.labels.tolist() == [0, 1, 0, 0, 1]


def test_the_same_seed_gives_the_same_clusters() -> None:
    matrix = torch.randn(12, 3)
    assert torch.equal(cluster(matrix, seed=4).labels, cluster(matrix, seed=4).labels)


def test_cluster_refuses(unchecked: None) -> None:
    matrix, _ = groups()
    with pytest.raises(DataError, match=r"1 rows, 1 of them different; .* from three rows on"):
        cluster(matrix[:1])
    with pytest.raises(DataError, match=r"4 rows, 1 of them different; .* not all alike"):
        cluster(torch.ones(4, 3))
    matrix[3, 0] = math.nan
    with pytest.raises(DataError, match=r"the matrix: 1 of 10 rows .* \[3\]"):
        cluster(matrix)
