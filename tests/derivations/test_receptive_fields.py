"""Instantaneous receptive fields again: finite differences, and power iteration by loops.

Melander et al. 2026, Figure 8: gradient of one cell's rate in the clip, first singular pair.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from condec.data import as_inputs
from condec.retina.fields import receptive_fields

HISTORY, SIZE = 3, 4


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(HISTORY, 2, 3)
        self.read = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(self.read(self.conv(x).tanh().flatten(1)))


def gradient(model: nn.Module, clip: Tensor, cell: int) -> list[list[float]]:
    """[history, pixel] by central differences."""
    rows = []
    for frame in range(HISTORY):
        row = []
        for pixel in range(SIZE * SIZE):
            rates = []
            for step in (1e-5, -1e-5):
                moved = clip.clone()
                moved[frame, pixel // SIZE, pixel % SIZE] += step
                with torch.no_grad():
                    rates.append(float(model(moved[None])[0, cell]))
            row.append((rates[0] - rates[1]) / 2e-5)
        rows.append(row)
    return rows


def first_pair(a: list[list[float]]) -> tuple[float, list[float], list[float]]:
    """Largest singular value and its vectors, by power iteration."""
    left = [1.0 + 0.1 * i for i in range(len(a))]
    for _ in range(2000):
        right = [sum(left[i] * a[i][j] for i in range(len(a))) for j in range(len(a[0]))]
        left = [sum(a[i][j] * right[j] for j in range(len(a[0]))) for i in range(len(a))]
        size = math.sqrt(sum(v * v for v in left))
        left = [v / size for v in left]
    right = [sum(left[i] * a[i][j] for i in range(len(a))) for j in range(len(a[0]))]
    value = math.sqrt(sum(v * v for v in right))
    if max(left, key=abs) < 0:
        left, right = [-v for v in left], [-v for v in right]
    return value, left, [v / value for v in right]


@pytest.mark.parametrize("cell", [0, 1])
def test_fields(cell: int) -> None:
    model = Network().double().eval()
    clips = torch.randn(2, HISTORY, SIZE, SIZE, dtype=torch.float64)
    got = receptive_fields(model, as_inputs(clips), crop=None)
    for sample in range(2):
        a = gradient(model, clips[sample], cell)
        value, course, picture = first_pair(a)
        total = sum(v * v for row in a for v in row)
        assert float(got.strength[sample, cell]) == pytest.approx(value, rel=1e-5)
        assert got.temporal[sample, cell].tolist() == pytest.approx(course, abs=1e-5)
        assert got.spatial[sample, cell].flatten().tolist() == pytest.approx(picture, abs=1e-5)
        assert float(got.separability[sample, cell]) == pytest.approx(value**2 / total, rel=1e-5)
        largest = max(picture, key=abs)
        assert float(got.polarity[sample, cell]) == math.copysign(1, largest)


def test_window_holds_the_most_energy() -> None:
    model = Network().double().eval()
    clips = torch.randn(2, HISTORY, SIZE, SIZE, dtype=torch.float64)
    got = receptive_fields(model, as_inputs(clips), crop=2)
    for cell in range(2):
        fields = [gradient(model, clip, cell) for clip in clips]
        energy = [
            [
                sum(f[h][y * SIZE + x] ** 2 for f in fields for h in range(HISTORY))
                for x in range(SIZE)
            ]
            for y in range(SIZE)
        ]
        sums = {
            (y, x): sum(energy[y + i][x + j] for i in range(2) for j in range(2))
            for y in range(SIZE - 1)
            for x in range(SIZE - 1)
        }
        assert tuple(got.corners[cell].tolist()) == max(sums, key=lambda corner: sums[corner])
