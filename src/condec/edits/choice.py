"""Units to edit, chosen from scores: those of an atom, or of any ranking."""

import math
from typing import Final

import torch
from jaxtyping import Float

from condec.basis.errors import OptionError

_ROUNDING: Final = 1e-9
"""Sums of binary fractions miss by less than this: 100 x 0.29 is 28.999999999999996."""


def count_units(n_units: int, fraction: float) -> int:
    """Return how many units a fraction is: ``int(n_units * fraction)``, without rounding errors.

    >>> count_units(100, 0.29), int(100 * 0.29)
    (29, 28)
    """
    return math.floor(n_units * fraction + _ROUNDING)


def choose_units(
    scores: Float[torch.Tensor, " unit"],
    *,
    fraction: float | None = None,
    count: int | None = None,
    above: float | None = None,
    mass: float | None = None,
) -> tuple[int, ...]:
    r"""Return the units with the highest scores, highest first; of equal ones the lower number.

    Parameters
    ----------
    scores : Tensor of shape [unit]
        An atom (`Modes.best`), `ByModeSum.scores`, or any others.
    fraction, count : float, int
        ``int(n_units * fraction)`` units, as in the paper; or that many.
    above : float
        All units whose score is above it.
    mass : float
        m from 0 to 1; the fewest units C that hold this share of the sum of all positive
        scores, :math:`\sum_{u \in C} s_u \geq m \sum_u \max(s_u, 0)`.

    Raises
    ------
    OptionError
        Not one of the four, or one out of range; scores that are no vector, or not finite.

    Examples
    --------
    >>> scores = torch.tensor([0.1, 4.0, -2.0, 3.0, 1.0])
    >>> choose_units(scores, fraction=0.5)
    (1, 3)
    >>> choose_units(scores, mass=0.4)
    (1,)
    """
    rules = {"fraction": fraction, "count": count, "above": above, "mass": mass}
    named = {name: value for name, value in rules.items() if value is not None}
    if len(named) != 1:
        raise OptionError(
            f"choose_units: expected one of {', '.join(rules)}; got {', '.join(named) or 'none'}"
        )
    if scores.ndim != 1 or not len(scores) or not bool(scores.isfinite().all()):
        raise OptionError(
            "choose_units: scores must be finite, one for every unit; got shape "
            f"{tuple(scores.shape)}"
        )
    ((rule, value),) = named.items()
    most = {"count": len(scores), "above": math.inf}.get(rule, 1)
    if not (-math.inf if rule == "above" else 0) <= value <= most:
        expected = {"count": f"from 0 to {most}, the number of units", "above": "a number"}
        raise OptionError(
            f"choose_units: {rule} must be {expected.get(rule, 'from 0 to 1')}; got {value}"
        )
    order = torch.argsort(scores, descending=True, stable=True)
    ranked = scores[order].double()
    if rule == "fraction":
        value = count_units(len(ranked), value)
    elif rule == "above":
        value = int((ranked > value).sum())
    elif rule == "mass":
        sums = ranked.clamp(min=0.0).cumsum(0)
        needed = value * float(sums[-1]) * (1.0 - _ROUNDING)
        value = int((sums < needed).sum()) + 1 if needed else 0
    return tuple(order[: int(value)].tolist())
