"""Units: which entries of an activation are counted as one."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, get_args

from torch import Tensor

from condec.basis.checks import at_least, one_of
from condec.basis.errors import OptionError, SiteError

Layout = Literal["channels", "features", "heads", "tokens", "positions"]
LAYOUTS: Final[tuple[str, ...]] = get_args(Layout)

Span = tuple[int | None, int | None]
"""Tokens from the first number to before the second, as in a slice of Python."""

_LOWEST: Final = {"features": 2, "channels": 2, "heads": 3, "tokens": 3, "positions": 3}
_WITH_TOKENS: Final = ("features", "heads", "tokens")
_SPAN: Final = re.compile(r"(-?\d{1,9})?:(-?\d{1,9})?")


@dataclass(frozen=True, slots=True)
class Units:
    """The axes of an activation that are units; all others but ``sample`` are positions.

    Parameters
    ----------
    layout : {"channels", "features", "heads", "tokens", "positions"}
        ``channels``: (sample, channel, *space), one unit a channel.
        ``features``: (sample, ..., feature), one unit an entry of the last axis.
        ``heads``: (sample, token, head * dim), one unit a head.
        ``tokens``: (sample, token, feature), one unit a token.
        ``positions``: (sample, channel, *space), one unit a place, row by row.
    n_heads : int, optional
        For ``heads`` only.
    tokens : pair of int or None, optional
        Only these tokens count, from the first number to before the second, as in a slice
        of Python; for activations (sample, token, feature). By default all count.

    Raises
    ------
    OptionError
        Unknown layout; a number of heads missing, superfluous or below 1; tokens for a layout
        that has none.

    Examples
    --------
    >>> str(Units("heads", 12, tokens=(1, None)))           # all but the first token
    'heads(12)[1:]'
    """

    folds: ClassVar[int] = 0
    """Axes of folds, after that of samples (`condec.network.folds`)."""

    layout: Layout
    n_heads: int | None = None
    tokens: Span | None = None

    def __post_init__(self) -> None:
        one_of("Units", "layout", self.layout, LAYOUTS)
        if (self.layout == "heads") != (self.n_heads is not None):
            raise OptionError(
                "Units: n_heads belongs to layout 'heads' and to no other; got "
                f"layout={self.layout!r}, n_heads={self.n_heads}"
            )
        at_least("Units", 1, n_heads=1 if self.n_heads is None else self.n_heads)
        if self.tokens is not None and self.layout not in _WITH_TOKENS:
            raise OptionError(
                f"Units: tokens belong to layouts {', '.join(_WITH_TOKENS)}; got "
                f"layout={self.layout!r}, tokens={self.tokens}"
            )

    @staticmethod
    def default(ndim: int) -> "Units":
        """Read the layout off a rank: 4 axes and above are channels, 2 and 3 features."""
        return Units("channels") if ndim >= 4 else Units("features")

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Units":
        """Make units of their fields, as `dataclasses.asdict` and JSON leave them."""
        tokens = record.get("tokens")
        return Units(**{**record, "tokens": None if tokens is None else tuple(tokens)})

    def expand(self, activation: Tensor) -> Tensor:
        """Return a view with every unit one index of the unit axes; tokens not counted are out."""
        self._check(activation.shape)
        if self.tokens is not None:
            activation = activation[..., slice(*self.tokens), :]
        if self.n_heads is None:
            return activation
        return activation.reshape(*activation.shape[:-1], self.n_heads, -1)

    def axes(self, ndim: int) -> tuple[int, ...]:
        """Return the unit axes of an expanded activation of `ndim` axes."""
        if self.layout == "positions":
            return tuple(range(2 + self.folds, ndim))
        return ({"features": ndim - 1, "heads": ndim - 2}.get(self.layout, 1 + self.folds),)

    def count(self, shape: Sequence[int]) -> int:
        """Count the units in an activation of `shape` (with its sample axis)."""
        sizes = self._counted(shape)
        return self.n_heads or math.prod(sizes[axis] for axis in self.axes(len(sizes)))

    def positions(self, shape: Sequence[int]) -> int:
        """Count the entries of one sample's activation that belong to one unit."""
        return math.prod(self._counted(shape)[1:]) // max(self.count(shape), 1)

    def broadcast(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Lay one value a unit over an activation of `shape` (with its sample axis), to broadcast.

        The tensor has as many axes as the activation; those along which nothing changes have size
        1. Zero (False) at tokens that do not count.
        """
        n_units = self.count(shape)
        if values.shape != (n_units,):
            raise OptionError(
                f"{self.layout}: expected one value for each of {n_units} units; "
                f"got shape {tuple(values.shape)}"
            )
        sizes = self._counted(shape)
        if self.n_heads is not None:
            values = values.repeat_interleave(sizes[-1] // self.n_heads)
            laid = values.view(*(1 for _ in sizes[:-1]), -1)
        else:
            axes = self.axes(len(sizes))
            laid = values.view(*(size if i in axes else 1 for i, size in enumerate(sizes)))
        if self.tokens is None:
            return laid
        spread = values.new_zeros(*laid.shape[:-2], int(shape[-2]), laid.shape[-1])
        spread[..., slice(*self.tokens), :] = laid
        return spread

    def _counted(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape without the tokens that do not count."""
        self._check(shape)
        sizes = tuple(int(size) for size in shape)
        if self.tokens is None:
            return sizes
        n_tokens = len(range(*slice(*self.tokens).indices(sizes[-2])))
        return (*sizes[:-2], n_tokens, sizes[-1])

    def _check(self, shape: Sequence[int]) -> None:
        shape = shape[self.folds :]
        if len(shape) < _LOWEST[self.layout]:
            raise SiteError(
                f"layout {self.layout!r} needs an activation of at least {_LOWEST[self.layout]} "
                f"axes; got shape {tuple(shape)}. Choose another layout after '@'."
            )
        if self.n_heads is not None and int(shape[-1]) % self.n_heads:
            raise SiteError(
                f"layout 'heads': the last axis ({shape[-1]}) is not a multiple of "
                f"{self.n_heads} heads; got shape {tuple(shape)}"
            )
        if self.tokens is None:
            return
        if len(shape) != 3:
            raise SiteError(
                f"layout '{self}' counts some tokens only, which needs an activation of shape "
                f"[sample, token, feature]; got shape {tuple(shape)}"
            )
        if not range(*slice(*self.tokens).indices(int(shape[1]))):
            raise SiteError(
                f"layout '{self}': there is no such token among {shape[1]}; got shape "
                f"{tuple(shape)}"
            )

    def __str__(self) -> str:
        heads = "" if self.n_heads is None else f"({self.n_heads})"
        ends = ("" if number is None else number for number in self.tokens or ())
        return f"{self.layout}{heads}" + ("" if self.tokens is None else "[{}:{}]".format(*ends))


def read_span(text: str) -> Span | None:
    """Read a span from the text inside brackets; None where the text names tokens instead."""
    if not (parsed := _SPAN.fullmatch(text)):
        return None
    first, last = (None if number is None else int(number) for number in parsed.groups())
    return first, last
