"""How far a run is, read from its files alone: stores, ledger, logs of driver and workers."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from condec.basis.errors import StoreError, command
from condec.basis.files import reading
from condec.basis.locks import holder
from condec.basis.progress import duration
from condec.run.plugins import link_names
from condec.store import RunFolder, Store

_RECENT: Final = 100
"""Shards from whose times the rate is taken."""


def status_lines(folder: RunFolder) -> Iterator[str]:
    """Yield lines on a run: who holds it, its stores, its links, tasks that wait, and workers.

    Nothing is locked, written or loaded: it can be asked at any time. StoreError without a run.
    """
    if not folder.path.is_dir():
        raise StoreError(f"{folder.path}: no such run folder; {folder.first('collect')}")
    by = holder(folder.path)
    yield f"{folder.path}: {'at work: ' + by if by else 'no driver is at work'}"
    for path in (folder.store, *folder.twins().values(), folder.log_odds):
        if path.exists():
            yield f"{path.relative_to(folder.path)}: {_of_store(path)}"
    with reading(folder.path, "a run with its logs", "Move log.jsonl and workers/ away."):
        yield from _of_logs(folder, at_work=bool(by))


def _of_logs(folder: RunFolder, *, at_work: bool) -> Iterator[str]:
    events = list(_events(folder.log_file))
    logs = {file: list(_events(file)) for file in sorted((folder.path / "workers").glob("*.jsonl"))}
    records = Counter(entry.link for entry in folder.ledger.entries.values())
    for link in link_names():
        if of_link := [e for e in events if e.get("link") == link and e["event"] in _LINK]:
            last = of_link[-1]
            took = f" in {duration(last['seconds'])}" if "seconds" in last else ""
            why = f": {last['error']}" if last["event"] == "failed" else ""
            if stopped := last["event"] == "interrupted" or (
                last["event"] == "start" and not at_work
            ):
                why = f"; {command('run', folder.path)} goes on, or the command that it was"
            done = f", {records[link]} result{'s' * (records[link] > 1)}" if records[link] else ""
            words = "interrupted" if stopped else _LINK[last["event"]]
            yield f"{link}: {words} {last['time'][:19]}Z{took}{done}{why}"
    given = [e for e in events if e["event"] in ("tasks", "tasks done")]
    if at_work and given and given[-1]["event"] == "tasks":
        yield _queue(given[-1], [e for log in logs.values() for e in log])
    for file, log in logs.items():
        if log:
            yield f"worker {file.stem}: {_of_worker(log[-1], file)}"


_LINK: Final = {"start": "begun", "end": "done", "failed": "failed", "interrupted": "interrupted"}


def _of_store(path: Path) -> str:
    """Say how many shards there are, how fast they came, and how long the rest will take."""
    store = Store.open(path)
    missing = len(store.missing())
    words = f"{store.n_shards - missing:,} of {store.n_shards:,} shards"
    if not missing:
        return words
    files = (path / "manifest").glob("shard-*.json")
    times = sorted(file.stat().st_mtime for file in files)[-_RECENT:]
    if len(times) > 1 and (rate := (len(times) - 1) / max(times[-1] - times[0], 1e-3)):
        words += f", {60 * rate:.3g} a minute, about {duration(missing / rate)} left at that rate"
    return words + (f"; the last {_ago(times[-1])}" if times else "")


def _queue(given: Mapping[str, Any], events: list[dict[str, Any]]) -> str:
    since = [e for e in events if e.get("link") == given["link"] and e["time"] >= given["time"]]
    number = Counter(e["event"] for e in since)
    in_hand, waiting = number["begin"] - number["end"], given["tasks"] - number["begin"]
    return (
        f"tasks of {given['link']}: {number['end']} of {given['tasks']} done, {max(in_hand, 0)} in "
        f"hand, {max(waiting, 0)} waiting"
    )


def _of_worker(last: Mapping[str, Any], file: Path) -> str:
    where = f"process {last['process']} on {last['host']}"
    sign = f"last sign of life {_ago(file.stat().st_mtime)}"
    if last["event"] != "begin":
        return f"{where}, nothing in hand; {sign}"
    begun = datetime.fromisoformat(last["time"]).timestamp()
    return f"{where}, {last['task']} since {_ago(begun)}; {sign}"


def _ago(when: float) -> str:
    return f"{duration(max(0.0, time.time() - when))} ago"


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log, but one that is half written."""
    with suppress(OSError):
        for line in file.read_text("utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and {"time", "event", "host", "process"} <= found.keys():
                    yield found
