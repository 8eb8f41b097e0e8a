"""Ctrl-C and SIGTERM: a command says how to go on, and ends within two seconds, with workers seven.

It may be ended anywhere: whatever it writes is on disk whole, or not at all.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any, Final

SECONDS: Final = 1.5
"""Time for a command to leave what it is doing; then it is ended."""
_WORDS: Final = (
    "\ncondec: interrupted; the same command keeps what is whole (shards, fits, tables), and does "
    "the rest again\n"
)
_ANSWERED: Final = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
_seconds = SECONDS
_said = threading.Event()


class Stopped(KeyboardInterrupt):
    """The command is to end: Ctrl-C, or SIGTERM."""


def exit_code(error: BaseException) -> int | None:
    """Return the exit status of a stopped command, after words; None where none was stopped.

    What libraries make of the interruption of their imports is one, too.
    """
    if not _received and not isinstance(error, KeyboardInterrupt):
        return None
    if not _said.is_set():
        sys.stderr.write(_WORDS)
    if _received:
        _said.set()
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def allowing(seconds: float) -> Iterator[None]:
    """Give a command more time to leave: its workers finish what they have in hand."""
    global _seconds
    before, _seconds = _seconds, seconds
    try:
        yield
    finally:
        _seconds = before


def end_at_once() -> None:
    """End at a signal where nothing has begun: while everything is imported."""
    _answer(lambda number, frame: _end(number))


def end_soon() -> None:
    """Raise `Stopped` at the first signal, and end at the second, or where that takes long."""

    def stop(number: int, frame: FrameType | None) -> None:
        _received.append(number)
        end_at_once()
        raise Stopped(signal.Signals(number).name)

    def watch() -> None:
        # Others come here as well, such as that of a child that has ended.
        while (number := os.read(reader, 1)[0]) not in _ANSWERED:
            pass
        time.sleep(_seconds)
        _end(number)

    if sys.platform != "win32":
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # Told by the system at once: `stop` waits for compiled code that is at work.
        signal.set_wakeup_fd(writer)
        # Else what ends a child, which writes there as well, ends the command.
        hold = partial(signal.pthread_sigmask, signal.SIG_BLOCK, _ANSWERED)
        free = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _ANSWERED)
        os.register_at_fork(before=hold, after_in_parent=free, after_in_child=_leave)
        threading.Thread(target=watch, daemon=True).start()
    _answer(stop)


def _answer(handler: Any) -> None:
    for number in _ANSWERED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for nohup and jobs of a shell
            signal.signal(number, handler)


def _leave() -> None:
    signal.set_wakeup_fd(-1)
    _answer(signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ANSWERED)


def _end(number: int) -> None:
    # Past Python's own stream, which may be held; a bar of progress hides the cursor.
    cursor = "\x1b[?25h" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, (cursor + _WORDS * (not _said.is_set())).encode())
    os._exit(128 + number)
