"""How long things take, in words, and the progress bar on standard error."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from condec.basis.errors import printable

IN_LINES: Final = "CONDEC_PROGRESS"
"""Environment variable: with ``lines``, bars are lines of JSON, for a program that reads them."""
_SECONDS: Final = 0.3


def in_lines() -> bool:
    """Tell whether bars are lines, of which several may be on their way at once."""
    return os.environ.get(IN_LINES) == "lines"


def duration(seconds: float) -> str:
    """Write a time that is estimated, as ``12 s`` or ``3.5 min``."""
    return f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.0f} s"


@contextmanager
def progress_bar(
    title: str, total: int | None, *, done: int = 0, unit: str = "", shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a bar while the context lasts, and give the function that moves it.

    It takes the keywords of rich's `Progress.update`: ``move(advance=1)``, or
    ``move(completed=3, total=10)``, for a `total` that is None; ``note="loss 0.3"`` stands behind
    the `unit`. Where nothing is shown, or left to do, rich is not imported.
    """
    if not shown or done == total:
        yield lambda **_: None
        return
    if in_lines():
        yield _Lines({"bar": title, "done": done, "total": total, "unit": unit, "note": ""})
        return
    from rich import markup, progress
    from rich.console import Console

    columns = (
        "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(),
        f"{unit} {{task.fields[note]}}", progress.TimeElapsedColumn(), "left",
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(markup.escape(printable(title)), total=total, completed=done, note="")
        yield partial(bar.update, task)


class _Lines:
    """Prints where a bar is as one line of JSON, now and then, and at its ends."""

    def __init__(self, line: dict[str, Any]) -> None:
        self._line, self._last = line, 0.0
        self()

    def __call__(self, *, advance: int = 0, completed: int | None = None, **more: Any) -> None:
        line = self._line
        line["done"] = line["done"] + advance if completed is None else completed
        line |= {name: value for name, value in more.items() if value is not None}
        now = time.monotonic()
        if line["done"] == line["total"] or now - self._last > _SECONDS:
            self._last = now
            sys.stderr.write(json.dumps(line) + "\n")
            sys.stderr.flush()
