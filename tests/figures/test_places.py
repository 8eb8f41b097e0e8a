"""Maps of positions: outlines, colours, grids of tokens; over pictures, signals and texts."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from condec.basis.errors import DataError
from condec.figures.places import Ground, draw_scale, region, signed
from condec.figures.style import NEGATIVE, POSITIVE

PICTURE = np.full((8, 8, 1), 90, np.uint8)


def drawn(ground, values, **options):
    axis = Figure().add_subplot()
    ground.draw(axis, np.asarray(values, float), 1.0, **options)
    return axis


def test_the_outline_holds_the_fewest_positions_that_make_the_share():
    values = np.random.default_rng(0).normal(size=(5, 4))
    within = region(values)
    sizes = np.abs(values)
    assert sizes[within].sum() >= 0.8 * sizes.sum()
    assert sizes[within].sum() - sizes[within].min() < 0.8 * sizes.sum()
    assert sizes[within].min() >= sizes[~within].max()
    assert not region(np.zeros((3, 3))).any()
    assert region(np.array([2.0]), 1.0).all()


def test_colours_are_as_opaque_as_values_are_large_in_a_straight_line():
    colours = signed(np.array([0.0, 0.25, 0.5, 1.0, 7.0, -0.5]), 1.0)
    assert np.allclose(colours[:, 3] / colours[3, 3], [0, 0.25, 0.5, 1, 1, 0.5])
    assert np.allclose(colours[1, :3], to_rgb(POSITIVE))
    assert np.allclose(colours[5, :3], to_rgb(NEGATIVE))


@pytest.mark.parametrize(
    ("shape", "n", "grid"),
    [
        ((224, 224), 196, (14, 14)), ((224, 224), 197, (14, 14)), ((224, 224), 201, (14, 14)),
        ((32, 64), 8, (2, 4)), ((32, 64), 9, (2, 4)), ((224, 224), 50, (7, 7)),
        ((224, 224), 77, None), ((224, 224), 11, None), ((224, 224), 3, None), ((8, 8), 0, None),
    ],
)  # fmt: skip
def test_tokens_are_the_grid_of_a_picture_after_a_few_others(shape, n, grid):
    ground = Ground(picture=np.zeros((*shape, 3), np.uint8))
    assert ground.grid(np.zeros(n)) == grid


def test_cells_lie_over_the_picture_unsmoothed_and_other_tokens_beside_it():
    values = np.linspace(-1, 1, 17)
    axis = drawn(Ground(picture=PICTURE), values)
    picture, colours = axis.images
    assert picture.get_array().shape == (8, 8)
    np.testing.assert_array_equal(colours.get_array(), signed(values[1:].reshape(4, 4), 1.0))
    assert picture.get_extent() == colours.get_extent() == [0, 4, 4, 0]
    assert len(axis.patches) == 1
    np.testing.assert_allclose(axis.patches[0].get_facecolor(), signed(values[:1], 1.0)[0])


def test_the_outline_is_the_border_of_its_cells():
    values = np.zeros((3, 3))
    values[1, 1:] = 1.0
    (lines,) = drawn(Ground(picture=PICTURE), values).collections
    edges = {tuple(sorted(map(tuple, edge.tolist()))) for edge in np.array(lines.get_segments())}
    assert edges == {
        ((1, 1), (1, 2)), ((3, 1), (3, 2)), ((1, 1), (2, 1)), ((2, 1), (3, 1)),
        ((1, 2), (2, 2)), ((2, 2), (3, 2)),
    }  # fmt: skip


def test_a_masked_picture_stands_out_where_the_map_is_large():
    values = np.zeros((2, 2))
    values[0, 0] = -1.0
    (image,) = drawn(Ground(picture=PICTURE), values, masked=True).images
    assert image.get_array()[0, 0, 0] == 90
    assert image.get_array()[7, 7, 0] > 200


def test_other_maps_are_strips_and_frames_are_one_picture():
    (image,) = drawn(Ground(picture=PICTURE), np.ones(11)).images
    assert image.get_array().shape == (1, 11, 4)
    (image,) = drawn(Ground(), np.ones((2, 3))).images
    assert image.get_array().shape == (2, 3, 4)
    ground = Ground(picture=PICTURE)
    np.testing.assert_allclose(ground.density(np.ones((5, 2, 2))), np.full((2, 2), 5 * 4 / 100))
    np.testing.assert_allclose(ground.density(np.ones(17)), np.full(17, 16 / 100))
    assert Ground().density(np.ones(17)).sum() == 17


def test_a_signal_is_a_line_in_the_colours_of_its_cells():
    axis = drawn(Ground(signal=np.sin(np.arange(12.0))), np.array([1.0, 0.0, -0.1]))
    (line,) = axis.collections
    assert len(line.get_segments()) == 11
    np.testing.assert_allclose(line.get_colors()[:4], np.tile(signed(np.ones(1), 1.0), (4, 1)))
    under = axis.lines[1].get_ydata()
    assert np.isfinite(under).tolist() == [True] * 4 + [False] * 8


def test_a_text_has_a_colour_for_every_token_and_lines_under_those_within():
    text = tuple("a long text of 30 characters !")
    values = np.zeros(len(text) + 1)
    values[3] = 0.5
    axis = drawn(Ground(text=text), values)
    assert [word.get_text() for word in axis.texts] == ["\N{MIDDLE DOT}", *text]
    cells, under = axis.collections
    colours = cells.get_facecolor()
    assert colours[3, 3] > 0 == colours[4, 3]
    assert [line.tolist() for line in under.get_segments()] == [[[3, 0.92], [4, 0.92]]]
    corners = [path.vertices for path in cells.get_paths()]
    assert len(corners) == len(text) + 1
    assert {tuple(corner[0]) for corner in corners} == {  # of 28 characters a line
        (place % 28, place // 28) for place in range(len(text) + 1)
    }
    for wrong in (text[:10], (*text, "x", "y")):
        with pytest.raises(DataError, match="text: expected 31 characters or tokens, one for each"):
            drawn(Ground(text=wrong), values)


def test_the_scale_says_where_it_ends():
    axis = Figure().add_subplot()
    draw_scale(axis, 0.25, ["for 1 % of the picture"])
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        "\N{MINUS SIGN}0.25",
        "0",
        "+0.25",
    ]
    assert axis.get_xlabel() == "for 1 % of the picture"
