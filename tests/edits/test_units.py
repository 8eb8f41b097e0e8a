"""Edits: what they put in place of units, where, and that they leave nothing behind."""

import warnings
from collections import namedtuple
from dataclasses import FrozenInstanceError, replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from condec.basis.errors import OptionError, SiteError
from condec.edits import Ablate, Edit, Preserve, Scale, baked, edited
from condec.network.sites import Site, Units
from condec.network.tape import record
from condec.testing.contracts import EditContract, count_hooks
from condec.testing.models import small_mlp, small_resnet

SHAPES = st.sampled_from([
    ("channels", None, (2, 6, 3, 4)), ("features", None, (2, 6)), ("features", None, (2, 3, 6)),
    ("heads", 6, (2, 3, 12)), ("tokens", None, (2, 6, 5)), ("positions", None, (2, 3, 2, 3)),
])  # fmt: skip


class TestAblateContract(EditContract):
    def make_edit(self, site):
        return Ablate(site, units=[3, 1])


class TestAblateByValuesContract(EditContract):
    def make_edit(self, site):
        return Ablate(site, units=[0], replacement=[0.5, 1.0, -2.0, 3.0])


class TestPreserveContract(EditContract):
    def make_edit(self, site):
        return Preserve(site, units=[2])


class TestPreserveByValuesContract(EditContract):
    def make_edit(self, site):
        return Preserve(site, units=[2], replacement=[0.5, 1.0, -2.0, 3.0])


class TestScaleContract(EditContract):
    def make_edit(self, site):
        return Scale(site, units=[3, 0], factor=-1.5)


class Shared(nn.Module):
    """One module called three times, its output once in a tuple."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)
        self.eval()

    def forward(self, x):
        return self.layer(self.layer(self.layer(x)))


class Packed(nn.Module):
    """Hands its activation on inside a container, and takes it by keyword."""

    def __init__(self, kind):
        super().__init__()
        self.inner = nn.Module()
        self.inner.forward = lambda *, x: kind(2 * x)
        self.eval()

    def forward(self, x):
        out = self.inner(x=x)
        return out["hidden"] if isinstance(out, dict) else out[0]


def make_site(layout, n_heads):
    return Site("x", units=Units(layout, n_heads))


def run(model, edits, x):
    with edited(model, edits):
        return model(x)


def random_activation(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), number=st.floats(-5, 5, width=32))
def test_ablating_all_units_leaves_only_the_replacement(shape, seed, number):
    layout, n_heads, size = shape
    activation = random_activation(size, seed)
    edit = Ablate(make_site(layout, n_heads), units=range(6), replacement=number)
    assert torch.equal(edit.apply(activation), torch.full(size, number))
    zero = Ablate(edit.site, units=range(6)).apply(activation)
    assert torch.equal(zero, torch.zeros(size))
    assert not bool(torch.signbit(zero).any())


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_preserving_all_units_changes_no_bit(shape, seed):
    layout, n_heads, size = shape
    activation = random_activation(size, seed)
    activation.view(-1)[0] = float("nan")
    activation.view(-1)[1] = -0.0
    kept = Preserve(make_site(layout, n_heads), units=range(6), replacement=7.0).apply(activation)
    assert torch.equal(kept.view(torch.int32), activation.view(torch.int32))


@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES,
    seed=st.integers(0, 99),
    units=st.sets(st.integers(0, 5), min_size=1, max_size=5),
    values=st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6),
)
def test_ablate_is_preserve_of_the_others(shape, seed, units, values):
    layout, n_heads, size = shape
    activation = random_activation(size, seed)
    others = set(range(6)) - units
    site = make_site(layout, n_heads)
    ablated = Ablate(site, units=sorted(units), replacement=values).apply(activation)
    preserved = Preserve(site, units=sorted(others), replacement=values).apply(activation)
    assert torch.equal(ablated, preserved)
    mask = site.units.broadcast(torch.tensor([u in units for u in range(6)]), size).expand(size)
    assert torch.equal(ablated[~mask], activation[~mask])


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), units=st.sets(st.integers(0, 5), min_size=1))
def test_scaling_by_0_is_ablating_and_by_1_changes_no_bit(shape, seed, units):
    layout, n_heads, size = shape
    activation, site = random_activation(size, seed), make_site(layout, n_heads)
    activation.view(-1)[0], activation.view(-1)[1] = float("nan"), -0.0
    nothing = Scale(site, units=sorted(units), factor=0.0).apply(activation)
    ablated = Ablate(site, units=sorted(units)).apply(activation)
    assert torch.equal(nothing.view(torch.int32), ablated.view(torch.int32))
    same = Scale(site, units=sorted(units), factor=1.0).apply(activation)
    assert torch.equal(same.view(torch.int32), activation.view(torch.int32))


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), units=st.permutations(range(6)))
def test_factors_of_units_are_scalings_of_each(shape, seed, units):
    layout, n_heads, size = shape
    activation, site = random_activation(size, seed), make_site(layout, n_heads)
    activation.view(-1)[0] = float("nan")
    units, factors = units[:4], [0.0, 1.0, -1.5, 0.25]
    expected = activation
    for unit, factor in zip(units, factors, strict=True):
        expected = Scale(site, units=[unit], factor=factor).apply(expected)
    together = Scale(site, units=units, factor=torch.tensor(factors)).apply(activation)
    torch.testing.assert_close(together, expected, rtol=0, atol=0, equal_nan=True)


def test_cut_off_units_pass_neither_nan_nor_gradient():
    activation = torch.tensor([[float("nan"), 2.0, float("inf")]], requires_grad=True)
    out = Ablate("x", units=[0, 2]).apply(activation)
    assert out.tolist() == [[0.0, 2.0, 0.0]]
    out.sum().backward()
    assert activation.grad.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("inplace", [False, True])
def test_output_of_a_block_is_zeroed_as_if_it_had_been_zero(inplace):
    model, images = small_resnet(inplace=inplace), torch.randn(3, 1, 5, 5)
    with edited(model, [Ablate("block2", units=range(4))]) as same, torch.no_grad():
        assert same is model
        logits = model(images)
    assert torch.equal(logits, model.head.bias.detach().expand(3, -1))


def test_replacement_for_every_unit_is_put_at_the_named_ones():
    model, x = small_mlp(), torch.randn(4, 5)
    values = torch.arange(6.0)
    with edited(model, [Ablate("1", units=[1, 4], replacement=values)]):
        with record(model, [Site("1"), Site("2", "input")]) as tape:
            model(x)
        seen = tape.records["1"].detach()
    plain = model[:2](x).detach()
    assert torch.equal(seen[:, [1, 4]], values[[1, 4]].expand(4, 2))
    assert torch.equal(seen[:, [0, 2, 3, 5]], plain[:, [0, 2, 3, 5]])
    assert torch.equal(tape.records["2:input"], seen)


def test_edits_of_one_site_act_in_the_order_given():
    model, x = small_mlp(), torch.randn(2, 5)

    def seen(edits):
        with edited(model, edits), record(model, [Site("1")]) as tape:
            model(x)
        return tape.records["1"][0]

    one, two = Ablate("1", units=[0, 1], replacement=1.0), Ablate("1", units=[1], replacement=2.0)
    assert seen([one, two])[:2].tolist() == [1.0, 2.0]
    assert seen([two, one])[:2].tolist() == [1.0, 1.0]
    kept = seen([Preserve("1", units=[0, 1, 2]), Preserve("1", units=[2, 3])])
    assert kept.ne(0).tolist() == [False, False, True, False, False, False]


def test_contexts_nest_and_the_inner_edit_comes_last():
    model, x = small_mlp(), torch.randn(2, 5)
    before = model(x)
    with edited(model, [Ablate("1", units=[0], replacement=1.0)]):
        outer = model(x)
        with edited(model, [Ablate("1", units=[0], replacement=2.0)]):
            inner = model(x)
        assert torch.equal(model(x), outer)
    with edited(model, Ablate("1", units=[0], replacement=2.0)):
        assert torch.equal(model(x), inner)
    assert torch.equal(model(x), before)


def test_input_tap_edits_what_one_module_reads_and_no_other():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Identity(), nn.Identity()
            self.eval()

        def forward(self, x):
            return torch.cat([self.left(x), self.right(x)], 1)

    x = torch.ones(1, 2)
    with edited(model := Fork(), [Ablate("right:input", units=[0])]):
        assert model(x).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    assert x.tolist() == [[1.0, 1.0]]


def test_edit_at_an_input_that_the_module_overwrites_spares_the_caller():
    model, x = nn.Sequential(nn.ReLU(inplace=True)).eval(), torch.tensor([[-1.0, -2.0, 3.0]])
    with edited(model, [Ablate("0:input", units=[2])]):
        assert model(x).tolist() == [[0.0, 0.0, 0.0]]
    assert x.tolist() == [[-1.0, -2.0, 3.0]]


Pair = namedtuple("Pair", "hidden other")


@pytest.mark.parametrize(
    "kind",
    [lambda x: (x, "rest"), lambda x: [x, 1], lambda x: Pair(x, 3), lambda x: {"hidden": x}],
    ids=["tuple", "list", "namedtuple", "dict"],
)
def test_activation_inside_a_container(kind):
    model = Packed(kind)
    for tap in ("inner", "inner:input"):
        with edited(model, [Ablate(tap, units=[1])]):
            assert model(torch.ones(1, 3)).tolist() == [[2.0, 0.0, 2.0]]


def test_tensor_given_by_keyword_behind_another_argument():
    model = nn.Sequential(nn.Identity()).eval()
    model[0].forward = lambda scale, *, x: x if scale is None else scale * x
    model.forward = lambda x: model[0](None, x=x)
    with edited(model, Ablate("0:input", units=[1])):
        assert model(torch.ones(1, 3)).tolist() == [[1.0, 0.0, 1.0]]


def test_one_call_of_a_shared_module():
    model, x = Shared(), torch.randn(2, 3)
    a = model.layer(x)
    hand = model.layer(model.layer(a * torch.tensor([0.0, 1.0, 1.0])))
    middle = model.layer(model.layer(a) * torch.tensor([1.0, 0.0, 1.0]))
    with edited(model, [Ablate("layer#0", units=[0])]):
        assert torch.equal(model(x), hand)
        assert torch.equal(model(x), hand)  # the second pass counts from 0 again
    with edited(model, [Ablate("layer#1", units=[1])]):
        assert torch.equal(model(x), middle)
    with edited(model, [Ablate("layer:input#1", units=[0])]):
        assert torch.equal(model(x), hand)
    assert count_hooks(model) == 0


def test_parts_called_by_themselves_count_as_a_pass_each():
    model, x = Shared(), torch.randn(2, 3)
    with edited(model, [Ablate("layer", units=[0])]):
        for _ in range(3):
            assert model.layer(x)[:, 0].tolist() == [0.0, 0.0]


def test_calls_are_counted_anew_after_a_failed_pass():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 3)).eval(), torch.ones(2, 3)
    with edited(model, [Ablate("0", units=[0])]):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shapes"):
                model(x)
            assert model[0](x)[:, 0].tolist() == [0.0, 0.0]


def test_no_edit_no_change_no_hook():
    model, x = small_mlp(), torch.randn(2, 5)
    with edited(model, []):
        assert count_hooks(model) == 0
        assert torch.equal(model(x), small_mlp()(x))


def test_works_in_inference_mode_and_for_double_models():
    model, x = small_mlp().double(), torch.randn(2, 5, dtype=torch.float64)
    with edited(model, [Ablate("1", units=[0])]), torch.inference_mode():
        inside = model(x)
    assert inside.dtype == torch.float64
    assert not torch.equal(inside, model(x))


def test_frozen_and_sorted_and_equal_by_value():
    edit = Ablate("layer:input#1", units=torch.tensor([4, 0, 2]), replacement=torch.ones(5))
    assert edit.units == (0, 2, 4)
    assert edit.site == Site("layer", "input", None, 1)
    assert edit.replacement == (1.0,) * 5
    assert edit == Ablate(edit.site, units=[2, 4, 0], replacement=[1.0] * 5)
    assert edit != Preserve(edit.site, units=[2, 4, 0], replacement=[1.0] * 5)
    assert len({edit, replace(edit), replace(edit, units=[1])}) == 2
    with pytest.raises(FrozenInstanceError):
        edit.units = (1,)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], r"Ablate\(fc\): units is empty"),
        ([3, 1, 3, 1], r"Ablate\(fc\): units named more than once: \[1, 3\]"),
        ([2, -1], r"Ablate\(fc\): units count from 0; got \[-1\]"),
        ([0.5], r"Ablate\(fc\): units must be integers.*got \[0.5\]"),
        (torch.tensor([True, False]), r"units must be integers.*mask.nonzero"),
        (3, r"units must be integers, for example \[3, 7\]; got 3\."),
        (torch.tensor(3), r"units must be integers.*got 3\."),
    ],
)
def test_bad_units(unchecked, units, message):
    with pytest.raises(OptionError, match=message):
        Ablate("fc", units=units)


def test_edits_print_no_long_numbers():
    edit = Preserve("fc", units=range(99), replacement=[0.5] * 99)
    assert repr(edit).splitlines()[0] == "Preserve"
    assert len(repr(edit)) < 200


def test_preserving_no_unit_replaces_the_whole_site():
    x, edit = torch.randn(2, 6), Preserve("x", units=[], replacement=0.5)
    assert torch.equal(edit.apply(x), torch.full((2, 6), 0.5))


@pytest.mark.parametrize("factor", ["2", None, [1, "a"], [[1], [2, 3]], {}])
def test_a_factor_that_is_no_number(unchecked, factor):
    with pytest.raises(
        OptionError, match=r"Scale\(fc\): factor must be one number, or one for each of"
    ):
        Scale("fc", units=[0, 1], factor=factor)


def test_bad_factor():
    with pytest.raises(OptionError, match=r"Scale\(fc\): factor must be finite; got inf"):
        Scale("fc", units=[0], factor=float("inf"))
    with pytest.raises(OptionError, match=r"Scale\(fc\): factor must be finite; got \[1.0, nan\]"):
        Scale("fc", units=[0, 1], factor=[1.0, float("nan")])
    with pytest.raises(OptionError, match=r"one for each of the 1 units; got shape \(2,\)"):
        Scale("fc", units=[0], factor=[1.0, 2.0])
    with pytest.raises(OptionError, match=r"Scale\(fc\): units is empty"):
        Scale("fc", units=[], factor=2.0)
    with pytest.raises(SiteError, match=r"Scale\(x\): the site has 6 units.*no unit 8"):
        Scale("x", units=[8], factor=2.0).apply(torch.ones(2, 6))


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (float("nan"), "replacement must be finite"),
        ([0.0, float("inf")], "replacement must be finite"),
        ([], "replacement must be finite"),
        ("mean", "replacement must be a number, or one number for every unit.*'mean'"),
        (None, "replacement must be a number, or one number for every unit.*None"),
        ("12", "replacement must be a number, or one number for every unit.*'12'"),
        (["1"], "replacement must be a number, or one number for every unit"),
        (True, "replacement must be a number, or one number for every unit.*True"),
        (np.array([True]), "replacement must be a number, or one number for every unit"),
    ],
)
def test_bad_replacement(unchecked, replacement, message):
    with pytest.raises(OptionError, match=message):
        Preserve("fc", units=[0], replacement=replacement)


@pytest.mark.parametrize(
    "replacement",
    [1, np.float32(1), np.int64(1), np.array(1.0), torch.tensor(1), Fraction(1), Decimal(1)],
)
def test_one_number_of_any_type_replaces(unchecked, replacement):
    found = Preserve("fc", units=[0], replacement=replacement).replacement
    assert type(found) is float
    assert found == 1.0


@pytest.mark.parametrize("replacement", [[np.float32(1), 2], np.array([1, 2]), (Decimal(1), 2.0)])
def test_numbers_of_any_type_replace_unit_by_unit(unchecked, replacement):
    assert Preserve("fc", units=[0], replacement=replacement).replacement == (1.0, 2.0)


@pytest.mark.parametrize("call", ["#0", ""])
def test_units_out_of_range_name_the_site_and_its_number_of_units(call):
    model = small_resnet()
    edit = Ablate(f"block1{call}", units=[1, 4, 9])
    message = rf"Ablate\(block1{call}\): the site has 4 units, 0 to 3; there is no unit 4, 9"
    with pytest.raises(SiteError, match=message):
        run(model, edit, torch.ones(1, 1, 5, 5))
    assert count_hooks(model) == 0


def test_replacement_of_another_length():
    with pytest.raises(OptionError, match=r"one for each of the site's 6 units; got 4"):
        Preserve("x", units=[0], replacement=[0.0] * 4).apply(torch.ones(2, 6))


def test_layout_that_the_activation_has_not():
    with pytest.raises(SiteError, match=r"Ablate\(x@tokens\): layout 'tokens' needs"):
        Ablate("x@tokens", units=[0]).apply(torch.ones(2, 6))


def test_unknown_site_lists_the_nearest():
    with pytest.raises(SiteError, match=r"no module of SmallResNet matches 'block3'.*block2"):
        run(small_resnet(), Ablate("block3", units=[0]), torch.ones(1, 1, 5, 5))


def test_shared_module_without_a_call_number():
    model = Shared()
    with pytest.raises(SiteError, match=r"layer: .* more than once .*layer#0, layer#1"):
        run(model, Ablate("layer", units=[0]), torch.ones(1, 3))
    assert count_hooks(model) == 0


def test_a_module_under_two_names_is_named_by_the_first():
    layer = nn.Linear(3, 3)
    model, x = nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.ones(1, 3)
    with pytest.raises(SiteError, match=r"0: .* more than once .*0#0, 0#1"):
        run(model, Ablate("2", units=[0]), x)
    with pytest.raises(SiteError, match=r"0: .* more than once .*0#0, 0#1"):
        run(model, Ablate("0", units=[0]), x)
    assert run(model, Ablate("0#1", units=[0]), x)[0, 0] == 0.0


def test_site_that_never_ran():
    model, x = Shared(), torch.ones(1, 3)
    with pytest.raises(SiteError, match=r"unused never ran .* its module did not run \(Shared"):
        run(model, Ablate("unused", units=[0]), x)
    with pytest.raises(SiteError, match=r"layer#3 never ran .* called 3 times.*#0 to #2"):
        run(model, Ablate("layer#3", units=[0]), x)
    assert count_hooks(model) == 0


def test_another_error_is_not_hidden_by_the_site_that_never_ran():
    with pytest.raises(KeyError, match="mine"), edited(Shared(), [Ablate("unused", units=[0])]):
        raise KeyError("mine")


def test_activation_that_is_no_floating_tensor():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 3)
            self.shape = nn.Module()
            self.shape.forward = lambda x: tuple(x.shape)
            self.eval()

        def forward(self, x):
            return self.embed(x), self.shape(x)

    words = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(SiteError, match=r"embed:input: .* floating tensor .* torch.int64"):
        run(Words(), Ablate("embed:input", units=[0]), words)
    with pytest.raises(SiteError, match=r"shape: .* floating tensor .* got tuple"):
        run(Words(), Ablate("shape", units=[0]), words)


@pytest.mark.parametrize(
    ("edits", "got"), [(["block1"], "'block1'"), ("block1", "'block1'"), (None, "None")]
)
def test_what_is_no_edit(unchecked, edits, got):
    model, x = small_resnet(), torch.ones(1, 1, 5, 5)
    for put_in in (lambda: run(model, edits, x), lambda: baked(model, edits, inputs=x)):
        with pytest.raises(OptionError, match=f"expected edits such as Ablate.*got {got}"):
            put_in()


def test_heads_need_their_number():
    with pytest.raises(
        OptionError, match=r"Scale: 'a:input@heads\[1:\]' does not say how many.*find_"
    ):
        Scale("a:input@heads[1:]", units=[0], factor=2.0)


def test_nested_tensors_are_refused():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x, padded = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]])
    for nested in (True, False):
        model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested).eval()
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            edited(model, Ablate("layers.0", units=[1])),
        ):
            warnings.simplefilter("ignore")
            if nested:
                with pytest.raises(
                    SiteError, match=r"layers.0: .* a nested tensor.*nested_tensor=F"
                ):
                    model(x, src_key_padding_mask=padded)
                model.layers[0](x)
            else:
                assert bool((model(x, src_key_padding_mask=padded)[..., 1] == 0).all())


def test_the_model_alone_may_be_given_where_it_was_compiled():
    model, images = small_resnet(), torch.ones(2, 1, 5, 5)
    whole, function = torch.compile(model), torch.compile(lambda x: model(x) + 0)
    with edited(model, Ablate("block1", units=[0, 3])):
        expected = model(images)
        assert torch.equal(whole(images), expected)
        assert torch.equal(function(images), expected)
    assert not torch.equal(model(images), expected)


def test_an_edit_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Edit()
