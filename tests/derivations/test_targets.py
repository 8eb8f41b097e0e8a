"""Every target re-derived by plain loops in float64, and completeness of its contributions."""

import math

import pytest
import torch
from torch import Tensor

from condec.attribution import IntegratedGradients
from condec.attribution.contributions import contribute
from condec.attribution.targets import (
    Contrast,
    Custom,
    Entropy,
    Label,
    Logit,
    Margin,
    Predicted,
    Sum,
    Surprisal,
    Target,
    TopK,
)
from condec.testing.models import small_mlp

Row = list[float]


def softmax(row: Row) -> Row:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def plain(row: Row) -> Row:
    return row


def largest(row: Row, k: int) -> list[int]:
    """Indices of the k largest, the largest first."""
    left, found = list(range(len(row))), []
    for _ in range(k):
        best = left[0]
        for i in left:
            if row[i] > row[best]:
                best = i
        left.remove(best)
        found.append(best)
    return found


def entropy(row: Row) -> float:
    return -sum(p * math.log(p) for p in softmax(row))


def margin(row: Row, label: int, against: str) -> float:
    rest = [v for i, v in enumerate(row) if i != label]
    if against == "mean":
        return row[label] - sum(rest) / len(rest)
    if against == "largest":
        return row[label] - rest[largest(rest, 1)[0]]
    return row[label] - math.log(sum(math.exp(v) for v in rest))


OUTPUTS = [[0.3, -1.2, 2.0], [1.5, 1.0, 0.5], [-0.7, 0.2, 0.1], [2.2, 2.6, -1.0], [0.0, 0.4, 0.9]]
LABELS = [0, 2, 1, 1, 2]


def covariance() -> list[Row]:
    n, p = len(OUTPUTS), len(OUTPUTS[0])
    mean = [sum(row[j] for row in OUTPUTS) / n for j in range(p)]
    return [
        [sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in OUTPUTS) / (n - 1) for j in range(p)]
        for i in range(p)
    ]


def solve(matrix: list[Row], right: Row) -> Row:
    """Gauss and Jordan."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = rows[i][i]
        rows[i] = [v / pivot for v in rows[i]]
        for j in range(len(rows)):
            if j != i:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def surprisal(row: Row, shrinkage: float) -> float:
    sigma = covariance()
    p = len(sigma)
    variance = sum(sigma[i][i] for i in range(p)) / p
    shrunk = [
        [(1 - shrinkage) * sigma[i][j] + (shrinkage * variance if i == j else 0) for j in range(p)]
        for i in range(p)
    ]
    away = [row[j] - sum(r[j] for r in OUTPUTS) / len(OUTPUTS) for j in range(p)]
    return 0.5 * sum(a * b for a, b in zip(away, solve(shrunk, away), strict=True))


def fitted(shrinkage: float) -> Surprisal:
    return Surprisal.fit(torch.tensor(OUTPUTS, dtype=torch.float64), shrinkage=shrinkage)


# Each: the target, and its value from the output, the output at the input, and the label.
TARGETS = {
    "top1": (TopK(), lambda y, x, c: y[largest(y, 1)[0]]),
    "top2:softmax": (
        TopK(k=2, probability=True),
        lambda y, x, c: sum(softmax(y)[i] for i in largest(y, 2)),
    ),
    "logit:2": (Logit(2), lambda y, x, c: y[2]),
    "logit:2:softmax": (Logit(2, probability=True), lambda y, x, c: softmax(y)[2]),
    "label": (Label(), lambda y, x, c: y[c]),
    "predicted": (Predicted(), lambda y, x, c: y[largest(x, 1)[0]]),
    "predicted:softmax": (
        Predicted(probability=True),
        lambda y, x, c: softmax(y)[largest(x, 1)[0]],
    ),
    "entropy": (Entropy(), lambda y, x, c: entropy(y)),
    "contrast": (Contrast(), lambda y, x, c: y[largest(y, 2)[0]] - y[largest(y, 2)[1]]),
    "contrast:softmax": (
        Contrast(probability=True),
        lambda y, x, c: softmax(y)[largest(y, 2)[0]] - softmax(y)[largest(y, 2)[1]],
    ),
    "contrast:frozen": (
        Contrast(frozen=True),
        lambda y, x, c: y[largest(x, 2)[0]] - y[largest(x, 2)[1]],
    ),
    "contrast:frozen:softmax": (
        Contrast(frozen=True, probability=True),
        lambda y, x, c: softmax(y)[largest(x, 2)[0]] - softmax(y)[largest(x, 2)[1]],
    ),
    "margin": (Margin(), lambda y, x, c: margin(y, c, "mean")),
    "margin:softmax": (Margin(probability=True), lambda y, x, c: margin(softmax(y), c, "mean")),
    "margin:largest": (Margin(against="largest"), lambda y, x, c: margin(y, c, "largest")),
    "margin:all": (
        Margin(against="all"),
        lambda y, x, c: y[c] - math.log(sum(math.exp(v) for v in y)),
    ),
    "contrast:pair": (Contrast(pair=(2, 0)), lambda y, x, c: y[2] - y[0]),
    "margin:logsumexp": (Margin(against="logsumexp"), lambda y, x, c: margin(y, c, "logsumexp")),
    "sum": (Sum(), lambda y, x, c: y[0] + y[1] + y[2]),
    "sum:0,2": (Sum((0, 2)), lambda y, x, c: y[0] + y[2]),
    "sum:0,2:softmax": (
        Sum((0, 2), probability=True),
        lambda y, x, c: softmax(y)[0] + softmax(y)[2],
    ),
    "surprisal": (fitted(0.0), lambda y, x, c: surprisal(y, 0.0)),
    "surprisal, shrunk": (fitted(0.3), lambda y, x, c: surprisal(y, 0.3)),
    "function": (Custom(lambda out: out[:, 0] * out[:, 2]), lambda y, x, c: y[0] * y[2]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_value_equals_the_loop(name: str) -> None:
    target, slow = TARGETS[name]
    at_input = torch.tensor(OUTPUTS, dtype=torch.float64)
    frozen = target.freeze(at_input, torch.tensor(LABELS))
    for later in (at_input, at_input.flip(1) * 1.3 - 0.2):
        value = target.value(later, frozen)
        for i, (row, own) in enumerate(zip(later.tolist(), OUTPUTS, strict=True)):
            assert value[i].item() == pytest.approx(slow(row, own, LABELS[i]), abs=1e-12)


def numeric_gradient(target: Target, output: Tensor, frozen: Tensor | None) -> Tensor:
    gradient = torch.zeros_like(output)
    for j in range(output.shape[1]):
        up, down = output.clone(), output.clone()
        up[:, j] += 1e-6
        down[:, j] -= 1e-6
        gradient[:, j] = (target.value(up, frozen) - target.value(down, frozen)) / 2e-6
    return gradient


@pytest.mark.parametrize("name", TARGETS)
def test_gradient_equals_differences(name: str) -> None:
    target, _ = TARGETS[name]
    output = torch.tensor(OUTPUTS, dtype=torch.float64, requires_grad=True)
    frozen = target.freeze(output.detach(), torch.tensor(LABELS))
    (gradient,) = torch.autograd.grad(target.value(output, frozen).sum(), output)
    expected = numeric_gradient(target, output.detach(), frozen)
    assert torch.allclose(gradient, expected, atol=1e-8)


@pytest.mark.parametrize("name", TARGETS)
def test_contributions_at_a_cut_add_up(name: str) -> None:
    """Up to the error of the quadrature, which is of the kinks where a class is chosen anew."""
    target, slow = TARGETS[name]
    model = small_mlp().double()
    inputs = torch.randn(5, 5, dtype=torch.float64) * 2
    labels = torch.tensor(LABELS)
    method = IntegratedGradients(steps=100)
    batch = contribute(model, inputs, "1, 3", method=method, target=target, labels=labels)
    with torch.no_grad():
        at_input, at_zero = model(inputs).tolist(), model(torch.zeros(1, 5).double())[0].tolist()
    for i, row in enumerate(at_input):
        change = slow(row, row, LABELS[i]) - slow(at_zero, row, LABELS[i])
        for site in ("1", "3"):
            total = batch[site].contribution[i].sum().item()
            assert total == pytest.approx(change, abs=1e-2 if target_is_anew(name) else 1e-4)


def target_is_anew(name: str) -> bool:
    return name.startswith(("top", "margin:largest")) or name in ("contrast", "contrast:softmax")
