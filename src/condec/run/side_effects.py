"""What else edits do, as steps of the link control: one table a kind and site.

The control matrix, steering, and interactions of pairs of modes. All are measured on held-out
rows, with units and modes chosen on training rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from condec.basis.errors import DataError
from condec.basis.files import to_json
from condec.basis.metrics import unit_length
from condec.effects import (
    Ranking,
    control_matrix,
    held_out,
    labels_of,
    mode_interactions,
    steering_curve,
)
from condec.modes import Modes
from condec.run.plan import ControlPlan
from condec.run.rankings import SiteRankings
from condec.run.run import Run
from condec.run.steps import Step
from condec.store import SIDE_EFFECTS

if TYPE_CHECKING:
    import pandas

    _Measure = Callable[[Run, Modes, Ranking], pandas.DataFrame]


def side_effects(run: Run, site: SiteRankings, made_from: str, notes: list[str]) -> Iterator[Step]:
    """A step for each kind that the plan asks for.

    Parameters
    ----------
    run : Run
    site : SiteRankings
    made_from : str
        Digest of the site's curves, whose rankings are taken.
    notes : list of str
        What could not be measured is added here, with the reason.
    """
    plan, key = run.plan.control, site.modes.site.key
    for kind, parts in _asked(plan).items():
        digest = run.digest(made_from, kind, *parts)
        yield Step(f"{kind} {key}", digest, partial(_make, run, site, kind, notes))


def forget_side_effects(run: Run, kept: Sequence[str] = ()) -> None:
    """Remove what the plan does not ask for, or not at these sites."""
    asked = _asked(run.plan.control)
    for site in run.store.sites:
        for kind in SIDE_EFFECTS:
            if kind not in asked or site.key not in kept:
                forget_site(run, site.key, kind)
    if run.plan.data.superclasses is None:
        run.folder.forget("superclasses", [run.folder.superclasses])


def forget_site(run: Run, site: str, *kinds: str) -> None:
    """Remove the tables of one site, by default all of them."""
    for kind in kinds or SIDE_EFFECTS:
        table = run.folder.side_effect(kind, site, run.plan.fit.name)
        run.folder.forget(f"{kind} {site}", [run.folder.table(table)])


def superclasses(run: Run) -> Iterator[Step]:
    """A step that keeps the superclass of every label beside the tables, where there are any."""
    hierarchy = run.superclasses
    if hierarchy is None:
        return
    content = to_json(list(hierarchy.groups))
    yield Step(
        "superclasses",
        run.digest(hierarchy.groups),
        lambda: [run.folder.write(run.folder.superclasses, content)],
    )


def _asked(plan: ControlPlan) -> dict[str, tuple[object, ...]]:
    """Kinds that a plan asks for, and the options behind each besides those of the curves."""
    every = {
        "matrix": (plan.matrix, plan.share),
        "steering": (plan.steering, plan.strengths),
        "interactions": (plan.interactions, plan.share),
    }
    return {kind: parts for kind, parts in every.items() if parts[0]}


def _make(run: Run, site: SiteRankings, kind: str, notes: list[str]) -> list[Path]:
    key, folder = site.modes.site.key, run.folder
    measures: dict[str, "_Measure"] = {
        "matrix": _matrix,
        "steering": _steering,
        "interactions": _interactions,
    }
    forget_site(run, key, kind)
    ranking = site.leading  # final-layer weights are gradients: found before these are off
    try:
        with torch.no_grad():
            table = measures[kind](run, site.modes, ranking)
    except DataError as error:
        notes.append(f"{key}: {kind}: left out, {error}")
        return []
    return [folder.write_table(folder.side_effect(kind, key, run.plan.fit.name), table)]


def _matrix(run: Run, modes: Modes, ranking: Ranking) -> "pandas.DataFrame":
    """Every edit and replacement; units by the leading choice by modes."""
    import pandas

    plan = run.plan.control
    made = [
        control_matrix(
            run.model_of_store,
            run.inputs,
            modes,
            edit=edit,
            fraction=plan.share,
            ranking=ranking,
            labels=plan.labels or None,
            replacement=replacement,
            batch_size=plan.batch_size,
        ).to_frame()
        for edit in plan.edits
        for replacement in plan.replacements
        if replacement in ("zero", "mean")
    ]
    if not made:
        raise DataError("replacements: the control matrix knows zero and mean")
    return pandas.concat(made, ignore_index=True)


def _steering(run: Run, modes: Modes, _: Ranking) -> "pandas.DataFrame":
    plan = run.plan.control
    return steering_curve(
        run.model_of_store,
        run.inputs,
        modes,
        strengths=plan.strengths,
        labels=plan.labels or None,
        n_random=plan.n_random,
        seed=plan.seed,
        batch_size=plan.batch_size,
    )


def _interactions(run: Run, modes: Modes, _: Ranking) -> "pandas.DataFrame":
    plan = run.plan.control
    samples = held_out(run.inputs, modes, "control")
    labels = labels_of(samples, modes, plan.labels or None, "control")
    return mode_interactions(
        run.model_of_store,
        run.inputs,
        modes,
        labels=labels,
        pairs=likely_pairs(modes, labels, plan.interactions),
        fraction=plan.share,
        n_bootstrap=plan.n_bootstrap,
        seed=plan.seed,
        batch_size=plan.batch_size,
    )


def likely_pairs(modes: Modes, labels: Sequence[int], n_pairs: int) -> list[tuple[int, int]]:
    """Pairs of the labels' best modes, those with the most alike atoms first.

    Modes that use the same units are the likeliest to stand in for each other.

    Raises
    ------
    DataError
        All labels have one best mode.
    """
    best = {(match := modes.best(label, split="train")).id: match.atom for label in labels}
    if len(best) < 2:
        raise DataError(f"{len(labels)} labels have one best mode between them; a pair needs two")
    atoms = {mode: unit_length(atom, 0) for mode, atom in best.items()}
    pairs = list(combinations(best, 2))
    pairs.sort(key=lambda pair: -float(atoms[pair[0]] @ atoms[pair[1]]))
    return pairs[:n_pairs]
