"""Commands in processes of their own, forked: what is imported need not be imported again."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from condec import cli
from condec.basis import locks, signals

_FORK = multiprocessing.get_context("fork")
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


class Command:
    """A command, or a function, at work in a process of its own; its output goes into files.

    `patches` are ``wait``, the seconds to wait for a run that another holds, and ``kill_at``: the
    process kills itself before so many a change of a file. `changes` counts these.
    """

    def __init__(self, place: Path, work: list[str] | Callable[[], Any], **patches: Any) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.files = place / "stdout", place / "stderr"
        self.changes = _FORK.Value("i")
        self.process = _FORK.Process(target=self._work, args=(work, patches))
        self.process.start()

    def _work(self, work: list[str] | Callable[[], Any], patches: dict[str, Any]) -> None:
        locks.SECONDS = patches.get("wait", locks.SECONDS)
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(file.open("w")) for file in self.files)
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            if at := patches.get("kill_at"):
                sys.addaudithook(lambda event, args: self._count(event, args, at))
            if callable(work):
                work()
                return
            # A shell that puts the tests into the background has SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = ["condec", *work]
            signals.end_soon()
            cli.app()

    def _count(self, event: str, args: Any, at: int) -> None:
        if event in _CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            with self.changes:
                self.changes.value += 1
                if self.changes.value == at:
                    os.kill(os.getpid(), signal.SIGKILL)

    def end(self, seconds: float = 120) -> int:
        """Wait for the end; return the exit status."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it printed."""
        return "".join(file.read_text() for file in self.files)
