"""Small networks with known answers: fast, deterministic, in evaluation mode."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """conv-relu-conv plus skip, then relu; in place or not, with the same weights."""

    def __init__(self, channels: int, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.ReLU(inplace=inplace)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """Return an activation of shape [sample, channel, y, x]."""
        y: Tensor = self.conv2(self.relu(self.conv1(x)))
        if self.inplace:
            y += x
        else:
            y = y + x
        after: Tensor = self.out(y)
        return after


class SmallResNet(nn.Module):
    """Stem, two residual blocks, pooling, linear read-out; input [sample, 1, y, x]."""

    def __init__(self, channels: int = 4, labels: int = 3, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.block1 = ResidualBlock(channels, inplace=inplace)
        self.block2 = ResidualBlock(channels, inplace=inplace)
        self.head = nn.Linear(channels, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape [sample, label]."""
        x = self.block2(self.block1(self.relu(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def small_resnet(*, seed: int = 0, inplace: bool = False, labels: int = 3) -> SmallResNet:
    """Make a `SmallResNet` with fixed random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallResNet(inplace=inplace, labels=labels).eval()


def small_mlp(*, seed: int = 0, units: int = 6, inputs: int = 5, labels: int = 3) -> nn.Sequential:
    """Make linear-tanh-linear-tanh-linear with fixed random weights; input [sample, unit]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(),
            nn.Linear(units, labels),
        ).eval()  # fmt: skip


def routed_mlp(
    route: Sequence[int] = (1, 2, 0), *, units: int = 2, gains: Sequence[float] | None = None
) -> nn.Sequential:
    """Make linear-tanh-linear-tanh-linear of pathways that never mix until the one output.

    Input and both hidden layers hold `units` units of every pathway, one pathway after the other.
    Pathway p of the input feeds pathway p of the first hidden layer ("1"), which feeds only
    pathway ``route[p]`` of the second ("3"), of which the output takes `gains` times the sum. All
    weights are positive, so what flows from p to ``route[p]`` is what both contribute, and nothing
    flows anywhere else.
    """
    n, width = len(route), len(route) * units
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False),
            nn.Tanh(), nn.Linear(width, 1, bias=False),
        ).eval()  # fmt: skip
    feeds = [torch.eye(n), torch.eye(n)[:, list(route)], torch.tensor([list(gains or [1.0] * n)])]
    for weight, blocks in zip(network.parameters(), feeds, strict=True):
        block = torch.ones(units if len(weight) > 1 else 1, units)
        weight.data.abs_().mul_(torch.kron(blocks, block))
    return network
