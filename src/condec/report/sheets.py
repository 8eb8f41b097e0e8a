"""Pictures of a report, many in one file: a sheet, of which pages show rectangles."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

SQUARES_UP_TO: Final = 64
"""Pixels a side up to which pictures are shown as squares, and kept without loss."""
_ON_A_SHEET: Final = 64
_QUALITY: Final = 64


@dataclass(frozen=True)
class Tile:
    """A rectangle of a sheet: its file from the report's folder, the sheet's size, and where."""

    file: str
    sheet: tuple[int, int]
    x: int
    y: int
    width: int
    height: int

    @property
    def squares(self) -> bool:
        """Whether its pixels are to be seen."""
        return max(self.width, self.height) <= SQUARES_UP_TO

    def record(self) -> list[Any]:
        """Return it as scripts take it."""
        return [self.file, *self.sheet, self.x, self.y, self.width, self.height]


@dataclass
class Sheets:
    """Stores pictures, uint8 [y, x, 3], in the folder of one report; equal ones once."""

    folder: Path
    _known: dict[str, Tile] = field(default_factory=dict)
    _numbers: int = 0

    def sheet(
        self, pictures: Sequence[np.ndarray], file: str, columns: int = 8, side: int = 144
    ) -> list[Tile]:
        """Store pictures in one file, row by row, none larger than `side`, and tell where."""
        from PIL import Image

        images = [Image.fromarray(pixels).convert("RGB") for pixels in pictures]
        for image in images:
            image.thumbnail((side, side))
        width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
        columns = min(columns, len(images))
        size = (columns * width, -(-len(images) // columns) * height)
        page, tiles = Image.new("RGB", size), []
        for number, image in enumerate(images):
            x, y = number % columns * width, number // columns * height
            page.paste(image, (x, y))
            tiles.append(Tile(file, size, x, y, *image.size))
        place = self.folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        page.save(place, "WEBP", lossless=tiles[0].squares, quality=_QUALITY)
        return tiles

    def inputs(self, pictures: Mapping[str, np.ndarray]) -> dict[str, Tile]:
        """Store pictures of inputs once, however many pages show them, and tell where by name."""
        names = {name: _digest(pixels) for name, pixels in pictures.items()}
        fresh = {
            names[name]: pixels
            for name, pixels in pictures.items()
            if names[name] not in self._known
        }
        for some in _batches(list(fresh), _ON_A_SHEET):
            file = f"pictures/sheet-{self._numbers}.webp"
            tiles = self.sheet([fresh[key] for key in some], file)
            self._known.update(zip(some, tiles, strict=True))
            self._numbers += 1
        return {name: self._known[key] for name, key in names.items()}


def _digest(pixels: np.ndarray) -> str:
    return sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _batches(keys: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
