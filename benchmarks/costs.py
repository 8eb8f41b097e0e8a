"""What `condec plan` says of a run against what the run takes, on one process and on two.

Writes results/costs.json.

    python benchmarks/costs.py [--clock]
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from measure import write

from condec.run import Run, chain, config
from condec.run.beforehand import check_run
from condec.run.costs import Workers, costs

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
LINKS = 'links = ["collect", "fit", "map"]\n[collect]\nshard_size = 64\nbatch_size = 64\n'
MORE = "[fit]\nepochs = 50\n[maps]\nn_modes = 4\n"
PLANS = {
    "digits, 4 blocks, 800 inputs": f'sites = "block*"\n{LINKS}[data]\nlimit = 800\n{MORE}',
    "ResNet-20 on CIFAR-10, 9 blocks, 512 inputs": (
        f'sites = "layer[1-3].*"\n{LINKS}'
        f'[model]\nspec = "python:{CIFAR}/cifar_resnet.py:load_resnet"\n'
        f'weights = "{CIFAR}/resnet20_cifar10.safetensors"\n'
        f'[data]\nsource = "npz:{CIFAR}/test_2000.npz"\n'
        f'preprocess = "{CIFAR}/cifar_resnet.py:preprocess"\nlimit = 512\n{MORE}'
    ),
}


def of_one(file: Path, out: Path) -> dict[str, Any]:
    """Seconds of the processor: the clock of this process is that, so that others do not count."""
    clock, time.perf_counter = time.perf_counter, time.process_time
    try:
        run = Run(replace(config.read(file), out=out), progress=False)
        said = costs(run, left_out := check_run(run))
        config.write(run.plan)
        took = {outcome.link: outcome.seconds for outcome in chain(run, left_out)}
    finally:
        time.perf_counter = clock
    return {n.link: {"predicted": n.seconds, "took": took[n.link]} for n in said.needs}


def of_several(file: Path, out: Path, workers: int) -> dict[str, Any]:
    """Seconds by the clock, of processes that start first; they share the machine with others."""
    run = Run(replace(config.read(file), out=out), progress=False)
    said = costs(run, check_run(run), Workers(number=workers))
    engine = ["--engine", "local", "--workers", str(workers)] if workers > 1 else []
    command = [sys.executable, "-m", "condec", "run", str(file), "--out", str(out), "-q", *engine]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took = dict(re.findall(r"^(\w+) +made +([\d.]+) s", done, re.MULTILINE))
    return {n.link: {"predicted": n.on(workers), "took": float(took[n.link])} for n in said.needs}


def main() -> None:
    found: dict[str, Any] = {}
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name, text in PLANS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.toml"
            file.write_text(f'out = "predicted"\n{text}')
            found[f"{name}, seconds of the processor"] = of_one(file, Path(folder) / "cpu")
            print(found, flush=True)
            for workers in (1, 2) if "--clock" in sys.argv else ():
                place = Path(folder) / str(workers)
                found[f"{name}, {workers} by the clock"] = of_several(file, place, workers)
                print(found, flush=True)
    write("costs", {"seconds": found})


if __name__ == "__main__":
    main()
