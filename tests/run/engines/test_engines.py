"""Workers in processes: those of this machine, and actors of a real Ray."""

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import condec.report
from condec import cli
from condec.basis.errors import DependencyError, OptionError
from condec.run import Run, config
from condec.run.engines import engine_of, local
from condec.run.links import collect_link, fit_link
from condec.run.plan import EnginePlan, Plan
from small_runs import contents, quick_report, write_source


def collected(root: Path, *engine: str) -> dict[str, bytes]:
    text = (root / "run.toml").read_text()
    (root / "run.toml").write_text('links = ["collect"]\n' + text)
    result = CliRunner().invoke(cli.app, ["run", str(root / "run.toml"), "-q", *engine])
    assert result.exit_code == 0, result.output
    found = contents(root / "run").items()
    return {n: c for n, c in found if not n.startswith("workers/") and n != "run.toml"}


def ray_plan(**options: Any) -> Plan:
    engine = EnginePlan(kind="ray", **options)
    return Plan(out=Path("run"), base=Path(), sites=("*",), engine=engine)


def tasks_of(root: Path) -> set[str]:
    logs = (root / "run" / "workers").glob("*.jsonl")
    return {name for log in logs for name in log.read_text().split('"') if ".zarr " in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return collected(write_source(tmp_path_factory.mktemp("whole")))


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condec.report, "build_report", quick_report)


def test_processes_of_this_machine(tmp_path: Path, whole: dict[str, bytes]) -> None:
    root = write_source(tmp_path)
    assert collected(root, "--engine", "local", "--workers", "2") == whole
    assert tasks_of(root) == {f"contributions.zarr {n}" for n in range(3)}


def test_a_process_that_is_killed_while_it_has_nothing_to_do(tmp_path: Path) -> None:
    run = Run(config.read(write_source(tmp_path) / "run.toml"), progress=False)
    pool = local.LocalPool(EnginePlan(kind="local", workers=1))
    hand = pool.start(run, 1)
    hand.submit("ready").result(120)
    assert isinstance(hand, local._Process)
    (process,) = hand.pool._processes
    os.kill(process, signal.SIGKILL)
    with pytest.raises(pool.died):
        hand.submit("do", "shards", "contributions.zarr 0", {}).result(60)
    with pytest.raises(pool.died):  # as broken as before
        hand.submit("ready").result(60)
    hand.end()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20,
                 namespace="condec", log_to_driver=False, logging_level="ERROR")  # fmt: skip
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_actors_of_ray(tmp_path: Path, whole: dict[str, bytes]) -> None:
    root = write_source(tmp_path)
    assert collected(root, "--engine", "ray", "--workers", "2") == whole
    assert tasks_of(root) == {f"contributions.zarr {n}" for n in range(3)}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_as_many_actors_as_there_is_room_for(tmp_path: Path) -> None:
    run = Run(config.read(write_source(tmp_path) / "run.toml"), progress=False)
    for cpus, expected in ((1.0, 2), (0.5, 4), (8.0, 1)):
        pool = engine_of(ray_plan(cpus=cpus))
        assert pool is not None
        assert pool.most(run) == expected
        pool.close()
    import ray

    assert ray.is_initialized(), "that was not started by the engine"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_actors_grow_from_the_least_to_the_most_and_back(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    root = write_source(tmp_path)
    plan = config.read(root / "run.toml")
    pool = engine_of(ray_plan(workers=2, least_workers=1))
    assert pool is not None
    run = Run(plan, progress=False, engine=pool)
    numbers = []
    for link in (collect_link, fit_link):
        link(run)
        numbers.append((pool.n_started, len(pool.places)))
    pool.close()
    # One stays; another is started for the fits, and for what their modes mean.
    assert numbers == [(2, 1), (4, 1)]
    made = contents(root / "run")
    assert all(made[n] == c for n, c in whole.items() if n.startswith("contributions"))


def test_cores_and_devices_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(config.read(write_source(tmp_path) / "run.toml"), progress=False)
    monkeypatch.setattr(local, "_cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    begun: list[Any] = []

    class Begun(local._Process):
        def __init__(self, given: Any, *more: Any) -> None:
            begun.append((given, *more))

    monkeypatch.setattr(local, "_Process", Begun)
    pool = local.LocalPool(EnginePlan(kind="local", workers=2))
    pool.start(run, 1)
    assert local.LocalPool(EnginePlan(kind="local")).most(run) == 6
    monkeypatch.setattr(local, "_devices", lambda run: ["cuda:0", "cuda:1"])
    assert local.LocalPool(EnginePlan(kind="local")).most(run) == 2
    pool.start(run, 2)
    assert [(given.threads, *more) for given, *more in begun] == [(3, 0, None), (3, 0, "cuda:0")]


def test_without_ray_the_engine_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "condec.run.engines.on_ray", raising=False)
    with pytest.raises(DependencyError, match=r"ray is not installed; pip install 'condec\[ray"):
        engine_of(ray_plan())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(OptionError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        engine_of(ray_plan(address="127.0.0.1:1"))
