"""Sparse products are the plain ones up to rounding, with their gradients."""

import pytest
import torch

from condec.dictionary import BatchTopKSAE, MatryoshkaSAE, ReLUSAE, TopKSAE, TrainConfig, fit
from condec.dictionary.fitting import products


def sparse(rows, modes, share, seed=0):
    made = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, modes, generator=made)
    return values * (torch.rand(rows, modes, generator=made) < share)


@pytest.fixture
def always(monkeypatch):
    """Also small products are looked at; how many went over few entries."""
    monkeypatch.setattr(products, "_LARGE", 0)
    made, first = [], products._Codes.__init__

    def count(self, matrix):
        made.append(matrix.shape)
        first(self, matrix)

    monkeypatch.setattr(products._Codes, "__init__", count)
    return made


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5])
def test_decoded(always, share):
    atoms = torch.randn(40, 9, generator=torch.Generator().manual_seed(1)).double()
    loadings = sparse(12, 40, share).double()
    weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(2)).double()
    found = []
    for product in (products.decoded, torch.matmul):
        z, d = loadings.clone().requires_grad_(), atoms.clone().requires_grad_()
        out = product(z, d)
        (out * weight).sum().backward()
        gradient = d.grad.to_dense()
        # What a code of 0 would get does not count: nothing passes it on.
        found.append((out.detach(), gradient, z.grad * (loadings != 0 if share < 0.05 else 1)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert bool(always) == (share < 0.05)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5])
def test_encoded(always, share):
    weight = torch.randn(40, 9, generator=torch.Generator().manual_seed(1)).double()
    rows = torch.randn(12, 9, generator=torch.Generator().manual_seed(2)).double()
    upstream = sparse(12, 40, share).double()
    found = []
    for product in (products.encoded, lambda x, w: x @ w.T):
        x, w = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        out = product(x, w)
        out.backward(upstream)
        found.append((out.detach(), x.grad, w.grad.to_dense()))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert bool(always) == (share < 0.05)


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.parametrize(
    "learner",
    [TopKSAE(60, k=2), BatchTopKSAE(60, k=2), MatryoshkaSAE(60, k=2), ReLUSAE(60, l1=2.0)],
)
def test_a_fit_is_the_same(learner, monkeypatch):
    matrix = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(epochs=6, batch_size=40)
    plain = fit(learner, matrix, config=config)
    monkeypatch.setattr(products, "_LARGE", 0)
    found = fit(learner, matrix, config=config)
    assert found.history == pytest.approx(plain.history, rel=1e-4)
    torch.testing.assert_close(found.dictionary.atoms, plain.dictionary.atoms, rtol=1e-2, atol=1e-3)


def test_when_it_is_worth_looking():
    large = torch.zeros(128, 512)
    assert products._worth(large, 1024)
    assert not products._worth(large, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert not products._worth(large, 1024)
    assert not products._worth(torch.zeros(128, 512, device="meta"), 1024)


def test_under_vmap_they_are_plain(always):
    z, d = sparse(12, 40, 0.03).expand(3, -1, -1), torch.randn(3, 40, 9)
    torch.testing.assert_close(torch.func.vmap(products.decoded)(z, d), z @ d)
    x, w = torch.randn(3, 12, 9), torch.randn(3, 40, 9)
    torch.testing.assert_close(torch.func.vmap(products.encoded)(x, w), x @ w.mT)
    assert not always


def test_products_at(always):
    left, right = torch.randn(12, 9).double(), torch.randn(40, 9).double()
    for share in (0.03, 0.5):
        where = sparse(12, 40, share)
        found = products.products_at(where.double(), left, right)
        there = where != 0
        torch.testing.assert_close(found[there], (left @ right.T)[there], rtol=1e-12, atol=1e-12)
    assert always == [(12, 40)]


def test_mean_absolute():
    matrix = torch.randn(5, 7).double().requires_grad_()
    (found,) = torch.autograd.grad(products.mean_absolute(matrix), matrix)
    (expected,) = torch.autograd.grad(matrix.abs().mean(), matrix)
    torch.testing.assert_close(products.mean_absolute(matrix), matrix.abs().mean())
    torch.testing.assert_close(found, expected)
    several = torch.randn(3, 5, 7).double()
    gradients = torch.func.vmap(torch.func.grad(products.mean_absolute))(several)
    torch.testing.assert_close(gradients, several.sgn() / 35)
