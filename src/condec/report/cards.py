"""Cards of modes: atom, labels, and the units that are drawn in maps."""

from collections.abc import Hashable, Iterator
from typing import Any, Final

from torch import Tensor, arange

from condec.explanation import copies, leading_modes, strongest_units
from condec.modes import Modes
from condec.report.reading import DictionaryPart, RunPart
from condec.report.words import count

CARDS_WITHOUT_MAPS: Final = 12
TOP_LABELS: Final = 5
WORTH_A_BAR: Final = 0.03
_EXAMPLES: Final = 6
_WIDTH, _HEIGHT, _MARGIN = 360.0, 84.0, 3.0


def mode_cards(
    run: RunPart, part: DictionaryPart, lines: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Give cards of the modes that have maps, else of the leading ones, in the order of `lines`.

    Modes with too few held-out users have cards only where all are such.
    `line` is that of `condec.report.tables.mode_rows`, `place` the one in the maps, or None.
    `users` says how many inputs use it, `copies` are modes with nearly the same atom,
    `labels` those that it correlates with best, `stems` its atom,
    `units` those that are drawn in the maps, with their weights, and `examples` inputs of each kind
    with what they are.
    """
    modes, maps = part.modes, part.maps
    places: dict[int, int | None]
    if maps is None:
        places = dict.fromkeys(modes.ids[leading_modes(modes, CARDS_WITHOUT_MAPS)].tolist())
    else:
        places = {number: place for place, number in enumerate(maps.mode_ids.tolist())}
    some = any(line["enough"] for line in lines)
    n_units = modes.store.info(modes.site).n_units
    for line in lines:
        if line["id"] not in places or (some and not line["enough"]):
            continue
        row, place = line["row"], places[line["id"]]
        drawn = strongest_units(modes, row)[:3] if maps is None else maps.units[place]
        atom, chosen = modes.atoms[row], [int(unit) for unit in drawn]
        weights = atom.view(-1, n_units).sum(0)
        yield {
            "line": line, "place": place, "labels": list(_label_bars(run, part, row)),
            "users": _users(part, row), "copies": modes.ids[copies(modes, row)].tolist(),
            "examples": list(_examples(modes, row)),
            "stems": stems(atom, [unit for c in chosen for unit in range(c, len(atom), n_units)]),
            "units": [(unit, float(weights[unit])) for unit in chosen],
        }  # fmt: skip


def _examples(modes: Modes, row: int) -> Iterator[tuple[str, list[dict[Hashable, Any]]]]:
    """Give inputs of a mode by name, with what they are examples of."""
    yield "use it most", modes.top(row, _EXAMPLES).to_dict("records")
    yield "drawn from all that use it", modes.random(row, _EXAMPLES).to_dict("records")
    if modes.quantity == "contribution":
        counter = modes.counter_examples(row, _EXAMPLES).to_dict("records")
        yield "its units are active, and contribute little", counter


def stems(atom: Tensor, chosen: list[int]) -> dict[str, Any]:
    """Draw an atom in three paths of SVG: above zero, below it, and the chosen units.

    Where units are more than pixels, the largest of every pixel stands.
    """
    values = atom.double()
    columns, step = min(len(values), int(_WIDTH)), _WIDTH / len(values)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = (_HEIGHT - 2 * _MARGIN) / ((high - low) or 1.0)
    zero = _MARGIN + high * scale

    def path(units: list[int]) -> str:
        return "".join(
            f"M{(unit + 0.5) * step:.1f} {zero:.1f}V{zero - float(values[unit]) * scale:.1f}"
            for unit in units
        )

    groups = arange(len(values)).tensor_split(columns)
    strongest = [int(group[values[group].abs().argmax()]) for group in groups]
    rest = [unit for unit in strongest if unit not in set(chosen)]
    return {
        "width": _WIDTH, "height": _HEIGHT, "zero": round(zero, 1),
        "stroke": round(max(0.8, min(0.6 * _WIDTH / columns, 7.0)), 2),
        "above": path([unit for unit in rest if values[unit] > 0]),
        "below": path([unit for unit in rest if values[unit] < 0]), "chosen": path(chosen),
    }  # fmt: skip


def _users(part: DictionaryPart, row: int) -> str:
    """Say how many inputs use a mode, of how many."""
    used, held_out = part.modes.loadings[:, row] > 0, part.modes.held_out
    rows = {"training": ~held_out, "held-out": held_out} if part.has_held_out else {"": ~held_out}
    parts = [
        f"{count(used[of].sum())} of {count(of.sum())} {name} inputs".replace("  ", " ")
        for name, of in rows.items()
    ]
    return " and ".join(parts)


def _label_bars(run: RunPart, part: DictionaryPart, row: int) -> Iterator[dict[str, Any]]:
    """Give the labels that a mode correlates with best: one at least, five at most."""
    if not part.has_labels:
        return
    train, held_out = part.correlation[row], part.held_out_correlation[row]
    for place, label in enumerate(train.argsort(descending=True, stable=True).tolist()):
        if place and (place == TOP_LABELS or train[label] < WORTH_A_BAR):
            return
        found = {"train": float(train[label]), "held_out": float(held_out[label])}
        yield {"name": run.label(label), **found}
