"""`mode_map` against the paper's loop: one backward pass for every channel and position."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condec.attribution.targets import Label, Logit, TopK
from condec.explanation import mode_map


class Convolutional(nn.Module):
    """Everything that has gone wrong in such code: in-place ReLU and sum, batch norm, max-pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.out = nn.ReLU(inplace=True)
        self.later = nn.Conv2d(4, 5, 3, stride=2)
        self.head = nn.Linear(5, 3)
        for norm in (self.norm, self.norm2):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def front(self, x: Tensor) -> Tensor:
        skip = self.pool(self.relu(self.norm(self.conv(x))))
        return self.norm2(self.branch(skip)).add_(skip)

    def back(self, h: Tensor) -> Tensor:
        return self.head(F.relu(self.later(h)).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.out(self.front(x)))


class Attentive(nn.Module):
    """A vision transformer in miniature, with the fused attention of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 6, 2, stride=2)
        self.qkv = nn.Linear(6, 18)
        self.block = nn.LayerNorm(6)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.qkv2 = nn.Linear(6, 18)
        self.head = nn.Linear(6, 3)

    def attend(self, t: Tensor, qkv: nn.Linear) -> Tensor:
        q, k, v = qkv(t).view(len(t), -1, 3, 2, 3).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return t + mixed.transpose(1, 2).reshape(t.shape)

    def front(self, x: Tensor) -> Tensor:
        return self.attend(self.patch(x).flatten(2).transpose(1, 2), self.qkv)

    def back(self, h: Tensor) -> Tensor:
        return self.head(self.attend(h + self.mlp(h), self.qkv2).mean(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.block(self.front(x)))


def loop(front, back, score, x: Tensor, axis: int, units: list[int]) -> dict[str, Tensor]:
    """Melander et al. 2026, figure 7, by the letter, one image at a time."""
    out = {name: torch.zeros_like(x) for name in ("total", "positive", "negative", "sensitivity")}
    for b in range(len(x)):
        image = x[b : b + 1].clone().requires_grad_()
        h = front(image)
        later = h.detach().clone().requires_grad_()
        (j_y,) = torch.autograd.grad(score(back(later), b), later)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in h.shape[1:])).tolist():
            if place[axis - 1] not in units:
                continue
            (j_h,) = torch.autograd.grad(h[(0, *place)], image, retain_graph=True)
            a = (j_y[(0, *place)] * j_h)[0]
            signed = 0.0
            for x_i, a_i in zip(x[b].flatten().tolist(), a.flatten().tolist(), strict=True):
                signed += x_i * a_i
            out["sensitivity"][b] += a
            out["total"][b] += x[b] * a
            out["positive" if signed > 0 else "negative"][b] += x[b] * a
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_equals_one_backward_pass_per_unit_and_position(kind, dtype, tolerance):
    network = {"cnn": Convolutional, "vit": Attentive}[kind]().to(dtype).eval()
    x = torch.randn(2, 2, 8, 8, dtype=dtype)
    if kind == "cnn":
        site, axis = "out", 1
        slow = loop(
            lambda i: F.relu(network.front(i)), network.back, lambda y, _: y[0, 2], x, axis, [0, 3]
        )
    else:
        site, axis = "block", 2
        slow = loop(
            lambda i: network.block(network.front(i)), network.back,
            lambda y, _: y[0, 2], x, axis, [0, 3],
        )  # fmt: skip
    fast = mode_map(network, x, site, [0, 3], Logit(2))
    assert slow["positive"].abs().max() > 1e-3
    assert slow["negative"].abs().max() > 1e-3
    for name, expected in slow.items():
        torch.testing.assert_close(getattr(fast, name), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("target", [Label(probability=True), Label(), TopK(k=2), TopK()])
def test_equals_the_loop_for_every_target(target):
    network = Convolutional().double().eval()
    x, labels = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([2, 0, 1])

    def score(y: Tensor, b: int) -> Tensor:
        if isinstance(target, TopK):
            return torch.sort(y[0], descending=True).values[: target.k].sum()
        return (y[0].exp() / y[0].exp().sum() if target.probability else y[0])[labels[b]]

    slow = loop(lambda i: F.relu(network.front(i)), network.back, score, x, 1, [1, 2])
    fast = mode_map(network, x, "out", [1, 2], target, labels)
    for name, expected in slow.items():
        torch.testing.assert_close(getattr(fast, name), expected, rtol=0, atol=1e-9)


def test_sensitivity_equals_finite_differences():
    """Only the chosen units move; everything else is held at its value at x."""
    network = Convolutional().double().eval()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        at_x = F.relu(network.front(x))

        def through(images: Tensor) -> float:
            moved = at_x.clone()
            moved[:, 1] = F.relu(network.front(images))[:, 1]
            return network.back(moved)[0, 0].item()

        slope = torch.zeros_like(x)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[1:])).tolist():
            step = torch.zeros_like(x)
            step[(0, *place)] = 1e-6
            slope[(0, *place)] = (through(x + step) - through(x - step)) / 2e-6
    found = mode_map(network, x, "out", [1], Logit(0)).sensitivity
    torch.testing.assert_close(found, slope, rtol=0, atol=1e-7)
