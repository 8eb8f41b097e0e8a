"""Contributions of a retina at three layers, 20 steps: frames a second against the bare passes.

The three-layer network of Maheswaranathan et al. 2023 (40 frames of 50 x 50 pixels, 8 and 8
channels, 5 cells, random weights), with plain convolutions and with stacks of linear 3 x 3 ones.
A movie goes through `condec.collect`, from overlapping clips to the store, IG with 20 steps to
the population's surprisal, at `conv1`, `conv2` and `conv3`. Beside it, on the same batches:

- *bare passes*: steps + 1 forward passes, and gradients back to the first site, of clips that
  are in memory already: what a loop with hooks takes that records nothing;
- *floor*: the same where the first convolution, affine in the movie, runs once at the clip and
  once at the baseline.

    python benchmarks/retina_speed.py [--frames 2000] [--repeats 1] [--batch 64] [--threads N]
        [--ways condec bare_passes floor]

``--frames 10000 --ways condec`` is the full size without the half hour of bare passes; fewer ways
than all are written to a file of their own.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import ratio, side_by_side, write

from condec.attribution import IntegratedGradients
from condec.attribution.targets import Surprisal
from condec.retina import Recording
from condec.retina.models.network import RetinaLayout, RetinaNetwork
from condec.store.collection import collect

STEPS = 20
N_CELLS = 5
SITES = ("conv1", "conv2", "conv3")
WAYS = ("condec", "bare_passes", "floor")


def network(stack: tuple[int, int] | None) -> nn.Module:
    """With weights of seed 0."""
    torch.manual_seed(0)
    return RetinaNetwork(RetinaLayout(n_cells=N_CELLS, stack=stack)).eval()


def after_first(model: nn.Module) -> nn.Module:
    """What lies after the first convolution."""
    children = list(model.named_children())
    place = [name for name, _ in children].index("conv1")
    return nn.Sequential(*(child for _, child in children[place + 1 :]))


def bare_passes(model: nn.Module, windows: Any, batch: int, *, affine: bool) -> None:
    """Forward, and gradients back to the first site, at every point of the path."""
    for start in range(0, len(windows), batch):
        clips = windows.batch(range(start, min(start + batch, len(windows))))
        if affine:
            with torch.no_grad():
                end, zero = model.conv1(clips), model.conv1(torch.zeros_like(clips[:1]))
        for step in range(STEPS + 1):
            alpha = step / STEPS
            if affine:
                first = torch.lerp(zero, end, alpha)
            else:
                with torch.no_grad():
                    first = model.conv1(alpha * clips)
            rates = after_first(model)(first.requires_grad_())
            torch.autograd.grad(rates.square().sum(), first)


def measure(name: str, stack: tuple[int, int] | None, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and frames a second of each way."""
    model = network(stack)
    generator = torch.Generator().manual_seed(0)
    movie = torch.randn(args.frames + 40, 50, 50, generator=generator)
    windows = Recording(movie=movie).windows(40)
    some = windows.select(range(0, len(windows), max(1, len(windows) // 200)))
    with torch.no_grad():
        target = Surprisal.fit(model(some.batch(range(len(some)))))

    def condec() -> None:
        with tempfile.TemporaryDirectory() as folder:
            collect(
                model, windows, SITES, method=IntegratedGradients(steps=STEPS), target=target,
                out=f"{folder}/store.zarr", batch_size=args.batch, progress=False,
            )  # fmt: skip

    runs = {
        "condec": condec,
        "bare_passes": lambda: bare_passes(model, windows, args.batch, affine=False),
        "floor": lambda: bare_passes(model, windows, args.batch, affine=True),
    }
    seconds = side_by_side({way: runs[way] for way in args.ways}, args.repeats)
    found = {
        "network": name,
        "seconds": seconds,
        "frames_a_second": {way: args.frames / min(times) for way, times in seconds.items()},
    }
    if len(seconds) < len(WAYS):
        return found
    return found | {
        "times_as_fast_as_bare_passes": ratio(seconds, "bare_passes", "condec"),
        "times_the_floor": ratio(seconds, "condec", "floor"),
    }


def same(model: nn.Module, clips: Tensor) -> float:
    """Largest difference of the floor's rates from the network's, over the largest rate."""
    with torch.no_grad():
        own = model(clips)
        return float((after_first(model)(model.conv1(clips)) - own).abs().max() / own.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    assert same(network(None), torch.randn(2, 40, 50, 50)) < 1e-6
    found = [measure(name, stack, args) for name, stack in (("plain", None), ("stacked", (3, 3)))]
    write(
        "retina_speed" if len(args.ways) == len(WAYS) else "retina_speed_" + "_".join(args.ways),
        {
            "what": "IG 20 at conv1, conv2, conv3; 40 x 50 x 50 clips of a movie, to a store",
            "frames": args.frames, "steps": STEPS, "batch": args.batch, "networks": found,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
