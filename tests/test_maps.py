"""Maps: what they must be by theorem, what they must refuse, and what they must leave alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from condec.errors import DataError, ModelError, OptionError, SiteError
from condec.maps import mode_map
from condec.sites import Site
from condec.targets import Label, Logit, Predicted
from condec.testing.models import small_mlp, small_resnet


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 1, 5, 5)


# --- theorems -----------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), split=st.integers(1, 3))
def test_maps_of_disjoint_units_add_up(seed, split):
    torch.manual_seed(seed)
    model, x = small_resnet(seed=seed).double(), images().double()
    whole = mode_map(model, x, "block1", range(4), Logit(0))
    first = mode_map(model, x, "block1", range(split), Logit(0))
    second = mode_map(model, x, "block1", range(split, 4), Logit(0))
    for name in ("total", "positive", "negative", "sensitivity"):
        torch.testing.assert_close(
            getattr(whole, name), getattr(first, name) + getattr(second, name)
        )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_parts_have_their_sign_and_add_up_to_the_total(seed):
    torch.manual_seed(seed)
    made = mode_map(small_resnet(seed=seed).double(), images().double(), "block1", [0, 2])
    torch.testing.assert_close(made.total, made.positive + made.negative)
    assert (made.positive.flatten(1).sum(1) >= 0).all()
    assert (made.negative.flatten(1).sum(1) <= 0).all()


def test_all_units_of_a_cut_give_input_times_gradient():
    """At a cut, J_y J_h over all units is the gradient of the target: the chain rule."""
    model, x = small_resnet().double(), images().double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    made = mode_map(model, x.detach(), "block1", range(4), Logit(1))
    torch.testing.assert_close(made.sensitivity, gradient)
    torch.testing.assert_close(made.total, gradient * x.detach())


def test_samples_do_not_mix():
    model, x = small_resnet(), images(3)
    whole = mode_map(model, x, "block1", [1], Predicted())
    for i in range(3):
        alone = mode_map(model, x[i : i + 1], "block1", [1], Predicted())
        torch.testing.assert_close(whole.positive[i], alone.positive[0])


def test_in_place_twin_gives_the_same_map():
    x = images()
    for site in ("block1", "block1.relu", "block2:input"):
        kept = mode_map(small_resnet(inplace=False), x, site, [0, 1])
        overwritten = mode_map(small_resnet(inplace=True), x, site, [0, 1])
        torch.testing.assert_close(kept.positive, overwritten.positive)
        torch.testing.assert_close(kept.negative, overwritten.negative)


def test_features_heads_and_positions_are_units_too():
    flat = mode_map(small_mlp(), torch.randn(2, 5), "1", [0, 5])
    assert flat.total.shape == (2, 5)
    x = images()
    rows = mode_map(small_resnet(), x, "block1@positions", range(25))
    channels = mode_map(small_resnet(), x, "block1", range(4))
    torch.testing.assert_close(rows.total, channels.total)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Identity()
            self.num_heads = 2

        def forward(self, t: Tensor) -> Tensor:
            return self.mix(t).sum(1)

    t = torch.randn(2, 3, 6)
    made = mode_map(Tokens().eval(), t, "mix@heads", [1], Logit(4)).total
    assert made[:, :, 4].equal(t[:, :, 4])
    assert not made[:, :, :4].any()


def test_transformer_encoder_of_torch():
    """Its fast path has no forward-mode derivative; maps must not take it."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            self.head = nn.Linear(8, 3)

        def forward(self, t: Tensor) -> Tensor:
            return self.head(self.layer(t).mean(1))

    model, t = Net().double().eval(), torch.randn(2, 4, 8).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(t)[:, 0].sum(), t)
    made = mode_map(model, t.detach(), "layer@features", range(8), Logit(0))
    torch.testing.assert_close(made.sensitivity, gradient)


def test_one_call_of_a_shared_module():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()
            self.one, self.two = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.act(self.act(self.one(x))))

    model, x = Twice().eval(), torch.randn(2, 5)
    first = mode_map(model, x, "act#0", range(4), Logit(0))
    second = mode_map(model, x, "act#1", range(4), Logit(0))
    torch.testing.assert_close(first.total, second.total)
    with pytest.raises(SiteError, match=r"act is called 2 times.*act#0, act#1"):
        mode_map(model, x, "act", [0])


# --- what must be left alone --------------------------------------------------------------


def test_nothing_is_left_on_the_model_and_inputs_are_untouched():
    model, x = small_resnet(inplace=True), images()
    before, state = x.clone(), {k: v.clone() for k, v in model.state_dict().items()}
    made = mode_map(model, x, "block1", [0])
    with pytest.raises(OptionError, match="units"):
        mode_map(model, x, "block1", [9])
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert not made.total.requires_grad
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for parameter in model.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_no_dual_level_stays_open_after_an_error():
    model = small_resnet()
    with pytest.raises(ModelError, match="failed on inputs of shape"):
        mode_map(model, torch.randn(2, 7, 5, 5), "block1", [0])
    assert torch.autograd.forward_ad._current_level == -1


def test_frozen_parameters_and_numpy_and_no_grad_around():
    model, x = small_resnet().requires_grad_(False), images()
    with torch.no_grad():
        made = mode_map(model, x.numpy(), "block1", (0, 1), Label(), torch.tensor([0, 2]).numpy())
    assert made.total.abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())


# --- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [[], [4], [-1], [1, 1]])
def test_units_that_cannot_be(units):
    with pytest.raises(OptionError, match=r"units: expected different numbers from 0 to 3"):
        mode_map(small_resnet(), images(), "block1", units)


def test_training_mode_is_refused():
    with pytest.raises(ModelError, match="training mode"):
        mode_map(small_resnet().train(), images(), "block1", [0])


def test_several_sites_are_refused():
    with pytest.raises(SiteError, match=r"a map belongs to one site; 'block\*' means 2"):
        mode_map(small_resnet(), images(), "block*", [0])


def test_site_beside_the_way_to_the_target():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.main = nn.Linear(5, 4), nn.Linear(5, 3)
            self.fixed = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.side(x)
            return self.main(x) + self.fixed(torch.ones_like(x))

    model, x = Aside().eval(), torch.randn(2, 5)
    with pytest.raises(SiteError, match="the target does not depend on side"):
        mode_map(model, x, "side", [0], Logit(0))
    with pytest.raises(SiteError, match="fixed does not depend on the input"):
        mode_map(model, x, Site("fixed"), [0], Logit(0))


def test_labels_missing():
    with pytest.raises(DataError, match="needs the label of every sample"):
        mode_map(small_resnet(), images(), "block1", [0], Label())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(2, 1, 5, 5, dtype=torch.int64), "expected a floating-point tensor"),
        (torch.ones(0, 1, 5, 5), "at least one sample"),
        (torch.full((2, 1, 5, 5), torch.nan), "2 of 2 samples hold NaN"),
    ],
)
def test_images_that_cannot_be(bad, message):
    with pytest.raises(DataError, match=message):
        mode_map(small_resnet(), bad, "block1", [0])


def test_operation_without_forward_mode():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.head = nn.Tanh(), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(Opaque.apply(F.relu(x))))

    with pytest.raises(ModelError, match="operation without a forward-mode derivative"):
        mode_map(Net().eval(), torch.randn(2, 5), "act", [0])
