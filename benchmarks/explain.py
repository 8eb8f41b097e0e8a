"""S11: what explanations cost, in plain passes.

A plain pass is one forward pass of one input, and one backward pass to the first site. MobileNetV2
on a photo, 4 sites, 8 modes a site shown; warm, one thread, processor time, the smallest of
several. Needs ../shared/data.

    python benchmarks/explain.py [--repeats 5] [--steps 10]
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import RESULTS, write
from selectivity import mobilenet

import condec

SITES = ("blocks.6", "blocks.10", "blocks.13", "blocks.16")
FEW = condec.IntegratedGradients(steps=2)


def seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Processor seconds of each run, the smallest of several taken in turns."""
    found: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            took = time.process_time() - started
            found[name] = min(took, found.get(name, took))
    return found


def modes_of(
    model: nn.Module, images: Tensor, folder: str, sites: tuple[str, ...] = SITES
) -> Iterator[condec.Modes]:
    """Modes of both signs at every site; how good they are does not matter here."""
    store = condec.collect(
        model, images, sites, method=FEW, target=condec.Predicted(), batch_size=6, progress=False,
        out=Path(folder) / "store",
    )  # fmt: skip
    for site in sites:
        fitted = condec.fit(condec.PCA(n_modes=12), store.matrix(site, sign="concat"))
        yield condec.Modes.build(fitted.dictionary, store, site, "concat")


def plain_pass(model: nn.Module, image: Tensor) -> Tensor:
    """One forward pass, and the gradient of the largest output at the first site."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0].clone()

    handle = model.get_submodule(SITES[0]).register_forward_hook(keep)
    value = model(image).amax()
    handle.remove()
    return torch.autograd.grad(value, kept[0])[0]


def explained(repeats: int, steps: int) -> dict[str, Any]:
    """Time of an explanation, and of its graph, each over that of its plain passes."""
    case = mobilenet()
    model = case.model.model.requires_grad_(False)
    image = case.images[:1]
    with tempfile.TemporaryDirectory() as folder:
        modes = list(modes_of(model, case.images[::4], folder))
        method = condec.IntegratedGradients(steps=steps)

        def explain() -> condec.Explanation:
            return condec.explain(model, image, modes, method=method)

        found = explain()
        shown = [len(at.modes) for at in found.by_site]
        found.graph()
        took = seconds(
            {
                "plain_pass": lambda: plain_pass(model, image), "explain": explain,
                "graph": found.graph,
            },
            repeats,
        )  # fmt: skip
    passes = (steps + 1) * took["plain_pass"]
    return {
        "what": f"MobileNetV2, one photo, {', '.join(SITES)}, {shown} modes shown, {steps} steps",
        "processor_seconds": took,
        "S11_explanation_over_its_passes": took["explain"] / passes,
        "S11_flow_plain_passes_a_step": took["graph"] / passes,
    }


def mapped(repeats: int, steps: int) -> dict[str, Any]:
    """Time of maps at one site; here a plain pass goes back to the input."""
    case, site = mobilenet(), SITES[1]
    model = case.model.model.requires_grad_(False)
    image, target = case.images[:1], condec.Logit(1)
    condec.contribute(model, image, site, method=condec.ActGrad(), target=target)  # is proven

    def plain() -> Tensor:
        x = image.clone().requires_grad_()
        return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]

    def one() -> condec.ModeMap:
        return condec.mode_map(model, image, site, [3, 7, 9], target)

    plain()
    first = seconds({"first": one}, 1)["first"]
    with tempfile.TemporaryDirectory() as folder:
        (modes,) = modes_of(model, case.images[::8], folder, (site,))
        eight = modes.atoms[:8].view(8, 2, -1).sum(1)
        method = condec.IntegratedGradients(steps=steps)
        found = condec.explain(model, image, modes, method=method, target=target)
        made = found.input_maps(site)
        took = seconds(
            {
                "plain_pass": plain, "one": one, "input_maps": lambda: found.input_maps(site),
                "eight": lambda: condec.mode_map(
                    model, image, site, target=target, weights=eight
                ),
            },
            repeats,
        )  # fmt: skip
    plain_pass = took["plain_pass"]
    sizes = torch.tensor([max(part.adds, -part.takes) for part in made.parts])
    return {
        "what": f"MobileNetV2, one photo, {site}; {len(made.parts)} parts, {steps} steps",
        "processor_seconds": took | {"first": first},
        "map_of_one_mode_plain_passes": took["one"] / plain_pass,
        "first_map_over_a_warm_one": first / took["one"],
        "map_of_each_further_mode_plain_passes": (took["eight"] - took["one"]) / 7 / plain_pass,
        "input_maps_plain_passes_a_point": took["input_maps"] / (steps + 1) / plain_pass,
        "input_maps_largest_gap": float((made.missed.abs() / sizes).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", choices=["explanation", "maps"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = RESULTS / "explain.json"
    before = json.loads(known.read_text()) if known.exists() else {}
    before.pop("machine", None)
    parts = {"maps": mapped, "explanation": explained}
    if args.only:
        parts = {args.only: parts[args.only]}
    write("explain", before | {k: run(args.repeats, args.steps) for k, run in parts.items()})


if __name__ == "__main__":
    main()
