"""A dictionary for matching pursuit: loadings are found greedily, one mode after another."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.fitting.gradient import ATOMS, OFFSET, Cost, Parameters, Revival, Step
from condec.dictionary.learners.sparse import UnitAtoms, decode, unit_rows
from condec.dictionary.records import check_fields


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
        Steps of the pursuit: the most loadings of a row that are not 0.
    nonnegative : bool
        Take positive products only: loadings are 0 or above. Otherwise the largest in size.
    resample : bool
        Whether dead modes are set to rows.

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
        check_fields(self, n_modes="count", k="count")

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Pursue rows, less the offset."""
        return pursue(
            matrix - tensors[OFFSET], tensors[ATOMS], self.k, nonnegative=self.nonnegative
        )

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return squared error, the loadings held constant."""
        del step
        with torch.no_grad():
            loadings = self.encode(parameters, rows)
        return Cost((rows - decode(parameters, loadings)).square().mean(), loadings)

    def revive(self, parameters: Parameters, revival: Revival) -> None:
        """Give dead modes the direction of what is left of a row."""
        parameters[ATOMS][revival.modes] = unit_rows(revival.residuals)


def pursue(rows: Tensor, atoms: Tensor, k: int, *, nonnegative: bool) -> Tensor:
    """Encode rows by k steps of matching pursuit, for atoms of length 1.

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
