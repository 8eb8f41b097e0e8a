"""Directions: added, removed; in every layout where they have a meaning."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.basis.errors import OptionError, SiteError
from condec.edits import Ablate, Project, Steer, edited
from condec.network.sites import Site, Units
from condec.testing.contracts import EditContract
from condec.testing.models import small_resnet

LAYOUTS = [
    ("channels", None, (2, 6, 3, 4), (1,)), ("features", None, (2, 6), (1,)),
    ("features", None, (2, 3, 6), (2,)), ("features", (1, None), (2, 4, 6), (2,)),
    ("tokens", None, (2, 6, 5), (1,)), ("tokens", (1, None), (2, 7, 5), (1,)),
    ("positions", None, (2, 3, 2, 3), (2, 3)),
]  # fmt: skip
SHAPES = st.sampled_from(LAYOUTS)
ATOM = [0.5, -1.0, 2.0, 0.25]


class TestSteerContract(EditContract):
    def make_edit(self, site):
        return Steer(site, direction=ATOM, strength=0.5)


class TestSteerByItsOwnLengthContract(EditContract):
    def make_edit(self, site):
        return Steer(site, direction=ATOM, strength=-1.5, norm="own")


class TestProjectContract(EditContract):
    def make_edit(self, site):
        return Project(site, directions=[ATOM, [1.0, 1.0, 0.0, 0.0]])


def make(layout, tokens, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    site = Site("x", units=Units(layout, tokens=tokens))
    activation = torch.randn(shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(6, generator=generator, dtype=torch.float64)
    return site, activation, direction


def vectors(activation, axes, tokens):
    """Counted vectors over the units, [.., unit], and what does not count."""
    counted = activation[:, slice(*tokens)] if tokens else activation
    rest = activation[:, : tokens[0]] if tokens else activation[:, :0]
    return counted.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes)), rest


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), strength=st.floats(-3, 3))
def test_steering_adds_a_vector_of_the_length_that_norm_says(shape, seed, strength):
    layout, tokens, size, axes = shape
    site, activation, direction = make(layout, tokens, size, seed)
    before, rest = vectors(activation, axes, tokens)
    for norm, length in (
        ("activation", before.norm(dim=-1)),
        ("one", torch.ones_like(before[..., 0])),
        ("own", direction.norm().expand_as(before[..., 0])),
    ):
        edit = Steer(site, direction=direction, strength=strength, norm=norm)
        after, same = vectors(edit.apply(activation), axes, tokens)
        assert torch.equal(same, rest)
        added = after - before
        torch.testing.assert_close(added.norm(dim=-1), abs(strength) * length)
        expected = strength * length[..., None] * direction / direction.norm()
        torch.testing.assert_close(added, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["activation", "one", "own"])
def test_steering_by_nothing_changes_no_bit(norm):
    activation = torch.tensor([[-0.0, float("inf"), float("nan"), 1.0]])
    out = Steer("x", direction=ATOM, strength=0.0, norm=norm).apply(activation)
    assert torch.equal(out.view(torch.int32), activation.view(torch.int32))


@settings(max_examples=20, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_what_is_projected_has_nothing_left_along_the_directions(shape, seed):
    layout, tokens, size, axes = shape
    site, activation, one = make(layout, tokens, size, seed)
    other = torch.randn(6, dtype=torch.float64)
    edit = Project(site, directions=torch.stack([one, 1e-12 * other, 2 * one]))
    out = edit.apply(activation)
    after, same = vectors(out, axes, tokens)
    before, rest = vectors(activation, axes, tokens)
    assert torch.equal(same, rest)
    for direction in (one, other):
        assert float((after @ direction).abs().max()) < 1e-9
    torch.testing.assert_close(edit.apply(out), out, rtol=1e-12, atol=1e-12)
    # Orthogonal: of all vectors without the directions, the nearest.
    gone = (before - after).flatten(0, -2)
    both = torch.stack([one, other])
    by_hand = torch.linalg.lstsq(both.T, before.flatten(0, -2).T).solution
    torch.testing.assert_close(gone, (both.T @ by_hand).T, rtol=1e-8, atol=1e-8)


def test_projecting_a_unit_is_ablating_it_and_projecting_all_leaves_nothing():
    activation = torch.randn(2, 4, 3, 3)
    unit = torch.tensor([0.0, 3.0, 0.0, 0.0])
    found = Project("x", directions=unit).apply(activation)
    assert torch.equal(found, Ablate("x", units=[1]).apply(activation))
    none = Project("x", directions=torch.randn(9, 4)).apply(activation)
    assert float(none.abs().max()) < 1e-5


def test_half_precision_is_computed_in_single():
    activation = torch.full((1, 4), 200.0, dtype=torch.float16)  # its square is infinite there
    out = Steer("x", direction=[1.0, 0.0, 0.0, 0.0], strength=1.0).apply(activation)
    assert out.tolist() == [[600.0, 200.0, 200.0, 200.0]]
    large = torch.full((1, 16), 30_000.0, dtype=torch.float16)  # so is its component, 120 000
    assert Project("x", directions=[1.0] * 16).apply(large).abs().max() < 0.1


def test_gradient_passes_without_the_direction():
    activation = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    project = Project("x", directions=ATOM)
    assert torch.autograd.gradcheck(project.apply, activation)
    assert torch.autograd.gradcheck(
        Steer("x@features[1:]", direction=ATOM, strength=0.5).apply,
        torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True),
    )


def test_directions_act_in_a_model():
    model, images = small_resnet(), torch.randn(2, 1, 5, 5)
    with edited(model, Project("block2", directions=torch.eye(4))):
        logits = model(images)
    torch.testing.assert_close(logits, model.head.bias.expand(2, -1))


def test_equal_by_value():
    edit = Steer("x", direction=torch.tensor(ATOM), strength=2.0)
    assert edit == Steer("x", direction=ATOM, strength=2.0)
    assert edit.direction == tuple(ATOM)
    assert Project("x", directions=ATOM) == Project("x", directions=[ATOM])
    assert len({edit, Steer("x", direction=ATOM, strength=2.0, norm="one")}) == 2


def steer(direction):
    return Steer("x", direction=direction, strength=1.0)


@pytest.mark.parametrize(
    ("make_edit", "message"),
    [
        (lambda: steer([0.0, 0.0]), r"Steer\(x\): direction has no length: all of its 2"),
        (lambda: steer([]), "direction has no length: all of its 0"),
        (lambda: steer([1.0, math.nan]), "direction must be finite; it holds NaN"),
        (lambda: steer(torch.eye(2)), r"one number for every unit.*got shape \(2, 2\)"),
        (lambda: steer("ab"), "one number for every unit.*got 'ab'"),
        (lambda: steer(3.0), "one number for every unit.*got 3.0"),
        (lambda: steer(torch.tensor(3.0)), r"one number for every unit.*got shape \(\)"),
        (lambda: Steer("x", direction=[1.0], strength=math.inf), "strength must be finite"),
        (lambda: Steer("x", direction=[1.0], strength=1.0, norm="two"), "one of activation, one"),
        (lambda: Project("x", directions=[]), r"Project\(x\): directions is empty"),
        (lambda: Project("x", directions=[[1.0], [1.0, 2.0]]), r"equally wide; got widths \[1, 2"),
        (lambda: Project("x", directions=[[1.0], [0.0]]), "direction 1 has no length"),
    ],
)
def test_bad_directions(unchecked, make_edit, message):
    with pytest.raises(OptionError, match=message):
        make_edit()


@pytest.mark.parametrize(
    "edit",
    [
        Steer("x", direction=[1.0, 2.0], strength=1.0),
        Project("x", directions=[1.0, 2.0]),
    ],
)
def test_direction_of_another_width(edit):
    with pytest.raises(OptionError, match=r"each of the site's 4 units; got 2"):
        edit.apply(torch.ones(2, 4, 3, 3))


def test_heads_have_no_direction():
    with pytest.raises(SiteError, match=r"Steer\(x@heads\(2\)\): heads have no direction"):
        Steer("x@heads(2)", direction=[1.0, 2.0], strength=1.0).apply(torch.ones(1, 3, 8))
