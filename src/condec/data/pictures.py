"""Pictures of PIL, of any mode, as 8 bits: full scale becomes full scale.

Full scale is 1 of floats, and the number of bits that the file states of whole numbers. What says
nothing of its full scale, such as whole numbers of 32 bits, is refused. Transparency is left out.
"""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from condec.basis.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_BITS, _PHOTOMETRIC, _WHITE_IS_0 = 258, 262, 0  # tags of TIFF
_WAYS: Final = {
    "1": ("L",), "L": (), "LA": ("L",), "La": ("LA", "L"), "RGB": (), "RGBA": (), "RGBX": ("RGB",),
    "RGBa": ("RGBA",), "P": ("RGBA", "RGB"), "PA": ("RGBA", "RGB"), "CMYK": ("RGB",),
    "YCbCr": ("RGB",), "HSV": ("RGB",), "LAB": ("RGB",),
}  # fmt: skip
"""Conversions of PIL that keep full scale, one after the other."""


def eight_bits(picture: "Image") -> "Image":
    """Return a picture of mode L, RGB or RGBA; DataError for one of a mode without full scale."""
    if picture.mode not in _WAYS:
        return _scaled(picture)
    for mode in _WAYS[picture.mode]:
        picture = picture.convert(mode)
    return picture


def _scaled(picture: "Image") -> "Image":
    """Scale grey values of more than 8 bits."""
    from PIL import Image

    tags: Any = getattr(picture, "tag_v2", {})
    full = None
    if picture.mode == "F":
        full = 1.0
    elif picture.mode.startswith("I;16"):
        full = 2.0 ** int(np.ravel(tags.get(_BITS, 16))[0]) - 1
    elif picture.mode == "I" and picture.format in ("PNG", "PPM"):  # 16 bits in wider numbers
        full = 2.0**16 - 1
    if full is None:
        raise DataError(
            f"a picture of mode {picture.mode}, which does not say what is white; save it with 8 "
            "or 16 bits a value, or give an array of floats as the model takes them"
        )
    values = np.asarray(picture, dtype=np.float64)
    if not (values.min() >= 0 and values.max() <= full):
        raise DataError(
            f"a picture of mode {picture.mode} with values from {values.min():g} to "
            f"{values.max():g}; expected 0 (black) to {full:g} (white)"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_0:
        values = full - values
    return Image.fromarray(np.round(values / full * 255).astype(np.uint8))
