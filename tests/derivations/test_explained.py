"""R2 of fields over time again: ridge by elimination, blocks and left-out frames by loops."""

import math

import pytest
import torch

from condec.retina import explained
from condec.retina.explained import _PENALTIES, explained_variance
from condec.retina.fields import ReceptiveFields

N, MODES, PIXELS, HISTORY, FOLDS = 26, 2, 4, 2, 3
Rows = list[list[float]]


def random_rows(n: int, columns: int, seed: int) -> Rows:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=gen, dtype=torch.float64).tolist()


def solve(a: Rows, b: list[float]) -> list[float]:
    """Gaussian elimination."""
    rows = [[*row, value] for row, value in zip(a, b, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(n):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [u - factor * v for u, v in zip(rows[k], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def predictions(x: Rows, y: Rows, train: list[int], test: list[int], penalty: float) -> Rows:
    """Of every test frame, by ridge on standardised columns."""
    means = [mean([x[s][m] for s in train]) for m in range(MODES)]
    spreads = [math.sqrt(mean([(x[s][m] - means[m]) ** 2 for s in train])) for m in range(MODES)]

    def z(s: int) -> list[float]:
        return [(x[s][m] - means[m]) / spreads[m] for m in range(MODES)]

    columns = []
    for p in range(PIXELS):
        offset = mean([y[s][p] for s in train])
        if math.isinf(penalty):
            columns.append([offset] * len(test))
            continue
        gram = [
            [mean([z(s)[i] * z(s)[j] for s in train]) + penalty * (i == j) for j in range(MODES)]
            for i in range(MODES)
        ]
        right = [mean([z(s)[i] * (y[s][p] - offset) for s in train]) for i in range(MODES)]
        weights = solve(gram, right)
        columns.append(
            [offset + sum(w * v for w, v in zip(weights, z(s), strict=True)) for s in test]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def split(frames: list[int], times: list[int]) -> list[tuple[list[int], list[int]]]:
    """Blocks as even as they can be, longer ones first; and what each may be predicted from."""
    size, more = divmod(len(frames), FOLDS)
    found, start = [], 0
    for block in range(FOLDS):
        stop = start + size + (block < more)
        part = frames[start:stop]
        apart = [
            s for s in frames
            if times[s] <= times[part[0]] - HISTORY or times[s] >= times[part[-1]] + HISTORY
        ]  # fmt: skip
        found.append((part, apart))
        start = stop
    return found


def errors(y: Rows, predicted: Rows, frames: list[int]) -> float:
    return sum(
        (y[s][p] - row[p]) ** 2
        for s, row in zip(frames, predicted, strict=True)
        for p in range(PIXELS)
    )


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_r2(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "_VARIANCE", 1.0)  # all components: the loops have none
    x, wild = random_rows(N, MODES, 0), random_rows(N, PIXELS, 1)
    weights = random_rows(MODES, PIXELS, 2)
    y = [
        [
            2.0 + sum(x[s][m] * weights[m][p] for m in range(MODES)) + noise * wild[s][p]
            for p in range(PIXELS)
        ]
        for s in range(N)
    ]
    times = [s + s // 5 for s in range(N)]  # frames with holes between them
    wrong = of_mean = 0.0
    for test, train in split(list(range(N)), times):
        inner = [
            sum(
                errors(y, predictions(x, y, fitted, part, penalty), part)
                for part, fitted in split(train, times)
            )
            for penalty in _PENALTIES
        ]
        best = _PENALTIES[inner.index(min(inner))]
        wrong += errors(y, predictions(x, y, train, test, best), test)
        of_mean += errors(y, predictions(x, y, train, test, math.inf), test)

    pictures = torch.tensor(y, dtype=torch.float64).reshape(N, 1, 2, 2)
    fields = ReceptiveFields(
        spatial=pictures,  # not of length 1, as those of a model are
        temporal=torch.tensor([0.6, 0.8], dtype=torch.float64).expand(N, 1, 2).clone(),
        strength=torch.ones(N, 1, dtype=torch.float64),
        separability=torch.ones(N, 1, dtype=torch.float64),
        rows=torch.tensor(times),
        cells=torch.tensor([0]),
        corners=torch.zeros(1, 2, dtype=torch.int64),
    )
    table = explained_variance(
        fields, torch.tensor(x, dtype=torch.float64), folds=FOLDS, n_shifts=0, n_bootstrap=0
    )
    assert float(table["r2"].iloc[0]) == pytest.approx(1 - wrong / of_mean, abs=1e-9)
