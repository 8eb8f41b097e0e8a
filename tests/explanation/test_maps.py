"""Maps: what they must be by theorem, what they must refuse, and what they must leave alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from condec.attribution.targets import Label, Logit, Predicted
from condec.basis.errors import DataError, ModelError, OptionError, SiteError, StoreError
from condec.basis.npz import load_record, save_record
from condec.explanation import SiteMaps, explain, mode_map, site_maps
from condec.explanation.tangent import AffineTangents
from condec.modes.modes import Modes
from condec.network.sites import Site
from condec.store.store import Store
from condec.testing.models import small_mlp, small_resnet
from small_runs import small_inputs, small_run


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


def dynamic(x):
    """Weights that come from the input themselves: both arguments move."""
    return F.conv2d(x, weight=x[:1, :, :3, :3].repeat(2, 1, 1, 1), bias=x[0, 0, 0, :2])


AFFINE = {
    "bias by keyword": lambda x: F.conv2d(x, torch.ones(4, 2, 3, 3).to(x), bias=x.new_ones(4)),
    "stride and groups": lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3).to(x), None, 2, 1, 1, 2),
    "padding by name": lambda x: F.conv2d(x, torch.ones(4, 2, 3, 3).to(x), padding="same"),
    "transposed": lambda x: F.conv_transpose2d(x, torch.ones(2, 3, 2, 2).to(x), stride=2),
    "one axis": lambda x: F.conv1d(x.flatten(2), torch.ones(3, 2, 4).to(x), x.new_ones(3)),
    "in place after it": lambda x: F.conv2d(x, torch.ones(3, 2, 3, 3).to(x)).relu_().mul_(2),
    "dynamic": dynamic,
    "norm": lambda x: F.batch_norm(x, x.new_ones(2), x.new_full((2,), 3.0)),
    "norm with weights": lambda x: F.batch_norm(
        x, x.new_ones(2), x.new_full((2,), 3.0), x.new_full((2,), -2.0), x.new_ones(2), eps=0.5
    ),
    "norm of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "norm of a constant": lambda x: (
        x * F.batch_norm(torch.ones_like(x), x.new_zeros(2), x.new_ones(2))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AFFINE)
def test_tangents_are_those_of_torch(name):
    x, t = torch.randn(3, 2, 6, 6).double(), torch.randn(3, 2, 6, 6).double()
    _, expected = torch.func.jvp(AFFINE[name], (x,), (t,))
    with torch.autograd.forward_ad.dual_level(), AffineTangents():
        dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(), t)
        out = AFFINE[name](dual)
        primal, tangent = torch.autograd.forward_ad.unpack_dual(out)
        torch.testing.assert_close(tangent, expected)
        torch.testing.assert_close(primal.detach(), AFFINE[name](x))
    assert primal.requires_grad


class Grouped(nn.Module):
    """Norm, and one called by torch's other name for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(torch.group_norm(input=x.tanh(), num_groups=1).relu().mean((2, 3)))


def test_group_norm_where_channels_lie_last_in_memory():
    """Torch's own forward-mode rule fails there: view size is not compatible."""
    model, x = Grouped().double().eval(), torch.randn(2, 3, 6, 6).double()
    expected = mode_map(model, x, "norm", [0, 2], Logit(1))
    made = mode_map(model, x.to(memory_format=torch.channels_last), "norm", [0, 2], Logit(1))
    assert expected.positive.abs().max() > 1e-3
    torch.testing.assert_close(made.positive, expected.positive)
    torch.testing.assert_close(made.negative, expected.negative)


@pytest.mark.parametrize("site", ["block1", "block2@positions"])
def test_several_modes_at_once_are_sums_of_maps_of_single_units(site):
    model, x = small_resnet().double(), images().double()
    single = [mode_map(model, x, site, [unit], Logit(1)) for unit in range(4)]
    weights = torch.zeros(2, 4 if site == "block1" else 25, dtype=torch.float64)
    weights[:, :4] = torch.tensor([[1.0, 0, 0.5, 2], [-1.0, 3, 0, 0]])
    made = mode_map(model, x, site, weights=weights, target=Logit(1))
    assert made.total.shape == (2, *x.shape)
    for name, other in (("positive", "negative"), ("negative", "positive")):
        for mode in range(2):
            parts = [
                w * getattr(one, name if w >= 0 else other)
                for w, one in zip(weights[mode, :4].tolist(), single, strict=True)
            ]
            torch.testing.assert_close(getattr(made, name)[mode], sum(parts))


def test_operations_whose_rules_torch_compiles():
    torch.manual_seed(0)
    layers = (nn.Linear(5, 6), nn.LogSigmoid(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    model, x = nn.Sequential(*layers).double().eval(), torch.randn(2, 5).double()
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, 0].sum(), x)
    made = mode_map(model, x.detach(), "3", range(4), Logit(0))
    torch.testing.assert_close(made.sensitivity, gradient)


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


def test_weights_that_cannot_be():
    for both in ({}, {"units": [0], "weights": torch.ones(1, 4)}):
        with pytest.raises(OptionError, match="give either units or weights"):
            mode_map(small_resnet(), images(), "block1", **both)
    for wrong in (torch.ones(4), torch.ones(0, 4), torch.ones(2, 5)):
        with pytest.raises(OptionError, match=r"weights: expected shape \[mode, 4\]"):
            mode_map(small_resnet(), images(), "block1", weights=wrong)


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


# --- maps of a site -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def modes(tmp_path_factory) -> Modes:
    folder = small_run(tmp_path_factory.mktemp("run") / "run", links=("fit",))
    store = Store.open(folder / "contributions.zarr")
    found = Modes.load(folder / "modes" / "block2%3Ainput" / "kmeans", store)
    # So many held-out inputs use each, and their atoms are so far apart, that all are shown.
    drawn = torch.Generator().manual_seed(1)
    loadings, atoms = (
        torch.rand(one.shape, generator=drawn) for one in (found.loadings, found.atoms)
    )
    return replace(found, loadings=loadings, atoms=atoms**8)


def test_site_maps_are_the_maps_of_the_strongest_units_on_the_strongest_inputs(modes):
    model, inputs = small_resnet(), small_inputs()
    made = site_maps(model, inputs, modes, n_modes=2, n_inputs=3, n_units=2)
    assert made.site == "block2:input"
    assert made.target == {"name": "Predicted", "probability": False}
    assert made.pictures.shape[1:] == (8, 8, 3)
    for place in range(2):
        mode = int((modes.ids == made.mode_ids[place]).nonzero())
        top = modes.loadings[:, mode].topk(3).values
        torch.testing.assert_close(made.loadings[place], top)
        units = modes.atoms[mode].argsort(descending=True)[:2]
        assert torch.equal(made.units[place], units)
        ids = [made.ids[sample] for sample in made.samples[place].tolist()]
        images = torch.stack([inputs.load(int(i)) for i in ids])
        expected = mode_map(model, images, "block2:input", units)
        torch.testing.assert_close(made.total[place], expected.total.sum(1))
        torch.testing.assert_close(made.positive[place], expected.positive.sum(1))
        torch.testing.assert_close(made.negative[place], expected.negative.sum(1))
    for sample, name in enumerate(made.ids):
        assert torch.equal(made.pictures[sample], inputs.picture(int(name)))
        assert made.labels[sample] == int(name) % 3
        assert bool(made.held_out[sample]) == bool(modes.held_out[int(name)])


def test_place_maps_are_those_of_explanations_one_by_one(modes):
    model, inputs = small_resnet(), small_inputs()
    made = site_maps(model, inputs, modes, n_modes=2, n_inputs=3)
    for place, mode in enumerate(made.mode_ids.tolist()):
        for number, sample in enumerate(made.samples[place].tolist()):
            found = explain(model, inputs.batch([int(made.ids[sample])]), modes)
            (part, *_) = found.by_site[0].showing([mode], others=True).parts
            torch.testing.assert_close(made.places[place, number], part.places.float())
    assert made.places.any()
    assert site_maps(model, inputs, replace(modes, encoder=None), n_modes=1).places is None


def test_a_mode_that_few_inputs_use_leaves_places_empty(modes):
    few, users = modes.loadings.clone(), modes.held_out.nonzero().flatten()[:5]
    few[:, 0] = 0.0
    few[users, 0] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    one = replace(modes, loadings=few)
    made = site_maps(small_resnet(), small_inputs(), one, n_inputs=7)
    place = int((made.mode_ids == modes.ids[0]).nonzero())
    shown = [int(made.ids[s]) for s in made.samples[place].tolist() if s >= 0]
    assert shown == users.tolist()
    assert not made.total[place, 5:].any()
    assert made.total[place, 0].any()


def test_site_maps_without_labels(tmp_path):
    folder = small_run(tmp_path / "run", labelled=False, links=("fit",))
    store = Store.open(folder / "contributions.zarr")
    unnamed = Modes.load(folder / "modes" / "block2%3Ainput" / "kmeans", store)
    made = site_maps(small_resnet(), small_inputs(), unnamed, n_modes=1, n_inputs=1)
    assert set(made.labels.tolist()) == {-1}


def test_typical_drawn_and_counter_examples_have_pictures(modes):
    made = site_maps(small_resnet(), small_inputs(), modes, n_modes=2, n_inputs=2, n_others=3)
    wanted = set(made.samples[made.samples >= 0].tolist())
    wanted = {int(made.ids[sample]) for sample in wanted}
    for place, number in enumerate(made.mode_ids.tolist()):
        row = int((modes.ids == number).nonzero())
        for at, kind in enumerate((modes.typical, modes.random, modes.counter_examples)):
            rows = kind(row, 3)["row"].tolist()
            wanted |= set(rows)
            shown = [sample for sample in made.others[place, at].tolist() if sample >= 0]
            assert [int(made.ids[sample]) for sample in shown] == rows
    assert sorted(map(int, made.ids)) == sorted(wanted)
    few = site_maps(small_resnet(), small_inputs(), modes, n_modes=2, n_inputs=2, n_others=0)
    assert few.others.shape == (2, 3, 0)
    assert set(few.samples[few.samples >= 0].tolist()) == set(range(len(few.ids)))
    assert torch.equal(few.total, made.total)


def test_typical_drawn_and_counter_examples_have_maps(modes):
    model, inputs = small_resnet(), small_inputs()
    made = site_maps(model, inputs, modes, n_modes=2, n_inputs=2, n_others=2)
    bare = site_maps(model, inputs, replace(modes, encoder=None), n_modes=2, n_inputs=2, n_others=2)
    assert made.of_others.shape == (2, 3, 2, *made.places.shape[2:])
    assert bare.of_others.shape == (2, 3, 2, 8, 8)
    n_checked = 0
    for place, mode in enumerate(made.mode_ids.tolist()):
        for sample, own, total in zip(
            made.others[place].flatten().tolist(), made.of_others[place].flatten(0, 1),
            bare.of_others[place].flatten(0, 1), strict=True,
        ):  # fmt: skip
            if sample < 0:
                assert not own.any()
                assert not total.any()
                continue
            image = inputs.batch([int(made.ids[sample])])
            found = explain(model, image, modes).by_site[0].showing([mode], others=True)
            torch.testing.assert_close(own, found.parts[0].places.float())
            drawn = mode_map(model, image, "block2:input", made.units[place])
            torch.testing.assert_close(total, drawn.total[0].sum(0))
            n_checked += 1
    assert n_checked > 6


def test_modes_of_activations_have_no_counter_examples(modes):
    of_activations = replace(modes, quantity="activation", encoder=None)
    made = site_maps(small_resnet(), small_inputs(), of_activations, n_modes=1, n_inputs=2)
    assert (made.others[0, 2] == -1).all()
    assert (made.others[0, :2] >= 0).all()


def test_saved_maps_come_back_and_are_the_same_bytes(modes, tmp_path):
    made = site_maps(small_resnet(), small_inputs(), modes, n_modes=2, n_inputs=2)
    first = save_record(tmp_path / "deep" / "a.npz", made)
    (tmp_path / "b.npz.0123abcd.partial").touch()  # of a writer that was killed
    again = save_record(tmp_path / "b.npz", made)
    assert first.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.npz", "deep"]
    back = load_record(first, SiteMaps)
    assert (back.site, back.ids, back.target) == (made.site, made.ids, made.target)
    for name in ("mode_ids", "units", "samples", "pictures", "held_out", "total", "negative"):
        assert torch.equal(getattr(back, name), getattr(made, name))
        assert getattr(back, name).dtype == getattr(made, name).dtype


def test_files_without_maps_are_refused(tmp_path):
    with pytest.raises(
        StoreError, match=r"no such file; .* a SiteMaps\. Make it again .*'condec map'"
    ):
        load_record(tmp_path / "none.npz", SiteMaps)
    for name, content in (
        ("text.npz", b"no zip"),
        ("other.npz", None),
        ("pickle.npz", np.array([{"a": 1}], dtype=object)),
    ):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, words=np.zeros(2) if content is None else content)
        with pytest.raises(
            StoreError, match=rf"{name}: .* the record of a SiteMaps .*Make it again"
        ):
            load_record(path, SiteMaps)


def test_maps_that_cannot_be_written(modes, tmp_path):
    made = site_maps(small_resnet(), small_inputs(), modes, n_modes=1, n_inputs=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"a\.npz: SiteMaps: cannot write"):
        save_record(tmp_path / "file" / "a.npz", made)


@pytest.mark.parametrize("name", ["n_modes", "n_inputs", "n_units"])
def test_site_maps_numbers(modes, name):
    with pytest.raises(OptionError, match=f"site_maps: {name} must be at least 1; got 0"):
        site_maps(small_resnet(), small_inputs(), modes, **{name: 0})


def test_site_maps_of_other_data(modes):
    other = small_inputs().select(range(3))
    with pytest.raises(DataError, match=r"lacks .* samples of .*Give the data that were collected"):
        site_maps(small_resnet(), other, modes)


def test_site_maps_without_modes(modes):
    empty = replace(
        modes, atoms=modes.atoms[:0], loadings=modes.loadings[:, :0], ids=modes.ids[:0],
    )  # fmt: skip
    with pytest.raises(DataError, match="the dictionary has no mode that is used"):
        site_maps(small_resnet(), small_inputs(), empty)
