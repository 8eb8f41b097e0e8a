"""What `condec plan` says of a run against what the run takes, on one process and on two.

Writes results/costs.json.

    python benchmarks/costs.py
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

from condec.run import Run, config
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


def measured(plan: Path, out: Path, workers: int) -> dict[str, float]:
    engine = ["--engine", "local", "--workers", str(workers)] if workers > 1 else []
    command = [sys.executable, "-m", "condec", "run", str(plan), "--out", str(out), "-q", *engine]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) +made +([\d.]+) s", done, re.MULTILINE)}


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Any] = {}
    for name, text in PLANS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.toml"
            file.write_text(f'out = "predicted"\n{text}')
            for workers in (1, 2):
                run = Run(replace(config.read(file), out=Path(folder) / "none"), progress=False)
                said = costs(run, check_run(run), Workers(number=workers))
                took = measured(file, Path(folder) / str(workers), workers)
                found[f"{name}, {workers} processes"] = {
                    need.link: {"predicted": round(need.on(workers), 1), "took": took[need.link]}
                    for need in said.needs
                }
                print(name, workers, found[f"{name}, {workers} processes"], flush=True)
    write("costs", {"seconds": found})


if __name__ == "__main__":
    main()
