"""Maps of positions, drawn over what the network was given: a picture, a signal, or a text.

Vermilion raises the target and violet lowers it; how opaque a colour is grows with the value, in a
straight line up to one scale, which all maps of a figure share and which is written beside them.
Nothing is smoothed: a position is a cell. The outline holds the fewest positions that make 80 % of
the map, by size. Tokens are drawn as the grid of a picture where they make one, in its proportions,
after a few tokens that stand beside it (class tokens, registers: up to eight, and to an eighth of
the grid); else as a strip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from condec.basis.errors import DataError
from condec.figures.pixels import lit, resized
from condec.figures.style import GREY, INK, MUTED, NEGATIVE, POSITIVE, RULE, styled

REGION: Final = 0.8
"""Share of a map's sizes that its outline holds."""
_MOST_BESIDE: Final = 8
_COLUMNS: Final = 28
"""Characters in a line of text."""
_OPAQUE: Final = 0.92


@dataclass(frozen=True, eq=False)
class Ground:
    """What maps are drawn over: one of a picture, a signal and a text, or nothing.

    Attributes
    ----------
    picture : array of shape [y, x, colour], uint8, optional
    signal : array of shape [time], optional
    text : tuple of str, optional
        Characters or tokens: one a position; the first few positions may have none.
    """

    picture: np.ndarray | None = None
    signal: np.ndarray | None = None
    text: tuple[str, ...] | None = None

    @property
    def per(self) -> str:
        """What values of maps are given for."""
        if self.picture is None and self.signal is None:
            return "a position" if self.text is None else "a token"
        return f"1 % of the {'signal' if self.picture is None else 'picture'}"

    def density(self, places: np.ndarray) -> np.ndarray:
        """Return a map in values for what `per` says: maps of any number of cells compare."""
        places = folded(places)
        if self.picture is None and self.signal is None:
            return places
        grid = self.grid(places)
        return places * ((grid[0] * grid[1] if grid else places.size) / 100)

    def draw(self, axis: Axes, values: np.ndarray, scale: float, *, masked: bool = False) -> None:
        """Draw a map of densities; `masked` shows where it is large, as the paper does."""
        axis.set_axis_off()
        grid = self.grid(values)
        if self.text is not None and values.ndim == 1:
            _draw_text(axis, values, scale, self.text)
        elif self.signal is not None and values.ndim == 1:
            _draw_signal(axis, values, scale, self.signal)
        elif self.picture is not None and grid:
            beside = values.size - grid[0] * grid[1]
            cells = values.reshape(-1)[beside:].reshape(grid)
            _draw_picture(axis, cells, scale, self.picture, masked=masked)
            _draw_beside(axis, values.reshape(-1)[:beside], scale, grid)
            if not masked:
                outline(axis, region(values).reshape(-1)[beside:].reshape(grid))
        else:
            cells = np.atleast_2d(values)
            axis.imshow(signed(cells, scale), extent=(0, cells.shape[1], cells.shape[0], 0))
            outline(axis, region(cells))
            axis.set_aspect("auto" if len(cells) == 1 else "equal")

    def show(self, axis: Axes) -> None:
        """Draw what was given, without a map."""
        axis.set_axis_off()
        if self.picture is not None:
            colours = self.picture if self.picture.shape[2] > 1 else self.picture[..., 0]
            axis.imshow(colours, cmap="gray", vmin=0, vmax=255)
        elif self.signal is not None:
            axis.plot(self.signal, color=INK, linewidth=0.8)
        elif self.text is not None:
            _draw_text(axis, np.zeros(len(self.text)), 1.0, self.text)

    def grid(self, values: np.ndarray) -> tuple[int, int] | None:
        """Return rows and columns of a map's cells over the picture; None where there are none."""
        if self.picture is None or not values.ndim:
            return None
        if values.ndim == 2:
            return values.shape[0], values.shape[1]
        height, width = self.picture.shape[:2]
        for beside in range(_MOST_BESIDE + 1):
            rows = round(max(0, values.size - beside) ** 0.5 * (height / width) ** 0.5)
            columns = (values.size - beside) // rows if rows else 0
            fits = rows * columns == values.size - beside and rows * width == columns * height
            if rows > 1 and fits and _MOST_BESIDE * beside <= rows * columns:
                return rows, columns
        return None


def folded(places: np.ndarray) -> np.ndarray:
    """Sum a map over folds, or frames: one picture of all."""
    return places.sum(tuple(range(places.ndim - 2))) if places.ndim > 2 else places


def map_figure(ground: Ground, values: np.ndarray, scale: float) -> Figure:
    """Draw one map by itself, over a signal, a text, or nothing."""
    n_lines = 3 if ground.text is None else 1 + sum(map(len, ground.text)) // _COLUMNS
    with styled():
        figure = Figure(figsize=(2.6, 0.2 * max(n_lines, 2)))
        ground.draw(figure.add_axes((0.01, 0.01, 0.98, 0.98)), values, scale)
    return figure


def region(values: np.ndarray, share: float = REGION) -> np.ndarray:
    """Tell which are the fewest positions that hold a share of a map's sizes.

    >>> region(np.array([[0.0, -6.0], [2.0, 2.0]])).tolist()
    [[False, True], [True, False]]
    """
    sizes = np.abs(values).ravel()
    order = np.argsort(-sizes, kind="stable")
    within = np.zeros(sizes.shape, bool)
    if sizes.sum() > 0:
        n_needed = np.searchsorted(np.cumsum(sizes[order]), share * sizes.sum() * (1 - 1e-9))
        within[order[: n_needed + 1]] = True
    return within.reshape(values.shape)


def signed(values: np.ndarray, scale: float) -> np.ndarray:
    """Return the colours of values, [..., 4]: as opaque as they are large."""
    strength = np.clip(np.abs(values) / scale, 0, 1)[..., None] * _OPAQUE
    sign = np.where(values[..., None] > 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    return np.concatenate([sign, strength], -1)


def draw_scale(axis: Axes, scale: float, words: Sequence[str]) -> None:
    """Draw the scale of maps, with words under it."""
    values = np.linspace(-scale, scale, 101)[None]
    axis.imshow(signed(values, scale), extent=(-scale, scale, 0, 1), aspect="auto")
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    ticks = [f"{tick:+.2g}".replace("-", "\N{MINUS SIGN}") for tick in (-scale, scale)]
    axis.set_xticks([-scale, 0, scale], [ticks[0], "0", ticks[1]], fontsize=7.5)
    axis.set_xlabel("\n".join(words), fontsize=7.5, loc="left")


def _draw_picture(
    axis: Axes, cells: np.ndarray, scale: float, picture: np.ndarray, *, masked: bool
) -> None:
    (height, width), (rows, columns) = picture.shape[:2], cells.shape
    limits: dict[str, Any] = {"extent": (0, columns, rows, 0), "cmap": "gray"}
    if masked:
        shown = lit(resized(np.abs(cells), picture), picture, scale=scale)
        axis.imshow(np.broadcast_to(shown, (height, width, 3)), **limits)
    else:
        axis.imshow(255 * 0.6 + 0.4 * picture.mean(2), vmin=0, vmax=255, **limits)
        axis.imshow(signed(cells, scale), interpolation="nearest", **limits)
    axis.set_aspect(height / width * columns / rows)


def _draw_beside(axis: Axes, values: np.ndarray, scale: float, grid: tuple[int, int]) -> None:
    """Draw tokens that are no place of the picture as boxes to its left."""
    rows, columns = grid
    for number, colour in enumerate(signed(values, scale)):
        corner = (-0.18 * columns, (0.02 + 0.15 * number) * rows)
        axis.add_patch(
            Rectangle(corner, 0.13 * columns, 0.13 * rows, facecolor=colour, edgecolor=GREY)
        )
    if len(values):
        axis.set_xlim(-0.2 * columns, columns)


def outline(axis: Axes, within: np.ndarray, colour: str = INK, width: float = 0.9) -> None:
    """Draw the border of the cells that are within."""
    padded = np.pad(within, 1)
    down = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    along = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines = [[(x, y), (x, y + 1)] for y, x in down] + [[(x, y), (x + 1, y)] for y, x in along]
    # Not clipped: matplotlib's names of clips change from time to time.
    border = LineCollection(lines, colors=colour, linewidths=width, clip_on=False)
    axis.add_collection(border, autolim=False)


def _draw_signal(axis: Axes, values: np.ndarray, scale: float, signal: np.ndarray) -> None:
    """Draw a line coloured by its map, and a bar under what the outline holds."""
    time = np.arange(len(signal))
    cell = time * len(values) // len(signal)
    ends = np.stack([time, signal], 1)
    lines = np.stack([ends[:-1], ends[1:]], 1)
    axis.plot(time, signal, color=RULE, linewidth=2.2)
    colours = signed(values[cell[:-1]], scale)
    axis.add_collection(LineCollection(list(lines), colors=colours, linewidths=2.2, clip_on=False))
    under = signal.min() - 0.12 * (np.ptp(signal) or 1)
    axis.plot(time, np.where(region(values)[cell], under, np.nan), color=INK, linewidth=1.5)


def _draw_text(axis: Axes, values: np.ndarray, scale: float, text: Sequence[str]) -> None:
    """Draw characters or tokens on their colours, those that the outline holds underlined."""
    before = len(values) - len(text)
    if not 0 <= before <= _MOST_BESIDE:
        raise DataError(
            f"text: expected {len(values)} characters or tokens, one for each position of the map; "
            f"got {len(text)}. Give a list of tokens, or the text without those that are added"
        )
    words = ["\N{MIDDLE DOT}"] * before + [" " if one.isspace() else one for one in text]
    row = column = 0
    boxes, under = list[tuple[int, int, int]](), list[list[tuple[int, float]]]()
    for word, inside in zip(words, region(values), strict=True):
        if column and column + len(word) > _COLUMNS:
            row, column = row + 1, 0
        axis.text(
            column + len(word) / 2, row + 0.46, word, ha="center", va="center", color=INK,
            fontfamily="DejaVu Sans Mono", fontsize=6.5,
        )  # fmt: skip
        boxes.append((row, column, column + len(word)))
        column += len(word)
        under += [[(x, row + 0.92) for x in boxes[-1][1:]]] * bool(inside)
    # As one artist each: one for every token takes most of the time of a report on texts.
    corners = [[(a, y), (b, y), (b, y + 0.92), (a, y + 0.92)] for y, a, b in boxes]
    cells = PolyCollection(corners, facecolors=signed(values, scale), linewidths=0)
    for artist in (cells, LineCollection(under, colors=INK, linewidths=0.9)):
        artist.set_clip_on(False)
        axis.add_collection(artist, autolim=False)
    axis.set_xlim(0, _COLUMNS)
    axis.set_ylim(row + 1.2, -0.2)
    axis.set_aspect(1.9, anchor="NW")
    axis.spines[:].set_color(MUTED)
