"""Long computations, each a command of condec in a process of its own: one at a time.

So a job takes the lock of the run, as any command does; cancelled, it ends as by Ctrl-C, with what
is whole kept and nothing half written; and the explorer's own network is never touched by it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from condec.basis.errors import CondecError, OptionError
from condec.basis.progress import IN_LINES

MOST_WAITING: Final = 16
_MOST_SHOWN: Final = 30
_LINES, _LONGEST = 12, 500
_PATIENCE: Final = 15.0
"""Seconds in which a cancelled job ends by itself; workers of an engine take seven."""
_NICE: Final = 5


class BusyError(CondecError):
    """Too much waits already."""


@dataclass(eq=False)
class Job:
    """A command of condec, what it says, and how far it is.

    `state` is ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``; `bars` are its bars
    of progress, by their titles.
    """

    number: int
    words: str
    command: Sequence[str]
    files: Callable[[], Mapping[str, str]]
    done: Callable[[], object]
    undone: Callable[[], object]
    state: str = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    said: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    bars: dict[str, Any] = field(default_factory=dict)
    process: "subprocess.Popen[str] | None" = None

    def told(self) -> dict[str, Any]:
        """Return what pages show of it."""
        now = time.monotonic() - self.began if self.state == "running" else self.seconds
        return {
            "job": self.number, "link": self.command[0], "words": self.words,
            "state": self.state, "seconds": round(now, 1),
            "said": list(self.said), "bars": list(self.bars.values()),
        }  # fmt: skip


class Jobs:
    """Jobs in the order in which they came; a thread carries them out while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._n_given = 0
        self._at_work: threading.Thread | None = None
        self._closed = False

    def add(
        self, words: str, command: Sequence[str], files: Callable[[], Mapping[str, str]] = dict,
        done: Callable[[], object] = lambda: None, undone: Callable[[], object] = lambda: None,
    ) -> Job:  # fmt: skip
        """Put a command of condec in the queue; its words may name files as ``{name}``.

        `files` gives their content once it is its turn; `done` is called once it has succeeded,
        `undone` once it has failed or was cancelled, after it had begun.
        Raises BusyError: many wait already.
        """
        with self._lock:
            waiting = [job for job in self._jobs.values() if job.state == "waiting"]
            if len(waiting) >= MOST_WAITING or self._closed:
                raise BusyError(f"explore: {len(waiting)} jobs wait already; ask again later")
            self._n_given += 1
            job = Job(self._n_given, words, command, files, done, undone)
            self._jobs[job.number] = job
            ended = [n for n, j in self._jobs.items() if j.state not in ("waiting", "running")]
            for number in ended[: max(0, len(self._jobs) - _MOST_SHOWN)]:
                del self._jobs[number]
            if self._at_work is None:
                self._at_work = threading.Thread(target=self._carry_out, daemon=True)
                self._at_work.start()
        return job

    def told(self) -> list[dict[str, Any]]:
        """List the jobs, the newest first."""
        with self._lock:
            return [job.told() for job in reversed(self._jobs.values())]

    def cancel(self, number: int) -> None:
        """Leave a job out, or end it; OptionError where there is none, or it has ended."""
        with self._lock:
            job = self._jobs.get(number)
            if job is None or job.state not in ("waiting", "running"):
                raise OptionError(f"explore: job {number} has ended, or never was")
            job.state = "cancelled"
            if job.process is not None:
                _end(job.process)

    def close(self) -> None:
        """Cancel all jobs, take no more, and wait until what runs, or was cancelled, has ended."""
        with self._lock:
            self._closed = True
            left = [job for job in self._jobs.values() if job.state in ("waiting", "running")]
        for job in left:
            with suppress(OptionError):
                self.cancel(job.number)
        with self._lock:  # of one that was cancelled before, too: what kills it ends with us
            at_work = self._at_work
        if at_work is not None:
            at_work.join()

    def _carry_out(self) -> None:
        while True:
            with self._lock:
                job = next((j for j in self._jobs.values() if j.state == "waiting"), None)
                if job is None:
                    self._at_work = None
                    return
                job.state, job.began = "running", time.monotonic()
            try:
                self._do(job)
            except Exception as error:  # noqa: BLE001  # the queue goes on, and the page says it
                with self._lock:
                    job.said.append(f"{type(error).__name__}: {error}")
                self._ended(job, "failed")

    def _do(self, job: Job) -> None:
        with TemporaryDirectory(prefix="condec-") as place:
            named = dict[str, str]()
            for name, text in job.files().items():
                file = Path(place) / name
                file.write_text(text, "utf-8")
                named[f"{{{name}}}"] = str(file)
            words = [named.get(word, word) for word in job.command]
            with self._lock:
                if job.state == "running":  # not cancelled meanwhile
                    job.process = _started(words)
            if job.process is None:
                return
            with job.process as process:
                for line in process.stdout or ():
                    self._hear(job, line.rstrip()[:_LONGEST])
            ended_well = process.returncode == 0
        job.done() if ended_well else job.undone()
        self._ended(job, "done" if ended_well else "failed")

    def _hear(self, job: Job, line: str) -> None:
        with self._lock:
            with suppress(ValueError):
                bar = json.loads(line)
                if isinstance(bar, dict) and "bar" in bar:
                    job.bars[str(bar["bar"])] = bar
                    return
            if line:
                job.said.append(line)

    def _ended(self, job: Job, state: str) -> None:
        with self._lock:
            job.seconds, job.process = time.monotonic() - job.began, None
            if job.state == "running" or state == "done":  # it was whole before it heard
                job.state = state


def _started(words: Sequence[str]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "condec", *words], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, IN_LINES: "lines"},
    )  # fmt: skip
    with suppress(OSError, AttributeError):  # sliders come first; not on Windows
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    """End a command as Ctrl-C does, and by force where that takes long."""

    def kill() -> None:
        if process.poll() is None:
            process.kill()

    process.terminate()
    patience = threading.Timer(_PATIENCE, kill)
    patience.daemon = True
    patience.start()
