"""Every number of `quality` again: loops over Python floats, from the formulas."""

import math

import numpy as np
import pytest
import torch

from condec.basis import metrics
from condec.dictionary import PCA, KMeans, Quality, fit, mode_table, quality

# Few held-out rows do not use every cluster.
pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")

LEARNERS = [PCA(4), KMeans(5)]
RELATIVE = 2e-5  # float32 against float64


def rows(n: int = 40, units: int = 6) -> torch.Tensor:
    data = torch.rand(n, units, generator=torch.Generator().manual_seed(1))
    return data * torch.arange(1.0, units + 1) ** 2


def held_out(learner: PCA | KMeans) -> torch.Tensor:
    return rows()[fit(learner, rows()).held_out_rows]


def fitted(learner: PCA | KMeans) -> tuple[Quality, list[list[float]], list[list[float]], list]:
    """Quality on held-out rows, and these rows, their loadings and the atoms as lists."""
    report = fit(learner, rows())
    x = rows()[report.held_out_rows]
    loadings = report.dictionary.encode(x).tolist()
    return quality(report.dictionary, x), x.tolist(), loadings, report.dictionary


def rebuilt(loadings: list[list[float]], dictionary: object) -> list[list[float]]:
    atoms, offset = dictionary.atoms.tolist(), dictionary.offset.tolist()
    return [
        [offset[u] + sum(z[m] * atoms[m][u] for m in range(len(atoms))) for u in range(len(offset))]
        for z in loadings
    ]


def length(vector: list[float]) -> float:
    return math.sqrt(sum(v * v for v in vector))


def dot(a: list[float], b: list[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def hoyer(vector: list[float]) -> float:
    root = math.sqrt(len(vector))
    return (root - sum(abs(v) for v in vector) / length(vector)) / (root - 1)


@pytest.mark.parametrize("learner", LEARNERS)
def test_reconstruction(learner: PCA | KMeans) -> None:
    found, x, z, dictionary = fitted(learner)
    xhat = rebuilt(z, dictionary)
    n, d = len(x), len(x[0])
    means = [sum(row[u] for row in x) / n for u in range(d)]
    grand = sum(means) / d
    residual = total = total_grand = cosines = ratios = 0.0
    for row, other in zip(x, xhat, strict=True):
        for u in range(d):
            residual += (row[u] - other[u]) ** 2
            total += (row[u] - means[u]) ** 2
            total_grand += (row[u] - grand) ** 2
        cosines += dot(row, other) / length(row) / length(other)
        ratios += length(other) / length(row)
    assert found.n_rows == n
    assert found.r2 == pytest.approx(1 - residual / total, rel=RELATIVE)
    # Its epsilon is that of data divided by their standard deviation.
    assert found.r2_grand == pytest.approx(1 - residual / total_grand, abs=2e-5)
    assert found.cosine == pytest.approx(cosines / n, rel=RELATIVE)
    assert found.shrinkage == pytest.approx(ratios / n, rel=RELATIVE)


@pytest.mark.parametrize("learner", LEARNERS)
def test_use_of_modes(learner: PCA | KMeans) -> None:
    found, _, z, dictionary = fitted(learner)
    n, k = len(z), len(z[0])
    density = [sum(row[m] != 0 for row in z) / n for m in range(k)]
    alive = [any(row[m] > 0 for row in z) for m in range(k)]
    table = mode_table(dictionary, held_out(learner))
    assert table["density"].tolist() == pytest.approx(density)
    assert table["alive"].tolist() == alive
    assert found.n_alive == sum(alive)
    assert found.dead_share == (k - sum(alive)) / k
    assert found.l0 == pytest.approx(sum(sum(v != 0 for v in row) for row in z) / n)
    sparsities = [hoyer(row) for row in z if any(row)]
    assert found.loading_hoyer == pytest.approx(sum(sparsities) / len(sparsities), rel=RELATIVE)


@pytest.mark.parametrize("learner", LEARNERS)
def test_atoms(learner: PCA | KMeans) -> None:
    found, _, _, dictionary = fitted(learner)
    atoms = dictionary.atoms.tolist()
    table = mode_table(dictionary, held_out(learner))
    live = [m for m in range(len(atoms)) if table["alive"][m]]
    assert table["atom_hoyer"].tolist() == pytest.approx([hoyer(a) for a in atoms], rel=RELATIVE)
    mean = sum(hoyer(atoms[m]) for m in live) / len(live)
    assert found.atom_hoyer == pytest.approx(mean, rel=RELATIVE)
    every: list[float] = []
    for m in range(len(atoms)):
        if m not in live:
            assert math.isnan(table["coherence"][m])
            continue
        cosines = [
            abs(dot(atoms[m], atoms[o])) / length(atoms[m]) / length(atoms[o])
            for o in live
            if o != m
        ]
        assert table["coherence"][m] == pytest.approx(max(cosines), abs=1e-5)
        every += cosines
    assert found.coherence == pytest.approx(max(every), abs=1e-5)
    assert found.mean_coherence == pytest.approx(sum(every) / len(every), abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_effective_rank(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False).tolist()
    entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values)
    assert metrics.effective_rank(matrix) == pytest.approx(math.exp(entropy), rel=1e-9)


def test_metrics_of_a_report_are_those_of_quality() -> None:
    report = fit(KMeans(5), rows())
    assert report.metrics["train"] == quality(report.dictionary, rows()[report.train_rows])
    assert report.metrics["held_out"] == quality(report.dictionary, held_out(KMeans(5)))
