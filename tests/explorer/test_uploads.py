"""Uploads: what is let in, and what is refused before anything reads it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from condec.basis.errors import DataError
from condec.explorer.uploads import MOST_BYTES, stored


def picture(kind: str, size: tuple[int, int] = (4, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, kind)
    return content.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "end"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_pictures_are_stored_under_a_name_of_ours(kind: str, end: str) -> None:
    content = picture(kind)
    with stored(content) as file:
        assert file.name == f"upload.{end}"
        assert file.read_bytes() == content
    assert not file.parent.exists()


def test_arrays_and_texts() -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    with stored(array.getvalue()) as file:
        assert file.suffix == ".npy"
    with stored(b"Once upon a time\n", text=True) as file:
        assert file.read_text() == "Once upon a time\n"


@pytest.mark.parametrize(
    ("content", "text", "problem"),
    [
        (b"", False, "expected a picture"),
        (b"GIF89a" + bytes(20), False, "expected a picture"),
        (picture("GIF"), False, "expected a picture"),
        (picture("TIFF"), False, "expected a picture"),
        (picture("PNG")[:20], False, "expected a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", False, "expected a picture"),
        (bomb(20_000, 20_000), False, "pixels"),
        (bomb(8_000, 7_000), False, "at most 50 million pixels; the picture has 8000 x 7000"),
        (bomb(50_000, 1), False, "at most 20 times as long as wide"),
        (bytes(MOST_BYTES + 1), False, "at most 20 MiB; got 20,971,521 bytes"),
        (b"\xff\xfe", True, "expected a text in UTF-8"),
        (b"  \n", True, "expected one line of text"),
        (b"two\nlines", True, "got 9 in 2 lines"),
        (b"a" * 10_001, True, "up to 10,000 characters; got 10,001"),
    ],
)  # fmt: skip
def test_what_is_refused(content: bytes, text: bool, problem: str) -> None:
    with pytest.raises(DataError, match=problem), stored(content, text=text):
        pytest.fail("it was let in")
