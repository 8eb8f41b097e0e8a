"""Methods re-derived from their formulas: plain loops, float64, one sample and entry at a time."""

import math

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import (
    ActGrad,
    Activation,
    ActNormGrad,
    Constant,
    GradCAM,
    Gradient,
    SmoothGrad,
    UnitAblation,
    unit_effects,
)
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit, Predicted
from condec.network.sites import Site, Units
from condec.testing.models import small_resnet


def block(b: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(b.conv2(torch.relu(b.conv1(x))) + x)


def before(model: nn.Module, x: Tensor) -> Tensor:
    return block(model.block1, torch.relu(model.stem(x)))


def after(model: nn.Module, h: Tensor) -> Tensor:
    return model.head(block(model.block2, h).mean((2, 3)))


def point(model: nn.Module, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Activation of block1 and gradient of a logit there, for one sample [1, ...]."""
    h = before(model, x).detach().requires_grad_()
    (g,) = torch.autograd.grad(after(model, h)[0, label], h)
    return h.detach()[0], g[0]


def slow(name: str, h: Tensor, g: Tensor) -> Tensor:
    """Formula by formula, over channel c and place (y, x)."""
    length, mean = 0.0, [0.0] * len(g)
    places = h.shape[1] * h.shape[2]
    for c in range(h.shape[0]):
        for y in range(h.shape[1]):
            for x in range(h.shape[2]):
                length += float(g[c, y, x]) ** 2
                mean[c] += float(g[c, y, x]) / places
    norm_g = math.sqrt(length)
    out = torch.zeros_like(h)
    for c in range(h.shape[0]):
        for y in range(h.shape[1]):
            for x in range(h.shape[2]):
                a, b = float(h[c, y, x]), float(g[c, y, x])
                out[c, y, x] = {
                    "actnorm": a * b / max(norm_g, 1e-8),
                    "activation": a,
                    "gradient": b,
                    "cam": a * mean[c],
                }[name]
    return out


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (ActNormGrad(), "actnorm"),
        (Activation(), "activation"),
        (Gradient(), "gradient"),
        (GradCAM(), "cam"),
    ],
)
def test_pointwise_methods_equal_the_loop(method, name) -> None:  # type: ignore[no-untyped-def]
    model, images = small_resnet().double(), torch.randn(3, 1, 4, 5, dtype=torch.float64)
    batch = contribute(model, images, "block1", method=method, target=Logit(2))
    for i in range(3):
        h, g = point(model, images[i : i + 1], 2)
        assert torch.allclose(batch["block1"].activation[i], h, atol=1e-12)
        assert torch.allclose(batch["block1"].contribution[i], slow(name, h, g), atol=1e-11, rtol=0)


def test_gradients_that_vanish_are_not_blown_up() -> None:
    """Below 1e-8 the norm counts as 1e-8."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double().eval()
    model[0].weight.data = torch.eye(2, dtype=torch.float64)
    model[1].weight.data = torch.tensor([[3e-10, 0.0]], dtype=torch.float64)
    batch = contribute(
        model, torch.tensor([[2.0, 1.0]]), "0", method=ActNormGrad(), target=Logit(0)
    )
    assert batch["0"].contribution.tolist() == [[pytest.approx(2.0 * 3e-10 / 1e-8), 0.0]]


@pytest.mark.parametrize(
    ("units", "group"),
    [(Units("heads", 2), lambda t, f: f // 2), (Units("tokens"), lambda t, f: t)],
)
def test_grad_cam_averages_over_the_positions_of_its_units(units, group) -> None:  # type: ignore[no-untyped-def]
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).square().sum(1)

    model, x = Net().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    site = Site("a", units=units)
    batch = contribute(model, x, site, method=GradCAM(), target=Logit(0))
    plain = contribute(model, x, site, method=Gradient(), target=Logit(0))
    g, h = plain.by_site[0].contribution, plain.by_site[0].activation
    for i in range(2):
        for t in range(5):
            for f in range(4):
                same = [
                    float(g[i, tt, ff])
                    for tt in range(5)
                    for ff in range(4)
                    if group(tt, ff) == group(t, f)
                ]
                expected = float(h[i, t, f]) * sum(same) / len(same)
                assert float(batch.by_site[0].contribution[i, t, f]) == pytest.approx(expected)


def test_act_grad_at_the_input_equals_the_loop() -> None:
    model, images = small_resnet().double(), torch.randn(2, 1, 4, 5, dtype=torch.float64)
    batch = contribute(model, images, ":input", method=ActGrad(), target=Logit(1))
    for i in range(2):
        x = images[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(after(model, before(model, x))[0, 1], x)
        assert torch.allclose(batch[":input"].contribution[i], (x * g)[0].detach(), atol=1e-12)


def test_smooth_grad_equals_the_loop() -> None:
    """The class of the clean image, the same draws for all, scaled by each image's range."""
    model, images = small_resnet().double(), torch.randn(3, 1, 4, 5, dtype=torch.float64) * 3
    method = SmoothGrad(inner=Gradient(), n_samples=5, noise=0.4, seed=7)
    batch = contribute(model, images, "block1", method=method, target=Predicted())
    for i in range(3):
        x = images[i : i + 1]
        label = int(after(model, before(model, x)).argmax())
        sigma = 0.4 * float(x.max() - x.min())
        total = torch.zeros(4, 4, 5, dtype=torch.float64)
        for draw in range(5):
            generator = torch.Generator().manual_seed(7 * 1_000_003 + draw)
            noise = torch.randn(1, 1, 4, 5, generator=generator, dtype=torch.float64)
            total += point(model, x + sigma * noise, label)[1]
        assert torch.allclose(batch["block1"].contribution[i], total / 5, atol=1e-11, rtol=0)
        assert torch.allclose(batch["block1"].activation[i], point(model, x, label)[0], atol=1e-12)


def test_unit_ablation_equals_the_loop() -> None:
    """One sample, one unit at a time: the target before, less the target after."""
    model, images = small_resnet().double(), torch.randn(4, 1, 4, 5, dtype=torch.float64)
    blank = before(model, torch.full((1, 1, 4, 5), 0.3, dtype=torch.float64)).detach()
    for replacement in ("zero", "mean", "resample", "baseline"):
        method = UnitAblation(
            replacement=replacement, rows_per_pass=9, seed=3, baseline=Constant(0.3)
        )
        batch = contribute(model, images, "block1", method=method, target=Predicted())
        everywhere = [before(model, images[i : i + 1]).detach() for i in range(4)]
        for u in range(4):
            mean = sum(float(h[0, u].sum()) for h in everywhere) / (4 * 20)
            steps = torch.randint(
                1, 4, (4,), generator=torch.Generator().manual_seed(3 * 1_000_003 + u)
            )
            for i in range(4):
                h = everywhere[i].clone()
                out = after(model, h)
                label = int(out.argmax())
                other = everywhere[(i + int(steps[i])) % 4]
                for y in range(4):
                    for x in range(5):
                        h[0, u, y, x] = {
                            "zero": 0.0, "mean": mean, "resample": float(other[0, u, y, x]),
                            "baseline": float(blank[0, u, y, x]),
                        }[replacement]  # fmt: skip
                effect = float((out - after(model, h)).detach()[0, label])
                found = batch["block1"].contribution[i, u]
                assert float(found.sum()) == pytest.approx(effect, abs=1e-11)
                assert torch.allclose(found, torch.full_like(found, effect / 20), atol=1e-12)


@pytest.mark.parametrize(
    "units", [Units("heads", 2), Units("tokens"), Units("features", tokens=(1, None))]
)
def test_unit_ablation_replaces_whole_units_of_other_layouts(units: Units) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).square().sum(1)

    model, x = Net().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    effects = unit_effects(model, x, Site("a", units=units), Logit(0))
    h = model.a(x).detach()
    for u in range(units.count(h.shape)):
        changed = h.clone()
        if units.layout == "heads":
            changed[:, :, 2 * u : 2 * u + 2] = 0
        elif units.layout == "tokens":
            changed[:, u] = 0
        else:
            changed[:, 1:, u] = 0
        expected = [
            model.b(torch.tanh(value)).square().sum(1)[:, 0].detach() for value in (h, changed)
        ]
        assert torch.allclose(effects[:, u], expected[0] - expected[1], atol=1e-12)
