"""Sheets of pictures: rows of inputs under one name each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from condec.figures.places import outline, signed
from condec.figures.style import INK, MUTED, SKY, literal, styled


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture [y, x, colour], uint8, what stands under it, and what is drawn over it.

    `place` [y, x], bool, is outlined; `values` [y, x] are laid over as a map, relative to the
    largest.
    """

    pixels: Tensor
    words: str = ""
    place: Tensor | None = None
    values: Tensor | None = None


def sheet(rows: Mapping[str, Sequence[Picture]]) -> Figure:
    """Draw rows of pictures; their names may have several lines."""
    n_columns = max(1, *map(len, rows.values()))
    with styled():
        figure = Figure(figsize=(1.55 + 0.82 * n_columns, 1.02 * len(rows) + 0.1))
        grid = figure.add_gridspec(
            len(rows), n_columns, left=1.5 / (1.55 + 0.82 * n_columns), right=0.995, top=0.985,
            bottom=0.2 / (1.02 * len(rows) + 0.1), wspace=0.08, hspace=0.3,
        )  # fmt: skip
        for i, (name, pictures) in enumerate(rows.items()):
            for j, picture in enumerate(pictures):
                axis = figure.add_subplot(grid[i, j])
                _draw(axis, picture)
            first = grid[i, 0].get_position(figure)
            lines = [literal(line, 24) for line in name.split("\n")]
            rest = figure.get_figheight()
            for k, line in enumerate(lines):
                figure.text(
                    0.01, first.y1 - k * 0.15 / rest, line, va="top", fontsize=7.5,
                    color=MUTED if k else INK, fontweight="normal" if k else "bold",
                )  # fmt: skip
    return figure


def _draw(axis: Axes, picture: Picture) -> None:
    pixels = np.asarray(picture.pixels)
    height, width = pixels.shape[:2]
    extent = (0, width, height, 0)
    axis.imshow(pixels, extent=extent, interpolation="nearest")
    if picture.values is not None:
        axis.imshow(np.full((1, 1, 4), (1.0, 1.0, 1.0, 0.75)), extent=extent)  # fades the picture
        values = np.asarray(picture.values)
        axis.imshow(signed(values, float(np.abs(values).max()) or 1.0), extent=extent)
    if picture.place is not None:
        outline(axis, np.asarray(picture.place), SKY, 1.4)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(literal(picture.words, 16), fontsize=7, labelpad=2)
