"""The network of the retina by loops in float64: stacked kernels, normalisation, readouts."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from condec.retina.models.network import (
    AbsBatchNorm,
    GaussianNoise,
    RetinaLayout,
    RetinaNetwork,
    StackedConv2d,
)


def composed(inner: Tensor, outer: Tensor) -> Tensor:
    """Kernel of two convolutions in turn: every entry of the outer one places the inner one."""
    k = inner.shape[-1]
    side = k + outer.shape[-1] - 1
    whole = torch.zeros(outer.shape[0], inner.shape[1], side, side, dtype=inner.dtype)
    for o in range(outer.shape[0]):
        for m in range(outer.shape[1]):
            for r in range(outer.shape[2]):
                for c in range(outer.shape[3]):
                    whole[o, :, r : r + k, c : c + k] += outer[o, m, r, c] * inner[m]
    return whole


def correlate(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolution layer on one clip [channel, y, x], place by place."""
    k = weight.shape[-1]
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    out = torch.zeros(len(weight), height, width, dtype=x.dtype)
    for o in range(len(weight)):
        for r in range(height):
            for c in range(width):
                out[o, r, c] = (weight[o] * x[:, r : r + k, c : c + k]).sum()
    return out if bias is None else out + bias[:, None, None]


@pytest.mark.parametrize(
    ("kernel", "side", "between", "sides"),
    [(7, 3, None, [3, 3, 3]), (8, 3, 5, [3, 3, 3, 2]), (5, 5, None, [5]), (6, 4, 2, [4, 3])],
)
def test_one_kernel_is_the_composition(kernel, side, between, sides):
    stacked = StackedConv2d(4, 3, kernel, side, between=between).double()
    assert [part.kernel_size[0] for part in stacked] == sides
    with torch.no_grad():
        weight = stacked[0].weight
        for part in list(stacked)[1:]:
            weight = composed(weight, part.weight)
    assert weight.shape[2:] == (kernel, kernel)
    x = torch.randn(2, 4, 12, 11, dtype=torch.float64)
    one = torch.nn.functional.conv2d(x, weight, stacked[-1].bias)
    torch.testing.assert_close(stacked(x), one, rtol=0, atol=1e-12)


def random_network(layout: RetinaLayout) -> RetinaNetwork:
    """In float64, with every weight, sign and statistic drawn."""
    network = RetinaNetwork(layout).double().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                draw = torch.rand_like if name.endswith(("var", "std", ".w")) else torch.randn_like
                tensor.copy_(draw(tensor) * 0.5 + (0.5 if draw is torch.rand_like else 0.0))
    return network


def slow(network: RetinaNetwork, clip: Tensor) -> Tensor:
    """Rates of one clip, from the definitions."""
    layout, state, x = network.layout, network.state_dict(), clip

    def normalised(values: Tensor, name: str, per_unit: bool) -> Tensor:
        out = torch.empty_like(values)
        for place in product(*(range(n) for n in values.shape)):
            c, r, col = (*place, 0, 0)[:3]
            index = (c * values.shape[1] + r) * values.shape[2] + col if per_unit else c
            mean, var, w, b = (
                state[f"{name}.{leaf}"][index]
                for leaf in ("running_mean", "running_var", "weight", "bias")
            )
            w = abs(w) if layout.absolute else w
            out[place] = (values[place] - mean) / math.sqrt(var + 1e-3) * w + b
        return out

    for number in (1, 2):
        name = f"conv{number}"
        parts = [name] if layout.stack is None else sorted(
            {key.rpartition(".")[0] for key in state if key.startswith(name)}
        )  # fmt: skip
        for part in parts:
            x = correlate(x, state[f"{part}.weight"], state.get(f"{part}.bias"))
        if layout.norm != "none":
            unit = layout.norm == "unit"
            x = normalised(x, f"norm{number}" + (".units" if unit else ""), unit)
        x = x.clamp(min=0)
    if layout.readout == "linear":
        weight, bias = state["conv3.weight"], state.get("conv3.bias")
        x = torch.stack([(w * x).sum() for w in weight]) + (0 if bias is None else bias)
    else:
        x = correlate(x, state["conv3.weight"], state.get("conv3.bias"))
    if layout.readout == "grabbed":
        x = torch.stack([x[n, r, c] for n, (r, c) in enumerate(layout.positions)])
    if layout.last_norm:
        x = normalised(x, "norm3", per_unit=False)
    x = torch.log1p(x.exp()) if layout.rate == "softplus" else x.exp()
    if layout.readout == "one-hot":
        rates = []
        for cell, w in enumerate(state["readout.w"]):
            p = (w - w.min()) / (w - w.min()).sum()
            rates.append((p * x[cell].reshape(-1)).sum())
        x = torch.stack(rates)
    return x.exp() if layout.exponential else x


SMALL = {
    "n_cells": 2, "image_shape": (3, 10, 9), "channels": (2, 3), "kernels": (4, 3, 2),
    "stack": (2, 3),
}  # fmt: skip
PLACES = ((2, 1), (-1, 0))
VARIANTS = {
    "one-hot": {},
    "one-hot, unit": {"norm": "unit", "exponential": True},
    "grabbed": {"readout": "grabbed", "positions": PLACES, "stack": None, "rate": "exp"},
    "grabbed, unit": {"readout": "grabbed", "positions": PLACES, "norm": "unit", "bias": False},
    "linear": {"readout": "linear", "kernels": (4, 3), "absolute": False, "stack_channels": (4, 2)},
    "linear, unit": {
        "readout": "linear", "kernels": (4, 3), "norm": "unit", "absolute": False,
        "last_bias": False, "stack": None,
    },
    "bare": {"norm": "none", "last_norm": False, "readout": "linear", "kernels": (4, 3)},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_are_those_of_the_definitions(variant):
    network = random_network(RetinaLayout(**{**SMALL, **VARIANTS[variant]}))
    clips = torch.randn(2, 3, 10, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([slow(network, clip) for clip in clips])
        torch.testing.assert_close(network(clips), expected, rtol=1e-12, atol=1e-12)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("momentum", [0.25, None])
def test_normalisation_learns_as_torch_does_where_no_sign_is_negative(momentum):
    ours = AbsBatchNorm(3, 1e-3, momentum).double()
    theirs = torch.nn.BatchNorm2d(3, 1e-3, momentum).double()
    with torch.no_grad():
        weight = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)
        ours.weight.copy_(weight)
        theirs.weight.copy_(weight.abs())
    for _ in range(3):
        x = torch.randn(4, 3, 2, 2, dtype=torch.float64) + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    # d|w| = sign(w) dw
    for norm in (ours, theirs):
        norm(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad * weight.sign())


def test_noise_in_training_only():
    noise = GaussianNoise(0.5)
    x = torch.zeros(20_000)
    assert torch.equal(noise.eval()(x), x)
    noisy = noise.train()(x)
    assert noisy.std().item() == pytest.approx(0.5, rel=0.03)
    assert noisy.mean().item() == pytest.approx(0.0, abs=0.02)
