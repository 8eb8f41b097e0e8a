"""What is said of single modes, as JSON takes it: labels, atoms, neighbours, flows."""

import base64
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from condec.basis.npz import load_record
from condec.explanation import ExplainedInput
from condec.modes import correlation_interval
from condec.modes.annotations import ENTRIES
from condec.report.reading import DictionaryPart, RunPart

_NEAR, _LABELS, _AT_ONCE = 4, 4, 256
_ENTRIES_AT_ONCE: Final = 2**22
_WORTH: Final = 0.03
"""Correlation below which other labels than the best one are not listed."""
Mode = tuple[str, str, int]
"""Site, learner, and number of a mode."""


def labels_of(part: DictionaryPart, places: Tensor) -> Iterator[list[int | None]]:
    """Give the labels that modes correlate with best: four at most, one at least if it is above 0.

    Five numbers of each: the label, its correlations on training and held-out rows, and the
    interval of the latter, in thousandths.
    """
    if not part.has_labels:
        yield from ([] for _ in places)
        return
    labels, rows = part.store.labels, part.modes.held_out
    judged = bool(rows.any()) and bool((labels[rows] >= 0).any())
    step = max(1, min(_AT_ONCE, _ENTRIES_AT_ONCE // len(labels)))
    for some in torch.split(places, step):
        train, held = part.correlation[some].nan_to_num(-1.0), part.held_out_correlation[some]
        best = train.topk(min(_LABELS, train.shape[1]), 1)
        bounds = torch.full((2, *best.indices.shape), torch.nan)
        if judged:
            loadings = part.modes.loadings[:, some]
            bounds = correlation_interval(loadings, labels, rows, best.indices)
        values = [best.indices, best.values, held.gather(1, best.indices), *bounds]
        for several in zip(*(one.tolist() for one in values), strict=True):
            rows_of = list(zip(*several, strict=True))
            yield [
                number
                for rank, (label, *numbers) in enumerate(rows_of)
                if numbers[0] > 0 and (rank == 0 or numbers[0] >= _WORTH)
                for number in (label, *map(thousandths, numbers))
            ]


def atom_of(atom: Tensor) -> list[Any]:
    """Return the largest entries of an atom: scale; units (8, 16 or 32 bits) and values (8)."""
    units = atom.abs().topk(min(ENTRIES, len(atom))).indices.sort().values
    values = atom[units].double()
    scale = float(values.abs().max()) or 1.0
    kind = "<u1" if len(atom) <= 2**8 else "<u2" if len(atom) <= 2**16 else "<u4"
    content = units.numpy().astype(kind).tobytes()
    content += (values / scale * 127).round().to(torch.int8).numpy().tobytes()
    return [float(f"{scale:.4g}"), base64.b64encode(content).decode()]


def nearest(values: Tensor, ids: Sequence[int], own: Tensor | None = None) -> list[list[Any]]:
    """Return the columns with the highest values of every row, each before it in thousandths."""
    if own is not None:
        values = values.clone().scatter_(1, own[:, None], -2.0)
    found = values.topk(min(_NEAR, values.shape[1] - (own is not None)), 1)
    return [
        [
            x
            for place, value in zip(places, of, strict=True)
            for x in (ids[place], thousandths(value))
        ]
        for places, of in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Flows:
    """What flows from modes into those of the next site, `mean` over the inputs explained.

    `seen` counts the inputs in which a mode was shown by itself.
    """

    seen: Mapping[Mode, int]
    mean: Mapping[Mode, Mapping[Mode, float]]


def flows(run: RunPart) -> Flows:
    """Return what flows from modes to those of the next site, in the inputs explained."""
    sums: dict[Mode, dict[Mode, float]] = defaultdict(dict)
    seen: dict[Mode, int] = defaultdict(int)
    for place in run.explained.values():
        one = load_record(place, ExplainedInput)
        if (graph := one.graph()) is None:
            continue
        named = {
            f"{site['key']}: {part['part']}": (site["key"], part["dictionary"], part["mode"])
            for site in one.sites for part in site["parts"] if part["mode"] >= 0
        }  # fmt: skip
        for mode in set(graph.edges["from"]) & named.keys():
            seen[named[mode]] += 1
        for start, end, flow in graph.edges[["from", "to", "flow"]].to_numpy():
            if start in named and end in named:
                into = sums[named[start]]
                into[named[end]] = into.get(named[end], 0.0) + float(flow)
    mean = {a: {b: flow / seen[a] for b, flow in into.items()} for a, into in sums.items()}
    return Flows(seen, mean)


def flow_records(run: RunPart, found: Flows) -> dict[Mode, list[Any]]:
    """Return the strongest flows out of every mode, as its page takes them."""
    files = {site.key: site.folder for site in run.sites}
    return {
        mode: [found.seen[mode], *(
            [f"{files[site]}/{learner}", number, short(flow)]
            for (site, learner, number), flow in
            sorted(into.items(), key=lambda pair: -abs(pair[1]))[:_NEAR]
        )]
        for mode, into in found.mean.items()
    }  # fmt: skip


def lower(values: Tensor, largest_first: Tensor) -> Tensor:
    """Return how many values of its row are lower than each one; `values` are sorted.

    `largest_first` are the places that they come from, where the numbers are put back.
    """
    n = values.shape[1]
    last = torch.ones_like(values, dtype=torch.bool)
    last[:, :-1] = values[:, 1:] != values[:, :-1]
    ends = torch.where(last, torch.arange(n), n).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(ends).scatter_(1, largest_first, n - 1 - ends)


def effect(curves: dict[int, dict[str, Any]], number: int) -> float:
    """Return the selectivity of a mode's own curve, ablated, for the label that it fits best."""
    of = [one for one in curves.values() if one["mode"] == number and "ablate" in one]
    value = max(of, key=lambda one: one["correlation"], default={"ablate": None})["ablate"]
    return math.nan if value is None else float(value)


def thousandths(value: float) -> int | None:
    """Write a correlation or a cosine in few signs; None where it is not finite."""
    return round(1000 * value) if math.isfinite(value) else None


def short(value: float) -> float | None:
    """Round to three figures; None where it is not finite."""
    return float(f"{value:.3g}") if math.isfinite(value) else None


def rounded(values: Sequence[Any]) -> list[float | None]:
    """Round to three digits; None for NaN."""
    return [None if value != value else round(float(value), 3) for value in values]
