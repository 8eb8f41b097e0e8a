"""S1, S3, S4 and S8: contributions at all sites of a network, against the floor and others.

S1  condec against (steps + 1) plain forward passes with a backward pass to the first site.
S3  condec against one Captum ``LayerConductance`` call a site; beside it a plain hook loop a
    site, and act x grad against one Captum ``LayerGradientXActivation`` call a site.
S4  peak memory of a fresh process at 2, 5 and 20 steps.
S8  minutes for the 50,000 images of the ImageNet validation set, from the images per second
    (images ready on the device: reading and decoding are not in it).

Also: bfloat16 by autocast and memory order, with the error against float32; arithmetic per
second, and its share of what plain matrix products reach here.

    python benchmarks/contributions.py [--model resnet50|vit_base] [--device cuda] [--quick]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

from measure import peak_memory_mib, ratio, side_by_side, synchronize, write

from condec.attribution import ActGrad, Attribution, IntegratedGradients, Method, Setup
from condec.attribution.precision import Compute
from condec.attribution.reduce import split_and_sum
from condec.attribution.targets import Predicted
from condec.models import load_model
from condec.network.sites import Site, Units, find_sites

STEPS = 10
MODELS = {
    "resnet50": ("torchvision:resnet50", "preset:resnet_blocks", 8),
    "vit_base": ("timm:vit_base_patch16_224", "preset:vit_blocks, preset:vit_mlp_neurons", 2),
}
IMAGENET = 50_000


class Case:
    """A network, its sites and a batch of images."""

    def __init__(self, name: str, device: str, batch: int | None) -> None:
        spec, pattern, size = MODELS[name]
        torch.manual_seed(0)
        self.name, self.device = name, torch.device(device)
        self.model: nn.Module = load_model(spec).model.to(self.device)
        self.sites: tuple[Site, ...] = find_sites(self.model, pattern)
        self.images = torch.randn(batch or size, 3, 224, 224, device=self.device)
        self.classes = self.model(self.images).argmax(1).detach()

    def condec(self, method: Method, compute: Compute | None = None) -> Attribution:
        """All sites at once."""
        compute = compute or Compute()
        with compute.running(self.device):
            images = compute.arrange(self.images)
            return method.attribute(Setup(self.model, images, self.sites, Predicted()))

    def floor(self, passes: int) -> None:
        """Plain passes: forward, then backward of the target to the first site, nothing else."""
        kept: dict[str, Tensor] = {}
        first = self.model.get_submodule(self.sites[0].name)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        hook = first.register_forward_hook(
            lambda m, i, out: kept.update(out=out.detach().requires_grad_()) or kept["out"]
        )
        for _ in range(passes):
            score = self.model(self.images).gather(1, self.classes[:, None]).sum()
            score.backward()  # which the counter of operations can follow, unlike autograd.grad
        hook.remove()

    def hook_loop(self, site: Site) -> Tensor:
        """What a user writes by hand: one site, a hook, a loop over the steps."""
        kept: dict[str, Tensor] = {}
        module = self.model.get_submodule(site.name)
        if site.tap == "input":
            hook = module.register_forward_pre_hook(lambda m, i: kept.update(h=i[0]))
        else:
            hook = module.register_forward_hook(lambda m, i, out: kept.update(h=out))
        before, total = None, torch.zeros(())
        images = self.images.clone().requires_grad_()
        for k in range(STEPS + 1):
            score = self.model(images * (k / STEPS)).gather(1, self.classes[:, None]).sum()
            (g,) = torch.autograd.grad(score, kept["h"])
            h = kept["h"].detach()
            if before is not None:
                total = total + (h - before[0]) * (g + before[1]) / 2
            before = (h, g)
        hook.remove()
        return total

    def captum(self, site: Site) -> Tensor:
        """Captum's conductance of one site."""
        from captum.attr import LayerConductance

        method = LayerConductance(self.model, self.model.get_submodule(site.name))
        return method.attribute(
            self.images, baselines=torch.zeros_like(self.images), target=self.classes,
            n_steps=STEPS, internal_batch_size=len(self.images),
            attribute_to_layer_input=site.tap == "input",
        )  # fmt: skip

    def captum_act_grad(self, site: Site) -> Tensor:
        """Captum's gradient times activation of one site."""
        from captum.attr import LayerGradientXActivation

        method = LayerGradientXActivation(self.model, self.model.get_submodule(site.name))
        return method.attribute(
            self.images, target=self.classes, attribute_to_layer_input=site.tap == "input"
        )


def seconds_a_site(run: Callable[[Site], object], sites: tuple[Site, ...]) -> float:
    """Mean time over some sites, each run once."""
    synchronize()
    started = time.perf_counter()
    for site in sites:
        run(site)
    synchronize()
    return (time.perf_counter() - started) / len(sites)


def error(of: Attribution, to: Attribution) -> dict[str, dict[str, float]]:
    """Sum of absolute differences over sum of absolute values: median and largest site.

    Of every entry, and of what a store holds: positive and negative parts summed over positions.
    """

    def off(reduced: bool) -> dict[str, float]:
        shares = []
        for key, ours in of.contribution.items():
            a, b = ours, to.contribution[key]
            if reduced:
                units = Units.default(a.ndim)
                a, b = split_and_sum(a, units), split_and_sum(b, units)
            shares.append(float((a - b).abs().sum() / b.abs().sum()))
        return {"median_over_sites": sorted(shares)[len(shares) // 2], "largest": max(shares)}

    return {"every_entry": off(False), "reduced_to_units": off(True)}


def float16_error(case: Case) -> dict[str, dict[str, float]]:
    """Of one image: processors without such arithmetic take long."""
    one = Case(case.name, case.device.type, 1)
    method = IntegratedGradients(steps=STEPS)
    return error(one.condec(method, Compute(precision="float16")), one.condec(method))


def flops_of(case: Case) -> int:
    """Multiplications and additions of one pass: forward, and backward to the first site."""
    with FlopCounterMode(display=False) as counter:
        case.floor(1)
    return int(counter.get_total_flops())


def matmul_flops(device: torch.device) -> float:
    """Arithmetic per second of plain float32 matrix products here."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device)
    a @ b
    seconds = []
    for _ in range(5):
        synchronize()
        started = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def peak_of(steps: int, args: argparse.Namespace) -> float:
    """Peak memory, in MiB, of a fresh process that runs one attribution."""
    command = [sys.executable, __file__, "--memory", str(steps), "--model", args.model]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


def measure(case: Case, repeats: int, quick: bool) -> dict[str, Any]:
    method = IntegratedGradients(steps=STEPS)
    half = Compute(precision="bfloat16")
    case.floor(1)
    case.condec(ActGrad(), half)
    seconds = side_by_side(
        {
            "floor": lambda: case.floor(STEPS + 1),
            "condec": lambda: case.condec(method),
            "condec, channels last": lambda: case.condec(method, Compute(channels_last=True)),
            "condec, bfloat16": lambda: case.condec(method, half),
            "condec, act x grad": lambda: case.condec(ActGrad()),
        },
        1 if quick else repeats,
    )
    chosen = case.sites[:: max(1, len(case.sites) // (2 if quick else 4))]
    each = {
        "captum LayerConductance": seconds_a_site(case.captum, chosen),
        "captum LayerGradientXActivation": seconds_a_site(case.captum_act_grad, chosen),
        "hook loop": seconds_a_site(case.hook_loop, chosen),
    }
    best, n_sites = min(seconds["condec"]), len(case.sites)
    used = flops_of(case) * (STEPS + 1) / best
    reachable = matmul_flops(case.device)
    plain = case.condec(method)
    a_second = {name: len(case.images) / min(each) for name, each in seconds.items()}
    return {
        "what": f"{case.name} (random weights), {n_sites} sites, {STEPS} steps, batch "
        f"{len(case.images)}, {case.device}",
        "seconds": seconds,
        "images_per_second": a_second,
        "S1_ratio_to_floor": ratio(seconds, "condec", "floor"),
        "seconds_a_site": each | {"sites_timed": len(chosen)},
        "S3_times_faster_than_captum": each["captum LayerConductance"] * n_sites / best,
        "times_faster_than_hook_loops": each["hook loop"] * n_sites / best,
        "act_grad_times_faster_than_captum": each["captum LayerGradientXActivation"]
        * n_sites
        / min(seconds["condec, act x grad"]),
        "S8_minutes_for_imagenet_validation": {
            name: IMAGENET / each / 60 for name, each in a_second.items()
        },
        "gflop_per_second": {"condec": used / 1e9, "matrix_products": reachable / 1e9},
        "share_of_matrix_products": used / reachable,
        "bfloat16_error": error(case.condec(method, half), plain),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one repeat, fewer sites of others")
    parser.add_argument("--float16", action="store_true", help="its error; minutes on a CPU")
    args = parser.parse_args()
    if args.memory is not None:
        Case(args.model, args.device, args.batch).condec(IntegratedGradients(steps=args.memory))
        print(json.dumps(peak_memory_mib()))
        return
    for name in [args.model] if args.model else MODELS:
        args.model = name
        case = Case(name, args.device, args.batch)
        record = measure(case, args.repeats, args.quick)
        if args.float16:
            record["float16_error_one_image"] = float16_error(case)
        if args.device == "cpu":
            record["S4_peak_memory_mib_by_steps"] = {s: peak_of(s, args) for s in (2, 5, 20)}
        suffix = "" if args.device == "cpu" else f"_{args.device.partition(':')[0]}"
        write(f"contributions_{name}{suffix}", record)


if __name__ == "__main__":
    main()
