"""All dictionaries of a site side by side: what `condec judge` leaves for the report."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from condec.basis.errors import DataError, StoreError
from condec.basis.files import user_path
from condec.dictionary import import_dictionary
from condec.effects import judge
from condec.modes import Modes
from condec.network import Site
from condec.run.beforehand import control_reason
from condec.run.run import Outcome, Run
from condec.run.tasks import Task, carry_out
from condec.store import QUANTITIES, Quantity

TABLE: Final = "judged"


def judge_dictionaries(
    run: Run, sites: Sequence[str] = (), of_activations: Sequence[str] = ()
) -> Outcome:
    """Put the dictionaries of every site side by side, into analysis/judged.

    These are the modes of all learners that the run has there, its modes of activations, the
    dictionaries of activations in `of_activations` (files and folders as `import_dictionary` takes
    them, with ``{site}`` for the site's key), and single units of contributions and activations.

    Raises DataError: nothing says what inputs are, or as in `condec.judge`; StoreError: no site has
    modes.
    """
    if not run.properties:
        raise DataError(
            "judge: the data have no labels or attributes, by which dictionaries are judged; name "
            "some in [data]"
        )
    chosen = [site for site in run.sites(sites, run.store.sites) if run.folder.learners(site.key)]
    if not chosen:
        raise StoreError(f"{run.folder.path}: no modes to judge yet; {run.folder.first('fit')}")
    why, folder = control_reason(run, run.store.labels), run.folder
    made_from = run.made_from("control", "n_random", "n_bootstrap", "seed", "batch_size")
    made_from |= {"of_activations": [*of_activations], "without_edits": why}
    tasks = []
    for site in chosen:
        places = [folder.modes(site.key, name) for name in folder.learners(site.key)]
        if folder.ledger.found(place := folder.activation_modes(site.key) / "modes.zarr"):
            places.append(place)
        make = partial(_judged, run, site, of_activations, edited=not why)
        tasks.append(Task(f"{TABLE} {site.key}", made_from, make, places))
    outcome = carry_out(run, "control", tasks)
    notes = (*outcome.notes, *([f"judged without edits: {why}"] if why else ()))
    return Outcome("judge", outcome.state, outcome.outputs, outcome.seconds, notes)


def _judged(run: Run, site: Site, of_activations: Sequence[str], *, edited: bool) -> list[Path]:
    """Judge the dictionaries of a site that have an alive mode."""
    plan = run.plan.control
    several = {name: modes for name, modes in _candidates(run, site, of_activations) if len(modes)}
    of: tuple[Any, ...] = (run.model_of_store, run.inputs) if edited else ()
    table = judge(
        several, *of, properties=run.properties, n_random=max(plan.n_random, 1),
        n_bootstrap=max(plan.n_bootstrap, 1), seed=plan.seed, batch_size=plan.batch_size,
        prove=run.plan.collect.prove,
    )  # fmt: skip
    return [run.folder.write_table(table, TABLE, site.key)]


def _candidates(run: Run, site: Site, of_activations: Sequence[str]) -> Iterator[tuple[str, Modes]]:
    """Yield modes of a site by the names that its table has for them."""
    folder, store, sign = run.folder, run.store, run.plan.fit.sign
    for learner in folder.learners(site.key):
        place = folder.modes(site.key, learner)
        yield learner, Modes.load(folder.ledger.found(place) or place, store)
    if folder.ledger.found((place := folder.activation_modes(site.key)) / "modes.zarr"):
        yield "activations, modes", Modes.load(place, store)
    for text in of_activations:
        place = user_path(text.replace("{site}", site.key))
        known = import_dictionary(place, n_units=store.info(site).n_units)
        yield f"activations, {place.name}", _of(known, run, site, "activation")
    width = store.info(site).n_units * (2 if sign == "concat" else 1)
    units = import_dictionary(torch.eye(width), encoder="component")
    for quantity in QUANTITIES:
        yield f"units of {quantity}s", _of(units, run, site, quantity)


def _of(dictionary: Any, run: Run, site: Site, quantity: Quantity) -> Modes:
    sign = run.plan.fit.sign
    return Modes.build(dictionary, run.store, site, sign, quantity=quantity)
