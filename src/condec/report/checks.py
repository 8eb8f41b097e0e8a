"""Whether a dictionary can be believed: its numbers on both splits, controls, other fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from condec.dictionary import rival_words, rivals_as_good
from condec.dictionary.fitting.train import MANY_DEAD
from condec.report.reading import Fitted, RunPart, SitePart
from condec.report.words import count, fixed, percent

STABLE: Final = 0.9
"""Least cosine, over seeds and over halves, of a mode that is called stable."""
_NUMBERS: Final = (
    ("R\N{SUPERSCRIPT TWO}", "r2", 3, "share of the variance within units explained"),
    ("R\N{SUPERSCRIPT TWO}, grand mean", "r2_grand", 3, "the paper's: one mean for all entries"),
    ("Cosine", "cosine", 3, "between input and reconstruction"),
    ("Shrinkage", "shrinkage", 3, "length of the reconstruction relative to the input's"),
    ("Modes per input", "l0", 1, "L0"),
    ("Loading Hoyer", "loading_hoyer", 3, "1: an input stands on one mode, 0: on all alike"),
    ("Atom Hoyer", "atom_hoyer", 3, "1: a mode is one unit, 0: all units alike"),
    ("Coherence", "coherence", 3, "largest cosine between two modes in use"),
    ("Mean coherence", "mean_coherence", 3, "mean cosine between two modes in use"),
    ("Effective rank", "effective_rank", 1, "directions that the modes in use span"),
)
_MEASURES: Final = {"r2": "R\N{SUPERSCRIPT TWO}", "label_correlation": "label correlation"}
_CONTROLS: Final = {
    "dictionary": ("this dictionary", ""),
    "frozen_decoder": ("random atoms", "only the encoder was trained"),
    "frozen_encoder": ("random encoder", "only the atoms were trained"),
    "shuffled_units": ("shuffled units", "every unit's values shuffled over inputs"),
    "activations": ("activations", "at equal L0"),
    "pca": ("PCA", "at equal L0"),
    "nmf": ("NMF", "at equal L0"),
}


@dataclass(frozen=True)
class Number:
    """One number of a dictionary on both splits, as text; `says` explains it."""

    name: str
    train: str
    held_out: str
    says: str


@dataclass(frozen=True)
class CheckLine:
    """How far one dictionary can be believed; numbers are NaN where they were not measured.

    Attributes
    ----------
    site, folder, name : str
        Key and page of the site; name of the dictionary.
    dead : float
        Share of the modes that no held-out input uses.
    many_dead : bool
        Whether that is worth a warning.
    seeds, halves, chance : float
        Mean cosine of modes with their partners in other fits.
    stable : str
        How many of the modes in use other seeds and both halves find as well.
    controls : str
        Those that do as well, and in what; "none" where none does, empty where none was made.
    """

    site: str
    folder: str
    name: str
    dead: float
    many_dead: bool
    seeds: float
    halves: float
    chance: float
    stable: str
    controls: str


def numbers(fitted: Fitted) -> list[Number]:
    """Numbers of a dictionary on training and held-out rows, side by side."""
    training = fitted.dictionary.training
    if training is None:
        return []
    of = [training.metrics.get(split) for split in ("train", "held_out")]
    n_modes = fitted.dictionary.n_modes

    def both(name: str, says: str, text: Any) -> Number:
        train, held_out = ("\N{EN DASH}" if one is None else text(one) for one in of)
        return Number(name, train, held_out, says)

    rows = [
        both(name, says, lambda one, key=key, digits=digits: fixed(getattr(one, key), digits))
        for name, key, digits, says in _NUMBERS
    ]
    alive = both("Modes in use", f"of {count(n_modes)}", lambda one: count(one.n_alive))
    dead = both(
        "Dead modes",
        "that none of these inputs uses",
        lambda one: percent(1 - one.n_alive / n_modes),
    )
    inputs = both("Inputs", "", lambda one: count(one.n_rows))
    return [inputs, *rows[:4], rows[4], alive, dead, *rows[5:]]


def check_line(site: SitePart, fitted: Fitted) -> CheckLine:
    """The line of one dictionary in the table of the first page."""
    table, dead = fitted.stability, fitted.dead_share
    found = dict.fromkeys(("seed_cosine", "half_cosine", "chance"), math.nan)
    stable = ""
    if table is not None:
        found = {key: float(table[key].mean()) for key in found}
        both = (table["seed_cosine"] >= STABLE) & (table["half_cosine"] >= STABLE)
        stable = f"{count(both.sum())} of {count(table['seed_cosine'].notna().sum())}"
    return CheckLine(
        site=site.key,
        folder=site.folder,
        name=fitted.name,
        dead=dead,
        many_dead=dead > MANY_DEAD,
        seeds=found["seed_cosine"],
        halves=found["half_cosine"],
        chance=found["chance"],
        stable=stable,
        controls="" if fitted.controls is None else _names(as_good(fitted)) or "none",
    )


def check_lines(run: RunPart) -> list[CheckLine]:
    """One line a dictionary."""
    return [check_line(site, fitted) for site in run.sites for fitted in site.fitted]


def as_good(fitted: Fitted) -> dict[str, str]:
    """Controls that do as well as the dictionary, and in what."""
    if fitted.controls is None:
        return {}
    return {
        control: " and ".join(_MEASURES[column] for column in columns)
        for control, columns in rivals_as_good(fitted.controls).items()
    }


def _names(found: dict[str, str]) -> str:
    return ", ".join(f"{_CONTROLS[control][0]} ({what})" for control, what in found.items())


def control_rows(fitted: Fitted) -> list[dict[str, Any]]:
    """The table of controls, with names for people and whether they do as well."""
    if fitted.controls is None:
        return []
    equal, rows = as_good(fitted), []
    for row in fitted.controls.to_dict("records"):
        name, what = _CONTROLS[row["rival"]]
        rows.append({str(k): v for k, v in row.items()} | {
            "name": name, "what": what, "as_good": equal.get(row["rival"], ""),
        })  # fmt: skip
    return rows


def sentences(run: RunPart, fitted: Fitted) -> Iterator[str]:
    """What was found about a dictionary, in words."""
    if by_chance := chance(run, fitted):
        yield by_chance
    if fitted.dead_share > MANY_DEAD:
        yield (
            f"{percent(fitted.dead_share)} of the {count(fitted.modes.n_modes)} modes are dead on "
            "held-out inputs: more modes than these inputs can keep apart, or too short a training."
        )
    if fitted.controls is not None:
        said = rival_words(fitted.controls)
        yield from said
        if not said:
            yield (
                "No control does as well on held-out inputs, neither in R\N{SUPERSCRIPT TWO} nor "
                "in how well modes single out labels."
            )
    if fitted.stability is not None:
        yield _stability_words(fitted)


def chance(run: RunPart, fitted: Fitted) -> str:
    """How well modes correlate with shuffled labels, in a sentence; empty without that control."""
    shuffled = run.shuffled_best(fitted)
    if shuffled is None:
        return ""
    middle, by_chance = (
        fixed(float(values.double().nanquantile(0.5)))
        for values in (fitted.correlation.max(1).values, shuffled)
    )
    return (
        f"The median mode correlates by {middle} with the label that fits it best; when the labels "
        f"are shuffled, by {by_chance}: so much comes by chance. Both on training rows."
    )


def warnings(run: RunPart) -> Iterator[str]:
    """Dead modes and controls that do as well, of all sites."""
    every = [(site, fitted) for site in run.sites for fitted in site.fitted]
    for held_out, whom in ((True, "no held-out input"), (False, "no input")):
        shares = [
            (site.key, one.dead_share if held_out else one.modes.share_dead, one.modes.n_modes)
            for site, one in every
            if one.has_held_out is held_out
        ]
        dead = [f"{key} {percent(s)} of {count(n)}" for key, s, n in shares if s > MANY_DEAD]
        if dead:
            yield f"Many modes are dead, that is, used by {whom}: {'; '.join(dead)}."
    equal = [f"{site.key}: {_names(found)}" for site, one in every if (found := as_good(one))]
    if equal:
        yield f"Controls do as well as the dictionary: {'; '.join(equal)}."


def _stability_words(fitted: Fitted) -> str:
    table = fitted.stability
    if table is None or table["seed_cosine"].isna().all():
        return "Stability was measured, but every mode is dead."
    seeds, halves, by_chance = (
        fixed(float(torch.tensor(table[key].to_numpy()).nanmean()))
        for key in ("seed_cosine", "half_cosine", "chance")
    )
    both = (table["seed_cosine"] >= STABLE) & (table["half_cosine"] >= STABLE)
    return (
        f"Fitted again with {count(table['n_seeds'].iloc[0] - 1)} other seeds, a mode finds a "
        f"partner with a cosine of {seeds} on average, on either half of the inputs {halves}, by "
        f"chance {by_chance}; modes of the two halves find each other with "
        f"{fixed(table['between_halves'].iloc[0])}. {count(both.sum())} of "
        f"{count(table['seed_cosine'].notna().sum())} modes in use are stable: {STABLE:g} or more "
        "over seeds and over halves."
    )
