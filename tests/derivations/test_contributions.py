"""Contributions re-derived from the paper: plain loops, float64, one site and sample at a time."""

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import ActGrad, IntegratedGradients
from condec.attribution.contributions import contribute
from condec.attribution.targets import Label, Logit, Predicted, Target, TopK
from condec.network.sites import Units
from condec.testing.models import small_mlp, small_resnet


def activation_and_rest(model: nn.Module, name: str):  # type: ignore[no-untyped-def]
    """The network cut in two at a site, written out by hand for the toy models."""
    if isinstance(model, nn.Sequential):
        at = int(name) + 1
        return (model[:at]), (model[at:])

    def block(b: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(b.conv2(torch.relu(b.conv1(x))) + x)

    def stem(x: Tensor) -> Tensor:
        return torch.relu(model.stem(x))

    def head(x: Tensor) -> Tensor:
        return model.head(x.mean((2, 3)))

    if name == "relu":
        return stem, lambda h: head(block(model.block2, block(model.block1, h)))
    if name == "block1":
        return lambda x: block(model.block1, stem(x)), lambda h: head(block(model.block2, h))
    return lambda x: block(model.block2, block(model.block1, stem(x))), head


def slow_contributions(
    model: nn.Module, x: Tensor, name: str, steps: int, value
) -> tuple[Tensor, float, float]:  # type: ignore[no-untyped-def]
    """sum_k (h_k - h_{k-1}) (g_k + g_{k-1}) / 2 for one sample x of shape [1, ...]."""
    lower, upper = activation_and_rest(model, name)
    hs, gs, ts = [], [], []
    for k in range(steps + 1):
        h = lower(x * (k / steps)).detach().requires_grad_()
        t = value(upper(h))
        (g,) = torch.autograd.grad(t, h)
        hs.append(h.detach())
        gs.append(g)
        ts.append(float(t.detach()))
    total = torch.zeros_like(hs[0])
    for k in range(1, steps + 1):
        total = total + (hs[k] - hs[k - 1]) * (gs[k] + gs[k - 1]) / 2
    return total, ts[-1], ts[0]


CASES = [
    pytest.param(small_resnet, (1, 6, 5), site, id=f"cnn-{site}")
    for site in ("relu", "block1", "block2")
] + [pytest.param(small_mlp, (5,), site, id=f"mlp-{site}") for site in ("0", "1", "3")]

TARGETS = {
    "top1": (TopK(), lambda out, label, own: out.max()),
    "top2": (TopK(k=2), lambda out, label, own: out[0].sort().values[-2:].sum()),
    "top1:softmax": (
        TopK(probability=True),
        lambda out, label, own: (out.exp() / out.exp().sum()).max(),
    ),
    "logit:1": (Logit(1), lambda out, label, own: out[0, 1]),
    "label": (Label(), lambda out, label, own: out[0, label]),
    "predicted": (Predicted(), lambda out, label, own: out[0, own]),
}


@pytest.mark.parametrize(("make", "shape", "site"), CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_integrated_gradients_equals_the_loop(make, shape, site, target) -> None:  # type: ignore[no-untyped-def]
    model = make().double()
    inputs = torch.randn(4, *shape, dtype=torch.float64) * 2
    labels = torch.tensor([2, 0, 1, 2])
    option, value = TARGETS[target]
    batch = contribute(
        model, inputs, site, method=IntegratedGradients(steps=7), target=option, labels=labels
    )
    for i in range(4):
        own = int(model(inputs[i : i + 1]).argmax())
        slow, at_x, at_0 = slow_contributions(
            model, inputs[i : i + 1], site, 7, lambda out, i=i, own=own: value(out, labels[i], own)
        )
        assert torch.allclose(batch[site].contribution[i], slow[0], atol=1e-9, rtol=0)
        assert float(batch.target[i]) == pytest.approx(at_x, abs=1e-9)
        assert float(batch.target_baseline[i]) == pytest.approx(at_0, abs=1e-9)


@pytest.mark.parametrize(("make", "shape", "site"), CASES)
def test_act_grad_equals_the_loop(make, shape, site) -> None:  # type: ignore[no-untyped-def]
    model = make().double()
    inputs = torch.randn(3, *shape, dtype=torch.float64)
    batch = contribute(model, inputs, site, method=ActGrad(), target=Logit(2))
    lower, upper = activation_and_rest(model, site)
    for i in range(3):
        h = lower(inputs[i : i + 1]).detach().requires_grad_()
        (g,) = torch.autograd.grad(upper(h)[0, 2], h)
        assert torch.allclose(batch[site].contribution[i], (h * g).detach()[0], atol=1e-9, rtol=0)
        assert torch.allclose(batch[site].activation[i], h.detach()[0], atol=1e-12)


@pytest.mark.parametrize(
    ("units", "shape"),
    [
        (Units("channels"), (2, 3, 2, 4)),
        (Units("features"), (2, 5, 4)),
        (Units("heads", 2), (2, 5, 4)),
        (Units("tokens"), (2, 5, 4)),
        (Units("positions"), (2, 3, 2, 4)),
    ],
)
def test_reduction_equals_the_loop(units: Units, shape: tuple[int, ...]) -> None:
    from condec.attribution.reduce import split_and_sum

    values = torch.randn(*shape, dtype=torch.float64)
    reduced = split_and_sum(values, units)
    slow = torch.zeros(shape[0], 2, units.count(shape), dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        sample, *rest = index
        unit = {
            "channels": lambda r: r[0],
            "features": lambda r: r[1],
            "heads": lambda r: r[1] // (shape[-1] // 2),
            "tokens": lambda r: r[0],
            "positions": lambda r: r[1] * shape[-1] + r[2],
        }[units.layout](rest)
        v = values[tuple(index)]
        slow[sample, 0 if v > 0 else 1, unit] += v
    assert torch.allclose(reduced, slow, atol=1e-12)


def oracle_gap(model: nn.Module, inputs: Tensor, site: str, steps: int, target: Target) -> float:
    """Largest difference from Captum's LayerConductance (left Riemann sum), relative."""
    from captum.attr import LayerConductance

    mine = contribute(model, inputs, site, method=IntegratedGradients(steps=steps), target=target)[
        site
    ].contribution
    oracle = LayerConductance(model, model.get_submodule(site)).attribute(
        inputs, baselines=torch.zeros_like(inputs), target=1, n_steps=steps,
        method="riemann_left",
    )  # fmt: skip
    oracle = oracle.detach()
    return float((mine - oracle).abs().max() / oracle.abs().max())


@pytest.mark.parametrize(("make", "shape", "site"), CASES)
def test_equals_captum_layer_conductance_in_the_limit(make, shape, site) -> None:  # type: ignore[no-untyped-def]
    """Trapezoid against Riemann sum: the gap shrinks like 1 / steps."""
    model = make().double()
    inputs = torch.randn(3, *shape, dtype=torch.float64)
    gaps = [oracle_gap(model, inputs, site, steps, Logit(1)) for steps in (16, 64, 256)]
    assert gaps[2] < 2e-2
    # Four times the steps: a quarter of the gap, with room for the kinks of ReLU.
    assert gaps[0] / gaps[1] > 2.5
    assert gaps[1] / gaps[2] > 2.5
