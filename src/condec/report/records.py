"""What pages of modes and labels load: compact records, a hundred modes or fifty labels a file.

Files are scripts, ``condec(NAME,`` and a line of JSON, since pages opened from disk may load
nothing else. What is named twice stands once: inputs, by their rows, under ``data/inputs``.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.files import file_name
from condec.basis.metrics import correlation_matrix, in_columns, unit_length
from condec.explanation import leading_modes
from condec.modes import prototypes
from condec.modes.annotations import matched, read_names
from condec.modes.prototypes import LEAST
from condec.report import figures
from condec.report.drawing import has_charts, maps_of, others_of, parts_of, snippet, tokens_of
from condec.report.numbers import (
    atom_of,
    effect,
    flow_records,
    flows,
    labels_of,
    lower,
    nearest,
    rounded,
    short,
)  # fmt: skip
from condec.report.reading import DictionaryPart, RunPart, SitePart
from condec.report.sheets import Sheets, Tile
from condec.report.tables import leading_ranking, mode_rows
from condec.report.words import label_words, target_words

_FORM: Final = 2
"""What `modes.js` of the same version can read: another number, where records change."""
_MODES_A_FILE: Final = 128
_SORTED_AT_ONCE: Final = 2**22
_LABELS_A_FILE: Final = 50
_INPUTS_A_FILE: Final = 4096
_TOP, _OTHERS, _LABELS = 6, 3, 5
_OF_A_LABEL: Final = 100
"""Modes that the page of a label lists: the five best ones of twenty dictionaries."""
_MAP_SIDE: Final = 128
_CLEAREST, _ON_A_STRIP, _WITHOUT_MAPS = 4, 96, 12
_CONTROL: Final = ("target_accuracy", "off_accuracy")
_AUC: Final = ["auc_difference", "auc_low", "auc_high"]
Row = dict[Any, Any]
_PLAIN: Final[Row] = {
    "tiles": (), "maps": (), "first": (), "texts": (), "pair": (), "record": None,
}  # fmt: skip
"""What is drawn of a mode without pictures."""


def write_data(folder: Path, name: str, value: Any) -> None:
    """Write one file of data into a folder of pages."""
    place = folder / "data" / f"{name}.js"
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    place.write_text(f"condec({json.dumps(name)},\n{text}\n)\n", encoding="ascii")


class Records:
    """Writes the data of a run's pages into a report's folder."""

    def __init__(self, run: RunPart, sheets: Sheets) -> None:
        self.run, self.sheets = run, sheets
        self.rows = {name: row for row, name in enumerate(run.store.sample_ids)}
        self._used: set[int] = set()
        self._tiles: dict[int, Tile] = {}
        self._modes_of = list[Tensor]()
        self._of_label: dict[int, dict[str, Any]] = defaultdict(dict)
        self.flows = flows(run)
        self._flows = flow_records(run, self.flows)
        self._names = read_names(run.folder.path)
        self._clearest: dict[str, list[Row]] = {}
        self._sites: list[Any] = []

    def write(self, name: str, value: Any) -> None:
        """Write one file of data."""
        write_data(self.sheets.folder, name, value)

    # --- one dictionary -------------------------------------------------------------------

    def dictionary(self, site: SitePart, part: DictionaryPart) -> tuple[list[Row], list[Row]]:
        """Write the modes of a dictionary; return the lines of all, and of those that are shown.

        Lines are those of `mode_rows`. Shown are modes that have maps, else the leading ones, but
        for those with too few held-out users where others have enough. Theirs have `tiles` of the
        inputs with the highest loadings, `maps` of them, `texts`: snippets with colours.
        """
        lines = mode_rows(self.run, part)
        if not lines:
            return [], []
        drawn = self._drawn(site, part)
        key = f"{site.folder}/{part.name}"
        rows = [line["row"] for line in lines]
        curves = self._curves(site, part, key)
        chosen = [drawn.get(line["id"]) for line in lines]
        after, next_key = self._next(site, part)
        every = [
            [*record, line["why"]]
            for record, line in zip(
                self._modes(site, part, rows, drawn, curves, after), lines, strict=True
            )
        ]
        tops = [record[2][::2] for record in every]
        known = [
            next((self._tiles[row] for row in top if row in self._tiles), None) for top in tops
        ]
        self.write(f"{key}/modes", {
            "site": site.key, "learner": part.name, "dictionary": part.modes.dictionary,
            "quantity": part.modes.quantity, "held_out": part.has_held_out,
            "units": part.modes.atoms.shape[1], "n_units": site.info.n_units,
            "rows": [int((~part.modes.held_out).sum()), int(part.modes.held_out.sum())],
            "per_file": _MODES_A_FILE, "next": next_key,
            "curves": sorted(curves), "per_labels": _LABELS_A_FILE,
            "texts": bool(part.maps and part.maps.texts),
            "columns": {
                "id": [line["id"] for line in lines], "means": [line["means"] for line in lines],
                "label": part.best[0][rows].tolist() if part.has_labels else [-1] * len(rows),
                **{name: rounded([line[name] for line in lines])
                   for name in ("train", "held_out", "use", "held_out_use", "seeds", "halves")},
                "users": [line["users"] for line in lines],
                "effect": rounded([effect(curves, line["id"]) for line in lines]),
                "pictures": [tile and tile.record() for tile in known],
            },
        })  # fmt: skip
        for number, start in enumerate(range(0, len(every), _MODES_A_FILE)):
            self.write(f"{key}/{number}", every[start : start + _MODES_A_FILE])
        self._note_labels(site, part)
        leading = [*drawn] or part.modes.ids[leading_modes(part.modes, _WITHOUT_MAPS)].tolist()
        some = any(line["enough"] for line in lines)
        shown = [
            line | (one or _PLAIN)
            for line, one in zip(lines, chosen, strict=True)
            if line["id"] in leading and (line["enough"] or not some)
        ]
        self._clearest[key] = shown[:_CLEAREST] if has_charts(self.run, part) else []
        return lines, shown

    def strips(self) -> dict[str, list[Row]]:
        """Return the clearest modes of dictionaries; `pair` is an input and its map, small."""
        every = [one for lines in self._clearest.values() for one in lines if one["first"]]
        for start in range(0, len(every), _ON_A_STRIP):
            some = every[start : start + _ON_A_STRIP]
            file = f"pictures/strip-{start // _ON_A_STRIP}.webp"
            tiles = self.sheets.sheet([p for one in some for p in one["first"]], file, 16, 112)
            for one, first, second in zip(some, tiles[::2], tiles[1::2], strict=True):
                one["pair"] = (first, second)
        return self._clearest

    def _modes(
        self, site: SitePart, part: DictionaryPart, rows: Sequence[int],
        drawn: dict[int, Row], curves: dict[int, Any], after: DictionaryPart | None,
    ) -> Iterator[list[Any]]:  # fmt: skip
        """Give the record of every mode, in the order of `rows`; scripts know the order in it."""
        modes = part.modes
        places, ids = torch.tensor(rows), modes.ids.tolist()
        examples = list(self._examples(part))
        labels = list(labels_of(part, places))
        near = unit_length(modes.atoms, 1)
        own = nearest(near[places] @ near.T, ids, places)
        beyond = [list[Any]()] * len(rows)
        if after is not None:
            between = correlation_matrix(modes.loadings, after.modes.loadings)[places]
            beyond = nearest(between, after.modes.ids.tolist())
        held = modes.of_loadings(lambda some: (some[modes.held_out] > 0).sum(0))
        train = modes.of_loadings(lambda some: (some > 0).sum(0)) - held
        users = [split[places].tolist() for split in (train, held)]
        by_mode: dict[int, list[int]] = defaultdict(list)
        for label, of in curves.items():
            by_mode[of["mode"]].append(label)
        for place, row in enumerate(rows):
            one = drawn.get(ids[row])
            yield [
                atom_of(modes.atoms[row]), labels[place], *examples[row], own[place],
                beyond[place], [of[place] for of in users], by_mode.get(ids[row], []),
                self._flows.get((site.key, part.name, ids[row]), []), one and one["record"],
            ]  # fmt: skip

    def _next(self, site: SitePart, part: DictionaryPart) -> tuple[DictionaryPart | None, str]:
        """Return the dictionary of the next site that has modes, of the same learner if it can."""
        for later in self.run.sites[self.run.sites.index(site) + 1 :]:
            found = sorted(later.parts, key=lambda one: one.name != part.name)
            for one in found:
                if one.n_used and len(one.modes.loadings) == len(part.modes.loadings):
                    return one, f"{later.folder}/{one.name}"
        return None, ""

    def _examples(self, part: DictionaryPart) -> Iterator[list[list[Any]]]:
        """Give inputs of all modes, row after value: top, typical, drawn, and counter-examples."""
        modes, start = part.modes, 0
        for whole in in_columns(modes.loadings):
            end = start + whole.shape[1]
            is_active = modes.quantity == "contribution"
            active = modes.activation_of(slice(start, end)) if is_active else None
            step = max(1, min(_MODES_A_FILE, _SORTED_AT_ONCE // len(whole)))
            for at in range(0, whole.shape[1], step):
                some = slice(at, at + step)
                kinds = _kinds(whole[:, some], None if active is None else active[:, some])
                listed = [
                    (found.tolist(), values.gather(1, found.clamp(min=0)).tolist())
                    for found, values in kinds
                ]
                for mode in range(len(kinds[0][0])):
                    every: list[list[Any]] = [
                        [x for row, value in zip(rows[mode], values[mode], strict=True) if row >= 0
                         for x in (row, short(value))]
                        for rows, values in listed
                    ]  # fmt: skip
                    for several in every:
                        self._used.update(several[::2])
                    yield every if active is not None else [*every, []]
            start = end

    def _drawn(self, site: SitePart, part: DictionaryPart) -> dict[int, Row]:
        """Store pictures and maps of the modes that have some, by their numbers."""
        maps, found = part.maps, dict[int, Row]()
        if maps is None:
            return {}
        pictures = {} if maps.texts else dict(zip(maps.ids, maps.pictures.numpy(), strict=True))
        tiles = self.sheets.inputs(pictures)
        self._tiles |= {self.rows[name]: tile for name, tile in tiles.items()}
        for place, number in enumerate(maps.mode_ids.tolist()):
            samples = [one for one in maps.samples[place].tolist() if one >= 0]
            rows = [self.rows[maps.ids[one]] for one in samples]
            self._used.update(rows)
            record: Row = {
                "rows": rows, "target": target_words(maps.target),
                "loadings": list(map(short, maps.loadings[place, : len(rows)].tolist())),
            }  # fmt: skip
            one, others = dict(_PLAIN), others_of(maps, place)
            mapped = rows + [self.rows[maps.ids[one]] for one in others]
            if maps.texts:
                texts = [tokens_of(maps, place, at, maps.texts[s]) for at, s in enumerate(samples)]
                one["texts"] = [snippet(t) for t in texts]
                ends = [snippet(tokens_of(maps, place, at, maps.texts[s]))
                        for s, at in others.items()]  # fmt: skip
                record |= {
                    "texts": texts,
                    "places": maps.places is not None,
                    "of": dict(zip(mapped, one["texts"] + ends, strict=True)),
                }
            else:
                drawn = [maps_of(maps, place, at, s) for at, s in enumerate(samples)]
                by_part = [few[n] for n in range(len(drawn[0])) for few in drawn]
                tiles_of = [*range(len(samples)), *range(len(by_part), len(by_part) + len(others))]
                by_part += [maps_of(maps, place, at, s)[0] for s, at in others.items()]
                file = f"maps/{site.folder}/{part.name}/{number}.webp"
                kept = self.sheets.sheet(by_part, file, len(samples), _MAP_SIDE)
                sizes, units = (kept[0].width, kept[0].height), maps.units[place].tolist()
                record |= {"parts": parts_of(maps), "units": units,
                           "places": maps.places is not None,
                           "of": dict(zip(mapped, tiles_of, strict=True)),
                           "signs": figures.shows_signs(pictures[maps.ids[samples[0]]]),
                           "sheet": [file, *kept[0].sheet, *sizes]}  # fmt: skip
                one |= {"tiles": [tiles[maps.ids[s]] for s in samples],
                        "maps": kept[: len(samples)]}  # fmt: skip
                one["first"] = [pictures[maps.ids[samples[0]]], drawn[0][0]]
            names, came = self.run.label_names, self.run.store.labels[rows].tolist()
            said = ["" if label < 0 else label_words(names, label) for label in came]
            found[number] = one | {"record": record, "came": said}
        return found

    def _curves(self, site: SitePart, part: DictionaryPart, key: str) -> dict[int, dict[str, Any]]:
        """Write the control curves of labels; return what is said of the best mode of each."""
        table, areas = part.tables.get("control"), part.areas
        if table is None or areas is None:
            return {}
        of = ["label", "edit", "replacement", "ranking"]
        sums = {
            tuple(key): [short(value) for value in values]
            for *key, values in zip(
                *(areas[name] for name in of), areas[_AUC].to_numpy(), strict=True
            )
        }
        found: dict[int, dict[str, Any]] = {}
        every: dict[int, list[Any]] = defaultdict(list)
        lead = leading_ranking(areas)
        grouped: Any = table.groupby(of, sort=False)
        for (label, edit, by, ranking), rows in grouped:
            auc = sums.get((label, edit, by, ranking), [None] * 3)
            mode = rows["mode"].iloc[0]
            mode = -1 if pandas.isna(mode) else int(mode)
            lines = [rounded(rows[name].tolist()) for name in _CONTROL]
            every[label].append([edit, by, ranking, mode, auc, rows["fraction"].tolist(), *lines])
            if ranking == "best_mode":
                best = found.setdefault(
                    label, {"mode": mode, "correlation": rows["correlation"].iloc[0]}
                )
                best.setdefault(edit, auc[0])
            if ranking == lead:
                self._of_label[label].setdefault("control", []).append([site.key, edit, by, auc])
        for number, some in _by_file(every, _LABELS_A_FILE).items():
            self.write(f"{key}/control-{number}", some)
        return found

    # --- labels ---------------------------------------------------------------------------

    def _note_labels(self, site: SitePart, part: DictionaryPart) -> None:
        """Keep the modes that each label goes with best, and prototypes at the last with modes."""
        self._sites.append(f"{site.folder}/{part.name}")
        if not part.has_labels:
            return
        found = part.correlation.nan_to_num(-1.0).topk(min(_LABELS, len(part.modes)), 0)
        held = part.held_out_correlation.gather(0, found.indices)
        here = torch.full_like(held, len(self._sites) - 1)
        new = torch.stack([found.values, held, here, part.modes.ids[found.indices]], 2)
        self._modes_of.append(new.double().transpose(0, 1))
        if sum(one.shape[1] for one in self._modes_of) > 2 * _OF_A_LABEL:
            self._modes_of = [self._best_of_labels()]
        parts = [one for _, one in self.run.parts]
        if any(one.n_used for one in parts[parts.index(part) + 1 :]):
            return
        labels = self.run.store.labels
        counts = torch.bincount(labels[labels >= 0])
        for label in (counts >= LEAST).nonzero().flatten().tolist():
            try:
                kinds = prototypes(part.modes, label)
            except DataError as error:
                self._of_label[label]["kinds"] = str(error)
                continue
            of: list[Any] = [
                [len(kinds.typical(n, len(kinds.table))), part.modes.ids[kinds.leading(n)].tolist(),
                 kinds.typical(n, 6)["row"].tolist()]
                for n in range(len(kinds.centres))
            ]  # fmt: skip
            out = kinds.outliers["row"].tolist()
            self._used.update(row for one in (*(few[2] for few in of), out[:12]) for row in one)
            self._of_label[label]["kinds"] = [
                f"{site.folder}/{part.name}", of, out[:12], len(out), math.isfinite(kinds.fence),
            ]  # fmt: skip

    def _best_of_labels(self) -> Tensor:
        """Return the modes of every label, [label, mode, 4], of all dictionaries so far."""
        every = torch.cat(self._modes_of, 1) if self._modes_of else torch.zeros(0, 0, 4)
        if every.shape[1] <= _OF_A_LABEL:
            return every
        most = every[..., 0].topk(_OF_A_LABEL, 1).indices.sort(1).values
        return every.gather(1, most[..., None].expand(-1, -1, 4))

    def finish(self) -> None:
        """Write labels, inputs, and what all pages load."""
        run, labels = self.run, self.run.store.labels
        counts = torch.bincount(labels[labels >= 0])
        right = torch.bincount(labels[(labels >= 0) & (labels == run.store.predictions)],
                               minlength=len(counts))  # fmt: skip
        listed, best_of = [], self._best_of_labels().numpy().round(3)
        # File by file: a million lists at once keep Python's collector of garbage busy.
        labelled = groupby(
            counts.nonzero().flatten().tolist(), lambda label: label // _LABELS_A_FILE
        )
        for number, some_labels in labelled:
            every = dict[int, Any]()
            for label in some_labels:
                modes: list[Any] = []
                if label < len(best_of):
                    modes = [[int(at), int(number), train, None if held != held else held]
                             for train, held, at, number in best_of[label].tolist()]  # fmt: skip
                every[label] = {"modes": modes, **self._of_label.get(label, {})}
                best = max(modes, key=lambda one: float(one[2]), default=None)
                listed.append(
                    [label, int(counts[label]), int(right[label]), *(best or [-1, -1, None, None])]
                )
            self.write(f"labels/{number}", every)
        self.write("labels", {"per_file": _LABELS_A_FILE, "rows": listed})
        told = labels.tolist(), run.store.predictions.tolist()
        inputs = {row: self._input(row, *told) for row in sorted(self._used | {*self._tiles})}
        for number, some in _by_file(inputs, _INPUTS_A_FILE).items():
            self.write(f"inputs/{number}", some)
        known = [
            [site.key, site.folder, [p.name for p in site.parts if p.n_used]] for site in run.sites
        ]
        self.write("run", {
            "form": _FORM, "hash": run.store.config_hash, "sites": known,
            "dictionaries": self._sites,
            "labels": run.label_names, "per_inputs": _INPUTS_A_FILE, "names": self._said,
            "target": target_words(run.store.recipe.get("target", {})),
            "rankings": figures.rankings_in(
                name for _, part in run.parts if part.areas is not None
                for name in part.areas["ranking"]),
        })  # fmt: skip

    def _input(self, row: int, labels: list[int], predictions: list[int]) -> list[Any]:
        name = self.run.store.sample_ids[row]
        tile = self._tiles.get(row)
        page = f"inputs/{file_name(name)}.html" if name in self.run.explained else ""
        return [name, labels[row], predictions[row], tile and tile.record(), page]

    @property
    def _said(self) -> dict[str, list[dict[str, Any]]]:
        """Names that people gave, every entry with the number of the mode that it is of today."""
        said = dict(self._names)
        for site, part in self.run.parts:
            if entries := said.get(site.key):
                own = part.modes.dictionary
                others = {one.modes.dictionary for one in site.parts} - {own}
                said[site.key] = [
                    entry if row < 0
                    else entry | {"mode": int(part.modes.ids[row]), "dictionary": own}
                    for row, entry in matched(part.modes, entries, others)
                ]  # fmt: skip
        return said


def _kinds(loading: Tensor, active: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Return inputs of some modes by kind, [mode, input], -1 for none, and values to show."""
    loading, n = loading.T.contiguous(), len(loading)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    ordered, order = loading.sort(dim=1, descending=True, stable=True)
    n_used = (loading > 0).sum(1, keepdim=True)
    middle = (n_used // 2 - _OTHERS // 2).clamp(min=0) + torch.arange(_OTHERS)
    typical = order.gather(1, middle.clamp(max=n - 1)).where(middle < n_used, -1)
    # As Modes.random draws them: the first users in one order of all inputs.
    turns = torch.where(loading[:, drawn] > 0, torch.arange(n), n)
    first = turns.gather(1, _highest(n - turns, min(_OTHERS, n)))
    random = drawn[first.clamp(max=n - 1)].where(first < n, -1)
    kinds = [(order[:, :_TOP].where(ordered[:, :_TOP] > 0, -1), loading)]
    kinds += [(typical, loading), (random, loading)]
    if active is not None:
        own = active.T.contiguous()
        falling = torch.from_numpy(np.argsort(-own.numpy(), axis=1))  # quicker than torch
        higher = lower(own.gather(1, falling), falling) - lower(ordered, order)
        # Of equal ones the first: no two keys are the same.
        keys = higher * n - torch.arange(n)
        most = _highest(keys, min(_OTHERS, n))
        kinds.append((most.where(higher.gather(1, most) > 0, -1), own))
    return kinds


def _highest(keys: Tensor, number: int) -> Tensor:
    """Return the places of the highest keys of every row, in place: quicker than `topk` of few."""
    found = []
    for _ in range(number):
        found.append(keys.argmax(1, keepdim=True))
        keys.scatter_(1, found[-1], torch.iinfo(keys.dtype).min)
    return torch.cat(found, 1)


def _by_file(records: dict[int, Any], size: int) -> dict[int, dict[int, Any]]:
    files: dict[int, dict[int, Any]] = defaultdict(dict)
    for number, record in records.items():
        files[int(number) // size][int(number)] = record
    return files
