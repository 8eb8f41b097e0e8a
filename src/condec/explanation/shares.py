"""Shares: which part of every entry of a contribution belongs to which mode.

With the loadings z of an input (of each of its positions, where those were decomposed), the atoms
D of a dictionary and its offset o, mode m answers for

    r_mu = z_m D_mu / sum_m' z_m' D_m'u

of what unit u contributes: its *responsibility*. Where a dictionary describes one sign of the
contributions only, it answers for the entries of that sign, and for none of the other. Where
products z_m D_mu have both signs, those against the sign of the row that was decomposed answer
for nothing: a mode that takes back what another one overstates has no share in that unit. The
offset belongs to no mode. So all modes together answer for at most the whole, and what none of
them answers for is left over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from condec.attribution import split_and_sum
from condec.attribution.contributions import SiteContributions
from condec.attribution.reduce import by_position, position_numbers, unit_numbers
from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.dictionary import Dictionary
from condec.modes import Modes

_MODES_AT_ONCE: Final = 64


@short_repr
@dataclass(frozen=True, eq=False)
class Shares:
    """What every mode of one dictionary answers for, at one site of one input.

    Attributes
    ----------
    modes : Modes
    loadings : Tensor of shape [place, mode]
        Of all modes of the dictionary, by their number there; one place where whole samples were
        decomposed.
    atoms : Tensor of shape [half, mode, unit]
        Halves are the signs that the dictionary describes, in the order of `masks`.
    offset : Tensor of shape [half, 1, unit]
    rows : Tensor of shape [half, place, unit]
        What was decomposed.
    masks : Tensor of shape [half, *entry], bool
        The entries of the activation that belong to a half.
    where : Tensor of shape [*entry]
        Place and unit of every entry, as an index into [place, unit]; -1 where it has none.
    contribution : Tensor of shape [*entry]
        In the unit of the target.
    """

    modes: Modes
    loadings: Tensor
    atoms: Tensor
    offset: Tensor
    rows: Tensor
    masks: Tensor
    where: Tensor
    contribution: Tensor

    @staticmethod
    def of(modes: Modes, part: SiteContributions, real: Tensor | None = None) -> "Shares":
        """Work out the shares of a batch of one; DataError where the modes do not fit.

        Modes of places have no loading where `real`, [place], says that there is padding.
        """
        dictionary = encoder_of(modes)
        values = getattr(part, modes.quantity)
        numbers = unit_numbers(part.units, values.shape)
        if modes.rows == "positions":
            laid = by_position(values, part.units).double().cpu()[0]
            rows = torch.stack((laid.clamp(min=0), laid.clamp(max=0)))
            before = laid.shape[1] * position_numbers(part.units, values.shape)
            numbers = torch.where(numbers < 0, -1, before + numbers)
        else:
            rows = split_and_sum(values, part.units).double().cpu()[0][:, None]
        given = {"positive": rows[:1], "negative": rows[1:], "sum": rows.sum(0, keepdim=True)}
        rows = given.get(modes.sign, rows)
        width = len(rows) * rows.shape[2]
        if width != dictionary.n_units:
            raise DataError(
                f"explain: {part.site.key}: the modes describe {dictionary.n_units} units, and "
                f"the site has {width}; give modes of this site of this model"
            )
        entries = values[0].cpu()
        signs = {"positive": [entries > 0], "negative": [entries < 0]}
        masks = signs.get(modes.sign, [torch.ones_like(entries, dtype=torch.bool)])
        masks = signs["positive"] + signs["negative"] if modes.sign == "concat" else masks
        n_halves = len(rows)
        loadings = dictionary.encode(rows.float().movedim(1, 0).flatten(1))
        loadings = loadings if real is None else loadings * real[:, None]
        return Shares(
            modes, loadings.double(),
            dictionary.atoms.double().cpu().view(dictionary.n_modes, n_halves, -1).movedim(1, 0),
            dictionary.offset.double().cpu().view(n_halves, 1, -1),
            rows, torch.stack(masks), numbers, part.contribution[0].double().cpu(),
        )  # fmt: skip

    @cached_property
    def adds(self) -> Tensor:
        """What every mode adds to the target, [mode]: its part of positive contributions."""
        return self._summed(self.contribution.clamp(min=0))

    @cached_property
    def takes(self) -> Tensor:
        """What every mode takes from the target, [mode], not positive."""
        return self._summed(self.contribution.clamp(max=0))

    @cached_property
    def total(self) -> Tensor:
        """What all modes and the offset answer for together, [half, place, unit]; not negative."""
        answered = torch.stack([answer.sum(1) for answer in self._answers()]).sum(0)
        return answered + self._with_the_row(self.offset)

    @property
    def given_back(self) -> float:
        """Share of the row's sum of squares that loadings times atoms, and offset, give back.

        Responsibilities divide the whole row, also what the dictionary misses or overstates.
        """
        said = torch.einsum("pm,hmu->hpu", self.loadings, self.atoms) + self.offset
        squares = float(self.rows.square().sum())
        return 1 - float((said - self.rows).square().sum()) / squares if squares else 1.0

    def weights(self, modes: Sequence[int]) -> Tensor:
        """Responsibility of modes, by their numbers, at every entry: [mode, *entry]."""
        return self._laid(self._answer(torch.as_tensor(modes, dtype=torch.int64)).transpose(0, 1))

    @cached_property
    def covered(self) -> Tensor:
        """Responsibility of all modes together at every entry, [*entry]; from 0 to 1."""
        alone = self.total - self._with_the_row(self.offset)
        return self._laid(alone[None])[0]

    def _summed(self, signed: Tensor) -> Tensor:
        sums = torch.zeros(self.total.shape, dtype=torch.float64).flatten(1)
        for half, mask in enumerate(self.masks):
            chosen = mask & (self.where >= 0)
            sums[half].index_add_(0, self.where[chosen], signed[chosen])
        a_share = (sums.view_as(self.total) * _inverse(self.total))[:, None]
        return torch.cat([(answer * a_share).sum((0, 2, 3)) for answer in self._answers()])

    def _answers(self) -> Iterator[Tensor]:
        """Yield what modes say of every unit, some at a time: [half, mode, place, unit]."""
        for modes in torch.split(torch.arange(self.loadings.shape[1]), _MODES_AT_ONCE):
            yield self._answer(modes)

    def _answer(self, modes: Tensor) -> Tensor:
        said = self.loadings.T[modes][None, :, :, None] * self.atoms[:, modes][:, :, None]
        return self._with_the_row(said)

    def _with_the_row(self, said: Tensor) -> Tensor:
        """Keep what has the sign of the row, as a size."""
        sign = self.rows.sign()
        return (said * (sign[:, None] if said.ndim == 4 else sign)).clamp(min=0)

    def _laid(self, answers: Tensor) -> Tensor:
        """Lay answers [several, half, place, unit], as shares of the total, over the entries."""
        share = (answers * _inverse(self.total)).flatten(2)
        index = self.where.clamp(min=0)
        laid = [share[:, half][:, index] * mask for half, mask in enumerate(self.masks)]
        return torch.stack(laid).sum(0) * (self.where >= 0)


def encoder_of(modes: Modes) -> Dictionary:
    """Return the dictionary of modes; DataError where it is not known, or has no mode in use."""
    if modes.encoder is None:
        raise DataError(
            f"explain: {modes.site.key}: these modes come without their dictionary, so no other "
            "input can be encoded; make them by Modes.build(dictionary, store, site), or load "
            "them from a folder where the dictionary lies beside"
        )
    if not len(modes):
        raise DataError(
            f"explain: {modes.site.key}: no sample uses any mode of the dictionary, so nothing "
            "can be explained by them; fit again with another learner or fewer restrictions"
        )
    return modes.encoder


def _inverse(total: Tensor) -> Tensor:
    return torch.where(total > 0, 1 / total, 0)
