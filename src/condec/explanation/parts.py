"""Parts of a site's contributions to one output: of single modes, of all others, and left over."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan

import torch
from torch import Tensor

from condec.attribution.contributions import SiteContributions
from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.data import UNLABELLED
from condec.explanation.shares import Shares
from condec.modes import Modes, Split
from condec.network import FoldedUnits, Site, Units


@short_repr
@dataclass(frozen=True, eq=False)
class Part:
    """A part of a site's contributions: of a mode, of all other modes, or left over by them.

    Attributes
    ----------
    name : str
        ``"mode 12"``, ``"other modes"`` or ``"left over"``; with the name of the dictionary where
        a site has several.
    modes : Modes, or None
    id : int
        Number of the mode in its dictionary; -1 where it is not one mode.
    loading : float
        NaN where it is not one mode.
    adds, takes : float
        Its positive and its negative contributions; unit: that of the target.
    weights : Tensor of shape [*entry]
        Its share of every entry of the activation, from 0 to 1.
    places : Tensor of shape [*place]
        The place map: its contribution at every position, summed over channels or features. Its
        sum is ``net``.
    """

    name: str
    modes: Modes | None
    id: int
    loading: float
    adds: float
    takes: float
    weights: Tensor = field(repr=False)
    places: Tensor

    @property
    def net(self) -> float:
        """What it adds less what it takes."""
        return self.adds + self.takes

    @property
    def row(self) -> int | None:
        """Row of the mode in `Modes.atoms`; None where it is not one mode, or no sample uses it."""
        if self.modes is None:
            return None
        rows = (self.modes.ids == self.id).nonzero().flatten()
        return int(rows[0]) if len(rows) else None

    def best_label(self, split: Split = "all") -> tuple[int, float]:
        """Return the label that the mode goes with most on a split of its store, and how much.

        -1 and NaN where it is not one mode, no sample uses it, it goes with no label, or the store
        has none.
        """
        row = self.row
        if self.modes is None or row is None or not bool((self.modes.store.labels >= 0).any()):
            return UNLABELLED, nan
        best = self.modes.correlation(split=split)[row].nan_to_num(-1.0).max(0)
        return (int(best.indices), float(best.values)) if best.values > 0 else (UNLABELLED, nan)


@short_repr
@dataclass(frozen=True, eq=False)
class SiteExplanation:
    """The contributions of one site to one output, divided among modes.

    Attributes
    ----------
    site, units, cut
        As in `SiteContributions`.
    contribution, activation : Tensor of shape [*entry]
        Those of the input, in full shape.
    shares : tuple of Shares
        One for each dictionary.
    parts : tuple of Part
        The strongest modes (by the larger of what they add and take), all others as one, and what
        is left over; together the whole.
    misses : float
        What the quadrature misses: change of the target less sum of contributions. NaN at a site
        that does not cut the network, and for methods without a baseline.
    """

    site: Site
    units: Units
    cut: bool
    contribution: Tensor
    activation: Tensor
    shares: tuple[Shares, ...]
    parts: tuple[Part, ...]
    misses: float

    @property
    def modes(self) -> tuple[Part, ...]:
        """The parts that are one mode each."""
        return tuple(part for part in self.parts if part.id >= 0)

    def part(self, name: str) -> Part:
        """Return a part by its name, or that of a mode by its number; OptionError without it."""
        found = [part for part in self.parts if name == part.name]
        found = found or [part for part in self.modes if name == str(part.id)]
        if len(found) > 1:
            names = ", ".join(part.name for part in found)
            raise OptionError(f"{self.site.key}: {name!r} is the number of several parts: {names}")
        if found:
            return found[0]
        there = ", ".join(part.name for part in self.parts)
        raise OptionError(f"{self.site.key}: there is no part {name!r}; there are {there}")

    @cached_property
    def sizes(self) -> Tensor:
        """The larger of what every mode adds and takes: of all dictionaries, one after another."""
        return torch.cat([torch.maximum(s.adds, -s.takes) for s in self.shares])

    def strongest(self, n_modes: int) -> "SiteExplanation":
        """Show at most `n_modes` modes by themselves, the strongest ones."""
        used = int((self.sizes > 0).sum())
        return self.showing(strongest(self.sizes, n_modes), others=used > n_modes)

    def showing(self, shown: Sequence[int], *, others: bool) -> "SiteExplanation":
        """Show these modes by themselves, numbered as in `sizes`; all `others` as one, or none."""
        owner = [(share, mode) for share in self.shares for mode in range(len(share.adds))]
        rest = 1 - torch.stack([share.covered for share in self.shares]).sum(0)
        parts, left = list[Part](), 1 - rest
        named = Counter(share.modes.name for share in self.shares)
        for share, mode in (owner[number] for number in shown):
            name, of = f"mode {mode}", share.modes.name
            if len(self.shares) > 1:  # Those of one name have a sign each.
                name += f" ({of if named[of] == 1 else f'{of}, {share.modes.sign}'})"
            loading = float(share.loadings[:, mode].sum())
            weights = share.weights([mode])[0]
            parts.append(self._part(name, share.modes, mode, loading, weights))
            left = left - weights
        if others:
            parts.append(self._part("other modes", None, -1, nan, left.clamp(min=0)))
        parts.append(self._part("left over", None, -1, nan, rest.clamp(min=0)))
        return replace(self, parts=tuple(parts))

    def _part(
        self, name: str, modes: Modes | None, mode: int, loading: float, weights: Tensor
    ) -> Part:
        own = weights * self.contribution
        adds, takes = float(own.clamp(min=0).sum()), float(own.clamp(max=0).sum())
        return Part(name, modes, mode, loading, adds, takes, weights, over_places(own, self.units))


def strongest(sizes: Tensor, n_modes: int) -> list[int]:
    """Number at most `n_modes` modes that have a size, the strongest first."""
    order = sizes.argsort(descending=True, stable=True)[:n_modes].tolist()
    return [mode for mode in order if sizes[mode] > 0]


def divided(
    part: SiteContributions, given: list[tuple[Modes, Tensor | None]], change: float, n_modes: int
) -> SiteExplanation:
    """Divide the contributions of one site among the modes of its dictionaries.

    Each comes with a mask of the positions that are no padding, as `Shares.of` takes it.
    """
    shares = tuple(Shares.of(one, part, real) for one, real in given)
    contribution = part.contribution[0].double().cpu()
    misses = change - float(contribution.sum()) if part.cut else nan
    whole = SiteExplanation(
        part.site, part.units, part.cut, contribution, part.activation[0].cpu(), shares, (), misses
    )
    return whole.strongest(n_modes)


def over_places(values: Tensor, units: Units) -> Tensor:
    """Sum values [*entry] of one input over what is at one position: channels, or features."""
    first = 1 if isinstance(units, FoldedUnits) else 0
    return values.sum(first if units.layout in ("channels", "positions") else -1)
