"""A pool of workers: who does what, what follows when one dies, and what the driver finds done."""

import itertools
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import condec.report
from condec.basis import locks, signals, trust
from condec.basis.errors import DataError, OptionError, StoreError
from condec.run import Outcome, Run, chain, config
from condec.run.engines import engine_of, worker
from condec.run.engines.pool import GRACE, TRIES, Hand, Pool
from condec.run.engines.worker import Given, RemoteWorker
from condec.run.plan import EnginePlan, Plan
from condec.store import Store
from condec.store.batches import BatchPlan, LoadedBatch
from small_runs import contents, quick_report, write_source

Later = list[Callable[[], None]]


class Died(Exception):
    """Stands for a process that is gone."""


class Here(Pool):
    """Workers in this process; `dies` says at which call one dies."""

    died = (Died,)

    def __init__(self, dies: Callable[[int], bool] = lambda call: False, **plan: Any) -> None:
        super().__init__(EnginePlan(kind="local", workers=2, **plan))
        self.calls, self.dies, self.done = itertools.count(1), dies, list[str]()

    def most(self, run: Run) -> int:
        return self.plan.workers

    def start(self, run: Run, number: int) -> Hand:
        return InProcess(self, RemoteWorker(Given.of(run, 1), f"here-{number}"))


class InProcess(Hand):
    def __init__(self, pool: Here, worker: RemoteWorker, later: Later | None = None) -> None:
        self.pool, self.worker, self.dead, self.later = pool, worker, False, later

    def submit(self, method: str, *given: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def finish() -> None:
            try:
                future.set_result(self.call(method, *given))
            except Exception as error:  # noqa: BLE001  # what a process would tell
                future.set_exception(error)

        if method != "ready" and self.later is not None:
            self.later.append(finish)
        else:
            finish()
        return future

    def call(self, method: str, *given: Any) -> Any:
        if method == "do" and self.pool.dies(next(self.pool.calls)):
            self.dead = True
        if self.dead:
            raise Died
        if method == "do":
            self.pool.done.append(f"{given[0]}: {given[1]}")
        return getattr(self.worker, method)(*given)

    def end(self) -> None:
        self.dead = True


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a worker says about its process, which here is the driver's."""
    monkeypatch.setattr(locks, "_held", set())
    monkeypatch.setattr(condec.report, "build_report", quick_report)
    yield
    trust.only(None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_source(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condec.report, "build_report", quick_report)
        carry_out(root)
    return root / "run"


def carry_out(root: Path, pool: Pool | None = None, **changes: Any) -> dict[str, Outcome]:
    plan = replace(config.read(root / "run.toml"), **changes)
    config.write(plan)
    run = Run(plan, progress=False, engine=pool)
    return {outcome.link: outcome for outcome in chain(run)}


def results(run: Path) -> dict[str, bytes]:
    return {n: c for n, c in contents(run).items() if not n.startswith("workers/")}


ALL = {
    *(f"shards: {store} {n}" for store in ("contributions.zarr", "log_odds/contributions.zarr")
      for n in range(3)),
    *(f"{link}: {link} block{n}" for link in ("fit", "map") for n in (1, 2)),
}  # fmt: skip


def test_workers_do_everything_and_the_bytes_are_the_same(tmp_path: Path, whole: Path) -> None:
    pool = Here()
    outcomes = carry_out(write_source(tmp_path), pool)
    assert {outcome.state for outcome in outcomes.values()} == {"made"}
    assert set(pool.done) >= ALL
    assert sum(name.startswith("explain: ") for name in pool.done) == 3
    assert len(pool.done) == len(set(pool.done))
    assert results(tmp_path / "run") == results(whole)
    again = Here()
    kept = carry_out(tmp_path, again)
    assert {outcome.state for outcome in kept.values()} == {"kept"}
    assert again.done == []


def test_what_dead_workers_had_in_hand_is_done_by_others(tmp_path: Path, whole: Path) -> None:
    pool = Here(lambda call: call % 4 == 2)
    carry_out(write_source(tmp_path), pool)
    assert pool.n_started > 4
    assert set(pool.done) >= ALL
    assert results(tmp_path / "run") == results(whole)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    log = list(map(json.loads, lines))
    died = [line for line in log if line["event"] == "worker died"]
    assert len(died) >= 3
    assert all(line["task"] for line in died)


def test_where_every_worker_dies_the_driver_does_it_all(tmp_path: Path, whole: Path) -> None:
    pool = Here(lambda call: True)
    carry_out(write_source(tmp_path), pool, links=("collect", "stats"))
    assert pool.done == []
    assert pool.n_started <= 3 * TRIES + 2
    made = results(tmp_path / "run")
    assert made.keys() > {"analysis/statistics.parquet"}
    assert {k: v for k, v in results(whole).items() if k.startswith("contrib")}.items() <= {
        *made.items()
    }


def test_workers_that_cannot_be_started_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteWorker, "ready", lambda self: 1 / 0)
    pool = Here()
    outcomes = carry_out(write_source(tmp_path), pool, links=("collect",))
    assert outcomes["collect"].state == "made"
    assert pool.done == []


def test_a_worker_at_work_is_kept_where_others_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneStarts(Here):
        def start(self, run: Run, number: int) -> Hand:
            hand = InProcess(self, RemoteWorker(Given.of(run, 1), f"here-{number}"), later)
            hand.dead = number > 1
            return hand

    def wait(*_: object) -> None:
        if later and (pool.n_failed > TRIES + 2 or pool.done):  # others fail so often before
            later.pop(0)()

    later: Later = []
    pool = OneStarts()
    monkeypatch.setattr("condec.run.engines.pool.wait", wait)
    carry_out(write_source(tmp_path), pool, links=("collect",))
    assert sorted(pool.done) == [f"shards: contributions.zarr {n}" for n in range(3)]


def test_the_driver_shows_what_a_worker_could_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, pool = BatchPlan._run, Here()

    def fails(self: BatchPlan, batch: LoadedBatch) -> dict[str, Any]:
        if 20 in batch.rows:
            raise DataError("sample '20' is not finite")
        return plain(self, batch)

    monkeypatch.setattr(BatchPlan, "_run", fails)
    with pytest.raises(DataError, match="sample '20' is not finite"):
        carry_out(write_source(tmp_path), pool, links=("collect",))
    assert Store.open(tmp_path / "run" / "contributions.zarr").missing() == (1,)
    assert '"event": "task failed"' in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize("lost", [{1}, {2}, {0, 1, 2}])
@pytest.mark.parametrize("says", [True, False])
def test_what_was_computed_and_could_not_be_written_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, lost: set[int], says: bool
) -> None:
    plain, pool = worker._write, Here()

    def fails(store: Store, index: int, rows: Any, after: Any) -> None:
        if index not in lost:
            plain(store, index, rows, after)
        elif says:
            raise StoreError(f"shard {index}: no room")

    monkeypatch.setattr(worker, "_write", fails)
    carry_out(write_source(tmp_path), pool, links=("collect",))
    stores = [Path(run) / "contributions.zarr" for run in (tmp_path / "run", whole)]
    assert contents(stores[0]) == contents(stores[1])
    assert len(pool.done) <= 6


def test_a_shard_is_written_beside_the_next_one_and_all_are_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, plain_run, events = worker._write, BatchPlan._run, list[str]()
    second = threading.Event()

    def write(store: Store, index: int, rows: Any, after: Any) -> None:
        if index == 0:
            assert second.wait(60), "the next shard is computed meanwhile"
        plain(store, index, rows, after)
        events.append(f"written {index}")

    def run_batch(self: BatchPlan, batch: LoadedBatch) -> dict[str, Any]:
        if 16 in batch.rows:
            second.set()
        return plain_run(self, batch)

    monkeypatch.setattr(worker, "_write", write)
    monkeypatch.setattr(BatchPlan, "_run", run_batch)
    run = Run(config.read(write_source(tmp_path) / "run.toml"), progress=False)
    one = worker.Worker(run, "one")
    collecting, store = one.collecting("contributions.zarr")
    for index in range(3):
        one.shard(collecting, store, index, lambda _: None, lambda: events.append("after"))
    one.written()
    assert events == [what for n in range(3) for what in ("after", f"written {n}")]
    assert store.missing() == ()


def test_a_shard_that_only_a_worker_cannot_do_is_done_by_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    plain, pool = RemoteWorker.shard, Here()

    def fails(self: RemoteWorker, collecting: Any, store: Store, index: int, alive: Any) -> Any:
        if index == 0:
            raise DataError("this machine does not see the data")
        return plain(self, collecting, store, index, alive)

    monkeypatch.setattr(RemoteWorker, "shard", fails)
    carry_out(write_source(tmp_path), pool, links=("collect",))
    assert sorted(pool.done) == [f"shards: contributions.zarr {n}" for n in range(3)]
    made = results(tmp_path / "run")
    assert all(made[n] == c for n, c in results(whole).items() if n.startswith("contributions"))


def test_a_worker_runs_only_code_that_its_driver_has_run(tmp_path: Path) -> None:
    root = write_source(tmp_path)
    run = Run(config.read(root / "run.toml"), progress=False)
    given = Given.of(run, 1)
    (root / "net.py").write_text((root / "net.py").read_text() + "\n# other\n")
    worker = RemoteWorker(given, "one")
    with pytest.raises(OptionError, match="a worker runs only code that its driver has"):
        _ = worker.run.loaded
    done = worker.do("shards", "contributions.zarr 0", {})
    assert "a worker runs only code" in done.error
    nothing = RemoteWorker(replace(given, trusted={}), "two")
    with pytest.raises(OptionError, match="a worker runs only"):
        _ = nothing.run.loaded


def test_an_error_of_writing_is_raised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(config.read(write_source(tmp_path) / "run.toml"), progress=False)
    one, plain = worker.Worker(run, "one"), worker._write
    collecting, store = one.collecting("contributions.zarr")

    def fails_first(store: Store, index: int, rows: Any, after: Any) -> None:
        if index == 0:
            raise StoreError("no room")
        plain(store, index, rows, after)

    monkeypatch.setattr(worker, "_write", fails_first)
    given = (collecting, store)
    one.shard(*given, 0, lambda _: None)
    with pytest.raises(StoreError, match="no room"):
        one.shard(*given, 1, lambda _: None)
    one.shard(*given, 1, lambda _: None)
    one.written()
    assert store.missing() == (0, 2)


def test_a_worker_of_another_model_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_source(tmp_path)
    run = Run(config.read(root / "run.toml"), progress=False)
    run.collection().begin()
    worker = RemoteWorker(Given.of(run, 1), "one")
    next(worker.run.loaded.model.parameters()).data += 1
    done = worker.do("shards", "contributions.zarr 0", {})
    assert "was made by another recipe" in done.error
    assert run.collection().begin().missing() == (0, 1, 2)


def test_notes_and_warnings_of_workers_reach_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_source(tmp_path)
    text = (
        (root / "run.toml")
        .read_text()
        .replace("n_modes = 3, held_out = 0.4", "n_modes = 3, held_out = 0.4, max_iter = 1")
    )
    (root / "run.toml").write_text(text.replace(", max_iter = 1", ""))
    plain = RemoteWorker.shard

    def warns(*given: Any) -> list[str]:
        warnings.warn("memory is short", stacklevel=1)
        return plain(*given)

    monkeypatch.setattr(RemoteWorker, "shard", warns)
    monkeypatch.setattr("condec.run.links.MANY_DEAD", -1.0)
    with pytest.warns(UserWarning, match="memory is short") as caught:
        outcomes = carry_out(root, Here(), links=("collect", "fit"))
    assert len(caught) == 1
    assert len([note for note in outcomes["fit"].notes if "modes are dead" in note]) == 2


def test_a_stopped_run_ends_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, plain = Here(), Here._man

    def stops(self: Here, *given: Any) -> None:
        plain(self, *given)
        assert signals._seconds == GRACE + signals.SECONDS
        raise KeyboardInterrupt

    monkeypatch.setattr(Here, "_man", stops)
    with pytest.raises(KeyboardInterrupt):
        carry_out(write_source(tmp_path), pool, links=("collect",))
    assert pool.places == []
    assert signals._seconds == signals.SECONDS


def test_only_workers_beyond_those_that_stay_are_ended(tmp_path: Path) -> None:
    root, pool = write_source(tmp_path), Here(least_workers=1)
    carry_out(root, pool, links=("collect",))
    assert len(pool.places) == 1
    pool._shrink(4)
    assert len(pool.places) == 1
    pool.close()
    assert pool.places == []


def test_engines_by_name() -> None:
    plan = Plan(out=Path("run"), base=Path(), sites=("*",))
    assert engine_of(plan) is None
    pool = engine_of(replace(plan, engine=EnginePlan(kind="local", workers=3)))
    assert isinstance(pool, Pool)
    pool.close()
    with pytest.raises(OptionError, match="kind: expected one of here, local, ray; got 'slurm'"):
        config.changed(EnginePlan(), "engine", {"kind": "slurm"})
    with pytest.raises(OptionError, match="address is that of a Ray cluster; got kind 'local'"):
        EnginePlan(kind="local", address="auto")
    with pytest.raises(OptionError, match="cpus must be at least 0 and finite; got nan"):
        EnginePlan(kind="ray", cpus=float("nan"))


def test_an_engine_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    root = write_source(tmp_path)
    plan = config.read(root / "run.toml")
    assert "engine" not in config.to_dict(plan)
    other = replace(plan, engine=EnginePlan(kind="local", workers=2))
    assert config.to_dict(other)["engine"] == {"kind": "local", "workers": 2} | {
        "least_workers": 1, "cpus": 1.0,
    }  # fmt: skip
    assert Run(other).made_from("fit") == Run(plan).made_from("fit")


def test_a_folder_that_a_driver_holds_is_lent_to_its_workers(tmp_path: Path) -> None:
    with locks.held(tmp_path):
        assert f"process {os.getpid()} on " in locks.holder(tmp_path)
    assert locks.holder(tmp_path) == ""
    locks.lent(tmp_path)
    with locks.held(tmp_path):
        assert locks.holder(tmp_path) == ""
