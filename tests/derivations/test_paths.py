"""Rules, paths, baselines of integrated gradients: plain loops, float64, one sample at a time."""

import itertools

import numpy
import pytest
import torch
from torch import Tensor, nn

from condec.attribution import Blur, Constant, IntegratedGradients, Samples
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.testing.models import small_mlp, small_resnet

POWER = 1.5  # of the pilots


def parts(name: str, model: nn.Module, x: Tensor):  # type: ignore[no-untyped-def]
    """The network below and above a site, by hand; above keeps what bypasses the site."""

    def inner(b: nn.Module, h: Tensor) -> Tensor:
        return torch.relu(b.conv1(h))

    def block(b: nn.Module, h: Tensor) -> Tensor:
        return torch.relu(b.conv2(inner(b, h)) + h)

    stem = torch.relu(model.stem(x)).detach()
    head = lambda h: model.head(h.mean((2, 3)))  # noqa: E731
    match name:
        case "block1":
            return (
                lambda x: block(model.block1, torch.relu(model.stem(x))),
                lambda h: head(block(model.block2, h)),
            )
        case "block1.conv1":  # bypassed by the skip connection
            return (
                lambda x: model.block1.conv1(torch.relu(model.stem(x))),
                lambda h: head(
                    block(model.block2, torch.relu(model.block1.conv2(torch.relu(h)) + stem))
                ),
            )
    raise AssertionError(name)


def gradient(function, at: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    at = at.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(function(at)[0, 1], at)
    return g


def slow_input_path(model: nn.Module, name: str, x: Tensor, x0: Tensor, steps: int):  # type: ignore[no-untyped-def]
    points = []
    for k in range(steps + 1):
        at = x0 + (x - x0) * (k / steps)
        below, above = parts(name, model, at)
        h = below(at)
        points.append((h.detach(), gradient(above, h)))
    total = torch.zeros_like(points[0][0])
    for (h0, g0), (h1, g1) in itertools.pairwise(points):
        total = total + (h1 - h0) * (g0 + g1) / 2
    return total


@pytest.mark.parametrize("site", ["block1", "block1.conv1"])
def test_input_path_equals_the_loop(site: str) -> None:
    model, x = small_resnet().double(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    method = IntegratedGradients(steps=5, baseline=Constant(0.3))
    batch = contribute(model, x, site, method=method, target=Logit(1))
    for i in range(2):
        start = torch.full_like(x[i : i + 1], 0.3)
        slow = slow_input_path(model, site, x[i : i + 1], start, 5)
        torch.testing.assert_close(batch[site].contribution[i], slow.detach()[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("site", ["block1", "block1.conv1"])
def test_layer_path_equals_the_loop(site: str) -> None:
    model, x = small_resnet().double(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    method = IntegratedGradients(steps=5, path="layer")
    batch = contribute(model, x, site, method=method, target=Logit(1))
    for i in range(2):
        below, above = parts(site, model, x[i : i + 1])
        h1, h0 = below(x[i : i + 1]).detach(), below(torch.zeros_like(x[i : i + 1])).detach()
        share = [0.5, 1, 1, 1, 1, 0.5]
        mean = sum(share[k] / 5 * gradient(above, h0 + k / 5 * (h1 - h0)) for k in range(6))
        torch.testing.assert_close(
            batch[site].contribution[i], ((h1 - h0) * mean)[0], atol=1e-9, rtol=0
        )


def test_layer_path_is_what_captum_calls_layer_integrated_gradients() -> None:
    captum = pytest.importorskip("captum.attr")
    model, x = small_mlp().double(), torch.randn(3, 5, dtype=torch.float64)
    ours = contribute(
        model, x, "1", method=IntegratedGradients(steps=64, path="layer"), target=Logit(1)
    )["1"].contribution  # fmt: skip
    theirs = captum.LayerIntegratedGradients(model, model[1]).attribute(
        x, target=1, n_steps=65, method="riemann_trapezoid"
    )
    # The weights of Captum's trapezoid add up to 64 / 65.
    torch.testing.assert_close(ours, theirs.detach() * 65 / 64, atol=1e-9, rtol=0)


def test_expected_gradients_are_the_mean_over_baselines() -> None:
    model, x = small_resnet().double(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    starts = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    method = IntegratedGradients(steps=4, baseline=Samples(n_samples=3, values=starts))
    batch = contribute(model, x, "block1", method=method, target=Logit(1))
    for i in range(2):
        slow = sum(
            slow_input_path(model, "block1", x[i : i + 1], start[None], 4) for start in starts
        )
        torch.testing.assert_close(
            batch["block1"].contribution[i], slow.detach()[0] / 3, atol=1e-9, rtol=0
        )
    at_start = sum(model(start[None])[0, 1] for start in starts) / 3
    torch.testing.assert_close(batch.target_baseline, at_start.detach().expand(2))


def test_blur_equals_the_loop() -> None:
    images = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    blurred = Blur(0.8).make(images)
    radius = 2  # 3 sigma, rounded
    weights = [numpy.exp(-0.5 * (d / 0.8) ** 2) for d in range(-radius, radius + 1)]
    for c in range(2):
        for row in range(5):
            for column in range(4):
                total = 0.0
                for dy in range(-radius, radius + 1):
                    for dx in range(-radius, radius + 1):
                        y = min(max(row + dy, 0), 4)
                        x = min(max(column + dx, 0), 3)
                        share = weights[dy + radius] * weights[dx + radius] / sum(weights) ** 2
                        total += share * float(images[0, c, y, x])
                assert float(blurred[0, c, row, column]) == pytest.approx(total, abs=1e-12)


def slow_fitted(model: nn.Module, names, x: Tensor, steps: int):  # type: ignore[no-untyped-def]
    """Thirds; the two worst intervals halved at a time; more points where needed; one sample."""

    def at(a: float) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name in names:
            below, above = parts(name, model, a * x)
            h = below(a * x)
            found[name] = h.detach(), gradient(above, h)
        return found

    n = max(1, min(7, 7 * steps // 10))
    n_first = min(3, n)
    where = [(k / n_first) ** POWER for k in range(n_first + 1)]
    points = {a: at(a) for a in where}
    sizes = {}
    for name in names:
        sizes[name] = 0.0
        for a, b in itertools.pairwise(where):
            (h0, g0), (h1, g1) = points[a][name], points[b][name]
            sizes[name] += float(abs((h1 - h0) * (g1 + g0) / 2).sum())

    def need(a: float, b: float) -> float:
        total = 0.0
        for name in names:
            (h0, g0), (h1, g1) = points[a][name], points[b][name]
            total += float(abs((h1 - h0) * (g1 - g0)).sum()) / sizes[name]
        return total

    while len(where) < n + 1:
        worst = sorted(itertools.pairwise(where), key=lambda ends: -need(*ends))
        for a, b in worst[: min(2, n + 1 - len(where))]:
            where.append(((a**0.8 + b**0.8) / 2) ** 1.25)
            points[where[-1]] = at(where[-1])
        where.sort()
    needs = [need(a, b) for a, b in itertools.pairwise(where)]
    counts = [1] * n
    while sum(counts) < steps:
        gains = [needs[k] / counts[k] - needs[k] / (counts[k] + 1) for k in range(n)]
        counts[gains.index(max(gains))] += 1
    every = [0.0]
    for k, (a, b) in enumerate(itertools.pairwise(where)):
        every += [a + (b - a) * (i + 1) / counts[k] for i in range(counts[k])]
    assert len(every) == steps + 1
    return along(names, [at(a) for a in every])


def along(names, points):  # type: ignore[no-untyped-def]
    totals = {}
    for name in names:
        hs, gs = [p[name][0] for p in points], [p[name][1] for p in points]
        total = torch.zeros_like(hs[0])
        for k in range(1, len(points)):
            total = total + (hs[k] - hs[k - 1]) * (gs[k] + gs[k - 1]) / 2
        for k in range(1, len(points) - 1):
            dh, dg, eh, eg = (
                hs[k] - hs[k - 1],
                gs[k] - gs[k - 1],
                hs[k + 1] - hs[k],
                gs[k + 1] - gs[k],
            )
            total = total + (dg * eh - dh * eg) / 12
        totals[name] = total
    return totals


@pytest.mark.parametrize("steps", [2, 3, 5, 6, 8, 10, 23])
def test_fitted_points_equal_the_loop(steps: int) -> None:
    model, x = small_resnet().double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    sites = ("block1", "block1.conv1")
    method = IntegratedGradients(steps=steps, spacing="fitted")
    batch = contribute(model, x, sites, method=method, target=Logit(1))
    for i in range(3):
        slow = slow_fitted(model, sites, x[i : i + 1], steps)
        for site in sites:
            torch.testing.assert_close(
                batch[site].contribution[i], slow[site][0], atol=1e-9, rtol=0
            )


@pytest.mark.parametrize("power", [1, 2, 2.5])
def test_powers_equal_the_loop(power: float) -> None:
    model, x = small_resnet().double(), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    method = IntegratedGradients(steps=6, spacing=f"power:{power}")
    batch = contribute(model, x, "block1", method=method, target=Logit(1))
    for i in range(2):
        points = []
        for k in range(7):
            below, above = parts("block1", model, x[i : i + 1] * (k / 6) ** power)
            h = below(x[i : i + 1] * (k / 6) ** power)
            points.append({"block1": (h.detach(), gradient(above, h))})
        slow = along(("block1",), points)["block1"]
        torch.testing.assert_close(batch["block1"].contribution[i], slow[0], atol=1e-9, rtol=0)
