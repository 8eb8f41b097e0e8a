"""What every mode stands for, with an interval, or that nothing shows it.

Chosen on one half of the samples, measured on the other; what was chosen has to be found among all
modes and properties at a false-discovery rate first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.bootstrap import interval, resample_counts
from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import atom_coherence, correlation_matrix
from condec.basis.records import short_repr
from condec.basis.shapes import Atom, Mask
from condec.modes.modes import Modes
from condec.modes.properties import LEAST_SAMPLES, Properties
from condec.modes.statistics import (
    FIGURES,
    ModeStatistics,
    mode_statistics,
    redundancy,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas

UNNAMED: Final = "unnamed"
LEAST_CORRELATION: Final = 0.2
"""Above it a mode goes with a superclass in Melander et al. 2026."""
Namer = Callable[["pandas.DataFrame", Atom, "pandas.Series[Any]"], str]
"""From inputs with the highest loadings (`Modes.top`), the atom, and the mode's row: a name."""
_PAIRS_AT_ONCE: Final = 256
_TAIL: Final = 0.025
"""Of a 95 % interval, on either side."""


@short_repr
@dataclass(frozen=True, eq=False)
class Meaning:
    """What modes stand for. Made by `meaning`.

    Attributes
    ----------
    modes : DataFrame
        A row a mode: ``row`` (of atoms), ``id``; ``name``, the property that it goes with best, or
        "unnamed" where its interval does not allow one, and ``why`` not, in words; ``property`` and
        ``kind``, the best one whether or not it does; ``chosen``, its correlation where it was
        chosen, and ``p`` and ``q`` there; ``correlation`` with bounds ``low`` and ``high`` (95 %,
        samples drawn again), ``auroc``, ``precision``, ``information`` and ``selectivity`` where it
        is measured; ``label`` and ``superclass``, the best of each, with ``label_correlation`` and
        ``superclass_correlation``; ``serves``, labels among its discoveries; ``like_atom`` and
        ``like_loading``, the largest cosine with another atom and correlation with other loadings.
    properties : DataFrame
        A row a property: ``property``, ``kind``, ``number`` (of a label), ``count``; ``row`` and
        ``id`` of its best mode, the same figures; ``modes``, how many are found to go with it, and
        ``covered``, whether the best one's interval allows it.
    left_out : tuple of str
        Properties that too few samples have, or lack, on either half.
    rate, least : float
        False-discovery rate, and where the lower bound of the correlation has to be above.
    """

    modes: "pandas.DataFrame"
    properties: "pandas.DataFrame"
    left_out: tuple[str, ...]
    rate: float
    least: float

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the properties of every kind that have a mode."""
        shares = self.properties.groupby("kind", sort=False)["covered"].mean()
        return {str(kind): float(share) for kind, share in shares.items()}


def meaning(
    modes: Modes, properties: Properties | Sequence[Properties] | None = None, *,
    rate: float = 0.05, least: float = LEAST_CORRELATION, k: int = 10, n_bootstrap: int = 400,
    seed: int = 0, namer: Namer | None = None,
) -> Meaning:  # fmt: skip
    """Say what every mode stands for: a label, a superclass, an attribute, or nothing that is sure.

    Of the properties that a mode is found to go with on training rows (`ModeStatistics.q` at most
    `rate`) the one with the highest correlation is taken, and measured on held-out rows. It gives
    the name where the lower bound of its correlation there is above `least`. Where no rows are held
    out, samples are halved by chance.

    Parameters
    ----------
    modes : Modes
    properties : Properties, or several, optional
        By default the labels of the store.
    k : int
        Of the precision.
    n_bootstrap, seed : int
        Of the intervals, and of the halves.
    namer : callable, optional
        Gives the name of every mode that has a discovery, instead of the property's; a
        vision-language model, for example.

    Raises
    ------
    DataError
        No property has two samples, and lacks two, on either half; no input uses any of the modes;
        as in `mode_statistics`.
    OptionError
        A rate outside 0 to 1, or a namer that returns no text.
    """
    if not 0 < rate < 1:
        raise OptionError(f"meaning: rate must lie between 0 and 1; got {rate}")
    at_least("meaning", 1, n_bootstrap=n_bootstrap)
    if not len(modes):
        raise DataError(f"meaning: {modes.site.key}: no input uses any of its modes")
    several = properties_of(modes, properties)
    choose, judge = halves(modes, seed)
    several, rare = _in_both(several, choose, judge, len(modes.loadings))
    chosen = mode_statistics(modes.loadings, several, rows=choose, k=k, seed=seed)
    measured = mode_statistics(modes.loadings, several, rows=judge, k=k, seed=seed)
    found = torch.where(chosen.q <= rate, chosen.correlation, -torch.inf)
    best, best_mode = (  # of discoveries; where there is none, of all
        torch.where((found > 0).any(d, keepdim=True), found, chosen.correlation).argmax(d)
        for d in (1, 0)
    )
    of_modes, of_properties = (
        table.join(_intervals(modes, several, judge, table, n_bootstrap, seed))
        for table in (
            _figures(chosen, measured, best, None).assign(id=modes.ids.tolist()),
            _figures(chosen, measured, None, best_mode),
        )
    )
    of_properties["id"] = modes.ids[torch.tensor(of_properties["row"].tolist())].tolist()

    def sure(table: "pandas.DataFrame", d: int) -> "pandas.Series[bool]":
        return (table["low"] > least) & (found > 0).any(d).numpy()

    names = of_modes["property"].where(sure(of_modes, 1), UNNAMED)
    of_modes.insert(0, "name", names)
    rarer, is_found = _rarer(modes, rare, choose, judge, of_modes), (found > 0).any(1).tolist()
    of_modes["why"] = [
        "" if line["name"] != UNNAMED else better or _why(modes, line, any_, (rate, least), judge)
        for better, any_, line in zip(rarer, is_found, of_modes.to_dict("records"), strict=True)
    ]
    of_modes = of_modes.assign(**_of_kinds(chosen, measured, found))
    of_modes["like_atom"] = atom_coherence(modes.atoms).tolist()
    of_modes["like_loading"] = redundancy(modes.loadings[judge]).tolist()
    of_properties["modes"] = (found > 0).sum(0).tolist()
    of_properties["covered"] = sure(of_properties, 0)
    if namer is not None:
        of_modes["name"] = [
            _named(namer, modes, row) if row["name"] != UNNAMED else UNNAMED
            for _, row in of_modes.iterrows()
        ]
    left_out = tuple(name for one in rare for name in one.names)
    return Meaning(of_modes, of_properties, left_out, rate, least)


def properties_of(
    modes: Modes, given: Properties | Sequence[Properties] | None
) -> list[Properties]:
    """Return properties that are given, one or several, as a list; by default the labels."""
    given = Properties.of_labels(modes.store.labels) if given is None else given
    return [given] if isinstance(given, Properties) else list(given)


def halves(modes: Modes, seed: int = 0) -> tuple[Mask, Mask]:
    """Return the samples to choose by, and those to measure on: training and held-out rows.

    Without held-out rows, every second one of every label, in an order drawn by the seed.
    """
    if bool(modes.held_out.any()):
        return ~modes.held_out, modes.held_out
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(modes.held_out), generator=generator)
    order = order[modes.store.labels[order].sort(stable=True).indices]
    judge = torch.zeros_like(modes.held_out)
    judge[order[::2]] = True
    return ~judge, judge


def _in_both(
    several: Sequence[Properties], choose: Mask, judge: Mask, n_samples: int
) -> tuple[list[Properties], list[Properties]]:
    """Part the properties that enough samples of either half have, and lack, from all others."""
    kept, rare = [], []
    for one in several:
        if len(one.known) != n_samples:
            raise DataError(
                f"meaning: modes of {n_samples} samples, properties of {len(one.known)}; give "
                "those of the store's samples (Store.sample_ids)"
            )
        enough = one.of(choose).enough() & one.of(judge).enough()
        if not enough.all():
            rare.append(one.chosen(~enough))
        if enough.any():
            kept.append(one.chosen(enough))
    if not kept:
        raise DataError(
            f"meaning: none of {sum(map(len, rare))} labels or other properties has "
            f"{LEAST_SAMPLES} samples on either half, and lacks {LEAST_SAMPLES}; labels with one "
            "sample cannot be judged. Give more samples, or superclasses"
        )
    return kept, rare


def _rarer(
    modes: Modes, rare: Sequence[Properties], choose: Mask, judge: Mask, table: "pandas.DataFrame"
) -> list[str]:
    """Say which property that was left out fits each mode best, if better than any other; or ""."""
    best, words = torch.tensor(table["chosen"].to_numpy()), [""] * len(table)
    of = _halves_in_words(modes)
    for one in rare:
        here, there = one.of(choose), one.of(judge)
        if not bool(here.known.any()):
            continue
        counts = (here.counts(), there.counts())
        for start in range(0, len(one), _PAIRS_AT_ONCE):
            member = here.member[:, start : start + _PAIRS_AT_ONCE].toarray()
            found = correlation_matrix(modes.loadings[here.known], torch.from_numpy(member)).max(1)
            for row in (found.values > best).nonzero().flatten().tolist():
                place, best[row] = start + int(found.indices[row]), found.values[row].to(best)
                words[row] = (
                    f"{one.names[place]!r} fits it best (correlation {best[row]:.2f} on {of[0]}), "
                    f"but only {counts[0][place]} of {here.member.shape[0]} {of[0]} and "
                    f"{counts[1][place]} of {there.member.shape[0]} {of[1]} have it: "
                    f"{LEAST_SAMPLES} or more of each are needed, with and without it"
                )
    return words


def _halves_in_words(modes: Modes) -> tuple[str, str]:
    if bool(modes.held_out.any()):
        return "training samples", "held-out samples"
    return "samples of one half", "samples of the other half"


def _why(
    modes: Modes, row: dict[Any, Any], is_found: bool, limits: tuple[float, float], judge: Mask
) -> str:
    """Say why the property that fits a mode best does not name it."""
    (chosen, measured), (rate, least), n = _halves_in_words(modes), limits, int(judge.sum())
    words = f"{row['property']!r} fits it best (correlation {row['correlation']:.2f} on {measured})"
    if not is_found:
        return (
            f"{words}, but on {chosen} that may be chance: its false-discovery rate is "
            f"{row['q']:.2g}, and at most {rate:g} is asked for"
        )
    words += f", but its 95 % interval, {row['low']:.2f} to {row['high']:.2f}, does not lie above "
    words += f"{least:g}"
    # With fewer, more than 2.5 % of the draws have none of them, and a correlation of 0.
    needed = next(k for k in range(1, n + 1) if (1 - k / n) ** n < _TAIL)
    if row["count"] < needed:
        words += f": only {row['count']} of {n} {measured} have it; {needed} or more are needed"
    return words


def _of_kinds(
    chosen: ModeStatistics, measured: ModeStatistics, found: Tensor
) -> dict[str, list[Any]]:
    """Return the best label and superclass of every mode, and how many labels it serves."""
    kinds, columns = np.array(chosen.kinds), dict[str, list[Any]]()
    for kind in ("label", "superclass"):
        of_kind = torch.from_numpy(kinds == kind)
        if bool(of_kind.any()):
            places = chosen.correlation.where(of_kind, -torch.inf).argmax(1)
            columns[kind] = [chosen.names[place] for place in places.tolist()]
            held_out = measured.correlation.gather(1, places[:, None])[:, 0]
            columns[f"{kind}_correlation"] = held_out.tolist()
    columns["serves"] = (found[:, torch.from_numpy(kinds == "label")] > 0).sum(1).tolist()
    return columns


def _figures(
    chosen: ModeStatistics, measured: ModeStatistics, places: Tensor | None, rows: Tensor | None
) -> "pandas.DataFrame":
    """List pairs with the figures of both halves: by mode, or by property."""
    n_modes, n_properties = chosen.p.shape
    rows = torch.arange(n_modes) if rows is None else rows
    places = torch.arange(n_properties) if places is None else places
    table = measured.pairs(rows, places).rename(columns={"name": "property"})
    at = chosen.pairs(rows, places)
    return table.assign(chosen=at["correlation"], p=at["p"], q=at["q"], place=places.tolist())[
        ["row", "place", "property", "kind", "number", "count", "chosen", "p", "q", *FIGURES]
    ]


def _intervals(
    modes: Modes, several: Sequence[Properties], judge: Mask, table: "pandas.DataFrame",
    n_bootstrap: int, seed: int,
) -> "pandas.DataFrame":  # fmt: skip
    """Return the bounds of the correlation of every pair, samples drawn again."""
    import pandas

    bounds, first = torch.full((2, len(table)), torch.nan, dtype=torch.float64), 0
    for part in (one.of(judge) for one in several):
        place = table["place"].to_numpy() - first
        mine = np.flatnonzero((place >= 0) & (place < len(part)))
        first += len(part)
        counts = resample_counts(part.member.shape[0], n_bootstrap, seed).double()
        loadings = modes.loadings[part.known]
        for start in range(0, len(mine), _PAIRS_AT_ONCE):
            some = mine[start : start + _PAIRS_AT_ONCE]
            z = loadings[:, table["row"].to_numpy()[some]].double()
            has = torch.from_numpy(part.member[:, place[some]].toarray()).double()
            bounds[:, some] = interval(_correlation(counts, z, has))
    return pandas.DataFrame({"low": bounds[0], "high": bounds[1]})


def _correlation(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Correlate pairs of columns [sample, pair] under weights, [resample, sample]."""
    n = weights.sum(1, keepdim=True)
    mean_x, mean_y = weights @ x / n, weights @ y / n
    both = weights @ (x * y) / n - mean_x * mean_y
    of_x = weights @ x.square() / n - mean_x.square()
    of_y = weights @ y.square() / n - mean_y.square()
    spread = (of_x.clamp(min=0) * of_y.clamp(min=0)).sqrt()
    return torch.where(spread > 1e-12, both / spread, 0.0)


def _named(namer: Namer, modes: Modes, row: "pandas.Series[Any]") -> str:
    place = int(row["row"])
    found = namer(modes.top(place), modes.atoms[place], row)
    if not isinstance(found, str) or not found.strip():
        raise OptionError(f"meaning: namer: expected a text for mode {row['id']}; got {found!r}")
    return found.strip()
