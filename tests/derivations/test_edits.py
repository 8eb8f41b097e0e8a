"""Edits of units and along directions, number by number in float64."""

import itertools
import math

import pytest
import torch

from condec.edits import Ablate, Patch, Project, Scale, Steer, baked, edited
from condec.network.sites import Site, Units

CASES = [
    ("channels", (2, 4, 3, 2)), ("channels", (2, 4)), ("features", (2, 3, 4)),
    ("tokens", (2, 4, 3)), ("positions", (2, 3, 2, 2)),
]  # fmt: skip


def vectors(layout, shape):
    """Places of the entries of every vector over the units, in the order of the units."""
    found = {}
    for index in itertools.product(*(range(size) for size in shape)):
        unit_axes = {"channels": (1,), "features": (len(shape) - 1,), "tokens": (1,)}.get(
            layout, tuple(range(2, len(shape)))
        )
        where = tuple(i for axis, i in enumerate(index) if axis not in unit_axes)
        found.setdefault(where, []).append(index)
    return list(found.values())


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def gram_schmidt(several):
    basis = []
    for vector in several:
        left = list(vector)
        for known in basis:
            share = dot(left, known)
            left = [x - share * y for x, y in zip(left, known, strict=True)]
        length = math.sqrt(dot(left, left))
        if length > 1e-9:
            basis.append([x / length for x in left])
    return basis


def changed(activation, layout, change, source=None):
    """Every vector over the units put through a function of lists of numbers."""
    out = activation.clone()
    for places in vectors(layout, activation.shape):
        before = [float(activation[place]) for place in places]
        there = [float(source[place]) for place in places] if source is not None else None
        for place, value in zip(places, change(before, there), strict=True):
            out[place] = value
    return out


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_directions_vector_by_vector(layout, shape):
    activation = torch.randn(shape, dtype=torch.float64)
    source = torch.randn(shape, dtype=torch.float64)
    site = Site("x", units=Units(layout))
    d = [0.5, -1.0, 2.0, 0.25]
    other = [1.0, 1.0, 0.0, -1.0]
    length = math.sqrt(dot(d, d))

    def steered(size):
        return lambda h, _: [x + 0.7 * size(h) * y / length for x, y in zip(h, d, strict=True)]

    def projected(h, _):
        for q in gram_schmidt([d, other, [x + y for x, y in zip(d, other, strict=True)]]):
            share = dot(h, q)
            h = [x - share * y for x, y in zip(h, q, strict=True)]
        return h

    def patched(h, s):
        share = (dot(s, d) - dot(h, d)) / dot(d, d)
        return [x + share * y for x, y in zip(h, d, strict=True)]

    third = [x + y for x, y in zip(d, other, strict=True)]
    for edit, change in (
        (Steer(site, direction=d, strength=0.7), steered(lambda h: math.sqrt(dot(h, h)))),
        (Steer(site, direction=d, strength=0.7, norm="one"), steered(lambda h: 1.0)),
        (Steer(site, direction=d, strength=0.7, norm="own"), steered(lambda h: length)),
        (Project(site, directions=[d, other, third]), projected),
        (Patch(site, source=source, direction=d), patched),
        (
            Scale(site, units=[1, 3], factor=-0.4),
            lambda h, _: [-0.4 * x if u in (1, 3) else x for u, x in enumerate(h)],
        ),
        (
            Patch(site, source=source, units=[1, 3]),
            lambda h, s: [s[u] if u in (1, 3) else x for u, x in enumerate(h)],
        ),
    ):
        expected = changed(activation, layout, change, source)
        torch.testing.assert_close(edit.apply(activation), expected, rtol=1e-12, atol=1e-12)


def test_baked_linear_map_number_by_number():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    edits = [
        Ablate("0:input@features", units=[1], replacement=0.5),
        Scale("0:input@features", units=[1, 2], factor=3.0),
        Scale("0@features", units=[0], factor=-2.0),
    ]
    weight, bias = model[0].weight.tolist(), model[0].bias.tolist()
    expected = []
    for row in x.tolist():
        h = [row[0], 0.5 * 3.0, row[2] * 3.0, row[3]]
        out = [dot(weight[u], h) + bias[u] for u in range(3)]
        expected.append([-2.0 * out[0], out[1], out[2]])
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(baked(model, edits, inputs=x)(x), expected)
    with edited(model, edits):
        torch.testing.assert_close(model(x), expected)
