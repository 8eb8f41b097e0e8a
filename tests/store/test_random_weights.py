"""Random weights: nothing trained stays, nothing else changes, and statistics are new."""

import pytest
import torch
from torch import nn

from condec.basis.errors import DataError, ModelError, OptionError
from condec.models.torchvision import import_torchvision
from condec.store.random_weights import modules_from, randomize
from condec.testing.models import small_resnet


class Tokens(nn.Module):
    """A token, positions, layer scale and a temperature: parameters without a module of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.temperature = nn.Parameter(torch.tensor(3.7))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(len(x), 1, 4), x], 1)
        x = self.norm(x + self.scale * self.attention(x, x, x)[0])
        out: torch.Tensor = self.head(x[:, 0]) / self.temperature
        return out


def conv_net() -> nn.Sequential:
    """conv-BN-relu-dropout-conv-BN-pool-linear, trained-looking, in evaluation mode."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 5
            module.running_var *= 9
    return net.eval()


def trained(model: nn.Module) -> nn.Module:
    """The model with every parameter moved off its first value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.rand_like(parameter) + 0.1
    return model.eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in a if torch.equal(a[name], b[name])}


@pytest.mark.parametrize("make", [small_resnet, Tokens, conv_net])
def test_no_parameter_stays_and_the_model_does(make) -> None:  # type: ignore[no-untyped-def]
    model = trained(make())
    before, caller = state(model), torch.get_rng_state()
    other = randomize(model)
    assert torch.equal(torch.get_rng_state(), caller)
    assert same(state(model), before) == before.keys()
    names = {name for name, _ in model.named_parameters()}
    assert names
    assert not same(state(other), before) & names
    assert all(bool(value.isfinite().all()) for value in other.parameters())
    assert type(other) is type(model)
    assert not other.training


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8,
        num_classes=3,
    )  # fmt: skip


def swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=3)


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 8, 1), CNBlockConfig(8, None, 1)], num_classes=3)


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(  # type: ignore[no-untyped-call]
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, init_values=0.1, reg_tokens=1
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=6))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (vision_transformer, "torchvision"), (swin, "torchvision"), (convnext, "torchvision"),
        (timm_vit, "timm"), (gpt2, "transformers"),
    ],
)  # fmt: skip
def test_architectures_keep_no_parameter(make, package: str) -> None:  # type: ignore[no-untyped-def]
    import_torchvision()  # as condec does: timm and transformers import it, too
    pytest.importorskip(package)
    model = trained(make())
    before = state(model)
    other = randomize(model)
    names = {name for name, _ in model.named_parameters()}
    assert not same(state(other), before) & names
    assert all(bool(value.isfinite().all()) for value in other.parameters())


def test_constants_that_initialization_gives_are_the_only_ones_that_may_stay() -> None:
    model = conv_net()
    stays = same(state(randomize(model)), state(model)) & {n for n, _ in model.named_parameters()}
    assert stays == {"1.weight", "1.bias", "5.weight", "5.bias"}


def test_own_initialization_is_used_where_there_is_one() -> None:
    model = trained(conv_net())
    other = randomize(model)
    for number in (0, 4, 7):
        weight = other[number].weight.detach()
        bound = weight[0].numel() ** -0.5  # torch's own: evenly distributed, +- 1 / sqrt(fan in)
        assert float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.25)
    assert other[1].weight.tolist() == [1.0] * 4
    assert other[1].bias.tolist() == [0.0] * 4
    assert other[1].running_mean.tolist() == [0.0] * 4
    assert other[5].running_var.tolist() == [1.0] * 6


def test_parameters_without_initialization_are_shuffled() -> None:
    model = trained(Tokens())
    other = randomize(model)
    for name in ("token", "scale"):
        had, has = getattr(model, name).flatten(), getattr(other, name).flatten()
        assert sorted(had.tolist()) == sorted(has.tolist())
        assert had.tolist() != has.tolist()
    factor = float((other.temperature / model.temperature).detach())
    assert 0.5 <= factor <= 2
    assert factor != 1
    # A weight that is made of others is drawn as without them.
    bound = model.head.weight.shape[1] ** -0.5 + 1e-6
    assert float(other.head.weight.detach().abs().max()) <= bound
    assert not torch.allclose(other.head.weight, model.head.weight, atol=0.1)


def test_seed_decides() -> None:
    model = trained(Tokens())
    one, again, other = (state(randomize(model, seed=seed)) for seed in (3, 3, 4))
    assert same(one, again) == one.keys()
    torch.manual_seed(99)
    assert same(one, state(randomize(model, seed=3))) == one.keys()
    constants = {"attention.in_proj_bias", "norm.weight", "norm.bias"}
    assert same(one, other) == constants


def test_from_a_module_on() -> None:
    model = trained(small_resnet())
    before = state(model)
    other = state(randomize(model, from_module="block2.conv2"))
    kept = {n for n in before if not n.startswith(("block2.conv2", "head"))}
    assert same(other, before) == kept
    assert kept
    whole = state(randomize(model))
    assert same(other, whole) == before.keys() - kept


def test_modules_from() -> None:
    names = [name for name, _ in small_resnet().named_modules()]
    assert modules_from(small_resnet(), None) == set(names)
    assert modules_from(small_resnet(), "block2") == set(names[names.index("block2") :])
    assert "block1" not in modules_from(small_resnet(), "block2")


@pytest.mark.parametrize("name", ["block3", ""])
def test_a_module_that_is_not_there(name: str) -> None:
    message = rf"random weights from '{name}': SmallResNet has no such module; nearest: .*block"
    with pytest.raises(OptionError, match=message):
        randomize(small_resnet(), from_module=name)


# --- batch normalization ------------------------------------------------------------------


def outputs_of_norms(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    handles = [
        m.register_forward_hook(lambda _m, _i, out: found.append(out.clone()))
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def test_normalized_outputs_have_mean_0_and_variance_1() -> None:
    model = trained(conv_net()).double()
    inputs = torch.rand(64, 1, 8, 8, dtype=torch.float64) * 3 + 1
    untouched = inputs.clone()
    other = randomize(model, inputs=inputs)
    assert torch.equal(inputs, untouched)
    found = outputs_of_norms(other, inputs)
    assert len(found) == 2
    for out in found:
        assert out.mean((0, 2, 3)).abs().max() < 1e-3
        assert (out.var((0, 2, 3)) - 1).abs().max() < 0.01
    stale = randomize(model)
    assert float(outputs_of_norms(stale, inputs)[0].mean((0, 2, 3)).abs().max()) > 0.1


def test_a_first_layer_in_place_does_not_reach_the_inputs() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    inputs = torch.randn(8, 1, 5, 5)
    untouched = inputs.clone()
    randomize(model, inputs=inputs)
    assert torch.equal(inputs, untouched)


def test_statistics_are_the_mean_of_those_of_all_batches() -> None:
    model = conv_net()
    batches = [torch.rand(16, 1, 8, 8) + shift for shift in (0, 1, 5)]
    other = randomize(model, inputs=batches)
    with torch.no_grad():
        first = [other[0](batch) for batch in batches]
    mean = torch.stack([out.mean((0, 2, 3)) for out in first]).mean(0)
    variance = torch.stack([out.var((0, 2, 3)) for out in first]).mean(0)
    torch.testing.assert_close(other[1].running_mean, mean)
    torch.testing.assert_close(other[1].running_var, variance)
    assert other[1].num_batches_tracked == 3


def test_modes_momenta_and_dropout_are_as_before() -> None:
    model = conv_net()
    model[1].momentum = 0.3
    model[3].train()
    inputs = torch.rand(32, 1, 8, 8)
    other, again = randomize(model, inputs=inputs), randomize(model, inputs=inputs)
    assert [m.training for m in other.modules()] == [m.training for m in model.modules()]
    assert (other[1].momentum, other[5].momentum) == (0.3, 0.1)
    # Dropout would make the statistics behind it depend on chance.
    assert same(state(other), state(again)) == state(other).keys()


def test_statistics_before_the_first_module_drawn_stay() -> None:
    model = conv_net()
    other = randomize(model, from_module="4", inputs=torch.rand(32, 1, 8, 8))
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    assert not torch.equal(other[5].running_mean, model[5].running_mean)
    # Where nothing is to be estimated, no input is asked for.
    unread = (pytest.fail("an input was read") for _ in range(1))
    randomize(model, from_module="6", inputs=unread)
    randomize(small_resnet(), inputs=unread)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(torch.rand(1, 5), r"need more inputs .*at least 2 samples"), ([], r"no inputs to estimate")],
)
def test_too_few_inputs(inputs, message: str) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(DataError, match=message):
        randomize(model, inputs=inputs)


# --- models that cannot be ----------------------------------------------------------------


def test_statistics_that_cannot_be_estimated() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True))
    with pytest.raises(ModelError, match=r"1: InstanceNorm2d holds statistics .*BatchNorm"):
        randomize(model)


def test_lazy_weights() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"0: its weights have no shape yet.*run the model once"):
        randomize(model)


def test_a_model_that_cannot_be_copied() -> None:
    model = small_resnet()
    model.kept = model.head.weight * 2  # a result, not a leaf
    with pytest.raises(ModelError, match=r"SmallResNet cannot be copied .*without hooks"):
        randomize(model)


def test_a_compiled_model_is_seen_through() -> None:
    model = trained(conv_net())
    found = randomize(torch.compile(model), from_module="4", inputs=torch.ones(8, 1, 8, 8))
    wanted = randomize(model, from_module="4", inputs=torch.ones(8, 1, 8, 8))
    assert same(state(found), state(wanted)) == state(model).keys()


def test_a_reset_that_wants_arguments_is_not_called() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(5.0))

        def reset_parameters(self, how: str) -> None:
            raise AssertionError(how)

    other = randomize(Odd())
    assert sorted(other.weight.tolist()) == [0, 1, 2, 3, 4]


def test_it_is_a_copy() -> None:
    model = small_resnet()
    other = randomize(model, from_module="head")
    with torch.no_grad():
        other.stem.weight.zero_()
    assert bool(model.stem.weight.any())


@pytest.mark.gpu
def test_every_device_draws_the_same_and_keeps_its_generator() -> None:
    model = trained(conv_net())
    before = torch.cuda.get_rng_state()
    there = randomize(conv_net_on(model, "cuda"), seed=5)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(value.is_cuda for value in there.state_dict().values())
    here, moved = state(randomize(model, seed=5)), state(there.cpu())
    assert same(here, moved) == here.keys()


def conv_net_on(model: nn.Module, device: str) -> nn.Module:
    net = conv_net().to(device)
    net.load_state_dict(model.state_dict())
    return net


# --- weights that something is worked out from ----------------------------------------------


def singular(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().double().flatten(1))[0])


@pytest.mark.parametrize("old", [False, True])
def test_spectral_norm_is_that_of_the_new_weights(old: bool) -> None:
    norm = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    net = nn.ModuleList(
        [norm(nn.Conv2d(2, 5, 3)), norm(nn.Linear(9, 7)), norm(nn.ConvTranspose1d(1, 2, 3)),
         norm(nn.Embedding(4, 3))]
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(57.0).add_(torch.randn_like(parameter))
    other = randomize(net.eval())
    with torch.no_grad():  # the old kind works the weights out as it runs
        samples = (
            torch.randn(1, 2, 4, 4),
            torch.randn(1, 9),
            torch.randn(1, 1, 4),
            torch.tensor([1]),
        )
        for module, sample in zip(other, samples, strict=True):
            module(sample)
    for place in (0, 1, 3):
        assert singular(other[place].weight) == pytest.approx(1.0, abs=1e-5)
    # A transposed convolution is normalised along its second axis.
    assert singular(other[2].weight.transpose(0, 1)) == pytest.approx(1.0, abs=1e-5)


def test_what_parametrizations_make_is_drawn_as_without_them() -> None:
    from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 3))
    made = nn.Sequential(
        weight_norm(nn.Linear(6, 6)), spectral_norm(nn.Linear(6, 4)),
        orthogonal(nn.Linear(4, 3)), orthogonal(nn.Linear(3, 3), use_trivialization=False),
    )  # fmt: skip
    before = [module.weight.detach().clone() for module in made]
    expected, other = randomize(plain, seed=4), randomize(made.eval(), seed=4)
    torch.testing.assert_close(other[0].weight, expected[0].weight)
    torch.testing.assert_close(
        other[1].weight, expected[1].weight / singular(expected[1].weight), rtol=1e-5, atol=1e-6
    )
    for place in (0, 1):
        assert torch.equal(other[place].bias, expected[place].bias)
    for place in (2, 3):
        weight = other[place].weight.detach()
        torch.testing.assert_close(weight @ weight.T, torch.eye(3))
        assert float((weight - before[place]).abs().max()) > 0.1
    assert all(torch.equal(a.weight, b) for a, b in zip(made, before, strict=True))


class Kept(nn.Module):
    """A parametrization that keeps a number of the weights and cannot be assigned to."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("largest", weight.detach().abs().max())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.largest  # type: ignore[no-any-return]


class VarianceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_var", torch.ones(3))


def test_numbers_of_trained_weights_that_cannot_be_renewed_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3), VarianceNorm())
    nn.utils.parametrize.register_parametrization(net[0], "weight", Kept(net[0].weight))
    with pytest.raises(ModelError, match=r"0: its weight is made by Kept, which may hold numbers"):
        randomize(net[:1])
    with pytest.raises(ModelError, match="1: VarianceNorm holds statistics of its training data"):
        randomize(net, from_module="1")
