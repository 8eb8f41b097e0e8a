"""Processes that this one starts: without the calling script, and no longer than wanted."""

import os
import shutil
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import util
from pathlib import Path


@contextmanager
def without_main() -> Iterator[None]:
    """Hide the calling script while a process starts: it would run it again, and needs it not."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with(place: Path, parent: int) -> None:
    """End this process when a folder goes, or the process that made it; it answers no Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that made it says what happens.
    # Once it has no more to do: libraries wait for threads of theirs, for seconds and longer.
    util.Finalize(None, os._exit, (0,), exitpriority=100)

    def watch() -> None:
        while os.getppid() == parent and place.exists():
            time.sleep(0.2)
        shutil.rmtree(place, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
