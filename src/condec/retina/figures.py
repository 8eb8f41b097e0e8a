"""Figures of the retina: traces over time, receptive fields, modes against cells."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from condec.basis.errors import DataError
from condec.figures import style
from condec.figures.style import chart, draw_matrix, list_names, not_empty, styled, title
from condec.retina.fields import RankOne
from condec.retina.responses import Responses
from condec.retina.sources import LEFT, OTHERS, PAST, FieldSources

if TYPE_CHECKING:
    import pandas

_COLOURS: Final = (
    style.CONTRIBUTION, style.POSITIVE, style.GREEN,
    style.ACTIVATION, style.SHUFFLED, style.NEGATIVE,
)  # fmt: skip
_WIDTH: Final = 8.4
"""Inches: two charts side by side."""
_TOLD: Final = 0.02
"""Share of a field's change from which on it is written."""
_SILENT: Final = 1e-3
"""Share of a cell's largest change to any probe, below which it does not respond to one."""


def traces_figure(
    responses: Responses, cell: int, frames: slice, contributions: Float[Tensor, "frame unit"],
    loadings: Mapping[str, Float[Tensor, " frame"]],
) -> Figure:  # fmt: skip
    """Draw rates, contributions of every unit and loadings over time (Melander et al., fig. 8B).

    Rates are those of one cell, by its place, in some frames of the responses; contributions and
    loadings, which stand by the name of the mode, are of these frames. Events above 0 are drawn as
    a bar. DataError where there are no frames, or another number of contributions.
    """
    seconds = responses.seconds[frames]
    if not len(seconds) or len(contributions) != len(seconds):
        raise DataError(
            f"traces_figure: expected contributions of {len(seconds)} frames, one or more; got "
            f"{len(contributions)}"
        )
    shown = {name: values > 0 for name, values in _events(responses, frames) if values.max() > 0}
    heights = [1.3, 0.16 * len(shown) + 0.1, 1.6, 0.34 * len(loadings) + 0.3]
    ends = float(seconds[0]), float(seconds[-1])
    with styled():
        figure = Figure(figsize=(_WIDTH, sum(heights) + 1.6), layout="constrained")
        ratios = {"height_ratios": heights}
        above, bars, heat, below = figure.subplots(4, 1, sharex=True, gridspec_kw=ratios)
        title(above, f"Cell {responses.cells[cell]}", "rate, as the model gives it")
        courses = {
            "recorded": (responses.recorded, style.GREY),
            "model": (responses.rates, style.INK),
        }
        for rates, colour in courses.values():
            if rates is not None:
                above.plot(seconds, rates[frames, cell], color=colour, linewidth=1.3)
        above.set_ylim(bottom=min(0.0, above.dataLim.ymin))
        names = [(n, colour) for n, (rates, colour) in courses.items() if rates is not None]
        list_names(above, names)
        for row, on in enumerate(shown.values()):
            bars.fill_between(
                seconds, row - 0.35, row + 0.35, where=on.tolist(), color=style.GREY, step="mid",
                linewidth=0,
            )  # fmt: skip
        bars.set_yticks(range(len(shown)), list(shown), fontsize=7.5)
        bars.set_ylim(max(len(shown), 1) - 0.5, -0.5)
        bars.tick_params(axis="both", length=0)
        bars.spines[:].set_visible(False)
        title(heat, "Contributions", "of every unit; vermilion raises the target, violet lowers")
        sizes = contributions.abs().numpy()
        _heat(heat, contributions, float(np.quantile(sizes, 0.99) or sizes.max()) or 1.0, ends)
        heat.set_ylabel("unit")
        _loadings(below, seconds, loadings)
        below.set_xlabel("seconds")
        below.set_xlim(*ends)
    return figure


def _events(responses: Responses, frames: slice) -> Iterator[tuple[str, Tensor]]:
    return zip(responses.event_names, responses.events[:, frames], strict=True)


def _heat(axis: Axes, values: Tensor, scale: float, ends: tuple[float, float]) -> None:
    """Draw values [frame, row] as colours, time to the right."""
    axis.imshow(
        values.T.numpy(), cmap=style.SIGNED, vmin=-scale, vmax=scale, aspect="auto",
        extent=(*ends, values.shape[1] - 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip
    axis.set_yticks([0, values.shape[1] - 1])


def _loadings(axis: Axes, seconds: Tensor, loadings: Mapping[str, Tensor]) -> None:
    title(axis, "Loadings", "of modes, each over its maximum here")
    for row, values in enumerate(loadings.values()):
        tops = (values / (float(values.max()) or 1.0)).clamp(min=0) * 0.9 - row
        colour = _COLOURS[row % len(_COLOURS)]
        axis.fill_between(seconds, -row, tops, color=colour, alpha=0.75, linewidth=0)
        axis.axhline(-row, color=style.RULE, linewidth=0.6, zorder=0)
    axis.set_yticks([-row + 0.3 for row in range(len(loadings))], list(loadings), fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(-len(loadings) + 0.9, 1.0)
    axis.spines["left"].set_visible(False)


def fields_figure(
    fields: RankOne, cell: int, names: Sequence[str], *, heading: str, seconds_per_frame: float,
    notes: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Draw a cell's receptive fields side by side, space above, time below (Melander, fig. 8D).

    Fields are [field, cell, ...], `cell` is a place among them. Pictures are times the strength, so
    that fields can be compared; time courses begin with the oldest frame. Names stand above every
    field, notes below. DataError where there are no fields, or another number of names.
    """
    spatial, temporal = scaled(fields, cell), fields.temporal[:, cell]
    number = len(spatial)
    if not number or len(names) != number:
        raise DataError(
            f"fields_figure: expected names of {number} fields, one or more; got {len(names)}"
        )
    unit = "pictures on one scale, time courses below; vermilion: light raises the rate"
    scale = float(spatial.abs().max()) or 1.0
    rows = -(-number // 8)
    columns = -(-number // rows)
    past = -np.arange(temporal.shape[1])[::-1] * seconds_per_frame
    small = {"loc": "center", "fontweight": "normal"}
    with styled():
        size = (max(3.4, 1.06 * columns), 1.75 * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.supxlabel(unit, x=0.01, ha="left", fontsize=8, color=style.MUTED)
        ratios = {"height_ratios": (3, 1) * rows}
        grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw=ratios)
        grid[0, 0].set_label(f"{heading}: {unit}")  # not drawn: it describes the figure
        for axis in grid.flat:
            axis.set_axis_off()
        for place in range(number):
            row, column = divmod(place, columns)
            above, below = grid[2 * row : 2 * row + 2, column]
            above.imshow(spatial[place].numpy(), cmap=style.SIGNED, vmin=-scale, vmax=scale)
            above.set_title(style.literal(names[place]), fontsize=8, **small)
            below.axhline(0, color=style.RULE, linewidth=0.7)
            below.plot(past, temporal[place].numpy(), color=style.INK, linewidth=1.1)
            if notes:
                below.set_title(notes[place], fontsize=7, y=-0.75, color=style.MUTED, **small)
    return figure


def scaled(fields: RankOne, cell: int) -> Float[Tensor, "field y x"]:
    """Return a cell's pictures times their strength."""
    return fields.spatial[:, cell] * fields.strength[:, cell, None, None]


def field_film(fields: RankOne, cell: int, *, zoom: int = 8) -> list[np.ndarray]:
    """Draw a cell's fields from frame to frame as pictures [y, x, 3] of uint8, on one scale.

    Fields are times the strength; each of their pixels has `zoom` pixels a side.
    """
    spatial = scaled(fields, cell)
    scale = float(spatial.abs().max()) or 1.0
    colours = style.SIGNED(((spatial / scale).clamp(-1, 1) / 2 + 0.5).numpy())[..., :3]
    pixels = (colours * 255).round().astype(np.uint8)
    return [np.kron(one, np.ones((zoom, zoom, 1), np.uint8)) for one in pixels]


def probes_figure(answers: Mapping[str, Responses]) -> Figure:
    """Draw the change of every cell's rate from that before each probe, its first frame.

    Each cell is drawn over its largest change to that probe, so that weak answers are seen as
    well; beside the name stands how large changes are, over each cell's largest to any probe, and
    how many cells do not respond (less than a thousandth of it). Events of a probe are lines above
    it, each over its largest value. DataError where there are no probes.
    """
    if not answers:
        raise DataError("probes_figure: no probes; nothing to draw")
    changes = {name: one.rates - one.rates[0] for name, one in answers.items()}
    largest = {name: one.abs().amax(0) for name, one in changes.items()}
    most = torch.stack([*largest.values()]).amax(0).clamp(min=1e-12)
    rows = -(-len(answers) // 2)
    with styled():
        figure = Figure(figsize=(_WIDTH, 1.75 * rows + 0.2), layout="constrained")
        ratios = {"height_ratios": (1.0, 4.0) * rows, "hspace": 0.02}
        grid = figure.subplots(2 * rows, 2, squeeze=False, gridspec_kw=ratios)
        grid[0, 0].set_label("Standard probes: rates of all cells")  # it describes the figure
        for axis in grid[2 * rows - 2 :, 1] if len(answers) % 2 else ():
            axis.set_axis_off()
        for place, (name, values) in enumerate(changes.items()):
            row, column = divmod(place, 2)
            above, below = grid[2 * row : 2 * row + 2, column]
            seconds = len(values) * answers[name].seconds_per_frame
            share = largest[name] / most
            answered = share > _SILENT
            above.set_title(f"{style.literal(name)}: {_answer(share)}", fontsize=9)
            _courses(above, answers[name], seconds)
            scale = torch.where(answered, largest[name], torch.inf)
            _heat(below, values / scale, 1.0, (0.0, seconds))
            below.set_ylabel("cell", fontsize=8)
            if place >= len(answers) - 2:
                below.set_xlabel("seconds")
    return figure


def _answer(share: Tensor) -> str:
    """Say how strong the answers of cells to a probe are, over those to any."""
    silent = int((share <= _SILENT).sum())
    if silent == len(share):
        return "no cell responds"
    percent = 100 * float(share.max())
    strength = f"changes up to {percent:{'.0f' if percent >= 1 else '.1g'}} %"
    return strength + (f"; {silent} of {len(share)} do not respond" if silent else "")


def _courses(axis: Axes, answer: Responses, seconds: float) -> None:
    """Draw events of a probe as thin lines, named on the left."""
    for number, (event, values) in enumerate(_events(answer, slice(None))):
        top = float(values.abs().max()) or 1.0
        time = np.linspace(0, seconds, len(values), endpoint=False)
        colour = _COLOURS[number % len(_COLOURS)]
        axis.step(time, (values / top).numpy(), where="post", color=colour, linewidth=1.0)
        axis.annotate(
            style.literal(event), (0, 1 - 0.5 * number), (-4, -2), xycoords="axes fraction",
            textcoords="offset points", va="top", ha="right", fontsize=7, color=colour,
        )  # fmt: skip
    axis.set_xlim(0, seconds)
    axis.set_axis_off()
    axis.title.set_visible(True)


def mode_cell_figure(table: "pandas.DataFrame") -> Figure:
    """Draw the correlation of modes with the rates of cells (Melander et al. 2026, figure 8C).

    The table is that of `condec.retina.cells.table_of_cells`; lines part clusters of cells.
    DataError where it is empty.
    """
    not_empty(table, "mode_cell_figure")
    cells = table.drop_duplicates("cell_place").sort_values("cell_place")
    modes = table.drop_duplicates("mode_place").sort_values("mode_place")["mode"]
    values = table.pivot_table(index="cell_place", columns="mode_place", values="correlation")
    matrix = values.to_numpy()
    size = {"width": max(3.6, 0.2 * len(modes) + 1.6), "height": max(1.9, 0.19 * len(cells) + 1.2)}
    with chart("Modes and cells", "correlation of loading and rate", **size) as (figure, axis):
        draw_matrix(axis, matrix, float(np.abs(matrix).max()) or 1.0, aspect="auto")
        axis.set_yticks(range(len(cells)), cells["cell"], fontsize=7.5)
        axis.set_xticks(range(len(modes)), modes, fontsize=7, rotation=90 * (len(modes) > 12))
        for row in np.flatnonzero(np.diff(cells["cluster"])):
            axis.axhline(row + 0.5, color=style.INK, linewidth=1.2)
        axis.set_xlabel("mode")
    return figure


def combinations_figure(table: "pandas.DataFrame", *, most: int = 12) -> Figure:
    """Draw how often modes are active together, against independent modes.

    The table is that of `condec.retina.combinations`; its `most` frequent rows are drawn.
    DataError where it is empty.
    """
    not_empty(table, "combinations_figure")
    rows = table.sort_values("count", ascending=False).head(most).iloc[::-1]
    names = [short_combination(str(name)) for name in rows["combination"]]
    text, unit = "Modes that are active together", "frames; mark: expected of independent modes"
    with chart(text, unit, width=4.6, height=max(1.9, 0.2 * len(rows) + 1.1)) as (figure, axis):
        axis.barh(range(len(rows)), rows["count"], color=style.CONTRIBUTION, height=0.66)
        axis.plot(rows["expected"], range(len(rows)), "|", color=style.INK, markersize=9, mew=1.8)
        axis.set_yticks(range(len(rows)), names, fontsize=7.5)
        axis.tick_params(axis="y", length=0)
    return figure


def short_combination(name: str, most: int = 4) -> str:
    """Name a combination of many modes by its first ones and the number of the others.

    >>> short_combination("3, 5, 8, 13, 21, 34"), short_combination("")
    ('3, 5, 8, 13 + 2', 'none')
    """
    modes = name.split(", ") if name else ["none"]
    more = len(modes) - most
    return ", ".join(modes) if more <= 0 else f"{', '.join(modes[:most])} + {more}"


def sources_figure(table: "pandas.DataFrame", names: Sequence[str], *, most: int = 10) -> Figure:
    """Draw the share of every part of a site in the change of every cell's field, as a matrix.

    The table is that of `condec.retina.FieldSources.table`, `names` those of the model's outputs.
    Drawn are the `most` parts with the largest shares in some cell, and what is of no mode by
    itself. DataError where it is empty.
    """
    not_empty(table, "sources_figure")
    shares: Any = table.pivot_table(index="cell", columns="part", values="share", dropna=False)
    ends = [end for end in (OTHERS, LEFT, PAST) if end in shares]
    largest = shares.drop(columns=ends).abs().max().nlargest(most).index
    # Parts by the cell of which they have most.
    order = sorted(largest, key=lambda part: (shares[part].abs().argmax(), -shares[part].max()))
    shares = shares[[*order, *ends]]
    size = {"width": 0.5 * len(shares.columns) + 1.8, "height": 0.26 * len(shares) + 1.7}
    text, unit = "Where the fields come from", "share of the change of each cell's field, in %"
    with chart(text, unit, **size) as (figure, axis):
        matrix = shares.to_numpy()
        draw_matrix(axis, matrix, max(1.0, float(np.nanmax(np.abs(matrix), initial=0))),
                    aspect="auto", unknown=np.isnan(matrix))  # fmt: skip
        for (row, column), share in np.ndenumerate(matrix):
            if abs(share) >= _TOLD:
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7)
        axis.set_yticks(range(len(shares)), [names[cell] for cell in shares.index], fontsize=7.5)
        axis.set_xticks(range(len(shares.columns)), shares.columns, fontsize=7.5, rotation=90)
        axis.set_ylabel("cell")
    return figure


def amounts_figure(
    sources: FieldSources, place: int, seconds: Float[Tensor, " sample"], name: str, *,
    most: int = 4,
) -> Figure:  # fmt: skip
    """Draw how much ON and OFF each part gives to a cell's field from frame to frame.

    `place` is the cell's among the sources, `seconds` the times of their frames. Drawn are the
    `most` parts with the largest shares, the whole, and lines where the sign changes. DataError
    where there are fewer than two frames.
    """
    if len(seconds) < 2 or len(seconds) != len(sources.rows):
        raise DataError(
            f"amounts_figure: expected times of {len(sources.rows)} frames, two or more; got "
            f"{len(seconds)}"
        )
    amount = sources.amount[:, place]
    shown = sources.share[place].nan_to_num(0.0).abs().argsort(descending=True)[:most].tolist()
    text, unit = f"The field of cell {name}", "its length, above 0 where ON; by part of the site"
    with chart(text, unit, width=_WIDTH, height=2.6) as (figure, axis):
        axis.axhline(0, color=style.RULE, linewidth=0.9, zorder=0)
        axis.plot(seconds, amount.sum(1), color=style.INK, linewidth=2.2, alpha=0.35)
        for colour, part in zip(_COLOURS, shown, strict=False):
            axis.plot(seconds, amount[:, part], color=colour, linewidth=1.2)
        flips = sources.flips()
        flips = flips[flips["cell"] == int(sources.cells[place])]
        times = dict(zip(sources.rows.tolist(), seconds.tolist(), strict=True))
        for row in flips.to_dict("records"):
            axis.axvline((times[row["before"]] + times[row["after"]]) / 2, color=style.RULE,
                         linewidth=0.8, linestyle=":", zorder=0)  # fmt: skip
        names = [(sources.names[p], c) for c, p in zip(_COLOURS, shown, strict=False)]
        list_names(axis, [("the whole", style.GREY), *names])
        axis.set_xlim(float(seconds[0]), float(seconds[-1]))
        axis.set_xlabel("seconds")
    return figure
