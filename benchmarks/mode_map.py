"""S5: a mode map of 3 channels at a 14 x 14 site, against one backward pass a channel and position.

The loop is the paper's, made as fast as a loop can be: one forward pass whose graph is kept,
parameters frozen, and for each of the 588 (channel, position) pairs one backward pass from the
site to the input. Both give the same four maps; how far apart they are is reported.

    python benchmarks/mode_map.py [--model torchvision:resnet50] [--site layer3.5] [--quick]
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from measure import ratio, write

from condec.attribution.targets import Logit
from condec.explanation import ModeMap, mode_map
from condec.models import load_model

UNITS = (3, 50, 200)
TARGET = Logit(1)


class Loop:
    """Melander et al. 2026, figure 7, by the letter, a part of the pairs at a time."""

    def __init__(self, model: nn.Module, images: Tensor, site: str) -> None:
        kept: dict[str, Tensor] = {}
        handle = model.get_submodule(site).register_forward_hook(
            lambda m, i, out: kept.update(out=out)
        )
        self.x = images.clone().requires_grad_()
        value = model(self.x)[:, TARGET.index].sum()
        handle.remove()
        self.hidden = kept["out"]
        (self.j_y,) = torch.autograd.grad(value, self.hidden, retain_graph=True)
        self.positive, self.negative, self.sensitivity = (torch.zeros_like(images) for _ in "123")

    def go(self, places: list[tuple[int, int, int]]) -> None:
        """Walk through some more pairs."""
        for c, p, q in places:
            # Samples do not mix, so the sum over them serves the whole batch at once.
            (j_h,) = torch.autograd.grad(self.hidden[:, c, p, q].sum(), self.x, retain_graph=True)
            with torch.no_grad():
                a = self.j_y[:, c, p, q, None, None, None] * j_h
                drive = self.x * a
                upward = drive.flatten(1).sum(1)[:, None, None, None] > 0
                self.positive += drive * upward
                self.negative += drive * ~upward
                self.sensitivity += a

    def result(self) -> ModeMap:
        """The maps of the pairs so far."""
        total = self.positive + self.negative
        return ModeMap(total, self.positive, self.negative, self.sensitivity)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--site", default="layer3.5")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="time 56 of the 588 pairs only")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = load_model(args.model).model.requires_grad_(False)
    images = torch.randn(args.batch, 3, 224, 224)
    mode_map(model, images, args.site, UNITS, TARGET)
    # In turns, so that a busy machine disturbs both alike: 28 pairs of the loop, one of ours.
    places = [(c, p, q) for c in UNITS for p in range(14) for q in range(14)]
    turns = [places[i : i + 28] for i in range(0, len(places), 28)][: 2 if args.quick else None]
    walk, fast = Loop(model, images, args.site), None
    seconds: dict[str, list[float]] = {"loop": [], "condec": []}
    for turn in turns:
        started = time.perf_counter()
        walk.go(turn)
        seconds["loop"].append(time.perf_counter() - started)
        started = time.perf_counter()
        fast = mode_map(model, images, args.site, UNITS, TARGET)
        seconds["condec"].append(time.perf_counter() - started)
    slow = walk.result()
    names = ("total", "positive", "negative", "sensitivity")
    apart = {
        name: ((getattr(fast, name) - getattr(slow, name)).abs().max()
               / getattr(slow, name).abs().max()).item()
        for name in names
    }  # fmt: skip
    write(
        "mode_map",
        {
            "what": f"{args.model} (random weights), {args.site}, 3 channels x 14 x 14, "
            f"batch {args.batch}, CPU",
            "loop_pairs_a_turn": 28,
            "seconds": seconds,
            "S5_times_faster": ratio(seconds, "loop", "condec") * len(places) / 28,
            "S5_times_faster_by_sums": sum(seconds["loop"])
            / sum(seconds["condec"])
            * len(places)
            / 28,
            "largest_difference_relative_to_largest_value": None if args.quick else apart,
        },
    )


if __name__ == "__main__":
    main()
