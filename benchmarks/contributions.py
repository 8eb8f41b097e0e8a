"""S1, S3 and S4: contributions at all 16 blocks of a ResNet-50, against the floor and Captum.

S1  condec against (steps + 1) plain forward passes with a backward pass to the first site.
S3  condec against one Captum ``LayerConductance`` call a site.
S4  peak memory of a fresh process at 2, 5 and 20 steps.

    python benchmarks/contributions.py [--quick]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import peak_memory_mib, ratio, side_by_side, write

from condec.attribution import IntegratedGradients
from condec.models import load_model
from condec.sites import Site, find_sites
from condec.targets import TopK

STEPS = 10


def resnet50() -> tuple[nn.Module, tuple[Site, ...]]:
    model = load_model("torchvision:resnet50").model
    return model, find_sites(model, "layer[1-4].*")


def floor(model: nn.Module, images: Tensor, first: str, passes: int) -> None:
    """Plain passes: forward, then backward of the target to the first site, nothing else."""
    kept: dict[str, Tensor] = {}
    module = model.get_submodule(first)
    handle = module.register_forward_hook(lambda m, i, out: kept.update(out=out))
    for _ in range(passes):
        target = model(images).max(1).values.sum()
        torch.autograd.grad(target, kept["out"])
    handle.remove()


def captum(model: nn.Module, images: Tensor, site: str, steps: int) -> Tensor:
    from captum.attr import LayerConductance

    frozen_class = model(images).argmax(1)
    method = LayerConductance(model, model.get_submodule(site))
    return method.attribute(
        images, baselines=torch.zeros_like(images), target=frozen_class, n_steps=steps,
        internal_batch_size=len(images),
    )  # fmt: skip


def peak_of(steps: int, batch: int) -> float:
    """Peak memory, in MiB, of a fresh process that runs one attribution."""
    command = [sys.executable, __file__, "--memory", str(steps), "--batch", str(batch)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, two Captum sites")
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, 224, 224)
    model, sites = resnet50()
    if args.memory is not None:
        IntegratedGradients(steps=args.memory).attribute(model, images, sites, TopK())
        print(json.dumps(peak_memory_mib()))
        return
    peaks = {s: peak_of(s, args.batch) for s in (2, 5, 20)}
    method = IntegratedGradients(steps=STEPS)
    floor(model, images, sites[0].name, 1)
    seconds = side_by_side(
        {
            "floor": lambda: floor(model, images, sites[0].name, STEPS + 1),
            "condec": lambda: method.attribute(model, images, sites, TopK()),
        },
        1 if args.quick else args.repeats,
    )
    chosen = sites[::8] if args.quick else sites[::5]
    started = time.perf_counter()
    for site in chosen:
        captum(model, images, site.name, STEPS)
    captum_each = (time.perf_counter() - started) / len(chosen)
    best = min(seconds["condec"])
    write(
        "contributions",
        {
            "what": f"ResNet-50 (random weights), 16 blocks, IG {STEPS}, batch {args.batch}, CPU",
            "seconds": seconds,
            "S1_ratio_to_floor": ratio(seconds, "condec", "floor"),
            "images_per_second": args.batch / best,
            "captum_seconds_per_site": captum_each,
            "captum_sites_timed": len(chosen),
            "S3_times_faster_than_captum_per_site_calls": captum_each * len(sites) / best,
            "S4_peak_memory_mib_by_steps": peaks,
        },
    )


if __name__ == "__main__":
    main()
