"""Where the points of a path lie: error of the reduced contributions, at equal passes.

Ten steps of each spacing against many steps: L1 error of the reduced contributions over their L1
sum, and completeness, medians over samples, and the error over that of uniform points, geometric
mean over samples, target `Predicted`. Needs ../shared/data.

    python benchmarks/spacing.py [--samples 24 10 8] [--reference 160]

Samples are of the digits (vision transformer), CIFAR-10 (ResNet-20), photos (MobileNetV2).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import paste, write
from selectivity import CASES

from condec.attribution import Contributions, IntegratedGradients, contribute
from condec.attribution.targets import Predicted

STEPS = 10
SPACINGS = "uniform", "power:2", "fitted"
SITES = {
    "vit": ("blocks.0", "blocks.1", "blocks.2", "blocks.3"),
    "resnet20": ("layer1.2", "layer2.1", "layer3.0", "layer3.1"),
    "mobilenet": ("blocks.6", "blocks.13", "blocks.16"),
}


def measure(name: str, n_samples: int, reference: int) -> list[dict[str, Any]]:
    """One row a site and spacing."""
    case = CASES[name]()
    model = case.model.model if name == "mobilenet" else case.model  # the 1,000 classes
    images = case.images[:: len(case.images) // n_samples][:n_samples]
    found: dict[str, list[Contributions]] = {}
    for x in images.split(8):
        # Points close to the baseline, where paths turn most, for the reference too.
        methods = {s: IntegratedGradients(steps=STEPS, spacing=s) for s in SPACINGS}
        methods["exact"] = IntegratedGradients(steps=reference, spacing="power:1.5")
        for spacing, method in methods.items():
            batch = contribute(model, x, SITES[name], method=method, target=Predicted())
            found.setdefault(spacing, []).append(batch)
    rows = []
    for site in SITES[name]:
        reduced = {
            s: torch.cat([b.reduce()[site].contribution for b in found[s]]).flatten(1)
            for s in (*SPACINGS, "exact")
        }
        exact = reduced.pop("exact")
        errors = {s: (v - exact).abs().sum(1) / exact.abs().sum(1) for s, v in reduced.items()}
        for spacing, error in errors.items():
            complete = torch.cat([b.completeness()[site] for b in found[spacing]])
            rows.append(
                {
                    "model": name, "site": site, "spacing": spacing, "samples": len(exact),
                    "error": float(error.median()), "completeness": float(complete.median()),
                    "to_uniform": float((error / errors["uniform"]).log().mean().exp()),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of the page: error and completeness of every spacing, and the ratio to uniform."""
    lines = [
        "| | " + " | ".join(f"`{s}`: error, complete" for s in SPACINGS) + " | fitted / uniform |",
        "|---" * (len(SPACINGS) + 2) + "|",
    ]
    for at in range(0, len(rows), len(SPACINGS)):
        some = rows[at : at + len(SPACINGS)]
        cells = [f"{row['error']:.3f}, {row['completeness']:.2f}" for row in some]
        ratio = some[-1]["to_uniform"]
        name = f"{some[0]['model']} {some[0]['site']}"
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs=3, default=(24, 10, 8))
    parser.add_argument("--reference", type=int, default=160)
    given = parser.parse_args()
    rows = []
    for name, n_samples in zip(SITES, given.samples, strict=True):
        rows += measure(name, n_samples, given.reference)
    what = f"{STEPS} steps against {given.reference}, target Predicted, medians over samples"
    write("spacing", {"what": what, "rows": rows})
    paste("spacing", table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
