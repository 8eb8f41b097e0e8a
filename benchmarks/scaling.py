"""Time and memory of a collection against samples and steps: linear in both, flat in memory.

Writes results/scaling.json and docs/assets/scaling.png.

    python benchmarks/scaling.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import peak_memory_mib, write

from condec.attribution import IntegratedGradients
from condec.models import load_model
from condec.store.collection import collect

SAMPLES = (100, 200, 500, 1000)
STEPS = (5, 10, 20, 40, 80)
PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "scaling.png"


def run(n_samples: int, steps: int) -> dict[str, float]:
    """Seconds of collecting, and peak memory of this process."""
    torch.manual_seed(0)
    model = load_model("torchvision:resnet18").model
    images = torch.randn(32, 3, 64, 64).repeat(-(-n_samples // 32), 1, 1, 1)[:n_samples]
    method = IntegratedGradients(steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        warm = {"method": method, "batch_size": 32, "progress": False}
        collect(model, images[:32], "layer[1-4].*", out=f"{folder}/warm.zarr", **warm)
        started = time.perf_counter()
        collect(model, images, "layer[1-4].*", out=f"{folder}/s.zarr", **warm)
        return {"seconds": time.perf_counter() - started, "peak_mib": peak_memory_mib()}


def fresh(n_samples: int, steps: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, str(n_samples), str(steps)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


def draw(samples: dict[int, dict[str, float]], steps: dict[int, dict[str, float]]) -> None:
    from condec.figures.style import panels, save_figure, styled

    with styled():
        figure, axes = panels(3, height=2.6, width=3.0)
        for axis, runs, what in ((axes[0], samples, "samples"), (axes[1], steps, "steps")):
            axis.plot(list(runs), [r["seconds"] for r in runs.values()], "o-")
            axis.set(xlabel=what, ylabel="seconds")
        axes[2].plot(list(steps), [r["peak_mib"] for r in steps.values()], "o-")
        axes[2].set(xlabel="steps", ylabel="peak memory [MiB]")
        for axis in axes:
            axis.set(xlim=(0, 1.05 * axis.get_xlim()[1]), ylim=(0, 1.05 * axis.get_ylim()[1]))
        save_figure(figure, PICTURE)


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
        return
    samples = {n: fresh(n, 10) for n in SAMPLES}
    steps = {s: fresh(100, s) for s in STEPS}
    each = [samples[n]["seconds"] / n for n in SAMPLES]
    points = [steps[s]["seconds"] / (s + 1) for s in STEPS]
    draw(samples, steps)
    write(
        "scaling",
        {
            "what": "ResNet-18 (random weights) at 64 x 64, 8 blocks, batch 32, CPU",
            "by_samples": samples,
            "by_steps": steps,
            "ten_times_the_samples_take_times": samples[1000]["seconds"] / samples[100]["seconds"],
            "seconds_a_sample_largest_over_smallest": max(each) / min(each),
            "seconds_a_point_largest_over_smallest": max(points) / min(points),
            "memory_at_80_steps_over_5": steps[80]["peak_mib"] / steps[5]["peak_mib"],
        },
    )


if __name__ == "__main__":
    main()
