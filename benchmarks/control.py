"""S6: sets of edits per second, against a whole pass for each.

A middle and a late site of each network; single channels ablated in turn, one set of edits each,
measured by `condec.effects.measure`: whole passes and replay in turns in one run. Times hold all
that replay costs: the full pass of every batch, the trial with two versions, the numbers taken of
the outputs. Whole passes cost the same for every set, so fewer of them are timed.

    python benchmarks/control.py [--model resnet50|mobilenet_v2|vit_base] [--device cuda] [--quick]

With ``--model`` or ``--quick`` it prints, and writes no file.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import paste, side_by_side, write

from condec.data import as_inputs
from condec.edits import Ablate
from condec.effects import HeldOut, Measured, measure
from condec.models import load_model

MODELS = {
    "resnet50": ("torchvision:resnet50", 2, {"middle": "layer3.1", "late": "layer4.1"}),
    "mobilenet_v2": (
        "torchvision:mobilenet_v2", 4, {"middle": "features.10", "late": "features.17"}
    ),
    "vit_base": ("timm:vit_base_patch16_224", 2, {"middle": "blocks.6", "late": "blocks.10"}),
}  # fmt: skip
"""Name, images, and blocks: the last but one, of MobileNetV2 the last, and one before."""
LABELS = 1000
EDITS = {"middle": 12, "late": 32}
"""Sets of edits by replay."""
WHOLE = 2


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Give batch norms the statistics of these images: with none, random weights say nothing."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(images)
    model.eval()


def edits_of(site: str, n: int) -> list[tuple[Ablate, ...]]:
    """Single channels, one a set."""
    return [(Ablate(site, units=[unit]),) for unit in range(n)]


def at_site(
    model: nn.Module, images: torch.Tensor, site: str, n_edits: int, repeats: int
) -> dict[str, Any]:
    """Edits a second by each route at one site."""
    counts = {"full": WHOLE, "replay": n_edits}
    labels = torch.arange(len(images))
    samples = HeldOut(as_inputs((images.cpu(), labels)), labels.tolist(), labels)
    found: dict[str, list[Measured]] = {}

    def run(route: str) -> None:
        edits = edits_of(site, counts[route])
        # One set of edits alone is run by a whole pass.
        calls = [[one] for one in edits] if route == "full" else [edits]
        found[route] = [measure(model, samples, c, batch_size=len(images)) for c in calls]

    seconds = side_by_side({route: lambda r=route: run(r) for route in counts}, repeats)
    each = {route: [s / counts[route] for s in seconds[route]] for route in counts}
    ratios = [a / b for a, b in zip(each["full"], each["replay"], strict=True)]
    whole = {n: torch.cat([getattr(m, n) for m in found["full"]]) for n in ("logit", "predicted")}
    (replay,) = found["replay"]
    return {
        "site": site,
        "sets_of_edits": counts,
        "seconds": seconds,
        "edits_per_second": {route: 1 / statistics.median(each[route]) for route in counts},
        "times_faster_than_whole_passes": statistics.median(ratios),
        "largest_difference_between_two_edits": float(whole["logit"].diff(dim=0).abs().max()),
        "largest_difference_of_logits": float((whole["logit"] - replay.logit[:WHOLE]).abs().max()),
        "same_predictions": bool(torch.equal(whole["predicted"], replay.predicted[:WHOLE])),
    }


def table(record: dict[str, Any]) -> str:
    """Edits a second, and how many times that is what whole passes do."""
    lines = ["| | | whole passes | replay | times faster |", "|---|---|---|---|---|"]
    for name, of in record.items():
        for where, row in of["sites"].items():
            speeds = row["edits_per_second"]
            lines.append(
                f"| {name} | {where}, `{row['site']}` | {speeds['full']:.2f} | "
                f"{speeds['replay']:.2f} | {row['times_faster_than_whole_passes']:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one turn, half the edits")
    args = parser.parse_args()
    repeats = 1 if args.quick else args.repeats
    record: dict[str, Any] = {}
    for name in [args.model] if args.model else MODELS:
        spec, n_images, sites = MODELS[name]
        torch.manual_seed(0)
        model = load_model(spec).model.to(args.device)
        images = torch.randn(n_images, 3, 224, 224)
        settle(model, images.to(args.device))
        what = f"{name} (random weights), one batch of {n_images} images, {args.device}"
        record[name] = {"what": what, "sites": {}}
        for where, site in sites.items():
            n_edits = EDITS[where] // (2 if args.quick else 1)
            row = at_site(model, images, site, n_edits, repeats)
            record[name]["sites"][where] = row
            print(name, where, row["times_faster_than_whole_passes"], flush=True)
    if not (args.quick or args.model):
        write("control" if args.device == "cpu" else "control_cuda", record)
        if args.device == "cpu":
            paste("control", table(record))


if __name__ == "__main__":
    main()
