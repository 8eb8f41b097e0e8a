"""Sentences on what was found: about the run, about its dictionaries, about edits."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

import pandas
import torch

from condec.basis.errors import DataError
from condec.dictionary import rival_words
from condec.dictionary.fitting.train import MANY_DEAD
from condec.effects import ControlMatrix
from condec.explanation import ALIKE, LEAST_USERS
from condec.modes import Hierarchy
from condec.report.figures import rankings_in
from condec.report.reading import DictionaryPart, RunPart
from condec.report.tables import (
    R2,
    STABLE,
    leading_ranking,
    mean_cosine,
    rivals_in_words,
    stable_modes,
)
from condec.report.words import count, fixed, listed, percent, twin_words
from condec.store import STATISTICS, TREND, compare_trends

_STATISTICS: Final = {
    one.column("contribution"): one.subject + (" of contributions" if len(one.of) > 1 else "")
    for one in STATISTICS
}
"""Statistics whose trends are put into words."""
COMPLETE_WITHIN: Final = 0.05
"""A median completeness further from 1 than this is worth a warning."""
SPREAD_WITHIN: Final = 0.5
"""So is a range from the 5th to the 95th percentile that is wider than this."""
GAP: Final = 0.2
"""So is an R2 that is by more than this lower on held-out inputs than on those fitted."""
_WITHOUT_LABEL: Final = ("random", "random_modes")
_OF_MODES: Final = (
    "log_odds_modes", "modes", "best_mode", "mode_sum", "activation_modes", "random_modes",
)  # fmt: skip
"""Rankings that come from a dictionary, which must beat all others."""
_VERDICTS: Final = {
    "better": "more selective than", "equal": "not told apart from", "worse": "less selective than",
}  # fmt: skip
_STEERED: Final = {
    "activation": "the mode (how activations go with its loading)",
    "atom": "its atom",
    "mean_activation": "the difference of mean activations",
    "random_mode": "other modes",
    "random": "random directions",
}
_NO_RIVAL: Final = (
    "No rival does as well on held-out inputs, neither in R\N{SUPERSCRIPT TWO} nor in how well "
    "modes single out labels."
)
_MOST_PAIRS: Final = 3


# --- the run ------------------------------------------------------------------------------


def warnings(run: RunPart) -> Iterator[str]:
    """Say what a reader should know before believing the rest."""
    store, several = run.store, len(run.learners) > 1
    yield from (f"Left out: {one.rstrip('.')}." for one in run.left_out)
    skipped = store.n_samples - len(store)
    if skipped:
        ids = store.to_xarray()["inputs"]["id"].to_numpy()[~store.valid.numpy()]
        some = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
        yield f"{count(skipped)} of {count(store.n_samples)} inputs were left out: {some}."
    yield from _about_completeness(run)
    named = [(f"{s.key} ({p.name})" if several else s.key, p) for s, p in run.parts]
    yield from _about_modes(named)
    equal = [f"{name}: {found}" for name, part in named
             if (found := rivals_in_words(part)) not in ("", "none")]  # fmt: skip
    if equal:
        yield f"Rivals do as well as the dictionary: {listed(equal)}."
    if not bool((store.labels >= 0).any()):
        yield "The inputs have no labels: correlations with labels and control curves are left out."
    elif run.sites and not any(part.has_held_out for _, part in run.parts):
        yield "No inputs were held out: all figures are those of the inputs that were fitted."


def _about_modes(named: Sequence[tuple[str, DictionaryPart]]) -> Iterator[str]:
    """Say what rows are, and where modes hold for fitted inputs only, or say nothing more."""
    infos = {n: part.store.info(part.site) for n, part in named if part.rows == "positions"}
    if infos:
        kept = [f"{name} {count(i.n_kept)} of {count(i.n_places)}" for name, i in infos.items()]
        yield (
            f"Rows are positions, so many of every input: {listed(kept)}. {R2}, modes per input, "
            "rivals and stability are those of positions; the loading of a mode on an input is the "
            "sum over its positions, estimated where some were not kept."
        )
    nothing, less = [], []
    for name, part in named:
        high, low = (part.measured("r2", split) for split in ("train", "held_out"))
        both = f"{name} {fixed(low)} ({fixed(high)})"
        nothing += [both] * (low <= 0)
        less += [both] * (low > 0 and high - low > GAP)
    if nothing:
        yield (
            f"{R2} is 0 or below on held-out inputs (in brackets: on those fitted): "
            f"{listed(nothing)}. Modes there describe the inputs that were fitted and no "
            "others: believe none of them. Collect more inputs, or try a simpler learner (nmf, "
            "pca) and other numbers of modes."
        )
    if less:
        yield (
            f"{R2} is much lower on held-out inputs than on those fitted (in brackets): "
            f"{listed(less)}. Part of what these modes say holds for the fitted inputs alone: "
            "go by the held-out figures. More inputs or fewer modes (n_modes) bring the two closer."
        )
    seen = [(name, part) for name, part in named if part.has_held_out and part.n_used]
    unseen = [name for name, part in seen if int(part.users.max()) < LEAST_USERS]
    if unseen:
        yield (
            f"No mode is used by {LEAST_USERS} held-out inputs: {listed(unseen)}. Cards there "
            "are of the modes that most inputs use, and nothing shows that they hold for others. "
            "Hold out more inputs (held_out), collect more, or take fewer modes (n_modes)."
        )
    untold = [n for n, part in seen if part.has_labels and bool(part.best[1].isnan().all())]
    if untold:
        yield (
            "No label that fits a mode best is among the held-out inputs (and among others): "
            f"{listed(untold)}. That cards there are named after labels rests on the fitted inputs "
            "alone. Collect more inputs of each label, or hold out more (held_out)."
        )
    dead = [f"{name} {percent(part.dead_share)} of {count(part.n_modes)}" for name, part in named
            if part.dead_share > MANY_DEAD]  # fmt: skip
    if dead:
        whom = "no held-out input" if any(part.has_held_out for _, part in named) else "no input"
        yield (
            f"Many modes are dead, that is, used by {whom}: {listed(dead)}. Fewer modes "
            "(n_modes), or a longer training (steps), leave fewer dead."
        )
    alike = [f"{name} {count(part.n_alike)} of {count(part.n_used)}" for name, part in named
             if part.n_alike > MANY_DEAD * part.n_used]  # fmt: skip
    if alike:
        yield (
            f"Many modes in use have nearly equal atoms (cosine above {ALIKE:g}) and share a card: "
            f"{listed(alike)}. Fewer modes (n_modes) say the same."
        )


def _about_completeness(run: RunPart) -> Iterator[str]:
    off, wide, at = [], [], torch.tensor((0.05, 0.5, 0.95), dtype=torch.float64)
    known = ((site, site.completeness) for site in run.sites if site.completeness is not None)
    for site, values in known:
        low, middle, high = values.double().quantile(at).tolist()
        if abs(middle - 1) > COMPLETE_WITHIN:
            off.append(f"{site.key} {fixed(middle)}")
        elif high - low > SPREAD_WITHIN:
            wide.append(f"{site.key} {fixed(low)} to {fixed(high)}")
    if off:
        yield (
            "Contributions do not add up to the change of the target (median completeness): "
            f"{listed(off)}. More steps of integrated gradients bring this closer to 1."
        )
    if wide:
        yield (
            f"Completeness differs much between inputs (5th to 95th percentile): {listed(wide)}."
        )


def trends(run: RunPart) -> list[str]:
    """Say what the statistics do along the network, here and in every twin."""
    if run.statistics is None:
        return []
    return [
        _trend(row, twin_words(twin.twin))
        for twin in run.twins
        if twin.statistics is not None
        for row in compare_trends(run.statistics, twin.statistics).to_dict("records")
        if row["statistic"] in _STATISTICS and math.isfinite(row["trend"] + row["twin_trend"])
    ]


def undefined_statistics(run: RunPart) -> list[str]:
    """Say which statistics the method of the contributions does not give, and why."""
    return [
        f"Left out: {one.title[0].lower()}{one.title[1:]}. {one.why}."
        for one in STATISTICS
        if not one.is_defined(run.store)
    ]


def _trend(row: Mapping[Hashable, Any], twin: str) -> str:
    subject = _STATISTICS[row["statistic"]]
    own, other = (
        "has no trend" if abs(trend) < TREND else "rises" if trend > 0 else "falls"
        for trend in (row["trend"], row["twin_trend"])
    )
    with_twin = f", nor with {twin}" if own == other else f"; with {twin} it {other}"
    if row["shared"]:
        with_twin = f", and with {twin} as well: by itself no sign of training"
    if math.isfinite(row["p"]):
        with_twin += f" (slopes alike: p = {row['p']:.2g})"
    return (
        f"{subject[0].upper()}{subject[1:]} {own} along the network{with_twin}. It is above that "
        f"of {twin} at {row['above']} of {row['sites']} sites."
    )


# --- a dictionary -------------------------------------------------------------------------


def about_dictionary(run: RunPart, part: DictionaryPart) -> Iterator[str]:
    """Say whether a dictionary can be believed, as far as that was measured."""
    yield from about_chance(run, part)
    yield from _about_modes([("this dictionary", part)])
    rivals, stability = part.tables.get("rivals"), part.tables.get("stability")
    if rivals is not None:
        yield from rival_words(rivals) or (_NO_RIVAL,)
    if stability is not None and stability["seed_cosine"].isna().all():
        yield "Stability was measured, but every mode is dead."
    elif stability is not None:
        seeds, halves, by_chance = (
            fixed(mean_cosine(part, key)) for key in ("seed_cosine", "half_cosine", "chance")
        )
        yield (
            f"Fitted again with {count(stability['n_seeds'].iloc[0] - 1)} other seeds, a mode "
            f"finds a partner with a cosine of {seeds} on average, on either half of the inputs "
            f"{halves}, by chance {by_chance}; modes of the two halves find each other with "
            f"{fixed(stability['between_halves'].iloc[0])}. {stable_modes(part)} modes in use are "
            f"stable: {STABLE:g} or more over seeds and over halves."
        )


def about_chance(run: RunPart, part: DictionaryPart) -> Iterator[str]:
    """Say how well modes correlate with shuffled labels, where there is such a twin."""
    shuffled = run.shuffled_best(part)
    if shuffled is None:
        return
    both = (part.correlation.max(1).values, shuffled)
    middle, by_chance = (fixed(values.double().nanquantile(0.5)) for values in both)
    yield (
        f"The median mode correlates by {middle} with the label that fits it best; when the labels "
        f"are shuffled, by {by_chance}: so much comes by chance. Both on training rows."
    )


# --- control curves -----------------------------------------------------------------------


def about_curves(part: DictionaryPart) -> Iterator[str]:
    """Say where modes beat what needs no dictionary; nothing where that was not compared."""
    compared = part.tables.get("control_comparison")
    if compared is None:
        return
    named = rankings_in(pandas.concat([compared["ranking"], compared["against"]]))
    leading = leading_ranking(compared)
    rows = compared[(compared["ranking"] == leading) & (compared["verdict"] != "undefined")]
    rows = rows[~rows["against"].isin(_OF_MODES)]
    for (edit, replacement), some in rows.groupby(["edit", "replacement"], sort=False):
        beaten = []
        for verdict, words in _VERDICTS.items():
            found = [
                f"{named[row['against']][0]} ({fixed(row['difference'], 3)}, "
                f"{fixed(row['low'], 3)} to {fixed(row['high'], 3)})"
                for row in some[some["verdict"] == verdict].to_dict("records")
            ]
            beaten += [f"{words} {', '.join(found)}"] if found else []
        free = some[~some["against"].isin(_WITHOUT_LABEL)]["verdict"]
        does = "does better" if (free == "worse").any() else "does as well"
        end = "" if (free == "better").all() else f" So a ranking without a dictionary {does} here."
        verb = "ablated" if edit == "ablate" else "preserved"
        yield (
            f"Units {verb} by {named[leading][0]} (replaced by "
            f"{str(replacement).replace('_', ' ')}) are {listed(beaten)}.{end}"
        )


# --- what else edits do -------------------------------------------------------------------


def about_side_effects(
    part: DictionaryPart, n_units: int, hierarchy: Hierarchy | None = None
) -> Iterator[str]:
    """Say what else edits do, as far as it was measured."""
    for matrix in matrices(part, n_units):
        yield _own_and_others(matrix)
        if matrix.replacement == "zero":
            yield from _shared(matrix)
            yield from _agreement(matrix, hierarchy)
    steering, interactions = part.tables.get("steering"), part.tables.get("interactions")
    if steering is not None:
        yield _steering(steering)
    if interactions is not None:
        yield _interactions(interactions)
    if (of_groups := part.tables.get("superclass_control")) is not None:
        yield from _superclasses(of_groups)


def matrices(part: DictionaryPart, n_units: int) -> list[ControlMatrix]:
    """Read the control matrices of a dictionary, one for each edit and replacement."""
    if (found := part.tables.get("control_matrix")) is None:
        return []
    groups = found.groupby(["edit", "replacement"], sort=False)
    return [ControlMatrix.from_frame(rows, n_units) for _, rows in groups]


def _own_and_others(matrix: ControlMatrix) -> str:
    row = matrix.summary().set_index("quantity").loc["accuracy"]
    ablated = matrix.edit == "ablate"
    verb, which = ("ablated", "they are") if ablated else ("preserved alone", "all others are")
    to = "0" if matrix.replacement == "zero" else "their mean"
    return (
        f"With {matrix.count} of {matrix.n_units} units of a label {verb} ({which} set to {to}), "
        f"it keeps {percent(row['own'])} of its accuracy and another label "
        f"{percent(row['others'])}, on average."
    )


def _shared(matrix: ControlMatrix) -> Iterator[str]:
    """Name the pairs of labels that share most, by what the edit of either does to the other."""
    overlap, names = matrix.overlap(), matrix.label_names
    pairs = [
        (-float(overlap[i, j]), f"{names[i]} and {names[j]}")
        for i in range(len(overlap))
        for j in range(i)
        if overlap[i, j] > 0  # NaN is left out, being above nothing
    ]
    if len(overlap) < _MOST_PAIRS or not pairs:
        return
    # By name where equal.
    most = ", ".join(f"{names} ({fixed(-value)})" for value, names in sorted(pairs)[:_MOST_PAIRS])
    does = "change of output that preserving either alone"
    if matrix.edit == "ablate":
        does = "loss of output that ablating either"
    yield f"Labels that share most, by the {does} does to the other: {most}."


def _agreement(matrix: ControlMatrix, hierarchy: Hierarchy | None) -> Iterator[str]:
    """Say whether sharing follows the superclasses, where there are some to compare."""
    try:
        found = None if hierarchy is None else matrix.agreement(hierarchy)
    except DataError:
        return
    if found is not None and found.correlation == found.correlation:
        yield (
            f"{'Labels' if found.p_value <= 0.05 else 'No sign that labels'} of one superclass "
            "share more than labels of two: correlation of sharing with a common superclass "
            f"{fixed(found.correlation)} (p = {fixed(found.p_value, 3)} by permuted labels, "
            f"{found.n_within} pairs within and {found.n_between} between)."
        )


def _superclasses(found: pandas.DataFrame) -> Iterator[str]:
    """Say of every superclass what accuracy an edit by its modes leaves, with its interval."""
    for (name, edit), rows in found.groupby(["superclass", "edit"], sort=False):
        at = rows.set_index(["ranking", "group"])
        parts = [
            f"{words} {percent(at.loc[key, 'top1'])} (before "
            f"{percent(at.loc[('unedited', key[1]), 'top1'])}, 95 % interval "
            f"{percent(at.loc[key, 'top1_low'])} to {percent(at.loc[key, 'top1_high'])})"
            for words, key in (
                ("its labels", ("modes", "members")),
                ("others", ("modes", "others")),
            )
        ]
        done = "Ablating" if edit == "ablate" else "Preserving alone"
        other = percent(at.loc[("mean_contribution", "members"), "top1"])
        yield (
            f"{done} the units of superclass {name} leaves an accuracy of {' and of '.join(parts)};"
            f" by mean contribution, without modes, its labels {other}."
        )


def _steering(curve: pandas.DataFrame) -> str:
    strength = curve["strength"].max()
    at = curve[curve["strength"] == strength].groupby("direction")["converted"].mean()
    parts = [f"{percent(at[name])} along {text}" for name, text in _STEERED.items() if name in at]
    # By more than what rounds away; NaN, of a direction that was not tried, is not above.
    as_well = at.get("activation", math.nan) <= at.get("mean_activation", math.nan) + 0.01
    end = " So the difference of means, without a dictionary, does as well." if as_well else ""
    return (
        f"Steered at strength {strength:g}, inputs of other labels become the label: "
        f"{', '.join(parts)}.{end}"
    )


def _interactions(found: pandas.DataFrame) -> str:
    rows = found[found["quantity"] == "logit"]
    singles = rows[["single_a", "single_b"]].abs().stack().median()
    n_sure = int(((rows["low"] > 0) | (rows["high"] < 0)).sum())
    n_pairs = len(rows[["mode_a", "mode_b"]].drop_duplicates())
    which = "one pair of modes" if n_pairs == 1 else f"{n_pairs} pairs of modes"
    return (
        f"Ablating {which} together differs from the sum of what each does alone by "
        f"{fixed(rows['interaction'].abs().median())} of a label's output, at the median; a mode "
        f"alone changes it by {fixed(singles)}. Of {count(len(rows))} such differences (a pair and "
        f"a label each), {count(n_sure)} are told apart from 0 by their 95 % interval."
    )
