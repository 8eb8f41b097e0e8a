"""The Poisson loss, derived again slowly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condec.retina import poisson_loss

rates = st.lists(st.floats(0.01, 50.0), min_size=6, max_size=6)


def loss(predicted: list[float], answers: list[float]) -> float:
    def table(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).reshape(3, 2)

    return float(poisson_loss(table(predicted), table(answers)))


@given(rates, st.lists(st.integers(0, 30), min_size=6, max_size=6))
def test_it_is_the_likelihood_but_for_a_constant(r: list[float], n: list[int]) -> None:
    likelihood = sum(k * math.log(x) - x - math.lgamma(k + 1) for x, k in zip(r, n, strict=True))
    constant = sum(math.lgamma(k + 1) for k in n)
    wanted = -(likelihood + constant) / 6
    assert loss(r, [float(k) for k in n]) == pytest.approx(wanted, rel=1e-6, abs=1e-4)  # the 1e-8


@given(rates, rates)
def test_nothing_is_better_than_the_answers(predicted: list[float], answers: list[float]) -> None:
    assert loss(predicted, answers) >= loss(answers, answers) - 1e-6


def test_its_gradient_is_one_minus_the_ratio() -> None:
    r = torch.tensor([[0.5, 2.0], [3.0, 0.1]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
    poisson_loss(r, y).backward()
    assert r.grad is not None
    wanted = (1 - y.numpy() / r.detach().numpy()) / 4
    np.testing.assert_allclose(r.grad, wanted, atol=1e-6)
