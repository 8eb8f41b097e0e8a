"""Names, notes and groups that people give to modes: a small json beside the run.

``{site: [{"name", "note", "group", "atom": {unit: value}, ...}]}``. An entry keeps its mode's atom,
by which it finds the mode again after another fit; ``mode`` and ``dictionary``, the number of the
mode and the digest of its dictionary, tell pages of the report which one it was said of.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from condec.basis.errors import DataError, OptionError
from condec.basis.files import (
    file_name,
    folder_in_place,
    folder_lock,
    reading,
    to_json,
    user_path,
    write_file,
    writing,
)
from condec.basis.metrics import unit_length
from condec.basis.records import short_repr
from condec.dictionary.base import saved_digest
from condec.modes.modes import Modes
from condec.store import RunFolder

FILE: Final = "names.json"
LEAST_COSINE: Final = 0.8
"""Cosine of atoms from which an entry is taken to be about a mode of another fit."""
ENTRIES: Final = 64
"""Largest entries of an atom that are kept."""
_LONGEST: Final = 10_000
"""Characters of a name, a note or a group."""
_WORDS: Final = ("name", "note", "group")
_REMEDY: Final = "Expected what condec.modes.annotate wrote; mend it, or remove it."


@short_repr
@dataclass(frozen=True)
class Annotation:
    """What a person said of a mode; `cosine` of its atom with that of the mode it was said of."""

    name: str = ""
    note: str = ""
    group: str = ""
    cosine: float = 1.0


def annotate(
    folder: str | Path, modes: Modes, row: int, *, name: str = "", note: str = "", group: str = ""
) -> None:
    """Keep a name, a note or a group of a mode beside a run; nothing of all removes the entry.

    Parameters
    ----------
    folder : path
        Of the run.
    modes : Modes
    row : int
        Of `Modes.atoms`.

    Raises
    ------
    OptionError
        There is no such mode, or the text is too long.
    StoreError
        The file cannot be read or written.
    """
    if not 0 <= row < len(modes):
        raise OptionError(f"annotate: there is no mode in row {row}; {len(modes)} modes are alive")
    if max(map(len, (name, note, group))) > _LONGEST:
        raise OptionError(f"annotate: names are text, up to {_LONGEST:,} characters")
    place = user_path(folder)
    file = place / FILE
    with writing(str(file)), folder_lock(place):
        kept = read_names(place)
        entries = kept.get(modes.site.key, [])
        entries = [e for at, e in matched(modes, entries, _others(place, modes)) if at != row]
        if name or note or group:
            top = modes.atoms[row].abs().argsort(descending=True)[:ENTRIES].sort().values
            atom = {str(unit): round(float(modes.atoms[row, unit]), 8) for unit in top.tolist()}
            said = {"name": name, "note": note, "group": group, "atom": atom}
            of = {"mode": int(modes.ids[row]), "dictionary": modes.dictionary}
            entries.append(said | of)
        write_file(file, to_json({**kept, modes.site.key: entries}))


def annotations(folder: str | Path, modes: Modes) -> dict[int, Annotation]:
    """Return what was said of modes of a site, by their row; an entry goes with one mode at most.

    Entries whose atom is like none (cosine below 0.8) stay in the file, and come back with it; so
    do those of another learner's modes, while its dictionary is in the run.
    StoreError where the file is damaged.
    """
    entries = read_names(folder).get(modes.site.key, [])
    found = {}
    for row, entry in matched(modes, entries, _others(folder, modes) if entries else ()):
        if row >= 0:
            cosine = float(_cosines(modes, [entry])[0, row])
            words = {name: entry.get(name, "") for name in _WORDS}
            found[row] = Annotation(**words, cosine=cosine)
    return found


def write_names(folder: str | Path, record: Mapping[str, Any], *, alone: bool = False) -> None:
    """Put entries, by site, in the place of those of these sites; `alone`: of all sites.

    Raises DataError: they are something else than `read_names` returns; StoreError: the file cannot
    be read or written.
    """
    try:
        given = _checked(record)
        to_json(given)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            "names of modes: expected entries by site, as names.json of a run has them; got "
            f"{type(error).__name__}: {error}"
        ) from error
    place = user_path(folder)
    with writing(str(place / FILE)), folder_lock(place):
        kept = {} if alone else read_names(place)
        write_file(place / FILE, to_json({**kept, **given}))


def matched(
    modes: Modes, entries: list[dict[str, Any]], others: Collection[str] = ()
) -> list[tuple[int, dict[str, Any]]]:
    """Return every entry with the row of its mode, -1 for none: one to one, the most alike.

    An entry that was made of this very dictionary is of the mode whose number it has; one of
    `others`, digests of dictionaries that are there as well, is of none of these modes.
    """
    from scipy.optimize import linear_sum_assignment

    rows = dict.fromkeys(range(len(entries)), -1)
    if entries and len(modes):
        cosines, ids = _cosines(modes, entries), modes.ids.tolist()
        for place, entry in enumerate(entries):
            if modes.dictionary and entry.get("dictionary") == modes.dictionary:
                cosines[
                    place, [n for n, number in enumerate(ids) if number == entry.get("mode")]
                ] = 2.0
            elif entry.get("dictionary") in others:
                cosines[place] = -2.0  # takes a mode from no other entry
        for entry, row in zip(*linear_sum_assignment(-cosines.numpy()), strict=True):
            if cosines[entry, row] >= LEAST_COSINE:
                rows[int(entry)] = int(row)
    return [(rows[place], entry) for place, entry in enumerate(entries)]


def _others(folder: str | Path, modes: Modes) -> set[str]:
    """Return the digests of the other dictionaries of a site in a run."""
    start = RunFolder(folder).all_modes / file_name(modes.site.key)
    places = [place for place in start.glob("*") if not place.name.startswith(".")]
    return {saved_digest(folder_in_place(place)) for place in places} - {modes.dictionary, ""}


def _cosines(modes: Modes, entries: list[dict[str, Any]]) -> torch.Tensor:
    """Return cosines of kept atoms and those of modes, [entry, mode]; of the kept entries."""
    width = modes.atoms.shape[1]
    kept = torch.zeros(len(entries), width)
    for place, entry in enumerate(entries):
        for unit, value in entry["atom"].items():
            if int(unit) < width:
                kept[place, int(unit)] = float(value)
    return unit_length(kept, 1) @ unit_length(modes.atoms, 1).T


def read_names(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Return all entries beside a run, by site; StoreError where the file is damaged."""
    file = user_path(folder) / FILE
    if not file.exists():
        return {}
    with reading(file, "names of modes", _REMEDY):
        return _checked(json.loads(file.read_bytes()))


def _checked(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return entries by site; ValueError and others where they are none."""
    for site, entries in found.items():
        for entry in entries:
            numbers = {int(unit): float(value) for unit, value in entry["atom"].items()}
            if min(numbers, default=0) < 0 or not all(map(math.isfinite, numbers.values())):
                raise ValueError(f"{site}: an atom is finite, of units from 0")
            words = [entry.get(name, "") for name in _WORDS]
            if not all(isinstance(one, str) and len(one) <= _LONGEST for one in words):
                raise ValueError(f"{site}: names are text, up to {_LONGEST:,} characters")
            if others := sorted(map(str, entry.keys() - {*_WORDS, "atom", "mode", "dictionary"})):
                raise ValueError(f"{site}: an entry has no {', '.join(others)}")
            mode, dictionary = entry.get("mode", 0), entry.get("dictionary", "")
            if type(mode) not in (int, float) or mode % 1 != 0 or not isinstance(dictionary, str):
                raise ValueError(f"{site}: mode is a whole number, dictionary is text")
    return {site: [_whole(entry) for entry in entries] for site, entries in found.items()}


def _whole(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry whose mode is an int; what came over HTTP has a float."""
    return entry | {"mode": int(entry["mode"])} if "mode" in entry else entry
