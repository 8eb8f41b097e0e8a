"""Cards: what is shown of one mode."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from condec.explain import leading_modes, strongest_units
from condec.report.reading import Fitted, RunPart

CARDS_WITHOUT_MAPS = 12
LINES = 400
"""So many modes at most are listed in the table of a site."""
TOP_LABELS = 5
WORTH_A_BAR = 0.03
_WIDTH, _HEIGHT = 360.0, 84.0


@dataclass(frozen=True)
class LabelBar:
    """Correlation of a mode with one label, on both splits."""

    name: str
    train: float
    held_out: float


@dataclass(frozen=True)
class Stems:
    """An atom as three paths of an SVG drawing: above zero, below zero, and the chosen units."""

    width: float
    height: float
    zero: float
    stroke: float
    above: str
    below: str
    chosen: str


@dataclass(frozen=True)
class ModeLine:
    """One mode in figures.

    Attributes
    ----------
    row, id : int
        Row of `Modes.atoms`, and number in the dictionary.
    label : str
        Best label on training rows; empty without labels.
    train, held_out : float
        Correlation with it.
    use, held_out_use : float
        Share of the inputs for which the loading is not 0.
    units : str
        The strongest units of the atom.
    seeds, halves : float
        Cosine with its partners in fits of other seeds, and of either half of the inputs; NaN
        where that was not measured.
    """

    row: int
    id: int
    label: str
    train: float
    held_out: float
    use: float
    held_out_use: float
    units: str
    seeds: float
    halves: float


@dataclass(frozen=True)
class ModeCard:
    """One mode with its atom and labels.

    Attributes
    ----------
    line : ModeLine
    place : int, or None
        Place in the maps.
    labels : tuple of LabelBar
    stems : Stems
    units : tuple of (int, float)
        The units that are drawn in the maps, and their weights.
    """

    line: ModeLine
    place: int | None
    labels: tuple[LabelBar, ...]
    stems: Stems
    units: tuple[tuple[int, float], ...]


def mode_lines(run: RunPart, fitted: Fitted) -> list[ModeLine]:
    """All modes, the most correlated with a label first."""
    modes = fitted.modes
    use, held_use = fitted.density("train"), fitted.density("held_out")
    unknown = (math.nan, math.nan)
    known = [fitted.stable.get(number, unknown) for number in modes.ids.tolist()]
    best: list[tuple[str, float, float]] = [("", float("nan"), float("nan"))] * len(modes)
    if fitted.has_labels and len(modes):
        label, held_out = fitted.best
        top = fitted.correlation.max(1).values
        best = [
            (run.label(int(label[i])), float(top[i]), float(held_out[i])) for i in range(len(modes))
        ]
    lines = [
        ModeLine(
            row=row,
            id=int(modes.ids[row]),
            label=best[row][0],
            train=best[row][1],
            held_out=best[row][2],
            use=float(use[row]),
            held_out_use=float(held_use[row]),
            units=", ".join(str(int(unit)) for unit in strongest_units(modes, row)[:3]),
            seeds=known[row][0],
            halves=known[row][1],
        )
        for row in range(len(modes))
    ]
    key = (lambda line: -line.train) if fitted.has_labels else (lambda line: -line.use)
    return sorted(lines, key=key)


def mode_cards(run: RunPart, fitted: Fitted, lines: list[ModeLine]) -> list[ModeCard]:
    """Cards of the modes that have maps, else of the leading ones; ordered as the lines are."""
    modes, maps = fitted.modes, fitted.maps
    if maps is None:
        rows: dict[int, int | None] = dict.fromkeys(leading_modes(modes)[:CARDS_WITHOUT_MAPS])
    else:
        where = {int(number): row for row, number in enumerate(modes.ids)}
        known = enumerate(maps.mode_ids.tolist())
        rows = {where[number]: place for place, number in known if number in where}
    cards = []
    for line in lines:
        if line.row not in rows:
            continue
        place = rows[line.row]
        atom = modes.atoms[line.row]
        ranked = strongest_units(modes, line.row)[:3] if place is None else maps.units[place]  # type: ignore[union-attr]
        chosen = [int(unit) for unit in ranked]
        n_units = modes.store.info(modes.site).n_units
        weights = atom.view(-1, n_units).sum(0)
        cards.append(
            ModeCard(
                line=line,
                place=place,
                labels=tuple(_label_bars(run, fitted, line.row)),
                stems=stems(atom, [u for c in chosen for u in range(c, len(atom), n_units)]),
                units=tuple((unit, float(weights[unit])) for unit in chosen),
            )
        )
    return cards


def stems(atom: Tensor, chosen: list[int]) -> Stems:
    """Draw an atom; where units are more than pixels, the largest of every pixel stands."""
    values = atom.double()
    columns = min(len(values), int(_WIDTH))
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    span = (high - low) or 1.0
    margin = 3.0
    zero = margin + (high / span) * (_HEIGHT - 2 * margin)
    step = _WIDTH / len(values)

    def path(units: list[int]) -> str:
        return "".join(
            f"M{(unit + 0.5) * step:.1f} {zero:.1f}"
            f"V{zero - float(values[unit]) / span * (_HEIGHT - 2 * margin):.1f}"
            for unit in units
        )

    strongest = [
        int(group[values[group].abs().argmax()]) for group in _groups(len(values), columns)
    ]
    rest = [unit for unit in strongest if unit not in set(chosen)]
    return Stems(
        width=_WIDTH,
        height=_HEIGHT,
        zero=round(zero, 1),
        stroke=round(max(0.8, min(0.6 * _WIDTH / columns, 7.0)), 2),
        above=path([unit for unit in rest if values[unit] > 0]),
        below=path([unit for unit in rest if values[unit] < 0]),
        chosen=path(chosen),
    )


def _groups(length: int, columns: int) -> Iterator[Tensor]:
    yield from torch.arange(length).tensor_split(columns)


def _label_bars(run: RunPart, fitted: Fitted, row: int) -> Iterator[LabelBar]:
    if not fitted.has_labels:
        return
    train, held_out = fitted.correlation[row], fitted.held_out_correlation[row]
    for place, label in enumerate(train.argsort(descending=True, stable=True).tolist()):
        if place and (place == TOP_LABELS or train[label] < WORTH_A_BAR):
            return
        yield LabelBar(run.label(label), float(train[label]), float(held_out[label]))
