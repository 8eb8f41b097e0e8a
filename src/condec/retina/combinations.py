"""Modes that act together: how often, against chance, and with which receptive field."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.retina.chance import binomial_p, chance_of, holm, keys_of, kinds_of, likely, shifted
from condec.retina.checks import finite_rows
from condec.retina.fields import ReceptiveFields, separate

if TYPE_CHECKING:
    import pandas


@short_repr
@dataclass(frozen=True, eq=False)
class CombinationFields:
    """Mean receptive fields of the frames at which a combination of modes is active.

    Attributes
    ----------
    combinations : tuple of tuple of int
        Columns of the loadings that are active, in ascending order; empty: none is.
    counts : Tensor of shape [combination], int64
        Frames of each.
    spatial, temporal, strength, separability : Tensor of shape [combination, cell, ...]
        As in `ReceptiveFields`, of the mean field; of length 1 within the window.
    consistency : Tensor of shape [combination, cell]
        Squared length of the mean field over the mean squared length of the fields, 0 to 1: 1
        where all frames of the combination have the same field. NaN without any field.
    likeness : Tensor of shape [combination, cell]
        Cosine of the mean field with the cell's mean field over all frames; below 0 where the
        combination turns it over.
    cells, corners : Tensor of shape [cell] and [cell, 2], int64
    """

    combinations: tuple[tuple[int, ...], ...]
    counts: Int[torch.Tensor, " combination"]
    spatial: Float[torch.Tensor, "combination cell y x"]
    temporal: Float[torch.Tensor, "combination cell history"]
    strength: Float[torch.Tensor, "combination cell"]
    separability: Float[torch.Tensor, "combination cell"]
    consistency: Float[torch.Tensor, "combination cell"]
    likeness: Float[torch.Tensor, "combination cell"]
    cells: Int[torch.Tensor, " cell"]
    corners: Int[torch.Tensor, "cell 2"]

    def __len__(self) -> int:
        return len(self.combinations)


def active_modes(
    loadings: Float[torch.Tensor, "sample mode"], *, threshold: float = 0.0, relative: bool = False
) -> Bool[torch.Tensor, "sample mode"]:
    """Tell which modes are active at which frames: those with a loading above the threshold.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
    threshold : float
        Not below 0.
    relative : bool
        The threshold is a share, below 1, of each mode's largest loading.

    Raises
    ------
    OptionError, DataError
        The threshold is out of range; fewer than two frames, no modes, loadings that are not
        finite, or no mode is ever active.
    """
    if not 0.0 <= threshold < (1.0 if relative else float("inf")):
        raise OptionError(
            "combinations: threshold must be 0 or more, and below 1 where it is relative; got "
            f"{threshold}"
        )
    if len(loadings) < 2 or not loadings.shape[1]:
        raise DataError(
            "combinations: expected loadings of two frames and one mode, or more; got shape "
            f"{tuple(loadings.shape)}"
        )
    finite_rows("combinations: loadings", loadings)
    least = threshold * loadings.amax(0).clamp(min=0.0) if relative else threshold
    found = loadings > least
    if not bool(found.any()):
        raise DataError(
            f"combinations: no mode is active at any of {len(loadings)} frames; lower the threshold"
            f" of {threshold} (the largest loading is {float(loadings.max()):g})"
        )
    return found


def combinations(
    loadings: Float[torch.Tensor, "sample mode"], *, threshold: float = 0.0,
    relative: bool = False, n_shifts: int = 500, seed: int = 0,
) -> "pandas.DataFrame":  # fmt: skip
    r"""Count each combination of modes, and compare with counts of independent modes.

    A frame belongs to the one combination of all modes that are active in it. Of modes that are
    active at a share :math:`r_m` of n frames, independently of each other, a combination A is
    expected :math:`n \prod_{m \in A} r_m \prod_{m \notin A} (1 - r_m)` times.

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
    threshold, relative
        When a mode is active: see `active_modes`.
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
    on = active_modes(loadings, threshold=threshold, relative=relative).cpu().numpy()
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


def fields_of_combinations(
    fields: ReceptiveFields, loadings: Float[torch.Tensor, "sample mode"], *, most: int = 12,
    least_frames: int = 10, threshold: float = 0.0, relative: bool = False,
) -> CombinationFields:  # fmt: skip
    """Average the receptive fields of each frequent combination, and separate the mean again.

    Melander et al. 2026, Figure 8D.

    Parameters
    ----------
    fields : ReceptiveFields
    loadings : Tensor of shape [sample, mode]
        Of the same frames: ``loadings[fields.rows]`` where those are of all samples.
    most, least_frames : int
        So many combinations at most, the most frequent ones, of so many frames at least.
    threshold, relative
        When a mode is active: see `active_modes`.

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
    on = active_modes(loadings, threshold=threshold, relative=relative).cpu().numpy()
    keys, member, counts = np.unique(keys_of(on), return_inverse=True, return_counts=True)
    modes = [tuple(np.flatnonzero(kind).tolist()) for kind in kinds_of(keys, on.shape[1])]
    often = [kind for kind, n in enumerate(counts.tolist()) if n >= least_frames]
    frequent = sorted(often, key=lambda kind: (-int(counts[kind]), modes[kind]))[:most]
    if not frequent:
        raise DataError(
            f"fields_of_combinations: no combination has {least_frames} frames (the most "
            f"frequent has {int(counts.max())}); lower least_frames, or raise the threshold"
        )
    frames = [torch.from_numpy(member == kind) for kind in frequent]
    means = torch.stack([_mean_field(fields.select(some)) for some in frames])
    both, whole = separate(means), _mean_field(fields)
    # Squared lengths of the fields, [sample, cell].
    lengths = fields.strength.double().square() * fields.spatial.double().square().sum((2, 3))
    along = torch.einsum("kchyx,chyx->kc", means, whole)
    squares = means.square().sum((2, 3, 4))
    mean_lengths = torch.stack([lengths[some].mean(0) for some in frames])
    product = (squares * whole.square().sum((1, 2, 3))).sqrt()
    return CombinationFields(
        combinations=tuple(modes[kind] for kind in frequent),
        counts=torch.from_numpy(counts[frequent]),
        **{name: part.float() for name, part in vars(both).items()},
        consistency=(squares / mean_lengths).float(),
        likeness=(along / product).float(),
        cells=fields.cells,
        corners=fields.corners,
    )


def _mean_field(fields: ReceptiveFields) -> Tensor:
    """Average picture times time course, [cell, history, y, x]."""
    course = (fields.strength[..., None] * fields.temporal).double()
    return torch.einsum("sch,scyx->chyx", course, fields.spatial.double()) / len(fields)
