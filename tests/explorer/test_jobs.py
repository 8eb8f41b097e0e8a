"""Jobs: one process at a time, others wait, any is cancelled; what they say and do."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest

from condec.basis.errors import OptionError
from condec.explorer import jobs as module
from condec.explorer.jobs import MOST_WAITING, BusyError, Jobs

SAYS = """
import json, sys, time
print("hello from", open(sys.argv[1]).read())
print(json.dumps({"bar": "fits", "done": 1, "total": 2}))
print(json.dumps({"bar": "fits", "done": 2, "total": 2}))
print("x" * 9999)
sys.exit(int(sys.argv[2]))
"""
WAITS = "import time; print('here', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS


def until(so: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not so() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert so()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Jobs whose commands are scripts of Python."""

    def started(words: Sequence[str]) -> "Popen[str]":
        return Popen([sys.executable, "-c", *words], stdout=PIPE, stderr=STDOUT, text=True)

    monkeypatch.setattr(module, "_started", started)
    found = Jobs()
    yield found
    found.close()


def test_a_job_says_what_it_does_and_how_far_it_is(jobs: Jobs) -> None:
    called = []
    job = jobs.add(
        "it", [SAYS, "{it.txt}", "0"], lambda: {"it.txt": "a file"}, lambda: called.append(1)
    )
    until(lambda: job.state == "done")
    told = jobs.told()[0]
    assert (told["job"], told["words"], told["state"]) == (1, "it", "done")
    assert told["link"] == SAYS  # the first word of its command
    assert told["said"] == ["hello from a file", "x" * 500]
    assert told["bars"] == [{"bar": "fits", "done": 2, "total": 2}]
    assert called == [1]
    failed = jobs.add(
        "it", [SAYS, "{it.txt}", "2"], lambda: {"it.txt": ""}, lambda: called.append(2),
        lambda: called.append(3),
    )  # fmt: skip
    until(lambda: failed.state == "failed")
    assert called == [1, 3]
    assert not [*Path("/tmp").glob("condec-*/it.txt")]


def test_one_at_a_time_and_any_is_cancelled(jobs: Jobs) -> None:
    first, second, third = (jobs.add(name, [WAITS]) for name in "abc")
    until(lambda: first.said)
    assert [job["state"] for job in jobs.told()] == ["waiting", "waiting", "running"]
    jobs.cancel(second.number)
    process = first.process
    jobs.cancel(first.number)
    until(lambda: third.said)
    assert process is not None
    assert process.poll() is not None
    assert [job["state"] for job in jobs.told()] == ["running", "cancelled", "cancelled"]
    assert not second.said
    with pytest.raises(OptionError, match="job 2 has ended, or never was"):
        jobs.cancel(2)
    with pytest.raises(OptionError, match="job 99 has ended, or never was"):
        jobs.cancel(99)
    jobs.close()
    assert third.process is None or third.process.poll() is not None
    with pytest.raises(BusyError, match="ask again later"):
        jobs.add("late", [WAITS])


def test_what_a_cancelled_job_began_is_undone_though_the_explorer_ends(jobs: Jobs) -> None:
    undone = []

    def slowly() -> None:
        time.sleep(0.1)
        undone.append(1)

    job = jobs.add("it", [WAITS], undone=slowly)
    jobs.add("it", [WAITS], undone=slowly)  # which never begins
    until(lambda: job.said)
    jobs.close()
    assert undone == [1]


def test_one_that_does_not_listen_is_killed(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    job = jobs.add("deaf", [DEAF])
    until(lambda: job.said)
    jobs.cancel(job.number)
    until(lambda: job.process is None)
    assert job.state == "cancelled"


def test_not_too_many_wait_and_few_are_remembered(jobs: Jobs) -> None:
    first = jobs.add("first", [WAITS])
    until(lambda: first.state == "running")
    for number in range(MOST_WAITING):
        jobs.add(str(number), [WAITS])
    with pytest.raises(BusyError, match=f"{MOST_WAITING} jobs wait already"):
        jobs.add("one more", [WAITS])
    for told in jobs.told()[::-1]:
        jobs.cancel(told["job"])
    for _ in range(3):
        jobs.add("one more", [WAITS])
        for _ in range(MOST_WAITING - 1):
            jobs.cancel(jobs.add("more", [WAITS]).number)
    assert len(jobs.told()) <= 31


def test_a_broken_start_is_told_and_the_queue_goes_on(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = module._started

    def broken(words: Sequence[str]) -> "Popen[str]":
        if words[0] == "broken":
            raise OSError("no processes left")
        return started(words)

    monkeypatch.setattr(module, "_started", broken)
    first, second = jobs.add("a", ["broken"]), jobs.add("b", [""])
    until(lambda: second.state == "done")
    assert (first.state, [*first.said]) == ("failed", ["OSError: no processes left"])


def test_the_end_waits_for_what_was_cancelled_before(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    job = jobs.add("deaf", [DEAF])
    until(lambda: job.said)
    process = job.process
    assert process is not None
    jobs.cancel(job.number)
    assert process.poll() is None
    jobs.close()
    assert process.poll() is not None


def test_files_are_written_once_it_is_its_turn(jobs: Jobs) -> None:
    turn = ["too early"]
    first = jobs.add("first", [WAITS])
    until(lambda: first.said)
    job = jobs.add("it", [SAYS, "{it.txt}", "0"], lambda: {"it.txt": turn[0]})
    turn[0] = "in time"
    jobs.cancel(first.number)
    until(lambda: job.state == "done")
    assert job.said[0] == "hello from in time"


def test_what_a_broken_start_says_is_written_under_the_lock(jobs: Jobs) -> None:
    class Watched(deque[str]):
        def append(self, line: str) -> None:
            assert jobs._lock.locked()
            super().append(line)

    def broken() -> dict[str, str]:
        job.said = Watched()
        raise OptionError("no plan")

    first = jobs.add("first", [WAITS])
    until(lambda: first.said)
    job = jobs.add("broken", [""], broken)
    jobs.cancel(first.number)
    until(lambda: job.state == "failed")
    assert [*job.said] == ["OptionError: no plan"]
