"""An object store that fails: the end state equals the local store's, object by object.

The whole is slow: ``pytest -m slow -s tests/faults/test_object_store.py`` prints its counts.
"""

import copy
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch

import condec
from condec.basis.errors import StoreError
from condec.store import Store
from condec.testing.models import small_resnet
from object_server import SECRET, ObjectServer, settings

FAULTS: Final = {
    "503": 0.3, "time-out": 0.05, "slow": 0.3, "cut PUT": 0.3, "lost answer": 0.3, "cut GET": 0.3,
    "lost listing": 1.0,
}  # fmt: skip
WORST: Final = {name: chance / 3 for name, chance in FAULTS.items()}
KILLS: Final = 20
N: Final = 24
MODEL: Final = small_resnet()
WORK: Final = """
import sys
sys.path.insert(0, {here!r})
import test_object_store
test_object_store.collect({out!r})
"""


def collect(out: str | Path, steps: int = 2) -> Store:
    draw = torch.Generator().manual_seed(1)
    data = (torch.randn(N, 1, 6, 6, generator=draw), torch.arange(N) % 3)
    return condec.collect(
        copy.deepcopy(MODEL), data, "block*", out=out, shard_size=4, batch_size=4,
        method=condec.IntegratedGradients(steps=steps), progress=False, prove=False,
    )  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store on disk that all others are compared with."""
    return collect(tmp_path_factory.mktemp("whole") / "s.zarr")


@pytest.fixture
def bucket(object_server: ObjectServer) -> Iterator[str]:
    with settings(object_server.url):
        yield f"s3://tests/{os.urandom(4).hex()}"


def endure(
    server: ObjectServer, out: str, whole: Store, chances: dict[str, float], seed: int
) -> Counter[str]:
    """Collect and read while faults happen, again where one is told of one; count all."""
    with server.failing(chances, seed) as counts:
        told = again_and_again(lambda: collect(out))
        told += again_and_again(lambda: same_numbers(Store.open(out), whole))
    assert contents(Store.open(out).path) == contents(whole.path)
    return counts + Counter({"told, done again": told})


def again_and_again(use: Callable[[], object]) -> int:
    """Do it until the object store does not fail; return how often it did."""
    told: list[str] = []
    while True:
        try:
            use()
            break
        except StoreError as error:
            if "was made by another recipe" in str(error):
                raise
            told.append(str(error))
    assert all("object store, and its settings" in text and SECRET not in text for text in told)
    return len(told)


def same_numbers(store: Store, whole: Store) -> None:
    store.verify()
    assert store.sample_ids == whole.sample_ids
    for site in store.sites:
        assert torch.equal(store.matrix(site), whole.matrix(site))


def test_a_sample_of_faults(object_server: ObjectServer, bucket: str, whole: Store) -> None:
    chances = {name: chance for name, chance in WORST.items() if name not in ("time-out", "slow")}
    counts = endure(object_server, bucket, whole, chances, 0)
    assert sum(counts[name] for name in chances) >= 10, counts


@pytest.mark.slow
def test_ctrl_c_during_a_request(
    object_server: ObjectServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer would take a minute; the command ends, and the same one goes on."""
    collect(bucket)
    monkeypatch.setenv("AWS_TIMEOUT", "60 s")
    plan = f'store = "{bucket}"\nsites = "block1"\nout = "fits"\n'
    (tmp_path / "sweep.toml").write_text(plan + 'grid = [{learner = "pca", n_modes = 2}]\n')
    asked, answered = threading.Event(), threading.Event()

    def hangs(request: dict[str, Any]) -> None:
        asked.set()
        answered.wait(60)

    command = [sys.executable, "-m", "condec", "sweep", str(tmp_path / "sweep.toml")]
    monkeypatch.setattr(object_server, "fault", hangs)
    # A shell that puts the tests into the background has SIGINT ignored, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    assert asked.wait(60)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert not answered.is_set()
    answered.set()
    assert child.returncode == 130, said
    assert "interrupted; the same command keeps what is whole" in said
    assert "Traceback" not in said
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 9))]
)
def test_two_that_collect_at_once(
    object_server: ObjectServer, bucket: str, whole: Store, seed: int
) -> None:
    """Into one store; then with another recipe each, of which one is refused."""
    with object_server.failing({"503": 0.05, "lost answer": 0.05, "lost listing": 1.0}, seed):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(again_and_again, [partial(collect, f"{bucket}/one")] * 2))
            others = [partial(collect, f"{bucket}/two", steps) for steps in (2, 3)]
            made = [pool.submit(again_and_again, use) for use in others]
            errors = [error for one in made if (error := one.exception()) is not None]
    assert contents(Store.open(f"{bucket}/one").path) == contents(whole.path)
    assert len(errors) == 1
    assert "was made by another recipe" in str(errors[0])
    Store.open(f"{bucket}/two").verify()
    assert Store.open(f"{bucket}/two").is_complete


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_fault_alone_and_all_together(
    object_server: ObjectServer, bucket: str, whole: Store
) -> None:
    total: Counter[str] = Counter()
    for seed in range(3):
        for name, chance in FAULTS.items():
            total += endure(
                object_server, f"{bucket}/{seed}-{name[:4]}", whole, {name: chance}, seed
            )
        for trial in range(7):
            total += endure(object_server, f"{bucket}/{seed}-{trial}", whole, WORST, trial)
    print(f"\nobject store: {dict(total)}")
    assert sum(total[name] for name in FAULTS) >= 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_a_process_that_writes_objects(
    object_server: ObjectServer, bucket: str, whole: Store
) -> None:
    """At any time, with half a request under way as well; then the same command."""
    chance, killed, made = random.Random(17), 0, 0
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    with object_server.failing({"slow": 0.3}, 0) as counts:
        for _ in range(KILLS):
            out = f"{bucket}/{made}"
            work = WORK.format(here=str(Path(__file__).parent), out=out)
            child = subprocess.Popen([sys.executable, "-c", work], env=known)
            stop = counts["requests"] + chance.randrange(1, 80)
            while child.poll() is None and counts["requests"] < stop:
                time.sleep(0.005)
            child.kill()
            killed += child.wait() == -signal.SIGKILL
            with suppress(StoreError):  # before its metadata are there
                store = Store.open(out)
                assert store.damages() == ()
                if store.is_complete:
                    assert contents(store.path) == contents(whole.path)
                    made += 1
    print(f"\nobject store: {killed} kills, {made} stores meanwhile, {counts['requests']} requests")
    assert killed >= KILLS // 2
    assert contents(collect(out).path) == contents(whole.path)
