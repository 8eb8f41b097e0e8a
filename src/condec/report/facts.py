"""The run in a few numbers, and what it was made with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import tomli_w
import torch

from condec.report import words
from condec.report.reading import SPLITS, DictionaryPart, RunPart, SitePart
from condec.report.words import count, fixed, percent

_RECIPE: Final = {
    "model": "Fingerprint of the model", "data": "Fingerprint of the data", "n_samples": "Inputs",
    "sites": "Sites", "reduction": "Reduction", "batch_size": "Batch size",
    "condec": "Version of condec",
}  # fmt: skip
"""Entries of a store's recipe that need another name."""


@dataclass(frozen=True)
class Fact:
    """One large number on a page, and what it counts."""

    value: str
    name: str
    note: str = ""


def of_run(run: RunPart) -> Iterator[Fact]:
    """Give the large numbers of the first page."""
    store = run.store
    skipped = store.n_samples - len(store)
    yield Fact(count(len(store)), "inputs", f"{count(skipped)} skipped" if skipped else "")
    labelled = (store.labels >= 0) & (store.predictions >= 0)
    if bool(labelled.any()):
        right = (store.labels == store.predictions)[labelled].float().mean()
        yield Fact(percent(right, 1), "accuracy of the model", "on these inputs")
    yield Fact(count(len(run.sites)), "sites" if len(run.sites) > 1 else "site")
    for learner in run.learners:
        parts = [part for _, part in run.parts if part.name == learner]
        of = f", {learner}" if len(run.learners) > 1 else ""
        used = count(sum(len(part.modes) for part in parts))
        whole = count(sum(part.modes.n_modes for part in parts))
        yield Fact(used, f"modes in use{of}", f"of {whole}")
        middle = _median([part.measured("r2") for part in parts])
        yield Fact(fixed(middle), _r2(parts) + of, "median of the sites")
    known = [site.completeness for site in run.sites if site.completeness is not None]
    if known:
        middle = _median([float(values.quantile(0.5)) for values in known])
        yield Fact(fixed(middle), "completeness", f"median of {len(known)} cuts")


def of_site(site: SitePart) -> Iterator[Fact]:
    """Give the large numbers of a site's page."""
    info, complete = site.info, site.completeness
    yield Fact(count(info.n_units), "units", str(info.units))
    yield Fact(count(info.n_positions), f"position{'s' * (info.n_positions != 1)} a unit")
    if info.cut:
        middle = None if complete is None else complete.quantile(0.5)
        yield Fact(fixed(middle), "completeness", "median")
    else:
        yield Fact("no", "cut of the network", "flow passes around it")
    for part in site.parts:
        of = f", {part.name}" if len(site.parts) > 1 else ""
        yield Fact(count(len(part.modes)), f"modes in use{of}", f"of {count(part.modes.n_modes)}")
        yield Fact(fixed(part.measured("r2")), _r2([part]) + of)
        yield Fact(fixed(part.measured("l0"), 1), f"modes per input{of}")


def _r2(parts: Sequence[DictionaryPart]) -> str:
    splits = " or ".join(sorted({SPLITS[part.split] for part in parts if part.split}))
    return "R\N{SUPERSCRIPT TWO}" + (f", {splits}" if splits else "")


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanquantile(0.5))


def title(run: RunPart) -> str:
    """Return the title of the report."""
    given = str(run.plan.get("report", {}).get("title", ""))
    model = str(run.plan.get("model", {}).get("spec", "")) or str(run.store.recipe.get("model", ""))
    data = str(run.plan.get("data", {}).get("source", ""))
    return given or " on ".join(part for part in (model, data) if part) or run.folder.path.name


def lede(run: RunPart) -> str:
    """Say in one sentence what was done."""
    made, number = run.store.recipe, len(run.sites)
    target = words.target_words(made.get("target", {}))
    method = words.method_words(made.get("method", {}))
    return (
        f"Contributions of hidden units at {number} {'site' if number == 1 else 'sites'} to "
        f"{target}, by {method}, for {count(len(run.store))} inputs, decomposed into modes."
    )


def plan(run: RunPart) -> str:
    """Return the plan of the run as TOML."""
    return tomli_w.dumps(dict(run.plan))


def recipe(run: RunPart) -> Iterator[tuple[str, str]]:
    """Give what the contributions were made with, line by line: name and value."""
    made = dict(run.store.recipe)
    for name, section, key in (("Model", "model", "spec"), ("Data", "data", "source")):
        value = run.plan.get(section, {}).get(key)
        if value:
            yield name, str(value)
    yield "Method", words.method_words(made.pop("method", {}))
    yield "Target", words.target_words(made.pop("target", {}))
    if "compute" in made:
        yield "Computed in", words.compute_words(made.pop("compute"))
    yield from ((_RECIPE.get(key, key), words.plain(value)) for key, value in made.items())
    if run.twins:
        yield "Twins", "; ".join(words.twin_words(twin.twin) for twin in run.twins)
