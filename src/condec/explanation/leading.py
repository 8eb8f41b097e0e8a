"""Which modes of a site are shown, in which order, and which units of a mode."""

from functools import partial
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from condec.basis.metrics import unit_length
from condec.modes import Modes, Split

LEAST_USERS: Final = 5
"""Held-out inputs that use a mode that is shown: of fewer, anything can be said by chance."""
ALIKE: Final = 0.95
"""Cosine above which two atoms are nearly equal, and shown as one."""


def held_out_users(modes: Modes) -> Int[Tensor, " mode"]:
    """Count the held-out inputs that use each mode; where none were held out, of all inputs."""
    rows = modes.samples(_split(modes))
    return modes.of_loadings(lambda part: (part[rows] > 0).sum(0))


def leading_modes(modes: Modes, number: int | None = None) -> list[int]:
    """Order the modes that are shown.

    Shown are modes that at least `LEAST_USERS` held-out inputs use: the best one of every label
    first, then all others, by the held-out correlation with the label that fits best on training
    rows; without labels, by mean held-out loading. Where no mode has so many held-out users, all
    stand in the order of how many inputs use them. One whose atom has a cosine above `ALIKE` with
    an earlier one is not shown by itself (`copies`). Where no rows were held out, all rows count.

    Parameters
    ----------
    modes : Modes
    number : int, optional
        At most so many.

    Returns
    -------
    list of int
        Rows of ``modes.atoms``.
    """
    enough = held_out_users(modes) >= LEAST_USERS
    if not bool(enough.any()):
        order = descending(modes.of_loadings(lambda part: (part > 0).sum(0)))
    else:
        order = [mode for mode in descending(held_out_value(modes)) if enough[mode]]
        first: dict[int, int] = {}
        for mode, label in zip(order, _labels(modes, order), strict=True):
            if label >= 0:
                first.setdefault(label, mode)
        order = list(dict.fromkeys([*first.values(), *order]))
    return _without_copies(modes, order, number)


def held_out_value(modes: Modes) -> Float[Tensor, " mode"]:
    """Say how much each mode tells of held-out inputs.

    It is their correlation with the label that fits best on training rows, 0 where none fits;
    without labels, or where no held-out input has any of those, the mean loading.
    """
    split = _split(modes)
    rows = modes.samples(split)
    mean = partial(modes.of_loadings, lambda part: part[rows].mean(0))
    if not bool((modes.store.labels[rows] >= 0).any()):
        return mean()
    label = _best_labels(modes)
    every = modes.correlation(split=split).nan_to_num(-1.0)
    found = every.gather(1, label.clamp(min=0)[:, None])[:, 0].where(label >= 0, 0.0)
    return found if bool(found.any()) else mean()


def copies(modes: Modes, mode: int) -> list[int]:
    """List the other modes whose atoms are nearly equal to that of one: cosine above `ALIKE`.

    Loadings of some learners hardly say how much a mode is used (those of `ThresholdSAE` lie in 0.9
    to 1): a strong and a weak use of the same units then take several atoms, and to join them would
    lose the difference. So dictionaries keep them, and pages show them as one.
    """
    atoms = unit_length(modes.atoms, 1)
    alike = atoms @ atoms[mode] > ALIKE
    alike[mode] = False
    return alike.nonzero().flatten().tolist()


def strongest_units(modes: Modes, mode: int) -> Int[Tensor, " unit"]:
    """Order the units of a mode's atom, those that move the target most first, shape [unit]."""
    n_units = modes.store.info(modes.site).n_units
    # The two halves of an atom of concatenated parts are one unit's adding and taking, and
    # what a negative part holds most of has the lowest value.
    atom = modes.atoms[mode].view(-1, n_units).sum(0)
    return torch.tensor(descending(-atom if modes.sign == "negative" else atom))


def descending(values: Tensor) -> list[int]:
    """Return the places of values, the largest first."""
    return values.argsort(descending=True, stable=True).tolist()


def _split(modes: Modes) -> Split:
    return "held_out" if bool(modes.held_out.any()) else "all"


def _labels(modes: Modes, rows: list[int]) -> list[int]:
    """Return the best label of modes by training rows; -1 for none."""
    if not bool((modes.store.labels >= 0).any()):
        return [-1] * len(rows)
    return _best_labels(modes)[rows].tolist()


def _best_labels(modes: Modes) -> Int[Tensor, " mode"]:
    """Return the label that fits each mode best on training rows; -1 where it goes with none."""
    best = modes.correlation(split="train").nan_to_num(-1.0).max(1)
    return best.indices.where(best.values > 0, -1)


def _without_copies(modes: Modes, order: list[int], number: int | None) -> list[int]:
    atoms, shown = unit_length(modes.atoms, 1), list[int]()
    for mode in order:
        if len(shown) == number:
            break
        if not shown or bool((atoms[shown] @ atoms[mode]).max() <= ALIKE):
            shown.append(mode)
    return shown
