"""What is affine in the input is not computed at every point, and nothing comes out otherwise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from condec import IntegratedGradients, contribute
from condec.attribution import affine, engine, make_setup, path
from condec.attribution.baselines import Blur
from condec.attribution.targets import Logit

STEPS = 7


class Skip(nn.Module):
    """A convolution that sees a crop of the input, and a way beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.gate = nn.Linear(2 * 8 * 8, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x.flatten(1)))
        return self.head(self.conv(x[:, :, 1:-1, 1:-1]).relu().mean((2, 3)) * gate)


class InPlace(nn.Module):
    """The input is changed in place before the convolution sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        return self.head(self.conv(x.square_()).relu().mean((2, 3)))


class Switching(nn.Module):
    """Which part of the input is seen depends on the input; a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 5), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :1] if float(x.detach().abs().max()) > 1.0 else x[:, 1:]
        return self.head(self.conv(part).relu().mean((2, 3)))


class Rearranged(nn.Module):
    """A linear layer whose rows are no samples: another axis first, samples folded, or chosen."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.linear, self.head = way, nn.Linear(16, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = x.view(n, 8, 16)
        if self.way == "axis":
            return self.head(self.linear(x.transpose(0, 1)).tanh().mean(0))
        if self.way == "folded":
            return self.head(self.linear(x.view(-1, 16)).tanh().view(n, 8, 3).mean(1))
        if self.way == "chosen":
            return self.head(self.linear(x[::2]).tanh().mean(1)).repeat(2, 1)[:n]
        return self.head(self.linear(x.view(n, 16, 8).transpose(1, 2)).tanh().mean(1))


class Own(nn.Conv2d):
    """Not affine, though its class inherits from one that is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


def stacked() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Dropout(0.5),
        nn.Conv2d(5, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 2), nn.ReLU(), *head(6),
    )  # fmt: skip


def twice() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(conv, conv, nn.Tanh(), *head(2))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean = torch.rand(module.num_features).double()
            module.running_var = torch.rand(module.num_features).double() + 0.5
    return model


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


CASES = {
    "stacked": (stacked, ["4", "5", "7"], {"0", "1", "4"}),
    "first site inside": (stacked, ["1", "7"], {"0", "1"}),
    "input as a site": (stacked, [":input", "4"], set()),
    "skip": (Skip, ["conv", "head:input"], {"conv", "gate"}),
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.ReLU(), nn.Linear(6, 4)),
        ["1", "2"],
        {"1"},
    ),
    "space axes swapped": (lambda: Rearranged("space"), ["linear"], {"linear"}),
    "another axis first": (lambda: Rearranged("axis"), ["head:input"], set()),
    "samples folded": (lambda: Rearranged("folded"), ["head:input"], set()),
    "relu first": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 3), *head(3)), ["1"], set()),
    "in place": (InPlace, ["conv"], set()),
    "relu in place after": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3), *head(3)
        ),
        ["2"],
        {"0"},
    ),
    "own class": (lambda: nn.Sequential(Own(2, 3, 3), *head(3)), ["0"], set()),
    "batch statistics": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(2, track_running_stats=False), nn.Conv2d(2, 3, 3), *head(3)
        ),
        ["1"],
        set(),
    ),
    "switching": (Switching, ["conv"], {"conv"}),
}


def both_ways(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, sites: list[str], method: IntegratedGradients
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    def of() -> dict[str, Tensor]:
        # Also for models that a proof would refuse: one of the cases has statistics of the batch.
        batch = contribute(model, images(), sites, method=method, target=Logit(1), prove=False)
        return {part.site.key: part.contribution for part in batch.by_site}

    short = of()
    with monkeypatch.context() as patched:
        patched.setattr(affine, "_is_affine_kind", lambda _: False)
        return short, of()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "options",
    [{}, {"steps": "auto"}],
    ids=str,
)
def test_contributions_are_those_of_the_plain_path(
    case: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, sites, _ = CASES[case]
    method = IntegratedGradients(**({"steps": STEPS, "tolerance": 0.1} | options))  # type: ignore[arg-type]
    short, plain = both_ways(monkeypatch, made(make), sites, method)
    for key, expected in plain.items():
        torch.testing.assert_close(short[key], expected, rtol=1e-10, atol=1e-12)


def test_baselines_of_their_own_take_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    method = IntegratedGradients(steps=3, baseline=Blur(sigma=1.0))
    short, plain = both_ways(monkeypatch, made(stacked), ["4"], method)
    torch.testing.assert_close(short["4"], plain["4"], rtol=1e-10, atol=1e-12)


def test_a_module_that_is_called_twice_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(twice)
    with affine.watched(model, images()) as calls:
        model(x := images())
    assert not calls
    with affine.watched(model, x) as calls:
        model(x)
    assert not calls
    short, plain = both_ways(monkeypatch, model, ["0#1"], IntegratedGradients(steps=STEPS))
    torch.testing.assert_close(short["0#1"], plain["0#1"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_affine_is_answered(case: str) -> None:
    make, sites, expected = CASES[case]
    model = made(make)
    setup = make_setup(model, x := images(), sites, Logit(1))
    with affine.watched(model, x) as calls:
        engine.run_point(setup, x)
    assert set(calls) == expected


@pytest.mark.parametrize("way", ["axis", "folded", "chosen"])
@pytest.mark.parametrize("n_samples", [1, 2, 8])
def test_rows_that_are_no_samples_are_computed(way: str, n_samples: int) -> None:
    """Also where as many rows come out as samples went in, and where there is one sample."""
    model, x = made(lambda: Rearranged(way)), images(n_samples)
    with affine.watched(model, x) as calls:
        model(x)
    assert set(calls) == ({"linear"} if way == "chosen" and n_samples == 1 else set())


def test_calls_are_saved_and_forward_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(stacked)
    count = {"0": 0, "6": 0}
    plain = nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: Tensor) -> Tensor:
        for name in count:
            count[name] += self is model[int(name)]
        return plain(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    monkeypatch.setattr(path, "_LARGEST_STACK", 1)
    method = IntegratedGradients(steps=STEPS)
    contribute(model, images(), ["4", "7"], method=method, prove=False)
    # Cuts, units, both ends, and the baseline once more; 6 comes after a nonlinearity.
    assert count == {"0": 5, "6": STEPS + 4}
    assert not any("forward" in module.__dict__ for module in model.modules())
