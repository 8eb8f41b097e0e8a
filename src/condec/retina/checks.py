"""Checks that several parts of this room make, each with one message."""

import math

from torch import Tensor

from condec.basis.errors import DataError, OptionError


def above(owner: str, **values: float | int) -> None:
    """Raise OptionError where a number is not above 0 and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise OptionError(f"{owner}: {name} must be above 0 and finite; got {value}")


def is_clips(owner: str, name: str, shape: tuple[int, ...]) -> None:
    """Raise DataError where samples are no clips [history, y, x]."""
    if len(shape) != 3:
        raise DataError(
            f"{name}: {owner} needs clips of shape [history, y, x]; its samples have shape {shape}"
        )


def finite_rows(what: str, values: Tensor) -> None:
    """Raise DataError where a matrix holds NaN or infinity; the first rows are named."""
    wrong = (~values.isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{what}: {len(wrong)} of {len(values)} rows hold NaN or infinity; the first are "
            f"{wrong[:5]}. Leave those out"
        )
