"""What a run takes: counted terms by hand, shared among workers, at a rate that is stated."""

from pathlib import Path

import pytest
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.data import Inputs
from condec.run import Run, config
from condec.run.beforehand import check_run
from condec.run.costs import Costs, Need, Workers, costs
from condec.store.batches import BatchPlan
from small_runs import write_source


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(config.read(write_source(tmp_path) / "run.toml"), progress=False)


def test_every_link_is_counted_and_nothing_made(run: Run) -> None:
    found = costs(run, check_run(run))
    needs = {need.link: need for need in found.needs}
    assert [*needs] == ["collect", "fit", "control", "map", "explain"]
    # 40 inputs in shards of 16; 2 sites x 2 signs x 2 quantities x 4 units x 4 bytes
    assert (needs["collect"].tasks, needs["collect"].disk) == (3, 40 * 2 * 2 * 2 * 4 * 4)
    # 2 sites x 2 modes x 2 inputs x 6 x 6 pixels x (3 maps of 4 bytes and a picture of 3)
    assert (needs["map"].tasks, needs["map"].disk) == (2, 2 * 2 * 2 * 36 * 15)
    # 3 labels, 6 rankings (with one random draw), 2 fractions, one edit
    assert "1 site, at most 36 sets of edits on 16 held-out inputs" in needs["control"].words
    lines = str(found).splitlines()
    assert lines[0].startswith("40 inputs, 2 sites, 3 passes a batch, ")
    assert [line.split()[0] for line in lines[1:8]] == [*("link", *needs, "in")]
    assert not run.folder.path.exists()


def test_what_is_left_out_is_not_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def picture(self: Inputs, index: int) -> Tensor:
        raise DataError("no picture")

    monkeypatch.setattr(Inputs, "picture", picture)
    found = costs(run, check_run(run))
    assert "map" not in [need.link for need in found.needs]
    assert "map      left out: no picture" in str(found)


def test_a_stated_rate_and_workers_that_share_shards(run: Run) -> None:
    left_out = check_run(run) | {"control": "no labels"}
    found = costs(run, left_out, Workers(number=2, price=9.0, images_per_second=0.5))
    collect = found.needs[0]
    assert collect.seconds == pytest.approx(40 / 0.5)
    assert collect.on(2) == pytest.approx(80 * 2 / 3)  # one of them does two shards of three
    assert collect.on(8) == pytest.approx(80 / 3)
    assert [need.link for need in found.needs] == ["collect", "fit", "map", "explain"]
    text = str(found)
    assert "0.5 inputs a second and worker (stated)" in text
    assert "control  left out: no labels" in text
    assert f"money: {2 * 9 * found.seconds / 3600:,.2f}, at 9 a worker and hour" in text
    assert "most disk: collect, " in text


def test_a_table_at_full_size() -> None:
    need = Need(
        link="collect", seconds=7560.0, tasks=1252, memory=2**30, disk=309 * 10**9, words="x"
    )
    lines = str(Costs((need,), {}, Workers(number=8), "head", 10**9)).splitlines()
    assert lines[2] == "collect  126.0 min   15.8 min 1,024 MiB   288 GiB  x"
    assert lines[-1] == "only 954 MiB of disk are free"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": 0}, "workers must be at least 1; got 0"),
        ({"price": -1.0}, "price must be at least 0 and finite; got -1"),
        ({"images_per_second": 0.0}, "images_per_second must be at least .* got 0"),
    ],
)
def test_workers_that_are_none(given: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=f"plan: {message}"):
        Workers(**given)  # type: ignore[arg-type]


def test_reading_counts_where_it_takes_longer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 8))
    monkeypatch.setattr("condec.store.batches.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(BatchPlan, "time_pass", lambda *_, again: 1.0)
    assert run.batches.time_input(4) == 2.0  # 8 s for 4 inputs, where 3 passes take 3
    monkeypatch.setattr(BatchPlan, "time_pass", lambda *_, again: 4.0)
    assert run.batches.time_input(4) == 3.0
