"""What every benchmark shares: timing side by side, the machine's name, and the JSON file."""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def side_by_side(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turns so that a busy machine disturbs all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the turns of one run's time divided by another's in the same turn."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True))


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far (of this program, not of its parent)."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss of a child begins at what its parent had when it was started.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """Processor, cores, GPU and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "condec": metadata.version("condec"),
        "load_before": os.getloadavg()[0],
    }


def write(name: str, record: Mapping[str, Any]) -> Path:
    """Write `record` and the machine to ``results/NAME.json``, and print it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **record}, indent=1)
    path.write_text(text + "\n")
    print(text)
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def paste(name: str, text: str, page: Path = PAGE) -> None:
    """Put `text` between ``<!-- NAME -->`` and ``<!-- /NAME -->`` in a page of the docs."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->\n")
    if not end:
        raise SystemExit(f"{page}: no place for {name}: expected <!-- {name} --> <!-- /{name} -->")
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
