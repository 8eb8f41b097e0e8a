"""Learners on the ground truth of SAELens: features in a hierarchy, and features that correlate.

64 features in 32 units, rows made by ``sae_lens.synthetic`` (`Planted.synthetic`). *neither*: every
feature fires by itself, in 4 % of the rows; *hierarchy*: eight roots with three children each, and
three to some of those, a child fires only where its parent does (20 % each, given the parent);
*correlated*: as neither, but with correlations of rank 8. A seed is one of the data and of the fit.
As many modes as there are features, and three times as many as units; learners that are asked for a
number of loadings a row are told the true one.

    pip install sae-lens
    python benchmarks/synthetic.py [--seeds 3]

Writes results/synthetic.json, after every structure and seed; what is there is not done again.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measure import RESULTS, paste, write

from condec.dictionary import (
    BatchTopKSAE,
    JumpReLUSAE,
    Learner,
    MatchingPursuit,
    MatryoshkaSAE,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    recovery,
)
from condec.models.torchvision import import_torchvision
from condec.testing.planted import Planted

FEATURES, UNITS, ROWS = 64, 32, 8000
ASKED: Mapping[type[Learner], str] = {
    ThresholdSAE: "", ReLUSAE: "", JumpReLUSAE: "target_l0", TopKSAE: "k", BatchTopKSAE: "k",
    MatryoshkaSAE: "k", MatchingPursuit: "k",
}  # fmt: skip
"""Learners, and what tells them how many loadings a row has."""
STRUCTURES = ("neither", "hierarchy", "correlated")


def planted(structure: str, seed: int) -> Planted:
    """Make rows of one structure."""
    import_torchvision()
    from sae_lens import synthetic

    options: Mapping[str, Any] = {
        "neither": {},
        "hierarchy": {
            "hierarchy": synthetic.HierarchyConfig(
                total_root_nodes=8, branching_factor=3, max_depth=2, compensate_probabilities=False
            ),
        },
        "correlated": {
            "correlation": synthetic.LowRankCorrelationConfig(rank=8, correlation_scale=0.3),
        },
    }[structure]  # fmt: skip
    often = 0.2 if structure == "hierarchy" else 0.04
    config = synthetic.SyntheticModelConfig(
        num_features=FEATURES, hidden_dim=UNITS, seed=seed,
        firing_probability=synthetic.ConstantFiringProbabilityConfig(probability=often), **options,
    )  # fmt: skip
    return Planted.synthetic(synthetic.SyntheticModel(config), ROWS, seed)


def measured(structure: str, seed: int) -> Iterator[dict[str, Any]]:
    """Fit every learner to one structure."""
    data = planted(structure, seed)
    seen = (data.loadings > 0).sum(0) >= 20  # fewer can hardly be found
    l0 = float((data.loadings > 0).float().sum(1).mean())
    k = max(1, round(l0))
    for kind, asked in ASKED.items():
        for n_modes in (FEATURES, 3 * UNITS):
            started = time.process_time()
            learner = kind(n_modes, **({asked: k} if asked else {}))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report = fit(learner, data.matrix, config=TrainConfig(steps=3000, seed=seed))
            alive = (report.dictionary.encode(data.matrix) > 0).any(0)
            found = recovery(report.dictionary.atoms[alive], data.atoms)
            held_out, child = report.metrics["held_out"], seen & (data.partner >= 0)
            yield {
                "structure": structure, "seed": seed, "learner": kind.__name__, "n_modes": n_modes,
                "features": int(seen.sum()),
                "recovered": float(found.recovered[seen].float().mean()),
                "recovered_children":
                    float(found.recovered[child].float().mean()) if child.any() else None,
                "n_false": found.n_false, "n_alive": int(alive.sum()), "r2_held_out": held_out.r2,
                "l0_held_out": held_out.l0, "l0_true": l0,
                "seconds": time.process_time() - started,
            }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown: of every structure the features found and the modes that are none."""
    head = ["", "modes"]
    for one in STRUCTURES:
        head += [one, *(["children"] if one == "hierarchy" else ()), "false", "L0"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["learner"], row["n_modes"]), []).append(row)

    def mean(some: Sequence[Mapping[str, Any]], key: str) -> float:
        return statistics.mean(row[key] for row in some)

    for (name, number), every in sorted(groups.items(), key=lambda g: -mean(g[1], "recovered")):
        cells = [f"`{name}`", str(number)]
        for one in STRUCTURES:
            some = [row for row in every if row["structure"] == one]
            if not some:
                cells += ["-"] * (4 if one == "hierarchy" else 3)
                continue
            ends = [f"{end(r['recovered'] for r in some):.0%}" for end in (min, max)]
            more = f" ({ends[0]} to {ends[1]})" if ends[0] != ends[1] else ""
            cells.append(f"{mean(some, 'recovered'):.0%}{more}")
            if one == "hierarchy":
                cells.append(f"{mean(some, 'recovered_children'):.0%}")
            cells += [f"{mean(some, 'n_false'):.0f}", f"{mean(some, 'l0_held_out'):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    true = ", ".join(
        f"{statistics.mean(r['l0_true'] for r in rows if r['structure'] == one):.1f} ({one})"
        for one in STRUCTURES if any(r["structure"] == one for r in rows)
    )  # fmt: skip
    return "\n".join([*lines, "", f"True L0: {true}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds, file = parser.parse_args().seeds, RESULTS / "synthetic.json"
    rows = json.loads(file.read_text())["fits"] if file.exists() else []
    for seed in range(seeds):
        for structure in STRUCTURES:
            if any((row["structure"], row["seed"]) == (structure, seed) for row in rows):
                continue
            rows += list(measured(structure, seed))
            write("synthetic", {"features": FEATURES, "units": UNITS, "rows": ROWS, "fits": rows})
            paste("synthetic", table(rows))


if __name__ == "__main__":
    main()
