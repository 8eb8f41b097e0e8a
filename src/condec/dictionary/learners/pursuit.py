"""A dictionary for matching pursuit: loadings are found greedily, one mode after another."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import whole
from condec.dictionary.fitting.problem import (
    ATOMS,
    OFFSET,
    Cost,
    Parameters,
    Problem,
    Revival,
    Step,
)
from condec.dictionary.learners.sparse import UnitAtoms, atoms_of_length_one, decode, unit_rows
from condec.dictionary.records import TrainConfig


@final
@dataclass(frozen=True, slots=True)
class MatchingPursuit(UnitAtoms):
    r"""Dictionary of unit atoms, encoded by matching pursuit (Mallat & Zhang 1993).

    From the residual :math:`r = x - o`, k times: take the mode whose atom has the largest
    product with r, add the product to its loading, and take it out of r. There is no encoder
    to be trained; the atoms and the offset o descend on
    :math:`\langle (x - zD - o)^2 \rangle` with the loadings held constant, as in Costa et al.
    2025 but for the gradient through the loadings. Dead modes are set to what is left of badly
    described rows, four times in the first half of the steps.

    Parameters
    ----------
    n_modes : int
    k : int
        Steps of the pursuit: at most so many loadings of a row are not 0.
    nonnegative : bool
        Take positive products only: loadings are 0 or above. Otherwise the largest in size.
    resample : bool
        Whether dead modes are set anew.

    Raises
    ------
    OptionError
        A number outside its range.
    """

    travel: ClassVar[float] = 2.0
    lr_limit: ClassVar[float] = 2e-3

    n_modes: int
    _: KW_ONLY
    k: int = 8
    nonnegative: bool = True
    resample: bool = True

    def __post_init__(self) -> None:
        whole(self, "n_modes", "k")

    def problem(self, parameters: Parameters, config: TrainConfig) -> Problem:
        """With dead modes set anew, if asked for."""
        del config
        return Problem(
            parameters,
            self.cost,
            atoms_of_length_one,
            watch_dead=self.resample,
            reconstruct=self.reconstruct if self.resample else None,
            revive=_revive if self.resample else None,
            by_mode=(ATOMS,),
        )

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Loadings by matching pursuit."""
        return pursue(
            matrix - tensors[OFFSET], tensors[ATOMS], self.k, nonnegative=self.nonnegative
        )

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Squared error, the loadings held constant."""
        del step
        with torch.no_grad():
            loadings = self.encode(parameters, rows)
        return Cost((rows - decode(parameters, loadings)).square().mean(), loadings)


def pursue(rows: Tensor, atoms: Tensor, k: int, *, nonnegative: bool) -> Tensor:
    """Loadings of rows for atoms of length 1, by k steps of matching pursuit.

    >>> pursue(torch.tensor([[3.0, 1.0]]), torch.eye(2), 1, nonnegative=True)
    tensor([[3., 0.]])
    """
    products = rows @ atoms.T
    loadings = torch.zeros_like(products)
    for _ in range(k):
        best = (products if nonnegative else products.abs()).argmax(1, keepdim=True)
        value = products.gather(1, best)
        value = value.clamp(min=0.0) if nonnegative else value
        loadings.scatter_add_(1, best, value)
        products = products - value * (atoms[best.flatten()] @ atoms.T)
    return loadings


def _revive(parameters: Parameters, revival: Revival) -> None:
    """Dead modes take the direction of what is left of a row."""
    parameters[ATOMS][revival.modes] = unit_rows(revival.residuals)
