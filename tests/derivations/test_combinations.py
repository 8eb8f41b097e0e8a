"""Counts of combinations against chance again: by loops, and over every shift there is."""

import itertools
import math

import numpy as np
import pytest
import torch

from condec.retina.chance import rolled
from condec.retina.combinations import combinations, fields_of_combinations
from condec.retina.fields import ReceptiveFields

ON = [[1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1]]
N = len(ON)
RATES = [sum(row[m] for row in ON) / N for m in range(3)]
# The first two modes go together, the third by itself: p of every size.
OFTEN = 30 * [[1, 1, 0]] + 20 * [[0, 0, 0]] + 4 * [[1, 0, 0]] + 3 * [[0, 1, 1]] + 9 * [[0, 0, 1]]


def expected(combination: tuple[int, ...], rates: list[float], n: int) -> float:
    product = float(n)
    for mode, rate in enumerate(rates):
        product *= rate if mode in combination else 1 - rate
    return product


def binomial_p(count: int, n: int, chance: float) -> float:
    def share(k: int) -> float:
        return math.comb(n, k) * chance**k * (1 - chance) ** (n - k)

    below = sum(share(k) for k in range(count + 1))
    above = sum(share(k) for k in range(count, n + 1))
    return min(1.0, 2 * min(below, above))


def counts(on: list[list[int]]) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for row in on:
        key = tuple(m for m in range(3) if row[m])
        found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize(("on", "n_below_1"), [(ON, 0), (OFTEN, 7)])
def test_table(on: list[list[int]], n_below_1: int) -> None:
    table = combinations(torch.tensor(on, dtype=torch.float64), n_shifts=0)
    n, found = len(on), counts(on)
    rates = [sum(row[m] for row in on) / n for m in range(3)]
    every = [some for k in range(4) for some in itertools.combinations(range(3), k)]
    listed = [c for c in every if c in found or expected(c, rates, n) >= 1]
    assert set(table["combination"]) == set(listed)
    p = {c: binomial_p(found.get(c, 0), n, expected(c, rates, n) / n) for c in listed}
    # Holm: the smallest times the family, the next times one less, never falling.
    corrected, reached = {}, 0.0
    for place, c in enumerate(sorted(p, key=lambda c: p[c])):
        reached = max(reached, min(1.0, p[c] * (2**3 - place)))
        corrected[c] = reached
    assert sum(1e-12 < value < 1 for value in corrected.values()) == n_below_1
    for row in table.to_dict("records"):
        c = row["combination"]
        assert row["count"] == found.get(c, 0)
        assert row["expected"] == pytest.approx(expected(c, rates, n), rel=1e-12)
        assert row["ratio"] == pytest.approx(found.get(c, 0) / expected(c, rates, n), rel=1e-12)
        assert row["p_binomial"] == pytest.approx(p[c], rel=1e-9)
        assert row["p_binomial_corrected"] == pytest.approx(corrected[c], rel=1e-9)


def test_mean_count_over_all_shifts_is_that_of_independent_modes() -> None:
    on = np.array(ON, dtype=bool)
    total: dict[tuple[int, ...], int] = {}
    for offsets in itertools.product(range(N), repeat=3):
        for row in rolled(on, np.array(offsets)):
            key = tuple(np.flatnonzero(row).tolist())
            total[key] = total.get(key, 0) + 1
    for key, n in total.items():
        assert n / N**3 == pytest.approx(expected(key, RATES, N), rel=1e-12)


def test_p_of_shifts() -> None:
    """The same shifts, drawn again; distances of every combination by loops."""
    table = combinations(torch.tensor(ON, dtype=torch.float64), n_shifts=40, seed=7)
    rng = np.random.default_rng(7)
    every = [some for k in range(4) for some in itertools.combinations(range(3), k)]

    def distance(count: int, c: tuple[int, ...]) -> float:
        return abs(2 * math.sqrt(count + 0.375) - 2 * math.sqrt(expected(c, RATES, N) + 0.375))

    draws = []
    for _ in range(40):
        offsets = rng.integers(N, size=3)
        rows = [tuple(m for m in range(3) if ON[(t - offsets[m]) % N][m]) for t in range(N)]
        draws.append({c: rows.count(c) for c in every})
    listed = set(table["combination"])
    for row in table.to_dict("records"):
        c = row["combination"]
        here = distance(row["count"], c) - 1e-9
        alone = sum(distance(draw[c], c) >= here for draw in draws)
        anywhere = sum(
            max(distance(n, k) for k, n in draw.items() if n or k in listed) >= here
            for draw in draws
        )
        assert row["p_shift"] == pytest.approx((1 + alone) / 41)
        assert row["p_shift_corrected"] == pytest.approx((1 + anywhere) / 41)
        numbers = sorted(draw[c] for draw in draws)
        place = 0.025 * 39
        low = numbers[0] + (numbers[1] - numbers[0]) * place
        assert row["low"] == pytest.approx(low)


def test_mean_field() -> None:
    gen = torch.Generator().manual_seed(0)
    n, history, size = 6, 2, 2
    spatial = torch.randn(n, 1, size, size, generator=gen)
    spatial /= spatial.flatten(2).norm(dim=2)[..., None, None]
    temporal = torch.randn(n, 1, history, generator=gen)
    temporal /= temporal.norm(dim=2, keepdim=True)
    strength = torch.rand(n, 1, generator=gen)
    fields = ReceptiveFields(
        spatial=spatial, temporal=temporal, strength=strength, separability=torch.ones(n, 1),
        rows=torch.arange(n), cells=torch.tensor([0]), corners=torch.zeros(1, 2, dtype=torch.int64),
    )  # fmt: skip
    loadings = torch.tensor([[1.0], [1.0], [0.0], [1.0], [0.0], [1.0]])
    found = fields_of_combinations(fields, loadings, least_frames=3)
    assert found.combinations == ((0,),)

    def entries(sample: int) -> list[float]:
        return [
            float(strength[sample, 0] * temporal[sample, 0, h] * spatial[sample, 0, y, x])
            for h in range(history) for y in range(size) for x in range(size)
        ]  # fmt: skip

    def mean(samples: list[int]) -> list[float]:
        return [sum(column) / len(samples) for column in zip(*map(entries, samples), strict=True)]

    here = sum(value**2 for value in mean([0, 1, 3, 5]))
    assert float(found.strength**2 / found.separability) == pytest.approx(here, rel=1e-5)
