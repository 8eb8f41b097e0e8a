"""Parts of a collection: processes that know nothing of each other, and claims of shards."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import condec.report
from condec import cli
from condec.basis.errors import OptionError, StoreError
from condec.basis.objects import object_path
from condec.run import Run, config, part
from condec.run.part import Part, collect_part
from condec.store import Store
from condec.store.claims import SECONDS, claim, release, renew
from small_runs import contents, quick_report, write_source


def results(run: Path) -> dict[str, bytes]:
    return {n: c for n, c in contents(run).items() if not n.startswith("workers/")}


def collect(*given: object) -> str:
    result = CliRunner().invoke(cli.app, ["collect", *map(str, given), "-q"])
    assert result.exit_code == 0, result.output
    return result.output


def test_parts_make_the_store_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condec.report, "build_report", quick_report)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    twins = ("--twin", "random-weights", "--twin", "shuffled-labels")
    collect(write_source(tmp_path / "a") / "run.toml", *twins)
    plan = write_source(tmp_path / "b") / "run.toml"
    store, plain = tmp_path / "b" / "run" / "contributions.zarr", part.claim
    # Shard 0 belongs to part 1, shard 2 too: another process has that.
    monkeypatch.setattr(part, "claim", lambda path, i, who: i != 2 and plain(path, i, who))
    said = collect(plan, *twins, "--part", "1/2")
    assert "part 1 of 2: 4 shards" in said
    assert "in the hands of other parts: 2 shards" in said
    assert "when all parts have ended, 'condec collect " in said
    assert Store.open(store).missing() == (2,)
    monkeypatch.setattr(part, "claim", plain)
    assert "part 2 of 2: 2 shards" in collect(plan, *twins, "--part", "2/2")
    assert not (store / "claims").exists()
    collect(plan, *twins)
    assert results(tmp_path / "a" / "run") == results(tmp_path / "b" / "run")


def test_a_part_begins_with_its_own_shards_and_ends_with_the_last_of_others() -> None:
    assert list(part._order((0, 1, 2, 4, 5, 7, 8), Part(2, 3))) == [1, 4, 7, 8, 5, 2, 0]


def test_a_part_lists_a_store_twice_however_many_shards_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = Store.missing, []
    monkeypatch.setattr(Store, "missing", lambda store: asked.append(store) or plain(store))
    text = (write_source(tmp_path) / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(text.replace("shard_size = 16", "shard_size = 4"))
    collect(tmp_path / "run.toml", "--part", "1/1")
    assert len(asked) <= 3
    assert not plain(asked[-1])


def test_parts_and_claims_are_refused_on_an_object_store(tmp_path: Path) -> None:
    plan = write_source(tmp_path) / "run.toml"
    given = ["collect", str(plan), "--part", "1/2", "--out", "memory://runs/a", "-q"]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 2
    assert "memory://runs/a: expected a place on this machine" in result.stderr
    there = object_path("memory://runs/a/contributions.zarr")
    assert there is not None
    with pytest.raises(StoreError, match=r"claims/shard-00000: expected a place on this machine"):
        claim(there, 0, "part 1 of 2")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected K/N with K from 1 to N, slurm or torchrun"):
        Part.parse(text)


def test_parts_do_not_choose_their_batches(tmp_path: Path) -> None:
    plan = config.read(write_source(tmp_path) / "run.toml")
    run = Run(replace(plan, collect=replace(plan.collect, batch_size="auto")), progress=False)
    with pytest.raises(OptionError, match=r"--part: each part would time .* give a number"):
        collect_part(run, Part(1, 2))


def test_slurm_and_torchrun_say_which_part_it_is() -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10"}
    slurm["SLURM_ARRAY_TASK_COUNT"] = "8"
    assert Part.parse("slurm", slurm) == Part(3, 8)
    with pytest.raises(OptionError, match="SLURM_ARRAY_TASK_COUNT do not stand in this job's env"):
        Part.parse("slurm", {})


def test_a_shard_is_claimed_by_one(tmp_path: Path) -> None:
    assert claim(tmp_path, 3, "part 1 of 2")
    assert not claim(tmp_path, 3, "part 2 of 2")
    assert claim(tmp_path, 4, "part 2 of 2")
    assert claim(tmp_path, 3, "part 1 of 2"), "the same part, begun again"
    release(tmp_path, 3)
    assert claim(tmp_path, 3, "part 2 of 2")
    release(tmp_path, 3)
    release(tmp_path, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_cannot_be_counted_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_source(tmp_path)
    run = Run(replace(config.read(root / "run.toml"), links=("collect",)), progress=False)
    path = run.collection().begin().path

    def refuse(*_: object) -> bool:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(Store, "counts", refuse)
    with pytest.raises(StoreError, match="the disk is gone"):
        collect_part(run, Part(1, 1))
    assert not (path / "claims").exists()


@pytest.mark.parametrize("jump", [-1, 1])
def test_a_claim_expires_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    assert claim(tmp_path, 0, "a")
    file = tmp_path / "claims" / "shard-00000"
    monkeypatch.setattr(time, "time", lambda: 0.0)  # of a host that is wrong
    now = file.stat().st_mtime + jump * 0.9 * SECONDS
    os.utime(file, (now, now))
    assert not claim(tmp_path, 0, "b")
    now += jump * SECONDS  # of a dead process; or the clock of the file system has jumped back
    os.utime(file, (now, now))
    renew(tmp_path, 0)
    assert not claim(tmp_path, 0, "b")
    os.utime(file, (now, now))
    assert claim(tmp_path, 0, "b")
    release(tmp_path)
    renew(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_takes_no_claims_is_named(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("in the way")
    with pytest.raises(StoreError, match="the claim of shard 0: cannot write"):
        claim(tmp_path, 0, "a")


def test_claims_of_killed_parts_go_with_the_next_driver(tmp_path: Path) -> None:
    root = write_source(tmp_path)
    run = Run(replace(config.read(root / "run.toml"), links=("collect",)), progress=False)
    store = run.collection().begin()
    claim(store.path, 1, "part 9 of 9")
    outcome = collect_part(run, Part(1, 1))
    assert "in the hands of other parts: 1 shard" in outcome.notes[1]
    collect(root / "run.toml")
    assert not (store.path / "claims").exists()
    assert store.missing() == ()
