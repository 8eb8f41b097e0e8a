"""The retina's network as the rest of condec meets it: sites, contributions, layouts, controls."""

from typing import Any

import pytest
import torch
from torch import nn

from condec import contribute, find_sites
from condec.attribution import IntegratedGradients
from condec.attribution.targets import Sum
from condec.basis.errors import OptionError
from condec.retina.models.network import (
    OneHotReadout,
    RetinaLayout,
    RetinaNetwork,
    bn_cnn,
    nips_cnn,
)
from condec.store.random_weights import randomize

SITES = ["conv1", "relu1", "conv2", "relu2", "conv3"]
SMALL: dict[str, Any] = {"n_cells": 3, "image_shape": (4, 12, 12), "kernels": (5, 3, 3)}
VARIANTS: dict[str, dict[str, Any]] = {
    "one-hot": {},
    "grabbed": {"readout": "grabbed", "positions": ((1, 1), (2, 3), (0, 3)), "norm": "unit"},
    "linear": {"readout": "linear", "kernels": (5, 3), "stack": None, "norm": "none"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_at_the_sites_of_every_variant(variant: str) -> None:
    """Every path to a rate passes every site, so contributions add up to its change."""
    network = RetinaNetwork(RetinaLayout(**{**SMALL, **VARIANTS[variant]})).eval()
    # With statistics of normalisation that belong to its weights.
    network = randomize(network, inputs=torch.randn(16, 4, 12, 12))
    sites = find_sites(network, SITES)
    assert [site.name for site in sites] == SITES
    clips = 3 * torch.randn(2, 4, 12, 12)
    found = contribute(
        network, clips, sites, method=IntegratedGradients(steps=100), target=Sum((1,))
    )
    with torch.no_grad():
        change = (network(clips) - network(torch.zeros(1, 4, 12, 12)))[:, 1]
    assert change.abs().max() > 0.1
    for site, units in zip(SITES, (8, 8, 8, 8, 3), strict=True):
        contribution = found[site].contribution
        assert contribution.shape[:2] == (2, units)
        gap = (contribution.flatten(1).sum(1) - change).abs()
        assert bool((gap < 0.01 * contribution.abs().flatten(1).sum(1)).all())
    assert list(found.completeness()) == SITES


def test_published_networks() -> None:
    """Maps of 36 x 36 and 26 x 26; parameters counted by hand."""
    deep, nips = RetinaNetwork(bn_cnn(5)), RetinaNetwork(nips_cnn(5))
    assert deep.layout.maps == ((36, 36), (26, 26))
    assert nips.layout.maps == ((36, 36), (28, 28))
    assert [name for name, _ in nips.named_children()] == [
        "conv1", "noise1", "relu1", "conv2", "noise2", "relu2", "conv3", "readout", "rate",
    ]  # fmt: skip
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    convs = 8 * (40 * 225 + 1) + 8 * (8 * 121 + 1)
    norms = 2 * (8 * 36 * 36 + 8 * 26 * 26 + 5)
    assert count(deep) == convs + norms + 5 * 8 * 26 * 26
    assert count(nips) == 16 * (40 * 225 + 1) + 8 * (16 * 81 + 1) + 5 * (8 * 28 * 28 + 1)
    assert type(deep.norm3) is nn.BatchNorm1d
    stacked = RetinaNetwork(RetinaLayout(n_cells=5))
    assert len(stacked.conv1) == 7
    assert len(stacked.conv2) == 5
    assert deep.eval()(torch.zeros(1, 40, 50, 50)).shape == (1, 5)


def test_trained_by_gradients() -> None:
    """Every parameter of every variant is reached, and statistics move."""
    for change in VARIANTS.values():
        network = RetinaNetwork(RetinaLayout(**{**SMALL, **change}))
        before = {name: t.clone() for name, t in network.state_dict().items()}
        network(torch.randn(8, 4, 12, 12)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
        moved = {n for n, t in network.state_dict().items() if not torch.equal(t, before[n])}
        assert {n for n in before if n.endswith(("running_mean", "running_var"))} <= moved


def test_random_twin_draws_all_anew() -> None:
    network = RetinaNetwork(RetinaLayout(**SMALL)).eval()
    clips = torch.randn(8, 4, 12, 12)
    twin = randomize(network, inputs=clips)
    for name in ("conv1.0.weight", "readout.w", "norm1.running_mean"):
        assert not torch.equal(twin.state_dict()[name], network.state_dict()[name])
    assert torch.equal(twin.noise1.std, network.noise1.std)


def test_a_cell_is_a_mean_over_its_own_map() -> None:
    readout = OneHotReadout(2, 2, 3)
    assert torch.allclose(readout.places.sum(1), torch.ones(2))
    assert readout.places.min() == 0
    maps = torch.stack([torch.full((2, 3), 5.0), torch.full((2, 3), -1.0)])[None]
    torch.testing.assert_close(readout(maps), torch.tensor([[5.0, -1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "both"}, "norm must be one of channel, unit, none; got 'both'"),
        ({"readout": "mean"}, "readout must be one of one-hot, grabbed, linear; got 'mean'"),
        ({"rate": "relu"}, "rate must be one of softplus, exp; got 'relu'"),
        ({"kernels": (5, 3)}, "expected 3 kernels for 2 hidden convolutions and a one-hot readout"),
        ({"readout": "linear"}, "expected 2 kernels for 2 hidden .* a linear readout of 3 cells"),
        ({"stack": (3,)}, r"expected 2 stack for 2 hidden convolutions.*; got \(3,\)"),
        ({"stack_channels": (3,)}, "expected 2 stack_channels"),
        ({"n_cells": 0}, "n_cells must be at least 1; got 0"),
        ({"channels": (), "kernels": (3,), "stack": ()}, "channels must be at least 1"),
        ({"stack": (3, 5)}, r"stack must be between 2 and the kernel.*\(5, 3\); got \(3, 5\)"),
        ({"stack": (1, 3)}, "stack must be between 2 and the kernel"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1; got 1.0"),
        ({"noise": -0.1}, "noise must be at least 0 and finite; got -0.1"),
        ({"kernels": (5, 5, 5)}, r"kernels \(5, 5, 5\) are too large for frames of 12 x 12"),
        ({"positions": ((0, 0),)}, "expected 0 positions for 2 .* a one-hot readout of 3 cells"),
        (
            {"readout": "grabbed", "positions": ((0, 0),)},
            r"expected 3 positions for .* a grabbed readout of 3 cells; got \(\(0, 0\),\)",
        ),
        (
            {"readout": "grabbed", "positions": ((0, 0), (4, 1), (-5, 0))},
            r"positions .*\(4, 1\), \(-5, 0\)\) are outside the last map of 4 x 4",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_layouts_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RetinaLayout(**{**SMALL, **change})
