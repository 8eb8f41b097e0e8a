"""Which units to edit, chosen from scores: those of an atom, or of any ranking."""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import OptionError

_ROUNDING: Final = 1e-9
"""Sums of binary fractions miss by less than this: 100 x 0.29 is 28.999999999999996."""


def choose_units(
    scores: Float[Tensor, " unit"],
    *,
    fraction: float | None = None,
    count: int | None = None,
    above: float | None = None,
    mass: float | None = None,
) -> tuple[int, ...]:
    r"""Units with the highest scores, highest first; of equal ones the lower number first.

    Scores are an atom (`Modes.best`), or the sum of all modes correlated with a label or a
    superclass above r (``ByModeSum(modes=modes, weight="above", least=r).scores(labels)``,
    which is how Melander et al. 2026 choose for superclasses), or any others.

    Parameters
    ----------
    scores : Tensor of shape [unit]
    fraction : float
        From 0 to 1; ``int(n_units * fraction)`` units, as in the paper.
    count : int
        That many units.
    above : float
        All units whose score is above it.
    mass : float
        m from 0 to 1; the fewest units C that hold this share of the sum of all positive
        scores, :math:`\sum_{u \in C} s_u \geq m \sum_u \max(s_u, 0)`.

    Returns
    -------
    tuple of int
        May be empty.

    Raises
    ------
    OptionError
        Not one of the four, or one out of range; scores that are no vector, or not finite.

    Examples
    --------
    >>> scores = torch.tensor([0.1, 4.0, -2.0, 3.0, 1.0])
    >>> choose_units(scores, fraction=0.5)
    (1, 3)
    >>> choose_units(scores, above=0.5)
    (1, 3, 4)
    >>> choose_units(scores, mass=0.4)
    (1,)
    """
    rules = {"fraction": fraction, "count": count, "above": above, "mass": mass}
    named = [name for name, value in rules.items() if value is not None]
    if len(named) != 1:
        raise OptionError(
            f"choose_units: expected one of {', '.join(rules)}; got {', '.join(named) or 'none'}"
        )
    if scores.ndim != 1 or not len(scores) or not bool(scores.isfinite().all()):
        raise OptionError(
            "choose_units: scores must be finite, one for every unit; got shape "
            f"{tuple(scores.shape)}"
        )
    for name in ("fraction", "mass"):
        value = rules[name]
        if value is not None and not 0.0 <= value <= 1.0:
            raise OptionError(f"choose_units: {name} must be from 0 to 1; got {value}")
    if count is not None and not 0 <= count <= len(scores):
        raise OptionError(
            f"choose_units: count must be from 0 to {len(scores)}, the number of units; got {count}"
        )
    if above is not None and math.isnan(above):
        raise OptionError(f"choose_units: above must be a number; got {above}")
    order = torch.argsort(scores, descending=True, stable=True)
    return tuple(order[: _how_many(scores[order], fraction, count, above, mass)].tolist())


def _how_many(
    descending: Tensor,
    fraction: float | None,
    count: int | None,
    above: float | None,
    mass: float | None,
) -> int:
    if count is not None:
        return count
    if fraction is not None:
        return math.floor(len(descending) * fraction + _ROUNDING)
    if above is not None:
        return int((descending.double() > above).sum())
    sums = descending.double().clamp(min=0.0).cumsum(0)
    needed = (mass or 0.0) * float(sums[-1]) * (1.0 - _ROUNDING)
    return 0 if not mass else int((sums < needed).sum()) + (1 if needed else 0)
