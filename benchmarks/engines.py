"""S12: what several workers do against one, with the work of each held equal.

python benchmarks/engines.py [--kinds local ray] [--workers 1 2 4 8] [--shards 12]

Passes compute on as many workers as there are cores; then each waits for a fixed time instead, so
that what is measured is the engine: giving out tasks, writing shards, records, logs. Time counts
from the first shard that a worker has done: models are loaded then.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

SAMPLES, SECONDS, CORES = 64, 0.5, len(os.sched_getaffinity(0))
NET = """
import time
from condec.testing.models import small_resnet

def computes():
    return small_resnet()

def waits():
    net, seen = small_resnet(), []
    net.register_forward_pre_hook(lambda *_: time.sleep({seconds}))
    return net
"""
PLAN = """
sites = "block*"
links = ["collect"]
model = {{spec = "python:net.py:{function}", device = "cpu"}}
data = {{source = "npz:data.npz"}}
collect = {{method = "{method}", target = "predicted", batch_size = 64, shard_size = 64}}
engine = {{kind = "{kind}", workers = {workers}, cpus = {cpus}}}
"""


def measured(kind: str, workers: int, shards: int, function: str) -> dict[str, float]:
    """Collect so many shards a worker; return how many a second, and the seconds of one."""
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), SAMPLES * shards * workers
        images = np.random.default_rng(0).random((number, 1, 32, 32), dtype=np.float32)
        np.savez(folder / "data.npz", images=images, labels=np.arange(number) % 3)
        (folder / "net.py").write_text(NET.format(seconds=SECONDS))
        method = "ig:8" if function == "computes" else "actgrad"
        plan = PLAN.format(
            function=function,
            method=method,
            kind=kind,
            workers=workers,
            cpus=min(1.0, CORES / workers),
        )
        (folder / "run.toml").write_text(plan)
        command = [sys.executable, "-m", "condec", "run", str(folder / "run.toml"), "-q"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        ends = [
            [(datetime.fromisoformat(e["time"]).timestamp(), e["seconds"]) for e in found]
            for file in (folder / "run" / "workers").glob("*.jsonl")
            if (found := [e for line in file.open() if (e := json.loads(line))["event"] == "end"])
        ]
    # Of each from its first end to its last: all are at work then.
    rates = [(len(each) - 1) / (each[-1][0] - each[0][0]) for each in ends]
    seconds = [one for each in ends for _, one in each[1:]]
    return {
        "workers": len(ends), "shards": len(seconds), "shards_a_second": sum(rates),
        "seconds_of_a_shard": sum(seconds) / len(seconds),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["local", "ray"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--sleep", action="store_true", help="Passes wait instead of computing.")
    args = parser.parse_args()
    found = {}
    for kind in args.kinds:
        for function in ("waits",) if args.sleep else ("computes", "waits"):
            one = None
            for number in args.workers:
                if number > CORES and function == "computes":
                    continue
                got = measured(kind, number, args.shards, function)
                one = one or got
                got["efficiency"] = got["shards_a_second"] / (one["shards_a_second"] * number)
                got["bookkeeping"] = 1 - got["shards_a_second"] * got["seconds_of_a_shard"] / number
                found[f"{kind} {function} {number}"] = got
                print(kind, function, {key: round(value, 3) for key, value in got.items()})
    write("engines", {"S12": found, "load": os.getloadavg()})


if __name__ == "__main__":
    main()
