"""Figures of modes and properties, written out sample by sample; and the null, by shuffling."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.basis.errors import DataError
from condec.modes.hierarchy import Hierarchy
from condec.modes.labels import correlation_interval, label_correlation
from condec.modes.properties import Properties
from condec.modes.statistics import (
    ModeStatistics,
    mode_statistics,
    monosemanticity,
    redundancy,
)  # fmt: skip

N = 60


def made(seed: int, *, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(N, 5, generator=generator).round(decimals=1)
    loadings[:, 1] = loadings[:, 1].clamp(min=0)
    loadings[:, 2] = (loadings[:, 2] > 1.2) * 0.5
    loadings[:, 3] = 0
    if not signed:
        loadings = loadings.clamp(min=0)
    return loadings, torch.randint(-1, 4, (N,), generator=generator)


def by_hand(z: list[float], has: list[bool], k: int) -> dict[str, float]:
    n, inside = len(z), [a for a, b in zip(z, has, strict=True) if b]
    outside = [a for a, b in zip(z, has, strict=True) if not b]
    n1 = len(inside)
    mean, share = sum(z) / n, n1 / n
    cov = sum((a - mean) * (b - share) for a, b in zip(z, has, strict=True))
    spread = math.sqrt(
        sum((a - mean) ** 2 for a in z) * sum((b - share) ** 2 for b in has)
    )  # fmt: skip
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    used = [a > 0 for a in z]
    information = 0.0
    for one, two in itertools.product((True, False), repeat=2):
        joint = sum(a == one and b == two for a, b in zip(used, has, strict=True)) / n
        apart = used.count(one) / n * has.count(two) / n
        information += joint * math.log2(joint / apart) if joint else 0.0
    mean1, mean0 = (sum(max(a, 0) for a in of) / len(of) for of in (inside, outside))
    # The mean over all ways to break ties, of the k highest.
    number = min(k, sum(used))
    order = sorted((a for a in z if a > 0), reverse=True)[:number]
    hits = 0.0
    for value in set(order):
        tied = [b for a, b in zip(z, has, strict=True) if a == value]
        hits += order.count(value) * sum(tied) / len(tied)
    return {
        "correlation": cov / spread if spread else 0.0,
        "auroc": wins / (n1 * len(outside)),
        "precision": hits / number if number else 0.0,
        "information": information,
        "selectivity": (mean1 - mean0) / (mean1 + mean0) if mean1 + mean0 else 0.0,
    }


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_figures_are_those_of_plain_loops(seed: int, signed: bool) -> None:
    loadings, labels = made(seed, signed=signed)
    hierarchy = Hierarchy(("x", "x", "y", "y"), (("x", "top"), ("y", "top")))
    properties = Properties.of_labels(labels, ("a", "b", "c", "d"), hierarchy)
    found = mode_statistics(loadings, properties, k=7)
    assert found.names == ("a", "b", "c", "d", "x", "y")  # all of them are `top`
    assert found.left_out == ("top",)
    known = (labels >= 0).nonzero().flatten().tolist()
    groups = {"x": (0, 1), "y": (2, 3)}
    for mode, (place, name) in itertools.product(range(5), enumerate(found.names)):
        of = groups.get(name, ("abcd".find(name),))
        has = [int(labels[s]) in of for s in known]
        expected = by_hand([float(loadings[s, mode]) for s in known], has, 7)
        for figure, value in expected.items():
            got = float(getattr(found, figure)[mode, place])
            assert got == pytest.approx(value, abs=2e-6), (mode, name, figure)


def test_p_of_every_size_of_label() -> None:
    """Of loadings without ties, counted by hand, with sums of binomials."""
    generator = torch.Generator().manual_seed(2)
    loadings = torch.rand(N, 6, generator=generator) - torch.tensor([0, 0, 0.5, 0.5, 0.9, 0.9])
    labels = torch.tensor([0] * 4 + [1] * 9 + [2] * 17 + [3] * 30)
    loadings[:, :4] += torch.nn.functional.one_hot(labels, 4)
    found = mode_statistics(loadings, Properties.of_labels(labels))
    for mode, label in itertools.product(range(6), range(4)):
        n1 = int((labels == label).sum())
        drawn = min(n1, int((loadings[:, mode] > 0).sum()))
        top = loadings[:, mode].argsort(descending=True)[:drawn]
        hits = int((labels[top] == label).sum())
        ways = sum(math.comb(n1, h) * math.comb(N - n1, drawn - h) for h in range(hits, drawn + 1))
        expected = ways / math.comb(N, drawn)
        assert float(found.p[mode, label]) == pytest.approx(expected, rel=1e-5), (mode, label)


def test_p_is_the_share_of_all_shuffles() -> None:
    """Over all orders of eight labels, no tie among those that use the mode."""
    loadings = torch.tensor([[0.9], [0.7], [0.5], [0.3], [0.0], [0.0], [0.0], [0.0]])
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1])
    found = mode_statistics(loadings, Properties.of_labels(labels))
    for label in (0, 1):
        n1 = int((labels == label).sum())
        top = range(min(n1, 4))
        hits = sum(int(labels[s]) == label for s in top)
        chosen = list(itertools.combinations(range(8), n1))
        as_many = sum(sum(s in one for s in top) >= hits for one in chosen)
        assert float(found.p[0, label]) == pytest.approx(as_many / len(chosen))


def test_rates_are_those_of_scipy() -> None:
    from scipy.stats import false_discovery_control

    p = torch.cat([torch.rand(300) ** 4, torch.rand(700)]).view(20, 50)
    empty = torch.zeros(20, 50)
    words = {"kinds": (), "names": (), "numbers": (), "counts": ()}
    found = ModeStatistics(empty, empty, empty, empty, empty, p, **words).q.numpy().ravel()  # type: ignore[arg-type]
    expected = false_discovery_control(p.double().numpy().ravel())
    small = expected < 0.09
    np.testing.assert_allclose(found[small], expected[small], rtol=1e-5)
    assert (found[~small] >= 0.09).all()


def test_shuffled_labels_give_no_more_discoveries_than_the_rate() -> None:
    """Under the null any discovery is false: at most 5 % of 200 shuffles may have one."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(150, 12, generator=generator)
    sparse = torch.rand(150, 12, generator=generator) * (torch.rand(150, 12) < 0.1)
    labels = torch.arange(150) % 10
    loadings = torch.cat([dense, sparse, (labels[:, None] == torch.arange(10)).float()], 1)
    properties = Properties.of_labels(labels, hierarchy=Hierarchy(("x",) * 5 + ("y",) * 5))
    with_any = [
        bool((mode_statistics(loadings, properties.shuffled(seed)).q <= 0.05).any())
        for seed in range(200)
    ]
    # 200 draws of 5 %: 17 or more have a probability of 2 %.
    assert sum(with_any) <= 16
    real = mode_statistics(loadings, properties)
    assert bool((real.q[24:] <= 0.05).any(1).all())  # those that are labels are found


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_what_no_figure_depends_on(seed: int, scale: float) -> None:
    """Order of samples and size of loadings; and an area turns with the sign of loadings."""
    loadings, labels = made(seed, signed=True)
    labels = torch.where(torch.arange(N) < 8, torch.arange(N) % 4, labels)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    found = mode_statistics(loadings, Properties.of_labels(labels))
    other = mode_statistics(scale * loadings[order], Properties.of_labels(labels[order]))
    for figure in ("correlation", "auroc", "precision", "information", "selectivity"):
        one, two = getattr(other, figure), getattr(found, figure)
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    turned = mode_statistics(-loadings, Properties.of_labels(labels))
    torch.testing.assert_close(turned.auroc, 1 - found.auroc, atol=1e-5, rtol=0)
    assert bool(((found.p > 0) & (found.p <= 1)).all())


def test_redundancy_and_monosemanticity() -> None:
    loadings, _ = made(3, signed=False)
    loadings[:, 4] = 2 * loadings[:, 0] + 0.01 * loadings[:, 1]
    found = redundancy(loadings)
    assert float(found[0]) > 0.99
    assert float(found[3]) == 0.0
    assert bool(redundancy(loadings[:, :1]).isnan().all())
    embedding = torch.randn(N, 3, generator=torch.Generator().manual_seed(5))
    got = monosemanticity(loadings, embedding)
    for mode in range(5):
        top = bottom = 0.0
        for s, t in itertools.permutations(range(N), 2):
            a, b = embedding[s].double(), embedding[t].double()
            weight = float(loadings[s, mode]) * float(loadings[t, mode])
            top += weight * float(a @ b / a.norm() / b.norm())
            bottom += weight
        if bottom:
            assert float(got[mode]) == pytest.approx(top / bottom, abs=1e-6)
        else:
            assert bool(got[mode].isnan())


def test_contributions_of_modes_of_activations() -> None:
    """Unit by unit: those of one sign are divided as products are; the rest belongs to nobody."""
    import jaxtyping

    from condec.modes.modes import Modes
    from condec.modes.responsibility import contribution_shares
    from condec.network import Site

    generator = torch.Generator().manual_seed(0)
    z = (torch.rand(7, 3, generator=generator) - 0.4).clamp(min=0)
    atoms = torch.randn(3, 5, generator=generator)
    atoms[:, 4] = 0
    contribution = torch.randn(7, 5, generator=generator)
    activation = torch.randn(7, 5, generator=generator)

    class Store:
        def matrix(self, site: Site, quantity: str, sign: str) -> torch.Tensor:
            return contribution if quantity == "contribution" else activation

        def info(self, site: Site) -> "Store":
            return self

        n_units = 5

    jaxtyping.config.update("jaxtyping_disable", True)  # the store is none
    modes = Modes(
        atoms=atoms, loadings=z, ids=torch.arange(3), held_out=torch.zeros(7, dtype=torch.bool),
        store=Store(), site=Site("x"), sign="sum", quantity="activation", n_modes=3,
    )  # type: ignore[arg-type]  # fmt: skip
    found = contribution_shares(modes)
    expected = torch.zeros(7, 3, dtype=torch.float64)
    for s, u in itertools.product(range(7), range(5)):
        sign = 1.0 if activation[s, u] > 0 else -1.0
        products = [max(0.0, sign * float(z[s, m]) * float(atoms[m, u])) for m in range(3)]
        for m in range(3):
            if sum(products):
                expected[s, m] += float(contribution[s, u]) * products[m] / sum(products)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    for changed, message in (({"quantity": "contribution"}, "got those of contributions"),
                             ({"loadings": -z}, "loadings below 0")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            contribution_shares(replace(modes, **changed))  # type: ignore[arg-type]
    jaxtyping.config.update("jaxtyping_disable", False)


# --- intervals of correlations with labels ------------------------------------------------


def interval_by_hand(z: list[float], has: list[bool]) -> tuple[float, float]:
    n = len(z)
    mean, share = sum(z) / n, sum(has) / n
    spread, size = (sum((a - mean) ** 2 for a in z) / n) ** 0.5, (share * (1 - share)) ** 0.5
    u, v = [(a - mean) / spread for a in z], [(b - share) / size for b in has]
    r = sum(a * b for a, b in zip(u, v, strict=True)) / n
    influence = [a * b - r * (a * a + b * b) / 2 for a, b in zip(u, v, strict=True)]
    error = (sum(one * one for one in influence) / n / n) ** 0.5 / (1 - r * r)
    return tuple(math.tanh(math.atanh(r) + turn * 1.959964 * error) for turn in (-1, 1))


def test_intervals_of_correlations_are_those_by_hand() -> None:
    loadings, labels = made(3, signed=False)
    rows = torch.arange(N) % 3 > 0
    chosen = torch.tensor([[0, 3], [1, 2], [2, 0], [0, 1], [3, 1]])
    found = correlation_interval(loadings, labels, rows, chosen)
    assert found.shape == (2, 5, 2)
    assert found[:, 3].isnan().all()  # it does not vary
    known = (rows & (labels >= 0)).nonzero().flatten().tolist()
    for mode, rank in itertools.product((0, 1, 2, 4), (0, 1)):
        has = [int(labels[row]) == int(chosen[mode, rank]) for row in known]
        by = interval_by_hand([float(loadings[row, mode]) for row in known], has)
        assert found[:, mode, rank].tolist() == pytest.approx(by, abs=1e-9)


def test_intervals_cover_the_correlation_of_many_more_samples() -> None:
    def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (n,), generator=generator)
        loadings = torch.rand(n, 4, generator=generator) ** 4
        own = labels[:, None] == torch.arange(4)
        return loadings + 0.5 * own * torch.rand(n, 4, generator=generator), labels

    chosen = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    whole, labels = draw(200_000, 0)
    true = label_correlation(whole, labels, torch.ones(len(labels), dtype=torch.bool))
    hits = torch.zeros(4, 2)
    for seed in range(1, 101):
        some, of = draw(300, seed)
        low, high = correlation_interval(some, of, torch.ones(300, dtype=torch.bool), chosen)
        hits += (low <= true.gather(1, chosen)) & (true.gather(1, chosen) <= high)
    assert 0.92 < hits.mean() / 100 < 0.975
