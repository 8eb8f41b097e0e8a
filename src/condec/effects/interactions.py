"""Pairs of modes ablated together, against the sum of what each does alone."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import unit_length
from condec.effects.choice import FixedReplacement, choice_of
from condec.effects.intervals import interval_of_means
from condec.effects.measured import Edits, measure
from condec.effects.rankings import atom_scores, descending
from condec.effects.samples import held_out, labels_of
from condec.modes import Modes, label_name

if TYPE_CHECKING:
    import pandas

INTERACTION_COLUMNS: Final = (
    "site", "mode_a", "mode_b", "name_a", "name_b", "label", "label_name", "quantity",
    "single_a", "single_b", "sum", "pair", "interaction", "low", "high", "n_samples", "n_units",
    "n_shared", "replacement",
)  # fmt: skip
"""Columns of `mode_interactions`."""


def mode_interactions(
    model: nn.Module, data: Any, modes: Modes, *, labels: Sequence[int] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None, n_pairs: int | None = None, fraction: float,
    replacement: FixedReplacement = "zero", n_bootstrap: int = 1000, seed: int = 0,
    batch_size: int = 64, prove: bool = True,
) -> "pandas.DataFrame":  # fmt: skip
    r"""Ablate two modes together, and compare the effect with the sum of their single effects.

    .. math:: I_{ab} = E_{ab} - (E_a + E_b)

    with E the change, by ablating the first units of a mode's atom (or of both), of the output
    or the probability of a label, a mean over its held-out samples. I is below 0 where the two
    stand in for each other. Units that both have (``n_shared``) count twice in the sum.

    Parameters
    ----------
    model, data, modes, labels, replacement, batch_size, prove
        As in `control_curve`.
    pairs : sequence of (int, int), optional
        Modes, by their number in the dictionary (`Modes.ids`). By default pairs of the labels'
        best modes, those with the most alike atoms first: modes that use the same units are the
        likeliest to stand in for each other. Of these at most `n_pairs`.
    fraction : float
        Share of the site's units to take of each mode.
    n_bootstrap, seed : int
        Draws of samples behind the interval.

    Returns
    -------
    pandas.DataFrame
        One row for every pair, label and quantity (``logit`` and ``probability``), with
        `INTERACTION_COLUMNS`: ``name_a``, ``name_b``, the label that each mode correlates with
        most on training rows, ``no label`` where it goes with none; ``low`` to ``high``, the 95 %
        interval of the ``interaction``.

    Raises
    ------
    OptionError, DataError, ModelError
        As in `control_curve`; no pair, a pair of one mode, or a mode that is not alive.
    """
    import pandas

    who = "mode_interactions"
    at_least(who, 1, n_bootstrap=n_bootstrap, n_pairs=1 if n_pairs is None else n_pairs)
    choice = choice_of(who, modes, "ablate", replacement, fraction)
    samples = held_out(data, modes, who)
    chosen = labels_of(samples, modes, labels, who)
    samples = samples.of(chosen)
    asked = _likely_pairs(modes, chosen)[:n_pairs] if pairs is None else _checked(modes, pairs)
    ids, names = modes.ids.tolist(), samples.inputs.label_names
    units = {
        mode: frozenset(choice.first(descending(atom_scores(modes, modes.atoms[ids.index(mode)]))))
        for mode in sorted({mode for pair in asked for mode in pair})
    }
    edits: dict[Edits, int] = {(): 0}
    wanted = [*units.values(), *(units[a] | units[b] for a, b in asked)]
    number = {some: edits.setdefault(choice.edits(some), len(edits)) for some in wanted}
    measured = measure(model, samples, list(edits), batch_size=batch_size, prove=prove)
    best = zip(
        ids, *(each.tolist() for each in modes.correlation(split="train").max(1)), strict=True
    )
    called = {mode: label_name(names, at) if most > 0 else "no label" for mode, most, at in best}
    rows = []
    for a, b in asked:
        which = [number[units[a]], number[units[b]], number[units[a] | units[b]]]
        for label in chosen:
            mine = measured.labels == label
            shared = {
                "site": modes.site.key, "mode_a": a, "mode_b": b, "name_a": called[a],
                "name_b": called[b], "label": label, "label_name": label_name(names, label),
                "n_samples": int(mine.sum()), "n_units": choice.count,
                "n_shared": len(units[a] & units[b]), "replacement": replacement,
            }  # fmt: skip
            for quantity in ("logit", "probability"):
                of_mine = getattr(measured, quantity)[:, mine].double()
                change = of_mine[which] - of_mine[0]
                of_a, of_b, both = change.mean(1).tolist()
                excess = (change[2] - change[0] - change[1])[None]
                low, high = interval_of_means(excess, n_bootstrap=n_bootstrap, seed=seed)
                rows.append(shared | {
                    "quantity": quantity, "single_a": of_a, "single_b": of_b, "sum": of_a + of_b,
                    "pair": both, "interaction": both - (of_a + of_b),
                    "low": float(low), "high": float(high),
                })  # fmt: skip
    return pandas.DataFrame(rows, columns=list(INTERACTION_COLUMNS))


def _likely_pairs(modes: Modes, labels: Sequence[int]) -> list[tuple[int, int]]:
    """Pair the labels' best modes, those with the most alike atoms first."""
    best = {(match := modes.best(label, split="train")).id: match.atom for label in labels}
    if len(best) < 2:
        raise DataError(
            f"mode_interactions: {len(labels)} labels have one best mode between them, "
            f"{next(iter(best))}; a pair needs two: name more labels, or give pairs"
        )
    atoms = {mode: unit_length(atom, 0) for mode, atom in best.items()}
    pairs = list(combinations(best, 2))
    return sorted(pairs, key=lambda pair: -float(atoms[pair[0]] @ atoms[pair[1]]))


def _checked(modes: Modes, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    who, alive = "mode_interactions", modes.ids.tolist()
    asked = [(int(a), int(b)) for a, b in pairs]
    unknown = sorted({mode for pair in asked for mode in pair} - set(alive))
    if unknown:
        raise OptionError(
            f"{who}: {modes.site.key}: modes {unknown[:5]} are not alive; pairs name modes by "
            f"their number in the dictionary, such as {alive[:5]}"
        )
    if not asked or any(a == b for a, b in asked):
        raise OptionError(f"{who}: expected pairs of two modes each, such as [(3, 7)]; got {asked}")
    return asked
