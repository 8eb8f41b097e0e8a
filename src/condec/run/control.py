"""The link that edits the network: control curves of every chosen site, and side effects of edits.

Side effects are the control matrix, steering, and interactions of pairs of modes: one table a kind
and site. All are measured on held-out rows, with units and modes chosen on training rows.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from jaxtyping import Float

from condec import effects
from condec.basis.digests import digest
from condec.basis.errors import DataError, OptionError, SiteError
from condec.basis.files import to_json
from condec.dictionary import DeadModesWarning
from condec.effects import LOG_ODDS, LOG_ODDS_NAMES, CurveOptions, Ranking, compare, measure_curves
from condec.modes import Modes, against_units
from condec.network import Site
from condec.run.plan import ControlPlan
from condec.run.run import Outcome, Run, record_name
from condec.run.tasks import Task, carry_out, collected_ahead, with_modes
from condec.store import SIDE_EFFECTS, Quantity, Store
from condec.store.batches import BatchPlan
from condec.store.collection import Collecting

if TYPE_CHECKING:
    import pandas

LabelUnit = Float[torch.Tensor, "label unit"]
_KEYS: Final = {
    "control_matrix": ("matrix", "share"), "steering": ("steering", "strengths"),
    "interactions": ("interactions", "share"), "superclass_control": ("superclasses", "share"),
}  # fmt: skip
"""Keys of [control] on which a side effect depends, and no curve; the first asks for it."""


def control_link(run: Run) -> Outcome:
    """Control curves: what ablating modes does to accuracy.

    They go into analysis/control.parquet, those of one site and the comparison of its rankings
    into analysis/control/ and analysis/control_comparison/. Rankings by log-odds need
    contributions of their own, in log_odds/contributions.zarr; where they cannot be had, they
    are left out, with a note. So is a site of which no mode is alive. What else edits do stands
    in tables of its own, as far as the plan asks for it.
    """
    plan = run.plan.control
    run.inputs.needed_labels("control")
    chosen, notes = with_modes(run.modes(plan.sites))
    wanted = [name for name in plan.rankings if name in LOG_ODDS_NAMES]
    store, reason = _log_odds(run, chosen) if wanted and chosen else (None, "")
    if reason:
        notes = (*notes, f"{', '.join(wanted)}: left out, {reason}")
    sites = [SiteRankings(run, modes, store) for modes in chosen]
    keys, name = [modes.site.key for modes in chosen], run.plan.fit.name
    others = {key for of_kind in _KEYS.values() for key in of_kind}
    made_from = run.made_from("control", without=others, log_odds=reason)
    _forget_side_effects(run, keys)
    tasks, more = [], list[str]()
    for site in sites:
        key = site.modes.site.key
        inputs, make = [run.folder.modes(key, name)], partial(_site_curves, run, site)
        tasks.append(Task(f"control {key}", made_from, make, inputs, name))
        tasks += _side_effects(run, site, made_from, more)
    if chosen:
        inputs = [run.folder.table("control", key, name) for key in keys]
        join = partial(_join_curves, run, keys)
        tasks.append(Task("control", run.made_from(), join, inputs, late=True))
        tasks += _superclasses(run)
    outcome = carry_out(run, "control", tasks)
    return replace(outcome, notes=(*notes, *more))


# --- rankings -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SiteRankings:
    """Rankings of one site, made when first asked for.

    `log_odds` are contributions to the label's log-odds; without them, the rankings that need
    them are left out. So are final-layer weights where more than averaging and a linear layer
    follows. `fitted` are the modes that some of them need, by the folders where they belong.
    """

    run: Run
    modes: Modes
    log_odds: Store | None
    fitted: dict[Path, Modes] = field(default_factory=dict)

    @cached_property
    def found(self) -> tuple[Ranking, ...]:
        """Rankings of the plan, as far as the run has what they are made from."""
        plan, folder, key = self.run.plan.control, self.run.folder, self.modes.site.key
        wanted = set(plan.rankings)
        log_odds = activation = None
        if self.log_odds is not None and wanted & set(LOG_ODDS_NAMES):
            place, names = folder.log_odds_modes(key), ", ".join(LOG_ODDS_NAMES)
            log_odds = self._fitted(self.log_odds, "contribution", names, place)
        if "activation_modes" in wanted:
            place = folder.activation_modes(key)
            activation = self._fitted(self.modes.store, "activation", "activation_modes", place)
        every = effects.standard_rankings(
            self.modes, log_odds=log_odds, activation_modes=activation,
            head=self._head() if "head_weights" in wanted else None, n_random=plan.n_random,
            seed=plan.seed,
        )  # fmt: skip
        chosen = tuple(ranking for ranking in every if ranking.name in wanted)
        return chosen or tuple(ranking for ranking in every if ranking.name in effects.RANKINGS)

    @property
    def leading(self) -> Ranking:
        """The choice by modes that side effects are looked at with."""
        named = {ranking.name: ranking for ranking in self.found}
        first = next((named[name] for name in effects.LEADING if name in named), None)
        return effects.ByMode(modes=self.modes) if first is None else first

    def _fitted(self, store: Store, quantity: Quantity, names: str, place: Path) -> Modes | None:
        """Signed modes of a matrix, by the run's learner where that takes signs."""
        plan, site = self.run.plan.fit, self.modes.site
        try:
            with warnings.catch_warnings():
                # Modes that order units are not shown one by one.
                warnings.simplefilter("ignore", DeadModesWarning)
                learner = plan.learner_for(store.info(site).n_units, len(store))
                found = effects.fit_signed(
                    store, self.modes, learner=learner,
                    config=plan.train, quantity=quantity, name=place.parent.name,
                )  # fmt: skip
        except DataError as error:
            self.run.say(f"{site.key}: {names} left out: {error}")
            return None
        self.fitted[place] = found
        return found

    def _head(self) -> LabelUnit | None:
        """Final-layer weights, where a site is followed by nothing but averaging and them."""
        run = self.run
        samples = effects.held_out(run.inputs, self.modes, "control")
        # Two tell: the gradient is the same for all inputs, or there are no such weights.
        few = run.inputs.batch((samples.indices * 2)[:2])
        try:
            return effects.head_weights(run.model_of_store, self.modes.site, few)
        except SiteError:
            return None


def log_odds_of(run: Run, sites: Sequence[Site]) -> Collecting:
    """Return the collection of contributions to the log-odds."""
    plan, method = run.plan.collect, run.plan.control.log_odds
    batches = BatchPlan.make(
        run.model_of_store, run.inputs, sites, method, LOG_ODDS, plan.compute, plan.on_bad, None,
        run.batch_size if plan.prove else None,
    )  # fmt: skip
    return run.collecting(batches, run.folder.log_odds)


def _log_odds(run: Run, chosen: Sequence[Modes]) -> tuple[Store | None, str]:
    """Return contributions to the log-odds at all chosen sites; or none, and why."""
    out = run.folder.log_odds
    if bool((run.inputs.needed_labels("control") < 0).any()):
        return None, "samples without label have no log-odds"
    sites = [modes.site for modes in chosen]
    if out.exists():
        found = Store.open(out)
        method = run.plan.control.log_odds.for_model(run.model_of_store)
        stored = found.sites
        if set(sites) <= set(stored) and found.recipe["method"] == method.to_dict():
            sites = list(stored)
        else:  # Made from the run's own data, and can be made again, for the sites of today too.
            sites = [site for site in run.store.sites if site in {*sites, *stored}]
            shutil.rmtree(out)
    try:
        store = collected_ahead(run, log_odds_of(run, sites))
    except DataError as error:
        return None, str(error)
    if store.sample_ids != run.store.sample_ids:
        return None, "other samples could be used than for the run's contributions"
    return store, ""


# --- curves ---------------------------------------------------------------------------------


def _shared(run: Run) -> dict[str, Any]:
    """Return the options that everything measured under edits takes."""
    plan = run.plan.control
    of_labels = {"labels": plan.labels or None, "batch_size": plan.batch_size}
    return of_labels | {"prove": run.plan.collect.prove}


def _site_curves(run: Run, site: SiteRankings) -> list[Path]:
    """Measure the curves of one site, and compare its rankings."""
    import pandas

    modes, plan, folder, name = site.modes, run.plan.control, run.folder, run.plan.fit.name
    key = modes.site.key
    model = run.model_of_store
    shared = CurveOptions(
        fractions=plan.fractions, off=plan.off, rankings=site.found, n_bootstrap=plan.n_bootstrap,
        seed=plan.seed, **_shared(run),
    )  # fmt: skip
    each = [
        replace(shared, edit=e, replacement=r) for e, r in product(plan.edits, plan.replacements)
    ]
    curves = [measure_curves(model, run.inputs, modes, options) for options in each]
    made = {"control": pandas.concat([one.to_frame() for one in curves])}
    if plan.n_bootstrap:
        made["control_comparison"] = pandas.concat([compare(one) for one in curves])
    if (others := site.fitted.get(folder.activation_modes(key))) is not None and len(others):
        with suppress(DataError):  # too few samples of each label
            made["activation_units"] = against_units([others])
    tables = [folder.write_table(table, kind, key, name) for kind, table in made.items()]
    for place, others in site.fitted.items():
        others.save(place)
    return [*tables, *(place / "modes.zarr" for place in site.fitted)]


def _join_curves(run: Run, sites: Sequence[str]) -> list[Path]:
    """Put the curves of all sites into one table."""
    import pandas

    folder, name = run.folder, run.plan.fit.name
    tables = [folder.read_table("control", site, name) for site in sites]
    return [folder.write_table(pandas.concat(tables, ignore_index=True), "control")]


# --- side effects ---------------------------------------------------------------------------


def _side_effects(
    run: Run, site: SiteRankings, of_curves: Mapping[str, Any], notes: list[str]
) -> Iterator[Task]:
    """Yield a task for each kind that the plan asks for.

    `of_curves` is what the site's curves are made from, whose rankings are taken; what could not
    be measured is added to `notes`, with the reason.
    """
    key, name = site.modes.site.key, run.plan.fit.name
    for kind in _asked(run.plan.control):
        more = run.made_from("control", *_KEYS[kind])["control"]
        made_from = {**of_curves, "control": {**of_curves["control"], **more}}
        if kind == "superclass_control" and run.superclasses is not None:
            made_from["superclasses"] = digest(run.superclasses.to_record())
        make, inputs = partial(_side_effect, run, site, kind, notes), [run.folder.modes(key, name)]
        yield Task(f"{kind} {key}", made_from, make, inputs, name, notes=notes)


def _asked(plan: ControlPlan) -> list[str]:
    """Return the kinds a plan asks for."""
    return [kind for kind, keys in _KEYS.items() if getattr(plan, keys[0])]


def _forget_side_effects(run: Run, kept: Sequence[str]) -> None:
    """Remove what the plan does not ask for, or not at these sites."""
    asked = _asked(run.plan.control)
    for site in run.store.sites:
        for kind in SIDE_EFFECTS:
            if kind not in asked or site.key not in kept:
                run.folder.ledger.forget(record_name(f"{kind} {site.key}", run.plan.fit.name))
    for entry in list(run.folder.ledger.entries.values()):
        # What a person has asked for besides stays, unless it was of another plan.
        if entry.task.startswith(("mode_control ", "judged ")) and run.differences(entry):
            run.folder.ledger.forget(entry.task)
    if run.plan.data.superclasses is None:
        run.folder.ledger.forget("superclasses")


def _superclasses(run: Run) -> Iterator[Task]:
    """Yield a task that keeps the superclass of every label, where there are any."""
    if (hierarchy := run.superclasses) is not None:
        content = to_json(hierarchy.to_record())
        make = lambda: [run.folder.write(run.folder.superclasses, content)]  # noqa: E731
        groups = digest(hierarchy.to_record())
        yield Task("superclasses", run.made_from("data", "superclasses", groups=groups), make)


def _side_effect(run: Run, site: SiteRankings, kind: str, notes: list[str]) -> list[Path]:
    plan, key = run.plan.control, site.modes.site.key
    ranking = site.leading  # final-layer weights are gradients: found before these are off
    of, shared = (run.model_of_store, run.inputs, site.modes), _shared(run)
    try:
        with torch.no_grad():
            if kind == "control_matrix":
                table = _matrices(plan, of, ranking, shared)
            elif kind == "steering":
                table = effects.steering_curve(
                    *of, strengths=plan.strengths, n_random=plan.n_random, seed=plan.seed, **shared
                )
            elif kind == "superclass_control":
                table = _of_superclasses(run, site.modes, notes)
            else:
                table = effects.mode_interactions(
                    *of, n_pairs=plan.interactions, fraction=plan.share,
                    n_bootstrap=plan.n_bootstrap, seed=plan.seed, **shared,
                )  # fmt: skip
    except DataError as error:
        notes.append(f"{key}: {kind}: left out, {error}")
        return []
    return [run.folder.write_table(table, kind, key, run.plan.fit.name)]


def _matrices(plan: ControlPlan, of: Any, ranking: Ranking, shared: Any) -> "pandas.DataFrame":
    """Measure every edit and replacement; units by the leading choice by modes."""
    import pandas

    options = {"fraction": plan.share, "ranking": ranking, **shared}
    made = [
        effects.control_matrix(*of, edit=edit, replacement=replacement, **options).to_frame()
        for edit, replacement in product(plan.edits, plan.replacements)
        if replacement in ("zero", "mean")
    ]
    if not made:
        raise DataError("replacements: the control matrix knows zero and mean")
    return pandas.concat(made, ignore_index=True)


def _of_superclasses(run: Run, modes: Modes, notes: list[str]) -> "pandas.DataFrame":
    """Edit every superclass of several labels; those that no mode goes with are noted."""
    import pandas

    plan, hierarchy, made = run.plan.control, run.superclasses, []
    if hierarchy is None:
        raise DataError("the data have no superclasses; name them in [data]")
    of = (run.model_of_store, run.inputs, modes)
    shared: dict[str, Any] = {"batch_size": plan.batch_size, "prove": run.plan.collect.prove}
    for name, edit in product(hierarchy.names, plan.edits):
        members = hierarchy.labels(name)
        if len(members) < 2:
            continue
        try:
            found = effects.superclass_control(
                *of, members, fraction=plan.share, edit=edit, n_random=plan.n_random,
                seed=plan.seed, name=name, **shared,
            )  # fmt: skip
        except (DataError, OptionError) as error:
            notes.append(f"{modes.site.key}: superclass {name}: left out, {error}")
            continue
        means = found.means(n_bootstrap=plan.n_bootstrap, seed=plan.seed)
        made.append(means.assign(superclass=name, edit=edit))
    if not made:
        raise DataError("no superclass has two labels, samples and a mode")
    return pandas.concat(made, ignore_index=True)
