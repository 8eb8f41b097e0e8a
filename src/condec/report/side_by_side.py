"""Tables of a dictionary beside units and other dictionaries."""

from collections.abc import Hashable, Mapping
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from condec.report.reading import RunPart
from condec.report.tables import R2, Column, number_column, pair
from condec.report.words import DASH, breakable, count, fixed, percent

UNITS: Final = (
    Column("", lambda row: row["of"], kind="head"),
    Column("Parts", lambda row: {"sum": "sums", "concat": "both"}.get(row["sign"], row["sign"]),
           "the matrix that all of these come from", kind="word"),
    number_column("Number", "n", 0, "columns that vary"),
    number_column("Training", "chosen", 2, "median of the highest correlation with a label"),
    number_column("By chance", "shuffled", 2, "the same with labels shuffled"),
    Column("Held out", lambda row: pair(fixed(row["correlation"]),
                                        f"{fixed(row['low'])} to {fixed(row['high'])}"),
           "median, and middle half, of the correlation with the label that fits best on training "
           "rows"),
    Column("Above 0.2", lambda row: pair(count(row["above"]),
                                         percent(row["above"] / max(row["n"], 1))), "held out"),
    Column("Labels", lambda row: percent(row["labels"]),
           "share of the labels that those stand for"),
)  # fmt: skip
"""The table of `against_units`."""


def _selectivity(name: str, key: str, title: str) -> Column:
    """Return a column of numbers with intervals; it stands where something was edited."""

    def text(row: Mapping[str, Any]) -> str:
        middle, low, high = (fixed(row[f"{key}{end}"]) for end in ("", "_low", "_high"))
        return middle if low == DASH else pair(middle, f"{low} to {high}")

    return Column(name, text, title, shown=lambda rows: any(key in row for row in rows))


JUDGED: Final = (
    Column("Site", lambda row: Markup('<a href="sites/{}.html#judged">{}</a>').format(
               quote(row["folder"]), breakable(row["site"])), kind="head",
           shown=lambda rows: any("site" in row for row in rows)),
    Column("Dictionary", lambda row: row["name"] if row["alive"] == row["alive"] else
           row["name"].replace("_", " "), kind="head"),
    Column("Modes in use", lambda row: DASH if row["alive"] != row["alive"] else
           pair(count(row["alive"]), f"/ {count(row['n_modes'])}")),
    number_column(R2, "r2", 2, "on held-out inputs"),
    number_column("Modes per input", "l0", 1, "on held-out inputs"),
    number_column("Stable", "stability", 2, "mean cosine with modes of other seeds", optional=True),
    Column("Named", lambda row: percent(row["named"]),
           "share of the modes that stand for something, by the interval of the correlation"),
    Column("Labels", lambda row: percent(row["covered"]),
           "share of the labels, superclasses and attributes that have a mode"),
    Column("Label corr.", lambda row: DASH if row["correlation"] != row["correlation"] else
           pair(fixed(row["correlation"]), f"{fixed(row['correlation_shuffled'])} by chance"),
           "median over labels of the held-out correlation with the mode chosen in training; in "
           "grey the same with labels shuffled"),
    _selectivity("Ablate", "ablate", "selectivity: below 0, the label loses more than the others"),
    _selectivity("Preserve", "preserve",
                 "selectivity: above 0, the label keeps more than the others"),
    *(number_column(f"{area.upper()}{words}", f"{area}{by}", 2,
              f"area of faithfulness while the first units are kept{words}; ideal is {ideal}",
              optional=True)
      for by, words in (("", ""), ("_by_size", " by size"))
      for area, ideal in (("cpr", 1), ("cmd", 0))),
)  # fmt: skip
"""The table of `condec.judge`."""


def judged_rows(run: RunPart) -> list[dict[Hashable, Any]]:
    """List the judged dictionaries of all sites, each with its `site` and the site's `folder`."""
    return [
        {**row, "site": site.key, "folder": site.folder}
        for site in run.sites
        if site.judged is not None
        for row in site.judged.to_dict("records")
    ]
