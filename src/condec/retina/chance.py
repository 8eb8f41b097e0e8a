"""Chance: how often independent modes meet, and how far from that counts stray.

A *kind* is one combination as a row of bools [mode]; its *key* is the row packed into bytes.
"""

from typing import Final

import numpy as np
from numpy import ndarray

_LEVEL: Final = 0.95
"""Share of shifted counts between ``low`` and ``high``."""


def keys_of(on: ndarray) -> ndarray:
    """Pack each frame's kind into bytes that can be compared and sorted, [frame]."""
    packed = np.ascontiguousarray(np.packbits(on, axis=1))
    keys: ndarray = packed.view(f"S{packed.shape[1]}")[:, 0]
    return keys


def kinds_of(keys: ndarray, n_modes: int) -> ndarray:
    """Unpack the kinds [key, mode] of keys."""
    packed = np.ascontiguousarray(keys)[:, None].view(np.uint8)
    return np.unpackbits(packed, axis=1, count=n_modes).astype(bool)


def likely(rates: ndarray, n_frames: int) -> ndarray:
    """List the kinds [kind, mode] that independent modes would show once or more."""
    kinds, chance = np.zeros((1, 0), dtype=bool), np.ones(1)
    for rate in rates:
        added = np.repeat([False, True], len(kinds))[:, None]
        kinds = np.hstack((np.vstack((kinds, kinds)), added))
        chance = np.concatenate((chance * (1 - rate), chance * rate))
        # One more mode only makes it rarer; rounding must not lose one that is expected once.
        kept = chance * n_frames >= 1 - 1e-9
        kinds, chance = kinds[kept], chance[kept]
    return kinds


def chance_of(kinds: ndarray, rates: ndarray) -> ndarray:
    """Multiply the rates of active modes and 1 minus those of the others, [kind]."""
    product: ndarray = np.where(kinds, rates, 1 - rates).prod(1)
    return product


def binomial_p(counts: ndarray, expected: ndarray, n_frames: int) -> ndarray:
    """Return twice the smaller tail of the exact binomial distribution, at most 1."""
    from scipy.stats import binom

    chance = np.minimum(expected / n_frames, 1.0)
    tails = binom.cdf(counts, n_frames, chance), binom.sf(counts - 1, n_frames, chance)
    p: ndarray = np.minimum(2 * np.minimum(*tails), 1.0)
    return p


def holm(p: ndarray, family: float) -> ndarray:
    """Correct p by Holm for so many tests, of which those that are not given have p of 1."""
    order = np.argsort(p, kind="stable")
    factors = np.maximum(family - np.arange(len(p)), 1.0)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected


def shifted(
    on: ndarray, kinds: ndarray, counts: ndarray, n_shifts: int, seed: int
) -> dict[str, ndarray]:
    """Work out the columns of the shifts of each mode's time course [frame] by itself.

    `kinds` are every one that occurs in `on` [frame, mode], and others; `counts` their frames.
    """
    names = ("low", "high", "p_shift", "p_shift_corrected")
    if not n_shifts:
        return {name: np.full(len(kinds), np.nan) for name in names}
    rng = np.random.default_rng(seed)
    rates, n_modes = on.mean(0), on.shape[1]
    expected = len(on) * chance_of(kinds, rates)
    keys = keys_of(kinds)
    order = np.argsort(keys)
    null = np.zeros((n_shifts, len(kinds)))
    rare = np.zeros(n_shifts)  # the farthest of kinds that are not listed
    for shift in range(n_shifts):
        moved = rolled(on, np.asarray(rng.integers(len(on), size=n_modes)))
        found, times = np.unique(keys_of(moved), return_counts=True)
        places = order[np.searchsorted(keys, found, sorter=order).clip(max=len(keys) - 1)]
        listed = keys[places] == found
        null[shift, places[listed]] = times[listed]
        others = len(on) * chance_of(kinds_of(found[~listed], n_modes), rates)
        rare[shift] = np.abs(_distance(times[~listed], others)).max(initial=0.0)
    away = np.abs(_distance(null, expected))
    farthest = np.maximum(away.max(1), rare)
    # Equal counts are equally far, whatever rounding says.
    here = np.abs(_distance(counts, expected)) - 1e-9
    low, high = np.quantile(null, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    p = (1 + (away >= here).sum(0)) / (1 + n_shifts)
    of_any = (1 + (farthest[:, None] >= here).sum(0)) / (1 + n_shifts)
    return dict(zip(names, (low, high, p, of_any), strict=True))


def rolled(on: ndarray, offsets: ndarray) -> ndarray:
    """Move every column later by its own number of frames, around the end."""
    frames = (np.arange(len(on))[:, None] - offsets) % len(on)
    return np.take_along_axis(on, frames, 0)


def _distance(counts: ndarray, expected: ndarray) -> ndarray:
    """Subtract Anscombe's roots of both."""
    away: ndarray = 2 * (np.sqrt(counts + 3 / 8) - np.sqrt(expected + 3 / 8))
    return away
