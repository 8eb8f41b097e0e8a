"""Known modes against learned ones: which each learner finds, and how many it makes up.

Every learner that condec has, with its defaults, on the standard instance of
`condec.testing.planted` (200 modes, 256 units, 5 active, 20,000 rows): with as many modes as
were planted, and those that train by gradient descent also with three times as many as units.

    python benchmarks/planted.py [--quick] [--learner ThresholdSAE ...] [--seeds 1]
"""

import argparse
import inspect
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

from condec.dictionary import Learner, TrainConfig, fit, quality, recovery
from condec.errors import CondecError
from condec.testing.planted import Planted


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the small instance, in seconds")
    parser.add_argument("--learner", action="append", help="only these; may be given several times")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    data = Planted.small() if args.quick else Planted.standard()
    n_planted, n_units = data.atoms.shape
    rows = []
    for name, kind in sorted(Learner.known.items()):
        if inspect.isabstract(kind) or (args.learner and name not in args.learner):
            continue
        for n_modes in (n_planted, 3 * n_units) if kind.freezes else (n_planted,):
            for seed in range(args.seeds):
                rows.append(measured(kind, n_modes, data, seed))
                line = rows[-1]
                print(
                    f"{name:20s} {n_modes:4d} modes: "
                    + line.get(
                        "not_fitted",
                        f"recovered {line.get('recovered', 0.0):.3f}, "
                        f"false {line.get('n_false')}, copies {line.get('n_copies')}, "
                        f"L0 {line.get('l0_held_out', 0.0):.2f}, "
                        f"R2 {line.get('r2_held_out', 0.0):.3f}, "
                        f"{line.get('seconds', 0.0):.0f} s",
                    ),
                    flush=True,
                )
    n_rows = len(data.matrix)
    n_active = int((data.loadings[0] > 0).sum())
    write(
        "planted_quick" if args.quick else "planted",
        {
            "what": f"{n_planted} planted modes, {n_units} units, {n_active} active, "
            f"{n_rows} rows, default settings, one CPU thread; recovered: cosine above 0.9",
            "rows": rows,
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
