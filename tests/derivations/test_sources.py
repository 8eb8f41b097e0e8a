"""Sources of receptive fields again, by finite differences and loops.

The field of a part: how the rate moves with the clip where only the part's share of each unit
follows it, the rest of the unit and all that passes the site being held where they are.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from condec.data import as_inputs
from condec.retina import PartWeights, field_sources, receptive_fields

HISTORY, SIZE, N, N_UNITS, N_PARTS = 2, 3, 4, 3, 2
STEP = 1e-5


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.unit = nn.Conv2d(HISTORY, N_UNITS, 2)
        self.read = nn.Linear(N_UNITS * 4, 2)
        self.past = nn.Linear(HISTORY * SIZE * SIZE, 2)

    def after(self, h: Tensor, clip: Tensor) -> Tensor:
        shown = self.read(h.tanh().flatten(1)) * self.past(clip.flatten(1)).sigmoid()
        return nn.functional.softplus(shown)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.unit(x), x)


def rate(
    model: Network, clip: Tensor, moved: Tensor, shares: list[float] | None, cell: int
) -> float:
    """With the moved clip reaching the rate through shares of units only; None: past the site."""
    with torch.no_grad():
        still, other = model.unit(clip[None]), model.unit(moved[None])
        if shares is None:
            return float(model.after(still, moved[None])[0, cell])
        h = still.clone()
        for u in range(N_UNITS):
            h[0, u] = still[0, u] + shares[u] * (other[0, u] - still[0, u])
        return float(model.after(h, clip[None])[0, cell])


def field(model: Network, clip: Tensor, shares: list[float] | None, cell: int) -> list[float]:
    found = []
    for entry in range(clip.numel()):
        ends = []
        for step in (STEP, -STEP):
            moved = clip.clone()
            moved.view(-1)[entry] += step
            ends.append(rate(model, clip, moved, shares, cell))
        found.append((ends[0] - ends[1]) / (2 * STEP))
    return found


@pytest.mark.parametrize("cell", [0, 1])
def test_shares_and_amounts(cell: int) -> None:
    model = Network().double().eval()
    gen = torch.Generator().manual_seed(5)
    clips = torch.randn(N, HISTORY, SIZE, SIZE, generator=gen, dtype=torch.float64)
    first = torch.rand(N, N_UNITS, generator=gen, dtype=torch.float64)
    weights = PartWeights(("a", "b"), torch.stack((first, 1 - first), 1))
    fields = receptive_fields(model, as_inputs(clips), crop=None)
    got = field_sources(model, as_inputs(clips), "unit", fields, weights)
    parts = [
        [field(model, clips[t], weights.values[t, p].tolist(), cell) for t in range(N)]
        for p in range(N_PARTS)
    ]
    parts.append([field(model, clips[t], None, cell) for t in range(N)])
    pixels = range(clips[0].numel())
    whole = [[sum(part[t][i] for part in parts) for i in pixels] for t in range(N)]
    mean = [sum(whole[t][i] for t in range(N)) / N for i in pixels]
    variance = sum((whole[t][i] - mean[i]) ** 2 for t in range(N) for i in pixels)
    for p, part in enumerate(parts):
        own = [sum(part[t][i] for t in range(N)) / N for i in pixels]
        covariance = sum(
            (part[t][i] - own[i]) * (whole[t][i] - mean[i]) for t in range(N) for i in pixels
        )
        assert float(got.share[cell, p]) == pytest.approx(covariance / variance, abs=1e-6)
        for t in range(N):
            length = math.sqrt(sum(v * v for v in whole[t]))
            product = sum(part[t][i] * whole[t][i] for i in pixels) / length
            sign = float(fields.polarity[t, cell])
            assert float(got.amount[t, cell, p]) == pytest.approx(sign * product, abs=1e-6)
