"""Links carried out in a run folder, and what they did printed."""

import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from condec.basis.errors import command, printable
from condec.basis.locks import held
from condec.run import Outcome, Run, chain, config
from condec.run.links import function


def say(text: object = "") -> None:
    """Print what may hold names from anywhere: their control characters are escaped."""
    print(printable(str(text)))


def one_link(run: Run, link: str) -> None:
    """Carry out one link."""
    carry_out(run, map(function(link), [run]), collects=link == "collect")


def whole_chain(run: Run, left_out: Mapping[str, str] | None = None) -> None:
    """Carry out all links of a plan, and say where the report is."""
    try:
        carry_out(run, chain(run, left_out), collects="collect" in run.plan.links)
    finally:  # of a run with a link that failed, too
        if run.folder.report.exists():
            say(f"Report: {run.folder.report.resolve()}")
            say(f"Explore it: {command('explore', run.folder.path)[1:-1]}")


def carry_out(run: Run, outcomes: Iterable[Outcome], *, collects: bool) -> None:
    """Carry out links and print what they did; write only a plan that the run folder accepts."""
    is_new = collects and not run.folder.store.exists()
    if is_new:
        run.check_devices()
    elif not collects and not run.folder.path.exists():
        _ = run.store  # an error, before a folder is made
    with held(run.folder.path), ExitStack() as stack:
        if run.engine is not None:
            stack.callback(run.engine.close)
        if not collects:
            _ = run.store
        if is_new or not collects:
            config.write(run.plan)
        _say_outcomes(run, outcomes)


def _say_outcomes(run: Run, outcomes: Iterable[Outcome]) -> None:
    kept = False
    for outcome in outcomes:
        say_outcome(outcome)
        kept |= outcome.state == "kept"
        if outcome.link == "collect":
            config.write(run.plan)
    if kept:
        every_byte = f"{command('verify', run.folder.path)} reads every byte"
        say(f"kept: no input has changed, contributions by their manifest alone; {every_byte}")


def say_outcome(outcome: Outcome) -> None:
    """Print what a link did: outputs, seconds and notes."""
    first = outcome.outputs[0] if outcome.outputs else None
    more = f" and {len(outcome.outputs) - 1} more" if len(outcome.outputs) > 1 else ""
    where = "" if first is None else f"  {first}{more}"
    say(f"{outcome.link:8} {outcome.state:8} {outcome.seconds:7.1f} s{where}")
    for note in outcome.notes:
        say(f"         note: {note}")
    sys.stdout.flush()
