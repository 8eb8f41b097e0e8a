"""Maps over pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from condec.figures.style import NEGATIVE, POSITIVE, styled

FADED = 224
"""Grey of what a map leaves out: neither dark nor bright parts of a picture drown in it."""


def mode_map_figure(picture: UInt8[np.ndarray, "y x colour"], maps: Mapping[str, Tensor]) -> Figure:
    """One input and its maps, side by side on one common scale.

    Parameters
    ----------
    picture : uint8 array of shape [y, x, colour]
    maps : mapping of str to Tensor of shape [channel, y, x] or [y, x]
        For example ``{"total": ..., "positive": ..., "negative": ...}``.
    """
    flat = {name: flatten_colours(values) for name, values in maps.items()}
    scale = map_scale(list(flat.values()))
    with styled():
        figure = Figure(figsize=(1.6 * (1 + len(flat)), 1.85), layout="constrained")
        axes = figure.subplots(1, 1 + len(flat), squeeze=False)[0]
        axes[0].imshow(picture if picture.shape[2] > 1 else picture[..., 0], cmap="gray")
        axes[0].set_title("image", fontsize=9)
        for axis, (name, values) in zip(axes[1:], flat.items(), strict=True):
            axis.imshow(overlay(values, picture, scale=scale))
            axis.set_title(name, fontsize=9)
        for axis in axes:
            axis.set_axis_off()
    return figure


def flatten_colours(values: "Tensor | np.ndarray") -> Float[np.ndarray, "y x"]:
    """Sum of a map [channel, y, x] over its channels; a map [y, x] as it is."""
    array = np.asarray(values, dtype=np.float64)
    return array.sum(0) if array.ndim == 3 else array


def map_scale(maps: Sequence[Float[np.ndarray, "y x"]], percentile: float = 99.5) -> float:
    """Common scale of several maps: a high percentile of their sizes; 1 where all are zero."""
    sizes = np.abs(np.concatenate([values.ravel() for values in maps]))
    return float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0


def smooth_map(values: Float[np.ndarray, "y x"], width: float) -> Float[np.ndarray, "y x"]:
    """A map through a Gaussian of standard deviation `width`, in pixels; 0 leaves it as it is."""
    from scipy import ndimage

    return ndimage.gaussian_filter(values, width) if width else values


def overlay(
    values: Float[np.ndarray, "y x"],
    picture: UInt8[np.ndarray, "py px colour"],
    *,
    scale: float,
) -> UInt8[np.ndarray, "py px 3"]:
    """A signed map over the faded picture: vermilion raises the target, violet lowers it.

    Parameters
    ----------
    values : array of shape [y, x]
        Brought to the picture's size.
    picture : uint8 array of shape [y, x, colour]
    scale : float
        Size of a value that is drawn in full colour.
    """
    from scipy import ndimage

    height, width = picture.shape[:2]
    if values.shape != (height, width):
        values = ndimage.zoom(
            values, (height / values.shape[0], width / values.shape[1]), order=1, grid_mode=True,
            mode="nearest",
        )  # fmt: skip
    grey = 255 * 0.82 + 0.18 * picture.mean(2, keepdims=True)
    strength = np.clip(np.abs(values) / scale, 0, 1)[..., None] ** 0.7
    sign = np.where(values[..., None] > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE)) * 255
    pixels: np.ndarray = np.rint(grey * (1 - strength) + sign * strength).astype(np.uint8)
    return pixels


def lit(
    size: Float[np.ndarray, "y x"], picture: UInt8[np.ndarray, "y x colour"], *, scale: float
) -> UInt8[np.ndarray, "y x colour"]:
    """The picture where a map is large, fading into grey where it is small.

    Parameters
    ----------
    size : array of shape [y, x]
        Size of the map, 0 or above, smoothed.
    picture : uint8 array of shape [y, x, colour]
    scale : float
        Size at which the picture stands out in full.
    """
    light = 0.08 + 0.92 * np.clip(size / scale, 0, 1)[..., None]
    pixels: np.ndarray = np.rint(FADED * (1 - light) + picture * light).astype(np.uint8)
    return pixels


def paper_display(
    total: Float[np.ndarray, "colour y x"],
    picture: UInt8[np.ndarray, "y x channel"],
    *,
    contrast: float = 7.0,
    window: int = 4,
) -> UInt8[np.ndarray, "y x channel"]:
    """The picture lit where a map is strong, as in figure 7 of Melander et al. 2026.

    The map's size is median filtered for every colour, averaged over colours, brought to
    0 ... 1, times `contrast`, cut off at 1, and multiplied with the picture.
    """
    from scipy import ndimage

    size = np.abs(np.asarray(total, dtype=np.float64))
    light = np.mean([ndimage.median_filter(colour, size=window) for colour in size], axis=0)
    light = (light - light.min()) / max(float(light.max() - light.min()), 1e-12)
    lit = picture * np.clip(contrast * light, 0, 1)[..., None]
    pixels: np.ndarray = np.rint(lit).astype(np.uint8)
    return pixels
