"""Checks of options that many rooms make, each with one message."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from condec.basis.errors import OptionError


def one_of(owner: str, name: str, value: Any, known: Any) -> None:
    """Raise OptionError where a value is none of a sequence, or of those of a Literal."""
    names = known if isinstance(known, Sequence) else get_args(known)
    if value not in names:
        raise OptionError(f"{owner}: {name} must be one of {', '.join(names)}; got {value!r}")


def at_least(owner: str, least: float | int, **values: float | int) -> None:
    """Raise OptionError where a number is below `least`, infinite or NaN."""
    for name, value in values.items():
        if not least <= value < math.inf:
            finite = " and finite" if isinstance(value, float) else ""
            raise OptionError(f"{owner}: {name} must be at least {least}{finite}; got {value}")


def whole_number(owner: str, value: object) -> int:
    """Return a whole number, as JSON may have it; OptionError where it is none, or not exact."""
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if type(number) is not int or abs(number) >= 2**53:
        raise OptionError(f"{owner}: expected a number; got {value!r}")
    return number


def ascending(
    owner: str, values: Sequence[float], what: str, *, low: float | int, high: float | int
) -> None:
    """Raise OptionError where numbers are none, not in ascending order, or out of a range."""
    in_range = all(low <= value <= high and abs(value) < math.inf for value in values)
    if not values or not in_range or list(values) != sorted(set(values)):
        raise OptionError(f"{owner}: {what}; got {tuple(values)}")


def nearest(word: str, known: Iterable[str], n: int = 1, cutoff: float = 0.0) -> list[str]:
    """Return those names that are most like a word, of which the first 100 letters count."""
    return difflib.get_close_matches(word[:100], list(known), n=n, cutoff=cutoff)
