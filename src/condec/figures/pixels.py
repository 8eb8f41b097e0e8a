"""Maps over pictures."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from condec.basis.errors import DataError
from condec.figures.style import NEGATIVE, POSITIVE, literal, styled

SIGNED_UP_TO: Final = 16
"""Pixels a side up to which the sign of a map can be read at every pixel."""
FADED: Final = 224
"""Grey of what a map leaves out: neither dark nor bright parts of a picture drown in it."""


def mode_map_figure(
    picture: Tensor | np.ndarray, maps: "Mapping[str, Tensor | np.ndarray]"
) -> Figure:
    """Draw one input and its maps, side by side, as `draw_maps` does.

    `picture` is one image, as `as_picture` takes it. Maps, [channel, y, x] or [y, x], go by their
    names: ``{"total": ..., "positive": ...}``.
    """
    pixels = as_picture(picture)
    image = pixels if pixels.shape[2] > 1 else pixels[..., 0]
    pictures = [image, *draw_maps(list(maps.values()), pixels)]
    with styled():
        figure = Figure(figsize=(1.6 * len(pictures), 1.85), layout="constrained")
        axes = figure.subplots(1, len(pictures), squeeze=False)[0]
        for axis, name, drawn in zip(axes, ("image", *maps), pictures, strict=True):
            axis.imshow(drawn, cmap="gray", vmin=0, vmax=255)
            axis.set_title(literal(name, 24), fontsize=9)
            axis.set_axis_off()
    return figure


def draw_maps(
    maps: "Sequence[Tensor | np.ndarray]", picture: Tensor | np.ndarray
) -> list[np.ndarray]:
    """Draw maps of one input, [channel, y, x] or [y, x], over its picture: uint8, [y, x, 3] each.

    `picture` is one image, as `as_picture` takes it. Where `shows_signs`, sign and size stand at
    every pixel, see `overlay`; else the picture stands out where the smoothed size is large, see
    `lit`. All are on one scale.
    """
    from scipy import ndimage

    picture = as_picture(picture)
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    flat = [resized(_summed(one), picture) for one in maps]
    if shows_signs(picture):
        return [overlay(values, picture, scale=map_scale(flat)) for values in flat]
    sizes = [ndimage.gaussian_filter(np.abs(one), smoothing(picture)) for one in flat]
    return [lit(size, picture, scale=map_scale(sizes, 97.0)) for size in sizes]


def as_picture(picture: Tensor | np.ndarray) -> UInt8[np.ndarray, "y x colour"]:
    """Return one picture as uint8 [y, x, colour], of one colour or three.

    Parameters
    ----------
    picture : Tensor or array of shape [y, x], [y, x, colour] or [colour, y, x]
        Alone or as a batch of one; whole numbers from 0 to 255, floats from 0 to 1, truth values.

    Raises
    ------
    DataError
        It is of another shape, or has other values.

    Examples
    --------
    >>> as_picture(np.array([[0.0, 1.0]]))[..., 0].tolist()
    [[0, 255]]
    """
    pixels = _alone(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and pixels.shape[2] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise DataError(
            "picture: expected one image, [y, x], [y, x, colour] or [colour, y, x], of 1 or 3 "
            f"colours; got shape {tuple(picture.shape)}. Take one of a batch, such as pictures[0]"
        )
    if pixels.dtype.kind not in "biuf":
        raise DataError(f"picture: expected whole numbers or floats; got {pixels.dtype}")
    low, high = float(pixels.min()), float(pixels.max())
    top = 255 if pixels.dtype.kind in "iu" else 1
    if not 0 <= low <= high <= top:
        raise DataError(
            "picture: expected whole numbers from 0 to 255, or floats from 0 to 1; got "
            f"{pixels.dtype} from {low:g} to {high:g}. Take the picture before the model's "
            "preprocessing (Inputs.picture), or bring it to 0 to 1"
        )
    return _pixels(pixels.astype(np.float64) * (255 / top))


def _alone(values: Tensor | np.ndarray) -> np.ndarray:
    """Return an array on the CPU, the only one of a batch of one."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    array: np.ndarray = np.asarray(values)
    return array[0] if array.ndim == 4 and len(array) == 1 else array


def _summed(values: Tensor | np.ndarray) -> Float[np.ndarray, "y x"]:
    """Sum a map over the channels of its input."""
    array = _alone(values)
    if array.ndim not in (2, 3):
        raise DataError(
            "maps: expected those of one input, [channel, y, x] or [y, x]; got shape "
            f"{tuple(array.shape)}. Take one of a batch, such as made.total[0]"
        )
    summed: np.ndarray = array.astype(np.float64).reshape(-1, *array.shape[-2:]).sum(0)
    return summed


def shows_signs(picture: UInt8[np.ndarray, "y x colour"]) -> bool:
    """Tell whether single pixels can be seen, and so the sign of a map at every pixel.

    In larger pictures it changes from pixel to pixel: the size of the map says where.
    """
    return bool(max(picture.shape[:2]) <= SIGNED_UP_TO)


def smoothing(picture: UInt8[np.ndarray, "y x colour"]) -> float:
    """Return the standard deviation, in pixels, of the Gaussian over the size of a lit map."""
    return max(1.0, float(picture.shape[0]) / 56)


def map_scale(maps: Sequence[Float[np.ndarray, "..."]], percentile: float = 99.5) -> float:
    """Return one scale for several maps: a high percentile of their sizes; 1 if all are zero."""
    sizes = np.abs(np.concatenate([values.ravel() for values in maps]))
    return float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0


def overlay(
    values: Float[np.ndarray, "y x"], picture: UInt8[np.ndarray, "py px colour"], *, scale: float
) -> UInt8[np.ndarray, "py px 3"]:
    """Draw a signed map over the faded picture: vermilion raises the target, violet lowers it.

    The map is brought to the picture's size; a value of size `scale` has its full colour.
    """
    values = resized(values, picture)
    grey = 255 * 0.82 + 0.18 * picture.mean(2, keepdims=True)
    strength = np.clip(np.abs(values) / scale, 0, 1)[..., None] ** 0.7
    sign = np.where(values[..., None] > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE)) * 255
    return _pixels(grey * (1 - strength) + sign * strength)


def lit(
    size: Float[np.ndarray, "y x"], picture: UInt8[np.ndarray, "y x colour"], *, scale: float
) -> UInt8[np.ndarray, "y x colour"]:
    """Draw the picture where a map is large, fading into grey where it is small.

    `size` is that of the map, smoothed; from `scale` on the picture stands out in full.
    """
    light = 0.08 + 0.92 * np.clip(size / scale, 0, 1)[..., None]
    return _pixels(FADED * (1 - light) + picture * light)


def _pixels(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.rint(values).astype(np.uint8)
    return pixels


def resized(
    values: Float[np.ndarray, "y x"], picture: UInt8[np.ndarray, "py px colour"]
) -> Float[np.ndarray, "py px"]:
    """Bring a map to the size of a picture."""
    from scipy import ndimage

    height, width = picture.shape[:2]
    if values.shape == (height, width):
        return values
    factors = (height / values.shape[0], width / values.shape[1])
    zoomed: np.ndarray = ndimage.zoom(values, factors, order=1, grid_mode=True, mode="nearest")
    return zoomed
