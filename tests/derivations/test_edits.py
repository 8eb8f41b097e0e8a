"""Edits of units and along directions, number by number in float64."""

import itertools
import math

import pytest
import torch

from condec.edits import Ablate, Erase, Patch, Project, Scale, Steer, baked, edited, erasure
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


@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_erase_takes_out_what_readers_find(layout, shape):
    generator = torch.Generator().manual_seed(4)
    h = torch.randn(shape, generator=generator, dtype=torch.float64)
    places = vectors(layout, shape)
    d, r = torch.randn(2, 2, len(places[0]), generator=generator, dtype=torch.float64).tolist()
    site = Site("m", units=Units(layout))
    found = Erase(site, directions=d, readers=r, offsets=[0.3, -2.0]).apply(h)
    for where in places:
        vector = [float(h[index]) for index in where]
        read = [dot(one, vector) - offset for one, offset in zip(r, (0.3, -2.0), strict=True)]
        for unit, index in enumerate(where):
            expected = vector[unit] - sum(a * one[unit] for a, one in zip(read, d, strict=True))
            assert float(found[index]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_erasure_is_the_unbiased_reader_of_least_variance():
    """R D^T = 1, and every other reader with it has a larger tr(R S R^T): Aitken's theorem."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    changed = x + torch.randn(60, 1, generator=generator) * torch.tensor([1.0, -1.0, 0.0, 2.0])
    changed = changed + torch.randn(60, 1, generator=generator) * torch.tensor([0.0, 1.0, 1.0, 0.0])
    edit = erasure(torch.nn.Sequential(torch.nn.Identity()).eval(), "0", x, changed, n_directions=2)
    d, r = (torch.tensor(one, dtype=torch.float64) for one in (edit.directions, edit.readers))
    assert torch.allclose(r @ d.T, torch.eye(2).double(), atol=1e-9)
    mean = [sum(float(row[u]) for row in x) / 60 for u in range(4)]
    for reader, offset in zip(r.tolist(), edit.offsets, strict=True):
        assert dot(reader, mean) == pytest.approx(offset, abs=1e-5)
    # Ledoit & Wolf 2004: towards the mean variance by b2 / d2, written out.
    rows = [[float(v) - m for v, m in zip(row, mean, strict=True)] for row in x]
    s = [[sum(row[i] * row[j] for row in rows) / 60 for j in range(4)] for i in range(4)]
    mu = sum(s[i][i] for i in range(4)) / 4
    squares = [(s[i][j] - mu * (i == j)) ** 2 for i in range(4) for j in range(4)]
    noise = sum(
        (row[i] * row[j] - s[i][j]) ** 2 for row in rows for i in range(4) for j in range(4)
    )
    share = min(1.0, noise / 60**2 / sum(squares))
    covariance = torch.tensor(s, dtype=torch.float64) * (1 - share)
    covariance += share * mu * torch.eye(4).double()
    least = torch.trace(r @ covariance @ r.T)
    null = torch.linalg.svd(d).Vh[2:]  # what may be added to readers: it finds nothing along D
    for _ in range(20):
        step = torch.randn(2, 2, generator=generator, dtype=torch.float64) @ null * 0.05
        assert torch.trace((r + step) @ covariance @ (r + step).T) > least
