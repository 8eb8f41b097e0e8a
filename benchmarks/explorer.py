"""The served explorer: a slider moved (S13), an input explained, and many readers at once.

MobileNetV2 on 20 photos, with modes of an NMF at two sites. The explorer is a process of its own,
asked over HTTP on this machine: first one slider after another; then 50 readers of pages and
pictures, while 10 ask for explanations, for two minutes. Writes results/explorer.json. Needs
../shared/data.

    python benchmarks/explorer.py [SECONDS]
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "photos_mobilenet"
N_READERS, N_ASKING, N_TURNS = 50, 10, 40


def made(folder: Path) -> Path:
    """Collect and fit, at sites of the example and with its data."""
    text = (EXAMPLE / "run.toml").read_text()
    text = text.replace("../../../shared", str(EXAMPLE.parents[2] / "shared"))
    text = text.replace('csv = "photos.csv"', f'csv = "{EXAMPLE / "photos.csv"}"')
    text = text.replace('"map", "report"', '"report"')
    (folder / "run.toml").write_text(text)
    subprocess.run([sys.executable, "-m", "condec", "run", folder / "run.toml", "-q"], check=True)
    return folder / "run.toml"


@contextmanager
def explorer(plan: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a run in a process of its own."""
    command = [sys.executable, "-u", "-m", "condec", "explore", str(plan), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1], psutil.Process(process.pid)
        finally:
            process.terminate()


def ask(url: str, body: Any = None) -> Any:
    """Ask once; the answer, from JSON where it is some."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"X-Condec": "1"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        content = answer.read()
    return json.loads(content) if body is not None or "/api/inputs" in url else content


def timed(use: Any, *given: Any) -> float:
    started = time.perf_counter()
    use(*given)
    return 1000 * (time.perf_counter() - started)


def turning(url: str, name: str) -> dict[str, Any]:
    """Milliseconds of an explanation, of the first slider of a site, and of those after it."""
    explained = [timed(ask, f"{url}api/explain", {"id": name}) for _ in range(3)]
    answer = ask(f"{url}api/explain", {"id": name})
    found: dict[str, Any] = {"explain_ms": float(np.median(explained))}
    for site in answer["sites"]:
        nothing = {"key": answer["key"], "site": site["key"], "factors": {}}
        prepared = timed(ask, f"{url}api/turn", nothing)  # as the page does while one looks
        times = []
        for n in range(N_TURNS):
            part = site["parts"][n % 4]["name"]
            asked = {"key": answer["key"], "site": site["key"], "factors": {part: 0.05 * n}}
            times.append(timed(ask, f"{url}api/turn", asked))
        found[site["key"]] = {
            "prepared_ms": prepared, "first_ms": times[0], "median_ms": float(np.median(times[1:])),
            "p95_ms": float(np.percentile(times[1:], 95)),
        }  # fmt: skip
    return found


def loaded(url: str, process: psutil.Process, seconds: float) -> dict[str, Any]:
    """Read and ask from many threads at once, for some time."""
    ids = [one["id"] for one in ask(f"{url}api/inputs")]
    pages = ["", "report/index.html", "static/explorer.js", "report/assets/report.css"]
    pages += [f"api/picture?id={quote(one)}" for one in ids]
    until, read, answered, errors = time.time() + seconds, [], [], list[str]()
    memory = [process.memory_info().rss / 2**20]

    def reader(number: int) -> None:
        drawn = np.random.default_rng(number)
        while time.time() < until:
            try:
                read.append(timed(ask, url + pages[drawn.integers(len(pages))]))
            except (OSError, urllib.error.HTTPError) as error:
                errors.append(str(error))
            time.sleep(drawn.exponential(1.0))  # a person looks, for about a second

    def asking(number: int) -> None:
        while time.time() < until:
            try:
                answered.append(timed(ask, f"{url}api/explain", {"id": ids[number % len(ids)]}))
            except (OSError, urllib.error.HTTPError) as error:
                errors.append(str(error))

    def watch() -> None:
        while time.time() < until:
            memory.append(process.memory_info().rss / 2**20)
            time.sleep(1)

    threading.Thread(target=watch).start()
    with ThreadPoolExecutor(N_READERS + N_ASKING) as pool:
        jobs = [pool.submit(reader, n) for n in range(N_READERS)]
        jobs += [pool.submit(asking, n) for n in range(N_ASKING)]
        for job in jobs:
            job.result()
    quarter = len(memory) // 4
    return {
        "seconds": seconds, "readers": N_READERS, "asking": N_ASKING,
        "pages_read": len(read), "read_p50_ms": float(np.median(read)),
        "read_p95_ms": float(np.percentile(read, 95)), "explained": len(answered),
        "explained_p50_ms": float(np.median(answered)), "errors": len(errors),
        "first_errors": errors[:3], "memory_mib": {
            "start": memory[0], "every_10_s": [round(one) for one in memory[::10]],
            "most_of_quarters": [
                round(max(memory[n * quarter : (n + 1) * quarter])) for n in range(4)
            ],
        },
    }  # fmt: skip


def main() -> None:
    """Measure, and write it down."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    with tempfile.TemporaryDirectory() as folder, explorer(made(Path(folder))) as (url, process):
        name = ask(f"{url}api/inputs")[0]["id"]
        result = {"turning": turning(url, name), "load": loaded(url, process, seconds)}
    print(json.dumps(result, indent=1))
    write("explorer", result)


if __name__ == "__main__":
    main()
