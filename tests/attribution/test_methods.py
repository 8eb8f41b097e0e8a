"""Methods beside integrated gradients: contracts, theorems, limits that are said."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import (
    ActGrad,
    Activation,
    ActNormGrad,
    Blur,
    GradCAM,
    Gradient,
    IntegratedGradients,
    Mean,
    Method,
    Samples,
    SmoothGrad,
    UnitAblation,
    method_from_dict,
    unit_effects,
)
from condec.attribution.contributions import contribute
from condec.attribution.reduce import spread_units, unit_numbers
from condec.attribution.targets import Custom, Entropy, Label, Logit, Predicted, TopK
from condec.basis.errors import DataError, OptionError, SiteError
from condec.data import as_inputs
from condec.network import PackedInput
from condec.network.sites import Units
from condec.testing.contracts import AttributionContract
from condec.testing.models import small_mlp, small_resnet


class TestActNormGrad(AttributionContract):
    def make_method(self) -> Method:
        return ActNormGrad()


class TestActivation(AttributionContract):
    def make_method(self) -> Method:
        return Activation()


class TestGradient(AttributionContract):
    def make_method(self) -> Method:
        return Gradient()


class TestGradCAM(AttributionContract):
    def make_method(self) -> Method:
        return GradCAM()


class TestSmoothGrad(AttributionContract):
    def make_method(self) -> Method:
        return SmoothGrad(n_samples=3)


class TestSmoothIntegratedGradients(AttributionContract):
    def make_method(self) -> Method:
        return SmoothGrad(inner=IntegratedGradients(steps=3), n_samples=2, seed=4)


class TestUnitAblation(AttributionContract):
    def make_method(self) -> Method:
        return UnitAblation(rows_per_pass=5)


class TestUnitAblationOfGivenMeans(AttributionContract):
    def make_method(self) -> Method:
        means = {"block1": [0.1, 0.2, 0.3, 0.4], "block2": torch.arange(4.0)}
        return UnitAblation(replacement="mean", means=means)


class TestUnitAblationOfTheBaseline(AttributionContract):
    def make_method(self) -> Method:
        return UnitAblation(replacement="baseline", baseline=Blur(1.0))


def part(method: Method, model: nn.Module, images: Tensor, site: str = "block1", **o: Any) -> Any:
    return contribute(model, images, site, method=method, **o).by_site[0]


def linear_above(seed: int = 0) -> nn.Sequential:
    """Nonlinear below module 1, linear above it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Linear(4, 3)).eval()


def test_act_grad_is_the_effect_of_ablation_where_the_network_is_linear() -> None:
    model, x = linear_above().double(), torch.randn(4, 5, dtype=torch.float64)
    for site in ("1", "2"):
        a = part(ActGrad(), model, x, site, target=Predicted()).contribution
        b = part(UnitAblation(), model, x, site, target=Predicted()).contribution
        assert torch.allclose(a, b, atol=1e-12)


def test_norms_are_those_of_a_whole_sample() -> None:
    model, images = small_resnet().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    h = part(Activation(), model, images).contribution
    one = part(ActNormGrad(), model, images).contribution
    unit = (one / h.where(h != 0, torch.nan)).nan_to_num().square().flatten(1).sum(1)
    assert (unit <= 1 + 1e-9).all()


def test_target_units_do_not_matter_after_normalising() -> None:
    model, images = small_resnet().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    scaled = small_resnet().double()
    with torch.no_grad():
        scaled.head.weight.mul_(1000.0)
    for method, same in ((ActNormGrad(), True), (ActGrad(), False)):
        a, b = (part(method, net, images, target=Logit(0)).contribution for net in (model, scaled))
        assert torch.allclose(a, b) is same


def test_smooth_grad_tends_to_its_inner_method_without_noise() -> None:
    model, images = small_mlp().double(), torch.randn(4, 5, dtype=torch.float64)
    for inner in (ActGrad(), IntegratedGradients(steps=4)):
        smooth = part(
            SmoothGrad(inner=inner, noise=1e-9, n_samples=2), model, images, "1", target=Logit(0)
        )
        plain = part(inner, model, images, "1", target=Logit(0))
        assert torch.allclose(smooth.contribution, plain.contribution, atol=1e-6)


def test_smooth_grad_keeps_the_class_of_the_clean_input() -> None:
    """With so much noise that the predicted class of the copies differs."""
    model, images = small_mlp(seed=2), 0.01 * torch.randn(6, 5)
    method = SmoothGrad(noise=50.0, n_samples=4)
    own = model(images).argmax(1)
    assert (model(method._noisy(model, images, 2)).argmax(1) != own).all()
    a = contribute(model, images, "1", method=method, target=Predicted())
    b = contribute(model, images, "1", method=method, target=Label(), labels=own)
    assert torch.equal(a["1"].contribution, b["1"].contribution)
    assert torch.equal(a.target, model(images).max(1).values.detach())
    assert a.target_baseline.isnan().all()
    assert method.n_passes == 5


class Halves(PackedInput):
    """Reads the first half of its input; the second, of large numbers, stays."""

    def fixed(self, inputs: Tensor) -> Tensor:
        return torch.arange(inputs.shape[1]) >= inputs.shape[1] // 2

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] // 2]


def test_noise_is_a_share_of_the_range_of_what_moves() -> None:
    own = torch.linspace(0, 1, 8).expand(2, -1)
    packed = torch.cat([own, 512 * own], 1)
    method = SmoothGrad(noise=0.1)
    both = method._noisy(Halves(), packed, 0) - packed
    nothing_stays = method._noisy(nn.Identity(), own, 0) - own
    assert 0.05 < both[:, :8].std() < 0.2
    assert 0.05 < nothing_stays.std() < 0.2


def test_a_target_that_a_replaced_unit_makes_infinite_names_its_samples() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 1, bias=False)).eval()
    model[1].weight.data = torch.tensor([[1.0, 0.0, 0.0]])
    target = Custom(lambda output: output[:, 0].log())
    with pytest.raises(DataError, match=r"unit of 0 replaced .* 2 of 2 samples") as caught:
        unit_effects(model, torch.ones(2, 3), "0", target, method=UnitAblation(rows_per_pass=6))
    assert caught.value.samples == (0, 1)


def test_methods_inside_are_fitted() -> None:
    data = as_inputs(torch.arange(20.0).view(4, 5))
    method = SmoothGrad(inner=IntegratedGradients(baseline=Mean())).fit(data)
    assert method.inner.baseline.values.tolist() == [7.5, 8.5, 9.5, 10.5, 11.5]
    ablation = UnitAblation(baseline=Mean()).fit(data)
    assert ablation.baseline.values.tolist() == method.inner.baseline.values.tolist()


@pytest.mark.parametrize(
    "method",
    [
        SmoothGrad(inner=SmoothGrad(inner=GradCAM()), noise=0.2),
        SmoothGrad(inner=IntegratedGradients(steps="auto")),
        UnitAblation(replacement="resample", seed=3),
    ],
)
def test_methods_round_trip(method: Method) -> None:
    assert method_from_dict(method.to_dict()) == method


# --- ablation -----------------------------------------------------------------------------


def test_pass_size_changes_nothing() -> None:
    model, images = small_resnet().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    found = [
        part(UnitAblation(rows_per_pass=rows), model, images, "block1.conv1").contribution
        for rows in (1, 7, 1000)
    ]
    assert torch.allclose(found[0], found[1], atol=1e-12)
    assert torch.allclose(found[0], found[2], atol=1e-12)


def test_unit_effects_are_the_sums_over_positions() -> None:
    model, images = small_resnet().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    for method in (UnitAblation(), UnitAblation(replacement="resample")):
        spread = part(method, model, images, target=Logit(0)).contribution
        effects = unit_effects(model, images, "block1", Logit(0), method=method)
        assert torch.allclose(spread.sum((2, 3)), effects, atol=1e-12)
        some = unit_effects(model, images, "block1", Logit(0), method=method, units=[3, 1])
        assert torch.allclose(some, effects[:, [3, 1]], atol=1e-12)


def test_targets_stay_as_at_the_inputs() -> None:
    """The predicted class is that of the inputs, whatever ablating does to it."""
    model, images = small_resnet().double(), torch.randn(5, 1, 5, 5, dtype=torch.float64)
    own = model(images).argmax(1)
    a = unit_effects(model, images, "block2", Predicted())
    b = unit_effects(model, images, "block2", Label(), own)
    assert torch.equal(a, b)
    c = unit_effects(model, images, "block2", TopK())
    assert (c <= a + 1e-12).all()


def test_resampled_values_are_never_a_sample_s_own() -> None:
    """Where each sample holds its own number, every unit changes in every sample."""
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False)).eval()
    model[1].weight.data = torch.ones(1, 2)
    x = torch.arange(1.0, 9.0).view(4, 2)
    for seed in range(5):
        method = UnitAblation(replacement="resample", seed=seed)
        effects = unit_effects(model, x, "0", Logit(0), method=method)
        assert (effects.abs() >= 2).all()
        others = x - effects
        assert all(float(v) in x[:, u] for u in range(2) for v in others[:, u])


def test_means_are_those_of_the_batch_or_those_given() -> None:
    model, images = small_resnet().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    h = part(Activation(), model, images).activation
    means = h.mean((0, 2, 3))
    given = UnitAblation(replacement="mean", means={"block1": means})
    a = unit_effects(model, images, "block1", Logit(0), method=UnitAblation(replacement="mean"))
    b = unit_effects(model, images, "block1", Logit(0), method=given)
    assert torch.allclose(a, b, atol=1e-9)
    zero = unit_effects(model, images, "block1", Logit(0))
    assert not torch.allclose(a, zero)


def test_integrated_gradients_are_the_change_from_the_baseline_where_the_network_is_linear() -> (
    None
):
    model, x = linear_above().double(), torch.randn(4, 5, dtype=torch.float64)
    ablation = UnitAblation(replacement="baseline")
    a = part(IntegratedGradients(steps=2), model, x, "1", target=Predicted()).contribution
    b = part(ablation, model, x, "1", target=Predicted()).contribution
    assert torch.allclose(a, b, atol=1e-9)


def test_sites_come_in_execution_order_and_positions_share_evenly() -> None:
    model, images = small_resnet(), torch.randn(2, 1, 5, 5)
    batch = contribute(
        model, images, "head, block2, block1", method=UnitAblation(), target=Entropy()
    )
    assert [site.key for site in batch.sites] == ["block1", "block2", "head"]
    assert batch["block1"].contribution.std(dim=(2, 3)).max() < 1e-7
    assert batch.target_baseline.isnan().all()


def test_units_laid_over_their_positions() -> None:
    numbers = unit_numbers(Units("heads", 2, tokens=(1, None)), (2, 3, 4))
    assert numbers.tolist() == [[-1] * 4, [0, 0, 1, 1], [0, 0, 1, 1]]
    values = torch.tensor([[1.0, torch.inf], [3.0, 4.0]])
    laid = spread_units(values, Units("heads", 2, tokens=(1, None)), (2, 3, 4))
    assert laid[0, 0].tolist() == [0.0] * 4
    assert laid[1, 1].tolist() == [3.0, 3.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: UnitAblation(replacement="median"), OptionError, "one of zero, mean, resample"),
        (lambda: UnitAblation(baseline=Samples()), OptionError, "not several draws; got 8 of Sam"),
        (lambda: UnitAblation(rows_per_pass=0), OptionError, "must be at least 1; got 0"),
        (lambda: UnitAblation(means={"a": [1.0]}), OptionError, "means belong to replacement"),
        (lambda: SmoothGrad(n_samples=0), OptionError, "n_samples must be at least 1; got 0"),
        (lambda: SmoothGrad(noise=0.0), OptionError, "noise must be above 0; got 0.0"),
        (
            lambda: effects(UnitAblation(replacement="resample"), 1),
            DataError,
            "this batch has only one",
        ),
        (
            lambda: effects(UnitAblation(replacement="mean", means={"block2": [0.0] * 4})),
            OptionError,
            r"means of 4 units for block1; got 0 \(means are given for block2\)",
        ),
        (lambda: effects(UnitAblation(), units=[0, 4]), SiteError, r"units 0 to 3; got \[4\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_requests_are_explained(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


def effects(method: UnitAblation, n_samples: int = 3, **options: Any) -> Tensor:
    images = torch.randn(n_samples, 1, 5, 5)
    return unit_effects(small_resnet(), images, "block1", TopK(), method=method, **options)
