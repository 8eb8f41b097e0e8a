"""Tables of `explain_truth.py`: means over photos, with bootstrap intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 2000
FIRST = "place map"
"""The map that others are compared with."""


def summary(rows: Sequence[Mapping[str, Any]], interactions: Sequence[Any]) -> dict[str, Any]:
    """Sum up the records of photos, [mean, low, high] each."""
    draws = np.random.default_rng(0).multinomial(len(rows), [1 / len(rows)] * len(rows), DRAWS)
    return {
        "n_photos": len(rows),
        "missed": grouped(rows, "missed", ("site", "spacing"), {"size": lambda r: abs(r["missed"])},
                          draws),
        "checks": grouped(rows, "checks", ("parts", "site", "removed"),
                          {k: lambda r, k=k: r[k] for k in ("rank_correlation", "slope")}, draws),
        "areas": areas(rows, draws),
        "sanity": grouped([r for r in rows if "sanity" in r], "sanity", ("way", "of", "map"),
                          {"rank": lambda r: r["rank"]}, None),
        "games": grouped(rows, "games", ("kind", "site"), {
            k: lambda r, k=k: r[k] for k in
            ("shares_rank", "shares_slope", "removal_rank", "pairs_rank", "interaction_size")
        }, draws),
        "interactions": list(interactions),
    }  # fmt: skip


def grouped(
    rows: Sequence[Mapping[str, Any]], what: str, by: Sequence[str],
    values: Mapping[str, Callable[[Any], float]], draws: np.ndarray | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Average what records hold under one name, by what it is of."""
    if draws is None:
        n = len(rows)
        draws = np.random.default_rng(0).multinomial(n, [1 / n] * n, DRAWS)
    found: dict[tuple[Any, ...], list[list[float]]] = {}
    for photo, record in enumerate(rows):
        for row in record[what]:
            key = tuple(row[k] for k in by)
            found.setdefault(key, []).append([photo, *(read(row) for read in values.values())])
    made = []
    for key, several in found.items():
        table = np.array(several, float)
        cells: dict[str, Any] = dict(zip(by, key, strict=True))
        for column, name in enumerate(values, 1):
            good = np.isfinite(table[:, column])
            photo, value = table[good, 0].astype(int), table[good, column]
            weights = draws[:, photo]
            with np.errstate(invalid="ignore"):
                drawn = (weights @ value) / weights.sum(1)
            cells[name] = interval(value.mean() if len(value) else np.nan, drawn)
        made.append(cells)
    return made


def areas(rows: Sequence[Mapping[str, Any]], draws: np.ndarray) -> list[dict[str, Any]]:
    """Areas between inserting and deleting, over the whole change: ratios of sums over photos."""
    fills = rows[0]["fills"]
    areas = {
        (r["of"], r["map"], r["on"]): np.array([
            next(one["areas"] for one in record["areas"]
                 if (one["of"], one["map"], one["on"]) == (r["of"], r["map"], r["on"]))
            for record in rows
        ])
        for r in rows[0]["areas"]
    }  # fmt: skip
    changes = {key: np.array([r["changes"][key] for r in rows]) for key in rows[0]["changes"]}
    made = []
    for (of, name, on), values in areas.items():
        whole = changes[on]

        def ratio(a: np.ndarray, w: np.ndarray, b: np.ndarray = whole) -> np.ndarray:
            return (w @ a.reshape(len(a), -1).sum(1)) / (w @ b.reshape(len(b), -1).sum(1))

        ones = np.ones(len(rows))
        first = FIRST if of != "class" else f"{FIRST}, blocks.10"
        apart = ratio(values - areas[of, first, on], draws)
        made.append({
            "of": of, "map": name, "on": on,
            "area": interval(float(ratio(values, ones)), ratio(values, draws)),
            "less_place_map": interval(float(ratio(values - areas[of, first, on], ones)), apart),
            "by_fill": {
                fill: float(values[:, k].sum() / whole[:, k].sum()) for k, fill in enumerate(fills)
            },
        })  # fmt: skip
    return made


def interval(value: float, drawn: np.ndarray) -> list[float]:
    """Return the value with the ends of its interval."""
    low, high = np.nanquantile(drawn, (0.025, 0.975)) if np.isfinite(drawn).any() else (value,) * 2
    return [round(float(v), 4) for v in (value, low, high)]


# ---- Markdown -----------------------------------------------------------------------------------


def page(made: Mapping[str, Any]) -> str:
    """Return all tables."""
    return "\n\n".join([
        f"{made['n_photos']} photos.",
        *area_tables(made), check_table(made), game_table(made), sanity_table(made),
        missed_table(made),
    ])  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Sequence[float], mark: str = "") -> str:
    return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f}){mark}".replace("-", "\N{MINUS SIGN}")


def marked(row: Mapping[str, Any]) -> str:
    _, low, high = row["less_place_map"]
    return cell(row["area"], " \N{BLACK UP-POINTING TRIANGLE}" if low > 0 else
                " \N{WHITE DOWN-POINTING TRIANGLE}" if high < 0 else "")  # fmt: skip


def area_tables(made: Mapping[str, Any]) -> list[str]:
    of_modes = [row for row in made["areas"] if row["of"] != "class"]
    found = []
    for on, words in (("mode", "the mode's own contribution"), ("class", "the class's output")):
        some = [row for row in of_modes if (row["on"] == "class") == (on == "class")]
        places = [*dict.fromkeys(row["of"] for row in some)]
        lines = [
            [name, *(marked(next(r for r in some if (r["map"], r["of"]) == (name, place)))
                     for place in places)]
            for name in dict.fromkeys(row["map"] for row in some)
        ]  # fmt: skip
        head = [f"maps of a mode, on {words}", *places]
        found.append(table(head, lines))
    rows = [row for row in made["areas"] if row["of"] == "class"]
    fills = [*rows[0]["by_fill"]]
    lines = [
        [row["map"], marked(row), *(f"{row['by_fill'][fill]:.2f}" for fill in fills)]
        for row in rows
    ]
    return [*found, table(["maps of the class, on its output", "all fills", *fills], lines)]


def check_table(made: Mapping[str, Any]) -> str:
    found = {(r["parts"], r["site"], r["removed"]): r for r in made["checks"]}
    rows = [
        [f"{parts}, {site}", *(cell(found[parts, site, way][key]) for way in ("part", "units")
                               for key in ("rank_correlation", "slope"))]
        for parts, site in dict.fromkeys(key[:2] for key in found)
    ]  # fmt: skip
    head = ["parts", "share removed: rank", "slope", "units removed whole: rank", "slope"]
    return table(head, rows)


def game_table(made: Mapping[str, Any]) -> str:
    rows = [
        [f"{r['kind']} {r['site']}", *(cell(r[k]) for k in
         ("shares_rank", "shares_slope", "removal_rank", "pairs_rank", "interaction_size"))]
        for r in made["games"]
    ]  # fmt: skip
    head = [
        "modes", "shares and Shapley values: rank", "slope", "single removals: rank",
        "pairs removed from all and exact interactions: rank", "size of an interaction",
    ]  # fmt: skip
    every = made["interactions"]
    said = (
        f"`mode_interactions`, {len(every)} superclasses: rank correlation with exact "
        if (every)
        else ""
    )
    if every:
        mean = np.mean([r["rank"] for r in every])
        ends = min(r["rank"] for r in every), max(r["rank"] for r in every)
        said += f"interactions {mean:.2f} ({ends[0]:.2f} to {ends[1]:.2f})."
    return f"{table(head, rows)}\n\n{said}"


def sanity_table(made: Mapping[str, Any]) -> str:
    ways = [*dict.fromkeys(row["way"] for row in made["sanity"])]
    # Modes of the autoencoder are hardly ever used in a network of shuffled weights.
    rows = [
        row for row in made["sanity"]
        if not row["of"].startswith("sae") and "blocks.13" not in row["of"] + row["map"]
    ]  # fmt: skip
    names = [*dict.fromkeys((row["of"], row["map"]) for row in rows)]
    found = {(r["of"], r["map"], r["way"]): r["rank"] for r in made["sanity"]}
    lines = [[f"{of}: {name}", *(cell(found[of, name, way]) for way in ways)] for of, name in names]
    return table(["map", *ways], lines)


def missed_table(made: Mapping[str, Any]) -> str:
    rows = [[r["site"], r["spacing"], cell(r["size"])] for r in made["missed"]]
    return table(["site", "points", "missed, over the change"], rows)
