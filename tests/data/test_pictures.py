"""Pictures of every mode of PIL: full scale becomes full scale, or they are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from condec.basis.errors import DataError
from condec.data import as_inputs, load_data

GREY = np.array([[0, 64], [128, 255]], dtype=np.uint8)
COLOURS = np.array([[[0, 0, 0], [255, 255, 255]], [[255, 0, 0], [10, 200, 90]]], dtype=np.uint8)


def read(picture: Image.Image, file: Path, **options: Any) -> np.ndarray:
    picture.save(file, **options)
    return (load_data(f"folder:{file.parent}").load(0) * 255).round().permute(1, 2, 0).numpy()


def of_data_set(picture: Image.Image) -> torch.Tensor:
    return (as_inputs([picture]).load(0) * 255).round().permute(1, 2, 0)


def by_hand(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of COLOURS or GREY in a mode, and what must be seen, by formulas of its own."""
    grey = np.repeat(GREY[..., None], 3, -1)
    alpha = np.full((2, 2, 1), 255, dtype=np.uint8)
    colours = Image.fromarray(COLOURS)
    match mode:
        case "1":
            return Image.fromarray(GREY > 100), np.where(grey > 100, 255, 0)
        case "L":
            return Image.fromarray(GREY), grey
        case "LA" | "La":
            return Image.fromarray(np.concatenate([grey[..., :1], alpha], -1)).convert(mode), grey
        case "P" | "PA":
            picture = Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8)).convert("P")
            picture.putpalette(COLOURS.reshape(-1).tolist())
            return picture.convert(mode), COLOURS
        case "RGBA" | "RGBa" | "RGBX" | "RGB":
            return colours.convert("RGBA").convert(mode), COLOURS
        case "CMYK":
            inks = np.concatenate([255 - COLOURS, np.zeros((2, 2, 1), dtype=np.uint8)], -1)
            return Image.frombytes("CMYK", (2, 2), inks.tobytes()), COLOURS
        case "YCbCr" | "HSV" | "LAB":
            return colours.convert(mode), COLOURS
        case "I;16" | "I;16B":
            wide = (GREY.astype(np.uint16) * 257).astype("<u2" if mode == "I;16" else ">u2")
            return Image.frombytes(mode, (2, 2), wide.tobytes()), grey
        case "F":
            return Image.fromarray((GREY / np.float32(255)).astype(np.float32)), grey
    raise AssertionError(mode)


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB",
         "HSV", "I;16", "I;16B", "F")  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_data_set(mode: str) -> None:
    picture, wanted = by_hand(mode)
    assert picture.mode == mode
    found = of_data_set(picture).numpy()[..., :3]
    rounded = {"YCbCr": 5, "HSV": 5, "LAB": 16}  # by PIL, which has 8 bits for these, too
    off = np.abs(found - wanted.astype(float)[..., : found.shape[-1]])
    assert off.max() <= rounded.get(mode, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_of_png(mode: str, tmp_path: Path) -> None:
    picture, wanted = by_hand(mode)
    assert np.array_equal(read(picture, tmp_path / "a.png"), wanted)


@pytest.mark.parametrize("mode", ["I;16", "F", "CMYK", "L"])
def test_modes_of_tiff(mode: str, tmp_path: Path) -> None:
    picture, wanted = by_hand(mode)
    assert np.array_equal(read(picture, tmp_path / "a.tiff"), wanted)


def test_a_ramp_of_16_bits_keeps_all_its_grey_levels(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    found = read(Image.fromarray(ramp), tmp_path / "a.png")
    assert np.abs(found[..., 0] - ramp / 65535 * 255).max() <= 0.5 + 1e-6
    assert len(np.unique(found)) == 256


def test_16_bits_of_a_portable_grey_map(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P5 2 1 65535\n" + np.array([0, 65535], ">u2").tobytes())
    assert load_data(f"folder:{tmp_path}").load(0)[0].tolist() == [[0.0, 1.0]]


def tiff(values: np.ndarray, file: Path, bits: int, photometric: int) -> None:
    """Write an uncompressed grey TIFF by hand, byte for byte."""
    data = values.tobytes()
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, bits), (259, 1),
            (262, photometric), (273, 8), (277, 1), (278, values.shape[0]),
            (279, len(data))]  # fmt: skip
    table = b"".join(
        np.array([tag, 4], "<u2").tobytes() + np.array([1, value], "<u4").tobytes()
        for tag, value in tags
    )
    head = b"II*\0" + np.array([8 + len(data)], "<u4").tobytes()
    file.write_bytes(head + data + np.array([len(tags)], "<u2").tobytes() + table + bytes(4))


def test_white_is_0_in_a_tiff_of_16_bits(tmp_path: Path) -> None:
    tiff(np.array([[0, 65535, 257]], dtype="<u2"), tmp_path / "a.tif", 16, photometric=0)
    found = load_data(f"folder:{tmp_path}").load(0)[0] * 255
    assert found.round().tolist() == [[255.0, 0.0, 254.0]]


def test_12_bits_in_a_tiff(tmp_path: Path) -> None:
    packed = np.array([0x00, 0x0F, 0xFF], dtype=np.uint8)[None]  # 0x000 and 0xFFF
    tiff(packed, tmp_path / "a.tif", 12, photometric=1)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index(np.array([256, 4], "<u2").tobytes()) + 8
    content[at : at + 4] = np.array([2], "<u4").tobytes()
    (tmp_path / "a.tif").write_bytes(content)
    assert load_data(f"folder:{tmp_path}").load(0)[0].tolist() == [[0.0, 1.0]]


def test_pictures_without_a_full_scale_are_refused(tmp_path: Path) -> None:
    for values, message in (
        (np.array([[0, 70000]], dtype=np.int32), r"mode I, which does not say what is white; save"),
        (np.array([[0.0, 300.0]], dtype=np.float32), r"mode F with values from 0 to 300; expected"),
        (np.array([[0.5, np.nan]], dtype=np.float32), r"mode F with values from nan to nan"),
    ):
        picture = Image.fromarray(values)
        with pytest.raises(DataError, match=f"data: item 0: a picture of {message}"):
            as_inputs([picture]).load(0)
        picture.save(tmp_path / "a.tiff")
        with pytest.raises(DataError, match=f"a.tiff: .*{message}"):
            load_data(f"folder:{tmp_path}").load(0)
