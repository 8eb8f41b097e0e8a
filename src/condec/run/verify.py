"""All that a run folder holds compared with what was written: what ``condec verify`` does.

No model is needed, and no code of a run is executed, but to repair.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from condec.basis.errors import CondecError, StoreError
from condec.basis.files import remove_whatever, to_json, writing
from condec.basis.records import Damage, short_repr
from condec.run import config
from condec.run.links import chain, function
from condec.run.plugins import link_names
from condec.run.run import Outcome, Run
from condec.store import RunFolder, Store
from condec.store.folder import TABLES
from condec.store.ledger import RECORDS

_RESULTS: Final = ("analysis", "modes", "report", "log_odds", "activations", "twins", RECORDS)
"""Folders of a run that hold nothing but results."""
_REPAIR: Final = "repair.json"
"""File of a repair that is under way: the links to carry out."""
_OF_KILLED: Final = r".*\.partial|\..*\.(new|earlier|old)"
"""Names of what a killed writer leaves."""


@short_repr
@dataclass(frozen=True)
class Verification:
    """Outcome of `verify_run`: what is damaged, and how much was looked at."""

    folder: Path
    damages: tuple[Damage, ...]
    n_files: int
    n_bytes: int

    def __str__(self) -> str:
        size = f"{self.n_files:,} files, {self.n_bytes / 2**20:.1f} MiB"
        found = f"{len(self.damages)} damaged" if self.damages else "all as it was written"
        return f"{self.folder}: {size} checked, {found}"


def verify_run(folder: str | Path) -> Verification:
    """Compare all that a run folder holds with its records, and stores with their manifests.

    Raises StoreError: it is not a run folder.
    """
    place = RunFolder(folder)
    if not place.store.exists():
        raise StoreError(f"{place.path}: expected a run folder; it has no {place.store.name}")
    damages = [damage for store in _stores(place) for damage in _of_store(store)]
    recorded = (place.ledger.damage(place.path / name) for name in place.ledger.outputs())
    damages += filter(None, recorded)
    damages += [*place.ledger.damaged.values(), *_strays(place)]
    if links := _under_repair(place):
        problem = f"a repair was interrupted, to be made again: {', '.join(sorted(links))}"
        remedy = f"Run 'condec verify {place.path} --repair': it goes on."
        damages.append(Damage(place.path / _REPAIR, problem, remedy))
    try:
        _ = place.plan.exists() and config.read(place.path)
    except CondecError as error:
        problem = str(error).removeprefix(f"{place.plan}: ")
        damages.append(Damage(place.plan, problem, "Write it again."))
    sizes = [file.lstat().st_size for file in place.path.rglob("*") if not file.is_dir()]
    return Verification(place.path, tuple(damages), len(sizes), sum(sizes))


def repair_run(run: Run, found: Verification) -> Iterator[Outcome]:
    """Remove what is damaged, and carry out those links that made it; all else is kept.

    A repair that was interrupted goes on: what it has removed is made.
    """
    folder, ledger, mark = run.folder, run.folder.ledger, run.folder.path / _REPAIR
    files = {damage.file for damage in found.damages} - {folder.plan, mark}
    links = {"report"} if folder.report.parent.exists() else set()
    stores = [s for s in _stores(folder) if any(file.is_relative_to(s) for file in files)]
    damaged = [
        entry
        for entry in ledger.entries.values()
        if any(folder.path / name in files for name in entry.outputs)
    ]
    links |= {"control" if path == folder.log_odds else "collect" for path in stores}
    links |= {entry.link for entry in damaged} | _under_repair(folder)
    links |= {_link_of(file.relative_to(folder.path)) for file in files}
    # What is removed has no record any more: it must not pass for something that never was.
    folder.write(mark, to_json(sorted(links)))
    with writing(f"{folder.path}: what is damaged cannot be removed"):
        for path in stores:
            _repair_store(path)
        for entry in damaged:
            ledger.forget(entry.task, users=False)
        for file in files:
            if not any(file.is_relative_to(path) for path in stores):
                remove_whatever(file)
    if links - set(link_names()) - {""}:  # What only the whole chain notes.
        yield from chain(run)
    else:
        yield from (function(link)(run) for link in link_names() if link in links)
    mark.unlink()


def _under_repair(folder: RunFolder) -> set[str]:
    """Return the links whose results an interrupted repair has removed."""
    mark = folder.path / _REPAIR
    if not mark.exists():
        return set()
    try:
        return set(map(str, json.loads(mark.read_bytes())))
    except (OSError, ValueError, TypeError):
        return {"run"}  # of which nothing is known: the whole chain


def _stores(folder: RunFolder) -> list[Path]:
    recorded = (folder.path / name for name in folder.ledger.outputs())
    of_record = {path for path in recorded if path.name == folder.store.name}
    found = {folder.store, folder.log_odds, *folder.twins().values()}
    return sorted(of_record | {path for path in found if path.exists()})


def _of_store(path: Path) -> Iterator[Damage]:
    try:
        store = Store.open(path)
        yield from store.damages()
        if missing := store.missing():
            problem = f"{len(missing)} of {store.n_shards} shards are missing"
            yield Damage(path, problem, "Run the command that made it: it writes those again.")
    except StoreError as error:
        problem = str(error).removeprefix(f"{path}: ").rstrip(".")
        yield Damage(path, problem, "'condec collect' makes it again once it is gone.")


def _repair_store(path: Path) -> None:
    try:
        Store.open(path).repair()
    except StoreError:
        shutil.rmtree(path, ignore_errors=True)  # Nothing says any more what it held.


def _strays(folder: RunFolder) -> Iterator[Damage]:
    """Yield files among results that no record names, and what killed writers left."""
    kept = {folder.path / name for name in folder.ledger.outputs()} | {*_stores(folder)}
    kept |= set(folder.ledger.damaged)
    kept |= {folder.ledger.file(task) for task in folder.ledger.entries}
    for above, folders, names in os.walk(folder.path):
        here = Path(above)
        inside = here.relative_to(folder.path).parts[:1]
        folders[:] = [name for name in folders if here / name not in kept]
        for name in [*folders, *names]:
            path = here / name
            if re.fullmatch(_OF_KILLED, name):
                yield Damage(path, "left by a writer that was killed", "Remove it.")
                folders[:] = [one for one in folders if one != name]
            elif inside and inside[0] in _RESULTS and name in names and path not in kept:
                yield folder.ledger.damage(path) or Damage(path, "no record names it", "Remove it.")


def _link_of(file: Path) -> str:
    """Return the link that made a result of which no record is left, by its place."""
    first, *rest = file.parts
    kind = rest[0].partition("%20")[0].partition(".")[0] if rest else ""
    known = {"maps": "map", "rivals": "fit", "stability": "fit", "labels": "collect"}
    known |= {"statistics": "stats", "statistics_twins": "stats", "superclasses": "control"}
    known |= {"left_out": "run", "left": "run"}
    if first in ("modes", "report"):
        return {"modes": "fit"}.get(first, first)
    if first in ("log_odds", "activations") or kind in {*TABLES} - known.keys():
        return "control"
    return known.get(kind, kind if kind in link_names() else "")
