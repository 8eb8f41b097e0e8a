"""Maps over pictures: what they show, and which pictures are refused."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy import ndimage

from condec import figures
from condec.basis.errors import DataError
from condec.figures import pixels
from condec.figures.style import NEGATIVE, POSITIVE


def near(pixel, colour):
    return np.abs(pixel.astype(float) - 255 * np.array(mpl.colors.to_rgb(colour))).max() < 2


def test_overlay_shows_the_sign_in_full_colour_and_zero_as_the_faded_picture():
    picture = np.full((2, 2, 3), 100, np.uint8)
    values = np.array([[1.0, -1.0], [0.0, 5.0]])
    drawn = pixels.overlay(values, picture, scale=1.0)
    assert near(drawn[0, 0], POSITIVE)
    assert near(drawn[0, 1], NEGATIVE)
    assert near(drawn[1, 1], POSITIVE)
    assert drawn[1, 0].tolist() == [227] * 3
    assert (picture == 100).all()


def test_overlay_brings_a_map_to_the_pictures_size():
    values = np.zeros((2, 2))
    values[0, 0] = 1.0
    drawn = pixels.overlay(values, np.zeros((8, 8, 3), np.uint8), scale=1.0)
    assert drawn.shape == (8, 8, 3)
    assert near(drawn[0, 0], POSITIVE)


def test_lit_shows_the_picture_only_where_the_map_is_large():
    picture = np.zeros((1, 3, 3), np.uint8)
    drawn = pixels.lit(np.array([[0.0, 0.5, 3.0]]), picture, scale=1.0)
    assert drawn[0, 2].tolist() == [0, 0, 0]
    assert drawn[0, 0, 0] > drawn[0, 1, 0] > 0


@pytest.mark.parametrize("size", [16, 17])
def test_small_pictures_show_signs_and_large_ones_are_lit(size):
    picture = np.full((size, size, 3), 90, np.uint8)
    values = [torch.randn(3, size, size), torch.randn(3, size, size)]
    assert figures.shows_signs(picture) == (size == 16)
    drawn = figures.draw_maps(values, picture)
    flat = [one.double().numpy().sum(0) for one in values]
    if size == 16:
        expected = pixels.overlay(flat[1], picture, scale=pixels.map_scale(flat))
    else:
        sizes = [ndimage.gaussian_filter(np.abs(one), 1.0) for one in flat]
        expected = pixels.lit(sizes[1], picture, scale=pixels.map_scale(sizes, 97.0))
    np.testing.assert_array_equal(drawn[1], expected)


GREYS = np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "pixels_of"),
    [
        (GREYS, GREYS[..., None]),
        (GREYS[..., None], GREYS[..., None]),
        (GREYS[None], GREYS[..., None]),
        (GREYS[None, None], GREYS[..., None]),
        (torch.from_numpy(GREYS) / 255, GREYS[..., None]),
        (GREYS > 99, np.where(GREYS > 99, 255, 0)[..., None]),
        (COLOURS, COLOURS),
        (COLOURS[None], COLOURS),
        (COLOURS.astype(np.int64), COLOURS),
        (COLOURS / 255, COLOURS),
        (torch.from_numpy(COLOURS).movedim(2, 0)[None], COLOURS),
        ((torch.from_numpy(COLOURS).movedim(2, 0) / 255).requires_grad_(), COLOURS),
    ],
)
def test_grey_float_and_batched_pictures_are_the_same_picture(given, pixels_of):
    taken = figures.as_picture(given)
    assert taken.dtype == np.uint8
    assert taken.tolist() == pixels_of.tolist()
    figure = figures.mode_map_figure(given, {"total": torch.ones(1, 5, 4)})
    first, second = (axis.images[0] for axis in figure.axes)
    assert first.get_array().reshape(pixels_of.shape).tolist() == pixels_of.tolist()
    assert (first.norm.vmin, first.norm.vmax) == (0, 255) or pixels_of.shape[2] == 3
    assert second.get_array().shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 5, 4, 3), np.uint8), r"got shape \(2, 5, 4, 3\)\. Take one of a batch"),
        (np.zeros((5, 4, 2)), r"of 1 or 3 colours; got shape \(5, 4, 2\)"),
        (np.zeros(5), r"expected one image, .*got shape \(5,\)"),
        (np.zeros((0, 4)), r"expected one image, .*got shape \(0, 4\)"),
        (np.array([["a"]]), "expected whole numbers or floats; got <U1"),
        (torch.tensor([[-2.1, 2.6]]), r"floats from 0 to 1; got float64 from -2\.1 to 2\.6\. Take"),
        (np.array([[0.0, np.nan]]), "got float64 from nan to nan"),
        (np.array([[0, 60_000]], np.uint16), "from 0 to 255, .*got uint16 from 0 to 60000"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(DataError, match=f"picture: .*{message}"):
        figures.mode_map_figure(given, {"total": torch.ones(1, 5, 4)})


def test_maps_are_those_of_one_input():
    values = torch.randn(1, 2, 5, 4)
    alone = figures.draw_maps([values[0]], GREYS)[0]
    assert figures.draw_maps([values], GREYS)[0].tolist() == alone.tolist()
    with pytest.raises(DataError, match=r"those of one input, .*got shape \(2, 2, 5, 4\)\. Take"):
        figures.draw_maps([values.repeat(2, 1, 1, 1)], GREYS)


def test_map_scale_of_nothing_is_one():
    assert pixels.map_scale([np.zeros((4, 4))]) == 1.0
    assert pixels.map_scale([np.ones((9, 9)), -3 * np.ones((9, 9))]) == pytest.approx(3.0)
