"""The run in a few numbers: facts, warnings, and one line for every site."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from condec.report import checks
from condec.report.control import leading_ranking
from condec.report.reading import Fitted, RunPart, SitePart
from condec.report.words import (
    STATISTICS,
    compute_words,
    control_words,
    count,
    fixed,
    method_words,
    percent,
    plain,
    target_words,
    trend_words,
)
from condec.store import compare_trends

SPLITS: Final = {"train": "training", "held_out": "held out"}
"""Rows that a dictionary was fitted to or not, in words."""
COMPLETE_WITHIN = 0.05
"""A median completeness further from 1 than this is worth a warning."""
SPREAD_WITHIN = 0.5
"""So is a range from the 5th to the 95th percentile that is wider than this."""


@dataclass(frozen=True)
class Fact:
    """One large number on the first page, and what it counts."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class SiteLine:
    """One line of the table of sites; numbers are NaN where they are not defined.

    Attributes
    ----------
    key, folder : str
    n_units, n_positions : int
    cut : bool
    completeness : float
        Median over inputs.
    n_alive, n_modes : int
        Modes that are used, and all; of the first dictionary.
    split : str
        Rows of `r2` and `l0`: "held out", or "training" where none are held out; empty
        without a dictionary.
    r2, l0 : float
    label_correlation : float
        Median over modes of the held-out correlation with their best training label.
    ablate, preserve : float
        Mean selectivity of the modes' ranking over labels.
    """

    key: str
    folder: str
    n_units: int
    n_positions: int
    cut: bool
    completeness: float
    n_alive: int
    n_modes: int
    split: str
    r2: float
    l0: float
    label_correlation: float
    ablate: float
    preserve: float


@dataclass(frozen=True)
class Quality:
    """How well a dictionary fits; NaN where that was not kept.

    Attributes
    ----------
    split : str
        The rows: "held out", or "training" where none are held out; empty where not kept.
    r2, l0 : float
    """

    split: str
    r2: float
    l0: float


def facts(run: RunPart) -> list[Fact]:
    """Large numbers of the first page."""
    store = run.store
    skipped = store.n_samples - len(store)
    found = [Fact(count(len(store)), "inputs", f"{count(skipped)} skipped" if skipped else "")]
    known = (store.labels >= 0) & (store.predictions >= 0)
    if bool(known.any()):
        right = (store.labels == store.predictions)[known].float().mean()
        found.append(Fact(percent(right, 1), "accuracy of the model", "on these inputs"))
    found.append(Fact(count(len(run.sites)), "sites" if len(run.sites) > 1 else "site"))
    fitted = [one for site in run.sites for one in site.fitted]
    if fitted:
        alive, whole = sum(len(f.modes) for f in fitted), sum(f.modes.n_modes for f in fitted)
        found.append(Fact(count(alive), "modes in use", f"of {count(whole)}"))
        found.append(_r2([quality(one) for one in fitted]))
    complete = [site.completeness for site in run.sites if site.completeness is not None]
    if complete:
        middle = _median([float(values.quantile(0.5)) for values in complete])
        found.append(Fact(fixed(middle), "completeness", f"median of {len(complete)} cuts"))
    return found


def quality(fitted: Fitted) -> Quality:
    """Metrics on held-out rows, or on training rows where none are held out."""
    training = fitted.dictionary.training
    if training is None:
        return Quality("", math.nan, math.nan)
    split = "held_out" if training.metrics.get("held_out") else "train"
    metrics = training.metrics[split]
    return Quality(SPLITS[split], metrics.r2, metrics.l0)


def site_line(site: SitePart) -> SiteLine:
    """The line of one site."""
    first = site.fitted[0] if site.fitted else None
    numbers = Quality("", math.nan, math.nan) if first is None else quality(first)
    return SiteLine(
        key=site.key,
        folder=site.folder,
        n_units=site.info.n_units,
        n_positions=site.info.n_positions,
        cut=site.info.cut,
        completeness=math.nan
        if site.completeness is None
        else float(site.completeness.quantile(0.5)),
        n_alive=0 if first is None else len(first.modes),
        n_modes=0 if first is None else first.modes.n_modes,
        split=numbers.split,
        r2=numbers.r2,
        l0=numbers.l0,
        label_correlation=_label_correlation(first),
        ablate=_selectivity(site, "ablate"),
        preserve=_selectivity(site, "preserve"),
    )


def warnings(run: RunPart) -> Iterator[str]:
    """What a reader should know before believing the rest."""
    skipped = run.store.n_samples - len(run.store)
    if skipped:
        ids = run.store.to_xarray()["inputs"]["id"].to_numpy()[~run.store.valid.numpy()]
        some = ", ".join(str(name) for name in ids[:8]) + (", ..." if len(ids) > 8 else "")
        yield f"{count(skipped)} of {count(run.store.n_samples)} inputs were left out: {some}."
    yield from _about_completeness(run.sites)
    yield from checks.warnings(run)
    if not bool((run.store.labels >= 0).any()):
        yield "The inputs have no labels, so correlations with labels and control are left out."
    elif run.sites and not any(f.has_held_out for s in run.sites for f in s.fitted):
        yield "No inputs were held out: all figures are those of the inputs that were fitted."


def trends(run: RunPart) -> list[str]:
    """What the statistics do along the network, here and in every twin, in sentences."""
    if run.statistics is None:
        return []
    return [
        trend_words({str(k): v for k, v in row.items()}, control_words(twin.control))
        for twin in run.twins
        if twin.statistics is not None
        for row in compare_trends(run.statistics, twin.statistics).to_dict("records")
        if row["statistic"] in STATISTICS and math.isfinite(row["trend"] + row["twin_trend"])
    ]


def recipe(run: RunPart) -> list[tuple[str, str]]:
    """What the contributions were made with, line by line."""
    made = dict(run.store.recipe)
    lines = []
    for name, section, key in (("Model", "model", "spec"), ("Data", "data", "source")):
        value = run.plan.get(section, {}).get(key)
        if value:
            lines.append((name, str(value)))
    lines.append(("Method", method_words(made.pop("method", {}))))
    lines.append(("Target", target_words(made.pop("target", {}))))
    if "compute" in made:
        lines.append(("Computed in", compute_words(made.pop("compute"))))
    names = {
        "model": "Fingerprint of the model",
        "data": "Fingerprint of the data",
        "n_samples": "Inputs",
        "sites": "Sites",
        "reduction": "Reduction",
        "batch_size": "Batch size",
        "condec": "Version of condec",
    }
    for key, value in made.items():
        lines.append((names.get(key, key), plain(value)))
    if run.twins:
        lines.append(("Controls", "; ".join(control_words(twin.control) for twin in run.twins)))
    return lines


def lede(run: RunPart) -> str:
    """One sentence on what was done."""
    made = run.store.recipe
    number = len(run.sites)
    return (
        f"Contributions of hidden units at {number} {'site' if number == 1 else 'sites'} to "
        f"{target_words(made.get('target', {}))}, by {method_words(made.get('method', {}))}, "
        f"for {count(len(run.store))} inputs, decomposed into modes."
    )


def title(run: RunPart) -> str:
    """Title of the report."""
    given = str(run.plan.get("report", {}).get("title", ""))
    model = str(run.plan.get("model", {}).get("spec", "")) or str(run.store.recipe.get("model", ""))
    data = str(run.plan.get("data", {}).get("source", ""))
    return given or " on ".join(part for part in (model, data) if part) or run.folder.name


def _about_completeness(sites: Sequence[SitePart]) -> Iterator[str]:
    off, wide = [], []
    for site in sites:
        if site.completeness is None:
            continue
        low, middle, high = (
            float(site.completeness.double().quantile(q)) for q in (0.05, 0.5, 0.95)
        )
        if abs(middle - 1) > COMPLETE_WITHIN:
            off.append(f"{site.key} {fixed(middle)}")
        elif high - low > SPREAD_WITHIN:
            wide.append(f"{site.key} {fixed(low)} to {fixed(high)}")
    if off:
        yield (
            "Contributions do not add up to the change of the target (median completeness): "
            f"{'; '.join(off)}. More steps of integrated gradients bring this closer to 1."
        )
    if wide:
        yield (
            f"Completeness differs much between inputs (5th to 95th percentile): {'; '.join(wide)}."
        )


def _r2(found: list[Quality]) -> Fact:
    splits = " or ".join(sorted({one.split for one in found if one.split}))
    name = "R\N{SUPERSCRIPT TWO}" + (f", {splits}" if splits else "")
    return Fact(fixed(_median([one.r2 for one in found])), name, "median of the sites")


def _label_correlation(fitted: Fitted | None) -> float:
    if fitted is None or not fitted.has_labels or not len(fitted.modes):
        return math.nan
    return float(fitted.best[1].double().nanquantile(0.5))


def _selectivity(site: SitePart, edit: str) -> float:
    if site.areas is None:
        return math.nan
    leading = leading_ranking(site.areas)
    rows = site.areas[(site.areas["edit"] == edit) & (site.areas["ranking"] == leading)]
    for replacement in ("zero", "mean", "class_mean", "resample"):
        some = rows[rows["replacement"] == replacement]
        if not some.empty:
            return float(some["auc_difference"].mean())
    return math.nan


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanquantile(0.5))
