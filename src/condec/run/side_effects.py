"""Side effects of edits, as tasks of the link control: one table a kind and site.

The control matrix, steering, and interactions of pairs of modes. All are measured on held-out
rows, with units and modes chosen on training rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from condec import effects
from condec.basis.errors import DataError
from condec.basis.files import to_json
from condec.effects import Ranking
from condec.modes import Modes
from condec.run.plan import ControlPlan
from condec.run.rankings import SiteRankings
from condec.run.run import Run
from condec.run.tasks import Task, forget_table
from condec.store import SIDE_EFFECTS

if TYPE_CHECKING:
    import pandas


def side_effects(run: Run, site: SiteRankings, made_from: str, notes: list[str]) -> Iterator[Task]:
    """Yield a task for each kind that the plan asks for.

    `made_from` is the digest of the site's curves, whose rankings are taken; what could not be
    measured is added to `notes`, with the reason.
    """
    key = site.modes.site.key
    for kind, parts in _asked(run.plan.control).items():
        digest = run.digest(made_from, kind, *parts)
        yield Task(f"{kind} {key}", digest, partial(_make, run, site, kind, notes))


def forget_side_effects(run: Run, kept: Sequence[str]) -> None:
    """Remove what the plan does not ask for, or not at these sites."""
    asked = _asked(run.plan.control)
    for site in run.store.sites:
        for kind in SIDE_EFFECTS:
            if kind not in asked or site.key not in kept:
                forget_table(run, kind, site.key)
    if run.plan.data.superclasses is None:
        run.folder.forget("superclasses", [run.folder.superclasses])


def superclasses(run: Run) -> Iterator[Task]:
    """Yield a task that keeps the superclass of every label, where there are any."""
    hierarchy = run.superclasses
    if hierarchy is not None:
        content = to_json(list(hierarchy.groups))
        make = lambda: [run.folder.write(run.folder.superclasses, content)]  # noqa: E731
        yield Task("superclasses", run.digest(hierarchy.groups), make)


def _asked(plan: ControlPlan) -> dict[str, list[Any]]:
    """Return the kinds a plan asks for, each with its options besides those of the curves."""
    every = {kind: [getattr(plan, name) for name in names] for kind, (names, _) in _KINDS.items()}
    return {kind: options for kind, options in every.items() if options[0]}


def _make(run: Run, site: SiteRankings, kind: str, notes: list[str]) -> list[Path]:
    key = site.modes.site.key
    forget_table(run, kind, key)
    ranking = site.leading  # final-layer weights are gradients: found before these are off
    try:
        with torch.no_grad():
            table = _KINDS[kind][1](run, site.modes, ranking)
    except DataError as error:
        notes.append(f"{key}: {kind}: left out, {error}")
        return []
    return [run.folder.write_table(table, kind, key, run.plan.fit.name)]


def _matrix(run: Run, modes: Modes, ranking: Ranking) -> "pandas.DataFrame":
    """Measure every edit and replacement; units by the leading choice by modes."""
    import pandas

    plan = run.plan.control
    made = [
        effects.control_matrix(
            run.model_of_store, run.inputs, modes, edit=edit, fraction=plan.share, ranking=ranking,
            labels=plan.labels or None, replacement=replacement,
            batch_size=plan.batch_size, prove=run.plan.collect.prove,
        ).to_frame()
        for edit in plan.edits
        for replacement in plan.replacements
        if replacement in ("zero", "mean")
    ]  # fmt: skip
    if not made:
        raise DataError("replacements: the control matrix knows zero and mean")
    return pandas.concat(made, ignore_index=True)


def _steering(run: Run, modes: Modes, _: Ranking) -> "pandas.DataFrame":
    plan = run.plan.control
    return effects.steering_curve(
        run.model_of_store, run.inputs, modes, strengths=plan.strengths, labels=plan.labels or None,
        n_random=plan.n_random, seed=plan.seed, batch_size=plan.batch_size,
        prove=run.plan.collect.prove,
    )  # fmt: skip


def _interactions(run: Run, modes: Modes, _: Ranking) -> "pandas.DataFrame":
    plan = run.plan.control
    return effects.mode_interactions(
        run.model_of_store, run.inputs, modes, labels=plan.labels or None,
        n_pairs=plan.interactions, fraction=plan.share, n_bootstrap=plan.n_bootstrap,
        seed=plan.seed, batch_size=plan.batch_size, prove=run.plan.collect.prove,
    )  # fmt: skip


_KINDS: Final[dict[str, tuple[tuple[str, str], Callable[[Run, Modes, Ranking], Any]]]] = {
    "control_matrix": (("matrix", "share"), _matrix),
    "steering": (("steering", "strengths"), _steering),
    "interactions": (("interactions", "share"), _interactions),
}
"""Keys of [control], the first of which asks for the kind, and what measures it."""
