"""Pictures of explanations: what was given, what every part adds and takes, and where."""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from condec.attribution.targets import TARGETS
from condec.basis.errors import DataError, OptionError
from condec.explanation.leading import strongest_units
from condec.explanation.parts import Part, SiteExplanation
from condec.figures.pixels import as_picture, map_scale
from condec.figures.places import REGION, Ground, draw_scale
from condec.figures.style import (
    CONTRIBUTION,
    GREEN,
    GREY,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    RULE,
    SHUFFLED,
    SKY,
    list_names,
    literal,
    panels,
    short,
    styled,
    title,
)
from condec.modes.labels import label_name

if TYPE_CHECKING:
    from condec.explanation.check import PartCheck
    from condec.explanation.one_input import Explanation

Names = Sequence[str] | None
_UNITS: Final = 3
_GIVEN, _BARS, _MAP, _LEAST_HEIGHT = 2.6, 5.4, 2.0, 5.0
"""Inches: what was given, bars with their names, a map with its gap; the height of a figure."""
_NOTHING: Final = 1e-4
"""Of all sizes at a site: less is written as zero."""
_KEY: Final = """Orange adds to the target, violet takes from it.
A line and a number: what is left, net.
Beside a mode: the label it goes with most."""
_MASKED: Final = """Pictures stand out where a map is large, whatever
its sign, on one scale; elsewhere they are pale."""


def explanation_figure(
    found: "Explanation", ground: Ground, *, n_maps: int, names: Names, masked: bool
) -> Figure:
    """Draw an explanation; see `Explanation.figure`."""
    maps = [
        [(part, ground.density(part.places.numpy())) for part in at.modes[:n_maps]]
        for at in found.by_site
    ]
    # A site without positions has no maps.
    maps = [row if row and row[0][1].ndim else [] for row in maps]
    sites = list(zip(found.by_site, maps, strict=True))
    mapped = [values for row in maps for _, values in row]
    scale = map_scale(mapped) if mapped else 1.0
    masked = masked and ground.picture is not None  # else maps are colours all the same
    n_maps = max(map(len, maps))
    heights = [max(0.9 + 0.2 * (len(at.parts) + 2), 2.6 if row else 0.0) for at, row in sites]
    width, height = _GIVEN + _BARS + _MAP * n_maps, max(_LEAST_HEIGHT, sum(heights))
    with styled():
        # Places in inches: a layout that is solved differs in its last bits from time to time.
        figure = Figure(figsize=(width, height))

        def axes(x: float, top: float, size: tuple[float, float]) -> Axes:
            box = x / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height
            return figure.add_axes(box)

        shown, words, bar = (
            axes(0.3, 0.3, (2.0, 2.0)),
            axes(0.3, 2.45, (2.0, 1.6)),
            axes(0.3, 4.2, (2.0, 0.16)),
        )
        _draw_given((shown, words), found, ground, names)
        if mapped:
            _draw_key(bar, ground, None if masked else scale)
        else:
            bar.set_axis_off()
        top = 0.0
        for (at, row), high in zip(sites, heights, strict=True):
            _draw_bars(axes(_GIVEN + 2.1, top + 0.5, (2.6, high - 0.85)), at, found.change, names)
            for number, (part, values) in enumerate(row):
                x = _GIVEN + _BARS + _MAP * number
                axis = axes(x, top + 0.5, (_MAP - 0.15, high - 0.65))
                axis.set_anchor("NW")
                ground.draw(axis, values, scale, masked=masked)
                _name_map(axis, part, names)
            top += high
    return figure


def ground_of(
    inputs: Tensor | None, picture: "Tensor | np.ndarray | None", text: Sequence[str] | None
) -> Ground:
    """Choose what maps are drawn over: what is given, else the input itself, normalised."""
    if picture is not None and text is not None:
        raise DataError("figure: give a picture or a text, not both")
    if text is not None:
        return Ground(text=tuple(text))
    if picture is not None:
        return Ground(picture=as_picture(picture))
    if inputs is None:
        return Ground()
    values = inputs[0].detach().double().cpu()
    if values.ndim == 2:
        # What has few rows is channels of a signal; else rows are tokens, which have no picture.
        return Ground(signal=values.mean(0).numpy()) if len(values) < values.shape[1] else Ground()
    if values.ndim < 3:
        return Ground()
    values = values.flatten(0, -3) if values.ndim > 3 else values
    if len(values) != 3:
        values = values.mean(0, keepdim=True)
    low, high = values.min(), values.max()
    return Ground(picture=as_picture((values - low) / (high - low).clamp(min=1e-12)))


def _draw_given(
    axes: tuple[Axes, Axes], found: "Explanation", ground: Ground, names: Names
) -> None:
    """Draw the input, and what the network says."""
    shown, words = axes
    ground.show(shown)
    words.set_axis_off()
    lines = [
        "" if found.prediction < 0 else f"prediction: {_label(found.prediction, names)}",
        f"target ({_target(found)}): {found.target:.4g}",
        f"at the baseline: {found.target_baseline:.4g}",
        f"change: {found.change:+.4g}",
    ]
    said = "\n".join(line for line in lines if line)
    words.text(0, 1, said, va="top", fontsize=9, linespacing=1.5)
    words.text(0, 0, _KEY, va="bottom", fontsize=7.5, color=MUTED, linespacing=1.4)


def _draw_key(bar: Axes, ground: Ground, scale: float | None) -> None:
    """Draw the scale of the maps, or say how to read those that are masked."""
    if scale is None:
        bar.set_axis_off()
        bar.text(0, 1, _MASKED, va="top", fontsize=7.5, color=MUTED, linespacing=1.4)
        return
    held = f"outline: {REGION:.0%} of a mode's map, by size"
    draw_scale(bar, scale, (f"change of the target for {ground.per}", held))


def _draw_bars(axis: Axes, at: SiteExplanation, change: float, names: Names) -> None:
    """Draw what every part adds and takes to both sides of zero, and the sum of all."""
    rows = [(_name(part, names), part.adds, part.takes, part.id >= 0) for part in at.parts]
    if at.misses == at.misses:
        rows.append(("quadrature", max(at.misses, 0.0), min(at.misses, 0.0), False))
    adds, takes = sum(row[1] for row in rows), sum(row[2] for row in rows)
    rows.append(("sum", adds, takes, True))
    places = [-float(number) for number in range(len(rows))]
    places[-1] -= 0.4
    for place, (_, more, less, is_mode) in zip(places, rows, strict=True):
        for value, colour in ((more, POSITIVE), (less, NEGATIVE)):
            axis.barh(place, value, 0.72, color=colour, alpha=1 if is_mode else 0.45)
        axis.plot([more + less] * 2, [place - 0.4, place + 0.4], color=INK, linewidth=1.6)
        net = more + less if abs(more + less) > _NOTHING * (adds - takes) else 0.0
        axis.annotate(
            _number(net), (1, place), (3, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            fontsize=8, fontweight="bold" if place == places[-1] else "normal",
        )  # fmt: skip
    axis.axvline(0, color=MUTED, linewidth=0.7)
    axis.axhline(places[-1] + 0.7, color=RULE, linewidth=0.9)
    axis.set_yticks(places, [name for name, *_ in rows], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_ylim(places[-1] - 0.6, 0.6)
    axis.margins(x=0.08)
    sums = f"sum {_number(adds + takes)}"
    whole = "= the change" if at.cut else f"of {_number(change)}; the rest goes past this site"
    title(axis, short(at.site.key), f"{sums} {whole}")


def _name_map(axis: Axes, part: Part, names: Names) -> None:
    """Write over a map what the mode is, what it does, and its strongest units."""
    units = ""
    if part.modes is not None and part.row is not None:
        strongest = strongest_units(part.modes, part.row)[:_UNITS].tolist()
        units = f"; units {', '.join(map(str, strongest))}"
    axis.set_title(
        f"{_name(part, names)}\n{_number(part.net)}{units}", fontsize=7.5, fontweight="normal"
    )


def _number(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def _name(part: Part, names: Names) -> str:
    """Name a part, a mode with the label that it correlates with most."""
    best, correlation = part.best_label()
    if best < 0:
        return part.name
    label = f"{'' if names else 'label '}{_label(best, names)}"
    return f"{part.name} \N{MIDDLE DOT} {label}, r {correlation:.2f}"


def _label(label: int, names: Names) -> str:
    return literal(label_name(names, label).split(",")[0], 16)


def _target(found: "Explanation") -> str:
    setup = found.batch.setup
    if setup is None:
        return "?"
    try:
        return literal(TARGETS.text(setup.target), 24)
    except OptionError:
        return type(setup.target).__name__


def check_figure(checked: "PartCheck") -> Figure:
    """Draw what parts were said to do beside what happens without them; see `PartCheck.figure`."""
    frame, summary = checked.frame, checked.summary
    if frame.empty:
        raise DataError("PartCheck.figure: no mode answers for anything; nothing to draw")
    colours = dict(zip(frame["site"].unique(), cycle((CONTRIBUTION, GREEN, SHUFFLED, SKY, GREY))))
    ways = {"part": "its share of the activation removed", "units": "its units removed whole"}
    with styled():
        figure, axes = panels(2, height=3.2)
        for axis, (way, words) in zip(axes, ways.items(), strict=True):
            title(axis, words.capitalize(), "fall of the target, over what the mode was said to do")
            axis.axline((0, 0), slope=1, color=RULE, linewidth=1.2, zorder=0)
            named = []
            for site, rows in frame.groupby("site", sort=False):
                of = summary[(summary["site"] == site) & (summary["removed"] == way)].iloc[0]
                axis.plot(
                    rows["said"], rows[f"{way}_removed"], "o", color=colours[site], markersize=4
                )
                ends = np.array([rows["said"].min(), rows["said"].max()])
                axis.plot(
                    ends, of["slope"] * ends, color=colours[site], linewidth=1, linestyle="--"
                )
                rank = of["rank_correlation"]
                named.append((short(str(site)), colours[site]))
                named.append((f"slope {of['slope']:.2f}, rank {rank:.2f}", colours[site]))
            list_names(axis, named)
            axis.set_xlabel("net contribution of the mode")
    return figure
