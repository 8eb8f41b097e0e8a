"""Orders in which edits take the units of a site, for each label, from training rows alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from condec.basis.checks import at_least, one_of
from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import correlation_matrix
from condec.basis.records import short_repr
from condec.basis.shapes import Mask
from condec.modes import Modes
from condec.network import Site
from condec.store import Quantity, Sign, Store

Scores = Float[torch.Tensor, "unit"]
Order = Int[torch.Tensor, " unit"]
UnitScore = Literal["mean", "difference", "correlation"]


@short_repr
@dataclass(frozen=True, eq=False)
class Ranked:
    """Units in the order in which edits take them; several `orders` are random draws (`drawn`).

    `mode` is the original id of the mode whose atom gives the order, `correlation` its correlation
    with the label on training rows; None and NaN without a mode.
    """

    label: int
    name: str
    orders: tuple[Order, ...]
    mode: int | None = None
    correlation: float = math.nan
    drawn: bool = False


class Ranking(ABC):
    """Contract: an order of a site's units for every label. `name` tells rankings apart."""

    name: str

    @abstractmethod
    def ranked(self, label: int) -> Ranked:
        """Return the order for one label; without a training row it is a DataError."""

    def source(self) -> tuple[Store, Mask] | None:
        """Return the store it scores by, and its training rows; None where it needs no data."""
        return None


class ByUnitScores(Ranking):
    """Base of the rankings that give one order a label, by one score a unit."""

    def ranked(self, label: int) -> Ranked:
        """Return the order for one label."""
        return Ranked(label, self.name, (descending(self.scores((label,))),))

    @abstractmethod
    def scores(self, labels: Sequence[int]) -> Scores:
        """Score every unit for one label, or for several taken together (a superclass)."""


class OfModes(Ranking):
    """Base of the rankings by modes."""

    modes: Modes

    def source(self) -> tuple[Store, Mask]:
        """Return the modes' store and training rows."""
        return self.modes.store, ~self.modes.held_out


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ByMode(OfModes):
    """The atom of the label's best mode, largest signed entry first (`atom_scores`).

    Melander et al. 2026, figure 6. Of `rank` 0 is the mode most correlated on training rows; a
    `mode`, by its number in the dictionary, gives the order for every label instead.
    """

    modes: Modes
    rank: int = 0
    name: str = "best_mode"
    mode: int | None = None

    def ranked(self, label: int) -> Ranked:
        """Return the order for one label."""
        match = self.modes.best(label, rank=self.rank, split="train")
        row, number, correlation = match.mode, match.id, match.correlation
        if self.mode is not None:
            row = self.modes.row(self.mode)
            number = self.mode
            correlation = float(self.modes.correlation(split="train")[row, label])
        scores = atom_scores(self.modes, self.modes.atoms[row])
        return Ranked(label, self.name, (descending(scores),), number, correlation)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ByModeSum(OfModes, ByUnitScores):
    r"""All modes together, each atom by how it goes with the label.

    .. math:: s_u = \sum_m w_m\, \bar z_m\, d_{mu}

    with atoms d, mean loadings on the label's training rows :math:`\bar z` and, for
    ``correlation``, :math:`w_m` the mode's correlation with the label; for ``above``, 1 where
    that correlation is above `least` and 0 elsewhere (Melander et al. 2026: 0.2). For
    ``difference``, :math:`w_m \bar z_m` is the mean loading on the label's rows minus that on all
    others.
    """

    modes: Modes
    weight: Literal["difference", "correlation", "above"] = "difference"
    least: float = 0.0
    name: str = "modes"

    def scores(self, labels: Sequence[int]) -> Scores:
        """Score every unit for labels taken together."""
        modes = self.modes
        mine, others = _rows(modes.store, ~modes.held_out, labels)
        weights = modes.loadings[mine].mean(0)
        if self.weight == "difference":
            weights = weights - _mean(modes.loadings[others])
        else:
            correlation = member_correlation(modes, labels)
            factor = correlation if self.weight == "correlation" else torch.ones(())
            weights = weights * torch.where(correlation > self.least, factor, 0.0)
        return atom_scores(modes, weights @ modes.atoms)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ByUnit(ByUnitScores):
    """Every unit by its own entries in the training `rows` [sample] of a store.

    The `score` is the label's mean, that minus the mean of all other labels (``difference``), or
    the ``correlation`` with the label: the best channel leads. Of negative parts the lowest score
    comes first; the `sign` is not ``concat``.
    """

    store: Store
    site: Site | str
    rows: Mask
    score: UnitScore = "mean"
    quantity: Quantity = "contribution"
    sign: Sign = "sum"
    name: str = "mean_contribution"

    def __post_init__(self) -> None:
        one_of("ByUnit", "score", self.score, UnitScore)
        if self.sign == "concat":
            raise OptionError(
                "ByUnit: sign concat has two entries for every unit; take positive, negative or sum"
            )

    def source(self) -> tuple[Store, Mask]:
        """Return the store and the training rows."""
        return self.store, self.rows

    @cached_property
    def _matrix(self) -> Tensor:
        # Read once for all labels.
        return self.store.matrix(self.site, quantity=self.quantity, sign=self.sign)

    def scores(self, labels: Sequence[int]) -> Scores:
        """Score every unit for labels taken together."""
        mine, others = _rows(self.store, self.rows, labels)
        if self.score == "correlation":
            return _turn(self.sign) * _correlation(self._matrix, mine, mine | others)
        scores = self._matrix[mine].mean(0)
        if self.score == "difference":
            scores = scores - _mean(self._matrix[others])
        return _turn(self.sign) * scores


def by_units(
    modes: Modes, score: UnitScore, name: str, quantity: Quantity = "contribution"
) -> ByUnit:
    """Return a ranking by what modes were fitted to, without the dictionary."""
    sign = "sum" if quantity == "activation" or modes.sign == "concat" else modes.sign
    return ByUnit(
        store=modes.store, site=modes.site, rows=~modes.held_out, score=score, quantity=quantity,
        sign=sign, name=name,
    )  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ByScores(Ranking):
    """Scores given from outside, [label, unit]: the weights of a last linear layer, for one."""

    scores: Float[torch.Tensor, "label unit"]
    name: str = "scores"

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or not bool(self.scores.isfinite().all()):
            raise OptionError(
                f"ByScores({self.name}): scores must be finite and of shape [label, unit]; got "
                f"shape {tuple(self.scores.shape)}"
            )

    def ranked(self, label: int) -> Ranked:
        """Return the order for one label."""
        if not 0 <= label < len(self.scores):
            raise DataError(
                f"ByScores({self.name}): label {label} has no scores; there are {len(self.scores)}"
            )
        return Ranked(label, self.name, (descending(self.scores[label]),))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RandomUnits(Ranking):
    """Units in random order, the same draws for all labels."""

    n_units: int
    n_draws: int = 5
    seed: int = 0
    name: str = "random"

    def __post_init__(self) -> None:
        at_least("RandomUnits", 1, n_units=self.n_units, n_draws=self.n_draws)

    def ranked(self, label: int) -> Ranked:
        """Return the draws."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = (torch.randperm(self.n_units, generator=generator) for _ in range(self.n_draws))
        return Ranked(label, self.name, tuple(draws), drawn=True)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RandomModes(OfModes):
    """Atoms of modes drawn at random, at most as many as there are, whatever the label."""

    modes: Modes
    n_draws: int = 5
    seed: int = 0
    name: str = "random_modes"

    def ranked(self, label: int) -> Ranked:
        """Return the draws."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.modes), generator=generator)[: self.n_draws]
        atoms = (atom_scores(self.modes, self.modes.atoms[mode]) for mode in chosen)
        return Ranked(label, self.name, tuple(descending(atom) for atom in atoms), drawn=True)


def atom_scores(modes: Modes, atom: Tensor) -> Scores:
    """Return one score a unit from an atom: high where the mode moves the target up.

    Parts side by side are added; of negative parts the lowest entry scores highest.
    """
    n_units = modes.store.info(modes.site).n_units
    return _turn(modes.sign) * atom.view(-1, n_units).sum(0)


def descending(scores: Tensor) -> Order:
    """Return units by score, the highest first; equal ones by number."""
    return scores.argsort(descending=True, stable=True)


def member_correlation(modes: Modes, labels: Sequence[int]) -> Float[torch.Tensor, " mode"]:
    """Return the correlation of every mode's loading with having one of the labels."""
    mine, others = _rows(modes.store, ~modes.held_out, labels)
    return _correlation(modes.loadings, mine, mine | others)


def _correlation(values: Tensor, mine: Mask, rows: Mask) -> Float[torch.Tensor, " column"]:
    return correlation_matrix(values[rows], mine[rows].to(torch.float32)[:, None])[:, 0]


def _turn(sign: Sign) -> float:
    """Return -1 for negative parts: they are 0 or below, and move the target most where lowest."""
    return -1.0 if sign == "negative" else 1.0


def _rows(store: Store, training: Mask, labels: Sequence[int]) -> tuple[Mask, Mask]:
    """Return the training rows that have one of the labels, and those that have another one."""
    is_one = torch.isin(store.labels, torch.tensor(list(labels)))
    mine = is_one & training
    if not bool(mine.any()):
        raise DataError(f"{store.path}: no training row has label {', '.join(map(str, labels))}")
    return mine, ~is_one & training & (store.labels >= 0)


def _mean(rows: Tensor) -> Tensor:
    """Return the mean over rows; 0 without rows, so that an only label stands alone."""
    return rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
