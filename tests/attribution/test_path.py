"""Integrated gradients: options, stacking, doubling to a tolerance, baselines."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from condec.attribution import (
    Blur,
    Constant,
    IntegratedGradients,
    Mean,
    Method,
    Samples,
    Setup,
    SmoothGrad,
    Zeros,
    engine,
    make_setup,
    method_from_dict,
    quadrature,
)
from condec.attribution import path as paths
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit, Predicted
from condec.basis.errors import DataError, OptionError
from condec.data import as_inputs
from condec.testing.contracts import AttributionContract
from condec.testing.models import small_mlp, small_resnet


class TestLayerPath(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(path="layer", steps=5)


class TestAuto(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps="auto", tolerance=0.05)


class TestStacked(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps=7, baseline=Constant(0.4))


class TestBlurred(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps=3, baseline=Blur(1.0))


class TestFitted(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps=9, spacing="fitted")


class TestFittedAuto(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps="auto", spacing="fitted", tolerance=0.05)


class TestPower(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps=6, spacing="power:2", path="layer")


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 1, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@settings(max_examples=10, deadline=None)
@given(
    steps=st.integers(1, 9),
    stack=st.integers(1, 12),
    path=st.sampled_from(["input", "layer"]),
    spacing=st.sampled_from(["uniform", "fitted", "power:2"]),
)
def test_stacking_changes_nothing(steps: int, stack: int, path: str, spacing: str) -> None:
    model, x = small_resnet().double(), images(3)
    method = IntegratedGradients(steps=steps, path=path, spacing=spacing)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(paths, "_LARGEST_STACK", 1)
        a = contribute(model, x, "block*", method=method, target=Predicted())
        patched.setattr(paths, "_LARGEST_STACK", stack)
        b = contribute(model, x, "block*", method=method, target=Predicted())
    for site in ("block1", "block2"):
        torch.testing.assert_close(a[site].contribution, b[site].contribution, rtol=0, atol=1e-12)


def test_stacked_points_run_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small_resnet(), []
    model.stem.register_forward_hook(lambda m, x, out: batches.append(len(out)))
    monkeypatch.setattr(paths, "_LARGEST_STACK", 4)
    method = IntegratedGradients(steps=10)
    given = setup(model, images(2))
    batches.clear()
    method.attribute(given)
    assert batches == [2, 8, 8, 2, 1]  # the inputs, nine points between, the shared baseline


def test_stack_is_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small_resnet(), []
    model.stem.register_forward_hook(lambda m, x, out: batches.append(len(out)))
    method = IntegratedGradients(steps=4)
    # Samples, channels, space, bytes: of the records, and of 8 times the inputs, which is more.
    a_batch = max(2 * 4 * 6 * 5 * 4, 8 * 2 * 6 * 5 * 4)
    for points, expected in ((1, [2, 2, 2, 2, 1]), (2, [2, 4, 2, 1]), (9, [2, 6, 1])):
        monkeypatch.setitem(paths._RECORD_BYTES, "cpu", points * a_batch)
        given = setup(model, images(2))
        batches.clear()
        method.attribute(given)
        assert batches == expected


def test_a_small_late_site_does_not_stack_without_bound() -> None:
    model, batches = small_resnet(), []
    model.stem.register_forward_hook(lambda m, x, out: batches.append(len(out)))
    wide = torch.randn(4, 1, 200, 200)  # 8 times 640 KB already fill a pass
    IntegratedGradients(steps=20).attribute(setup(model, wide, "head"))
    assert set(batches) == {4, 1}
    batches.clear()
    tiny = torch.randn(4, 1, 5, 5)
    IntegratedGradients(steps=40).attribute(setup(model, tiny, "head"))
    assert max(batches) == 8 * 4


def test_a_layer_path_in_groups_equals_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_resnet().double(), images(3)
    method = IntegratedGradients(steps="auto", tolerance=2e-2, path="layer")
    smooth = SmoothGrad(inner=method, n_samples=2)
    whole = [contribute(model, x, "block*", method=m, target=Predicted()) for m in (method, smooth)]
    monkeypatch.setattr(paths, "_KEPT_BYTES", 2 * 129 * 2 * 4 * 30 * 8)  # two samples
    parts = [contribute(model, x, "block*", method=m, target=Predicted()) for m in (method, smooth)]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a["block1"].contribution, b["block1"].contribution)
        torch.testing.assert_close(a.target_baseline, b.target_baseline, equal_nan=True)
    assert whole[0].steps is not None
    assert parts[0].steps is not None
    assert whole[0].steps.tolist() == parts[0].steps.tolist()


def test_a_layer_path_does_not_stack_more_as_samples_drop_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "_LARGEST_STACK", 1)
    model, batches = small_resnet().double(), []
    model.head.register_forward_hook(lambda m, x, out: batches.append(len(out)))
    method = IntegratedGradients(steps="auto", tolerance=5e-3, path="layer")
    batch = contribute(model, images(6), "block1", method=method, target=Predicted())
    assert batch.steps is not None
    assert len(set(batch.steps.tolist())) > 1
    assert max(batches) <= 2 * 6  # the check of the suffix runs two versions


def test_everything_works_under_inference_mode() -> None:
    model = small_resnet()
    with torch.inference_mode():
        for method in (IntegratedGradients(path="layer", steps=2), IntegratedGradients(steps=2)):
            batch = contribute(model, images(2).float(), "block1", method=method)
            assert batch["block1"].contribution.abs().sum() > 0


def setup(model: nn.Module, x: torch.Tensor, sites: str = "block*") -> Setup:
    return make_setup(model, x.float(), sites, Logit(0))


def test_steps_converge_with_their_square() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Softplus(), nn.Linear(6, 2)).double().eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    exact, coarse, fine = (
        contribute(model, x, "0", method=IntegratedGradients(steps=s), target=Logit(1))["0"]
        for s in (512, 8, 64)
    )
    off = [(one.contribution - exact.contribution).abs().max() for one in (coarse, fine)]
    assert off[1] < off[0] / 40


@pytest.mark.parametrize("spacing", ["power:1", "power:1.5", "fitted"])
def test_rounded_corners_converge_faster_than_the_square(spacing: str) -> None:
    """Eight times the points: 64 times less error by the trapezoid rule, 512 by this one."""
    torch.manual_seed(2)
    layers = nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 2)
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    exact, coarse, fine = (
        contribute(
            model, x, "1", method=IntegratedGradients(steps=s, spacing=p), target=Logit(1),
            prove=False,
        )["1"].contribution
        for s, p in ((192, "power:1"), (8, spacing), (64, spacing))
    )  # fmt: skip
    assert (fine - exact).abs().max() < (coarse - exact).abs().max() / 100


@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_fitted_points_keep_no_more_than_they_say(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, add = [0], quadrature._add

    def counted(total, points, *given):  # type: ignore[no-untyped-def]
        kept.append(len(points))
        add(total, points, *given)

    monkeypatch.setattr(quadrature, "_add", counted)
    monkeypatch.setattr(paths, "_LARGEST_STACK", 1)
    method = IntegratedGradients(steps=steps, spacing="fitted")
    contribute(small_resnet(), images(5).float(), "block1", method=method, target=Predicted())
    assert max(kept) <= method.n_kept + 2


@pytest.mark.parametrize(
    ("slopes", "centres"), [((5.0, 200.0), (0.1, 0.9)), ((20.0, 60.0), (0.2, 0.7))]
)
def test_fitted_points_stay_in_order_where_a_path_turns_early_and_late(
    slopes: tuple[float, float], centres: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between both turns lie pilots alone, so the last point that was run is no longer kept."""
    monkeypatch.setattr(paths, "_LARGEST_STACK", 1)
    model = nn.Sequential(nn.Linear(1, 2), nn.Sigmoid(), Cubes()).double().eval()
    k, c = torch.tensor(slopes), torch.tensor(centres)
    model[0].weight.data, model[0].bias.data = k[:, None].double(), (-k * c).double()
    method = IntegratedGradients(steps=20, spacing="fitted")
    batch = contribute(model, torch.ones(1, 1), "1", method=method, target=Logit(0), prove=False)
    assert abs(float(batch.completeness()["1"]) - 1) < 0.04


class Cubes(nn.Module):
    """A third of the sum of cubes."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return (h**3).sum(1, keepdim=True) / 3


@pytest.mark.parametrize("at_a_time", [1, 2**9, 2**26])
def test_a_fitted_sum_is_the_same_for_few_samples_at_a_time(
    at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, given = (
        IntegratedGradients(steps=16, spacing="fitted"),
        setup(small_resnet(), images(5)),
    )
    expected = method.attribute(given).contribution
    monkeypatch.setitem(quadrature._AT_A_TIME, "cpu", at_a_time)
    for key, found in method.attribute(given).contribution.items():
        assert torch.equal(found, expected[key])


def test_a_part_of_large_records_tells_where_a_path_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is looked at, the sum is right; entries are spread over all of them."""
    model, x = small_resnet().double(), images(3)
    method, exact = IntegratedGradients(spacing="fitted"), IntegratedGradients(steps=300)
    monkeypatch.setattr(quadrature, "_RUNS", 2)
    few = quadrature._spread(60000)
    assert len(few.unique()) == 32
    assert few.max() < 60000
    found, right = (
        contribute(model, x, "block1", method=m, target=Logit(1))["block1"].contribution
        for m in (method, exact)
    )
    assert (found - right).abs().sum() < 0.1 * right.abs().sum()


def test_auto_is_within_its_tolerance_and_says_its_steps() -> None:
    model, x = small_resnet().double(), images(6)
    method = IntegratedGradients(steps="auto", tolerance=5e-3, max_steps=512)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = contribute(model, x, "block*", method=method, target=Predicted())
    assert batch.steps is not None
    assert set(batch.steps.tolist()) <= {4, 8, 16, 32, 64, 128, 256, 512}
    assert (batch.completeness()["block1"] - 1).abs().max() <= 5e-3
    for i, steps in enumerate(batch.steps.tolist()):
        fixed = IntegratedGradients(steps=steps)
        same = contribute(model, x[i : i + 1], "block*", method=fixed, target=Predicted())
        for site in ("block1", "block2"):
            torch.testing.assert_close(
                batch[site].contribution[i], same[site].contribution[0], rtol=0, atol=1e-12
            )


def test_auto_computes_no_point_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    run = engine.InputPath.at

    def counted(self, alphas):  # type: ignore[no-untyped-def]
        seen.extend(alphas)
        return run(self, alphas)

    monkeypatch.setattr(engine.InputPath, "at", counted)
    method = IntegratedGradients(steps="auto", tolerance=1e-2)
    batch = contribute(small_resnet().double(), images(1), "block1", method=method)
    assert batch.steps is not None
    steps = int(batch.steps)
    assert sorted(seen) == [k / steps for k in range(1, steps)]


def test_auto_gives_up_at_max_steps_and_says_so() -> None:
    method = IntegratedGradients(steps="auto", tolerance=1e-9, max_steps=16)
    with pytest.warns(UserWarning, match=r"3 of 3 samples are not within .* after 16 steps"):
        batch = contribute(small_resnet().double(), images(3), "block1", method=method)
    assert batch.steps is not None
    assert batch.steps.tolist() == [16, 16, 16]


def test_a_target_that_hardly_moves_is_measured_against_its_contributions() -> None:
    """Two large contributions cancel: their small error is not measured by what is left."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False))
    ends = torch.tensor([2.0, 0.5], dtype=torch.float64)
    model[0].weight.data = ends[:, None]
    model[2].weight.data = torch.tensor([[1.0, -1.0]]) / ends.tanh() + torch.tensor([[1e-9, 0.0]])
    method = IntegratedGradients(steps="auto", tolerance=0.05, max_steps=512)
    x = torch.ones(1, 1, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = contribute(model.eval(), x, "0", method=method, target=Logit(0))
    assert batch.steps is not None
    assert batch.steps.tolist() == [16]


@pytest.mark.parametrize(
    ("spacing", "path"), [("fitted", "input"), ("fitted", "layer"), ("power:2", "input")]
)
def test_auto_with_other_points_is_within_its_tolerance(spacing: str, path: str) -> None:
    model, x = small_resnet().double(), images(3)
    method = IntegratedGradients(
        steps="auto", tolerance=3e-2, max_steps=128, spacing=spacing, path=path
    )
    fine = IntegratedGradients(steps=128, path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = contribute(model, x, "block*", method=method, target=Predicted())
    exact = contribute(model, x, "block*", method=fine, target=Predicted())
    for site in ("block1", "block2"):
        off = (batch[site].contribution - exact[site].contribution).abs().flatten(1).sum(1)
        assert (off / exact[site].contribution.abs().flatten(1).sum(1)).max() < 0.05


@settings(max_examples=8, deadline=None)
@given(
    steps=st.integers(1, 12),
    spacing=st.sampled_from(["uniform", "fitted", "power:2", "power:0.5"]),
    seed=st.integers(0, 1000),
)
def test_a_square_of_what_is_linear_is_complete(steps: int, spacing: str, seed: int) -> None:
    """Record and gradient move on one straight line: any points are exact."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    method = IntegratedGradients(steps=steps, spacing=spacing)
    batch = contribute(model, x, "0", method=method, target=lambda out: out.square().sum(1))
    change = batch.target - batch.target_baseline
    torch.testing.assert_close(batch["0"].contribution.sum(1), change, rtol=1e-10, atol=1e-10)


def test_fitted_points_go_where_the_path_of_each_sample_turns() -> None:
    """A step of the target early on the path of one sample, late on that of another."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double().eval()
    model[0].weight.data.fill_(1.0)
    x = torch.tensor([[5.0], [1.2]], dtype=torch.float64)
    off = {}
    for spacing in ("uniform", "fitted"):
        method = IntegratedGradients(steps=12, spacing=spacing)
        target = lambda out: torch.tanh(5 * (out[:, 0] - 1))  # noqa: E731
        batch = contribute(model, x, "0", method=method, target=target)
        off[spacing] = (batch.completeness()["0"] - 1).abs()
    assert off["fitted"].max() < off["uniform"].max() / 3


def test_auto_in_groups_equals_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_resnet().double(), images(5)
    method = IntegratedGradients(steps="auto", tolerance=2e-2)
    whole = contribute(model, x, "block*", method=method, target=Predicted())
    monkeypatch.setattr(paths, "_KEPT_BYTES", 1)
    parts = contribute(model, x, "block*", method=method, target=Predicted())
    assert whole.steps is not None
    assert parts.steps is not None
    assert whole.steps.tolist() == parts.steps.tolist()
    torch.testing.assert_close(whole["block1"].contribution, parts["block1"].contribution)


def test_fixed_steps_are_reported_too() -> None:
    batch = contribute(small_mlp(), torch.randn(2, 5), "1", method=IntegratedGradients(steps=3))
    assert batch.steps is not None
    assert batch.steps.tolist() == [3, 3]


def test_mean_and_samples_are_taken_from_the_data() -> None:
    x = images(7).float()
    data = as_inputs(x)
    mean = Mean().fit(data)
    torch.testing.assert_close(mean.make(x), x.mean(0, keepdim=True))
    assert mean.fit(as_inputs(2 * x)) == mean  # what is there stays
    few = Samples(n_samples=3).fit(data)
    assert few.n_draws == 3
    assert all(torch.equal(few.make(x, k)[0], x[row]) for k, row in enumerate((0, 3, 6)))
    assert Samples(n_samples=20).fit(data).n_draws == 7
    method = IntegratedGradients(steps=2, baseline=Mean()).fit(data)
    assert method.baseline == mean
    assert mean != Mean()
    assert hash(mean) == hash(Mean().fit(data))


@pytest.mark.parametrize(
    "baseline",
    [Zeros(), Constant(0.5), Constant((0.1, 0.2)), Blur(2.0), Mean(), Samples()],
)
def test_options_round_trip(baseline) -> None:  # type: ignore[no-untyped-def]
    method = IntegratedGradients(steps="auto", baseline=baseline, max_steps=8)
    assert method_from_dict(method.to_dict()) == method


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntegratedGradients(path="layers"), "path must be one of input, layer; got 'lay"),
        (lambda: IntegratedGradients(spacing="even"), "spacing must be .*'power:2'; got 'even'"),
        (lambda: IntegratedGradients(spacing="power:0"), "a power above 0 .*got 'power:0'"),
        (lambda: IntegratedGradients(spacing="power:-1"), "a power above 0 .*got 'power:-1'"),
        (lambda: IntegratedGradients(tolerance=0.0), "tolerance must be above 0"),
        (lambda: IntegratedGradients(max_steps=4), "max_steps must be at least 8; got 4"),
        (lambda: IntegratedGradients(steps=True), "at least 1, or 'auto'; got True"),
        (
            lambda: IntegratedGradients(baseline=torch.zeros(1, 1, 6, 5)),
            "IntegratedGradients: baseline must be a Baseline such as .*; got Tensor",
        ),
        (lambda: IntegratedGradients(baseline=Zeros), r"got the class Zeros; call it: Zeros\(\)"),
        (lambda: SmoothGrad(inner=IntegratedGradients), "SmoothGrad: inner must be a Method"),
        (
            lambda: contribute(small_resnet(), images(), "block1", method="ig:10"),
            "contribute: method 'ig:10': a text stands for a method in a run.toml only",
        ),
        (lambda: IntegratedGradients(steps="all"), "at least 1, or 'auto'; got 'all'"),
        (lambda: Blur(0.0), "sigma must be positive and finite; got 0"),
        (lambda: Blur(1.0).make(torch.ones(2, 3)), r"expected inputs of shape .*got \(2, 3\)"),
        (lambda: Constant((1.0, 2.0)).make(images()), "2 values, but the inputs have 1 channels"),
        (lambda: Mean(n_samples=0), "Mean: n_samples must be at least 1"),
        (lambda: Mean().make(images()), r"Mean: the baseline has no values yet.*fit"),
        (lambda: Mean(values=torch.ones(3)).make(images()), r"shape of one input, \(1, 6, 5\); go"),
        (lambda: Samples(n_samples=2, values=torch.ones(3, 1)), "n_samples=2, but 3 values"),
        (
            lambda: method_from_dict(
                IntegratedGradients(baseline=Mean(values=images()[0])).to_dict()
            ),
            "baseline Mean: it holds a tensor",
        ),
    ],
)
def test_bad_options_are_explained(make, message, unchecked) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=message):
        make()


def test_a_baseline_from_unreadable_data_is_explained() -> None:
    data = as_inputs(torch.full((3, 2), torch.nan))
    with pytest.raises(DataError, match="none of 3 samples can be read for the baseline"):
        Mean().fit(data)


def test_fitted_points_take_gradients_that_are_expanded() -> None:
    """The gradient of a sum is one number in memory: pilots go beside it, not into it."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), Total()).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, exact = (
            contribute(model, x, "1", method=method, target=Logit(0))["1"].contribution
            for method in (IntegratedGradients(spacing="fitted"), IntegratedGradients(steps=200))
        )
    assert (found - exact).abs().max() < 0.01 * exact.abs().max()


class Total(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True).exp()
