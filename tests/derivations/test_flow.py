"""What flows from part to part, by plain loops: every entry of every Jacobian, at every point."""

import pytest
import torch
from torch import Tensor, nn

import condec
from condec.attribution import contribute
from condec.explanation.segments import Segment, carry
from condec.network import Site
from condec.testing.models import small_resnet

STEPS = 3


def jacobian(function, at: Tensor) -> list[list[float]]:
    """Entry by entry: [of the result, of what it is at]."""
    at = at.clone().requires_grad_()
    result = function(at).flatten()
    rows = []
    for entry in result:
        (gradient,) = torch.autograd.grad(entry, at, retain_graph=True)
        rows.append(gradient.flatten().tolist())
    return rows


def loop(front, between, after, x: Tensor, shares_a: Tensor, shares_b: Tensor) -> list[list[float]]:
    """Trapezoid rule over points of the straight path from 0 to x."""
    records, carried = [], []
    for step in range(STEPS + 1):
        h_a = front(x * step / STEPS)
        h_b = between(h_a)
        (g,) = jacobian(after, h_b)
        segment = jacobian(between, h_a)
        records.append(h_a.flatten().tolist())
        carried.append([
            [
                sum(w[j] * g[j] * segment[j][i] for j in range(len(g)))
                for i in range(len(records[-1]))
            ]
            for w in shares_b.flatten(1).tolist()
        ])  # fmt: skip
    return [
        [
            sum(
                w[i] * (records[k][i] - records[k - 1][i])
                * (carried[k][n][i] + carried[k - 1][n][i]) / 2
                for k in range(1, STEPS + 1)
                for i in range(len(w))
            )
            for n in range(len(shares_b))
        ]
        for w in shares_a.flatten(1).tolist()
    ]  # fmt: skip


def shares_like(h: Tensor, n_parts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(n_parts, *h.shape[1:], generator=generator, dtype=h.dtype)
    return shares / shares.sum(0)


@pytest.mark.parametrize("inplace", [False, True])
def test_flow_equals_the_loop_over_jacobians(inplace):
    model = small_resnet(inplace=inplace).double()
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64)

    def front(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return model.block1(torch.relu(model.stem(inputs)))

    def between(h: Tensor) -> Tensor:  # a copy, for the block may write into what it gets
        return model.block2(h.clone())

    def after(h: Tensor) -> Tensor:
        return model.head(h.mean((2, 3)))[:, 1]

    first = front(x)
    shares = shares_like(first, 2, 0), shares_like(between(first), 3, 1)
    method, target = condec.IntegratedGradients(steps=STEPS), condec.Logit(1)
    setup = contribute(model, x, "block*", method=method, target=target).setup
    (found,) = carry(setup, method, [Segment(Site("block1"), Site("block2"), shares[1])])
    flows = torch.einsum("mcyx,ncyx->mn", shares[0], found)
    expected = torch.tensor(loop(front, between, after, x, *shares), dtype=torch.float64)
    torch.testing.assert_close(flows, expected, rtol=1e-9, atol=1e-12)


def test_from_the_input_too_where_everything_before_the_site_is_one_segment():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    x = torch.randn(1, 4, dtype=torch.float64)
    method = condec.IntegratedGradients(steps=STEPS)
    setup = contribute(model, x, "1", method=method, target=condec.Logit(2)).setup
    shares = shares_like(torch.zeros(1, 5, dtype=torch.float64), 2, 2)
    (found,) = carry(setup, method, [Segment(Site("", "input"), Site("1"), shares)])
    whole = torch.eye(4, dtype=torch.float64)
    expected = loop(lambda inputs: inputs, model[:2], lambda h: model[2](h)[:, 2], x, whole, shares)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).T)
