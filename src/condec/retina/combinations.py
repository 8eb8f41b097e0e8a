"""Modes that act together: how often, against chance, and with which receptive field."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.retina.chance import binomial_p, chance_of, holm, keys_of, kinds_of, likely, shifted
from condec.retina.checks import finite_rows
from condec.retina.fields import RankOne, ReceptiveFields, separate

if TYPE_CHECKING:
    import pandas

_MOST: Final = 12


@short_repr
@dataclass(frozen=True, eq=False)
class CombinationFields(RankOne):
    """Mean receptive fields of the frames at which a combination of modes is active.

    Attributes
    ----------
    spatial, temporal, strength, separability : Tensor of shape [combination, cell, ...]
        As in `ReceptiveFields`, of the mean field; of length 1 within the window.
    combinations : tuple of tuple of int
        Columns of the loadings that are active, in ascending order; empty: none is.
    counts : Tensor of shape [combination], int64
        Frames of each.
    cells, corners : Tensor of shape [cell] and [cell, 2], int64
    """

    combinations: tuple[tuple[int, ...], ...]
    counts: Int[torch.Tensor, " combination"]
    cells: Int[torch.Tensor, " cell"]
    corners: Int[torch.Tensor, "cell 2"]


def active_modes(
    loadings: Float[torch.Tensor, "sample mode"], threshold: float = 0.0
) -> Bool[torch.Tensor, "sample mode"]:
    """Tell which modes are active at which frames: those with a loading above the threshold.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
    threshold : float
        Share of each mode's largest loading, from 0 to below 1.

    Raises
    ------
    OptionError, DataError
        The threshold is out of range; fewer than two frames, no modes, loadings that are not
        finite, or no mode is ever active.
    """
    if not 0.0 <= threshold < 1.0:
        raise OptionError(f"combinations: threshold is a share from 0 to below 1; got {threshold}")
    if len(loadings) < 2 or not loadings.shape[1]:
        raise DataError(
            "combinations: expected loadings of two frames and one mode, or more; got shape "
            f"{tuple(loadings.shape)}"
        )
    finite_rows("combinations: loadings", loadings)
    found = loadings > threshold * loadings.amax(0).clamp(min=0.0)
    if not bool(found.any()):
        raise DataError(
            f"combinations: no mode is active at any of {len(loadings)} frames: no loading is "
            f"above 0 (the largest is {float(loadings.max()):g})"
        )
    return found


def combinations(
    loadings: Float[torch.Tensor, "sample mode"], *, threshold: float = 0.0, n_shifts: int = 500,
    seed: int = 0,
) -> "pandas.DataFrame":  # fmt: skip
    r"""Count each combination of modes, and compare with counts of independent modes.

    A frame belongs to the one combination of all modes that are active in it (`active_modes`). Of
    modes that are active at a share :math:`r_m` of n frames, independently of each other, a
    combination A is expected :math:`n \prod_{m \in A} r_m \prod_{m \notin A} (1 - r_m)` times.

    Frames are no independent draws: loadings last. The binomial p takes them for such and is too
    small; the p of the shifts is not. There, each mode's time course is shifted around the
    recording's end by a random number of frames of its own, which keeps its rate and its
    duration and breaks its relation to other modes. A shift is compared by
    :math:`d = 2 (\sqrt{c + 3/8} - \sqrt{e + 3/8})` of count and expectation, whose spread hardly
    depends on e.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
        Frames in the order of time.
    threshold : float
    n_shifts, seed : int
        Without shifts the columns that come from them are NaN.

    Returns
    -------
    pandas.DataFrame
        One row for each combination that occurs, or would be expected once or more; the most
        frequent first. Columns:

        - ``combination``: tuple of the columns of `loadings` that are active; ``()``: none;
        - ``count``: frames; ``expected``: of independent modes; ``ratio`` of both;
        - ``p_binomial``: exact, twice the smaller tail; ``p_binomial_corrected``: by Holm, for
          all 2^modes combinations of modes that are neither always nor never active;
        - ``low``, ``high``: 95 % of the shifted counts lie between;
        - ``p_shift``: share of shifts, the recording itself counted, with a d as large;
          ``p_shift_corrected``: with such a d for any combination.

    Raises
    ------
    OptionError, DataError
        `n_shifts` is below 0; as in `active_modes`.

    Examples
    --------
    >>> together = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).repeat(10, 1)
    >>> table = combinations(together, n_shifts=0)
    >>> table[["combination", "count", "expected", "ratio"]].values.tolist()
    [[(), 10, 5.0, 2.0], [(0, 1), 10, 5.0, 2.0], [(0,), 0, 5.0, 0.0], [(1,), 0, 5.0, 0.0]]
    """
    import pandas

    at_least("combinations", 0, n_shifts=n_shifts)
    on = active_modes(loadings, threshold).cpu().numpy()
    rates = on.mean(0)
    found, times = np.unique(keys_of(on), return_counts=True)
    occurring, possible = kinds_of(found, on.shape[1]), likely(rates, len(on))
    absent = possible[~np.isin(keys_of(possible), found)]
    rows = np.concatenate((occurring, absent))
    counts = np.concatenate((times, np.zeros(len(absent), dtype=times.dtype)))
    expected = len(on) * chance_of(rows, rates)
    p = binomial_p(counts, expected, len(on))
    family = 2.0 ** int(((rates > 0) & (rates < 1)).sum())
    table = {
        "combination": [tuple(np.flatnonzero(row).tolist()) for row in rows],
        "count": counts,
        "expected": expected,
        "ratio": counts / expected,
        "p_binomial": p,
        "p_binomial_corrected": holm(p, family),
    } | shifted(on, rows, counts, n_shifts, seed)
    return pandas.DataFrame(table).sort_values(
        ["count", "expected", "combination"], ascending=[False, False, True], ignore_index=True
    )


def named(columns: Sequence[int], ids: Tensor) -> str:
    """Write a combination as numbers of its modes in the dictionary; empty for none."""
    return ", ".join(str(int(ids[column])) for column in columns)


def fields_of_combinations(
    fields: ReceptiveFields, loadings: Float[torch.Tensor, "sample mode"], *,
    threshold: float = 0.0, least_frames: int = 10,
) -> CombinationFields:  # fmt: skip
    """Average the receptive fields of each frequent combination, and separate the mean again.

    Melander et al. 2026, Figure 8D.

    Parameters
    ----------
    fields : ReceptiveFields
    loadings : Tensor of shape [sample, mode]
        Of the same frames: ``loadings[fields.rows]`` where those are of all samples.
    threshold : float
        When a mode is active: see `active_modes`.
    least_frames : int
        The 12 most frequent combinations are taken, if they have so many frames.

    Raises
    ------
    DataError
        Loadings of another number of frames, or no combination of so many frames.
    """
    if len(loadings) != len(fields):
        raise DataError(
            f"fields_of_combinations: loadings of {len(loadings)} frames, fields of {len(fields)}; "
            "give loadings[fields.rows]"
        )
    on = active_modes(loadings, threshold).cpu().numpy()
    keys, member, counts = np.unique(keys_of(on), return_inverse=True, return_counts=True)
    modes = [tuple(np.flatnonzero(kind).tolist()) for kind in kinds_of(keys, on.shape[1])]
    often = np.flatnonzero(counts >= least_frames).tolist()
    frequent = sorted(often, key=lambda kind: (-int(counts[kind]), modes[kind]))[:_MOST]
    if not frequent:
        raise DataError(
            f"fields_of_combinations: no combination has {least_frames} frames (the most "
            f"frequent has {int(counts.max())}); lower least_frames, or raise the threshold"
        )
    means = []
    for kind in frequent:
        some = fields.select(torch.from_numpy(member == kind))
        course = (some.strength[..., None] * some.temporal).double()
        total = torch.einsum("sch,scyx->chyx", course, some.spatial.double())
        means.append(total / len(some))
    return CombinationFields(
        **{name: part.float() for name, part in vars(separate(torch.stack(means))).items()},
        combinations=tuple(modes[kind] for kind in frequent),
        counts=torch.from_numpy(counts[frequent]),
        cells=fields.cells,
        corners=fields.corners,
    )
