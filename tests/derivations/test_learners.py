"""Losses and encoders of the sparse learners against plain loops in float64.

Sources: Bricken et al. 2023 (ReLU, L1), Gao et al. 2024 (TopK, AuxK), Bussmann et al. 2024
(BatchTopK) and 2025 (Matryoshka), Rajamanoharan et al. 2024 (JumpReLU and its gradients),
Mallat & Zhang 1993 (matching pursuit).
"""

import math

import pytest
import torch

from condec.dictionary import (
    BatchTopKSAE,
    DictionaryLearning,
    JumpReLUSAE,
    MatchingPursuit,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
    TrainConfig,
    fit,
)
from condec.dictionary.fitting.descent import Step

UNITS, MODES, ROWS, K = 5, 7, 6, 2
RANGE = range(MODES)


def parameters(seed=0, **more):
    made = torch.Generator().manual_seed(seed)
    atoms = torch.randn(MODES, UNITS, generator=made, dtype=torch.float64)
    return {
        "encoder": torch.randn(MODES, UNITS, generator=made, dtype=torch.float64),
        "bias": 0.3 * torch.randn(MODES, generator=made, dtype=torch.float64),
        "atoms": atoms / atoms.norm(dim=1, keepdim=True),
        "offset": 0.2 * torch.randn(UNITS, generator=made, dtype=torch.float64),
        **more,
    }


def rows(seed=1):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, UNITS, generator=made, dtype=torch.float64)


def pre(p, x):
    return [
        sum(p["encoder"][m][u] * (x[u] - p["offset"][u]) for u in range(UNITS)) + p["bias"][m]
        for m in RANGE
    ]


def decoded(p, z, modes=RANGE):
    return [p["offset"][u] + sum(z[m] * p["atoms"][m][u] for m in modes) for u in range(UNITS)]


def plain(p):
    return {name: value.tolist() for name, value in p.items()}


def squared(p, data, codes, modes=RANGE):
    total = 0.0
    for x, z in zip(data, codes, strict=True):
        total += sum((a - b) ** 2 for a, b in zip(x, decoded(p, z, modes), strict=True))
    return total / (len(data) * UNITS)


def top(values, k):
    """The k largest of a row, where they are above 0."""
    order = sorted(range(len(values)), key=lambda i: -values[i])[:k]
    return [max(v, 0.0) if i in order else 0.0 for i, v in enumerate(values)]


def batch_top(p, data, k):
    every = [(v, r, m) for r, x in enumerate(data) for m, v in enumerate(pre(p, x))]
    kept = sorted(every, reverse=True)[: k * len(data)]
    codes = [[0.0] * MODES for _ in data]
    for value, row, mode in kept:
        codes[row][mode] = max(value, 0.0)
    return codes


def aux(p, data, codes, dead):
    """AuxK of Gao et al. 2024: the error of dead modes on the error, over the error."""
    error = left = 0.0
    for x, z in zip(data, codes, strict=True):
        e = [a - b for a, b in zip(x, decoded(p, z), strict=True)]
        candidates = [v if m in dead else -math.inf for m, v in enumerate(pre(p, x))]
        w = top(candidates, UNITS // 2)
        told = [sum(w[m] * p["atoms"][m][u] for m in RANGE) for u in range(UNITS)]
        error += sum(v**2 for v in e)
        left += sum((a - b) ** 2 for a, b in zip(e, told, strict=True))
    return left / error


def step(dead=()):
    mask = torch.tensor([m in dead for m in RANGE])
    return Step(0, 10, mask)


def test_relu():
    p, x = parameters(), rows()
    cost = ReLUSAE(MODES, l1=0.3).cost(p, x, step())
    q, data = plain(p), x.tolist()
    codes = [[max(v, 0.0) for v in pre(q, row)] for row in data]
    penalty = sum(sum(z) for z in codes) / ROWS / math.sqrt(UNITS)
    torch.testing.assert_close(cost.loadings.tolist(), codes)
    assert float(cost.loss) == pytest.approx(squared(q, data, codes) + 0.3 * penalty, rel=1e-12)


@pytest.mark.parametrize("dead", [(), (1, 4, 5)])
def test_top_k_and_its_auxiliary_loss(dead):
    p, x = parameters(), rows()
    cost = TopKSAE(MODES, k=K, aux_weight=0.25).cost(p, x, step(dead))
    q, data = plain(p), x.tolist()
    codes = [top(pre(q, row), K) for row in data]
    expected = squared(q, data, codes) + (0.25 * aux(q, data, codes, dead) if dead else 0.0)
    torch.testing.assert_close(cost.loadings.tolist(), codes)
    assert float(cost.loss) == pytest.approx(expected, rel=1e-12)


def test_auxiliary_loss_teaches_dead_modes_only():
    p = {name: value.requires_grad_() for name, value in parameters().items()}
    learner = TopKSAE(MODES, k=K, aux_weight=0.25)
    with_aux = torch.autograd.grad(learner.cost(p, rows(), step((1, 4))).loss, p["encoder"])[0]
    without = torch.autograd.grad(learner.cost(p, rows(), step()).loss, p["encoder"])[0]
    changed = {m for m in RANGE if not torch.allclose(with_aux[m], without[m])}
    assert changed == {1, 4}


@pytest.mark.parametrize("dead", [(), (0, 3)])
def test_batch_top_k(dead):
    p, x = parameters(), rows()
    cost = BatchTopKSAE(MODES, k=K, aux_weight=0.25).cost(p, x, step(dead))
    q, data = plain(p), x.tolist()
    codes = batch_top(q, data, K)
    expected = squared(q, data, codes) + (0.25 * aux(q, data, codes, dead) if dead else 0.0)
    torch.testing.assert_close(cost.loadings.tolist(), codes)
    assert len({sum(v > 0 for v in z) for z in codes}) > 1
    assert float(cost.loss) == pytest.approx(expected, rel=1e-12)


def test_batch_top_k_threshold_is_the_mean_of_the_smallest_codes():
    p, x = parameters(), rows()
    config = TrainConfig(epochs=1, batch_size=2, lr=1e-3)
    found = BatchTopKSAE(MODES, k=K).finish(p, x, config)["threshold"]
    q = plain(p)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    smallest = []
    for start in range(0, ROWS, 2):
        codes = batch_top(q, [x[i].tolist() for i in order[start : start + 2]], K)
        smallest.append(min(v for z in codes for v in z if v > 0))
    assert float(found) == pytest.approx(sum(smallest) / len(smallest), rel=1e-5)
    loadings = BatchTopKSAE(MODES, k=K).encode({**p, "threshold": found}, x).tolist()
    for row, z in zip(x.tolist(), loadings, strict=True):
        assert z == pytest.approx([v if v > float(found) else 0.0 for v in pre(q, row)])


def test_matryoshka():
    p, x = parameters(), rows()
    learner = MatryoshkaSAE(MODES, k=K, prefixes=(0.25, 0.5, 1.0), aux_weight=0.25)
    assert learner.sizes == (2, 4, 7)
    cost = learner.cost(p, x, step((0, 3)))
    q, data = plain(p), x.tolist()
    codes = batch_top(q, data, K)
    nested = sum(squared(q, data, codes, range(size)) for size in (2, 4, 7)) / 3
    expected = nested + 0.25 * aux(q, data, codes, (0, 3))
    assert float(cost.loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("target", [3.0, None])
def test_jump_relu(target):
    """The loss, and the gradient of the thresholds by the paper's equations 11 and 12."""
    size, width = math.sqrt(UNITS), 0.4
    start = torch.linspace(-0.8, 0.2, MODES, dtype=torch.float64) / size
    p = parameters(log_threshold=start)
    p["log_threshold"].requires_grad_()
    p["encoder"].requires_grad_()
    learner = JumpReLUSAE(MODES, target_l0=target, l0_weight=0.7, bandwidth=width, aux_weight=0.0)
    cost = learner.cost(p, rows(), step())
    q, data = plain({n: v.detach() for n, v in p.items()}), rows().tolist()
    threshold = [math.exp(size * v) for v in q["log_threshold"]]
    codes = [[v if v > threshold[m] else 0.0 for m, v in enumerate(pre(q, x))] for x in data]
    l0 = sum(v > 0 for z in codes for v in z) / ROWS
    sparse = l0 if target is None else (l0 / target - 1) ** 2
    torch.testing.assert_close(cost.loadings.detach().tolist(), codes)
    expected = squared(q, data, codes) + 0.7 * sparse
    assert float(cost.loss.detach()) == pytest.approx(expected, rel=1e-12)

    by_l0 = 0.7 if target is None else 0.7 * 2 * (l0 / target - 1) / target
    epsilon = width * size
    found, of_encoder = torch.autograd.grad(cost.loss, (p["log_threshold"], p["encoder"]))
    met = 0
    for m in RANGE:
        gradient, encoder = 0.0, [0.0] * UNITS
        for x, z in zip(data, codes, strict=True):
            value = pre(q, x)[m]
            errors = [a - b for a, b in zip(decoded(q, z), x, strict=True)]
            by_code = sum(2 * e * a for e, a in zip(errors, q["atoms"][m], strict=True))
            by_code /= ROWS * UNITS
            if abs(value - threshold[m]) / epsilon < 0.5:
                met += 1
                gradient -= threshold[m] / epsilon * by_code + by_l0 / (epsilon * ROWS)
            if value > threshold[m]:
                encoder = [
                    g + by_code * (v - o) for g, v, o in zip(encoder, x, q["offset"], strict=True)
                ]
        # By the chain rule: the parameter is the logarithm over sqrt(d).
        assert float(found[m]) == pytest.approx(gradient * threshold[m] * size, rel=1e-9)
        assert of_encoder[m].tolist() == pytest.approx(encoder, rel=1e-9)
    assert met > 3


@pytest.mark.parametrize("nonnegative", [True, False])
def test_matching_pursuit(nonnegative):
    p, x = parameters(), rows()
    learner = MatchingPursuit(MODES, k=3, nonnegative=nonnegative)
    q, found = plain(p), learner.encode(p, x).tolist()
    for row, z in zip(x.tolist(), found, strict=True):
        residual = [a - b for a, b in zip(row, q["offset"], strict=True)]
        expected = [0.0] * MODES
        for _ in range(3):
            products = [
                sum(a * b for a, b in zip(atom, residual, strict=True)) for atom in q["atoms"]
            ]
            best = max(RANGE, key=lambda m, c=products: c[m] if nonnegative else abs(c[m]))
            value = max(products[best], 0.0) if nonnegative else products[best]
            expected[best] += value
            atom = q["atoms"][best]
            residual = [r - value * a for r, a in zip(residual, atom, strict=True)]
        assert z == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_matching_pursuit_holds_loadings_constant_in_the_gradient():
    p, x = parameters(), rows()
    learner = MatchingPursuit(MODES, k=2)
    p["atoms"].requires_grad_()
    cost = learner.cost(p, x, step())
    (found,) = torch.autograd.grad(cost.loss, p["atoms"])
    q, z = plain({n: v.detach() for n, v in p.items()}), cost.loadings.tolist()
    for m in RANGE:
        for u in range(UNITS):
            expected = 0.0
            for row, codes in zip(x.tolist(), z, strict=True):
                expected += 2 * codes[m] * (decoded(q, codes)[u] - row[u]) / (ROWS * UNITS)
            assert float(found[m, u]) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_lasso_loadings_by_coordinate_descent():
    """Least squares with a penalty on loadings that are not negative."""
    data = torch.rand(40, UNITS, generator=torch.Generator().manual_seed(2))
    report = fit(DictionaryLearning(3, alpha=0.1), data, config=TrainConfig(batch_size=8))
    dictionary = report.dictionary
    atoms = (dictionary.atoms / dictionary.scale).double().tolist()
    weight = 0.1 * math.sqrt(UNITS)
    found = dictionary.encode(data[:5]).tolist()
    for row, z in zip((data[:5].double() / dictionary.scale).tolist(), found, strict=True):
        codes = [0.0] * 3
        for _ in range(2000):
            for m, atom in enumerate(atoms):
                rest = [
                    row[u] - sum(codes[j] * atoms[j][u] for j in range(3) if j != m)
                    for u in range(UNITS)
                ]
                slope = sum(a * r for a, r in zip(atom, rest, strict=True)) - weight
                size = sum(a * a for a in atom)
                codes[m] = max(slope / size, 0.0) if size else 0.0
        assert z == pytest.approx(codes, abs=2e-3)
