"""What control curves say: a table of all rankings, and sentences on where modes win."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from condec.effects import mean_over_labels
from condec.report.figures import rankings_in
from condec.report.reading import SitePart
from condec.report.words import fixed, percent

if TYPE_CHECKING:
    import pandas

_WITHOUT_LABEL: Final = ("random", "random_modes")
_OF_MODES: Final = (
    "log_odds_modes", "modes", "best_mode", "mode_sum", "activation_modes", "random_modes",
)  # fmt: skip
"""Rankings that come from a dictionary; what all others do, it must beat."""
_LEADING: Final = ("log_odds_modes", "modes", "best_mode")
"""Of which choice by modes is spoken: the first of these that was made."""
_VERBS: Final = {"ablate": "ablated", "preserve": "preserved"}


@dataclass(frozen=True)
class ControlLine:
    """One ranking under one edit, means over labels; text as it stands on the page.

    Attributes
    ----------
    edit, replacement, ranking : str
    selectivity : str
        With its interval over labels.
    area_between, half_dose, off_damage : str
        Of the labels where they are defined (`condec.effects.summarise`).
    n_half : str
        For how many labels half is reached.
    n_labels : int
        Labels behind the selectivity.
    verdict : str
        What the leading choice by modes is beside this ranking: "better", "equal" or "worse";
        empty for that choice itself, and where nothing was compared.
    """

    edit: str
    replacement: str
    ranking: str
    selectivity: str
    area_between: str
    half_dose: str
    n_half: str
    off_damage: str
    n_labels: int
    verdict: str


def control_lines(site: SitePart) -> list[ControlLine]:
    """The table of all rankings of a site."""
    if site.areas is None:
        return []
    names = rankings_in(site.areas)
    groups = site.areas.groupby(["edit", "replacement"], sort=False)
    return [
        _line(str(edit), str(replacement), name, words, rows[rows["ranking"] == name], site)
        for (edit, replacement), rows in groups
        for name, (words, _) in names.items()
        if (rows["ranking"] == name).any()
    ]


def control_sentences(site: SitePart) -> Iterator[str]:
    """Where modes beat what needs no dictionary, and where they do not.

    Nothing is said without a comparison (runs of earlier versions, or without resamples).
    """
    if site.comparison is None:
        return
    names = {name: words for name, (words, _) in rankings_in(site.comparison).items()}
    others = site.comparison["against"]
    names |= {name: words for name, (words, _) in _named(others).items()}
    leading = leading_ranking(site.comparison)
    of_modes = site.comparison[site.comparison["ranking"] == leading]
    for (edit, replacement), rows in of_modes.groupby(["edit", "replacement"], sort=False):
        rows = rows[~rows["against"].isin(_OF_MODES) & (rows["verdict"] != "undefined")]
        if not rows.empty:
            begin = f"Units {_VERBS[str(edit)]} by {names.get(leading, leading)}"
            yield _sentence(begin, str(replacement), rows, names)


def leading_ranking(table: "pandas.DataFrame") -> str:
    """The choice by modes that a table of rankings is read for."""
    present = set(table["ranking"])
    return next((name for name in _LEADING if name in present), "modes")


def _sentence(begin: str, replacement: str, rows: "pandas.DataFrame", names: dict[str, str]) -> str:
    free = rows[~rows["against"].isin(_WITHOUT_LABEL)]
    won = {
        verdict: [
            f"{names[row['against']]} ({_difference(row)})"
            for row in rows[rows["verdict"] == verdict].to_dict("records")
        ]
        for verdict in ("better", "equal", "worse")
    }
    parts = [
        f"{start} {', '.join(found)}"
        for start, found in (
            ("more selective than", won["better"]),
            ("not told apart from", won["equal"]),
            ("less selective than", won["worse"]),
        )
        if found
    ]
    begin = f"{begin} (replaced by {replacement.replace('_', ' ')}) are"
    end = ""
    if len(free) and not (free["verdict"] == "better").all():
        end = " So a ranking without a dictionary does as well here."
        if (free["verdict"] == "worse").any():
            end = " So a ranking without a dictionary does better here."
    return f"{begin} {'; '.join(parts)}.{end}"


def _difference(row: Mapping[Any, Any]) -> str:
    difference, low, high = (fixed(row[name], 3) for name in ("difference", "low", "high"))
    return f"{difference}, {low} to {high}"


def _line(
    edit: str, replacement: str, name: str, words: str, rows: "pandas.DataFrame", site: SitePart
) -> ControlLine:
    value, low, high = mean_over_labels(torch.tensor(rows["auc_difference"].to_numpy())).tolist()
    interval = "" if math.isnan(low) else f" ({fixed(low)} to {fixed(high)})"
    return ControlLine(
        edit=edit,
        replacement=replacement.replace("_", " "),
        ranking=words,
        selectivity=f"{fixed(value)}{interval}",
        area_between=fixed(rows["area_between"].mean()),
        half_dose=percent(rows["half_dose"].mean(), 1),
        n_half=f"{rows['half_dose'].notna().sum()} of {len(rows)}",
        off_damage=percent(rows["off_damage"].mean()),
        n_labels=int(rows["defined"].sum()),
        verdict=_verdict(site, edit, replacement, name),
    )


def _verdict(site: SitePart, edit: str, replacement: str, name: str) -> str:
    """What the leading choice by modes is, compared with this ranking."""
    if site.comparison is None:
        return ""
    table = site.comparison
    leading = leading_ranking(table)
    found = table[
        (table["edit"] == edit)
        & (table["replacement"] == replacement)
        & (table["ranking"] == leading)
        & (table["against"] == name)
    ]
    return "" if found.empty else str(found["verdict"].iloc[0])


def _named(rankings: "pandas.Series[str]") -> dict[str, tuple[str, str]]:
    return rankings_in(rankings.to_frame("ranking"))
