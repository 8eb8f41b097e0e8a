"""The page of one input: what every mode adds to its output and takes from it, and where."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from condec.basis.errors import CondecError
from condec.explanation import ExplainedInput
from condec.figures.pixels import map_scale, overlay
from condec.figures.places import REGION, Ground, folded, map_figure
from condec.report.drawing import Drawn, Studio
from condec.report.facts import Fact
from condec.report.tables import Column
from condec.report.words import fixed, percent, target_words

Named = Callable[[int], str]
"""From the number of a label to its name."""
WHYS: Final[Mapping[str, str]] = {
    "typical": "typical: its loadings are near the mean of its class",
    "misclassified": "misclassified: the model takes it for another class",
    "outlying": "outlying: its loadings are far from the mean of its class",
}
"""Why an input was chosen, in words."""
_SIDE: Final = 320
"""Pixels a side up to which the picture is drawn whole below a map; of larger ones, some."""


def title(one: ExplainedInput, named: Named) -> str:
    """Return the question that the page answers."""
    return one.name if one.prediction < 0 else f"Why {named(one.prediction)}?"


def facts(one: ExplainedInput, named: Named) -> Iterator[Fact]:
    """Give the large numbers of the page: what is to be explained."""
    if one.prediction >= 0:
        wrong = one.label >= 0 and one.prediction != one.label
        note = f"its label is {named(one.label)}" if one.label >= 0 else ""
        yield Fact(named(one.prediction), "taken for" if wrong else "prediction", note)
    yield Fact(fixed(one.target), target_words(one.of))
    yield Fact(fixed(one.target_baseline), "at the baseline")
    yield Fact(fixed(one.change), "change, to be explained")


def underlined(one: ExplainedInput) -> str:
    """Say what a line below a text or a signal holds; nothing for others."""
    what = "tokens" if one.words else "" if one.signal is None else "moments"
    return what and f"Underlined: the fewest {what} that hold {percent(REGION)} of a map, by size."


def about_site(one: ExplainedInput, site: Mapping[str, Any]) -> Iterator[str]:
    """Say in sentences how the parts of a site add up."""
    parts = {part["part"]: part for part in site["parts"]}
    left, missed = parts.pop("left over"), parts.pop("quadrature", None)
    adds, takes = (sum(part[key] for part in parts.values()) for key in ("adds", "takes"))
    yield (
        f"Modes add {fixed(adds)} and take {fixed(-takes)}, {fixed(left['net'])} is left over by "
        f"the dictionary: {fixed(site['net'])} in all."
    )
    if not site["cut"]:
        yield "What goes around this site is not seen here."
    elif missed:
        change = f"a change of {fixed(one.change)}"
        yield f"The quadrature misses {fixed(missed['net'])} of {change}."
    for sign, other, lost in (("positive", "negative", "takes"), ("negative", "positive", "adds")):
        if list(site["signs"]) == [sign] and 2 * abs(left[lost]) > abs(left["net"]):
            yield (
                f"Of what is left over {fixed(left[lost])} are {other} parts, which the dictionary "
                f'does not describe: sign = "concat" under [fit] would.'
            )
    if not any(part["mode"] >= 0 for part in parts.values()):
        yield "No mode answers for anything at this input."


def summary(one: ExplainedInput, named: Named) -> Iterator[str]:
    """Say in a few lines what the page says."""
    label = f", label {named(one.label)}" if one.label >= 0 else ""
    taken = f"taken for {named(one.prediction)}{label}; " if one.prediction >= 0 else ""
    above = f", {one.change:.4g} above the baseline" if one.change == one.change else ""
    yield f"{one.name}: {taken}{target_words(one.of)} is {one.target:.4g}{above}"
    for site in one.sites:
        parts = ", ".join(f"{part['part']} {part['net']:+.3g}" for part in site["parts"])
        yield f"{site['key']}: {parts}"


def sites(one: ExplainedInput, studio: Studio, stem: str) -> Iterator[dict[str, Any]]:
    """Give every site with its parts, the place maps stored under `stem`.

    Of a part, `map` is the file of its map over the picture, or empty; `minus` and `plus` are
    lengths of bars in percent.
    """
    ground = _ground(one)
    for number, (site, maps) in enumerate(zip(one.sites, one.maps(), strict=True)):
        sizes = [max(part["adds"], -part["takes"]) for part in site["parts"]]
        flat = [folded(places.numpy()) for places in maps if places.ndim]
        of_modes = [
            one for one, part in zip(flat, site["parts"], strict=False) if part["mode"] >= 0
        ]
        scale = map_scale(of_modes or flat) if flat else 1.0
        drawn = [
            _drawn_map(ground, values, scale, studio, f"{stem}{number}-{place}")
            for place, values in enumerate(flat)
        ]
        parts = [
            {
                **part, "map": drawn[place] if place < len(drawn) else "",
                "minus": round(-100 * part["takes"] / (max(sizes) or 1.0), 1),
                "plus": round(100 * part["adds"] / (max(sizes) or 1.0), 1),
            }
            for place, part in enumerate(site["parts"])
        ]  # fmt: skip
        yield {**site, "parts": parts}


def _ground(one: ExplainedInput) -> Ground:
    """Return what maps are drawn over, a large picture as a smaller one."""
    picture = one.picture.numpy()
    step = -(-max(picture.shape[:2]) // _SIDE) or 1
    signal = None if one.signal is None else one.signal.numpy()
    return Ground(picture[::step, ::step] if picture.size else None, signal, one.words or None)


def _drawn_map(ground: Ground, values: np.ndarray, scale: float, studio: Studio, name: str) -> str:
    """Store a map over what was given, and return its file."""
    grid = ground.grid(values)
    if grid is None or ground.picture is None:
        return studio.figure(map_figure(ground, values, scale), name).file
    cells = values.reshape(-1)[-grid[0] * grid[1] :].reshape(grid)
    return studio.image(overlay(cells, ground.picture, scale=scale), name)


def given(one: ExplainedInput, studio: Studio, stem: str) -> str:
    """Draw the signal or the text that was given, and return its file; empty for others."""
    ground = _ground(one)
    length = len(one.words) if one.signal is None else len(one.signal)
    if ground.picture is not None or not length:
        return ""
    return studio.figure(map_figure(ground, np.zeros(length), 1.0), f"{stem}given").file


def flow(
    one: ExplainedInput, studio: Studio, stem: str, names: Sequence[str] | None
) -> list[Drawn]:
    """Draw how the modes of every site feed those of the next, wide and narrow, where it is known.

    Of more sites than can be drawn there is none.
    """
    graph = one.graph()
    with suppress(CondecError):
        return [] if graph is None else [
            studio.figure(graph.figure(names, width=width), f"{stem}flow{end}")
            for width, end in ((10.0, ""), (4.0, "-narrow"))
        ]  # fmt: skip
    return []


def columns(named: Named) -> list[Column]:
    """Return the columns of the table of a site's parts."""

    def number(name: str, key: str, note: str = "") -> Column:
        return Column(name, lambda part: fixed(part[key]), note)

    return [
        Column("Part", lambda part: part["part"], kind="head"),
        Column("Label", lambda part: named(part["label"]), kind="word"),
        number("Correlation", "correlation", "with that label, the one that fits best in training"),
        number("Loading", "loading", "how much of the mode is used"),
        number("Adds", "adds"), number("Takes", "takes"), number("Net", "net"),
        Column("Share", lambda part: percent(part["share"]), "of the change"),
        number("When removed", "removed", "how far the target falls when this part of the "
               "activation goes back to what it is at the baseline"),
    ]  # fmt: skip
