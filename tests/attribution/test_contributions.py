"""Theorems of contributions: completeness, permutation, sign split, memory, clear errors."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from condec.attribution import (
    ActGrad,
    IntegratedGradients,
    Method,
    Samples,
    Zeros,
    engine,
    make_setup,
    method_from_dict,
    path,
)
from condec.attribution.contributions import contribute
from condec.attribution.reduce import merge_signs, split_and_sum
from condec.attribution.targets import Label, Logit, Predicted, Sum, Target, TopK
from condec.basis.errors import DataError, ModelError, OptionError, SiteError
from condec.data import as_inputs
from condec.network.sites import Site, Units
from condec.testing.contracts import AttributionContract
from condec.testing.models import small_mlp, small_resnet

TARGETS = [TopK(), TopK(k=2, probability=True), Logit(1), Label(), Predicted()]
METHODS = [IntegratedGradients(steps=4), ActGrad()]


class TestIntegratedGradients(AttributionContract):
    def make_method(self) -> Method:
        return IntegratedGradients(steps=5)


class TestActGrad(AttributionContract):
    def make_method(self) -> Method:
        return ActGrad()


def test_shapes_names_and_reduction() -> None:
    batch = contribute(small_resnet(), torch.randn(3, 1, 6, 5), "block*, head")
    assert [site.key for site in batch.sites] == ["block1", "block2", "head"]
    assert batch["block1"].contribution.shape == (3, 4, 6, 5)
    assert batch["head"].contribution.shape == (3, 3)
    reduced = batch.reduce()
    assert reduced[Site("block1")].contribution.shape == (3, 2, 4)
    assert (reduced["block1"].contribution[:, 0] >= 0).all()
    assert (reduced["block1"].contribution[:, 1] <= 0).all()
    assert len(batch) == 3
    assert torch.equal(batch.prediction, batch.output.argmax(1))
    with pytest.raises(SiteError, match="'block3' is not among the sites"):
        batch["block3"]


def test_records_print_one_row_a_site() -> None:
    batch = contribute(small_resnet(), torch.randn(3, 1, 6, 5), "block1, block2.conv1")
    head, _, first, second = repr(batch).splitlines()
    assert head == "Contributions of 3 samples at 2 sites"
    assert first.split()[:6] == ["block1", "[3,", "4,", "6,", "5]", "yes"]
    assert second.split() == ["block2.conv1", "[3,", "4,", "6,", "5]", "no"]
    assert repr(batch.reduce()).startswith("UnitContributions of 3 samples at 2 sites\n")
    assert "contribution  Tensor[3, 4, 6, 5] float32" in repr(batch["block1"])
    assert "contribution  Tensor[3, 2, 4] float32" in repr(batch.reduce()["block1"])
    assert "inputs  Tensor[3, 1, 6, 5] float32" in repr(batch.setup)


@pytest.mark.parametrize("target", TARGETS)
def test_completeness_at_cuts_grows_with_the_steps(target) -> None:  # type: ignore[no-untyped-def]
    model, inputs = small_mlp().double(), torch.randn(6, 5, dtype=torch.float64)
    labels = torch.randint(0, 3, (6,))
    worst = []
    for steps in (4, 16, 64):
        batch = contribute(
            model, inputs, "*", method=IntegratedGradients(steps=steps), target=target,
            labels=labels,
        )  # fmt: skip
        change = batch.target - batch.target_baseline
        sums = torch.stack([part.contribution.sum(1) for part in batch.by_site])
        worst.append(float((sums - change).abs().max()))
        assert list(batch.completeness()) == ["0", "1", "2", "3", "4"]
        assert torch.allclose(batch.completeness()["1"], sums[1] / change)
    assert worst[2] < worst[1] < worst[0]
    assert worst[2] < 1e-2


def test_completeness_leaves_out_sites_that_are_no_cut() -> None:
    batch = contribute(small_resnet(), torch.randn(2, 1, 5, 5), "block1, block1.conv1")
    assert list(batch.completeness()) == ["block1"]
    assert torch.allclose(
        batch.completeness()["block1"], batch.reduce().completeness()["block1"], atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS)
def test_permuting_samples_permutes_results(method: Method, target) -> None:  # type: ignore[no-untyped-def]
    model, inputs = small_resnet().double(), torch.randn(5, 1, 5, 5, dtype=torch.float64)
    labels, order = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([3, 1, 4, 0, 2])
    a = contribute(model, inputs, "block*", method=method, target=target, labels=labels)
    b = contribute(
        model, inputs[order], "block*", method=method, target=target, labels=labels[order]
    )
    for site in ("block1", "block2"):
        assert torch.allclose(a[site].contribution[order], b[site].contribution, atol=1e-12)
    assert torch.allclose(a.target[order], b.target)


@pytest.mark.parametrize("method", METHODS)
def test_in_place_and_out_of_place_twins_agree(method: Method) -> None:
    inputs = torch.randn(3, 1, 6, 6)
    twins = [small_resnet(inplace=inplace) for inplace in (False, True)]
    a, b = (contribute(model, inputs, "**", method=method) for model in twins)
    for site in a.sites:
        assert torch.equal(a[site].contribution, b[site].contribution), site.key


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["channels", "positions", "features", "tokens"]))
def test_sign_split_sums_back(seed: int, layout) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    units = Units(layout)
    reduced = split_and_sum(values, units)
    axes = units.axes(3)
    kept = values.sum([axis for axis in (1, 2) if axis not in axes])
    assert torch.allclose(merge_signs(reduced), kept.flatten(1))
    assert torch.allclose(split_and_sum(-values, units), -reduced.flip(1))


def test_all_sites_in_one_forward_and_backward_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = small_resnet(), []
    model.stem.register_forward_hook(lambda *_: calls.append("forward"))
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: calls.append("backward") or grad(*a, **k)
    )
    monkeypatch.setattr(path, "_LARGEST_STACK", 1)
    method = IntegratedGradients(steps=6)
    setup = make_setup(model, torch.randn(2, 1, 5, 5), "block*")
    calls.clear()  # of the pass that shows the units
    method.attribute(setup)
    assert calls == ["forward", "backward"] * 7
    assert method.n_passes == 7


def test_memory_does_not_grow_with_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """At no step are more passes alive than the first, the last and the present one."""
    alive: list[weakref.ref[object]] = []
    most = 0
    make = engine.run_point

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal most
        made = make(*args, **kwargs)
        alive.append(weakref.ref(made.gradients["1"]))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(path, "_LARGEST_STACK", 1)
    for module in (engine, path):
        monkeypatch.setattr(module, "run_point", counted)
    for steps in (3, 12):
        alive.clear()
        most = 0
        setup = make_setup(small_mlp(), torch.randn(2, 5), "1")
        IntegratedGradients(steps=steps).attribute(setup)
        assert most == 3


@pytest.mark.parametrize("target", TARGETS)
def test_shared_baseline_pass_equals_one_for_each_sample(
    target, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    model, inputs = small_resnet().double(), torch.randn(5, 1, 5, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    a = contribute(model, inputs, "block*", target=target, labels=labels)
    monkeypatch.setattr(Zeros, "make", lambda self, x, draw=0: torch.zeros_like(x))
    b = contribute(model, inputs, "block*", target=target, labels=labels)
    for site in ("block1", "block2"):
        assert torch.allclose(a[site].contribution, b[site].contribution, atol=1e-12)
    assert torch.allclose(a.target_baseline, b.target_baseline)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32_contributions(dtype: torch.dtype) -> None:
    inputs = torch.randn(3, 5)
    half = contribute(small_mlp().to(dtype), inputs, "1", target=Logit(0))
    full = contribute(small_mlp(), inputs, "1", target=Logit(0))
    assert half["1"].contribution.dtype == torch.float32
    scale = full["1"].contribution.abs().max()
    assert (half["1"].contribution - full["1"].contribution).abs().max() < 0.05 * scale


def test_inputs_and_model_are_not_changed() -> None:
    model = small_resnet(inplace=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = torch.randn(2, 1, 5, 5)
    kept = inputs.clone()
    contribute(model, inputs, "stem, relu, block*")
    assert torch.equal(inputs, kept)
    assert inputs.grad is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_numpy_is_accepted_at_the_border() -> None:
    images, labels = np.ones((2, 1, 5, 5), np.float32), np.array([0, 2])
    a = contribute(small_resnet(), images, "block1", target=Label(), labels=labels)
    b = contribute(
        small_resnet(), torch.ones(2, 1, 5, 5), "block1", target=Label(),
        labels=torch.tensor([0, 2]),
    )  # fmt: skip
    assert torch.equal(a["block1"].contribution, b["block1"].contribution)


def test_act_grad_has_no_baseline() -> None:
    batch = contribute(small_resnet(), torch.randn(2, 1, 5, 5), "block1", method=ActGrad())
    assert batch.target_baseline.isnan().all()
    assert batch.completeness()["block1"].isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_methods_round_trip(method: Method) -> None:
    assert method_from_dict(method.to_dict()) == method


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: contribute(m, x.int(), "block1"), DataError, "expected a floating-point"),
        (lambda m, x: contribute(m, x[:0], "block1"), DataError, "at least one sample"),
        (
            lambda m, x: contribute(m, torch.where(x > 9, x, torch.nan), "block1"),
            DataError,
            r"3 of 3 samples hold NaN or infinity; the first are samples \[0, 1, 2\]",
        ),
        (
            lambda m, x: contribute(m, x.expand(3, 2, 5, 5), "block1"),
            ModelError,
            r"SmallResNet failed on inputs of shape \(3, 2, 5, 5\)",
        ),
        (lambda m, x: contribute(m, x, "block1", target=Logit(3)), OptionError, "3 labels, 0 to 2"),
        (lambda m, x: contribute(m, x, "block1", target=Label()), DataError, "needs the label"),
        (lambda m, x: contribute(m, x, []), SiteError, "no site given; name at least one"),
        (
            lambda m, x: contribute(m, x, "block1", target=Label(), labels=np.full(3, 1.7)),
            DataError,
            "contribute: expected whole numbers as labels, .*; got 3 that are none, first 1.7",
        ),
        (
            lambda m, x: contribute(m, x, "block1", labels=torch.zeros(2, dtype=torch.int64)),
            DataError,
            "contribute: 3 samples, but 2 labels",
        ),
        (lambda m, x: contribute(m.train(), x, "block1"), ModelError, "in training mode"),
        (lambda m, x: IntegratedGradients(steps=0), OptionError, "at least 1, or .*got 0"),
        (lambda m, x: method_from_dict({"name": "IG"}), OptionError, "expected one of Integrated"),
        (lambda m, x: method_from_dict({"name": "ActGrad", "k": 1}), OptionError, "method ActGrad"),
        (
            lambda m, x: method_from_dict({"name": "ActGrad", "baseline": {"name": "Blur"}}),
            OptionError,
            "baseline Blur: .*sigma",
        ),
    ],
)
def test_bad_requests_are_explained(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call(small_resnet(), torch.randn(3, 1, 5, 5))


def test_a_target_that_is_not_finite_names_its_samples() -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2, bias=False)
            self.linear.weight.data.fill_(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.linear(x) * 1e4).exp()

    inputs = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    with pytest.raises(DataError, match=r"the target is not finite for 1 of 2 .*\[1\]"):
        contribute(Overflow().eval(), inputs, "linear")


def test_one_output_for_each_sample_is_expected() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).mean(0, keepdim=True)

    with pytest.raises(ModelError, match="expected one output for each of 3 samples"):
        contribute(Pooled().eval(), torch.randn(3, 2), "linear")


class SequenceFirst(nn.Module):
    """Takes [sample, token, feature] and works on [token, sample, feature] inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.transpose(0, 1)).transpose(0, 1).mean(1))


@pytest.mark.parametrize("samples", [2, 4])
def test_activations_with_the_samples_elsewhere_are_refused(samples: int) -> None:
    """Also where samples are as many as tokens, which the shape alone does not show."""
    model = SequenceFirst().eval()
    with pytest.raises(SiteError, match=r"inner has shape \(4, 2, 3\) for 2 samples and \(4, 1, 3"):
        contribute(model, torch.randn(samples, 4, 3), "inner")
    with pytest.raises(SiteError, match="inner: expected an activation"):
        ActGrad().attribute(make_setup(model, torch.randn(2, 4, 3), "inner"))


def test_contributions_that_are_not_finite_name_site_and_samples() -> None:
    class Norm(nn.Module):
        """The gradient of a norm does not exist at zero: NaN at the baseline."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.linear(x)
            return torch.stack((h.square().sum(1).sqrt(), h[:, 0]), 1)

    with pytest.raises(DataError, match="the contribution at linear is not finite for 2 of 2"):
        contribute(Norm().eval(), torch.randn(2, 3), "linear", target=Logit(0))


def test_contributions_of_the_input_add_up() -> None:
    model, images = small_resnet().double(), torch.randn(3, 1, 5, 5, dtype=torch.float64)
    method = IntegratedGradients(steps=200)
    batch = contribute(model, images, ":input, block1", method=method, target=Logit(1))
    assert [site.key for site in batch.sites] == [":input", "block1"]
    assert batch[":input"].contribution.shape == images.shape
    share = batch.completeness()[":input"]
    assert torch.allclose(share, torch.ones(3).double(), atol=0.02)
    slow = torch.zeros_like(images)  # the usual integrated gradients: x times the mean gradient
    for k in range(201):
        x = (images * (k / 200)).requires_grad_()
        (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
        slow += images * g * (0.5 if k in (0, 200) else 1.0) / 200
    assert torch.allclose(batch[":input"].contribution, slow, atol=1e-12)


class Silent(nn.Module):
    """A residual branch whose last layer is initialised at zero, and a bias that never moves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.zero = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        return h + self.zero(self.branch(h).tanh())


def test_sites_that_contribute_nothing_are_warned_of() -> None:
    model = Silent().eval()
    with pytest.warns(UserWarning, match="exactly zero, for 2 samples, at branch: either the grad"):
        batch = contribute(model, torch.randn(2, 3), "*")
    assert not batch["branch"].contribution.any()
    contribute(model, torch.randn(2, 3), "stem, zero")  # units that are not active: nothing to say
    with pytest.warns(UserWarning, match="at stem: .* the same at the inputs as at the baseline"):
        contribute(model, torch.zeros(2, 3), "stem")


class Regression(nn.Module):
    """One number a sample, as [sample] or as [sample, 1]."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.hidden, self.read, self.flat = nn.Linear(4, 6), nn.Linear(6, 1), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rate = self.read(self.hidden(x).tanh())
        return rate[:, 0] if self.flat else rate


@pytest.mark.parametrize("flat", [True, False])
def test_outputs_that_are_one_number_a_sample(flat: bool) -> None:
    model, x = Regression(flat=flat).eval(), torch.randn(5, 4)
    method = IntegratedGradients(steps=50)
    for target in (Sum(), Logit(0), lambda output: output.reshape(len(output))):
        batch = contribute(model, x, "hidden", target=target, method=method)
        share = batch.completeness()["hidden"]
        assert torch.allclose(share, torch.ones(5), atol=1e-3)
        assert batch.prediction.tolist() == [-1] * 5
    if flat:
        with pytest.raises(ModelError, match=r"the model gave \(5,\)\. Sum, Logit with one index"):
            contribute(model, x, "hidden", target=Predicted())


# --- what else is given for a batch, a site, a method or a target ------------------------------


class _Named(nn.Module):
    """A model with a name for its argument, as those of Hugging Face have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_resnet()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("unchecked")
def test_a_mapping_of_one_tensor_stands_for_it() -> None:
    model, x = _Named().eval(), torch.randn(2, 1, 5, 5)
    wanted = contribute(model, x, "net.block1")["net.block1"].contribution
    found = contribute(model, {"pixel_values": x}, "net.block1")["net.block1"].contribution
    assert torch.equal(found, wanted)
    with pytest.raises(DataError, match=r"expected one tensor; got a mapping of x. A model of sev"):
        contribute(model, {"x": x}, "net.block1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: [x, torch.zeros(3)], r"got list of \[3, 1, 5, 5\], \[3\]. Of a pair of inputs"),
        (lambda x: (x, x), r"got tuple of \[3, 1, 5, 5\], \[3, 1, 5, 5\].*condec.SeveralInputs"),
        (list, r"of single samples torch.stack\(samples\)"),
        (lambda x: {"a": x, "b": x}, r"got a mapping of a, b. .*condec.SeveralInputs\(model, bat"),
        (TensorDataset, r"got TensorDataset. condec.collect takes whole data sets"),
        (lambda x: DataLoader(TensorDataset(x)), r"got DataLoader.*x, y = next\(iter\(loader\)\)"),
        (as_inputs, r"got Inputs.*condec.as_inputs\(data\).batch\(range\(8\)\)"),
        (lambda x: "x.png", "contribute: inputs are not an array of numbers"),
        (lambda x: torch.ones(3, 4).long(), r"torch.int64. .*condec.LanguageModel\(model, tokeniz"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_other_batches_name_what_to_give(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        contribute(small_resnet(), make(torch.randn(3, 1, 5, 5)), "block1")


@pytest.mark.usefixtures("unchecked")
def test_texts_of_methods_and_targets_name_the_object() -> None:
    x = torch.randn(3, 1, 5, 5)
    for option, message in (
        ({"target": "predicted"}, r"target 'predicted': .*in Python give condec.Predicted\("),
        ({"target": "logit:3"}, r"in Python give condec.Logit\(index=3"),
        ({"target": "likely"}, "target 'likely': expected topK"),
        ({"method": "ig:20"}, r"in Python give condec.attribution.IntegratedGradients\(steps=20"),
        ({"method": "shap"}, "method 'shap': expected ig"),
        ({"method": ActGrad}, r"got the class ActGrad; call it: ActGrad\(\)"),
    ):
        with pytest.raises(OptionError, match=message):
            contribute(small_resnet(), x, "block1", **option)  # type: ignore[arg-type]


class Pole(torch.nn.Module):
    """Has a value at the inputs, and none where the input is `at`."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at, self.site = at, torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 / (self.site(x) - self.at)).sum(1, keepdim=True) * torch.ones(1, 2)


@pytest.mark.parametrize("target", [Logit(0), TopK(k=1), Predicted()])
def test_a_baseline_that_is_not_finite_is_not_blamed_on_the_inputs(target: Target) -> None:
    x = torch.rand(3, 2) + 1
    words = "the target at the baseline is not finite; look at the baseline"
    with pytest.raises(DataError, match=words) as caught:
        contribute(Pole(0.0).eval(), x, "site", target=target)
    assert caught.value.samples == ()
    own = IntegratedGradients(baseline=Samples(n_samples=1, values=torch.ones(1, 2)))
    with pytest.raises(DataError, match="the target at the baseline is not finite"):
        contribute(Pole(1.0).eval(), x, "site", target=target, method=own)


def test_a_path_that_is_not_finite_names_its_samples() -> None:
    x = torch.full((4, 2), 3.0)
    x[2] = 8.0  # 8 * 3 / 4 is the pole
    method = IntegratedGradients(steps=4)
    words = r"on the path from the baseline is not finite for 1 of 4 .* \[2\]\); look at the base"
    with pytest.raises(DataError, match=f"the target {words}") as caught:
        contribute(Pole(6.0).eval(), x, "site", method=method)
    assert caught.value.samples == (2,)
