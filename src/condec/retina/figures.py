"""Figures of the retina: traces over time, receptive fields, modes against cells."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from condec.basis.errors import DataError
from condec.report.figures.style import (
    ACTIVATION,
    CONTRIBUTION,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    RULE,
    SIGNED,
    list_names,
    not_empty,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas

_MODE_COLOURS: Final = (CONTRIBUTION, POSITIVE, "#009E73", ACTIVATION, "#CC79A7", NEGATIVE)
_WIDTH: Final = 8.4
"""Inches: two charts side by side."""


def traces_figure(
    seconds: Float[Tensor, " frame"], rates: Mapping[str, Float[Tensor, " frame"]],
    contributions: Float[Tensor, "frame unit"], loadings: Mapping[str, Float[Tensor, " frame"]],
    *, events: Mapping[str, Float[Tensor, " frame"]] | None = None, cell: str = "",
) -> Figure:  # fmt: skip
    """Draw rates, contributions of every unit and loadings over time (Melander et al., fig. 8B).

    Rates are ``model`` and, where there are recordings, ``recorded``; loadings stand by the name
    of the mode, each over its own maximum; events above 0 are drawn as a bar. `cell` is the name
    of the cell that has the rates. DataError where there are no frames, or lengths differ.
    """
    events = events or {}
    lengths = {len(seconds), len(contributions), *map(len, (*rates.values(), *loadings.values()))}
    if len(lengths) > 1 or not len(seconds):
        raise DataError(
            "traces_figure: expected one value a frame of all that is drawn, at least one frame; "
            f"got lengths {', '.join(map(str, sorted(lengths)))}"
        )
    shown = {name: values for name, values in events.items() if bool((values > 0).any())}
    heights = [1.3, 0.16 * len(shown) + 0.1, 1.6, 0.34 * len(loadings) + 0.3]
    with styled():
        figure = Figure(figsize=(_WIDTH, sum(heights) + 1.6), layout="constrained")
        grid = figure.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": heights})
        _rates(grid[0], seconds, rates, cell)
        _events(grid[1], seconds, shown)
        title(grid[2], "Contributions", "of every unit; vermilion raises the target, violet lowers")
        scale = float(contributions.abs().max())
        if contributions.numel() < 2**24:  # torch's quantile takes no more
            scale = float(contributions.abs().flatten().quantile(0.99)) or scale
        _heat(grid[2], contributions, scale or 1.0, (float(seconds[0]), float(seconds[-1])))
        grid[2].set_ylabel("unit")
        _loadings(grid[3], seconds, loadings)
        grid[3].set_xlabel("seconds")
        grid[3].set_xlim(float(seconds[0]), float(seconds[-1]))
    return figure


def _rates(axis: Axes, seconds: Tensor, rates: Mapping[str, Tensor], cell: str) -> None:
    title(axis, f"Cell {cell}" if cell else "Rates", "rate, as the model gives it")
    colours = dict.fromkeys(rates, CONTRIBUTION) | {"recorded": "#9AA1A9", "model": INK}
    names = sorted(rates, key=lambda name: name == "model")  # drawn last
    for name in names:
        axis.plot(seconds.numpy(), rates[name].numpy(), color=colours[name], linewidth=1.3)
    axis.set_ylim(bottom=min(0.0, *(float(values.min()) for values in rates.values())))
    list_names(axis, [(name, colours[name]) for name in names])


def _events(axis: Axes, seconds: Tensor, events: Mapping[str, Tensor]) -> None:
    for row, values in enumerate(events.values()):
        axis.fill_between(
            seconds.numpy(), row - 0.35, row + 0.35, where=(values > 0).numpy(), color="#C9CED4",
            step="mid", linewidth=0,
        )  # fmt: skip
    axis.set_yticks(range(len(events)), list(events), fontsize=7.5)
    axis.set_ylim(max(len(events), 1) - 0.5, -0.5)
    axis.tick_params(axis="both", length=0)
    axis.spines[:].set_visible(False)


def _heat(axis: Axes, values: Tensor, scale: float, ends: tuple[float, float]) -> None:
    """Draw values [frame, row] as colours, time to the right."""
    axis.imshow(
        values.T.numpy(), cmap=SIGNED, vmin=-scale, vmax=scale, aspect="auto",
        extent=(*ends, values.shape[1] - 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip
    axis.set_yticks([0, values.shape[1] - 1])


def _loadings(axis: Axes, seconds: Tensor, loadings: Mapping[str, Tensor]) -> None:
    title(axis, "Loadings", "of modes, each over its maximum here")
    for row, values in enumerate(loadings.values()):
        heights = (values / (float(values.max()) or 1.0)).clamp(min=0) * 0.9 - row
        colour = _MODE_COLOURS[row % len(_MODE_COLOURS)]
        tops = heights.numpy()
        axis.fill_between(seconds.numpy(), -row, tops, color=colour, alpha=0.75, linewidth=0)
        axis.axhline(-row, color=RULE, linewidth=0.6, zorder=0)
    axis.set_yticks([-row + 0.3 for row in range(len(loadings))], list(loadings), fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(loadings) + 0.9, 1.0)
    axis.spines["left"].set_visible(False)


def fields_figure(
    spatial: Float[Tensor, "field y x"], temporal: Float[Tensor, "field history"],
    names: Sequence[str], *, notes: Sequence[str] = (), heading: str = "Receptive fields",
    unit: str = "space above, time below; one scale", seconds_per_frame: float = 0.01,
) -> Figure:  # fmt: skip
    """Draw receptive fields side by side, space above and time below (Melander et al., fig. 8D).

    Pictures are times the strength, so that fields can be compared; time courses begin with the
    oldest frame. Names stand above every field, notes below. DataError where there are no fields.
    """
    number = len(spatial)
    if not number or len(temporal) != number or len(names) != number:
        raise DataError(
            "fields_figure: expected as many spatial fields as temporal ones and names, at least "
            f"one; got {number}, {len(temporal)} and {len(names)}"
        )
    scale = float(spatial.abs().max()) or 1.0
    rows = -(-number // 8)
    columns = -(-number // rows)
    past = -np.arange(temporal.shape[1])[::-1] * seconds_per_frame
    with styled():
        size = (max(3.4, 1.06 * columns), 1.75 * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.supxlabel(unit, x=0.01, ha="left", fontsize=8, color=MUTED)
        ratios = {"height_ratios": (3, 1) * rows}
        grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw=ratios)
        for axis in grid.flat:
            axis.set_axis_off()
        for place in range(number):
            row, column = divmod(place, columns)
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            above.imshow(spatial[place].numpy(), cmap=SIGNED, vmin=-scale, vmax=scale)
            above.set_title(names[place], fontsize=8, loc="center", fontweight="normal")
            below.axhline(0, color=RULE, linewidth=0.7)
            below.plot(past, temporal[place].numpy(), color=INK, linewidth=1.1)
            if notes:
                below.set_title(notes[place], fontsize=7, loc="center", y=-0.75, color=MUTED,
                                fontweight="normal")  # fmt: skip
    return figure


def field_film(spatial: Float[Tensor, "frame y x"], *, zoom: int = 8) -> list[np.ndarray]:
    """Draw receptive fields from frame to frame as pictures [y, x, 3] of uint8, on one scale.

    Fields are times the strength; each of their pixels has `zoom` pixels a side.
    """
    scale = float(spatial.abs().max()) or 1.0
    colours = SIGNED(((spatial / scale).clamp(-1, 1) / 2 + 0.5).numpy())[..., :3]
    pixels = (colours * 255).round().astype(np.uint8)
    return [np.kron(one, np.ones((zoom, zoom, 1), np.uint8)) for one in pixels]


def probes_figure(
    rates: Mapping[str, Float[Tensor, "frame cell"]], events: Mapping[str, Mapping[str, Tensor]],
    *, seconds_per_frame: float = 0.01,
) -> Figure:  # fmt: skip
    """Draw the change of every cell's rate from that before the probe, the first frame.

    Each cell is drawn over its largest change to any probe; events of a probe are lines above it,
    each over its largest value. DataError where there are no probes.
    """
    if not rates:
        raise DataError("probes_figure: no probes; nothing to draw")
    changes = {name: one - one[0] for name, one in rates.items()}
    most = torch.stack([one.abs().amax(0) for one in changes.values()]).amax(0).clamp(min=1e-12)
    rows = -(-len(rates) // 2)
    with styled():
        figure = Figure(figsize=(_WIDTH, 1.75 * rows + 0.2), layout="constrained")
        ratios = {"height_ratios": (1.0, 4.0) * rows, "hspace": 0.02}
        grid = figure.subplots(2 * rows, 2, squeeze=False, gridspec_kw=ratios)
        for axis in grid[2 * rows - 2 :, 1] if len(rates) % 2 else ():
            axis.set_axis_off()
        for place, (name, values) in enumerate(changes.items()):
            row, column = divmod(place, 2)
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            seconds = len(values) * seconds_per_frame
            _courses(above, name, events.get(name, {}), seconds)
            _heat(below, values / most, 1.0, (0.0, seconds))
            below.set_ylabel("cell", fontsize=8)
            if place >= len(rates) - 2:
                below.set_xlabel("seconds")
    return figure


def _courses(axis: Axes, name: str, events: Mapping[str, Tensor], seconds: float) -> None:
    """Draw events of a probe as thin lines, named on the left."""
    axis.set_title(name, fontsize=9)
    for number, (event, values) in enumerate(events.items()):
        top = float(values.abs().max()) or 1.0
        time = np.linspace(0, seconds, len(values), endpoint=False)
        colour = _MODE_COLOURS[number % len(_MODE_COLOURS)]
        axis.step(time, (values / top).numpy(), where="post", color=colour, linewidth=1.0)
        axis.annotate(
            event, (0, 1 - 0.5 * number), (-4, -2), xycoords="axes fraction", va="top",
            textcoords="offset points", ha="right", fontsize=7, color=colour,
        )  # fmt: skip
    axis.set_xlim(0, seconds)
    axis.set_axis_off()
    axis.title.set_visible(True)


def _chart(size: tuple[float, float], text: str, unit: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    title(axis, text, unit)
    axis.tick_params(axis="y", length=0)
    return figure, axis


def mode_cell_figure(
    correlation: Float[Tensor, "cell mode"], cells: Sequence[str], modes: Sequence[str], *,
    clusters: Sequence[int] = (),
) -> Figure:  # fmt: skip
    """Draw the correlation of modes with the rates of cells (Melander et al. 2026, figure 8C).

    Cells and modes stand in the order that is given, with lines between clusters of cells.
    DataError where there are no cells or no modes.
    """
    if not correlation.numel():
        raise DataError(f"mode_cell_figure: expected [cell, mode]; got {tuple(correlation.shape)}")
    n_cells, n_modes = correlation.shape
    scale = float(correlation.abs().nan_to_num().max()) or 1.0
    with styled():
        size = (max(3.6, 0.2 * n_modes + 1.6), max(1.9, 0.19 * n_cells + 1.2))
        figure, axis = _chart(size, "Modes and cells", "correlation of loading and rate")
        picture = correlation.numpy()
        image = axis.imshow(picture, cmap=SIGNED, vmin=-scale, vmax=scale, aspect="auto")
        axis.set_yticks(range(n_cells), cells, fontsize=7.5)
        axis.set_xticks(range(n_modes), modes, fontsize=7, rotation=90 if n_modes > 12 else 0)
        axis.tick_params(length=0)
        for row in range(1, len(clusters)):
            if clusters[row] != clusters[row - 1]:
                axis.axhline(row - 0.5, color=INK, linewidth=1.2)
        axis.set_xlabel("mode")
        figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02).outline.set_visible(False)
    return figure


def combinations_figure(table: "pandas.DataFrame", *, most: int = 12) -> Figure:
    """Draw how often modes are active together, against independent modes.

    The table is that of `condec.retina.combinations`; its `most` frequent rows are drawn.
    DataError where it is empty.
    """
    not_empty(table, "combinations_figure")
    rows = table.sort_values("count", ascending=False).head(most).iloc[::-1]
    names = [short_combination(str(name)) for name in rows["combination"]]
    unit = "frames; mark: expected of independent modes"
    with styled():
        size = (4.6, max(1.9, 0.2 * len(rows) + 1.1))
        figure, axis = _chart(size, "Modes that are active together", unit)
        axis.barh(range(len(rows)), rows["count"], color=CONTRIBUTION, height=0.66)
        axis.plot(rows["expected"], range(len(rows)), "|", color=INK, markersize=9, mew=1.8)
        axis.set_yticks(range(len(rows)), names, fontsize=7.5)
    return figure


def short_combination(name: str, most: int = 4) -> str:
    """Name a combination of many modes by its first ones and the number of the others.

    >>> short_combination("3, 5, 8, 13, 21, 34"), short_combination("")
    ('3, 5, 8, 13 + 2', 'none')
    """
    modes = name.split(", ") if name else ["none"]
    more = len(modes) - most
    return ", ".join(modes) if more <= 0 else f"{', '.join(modes[:most])} + {more}"


def explained_figure(table: "pandas.DataFrame", *, cell: int) -> Figure:
    """Draw how much of the change of receptive fields is explained, and by which predictor.

    The table is that of `condec.retina.explained_variance`; one cell stands out, with its
    interval, the others are small dots. DataError where it is empty.
    """
    not_empty(table, "explained_figure")
    names = list(dict.fromkeys(table["predictor"]))[::-1]
    unit = "cross-validated R2 of every cell"
    with styled():
        size = (5.2, max(1.8, 0.3 * len(names) + 1.0))
        figure, axis = _chart(size, "What explains the change of the fields", unit)
        for place, name in enumerate(names):
            colour = CONTRIBUTION if name == "modes" else "#8A8F96"
            rows = table[table["predictor"] == name]
            others = rows[rows["cell"] != cell]["r2"]
            axis.plot(others, [place] * len(others), ".", color=colour, alpha=0.45, markersize=5)
            for row in rows[rows["cell"] == cell].to_dict("records"):
                axis.plot([row["r2_low"], row["r2_high"]], [place] * 2, color=colour, linewidth=2.4)
                axis.plot(row["r2"], place, "o", color=colour, markersize=6)
        # Far below 0 says no more than below 0.
        axis.set_xlim(max(-0.5, axis.get_xlim()[0]), min(1.02, max(0.1, axis.get_xlim()[1])))
        axis.axvline(0, color=RULE, linewidth=0.9, zorder=0)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.6, len(names) - 0.4)
    return figure
