"""The progress bar on standard error, the same for everything that takes long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def progress_bar(
    title: str, total: int | None, *, done: int = 0, unit: str = "", shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a bar while the context lasts, and give the function that moves it.

    Parameters
    ----------
    title : str
    total : int, or None
        Steps in all; None where it is told later, by the function.
    done : int
        Steps done before.
    unit : str
        Word behind the numbers, for example ``"samples"``.
    shown : bool
        False: nothing is printed, and rich is not imported. The same where nothing is left.

    Yields
    ------
    callable
        Takes the keywords of rich's `Progress.update`: ``move(advance=1)``, or
        ``move(completed=3, total=10)``; ``note="loss 0.3"`` stands behind the unit.
    """
    if not shown or done == total:
        yield lambda **_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )  # fmt: skip

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn(f"{unit} {{task.fields[note]}}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield partial(bar.update, task)
