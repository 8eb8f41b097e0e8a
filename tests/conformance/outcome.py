"""Results of the conformance run: a file beside the tests, and a table on a page."""

import json
import math
import re
from itertools import groupby
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[2] / "docs" / "correctness.md"
Rows = dict[str, dict[str, Any]]
_TABLE = re.compile(r"(?<=<!-- conformance -->\n).*?(?=<!-- end -->)", re.S)


def read() -> Rows:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def write(rows: Rows) -> None:
    """Add rows to the file, and draw the table on the page again."""
    rows = dict(sorted((read() | rows).items()))
    FILE.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(_TABLE.sub(lambda _: table(rows), PAGE.read_text()))


def table(rows: Rows) -> str:
    """Draw one line for every group that works, and one for every family that is refused."""
    lines = ["| group | families | sites | largest difference |", "|---|---|---|---|"]
    by_group = sorted(rows.values(), key=lambda row: row["group"])
    for group, each in groupby(by_group, lambda row: row["group"]):
        several = list(each)
        if works := [row for row in several if row["result"] == "works"]:
            names = ", ".join(row["family"] for row in works)
            n_sites = sum(len(row["sites"]) for row in works)
            worst = bound(max(row["error"] for row in works))
            lines.append(f"| {group} | {len(works)} work: {names} | {n_sites} | {worst} |")
        lines += [
            f"| {group} | {row['result']}: {row['family']} ({row['note']}) | | |"
            for row in several
            if row["result"] != "works"
        ]
    notes = [
        f"- {r['group']}, {r['family']}: {r['note']}."
        for r in by_group
        if r["result"] == "works" and r["note"]
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def shown() -> str:
    """Return the table on the page."""
    (found,) = _TABLE.findall(PAGE.read_text())
    return found


def bound(error: float) -> str:
    """Round up to a power of ten: digits differ between machines.

    >>> bound(3e-14)
    'below 1e-13'
    """
    return f"below 1e{math.floor(math.log10(error)) + 1}" if error else "0"
