"""What users give to the explorer: checked before anything reads it, and kept for a moment only."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from condec.basis.errors import DataError

MOST_BYTES: Final = 20 * 2**20
_MOST_PIXELS: Final = 50_000_000
_LONGEST: Final = 20
_MOST_CHARACTERS: Final = 10_000
_PICTURES: Final = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


@contextmanager
def stored(content: bytes, *, text: bool = False) -> Iterator[Path]:
    """Store an upload under a name of ours while the context lasts.

    Raises DataError: it is too large, or no line of text, picture or array.
    """
    if len(content) > MOST_BYTES:
        raise DataError(f"upload: at most {MOST_BYTES // 2**20} MiB; got {len(content):,} bytes")
    end = _end_of_text(content) if text else _end_of(content)
    with TemporaryDirectory(prefix="condec-") as place:
        file = Path(place) / f"upload{end}"
        file.write_bytes(content)
        yield file


def _end_of_text(content: bytes) -> str:
    try:
        words = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"upload: expected a text in UTF-8; {error.reason}") from error
    if not words.strip() or len(words) > _MOST_CHARACTERS or "\n" in words.strip():
        raise DataError(
            f"upload: expected one line of text, up to {_MOST_CHARACTERS:,} characters; got "
            f"{len(words):,} in {len(words.splitlines())} lines"
        )
    return ".txt"


def _end_of(content: bytes) -> str:
    """Return how the name of a file with this content ends; only its header is read."""
    from PIL import Image, UnidentifiedImageError

    if content[:6] == b"\x93NUMPY":
        return ".npy"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            with Image.open(io.BytesIO(content), formats=tuple(_PICTURES)) as opened:
                width, height, kind = *opened.size, str(opened.format)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            "upload: expected a picture (PNG, JPEG or WebP), or an array of one sample (.npy)"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"upload: {error}") from error
    if max(width, height) > _LONGEST * min(width, height):
        # A preprocessing that resizes the short side would make it huge.
        raise DataError(
            f"upload: at most {_LONGEST} times as long as wide; the picture has {width} x {height}"
        )
    if width * height > _MOST_PIXELS:
        raise DataError(
            f"upload: at most {_MOST_PIXELS // 10**6} million pixels; the picture has "
            f"{width} x {height}. Make it smaller"
        )
    return _PICTURES[kind]
