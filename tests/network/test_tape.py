"""Records are right whatever the model does next, and nothing is left behind."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from condec import ActGrad, IntegratedGradients, Logit, UnitAblation, contribute, mode_map
from condec.basis.errors import ModelError, OptionError, SiteError
from condec.network.cuts import find_cuts, inspect_model
from condec.network.sites import Site, find_sites
from condec.network.tape import record, run_model
from condec.testing.models import small_mlp, small_resnet


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Wrapped(nn.Module):
    """Passes its input through `layer` and packs the result as `pack` says."""

    def __init__(self, layer: nn.Module, pack) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.layer, self.pack = layer, pack

    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        return self.pack(self.layer(x))


def test_records_and_gradients_of_a_linear_read_out() -> None:
    model, images = small_resnet(), torch.randn(3, 1, 5, 4)
    with record(model, find_sites(model, "block2")) as tape:
        logits = run_model(model, images)
        gradient = tape.gradients(logits[:, 1].sum())["block2"]
    expected = (model.head.weight[1] / 20).detach()[None, :, None, None].expand(3, -1, 5, 4)
    assert torch.allclose(gradient, expected)
    activation = tape.records["block2"]
    assert torch.allclose(model.head(activation.mean((2, 3))), model(images))


@pytest.fixture(params=["success", "error in the model", "error in the target"])
def outcome(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


def test_nothing_is_left_behind(outcome: str) -> None:
    model = small_resnet()
    model.stem.weight.requires_grad_(False)
    trainable = [p.requires_grad for p in model.parameters()]
    shape = (2, 3, 5, 5) if outcome == "error in the model" else (2, 1, 5, 5)
    try:
        with record(model, find_sites(model, "**")) as tape:
            logits = run_model(model, torch.randn(shape))
            if outcome == "error in the target":
                raise ZeroDivisionError
            tape.gradients(logits.sum())
    except (ModelError, ZeroDivisionError):
        assert outcome != "success"
    else:
        assert outcome == "success"
    assert hooks(model) == 0
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert all(p.grad is None for p in model.parameters())


def test_no_parameter_gradient_is_allocated() -> None:
    model = small_resnet()
    allocated = []
    for parameter in model.parameters():
        parameter.register_hook(allocated.append)  # fires when a gradient of it is computed
    with record(model, find_sites(model, "block1")) as tape:
        tape.gradients(run_model(model, torch.randn(2, 1, 5, 5)).sum())
    assert allocated == []
    model(torch.randn(2, 1, 5, 5)).sum().backward()
    assert len(allocated) > 0  # the detector works


@pytest.mark.parametrize("frozen", [True, False])
def test_in_place_and_out_of_place_twins_agree(frozen: bool) -> None:
    plain, inplace = small_resnet().double(), small_resnet(inplace=True).double()
    for model in (plain, inplace):
        model.requires_grad_(not frozen)
    images = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    results = []
    for model in (plain, inplace):
        with record(model, find_sites(model, "**")) as tape:
            gradients = tape.gradients(run_model(model, images).max(1).values.sum())
        results.append((tape.records, gradients))
    (h0, g0), (h1, g1) = results
    assert list(h0) == list(h1)
    assert len(h0) == 13
    for key in h0:
        # The in-place sum rewrites conv2's output after it came out: the record must not change.
        assert torch.equal(h0[key], h1[key]), key
        assert torch.equal(g0[key], g1[key]), key


def test_identity_gets_the_gradient_of_its_own_branch() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.twofold = nn.Identity(), nn.Linear(1, 1, bias=False)
            self.twofold.weight.data.fill_(2.0)
            self.first = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            kept = self.skip(x)
            y = self.twofold(x)
            x.add_(100.0)  # rewrites what the identity returned, after it came out
            return y + kept

    # The identity returns x itself, which is used elsewhere too: only its own use counts.
    with record(model := Fork().eval(), find_sites(model, "*")) as tape:
        gradients = tape.gradients(run_model(model, torch.ones(1, 1)).sum())
    assert tape.records["skip"].item() == 1.0
    assert gradients["skip"].item() == 1.0
    assert gradients["first"].item() == 3.0


def test_a_module_called_twice_raises_by_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act, self.unused = nn.Linear(2, 2), nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.linear(self.act(x)))

    model = Twice().eval()

    def run(pattern: str) -> dict[str, Tensor]:
        with record(model, find_sites(model, pattern)) as tape:
            run_model(model, torch.ones(1, 2))
            return tape.records

    with pytest.raises(SiteError, match=r"act is called 2 times .*: act#0, act#1"):
        run("act")
    assert list(run("act#1, act#0")) == ["act#0", "act#1"]
    assert torch.equal(run("act#0")["act#0"], torch.ones(1, 2))
    with pytest.raises(SiteError, match=r"act#2: the module is called 2 times .*#0 to #1"):
        run("act#2")
    with pytest.raises(SiteError, match="unused: the module did not run"):
        run("unused")
    with pytest.raises(SiteError, match="Twice has no module 'gone'"):
        with record(model, [Site("gone")]):
            pass
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "pack",
    [lambda y: (y, "extra"), lambda y: [y, None], lambda y: {"logits": y, "extra": 1},
     lambda y: (None, y)],
)  # fmt: skip
def test_outputs_in_containers(pack) -> None:  # type: ignore[no-untyped-def]
    inner = Wrapped(nn.Linear(3, 3), pack)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = inner, nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            values = list(out.values()) if isinstance(out, dict) else list(out)
            return self.head(next(v for v in values if isinstance(v, Tensor)))

    model = Outer().eval()
    with record(model, find_sites(model, "inner")) as tape:
        gradient = tape.gradients(run_model(model, torch.randn(2, 3))[:, 0].sum())["inner"]
    assert torch.allclose(gradient, model.head.weight[0].detach().expand(2, 3))


def test_input_tap() -> None:
    model = small_mlp()
    with record(model, find_sites(model, "2:input, 1")) as tape:
        gradients = tape.gradients(run_model(model, torch.randn(2, 5)).sum())
    assert torch.equal(tape.records["1"], tape.records["2:input"])
    assert torch.equal(gradients["1"], gradients["2:input"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = small_mlp().to(dtype)
    with record(model, find_sites(model, "1")) as tape:
        gradients = tape.gradients(run_model(model, torch.randn(2, 5, dtype=dtype)).sum())
    assert gradients["1"].dtype == dtype


def test_works_inside_inference_mode_and_no_grad() -> None:
    model, x = small_mlp(), torch.randn(2, 5)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode(), record(model, find_sites(model, "1")) as tape:
            gradients = tape.gradients(run_model(model, x).sum())
        assert gradients["1"].shape == (2, 6)


def test_train_mode_is_refused_with_the_reason() -> None:
    model = small_resnet()
    model.block1.train()
    with pytest.raises(ModelError, match=r"SmallResNet is in training mode \(block1, block1.conv1"):
        with record(model, []):
            pass


def test_wrong_shape_and_wrong_output_are_explained() -> None:
    with pytest.raises(ModelError, match=r"SmallResNet failed on inputs of shape \(2, 3, 5, 5\)"):
        run_model(small_resnet(), torch.zeros(2, 3, 5, 5))
    with pytest.raises(ModelError, match="returned str without a tensor"):
        run_model(Wrapped(nn.Identity(), lambda _: "text"), torch.zeros(1, 2))


def test_sites_without_influence_are_named() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.aside = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.aside(x)
            return self.used(x)

    model = Aside().eval()
    for pattern, message in (("*", "does not depend on: aside"), ("aside", "none of the sites")):
        with record(model, find_sites(model, pattern)) as tape:
            logits = run_model(model, torch.randn(1, 2))
            with pytest.raises(SiteError, match=message):
                tape.gradients(logits.sum())


def test_cuts_of_a_residual_network() -> None:
    model = small_resnet()
    cuts = find_cuts(model, torch.randn(1, 1, 5, 5), find_sites(model, "**"))
    assert {key for key, cut in cuts.items() if cut} == {
        "stem", "relu", "block1", "block1.out", "block2", "block2.out", "head",
    }  # fmt: skip


def test_inspect_lists_calls_shapes_and_cuts() -> None:
    table = inspect_model(small_resnet(), torch.randn(1, 1, 5, 4)).set_index("site")
    assert table.loc["block1", "shape"] == (4, 5, 4)
    assert table.loc["block1", "parameters"] == 2 * (4 * 4 * 9 + 4)
    assert bool(table.loc["block1", "cut"])
    assert not bool(table.loc["block1.conv1", "cut"])
    assert list(table.index).index("block1.conv1") < list(table.index).index("block1")


def test_output_without_input_is_an_error() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.ones_like(x))

    model = Constant().eval()
    with pytest.raises(ModelError, match="the output does not depend on the input"):
        find_cuts(model, torch.ones(1, 2), find_sites(model, "linear"))


class KeepsAside(nn.Module):
    """Returns a tensor that it also keeps, for somebody to change."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x * 2
        return self.kept


def test_a_record_changed_through_another_reference_is_refused() -> None:
    class Meddler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = KeepsAside(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            self.inner.kept.mul_(3)
            return self.head(out)

    model = Meddler().eval()
    with record(model, find_sites(model, "inner")) as tape:
        run_model(model, torch.ones(1, 2))
        with pytest.raises(SiteError, match="inner: the model kept this tensor aside"):
            _ = tape.records


def test_models_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(2, 2)).eval()
    with pytest.raises(ModelError, match=r"was made under torch\.inference_mode"):
        with record(model, [Site("0")]):
            pass


@pytest.mark.parametrize("inputs_require_grad", [False, True])
def test_tangents_stay_on_the_records(inputs_require_grad: bool) -> None:
    """Forward-mode differentiation of every record, against differences."""
    model = small_resnet(inplace=True).double()
    images, direction = torch.randn(2, 2, 1, 6, 5, dtype=torch.float64)
    sites = find_sites(model, ":input, block1, block1.conv1:input, block2")

    def records(x: Tensor) -> dict[str, Tensor]:
        with record(model, sites) as tape:
            run_model(model, x)
        return {key: tensor.detach() for key, tensor in tape.records.items()}

    with forward_ad.dual_level():
        start = images.clone().requires_grad_(inputs_require_grad)
        with record(model, sites) as tape:
            output = run_model(model, forward_ad.make_dual(start, direction))
            duals = {key: forward_ad.unpack_dual(h) for key, h in tape.records.items()}
            output = forward_ad.unpack_dual(output).primal
            gradients = tape.gradients(output[:, 1].sum())
    up, down = records(images + 1e-6 * direction), records(images - 1e-6 * direction)
    assert list(duals) == [":input", "block1.conv1:input", "block1", "block2"]
    for key, dual in duals.items():
        slope = (up[key] - down[key]) / 2e-6
        assert dual.tangent is not None, key
        assert torch.allclose(dual.tangent, slope, atol=1e-6), key
    # Carrying tangents changes no gradient.
    with record(model, sites) as tape:
        plain = tape.gradients(run_model(model, images)[:, 1].sum())
    for key, gradient in plain.items():
        assert torch.allclose(gradients[key], gradient, atol=1e-12), key


def test_the_input_of_the_model_is_a_site() -> None:
    model = small_resnet()
    images = torch.randn(2, 1, 5, 5)
    (site,) = find_sites(model, ":input")
    assert site == Site("", "input")
    assert site.key == ":input"
    assert Site.parse(":input@positions").key == ":input@positions"
    assert find_cuts(model, images, [site]) == {":input": True}
    with record(model, [site]) as tape:
        gradient = tape.gradients(run_model(model, images)[:, 0].sum())[":input"]
    given = images.clone().requires_grad_()
    model(given)[:, 0].sum().backward()
    assert torch.equal(tape.records[":input"], images)
    assert torch.equal(gradient, given.grad)
    assert not images.requires_grad
    for text in (":output", "", "#1"):
        with pytest.raises(OptionError, match="expected GLOB"):
            Site.parse(text)


class Lookup(nn.Module):
    """Steps, looked up in a table or rounded: autograd does not lead from the output back."""

    def __init__(self, way: str, *, bypass: bool = False) -> None:
        super().__init__()
        self.way, self.bypass = way, bypass
        self.table, self.up, self.site = nn.Embedding(9, 4), nn.Linear(3, 4), nn.Tanh()
        self.side, self.head = nn.Linear(4, 2), nn.Linear(4, 2)

    def lower(self, x: Tensor) -> Tensor:
        if self.way == "embedding":
            return self.table(x.long()).mean(1)
        if self.way == "detach":
            return self.up(x.detach())
        if self.way == "round":
            return self.up((4 * x).round())
        with torch.no_grad():
            return self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lower(x)
        output = self.head(self.site(h))
        return output + self.side(h) if self.bypass else output


@pytest.mark.parametrize("way", ["embedding", "detach", "round", "no_grad"])
def test_a_site_that_autograd_does_not_lead_back_from(way: str) -> None:
    torch.manual_seed(0)
    model, steps = Lookup(way).double().eval(), 8
    x = torch.tensor([[7.0, 2.0, 5.0], [1.0, 8.0, 3.0]], dtype=torch.float64)
    batch = contribute(model, x, "site", target=Logit(1), method=IntegratedGradients(steps=steps))
    total, before = torch.zeros(2, 4, dtype=torch.float64), None
    slope = model.head.weight[1].detach()
    for k in range(steps + 1):
        h = torch.tanh(model.lower(x * k / steps)).detach()
        total, before = total + (0.0 if before is None else (h - before) * slope), h
    torch.testing.assert_close(batch["site"].contribution, total, rtol=1e-12, atol=1e-14)
    assert batch["site"].cut
    torch.testing.assert_close(batch.completeness()["site"], torch.ones(2).double())
    assert find_cuts(Lookup(way, bypass=True).double().eval(), x, [Site("site")]) == {"site": False}
    table = inspect_model(model, x).set_index("site")
    below = "table" if way == "embedding" else "up"
    assert table["cut"].to_dict() == {below: True, "site": True, "head": True}
    if way == "round":  # whose derivative is zero, as torch has it
        assert not mode_map(model, x, "site", [0]).total.any()
        return
    with pytest.raises(SiteError, match="site does not depend on the input through operations"):
        mode_map(model, x, "site", [0])


def test_an_output_that_follows_no_input_has_no_cuts() -> None:
    model = small_mlp()
    model.register_forward_hook(lambda *_: torch.ones(2, 3))
    with pytest.raises(ModelError, match="the output does not depend on the input, it is the same"):
        find_cuts(model, torch.ones(2, 5), [Site("1")])


class Changes(nn.Module):
    """Works on its own input, in place or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv, self.site, self.head = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.3).mul_(2) if self.inplace else (x - 0.3) * 2
        x = nn.functional.leaky_relu(x, 0.2, inplace=self.inplace)
        return self.head(self.site(self.conv(x)).mean((2, 3)))


def test_an_operation_in_place_on_the_models_own_input() -> None:
    torch.manual_seed(0)
    plain, inplace = Changes(inplace=False).double().eval(), Changes(inplace=True).double().eval()
    inplace.load_state_dict(plain.state_dict())
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    before = x.clone()
    for method in (IntegratedGradients(steps=5), IntegratedGradients(steps="auto"), ActGrad(),
                   IntegratedGradients(steps=5, path="layer"), UnitAblation()):  # fmt: skip
        batches = [
            contribute(m, x, "conv,site", method=method, target=Logit(1)) for m in (plain, inplace)
        ]
        for key in ("conv", "site"):
            first, second = (batch[key].contribution for batch in batches)
            assert torch.equal(first, second), (method, key)
        assert torch.equal(x, before)
    maps = [mode_map(m, x, "site", [1], Logit(1)).total for m in (plain, inplace)]
    assert torch.equal(*maps)
    assert torch.equal(x, before)
    assert inspect_model(inplace, x)["cut"].tolist() == [True] * 3


def test_a_shared_module_is_found_by_each_of_its_names() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Tanh(), layer, nn.Linear(4, 2)).double().eval()
    assert find_sites(model, "3") == find_sites(model, "1") == (Site("1"),)
    assert [site.name for site in find_sites(model, "*")] == ["0", "1", "2", "4"]
    assert find_sites(model, Site("3", call=1)) == (Site("1", call=1),)
    x = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(SiteError, match=r"1 is called 2 times in one forward pass.*1#0, 1#1"):
        contribute(model, x, "3")
    batch = contribute(model, x, "3#1", target=Logit(0), method=ActGrad())
    h = layer(torch.tanh(layer(model[0](x))))
    expected = (h * model[4].weight[0]).detach()
    torch.testing.assert_close(batch["1#1"].contribution, expected)
    with record(model, [Site("3", call=0)]) as tape:
        run_model(model, x)
    assert torch.equal(tape.records["3#0"], layer(model[0](x)))


@pytest.mark.parametrize(
    "error",
    [KeyError("mask"), IndexError("range"), AssertionError("224 pixels"), AttributeError("size")],
)
def test_what_a_model_raises_is_named(error: Exception) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    words = rf"on inputs of shape \(2, 5\) and type torch.float32, {type(error).__name__}: "
    with pytest.raises(ModelError, match=f"^Raises failed {words}") as caught:
        contribute(Raises().eval(), torch.ones(2, 5), ":input")
    assert str(error) in str(caught.value)


def test_why_a_module_did_not_run() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4)])
            self.direct, self.by_hand, self.spare = nn.Tanh(), nn.Linear(4, 4), nn.ReLU()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.direct.forward(self.blocks[0](x))
            x = nn.functional.linear(x, self.by_hand.weight)
            return self.attention(x[:, None], x[:, None], x[:, None])[0].mean(1)

    model = Holds().eval()
    words = "did not run .* A ModuleList never does; choose what is in it, 'blocks.0'"
    with pytest.raises(SiteError, match=words):
        contribute(model, torch.ones(2, 4), "blocks")
    for name in ("direct", "by_hand", "spare"):
        words = rf"{name}: the module did not run.*not as a module"
        with pytest.raises(SiteError, match=words) as caught:
            contribute(model, torch.ones(2, 4), name)
        assert "expose_attention" not in str(caught.value)
    with pytest.raises(SiteError, match=r"attention.out_proj: .*condec.expose_attention\(model\)"):
        contribute(model, torch.ones(2, 4), "attention.out_proj")


@pytest.mark.parametrize("n_samples", [1, 2])
def test_gradients_of_batch_norm_reach_it_in_order(n_samples: int) -> None:
    """For one sample, torch 2.13 takes a gradient in the order of tokens for one in its own."""
    norm = nn.BatchNorm2d(16).double().eval()
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    model = nn.Sequential(nn.Identity(), norm, nn.Flatten(2)).eval()
    x, weight = torch.randn(n_samples, 16, 4, 4).double(), torch.randn(n_samples, 16, 16).double()
    with record(model, [Site("0")]) as tape:
        tokens = model(x).transpose(1, 2).contiguous()
        gradient = tape.gradients((tokens * weight.transpose(1, 2).contiguous()).sum())["0"]
    scale = ((norm.running_var + norm.eps) ** -0.5).view(-1, 1, 1)
    torch.testing.assert_close(gradient, weight.view_as(x) * scale, rtol=1e-12, atol=1e-12)
    assert not norm._forward_hooks
