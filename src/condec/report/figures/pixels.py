"""Maps over pictures."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from condec.basis.errors import OptionError
from condec.report.figures.style import NEGATIVE, POSITIVE, styled

Display = Literal["signed", "lit", "paper"]
SIGNED_UP_TO: Final = 16
"""Pixels a side up to which the sign of a map can be read at every pixel."""
FADED: Final = 224
"""Grey of what a map leaves out: neither dark nor bright parts of a picture drown in it."""


def mode_map_figure(
    picture: UInt8[np.ndarray, "y x colour"],
    maps: Mapping[str, Tensor],
    *,
    display: Display | None = None,
) -> Figure:
    """Draw one input and its maps, side by side, as `draw_maps` does.

    Maps, [channel, y, x] or [y, x], go by their names: ``{"total": ..., "positive": ...}``.
    """
    pictures = [
        picture if picture.shape[2] > 1 else picture[..., 0],
        *draw_maps(list(maps.values()), picture, display=display),
    ]
    with styled():
        figure = Figure(figsize=(1.6 * len(pictures), 1.85), layout="constrained")
        axes = figure.subplots(1, len(pictures), squeeze=False)[0]
        for axis, name, pixels in zip(axes, ("image", *maps), pictures, strict=True):
            axis.imshow(pixels, cmap="gray")
            axis.set_title(name, fontsize=9)
            axis.set_axis_off()
    return figure


def draw_maps(
    maps: "Sequence[Tensor | np.ndarray]",
    picture: UInt8[np.ndarray, "y x colour"],
    *,
    display: Display | None = None,
) -> list[np.ndarray]:
    """Draw maps of one input, [channel, y, x] or [y, x], over its picture: uint8, [y, x, 3] each.

    Displays are ``signed``: sign and size at every pixel over the faded picture, on one scale, see
    `overlay`; ``lit``: the picture where the smoothed size is large, on one scale, see `lit`;
    ``paper``: as in figure 7 of Melander et al. 2026, every map on its own scale, see
    `paper_display`. By default it is `display_for` the picture's size; another is an OptionError.
    """
    from scipy import ndimage

    display = display_for(picture) if display is None else display
    arrays = [np.asarray(values, dtype=np.float64) for values in maps]
    coloured = [one.reshape(-1, *one.shape[-2:]) for one in arrays]
    if display == "paper":
        return [paper_display(one, picture) for one in coloured]
    flat = [_fitted_to(one.sum(0), picture) for one in coloured]
    if display == "signed":
        scale = map_scale(flat)
        return [overlay(values, picture, scale=scale) for values in flat]
    if display == "lit":
        sizes = [ndimage.gaussian_filter(np.abs(one), smoothing(picture)) for one in flat]
        scale = map_scale(sizes, 97.0)
        return [lit(size, picture, scale=scale) for size in sizes]
    raise OptionError(f"draw_maps: display must be signed, lit or paper; got {display!r}")


def display_for(picture: UInt8[np.ndarray, "y x colour"]) -> Display:
    """Return ``signed`` where single pixels can be seen, else ``lit``.

    In larger pictures the sign of a map changes from pixel to pixel: its size says where.
    """
    return "signed" if max(picture.shape[:2]) <= SIGNED_UP_TO else "lit"


def smoothing(picture: UInt8[np.ndarray, "y x colour"]) -> float:
    """Return the standard deviation, in pixels, of the Gaussian over the size of a lit map."""
    return max(1.0, float(picture.shape[0]) / 56)


def map_scale(maps: Sequence[Float[np.ndarray, "y x"]], percentile: float = 99.5) -> float:
    """Return one scale for several maps: a high percentile of their sizes; 1 if all are zero."""
    sizes = np.abs(np.concatenate([values.ravel() for values in maps]))
    return float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0


def overlay(
    values: Float[np.ndarray, "y x"], picture: UInt8[np.ndarray, "py px colour"], *, scale: float
) -> UInt8[np.ndarray, "py px 3"]:
    """Draw a signed map over the faded picture: vermilion raises the target, violet lowers it.

    The map is brought to the picture's size; a value of size `scale` has its full colour.
    """
    values = _fitted_to(values, picture)
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


def paper_display(
    total: Float[np.ndarray, "colour y x"],
    picture: UInt8[np.ndarray, "y x channel"],
    *,
    contrast: float = 7.0,
    window: int = 4,
) -> UInt8[np.ndarray, "y x channel"]:
    """Draw the picture lit where a map is strong, as in figure 7 of Melander et al. 2026.

    The map's size is median filtered for every colour, averaged over colours, brought to
    0 ... 1, times `contrast`, cut off at 1, and multiplied with the picture.
    """
    from scipy import ndimage

    size = np.abs(np.asarray(total, dtype=np.float64))
    light = np.mean([ndimage.median_filter(colour, size=window) for colour in size], axis=0)
    light = (light - light.min()) / max(float(light.max() - light.min()), 1e-12)
    return _pixels(picture * np.clip(contrast * light, 0, 1)[..., None])


def _pixels(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.rint(values).astype(np.uint8)
    return pixels


def _fitted_to(
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
