"""Side effects of edits, as tasks of the link control: one table a kind and site.

The control matrix, steering, and interactions of pairs of modes. All are measured on held-out
rows, with units and modes chosen on training rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from condec import effects
from condec.basis.errors import DataError
from condec.basis.files import to_json
from condec.effects import Ranking
from condec.modes import Modes
from condec.run.plan import ControlPlan, digest
from condec.run.rankings import SiteRankings
from condec.run.run import Run, record_name
from condec.run.tasks import Task
from condec.store import SIDE_EFFECTS

if TYPE_CHECKING:
    import pandas


def side_effects(
    run: Run, site: SiteRankings, of_curves: Mapping[str, Any], notes: list[str]
) -> Iterator[Task]:
    """Yield a task for each kind that the plan asks for.

    `of_curves` is what the site's curves are made from, whose rankings are taken; what could not
    be measured is added to `notes`, with the reason.
    """
    key, name = site.modes.site.key, run.plan.fit.name
    for kind in _asked(run.plan.control):
        more = run.made_from("control", *_KINDS[kind][0])["control"]
        made_from = {**of_curves, "control": {**of_curves["control"], **more}}
        make, inputs = partial(_make, run, site, kind, notes), [run.folder.modes(key, name)]
        yield Task(f"{kind} {key}", made_from, make, inputs, name)


def forget_side_effects(run: Run, kept: Sequence[str]) -> None:
    """Remove what the plan does not ask for, or not at these sites."""
    asked = _asked(run.plan.control)
    for site in run.store.sites:
        for kind in SIDE_EFFECTS:
            if kind not in asked or site.key not in kept:
                run.folder.ledger.forget(record_name(f"{kind} {site.key}", run.plan.fit.name))
    if run.plan.data.superclasses is None:
        run.folder.ledger.forget("superclasses")


def superclasses(run: Run) -> Iterator[Task]:
    """Yield a task that keeps the superclass of every label, where there are any."""
    hierarchy = run.superclasses
    if hierarchy is not None:
        content = to_json(list(hierarchy.groups))
        make = lambda: [run.folder.write(run.folder.superclasses, content)]  # noqa: E731
        groups = digest(hierarchy.groups)
        yield Task("superclasses", run.made_from("data", "superclasses", groups=groups), make)


def _asked(plan: ControlPlan) -> list[str]:
    """Return the kinds a plan asks for."""
    return [kind for kind, (names, _) in _KINDS.items() if getattr(plan, names[0])]


def _make(run: Run, site: SiteRankings, kind: str, notes: list[str]) -> list[Path]:
    key = site.modes.site.key
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
ONLY_SIDE_EFFECTS: Final = {name for names, _ in _KINDS.values() for name in names}
"""Keys of [control] on which curves do not depend."""
