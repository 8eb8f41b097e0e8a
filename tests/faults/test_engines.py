"""Runs with workers, disturbed: each ends with the bytes of an undisturbed run of one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import condec.report
from condec import cli
from forked import Command
from small_runs import contents, quick_report, write_source

# Slow passes, so that what is killed is at work; the numbers are those of the quick network.
SLOW = """
from condec.testing.models import small_resnet
import time, torch

def make():
    net = small_resnet(labels=3)
    net.register_forward_pre_hook(lambda *_: time.sleep(0.04))
    return net

def short_of_memory():
    net = small_resnet(labels=3)
    def refuse(module, given):
        if len(given[0]) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
    net.register_forward_pre_hook(refuse)
    return net
"""
KILLS = 50
LINKS = 'links = ["collect", "stats", "fit", "control", "map", "explain"]\n'


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condec.report, "build_report", quick_report)


def write(folder: Path, changes: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    root = write_source(folder)
    (root / "net.py").write_text(SLOW)
    text = LINKS + (root / "run.toml").read_text().replace("shard_size = 16", "shard_size = 2")
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    (root / "run.toml").write_text(text)
    return root


def command(root: Path, *given: str) -> list[str]:
    return ["run", str(root / "run.toml"), "-q", *given]


def results(root: Path) -> dict[str, bytes]:
    """All files of a run but the plan, which names the engine, and what workers tell."""
    found = contents(root / "run").items()
    return {n: c for n, c in found if not n.startswith("workers/") and n != "run.toml"}


def undisturbed(tmp_path: Path, changes: dict[str, str] | None = None) -> dict[str, bytes]:
    root = write(tmp_path / "undisturbed", changes)
    result = CliRunner().invoke(cli.app, command(root))
    assert result.exit_code == 0, result.output
    return results(root)


def events(root: Path) -> Iterator[dict[str, Any]]:
    for file in (root / "run" / "workers").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            if line.endswith("}"):
                yield json.loads(line)


def at_work(root: Path, driver: int | None = None) -> list[int]:
    """Processes that have a task in hand; before something is done to them, only a driver's."""
    last = {event["process"]: event["event"] for event in events(root)}
    return [
        process for process, event in last.items() if event == "begin" and alive(process, driver)
    ]


def alive(process: int, parent: int | None = None) -> bool:
    """Tell whether a process lives, as a child of `parent`: numbers are given again."""
    try:
        state, its = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
        return state != "Z" and parent in (None, int(its))
    except OSError:
        return False


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "that did not happen"
        time.sleep(0.02)
    return found


LOCAL = ("--engine", "local", "--workers", "2")


@pytest.mark.slow  # tests/run/engines has one process killed, and what follows a death by itself
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [2, KILLS])
def test_kills_of_workers_at_any_time(tmp_path: Path, kills: int) -> None:
    changes = {"links = [": 'links = ["collect"]\n# ['} if kills < KILLS else {}
    changes |= {"shard_size = 2": "shard_size = 4"} if kills < KILLS else {}
    whole, chance = undisturbed(tmp_path, changes), random.Random(0)
    root = write(tmp_path / "disturbed", changes)
    driver, killed = Command(tmp_path / "out", command(root, *LOCAL)), 0
    number = driver.process.pid
    while driver.process.is_alive() and killed < kills:
        if at_work(root, number):
            time.sleep(chance.uniform(0, 0.4))
            running = at_work(root, number)
            for one in chance.sample(running, min(1, len(running))):
                os.kill(one, signal.SIGKILL)
                killed += 1
                wait_for(lambda o=one: not alive(o, number))
        time.sleep(0.02)
    assert driver.end(3000) == 0, driver.output
    log = (root / "run" / "log.jsonl").read_text()
    print(f"{killed} of {kills} kills, {log.count('worker died')} deaths noted")
    assert results(root) == whole
    assert killed == kills  # or the run ended before: kill sooner


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_drivers_that_are_stopped_and_begun_again(tmp_path: Path, number: signal.Signals) -> None:
    whole, chance, stops = undisturbed(tmp_path), random.Random(int(number)), 4
    root = write(tmp_path / "disturbed")
    for stop in range(stops):
        driver, before = Command(tmp_path / f"out{stop}", command(root, *LOCAL)), set(at_work(root))
        running = wait_for(lambda b=before: set(at_work(root)) - b)
        time.sleep(chance.uniform(0, 2))
        running |= set(at_work(root))
        sent = time.monotonic()
        os.kill(driver.process.pid or 0, number)
        code = driver.end()
        took = time.monotonic() - sent
        assert code == (-number if number == signal.SIGKILL else 128 + number), driver.output
        assert "Traceback" not in driver.output
        if number != signal.SIGKILL:
            assert "the same command keeps what is whole" in driver.output
        assert took < 12
        wait_for(lambda r=running: not any(map(alive, r)), 10)
        print(f"{number.name}: ended in {took:.1f} s, its workers with it")
    last = Command(tmp_path / "last", command(root, *LOCAL))
    assert last.end(1000) == 0, last.output
    assert results(root) == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("on_bad", ["skip", "raise"])
@pytest.mark.parametrize("what", ["corrupt", "missing", "nan"])
def test_bad_inputs(tmp_path: Path, what: str, on_bad: str) -> None:
    def damage(root: Path) -> Path:
        images = np.random.default_rng(0).random((40, 1, 6, 6)).astype(np.float32)
        if what == "nan":
            images[17] = np.nan
            np.savez(root / "data.npz", images=images, labels=np.arange(40) % 3)
            return root
        for n, image in enumerate(images):
            (root / "photos" / f"c{n % 3}").mkdir(parents=True, exist_ok=True)
            file = root / "photos" / f"c{n % 3}" / f"{n:02}.png"
            Image.fromarray((255 * image[0]).astype(np.uint8)).save(file)
            if n == 17 and what == "corrupt":
                file.write_bytes(file.read_bytes()[:40])
        if what == "missing":
            names = sorted(f.relative_to(root / "photos") for f in root.glob("photos/*/*"))
            lines = ["file,label", *(f"{name},{name.parent.name}" for name in names)]
            (root / "photos.csv").write_text("\n".join(lines) + "\n")
            (root / "photos" / "c2" / "17.png").unlink()
        (root / "net.py").write_text(
            SLOW + "\n\ndef gray(image):\n    return image[..., 0].unsqueeze(-3).float() / 255\n"
        )
        return root

    source = (
        '"npz:data.npz"'
        if what == "nan"
        else '"folder:photos", preprocess = "python:net.py:gray"'
        + (', csv = "photos.csv"' if what == "missing" else "")
    )
    changes = {
        '"npz:data.npz"': source, "batch_size = 16": f'batch_size = 16, on_bad = "{on_bad}"',
        "links = [": 'links = ["collect", "stats"]\n# [',
    }  # fmt: skip
    ends = {}
    for name, engine in (("one", ()), ("workers", LOCAL)):
        root = damage(write(tmp_path / name, changes))
        driver = Command(tmp_path / f"out-{name}", command(root, *engine))
        ends[name] = driver.end(300), results(root), driver.output.replace(str(root), "")
    (code, made, said), (other_code, other_made, other_said) = ends.values()
    assert code == other_code == (0 if on_bad == "skip" else 2), said + other_said
    assert "17" in said
    assert "17" in other_said
    if on_bad == "skip":
        assert made == other_made
    else:
        # Whole shards count; the workers may have made more of them than one process.
        assert {n: c for n, c in other_made.items() if n in made} == made


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_batch_that_memory_does_not_hold_is_done_in_halves(tmp_path: Path) -> None:
    plain = {"links = [": 'links = ["collect"]\n# [', "shard_size = 2": "shard_size = 16"}
    more = {"batch_size = 16": "batch_size = 16, prove = false"}
    changes = plain | more | {"net.py:make": "net.py:short_of_memory"}
    whole = undisturbed(tmp_path, plain)
    root = write(tmp_path / "disturbed", changes)
    words = [sys.executable, "-m", "condec", *command(root, *LOCAL)]
    driver = subprocess.run(words, capture_output=True, text=True, check=False)
    assert driver.returncode == 0, driver.stderr
    assert "a batch of 16 samples does not fit in memory" in driver.stderr
    assert "done in halves" in driver.stderr
    made = results(root)
    arrays = [n for n in whole if "/contribution/c." in n]
    same = sum(made[n] == whole[n] for n in arrays)
    print(f"{same} of {len(arrays)} files of contributions have the bits of whole batches")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_driver_is_told_who_holds_the_run(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    root = write(tmp_path / "disturbed")
    first = Command(tmp_path / "first", command(root, *LOCAL))
    wait_for(lambda: at_work(root))
    second = Command(tmp_path / "second", command(root, *LOCAL))
    assert second.end() == 2
    assert "run: in use by " in second.output
    assert first.end(300) == 0, first.output
    assert results(root) == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_parts_that_are_killed_and_begun_again(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path, {"links = [": 'links = ["collect"]\n# ['})
    root, chance = (
        write(tmp_path / "disturbed", {"links = [": 'links = ["collect"]\n# ['}),
        (random.Random(0)),
    )
    part = ["collect", str(root / "run.toml"), "-q", "--part"]
    parts = [Command(tmp_path / f"part{n}", [*part, f"{n}/3"]) for n in (1, 2, 3)]
    wait_for(lambda: len(at_work(root)) == 3)
    time.sleep(chance.uniform(0, 0.5))
    for one in parts[:2]:
        os.kill(one.process.pid or 0, signal.SIGKILL)
    assert parts[2].end(300) == 0, parts[2].output
    assert [one.end() for one in parts[:2]] == [-signal.SIGKILL] * 2
    claims = root / "run" / "contributions.zarr" / "claims"
    # One each in hand, and one that was being written: theirs for a while.
    assert len(list(claims.glob("shard-*"))) in (2, 3, 4)
    again = Command(tmp_path / "again", [*part, "1/3"])
    assert again.end(300) == 0, again.output
    assert len(list(claims.glob("shard-*"))) in (1, 2)
    last = Command(tmp_path / "last", command(root))
    assert last.end(300) == 0, last.output
    assert results(root) == whole


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_grows(tmp_path: Path) -> None:
    """Two workers are wanted and there is room for one, until a node comes."""
    from ray.cluster_utils import Cluster

    only, memory = {LINKS: 'links = ["collect"]\n'}, {"object_store_memory": 80 * 2**20}
    whole, root = undisturbed(tmp_path, only), write(tmp_path / "grown", only)
    # One worker has a minute of work: a node and an actor take a while to start.
    (root / "net.py").write_text(SLOW.replace("0.04", "1"))
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    try:
        engine = ["--engine", "ray", "--workers", "2", "--address", cluster.address]
        driver = subprocess.Popen([sys.executable, "-m", "condec", *command(root, *engine)])
        wait_for(lambda: len(at_work(root)) == 1, 300)
        cluster.add_node(num_cpus=1, **memory)
        wait_for(lambda: len(at_work(root)) == 2, 300)
        assert driver.wait(1200) == 0
    finally:
        cluster.shutdown()
    assert results(root) == whole


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_a_lost_node_of_a_cluster(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    whole, memory = undisturbed(tmp_path), {"object_store_memory": 80 * 2**20}
    root = write(tmp_path / "disturbed")
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
        engine = ["--engine", "ray", "--workers", "2", "--address", cluster.address]
        driver = subprocess.Popen([sys.executable, "-m", "condec", *command(root, *engine)])
        wait_for(lambda: at_work(root), 300)
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1, **memory)  # comes instead
        assert driver.wait(1200) == 0
    finally:
        cluster.shutdown()
    died = (root / "run" / "log.jsonl").read_text().count("worker died")
    print(f"a node lost, {died} deaths of workers noted")
    assert died >= 1
    assert results(root) == whole
