"""Known modes against learned ones: which each learner finds, and how many it makes up.

Every learner that condec has, with its defaults, on the standard instance of
`condec.testing.planted` (200 modes, 256 units, 5 active, 20,000 rows): with as many modes as
were planted, and those that train by gradient descent also with three times as many as units.
A seed is one of the data and of the fit.

    python benchmarks/planted.py [--quick] [--learner ThresholdSAE ...] [--seeds 2] [--first 0]

What is measured takes the place of the same fits in the last result; the others stay there.
"""

import argparse
import inspect
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import RESULTS, paste, write

from condec.basis.errors import CondecError
from condec.dictionary import Learner, MatchingPursuit, TrainConfig, fit, quality, recovery
from condec.testing.planted import Planted

SLOW = ("DictionaryLearning", "NMF", "MatchingPursuit")
"""Learners that take longest: first, so that no processor waits at the end."""


def measured(kind: type[Learner], n_modes: int, data: Planted, seed: int) -> dict[str, Any]:
    """One fit with default settings; or why there is none."""
    known: dict[str, Any] = {"learner": kind.__name__, "n_modes": n_modes, "seed": seed}
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            report = fit(kind(n_modes), data.matrix, config=TrainConfig(seed=seed))
    except (CondecError, TypeError) as error:
        return known | {"not_fitted": str(error)}
    alive = quality(report.dictionary, data.matrix).alive
    found = recovery(report.dictionary.atoms[alive], data.atoms)
    common = ~data.rare & (data.partner < 0)
    groups = {"common": common, "paired": data.partner >= 0, "rare": data.rare}
    held_out = report.metrics["held_out"]
    return known | {
        "recovered": found.share,
        "recovered_of": {
            name: float(found.recovered[group].double().mean()) for name, group in groups.items()
        },
        "median_cosine": float(found.cosine.median()),
        "n_false": found.n_false,
        "n_copies": found.n_copies,
        "n_alive": int(alive.sum()),
        "dead_share_held_out": held_out.dead_share,
        "r2_held_out": held_out.r2,
        "l0_held_out": held_out.l0,
        "seconds": time.perf_counter() - started,
        "warnings": sorted({str(warning.message) for warning in said}),
    }


def jobs(seeds: range, chosen: list[str] | None) -> Iterator[tuple[type[Learner], bool, int]]:
    """Learner, whether it has more modes than were planted, and seed; the slowest first."""
    kinds = [
        kind
        for name, kind in sorted(Learner.known.items())
        if not inspect.isabstract(kind) and (not chosen or name in chosen)
    ]
    for kind in sorted(kinds, key=lambda kind: kind.__name__ not in SLOW):
        for wide in (False, True) if kind.freezes or kind is MatchingPursuit else (False,):
            for seed in seeds:
                yield kind, wide, seed


def one(kind: type[Learner], wide: bool, seed: int, quick: bool) -> dict[str, Any]:
    """One fit, in a process of its own."""
    torch.set_num_threads(1)
    data = Planted.small(seed) if quick else Planted.standard(seed)
    n_planted, n_units = data.atoms.shape
    return measured(kind, 3 * n_units if wide else n_planted, data, seed)


def said(row: dict[str, Any]) -> str:
    """One row in words."""
    begin = f"{row['learner']:20s} {row['n_modes']:4d} modes, seed {row['seed']}: "
    if "not_fitted" in row:
        return begin + row["not_fitted"]
    return begin + (
        f"recovered {row['recovered']:.3f}, false {row['n_false']}, copies {row['n_copies']}, "
        f"L0 {row['l0_held_out']:.2f}, R2 {row['r2_held_out']:.3f}, {row['seconds']:.0f} s"
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown, means over seeds, the best first; what could not be fitted is listed below."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["learner"], row["n_modes"]), []).append(row)
    fitted = {k: g for k, g in groups.items() if not any("not_fitted" in row for row in g)}
    head = (
        "| | modes | seeds | recovered | lowest seed | common | in pairs | rare | false | copies "
        "| dead, held out | L0 | R2 | seconds |"
    )
    lines = [head, "|---" * 14 + "|"]
    for (name, number), some in sorted(
        fitted.items(), key=lambda item: -_mean(item[1], "recovered")
    ):
        of = [_mean([row["recovered_of"] for row in some], g) for g in ("common", "paired", "rare")]
        cells = [
            f"`{name}`",
            str(number),
            str(len(some)),
            f"{_mean(some, 'recovered'):.1%}",
            f"{min(row['recovered'] for row in some):.1%}",
            *(f"{share:.0%}" for share in of),
            f"{_mean(some, 'n_false'):.0f}",
            f"{_mean(some, 'n_copies'):.0f}",
            f"{_mean(some, 'dead_share_held_out'):.0%}",
            f"{_mean(some, 'l0_held_out'):.1f}",
            f"{_mean(some, 'r2_held_out'):.3f}",
            f"{_mean(some, 'seconds'):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for (name, number), some in groups.items():
        if (name, number) not in fitted:
            reason = next(row["not_fitted"] for row in some if "not_fitted" in row)
            lines += ["", f"`{name}` with {number} modes could not be fitted: {reason}"]
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the small instance, in seconds")
    parser.add_argument("--learner", action="append", help="only these; may be given several times")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    args = parser.parse_args()
    started, rows, seeds = time.perf_counter(), [], range(args.first, args.first + args.seeds)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(one, *job, args.quick) for job in jobs(seeds, args.learner)]
        for done in as_completed(waiting):
            rows.append(done.result())
            print(said(rows[-1]), flush=True)
    what = (
        "8 planted modes, 24 units, 2 active, 600 rows"
        if args.quick
        else "200 planted modes, 256 units, 5 active, 20,000 rows"
    )
    name = "planted_quick" if args.quick else "planted"
    rows = together(name, rows)
    record = {
        "what": f"{what}, default settings; a seed is one of data and fit; two fits at a time "
        "on one CPU thread each; recovered: cosine above 0.9",
        "minutes": (time.perf_counter() - started) / 60,
        "rows": rows,
    }
    write(name, record)
    print(table(rows))
    if not args.quick:
        paste("planted", table(rows))


def together(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, and those of the last result that were not measured again."""
    file = RESULTS / f"{name}.json"
    earlier = json.loads(file.read_text())["rows"] if file.exists() else []
    known = {(row["learner"], row["n_modes"], row["seed"]): row for row in [*earlier, *rows]}
    return [known[key] for key in sorted(known)]


if __name__ == "__main__":
    main()
