"""All that a run folder holds compared with what was written: what ``condec verify`` does.

No model is needed, and no code of a run is executed, but to repair.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from condec.basis.errors import CondecError, StoreError, command
from condec.basis.files import checksum_holds, remove_whatever, to_json, writing
from condec.basis.records import Damage, short_repr
from condec.run import config
from condec.run.links import chain, function
from condec.run.plugins import link_names
from condec.run.run import Outcome, Run
from condec.store import RunFolder, Store
from condec.store.folder import TABLES
from condec.store.ledger import RECORDS

_RESULTS: Final = (
    "analysis",
    "modes",
    "explain",
    "report",
    "log_odds",
    "activations",
    "twins",
    RECORDS,
)
"""Folders of a run that hold nothing but results."""
_REPAIR: Final = "repair.json"
"""File of a repair that is under way: the links to carry out."""
_LINKS: Final = {
    "contributions": "collect", "twins": "collect", "labels": "collect", "maps": "map",
    "modes": "fit", "meaning": "fit", "rivals": "fit", "stability": "fit", "log_odds": "control",
    "units": "fit", "families": "fit", "judged": "control", "asked": "explain",
    "activations": "control", "superclasses": "control", "explained": "explain",
    "statistics": "stats", "statistics_twins": "stats", "left_out": "run", "left": "run",
}  # fmt: skip
"""Links by names of files and folders, and of tasks."""
_OF_KILLED: Final = r".*\.partial|\..*\.(new|earlier|old)"
"""Names of what a killed writer leaves."""
_OF_SYSTEM: Final = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Failures to read that say nothing about what lies there."""


@short_repr
@dataclass(frozen=True)
class Verification:
    """Outcome of `verify_run`: what is damaged, and how much was looked at.

    Damages stand in the order of the chain, what follows from others after them; `unfinished` says
    how far stores have come that are still to be collected, which is no damage.
    """

    folder: Path
    damages: tuple[Damage, ...]
    unfinished: tuple[str, ...]
    n_files: int
    n_bytes: int

    def __str__(self) -> str:
        size = f"{self.n_files:,} files, {self.n_bytes / 2**20:.1f} MiB"
        found = f"{len(self.damages)} damaged" if self.damages else "all as it was written"
        return "\n".join((*self.unfinished, f"{self.folder}: {size} checked, {found}"))


def verify_run(folder: str | Path) -> Verification:
    """Compare all that a run folder holds with its records, and stores with their manifests.

    Raises StoreError: it is not a run folder.
    """
    place = RunFolder(folder)
    if not place.store.exists():
        raise StoreError(f"{place.path}: expected a run folder; it has no {place.store.name}")
    stores = {store: [*_of_store(place, store)] for store in _stores(place)}
    damages = [damage for found in stores.values() for damage in found]
    recorded = (path for path in place.ledger.outputs() if not stores.get(path))
    damages += filter(None, map(place.ledger.damage, recorded))
    damages += [*place.ledger.damaged.values(), *_strays(place)]
    if links := _under_repair(place):
        problem = f"a repair was interrupted, to be made again: {', '.join(sorted(links))}"
        remedy = f"Run {command('verify', place.path, '--repair')}: it goes on."
        damages.append(Damage(place.path / _REPAIR, problem, remedy))
    try:
        _ = place.plan.exists() and config.read(place.path)
    except CondecError as error:
        problem = str(error).removeprefix(f"{place.plan}: ")
        damages.append(Damage(place.plan, problem, "Write it again."))
    sizes = [file.lstat().st_size for file in place.path.rglob("*") if not file.is_dir()]
    unfinished = tuple(filter(None, (_unfinished(place, store) for store in stores)))
    bad = {damage.file for damage in damages} | {store for store, found in stores.items() if found}
    ordered = (_following(one, place, bad) for one in sorted(damages, key=partial(_order, place)))
    return Verification(place.path, tuple(ordered), unfinished, len(sizes), sum(sizes))


def _order(folder: RunFolder, damage: Damage) -> tuple[int, bool, bool]:
    """Rank by the link that made it; in a link, causes first, and tables after their modes."""
    links, link = link_names(), _link(folder, damage.file)
    of_tables = damage.file.is_relative_to(folder.analysis())
    return links.index(link) if link in links else len(links), damage.cause is not None, of_tables


def _following(damage: Damage, folder: RunFolder, bad: Collection[Path]) -> Damage:
    """Say of a result that was made from a damaged one that it follows from that."""
    if damage.cause is None or damage.cause not in bad:
        return damage
    problem = f"follows from {damage.cause.relative_to(folder.path)}"
    return replace(damage, problem=problem, remedy="It is kept if that is made again the same.")


def repair_run(run: Run, found: Verification) -> Iterator[Outcome]:
    """Remove what is damaged, and carry out those links that made it; all else is kept.

    What follows from something damaged is made again where that comes out otherwise. A repair that
    was interrupted goes on: what it has removed is made.
    """
    folder, ledger, mark = run.folder, run.folder.ledger, run.folder.path / _REPAIR
    links = {_link(folder, damage.file) for damage in found.damages} | _under_repair(folder)
    links |= {"report"} if folder.report.parent.exists() else set()
    whole = bool(links - {*link_names(), ""})  # what only the whole chain notes
    followers = [damage.file for damage in found.damages if damage.cause and not whole]
    files = {damage.file for damage in found.damages} - {folder.plan, mark, *followers}
    stores = [s for s in _stores(folder) if any(file.is_relative_to(s) for file in files)]
    damaged = [
        entry
        for entry in ledger.entries.values()
        if any(folder.path / name in files for name in entry.outputs)
    ]
    # What is removed has no record any more: it must not pass for something that never was.
    folder.write(mark, to_json(sorted(links)))
    with writing(f"{folder.path}: what is damaged cannot be removed"):
        # The link that collects log-odds reads them at once, so that they are all made again.
        rootless = [path for path in stores if not _repair_store(path, path != folder.log_odds)]
        for entry in damaged:
            ledger.forget(entry.task, users=False)
        for file in files:
            if not any(file.is_relative_to(path) for path in stores):
                remove_whatever(file)
    for link in () if whole else link_names():
        if link == "report":
            _forget_others(folder, followers)
        if link in links:
            yield function(link)(run)
        if link == "collect":  # Stores without metadata, which are back, could not be checked.
            damages = [damage for path in rootless for damage in Store.open(path).repair()]
            if damages:
                yield function(link)(run)
    if whole:
        yield from chain(run)
    mark.unlink()


def _forget_others(folder: RunFolder, files: Iterable[Path]) -> None:
    """Remove results that still do not fit what they were made from: no link makes them again."""
    for file in files:
        entry = folder.ledger.maker(file.relative_to(folder.path).as_posix())
        if entry is not None and entry.link != "report" and folder.ledger.damage(file):
            folder.ledger.forget(entry.task)


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
    of_record = {path for path in folder.ledger.outputs() if path.name == folder.store.name}
    found = {folder.store, folder.log_odds, *folder.twins().values()}
    return sorted(of_record | {path for path in found if path.exists()})


def _of_store(folder: RunFolder, path: Path) -> Iterator[Damage]:
    remedy = f"Run {command('verify', folder.path, '--repair')}: it is made again."
    try:
        store = Store.open(path)
        found = store.damages()
        yield from (replace(damage, remedy=remedy) for damage in found)
        if not found and (missing := store.missing()) and _was_whole(folder, path):
            yield Damage(path, f"{len(missing)} of {store.n_shards} shards are missing", remedy)
    except StoreError as error:
        yield Damage(path, str(error).removeprefix(f"{path}: ").rstrip("."), remedy)


def _unfinished(folder: RunFolder, path: Path) -> str:
    """Say how far a store has come that is still to be collected; nothing of others."""
    with suppress(StoreError):  # which is damage
        store = Store.open(path)
        if (missing := store.missing()) and not _was_whole(folder, path):
            done = f"{store.n_shards - len(missing)} of {store.n_shards} shards"
            return f"{path}: not finished: {done}; {command('run', folder.path)} goes on"
    return ""


def _was_whole(folder: RunFolder, path: Path) -> bool:
    """Tell whether a result was made from a store: it had all its shards then."""
    name, of_log_odds = path.relative_to(folder.path).as_posix(), path == folder.log_odds
    return any(
        name in (*entry.inputs, *entry.outputs) or (of_log_odds and entry.link == "control")
        for entry in folder.ledger.entries.values()
    )


def _repair_store(path: Path, by_records: bool) -> bool:
    """Repair a store; tell whether it has metadata, without which its shards are not checked."""
    try:
        Store.open(path).repair()
    except StoreError as error:
        if getattr(error.__cause__, "errno", None) in _OF_SYSTEM:
            raise
        records = (file.read_bytes() for file in path.glob("manifest/*.json") if file.is_file())
        if by_records and any(
            map(checksum_holds, records)
        ):  # Shards count by them, once the metadata are back.
            remove_whatever(path / "zarr.json")
            return False
        shutil.rmtree(path, ignore_errors=True)  # Nothing says any more what it held.
    return True


def _strays(folder: RunFolder) -> Iterator[Damage]:
    """Yield files among results that no record names, and what killed writers left."""
    kept = {*folder.ledger.outputs(), *_stores(folder), *folder.ledger.damaged}
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


def _link(folder: RunFolder, file: Path) -> str:
    """Return the link that made a result: that of its record, or by its place."""
    name = file.relative_to(folder.path)
    entry = folder.ledger.maker(name.as_posix())
    return _link_of(name) if entry is None else entry.link


def _link_of(file: Path) -> str:
    """Return the link that made a part of a store, or a result of which no record is left."""
    known = dict.fromkeys(TABLES, "control") | {link: link for link in link_names()} | _LINKS
    names = (part.partition("%20")[0].partition(".")[0] for part in file.parts)
    return next((known[name] for name in names if name in known), "")
