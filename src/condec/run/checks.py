"""Checks of a site's dictionary: rivals that should do worse, and stability of its modes."""

from pathlib import Path

from torch import Tensor

from condec import dictionary
from condec.basis.errors import DataError
from condec.basis.shapes import UnitMatrix
from condec.dictionary.fitting.rows import fits
from condec.modes import membership
from condec.network import Site
from condec.run.run import Run
from condec.store import Quantity


def fit_rivals(run: Run, site: Site) -> list[Path]:
    """Fit rivals of a site's dictionary and compare them on its held-out rows."""
    plan, folder, store = run.plan.fit, run.folder, run.store
    run.say(f"{site.key}: rivals")
    rows = _matrix(run, site, "contribution")
    # Of positions, no activations are kept. A part that is 0 throughout, such as the negative one
    # after a ReLU, cannot be compared.
    activations = _matrix(run, site, "activation") if run.plan.rows == "samples" else None
    varies = activations is not None and bool((activations != activations[0]).any())
    of_row = store.labels
    if run.plan.rows == "positions":
        of_row = of_row[store.places(site).sample]
    table = dictionary.fit_rivals(
        plan.learner_for(store.info(site).n_units, len(rows)), rows,
        activations=activations if varies else None, indicators=_indicators(of_row),
        config=plan.train, fitted=dictionary.load_dictionary(folder.modes(site.key, plan.name)),
    )  # fmt: skip
    return [folder.write_table(table, "rivals", site.key, plan.name)]


def measure_stability(run: Run, site: Site) -> list[Path]:
    """Measure how stable a site's modes are over seeds and halves of the rows."""
    plan, folder, store = run.plan.fit, run.folder, run.store
    run.say(f"{site.key}: stability")
    rows = _matrix(run, site, "contribution")
    again = dictionary.stability(
        plan.learner_for(store.info(site).n_units, len(rows)), rows,
        seeds=plan.stability_seeds, config=plan.train,
        fitted=dictionary.load_dictionary(folder.modes(site.key, plan.name)),
    )  # fmt: skip
    table = again.table().assign(between_halves=again.between_halves, n_seeds=len(again.seeds))
    return [folder.write_table(table, "stability", site.key, plan.name)]


def _matrix(run: Run, site: Site, quantity: Quantity) -> UnitMatrix:
    """Read the rows of a site into memory, where they fit there as they do in a fit."""
    plan = run.plan.fit
    rows = run.store.rows(site, quantity, plan.sign, run.plan.rows)
    if not fits(rows, plan.train.memory_gib):
        raise DataError(
            f"{site.key}: rivals and stability need all rows in memory, and {rows.shape[0]} rows "
            f"of {rows.shape[1]} units do not fit in {plan.train.memory_gib:g} GiB with the copies "
            "that fitting makes; raise memory_gib, or leave this site out with check_sites"
        )
    return rows.all()


def _indicators(labels: Tensor) -> Tensor | None:
    """Return membership in those labels that some sample has, if there are any."""
    if not bool((labels >= 0).any()):
        return None
    member = membership(labels)
    return member[:, member.any(0)]
