"""Tables of the report. A column is one entry: its head, its text for a row, what it means."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal
from urllib.parse import quote

import pandas
import torch
from markupsafe import Markup

from condec.dictionary import rivals_as_good
from condec.dictionary.fitting.train import MANY_DEAD
from condec.effects import LEADING, mean_over_labels
from condec.explanation import LEAST_USERS, held_out_value
from condec.modes import UNNAMED, annotations
from condec.report.figures import rankings_in
from condec.report.reading import SPLITS, DictionaryPart, RunPart, SitePart
from condec.report.words import DASH, breakable, count, fixed, percent, twin_words
from condec.store import QUARTILES
from condec.store import STATISTICS as OF_SITES

STABLE: Final = 0.9
"""Least cosine, over seeds and over halves, of a mode that is called stable."""
R2: Final = "R\N{SUPERSCRIPT TWO}"
MEASURES: Final = {"r2": R2, "label_correlation": "label correlation"}
_NAMES: Final = {
    "dictionary": ("this dictionary", ""),
    "frozen_decoder": ("random atoms", "only the encoder was trained"),
    "frozen_encoder": ("random encoder", "only the atoms were trained"),
    "shuffled_units": ("shuffled units", "every unit's values shuffled over inputs"),
    "activations": ("activations", "at equal L0"),
    "pca": ("PCA", "at equal L0"),
    "nmf": ("NMF", "at equal L0"),
}
"""Name of each rival, and a note on it."""
_REPLACEMENTS: Final = ("zero", "mean", "class_mean", "resample")
"""The site's selectivity is that of the first of these that was made."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    `name` is its head, `title` shows when the mouse rests on it, `text` writes a row's cell (Markup
    stays as it is), and `shown` tells from all rows whether the column stands in the table.
    """

    name: str
    text: Callable[[Any], str]
    title: str = ""
    kind: Literal["number", "head", "word", "note"] = "number"
    shown: Callable[[Sequence[Any]], bool] = lambda _: True


def shown(columns: Sequence[Column], rows: Sequence[Any]) -> list[Column]:
    """Choose the columns that stand in a table of these rows."""
    return [column for column in columns if column.shown(rows)]


def pair(text: str, other: str) -> Markup:
    """Return two texts, the second one in grey."""
    return Markup('{} <span class="faint">{}</span>').format(text, other)


# --- one line a site and learner ----------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One learner at one site; `part` is None where no dictionary was fitted."""

    site: SitePart
    part: DictionaryPart | None


def lines(run: RunPart) -> list[Line]:
    """List every learner of every site; a site without one has a line as well."""
    return [Line(site, part) for site in run.sites for part in site.parts or (None,)]


def _of(text: Callable[[DictionaryPart], str]) -> Callable[[Line], str]:
    return lambda line: DASH if line.part is None else text(line.part)


def _link(line: Line, anchor: str = "") -> Markup:
    link = Markup('<a href="sites/{}.html{}">{}</a>')
    return link.format(quote(line.site.folder), anchor, breakable(line.site.key))


def _complete(line: Line) -> str:
    if not line.site.info.cut:
        return Markup('<span class="faint" title="the site does not cut the network">no cut</span>')
    values = line.site.completeness
    return fixed(None if values is None else values.quantile(0.5))


def _measured(name: str, digits: int = 2) -> Callable[[Line], str]:
    """Write a number on held-out rows; where there are none, on training rows, which is said."""

    def text(part: DictionaryPart) -> str:
        value = fixed(part.measured(name), digits)
        return pair(value, SPLITS["train"]) if part.split == "train" else value

    return _of(text)


def label_correlation(part: DictionaryPart) -> float:
    """Return the median over modes of the held-out correlation with the best training label."""
    return float(part.best[1].double().nanquantile(0.5)) if part.has_labels else math.nan


def selectivity(part: DictionaryPart, edit: str) -> float:
    """Return the mean selectivity over labels of the leading ranking by modes."""
    if part.areas is None:
        return math.nan
    rows = part.areas[part.areas["edit"] == edit]
    rows = rows[rows["ranking"] == leading_ranking(part.areas)]
    first = min(rows["replacement"], key=_REPLACEMENTS.index, default="")
    return float(rows.loc[rows["replacement"] == first, "auc_difference"].mean())


def leading_ranking(rankings: pandas.DataFrame) -> str:
    """Return the choice by modes that a table of rankings is read for."""
    present = set(rankings["ranking"])
    return next((name for name in LEADING if name in present), "modes")


_LEARNER: Final = Column(
    "Learner", _of(lambda p: p.name), kind="word",
    shown=lambda rows: len({line.part.name for line in rows if line.part is not None}) > 1,
)  # fmt: skip
SITES: Final = (
    Column("Site", _link, kind="head"),
    _LEARNER,
    Column("Units", lambda line: count(line.site.info.n_units)),
    Column("Positions", lambda line: count(line.site.info.n_positions)),
    Column("Complete", _complete, "median over inputs; only where all flow passes the site"),
    Column("Modes in use",
           _of(lambda p: pair(count(p.n_used), f"/ {count(p.n_modes)}"))),
    Column(R2, _measured("r2"), "on held-out inputs"),
    Column("Modes per input", _measured("l0", 1), "modes in use for one held-out input"),
    Column("Label corr.", _of(lambda p: fixed(label_correlation(p))),
           "median over modes, held out, of the correlation with the label that fits best on "
           "training rows"),
    Column("Ablate", _of(lambda p: fixed(selectivity(p, "ablate"))), "selectivity"),
    Column("Preserve", _of(lambda p: fixed(selectivity(p, "preserve"))), "selectivity"),
)  # fmt: skip
"""The table of sites."""


# --- whether dictionaries can be believed -------------------------------------------------


def mean_cosine(part: DictionaryPart, column: str) -> float:
    """Return the mean over modes of a column of the table of stability; NaN without it."""
    found = part.tables.get("stability")
    return math.nan if found is None else float(found[column].mean())


def stable_modes(part: DictionaryPart) -> str:
    """Count the modes in use that other seeds and both halves find; empty if not measured."""
    found = part.tables.get("stability")
    if found is None:
        return ""
    both = (found[["seed_cosine", "half_cosine"]] >= STABLE).all(axis=1)
    return f"{count(both.sum())} of {count(found['seed_cosine'].notna().sum())}"


def as_good(part: DictionaryPart) -> dict[str, str]:
    """Return rivals that do as well as the dictionary, and in what."""
    found = part.tables.get("rivals")
    equal = {} if found is None else rivals_as_good(found)
    return {rival: " and ".join(MEASURES[c] for c in columns) for rival, columns in equal.items()}


def rivals_in_words(part: DictionaryPart) -> str:
    """List rivals that do as well; "none" if none does, empty if there are none."""
    found = [f"{_NAMES[rival][0]} ({what})" for rival, what in as_good(part).items()]
    return "" if part.tables.get("rivals") is None else ", ".join(found) or "none"


def _with(table: str) -> Callable[[Sequence[Line]], bool]:
    return lambda rows: any(line.part and table in line.part.tables for line in rows)


def _cosine(name: str, column: str) -> Column:
    return Column(name, _of(lambda p: fixed(mean_cosine(p, column))), "mean over modes in use",
                  shown=_with("stability"))  # fmt: skip


CHANCE: Final = (
    Column("Site", lambda line: _link(line, f"#{line.part.name}"), kind="head"),
    _LEARNER,
    Column("Dead", _of(lambda p: percent(p.dead_share) + ", too many" * (p.dead_share > MANY_DEAD)),
           "share of the modes that no held-out input uses"),
    _cosine("Other seeds", "seed_cosine"),
    _cosine("Half the inputs", "half_cosine"),
    _cosine("By chance", "chance"),
    Column("Stable modes", _of(lambda p: stable_modes(p) or DASH),
           "0.9 or more, over seeds and over halves", shown=_with("stability")),
    Column("Rivals that do as well", _of(lambda p: rivals_in_words(p) or DASH), kind="word",
           shown=_with("rivals")),
)  # fmt: skip
"""The table of dictionaries, and whether they can be believed."""


def number_column(
    name: str, key: str, digits: int, title: str = "", *, optional: bool = False
) -> Column:  # fmt: skip
    """Return a column of numbers; an optional one stands where some row has one."""

    def known(rows: Sequence[Mapping[str, Any]]) -> bool:
        return not optional or any(row.get(key) == row.get(key) is not None for row in rows)

    return Column(name, lambda row: fixed(row.get(key), digits), title, shown=known)


RIVALS: Final = (
    Column("Held out", lambda row: pair(*_NAMES[row["rival"]]), kind="head"),
    number_column(R2, "r2", 3),
    number_column(f"{R2}, grand mean", "r2_grand", 3),
    number_column("Cosine", "cosine", 3),
    number_column("Modes per input", "l0", 1),
    number_column("Modes in use", "n_alive", 0),
    number_column("Label corr.", "label_correlation", 2,
            "of every label's best mode, chosen on training rows; mean over labels"),
    Column("", lambda row: f"does as well in {row['equal']}" if row["equal"] else "", kind="word"),
)  # fmt: skip
"""The table of a dictionary and its rivals."""


def rival_rows(part: DictionaryPart) -> list[dict[Hashable, Any]]:
    """Give a dictionary and its rivals; `equal` says in what one does as well."""
    found = part.tables.get("rivals", pandas.DataFrame({"rival": []}))
    return found.assign(equal=found["rival"].map(as_good(part)).fillna("")).to_dict("records")


_NUMBERS: Final = (
    ("Inputs", "n_rows", 0, ""),
    (R2, "r2", 3, "share of the variance within units explained"),
    (f"{R2}, grand mean", "r2_grand", 3, "the paper's: one mean for all entries"),
    ("Cosine", "cosine", 3, "between input and reconstruction"),
    ("Shrinkage", "shrinkage", 3, "length of the reconstruction relative to the input's"),
    ("Modes per input", "l0", 1, "L0"),
    ("Modes in use", "n_alive", 0, "of {n_modes}"),
    ("Dead modes", "dead", 0, "that none of these inputs uses"),
    ("Loading Hoyer", "loading_hoyer", 3, "1: an input stands on one mode, 0: on all alike"),
    ("Atom Hoyer", "atom_hoyer", 3, "1: a mode is one unit, 0: all units alike"),
    ("Coherence", "coherence", 3, "largest cosine between two modes in use"),
    ("Mean coherence", "mean_coherence", 3, "mean cosine between two modes in use"),
    ("Effective rank", "effective_rank", 1, "directions that the modes in use span"),
)
"""Numbers of a dictionary: name, field of its record, digits, what it says."""
NUMBERS: Final = (
    Column("", lambda row: row["name"], kind="head"),
    Column("Training", lambda row: row["train"]),
    Column("Held out", lambda row: row["held_out"]),
    Column("", lambda row: row["note"], kind="note"),
)
"""The table of a dictionary's numbers."""


def number_rows(part: DictionaryPart) -> Iterator[dict[str, str]]:
    """Give the numbers of a dictionary on training and held-out rows, side by side."""
    training, n_modes = part.training, part.n_modes
    if training is None:
        return
    for name, key, digits, note in _NUMBERS:
        if part.rows == "positions":
            name = name.replace("Input", "Position").replace("input", "position")
        texts = dict.fromkeys(SPLITS, DASH)
        for split, of in training.metrics.items():
            if key == "dead":
                texts[split] = percent(1 - of.n_alive / n_modes)
            else:
                value = getattr(of, key)
                texts[split] = fixed(value, digits) if digits else count(value)
        yield {"name": name, **texts, "note": note.format(n_modes=count(n_modes))}


# --- modes --------------------------------------------------------------------------------


def mode_rows(run: RunPart, part: DictionaryPart) -> list[dict[str, Any]]:
    """List all modes in figures, those with several held-out users and what they tell first.

    `row` is that of `Modes.atoms`; `train` and `held_out` are correlations with the `label` that is
    best on training rows, empty and NaN without labels; `means` is what the mode stands for, with
    the interval of its held-out correlation (`condec.meaning`), `stands` also what people say,
    `why` why it has no name. `use` and `held_out_use` are shares of inputs, `users` counts those
    held out (all, where none were); `seeds` and `halves` are cosines with partners in other fits,
    NaN if not measured. The order is that of `leading_modes`, but that labels may lack a mode.
    """
    modes, stability = part.modes, part.tables.get("stability")
    n, ids = len(modes), modes.ids.tolist()
    of: dict[str, list[Any]] = {"row": [*range(n)], "id": ids, "label": [""] * n}
    of |= dict.fromkeys(("train", "held_out", "seeds", "halves"), [math.nan] * n)
    if part.has_labels:
        best, held_out = part.best
        of["label"] = [run.label(label) for label in best.tolist()]
        of["train"] = part.correlation.max(1).values.tolist()
        of["held_out"] = held_out.tolist()
    names = _names_of(part)
    of["means"] = [names.get(number, "") for number in ids]
    for row, said in annotations(part.folder.path, modes).items():
        number = int(modes.ids[row])
        words = f"{said.name or said.note} ({said.group})" if said.group else said.name or said.note
        names[number] = f"{words}; {names[number]}" if names.get(number) else words
    of["stands"] = [names.get(number, "") for number in ids]
    found: Any = part.tables.get("meaning", {})  # runs of earlier versions do not say why
    why = dict(zip(found["id"], found["why"], strict=True)) if "why" in found else {}
    of["why"] = [why.get(number, "") for number in ids]
    of["use"], of["held_out_use"] = (part.density(s).tolist() for s in ("train", "held_out"))
    if stability is not None:
        for name, column in (("seeds", "seed_cosine"), ("halves", "half_cosine")):
            near = dict(zip(stability["mode"].tolist(), stability[column].tolist(), strict=True))
            of[name] = [near.get(number, math.nan) for number in ids]
    of["users"], enough = part.users.tolist(), part.users >= LEAST_USERS
    of["enough"] = enough.tolist()
    used = partial(modes.of_loadings, lambda part: (part > 0).sum(0))
    value = held_out_value(modes) if bool(enough.any()) else used()
    of["value"] = value.tolist()
    rows = [dict(zip(of, line, strict=True)) for line in zip(*of.values(), strict=True)]
    return sorted(rows, key=lambda row: (not row["enough"], -row["value"]))


def _names_of(part: DictionaryPart) -> dict[int, str]:
    """Return what modes stand for, by their numbers; what nothing shows is "unnamed"."""
    found = part.tables.get("meaning")
    if found is None:
        return {}
    names = dict[int, str]()
    for row in found.to_dict("records"):
        interval = f"r {fixed(row['correlation'])}, {fixed(row['low'])} to {fixed(row['high'])}"
        name = str(row["name"])
        names[int(row["id"])] = name if name == UNNAMED else f"{name} ({interval})"
    return names


# --- statistics and control curves --------------------------------------------------------


def _with_quartiles(name: str, key: str, digits: int, title: str) -> Column:
    """Return a column of medians, with quartiles where a table has them; none without any."""

    def text(row: Mapping[str, Any]) -> str:
        middle, low, high = (fixed(row.get(f"{key}{end}"), digits) for end in QUARTILES)
        return middle if low == DASH else pair(middle, f"{low} to {high}")

    return Column(
        name,
        text,
        title,
        shown=lambda rows: any(row.get(key) == row.get(key) is not None for row in rows),
    )


_SHORT: Final = {"contribution": "contrib.", "activation": "activ."}
STATISTICS: Final = (
    Column("Site", lambda row: breakable(row["site"]), kind="head"),
    Column("Units", lambda row: count(row["units"])),
    *(
        _with_quartiles(
            one.head + (f", {_SHORT[of]}" if len(one.of) > 1 else ""), one.column(of), one.digits,
            one.axis,
        )
        for one in OF_SITES
        for of in one.of
    ),
    _with_quartiles("Complete", "completeness", 3, "sum of contributions / change of the target"),
)  # fmt: skip
"""The table of `layer_statistics`."""


def statistics(run: RunPart) -> list[tuple[str, list[dict[Hashable, Any]]]]:
    """List the statistics of the network and of its twins, with the words of the twin."""
    twins = [(twin_words(twin.twin), twin.statistics) for twin in run.twins]
    tables = (("", run.statistics), *twins)
    return [(name, found.to_dict("records")) for name, found in tables if found is not None]


def curve_rows(part: DictionaryPart) -> Iterator[dict[str, Any]]:
    """Give all rankings of a dictionary's control curves, in the order of their names.

    `of` are the summaries of their curves, a row a label; `verdict` says what the leading choice by
    modes is, compared with this ranking; empty for that choice, and where nothing was compared.
    """
    if part.areas is None:
        return
    compared, verdicts = part.tables.get("control_comparison"), {}
    if compared is not None:
        own = compared[compared["ranking"] == leading_ranking(compared)]
        verdicts = own.set_index(["edit", "replacement", "against"])["verdict"].to_dict()
    for (edit, replacement), rows in part.areas.groupby(["edit", "replacement"], sort=False):
        for name, (words, _) in rankings_in(rows["ranking"]).items():
            yield {
                "edit": edit, "replacement": str(replacement).replace("_", " "),
                "ranking": words, "of": rows[rows["ranking"] == name],
                "verdict": verdicts.get((edit, replacement, name), ""),
            }  # fmt: skip


def _selectivity_words(row: Mapping[str, Any]) -> str:
    values = torch.tensor(row["of"]["auc_difference"].to_numpy())
    middle, low, high = mean_over_labels(values).tolist()
    return fixed(middle) + ("" if math.isnan(low) else f" ({fixed(low)} to {fixed(high)})")


def _half(row: Mapping[str, Any]) -> str:
    doses = row["of"]["half_dose"]
    return pair(percent(doses.mean(), 1), f"{doses.notna().sum()} of {len(doses)}")


CURVES: Final = (
    Column("Edit", lambda row: row["edit"], kind="word"),
    Column("Replaced by", lambda row: row["replacement"], kind="word"),
    Column("Ranking", lambda row: row["ranking"], kind="head"),
    Column("Selectivity", _selectivity_words,
           "(AUC label - AUC others) / AUC others: below 0 is selective when ablated, above 0 "
           "when preserved"),
    Column("Gap of curves", lambda row: fixed(row["of"]["area_between"].mean()),
           "mean distance of the two curves; above 0 is selective"),
    Column("Units for half", _half,
           "share of units at which half of the label's accuracy is lost (ablate) or kept "
           "(preserve), and for how many labels it is"),
    Column("Others lose", lambda row: percent(row["of"]["off_damage"].mean()),
           "share of the others' accuracy that is lost there"),
    Column("Labels", lambda row: str(row["of"]["defined"].sum()),
           "labels behind the selectivity"),
    Column("Modes against it", lambda row: row["verdict"].replace("equal", "not told apart"),
           "the best ranking by modes compared with this one, by selectivity (ablated) or by the "
           "gap of the curves (preserved); not told apart: 0 lies within the 95 % interval over "
           "images and labels", kind="word"),
)  # fmt: skip
"""The table of rankings under edits."""
