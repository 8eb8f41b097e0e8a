"""How long things take, in words, and the progress bar on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from condec.basis.errors import printable


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
