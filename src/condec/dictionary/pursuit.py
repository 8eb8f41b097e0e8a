"""A dictionary for matching pursuit: loadings are found greedily, one mode after another."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final, final

import torch
from torch import Tensor

from condec.dictionary.base import Learner
from condec.dictionary.descent import (
    ATOMS,
    Cost,
    Parameters,
    Problem,
    Revival,
    Step,
    descend,
    device_of,
    filled,
    seeded,
)
from condec.dictionary.records import Learned, OnEpoch, TrainConfig
from condec.dictionary.sparse import atoms_of_length_one, decode, unit_rows, whole
from condec.shapes import Loadings, UnitMatrix

_TRAVEL: Final = 2.0
"""Sum of the learning rates of a default fit to 64 units."""
_LR_LIMIT: Final = 2e-3


@final
@dataclass(frozen=True, slots=True)
class MatchingPursuit(Learner):
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

    n_modes: int
    _: KW_ONLY
    k: int = 8
    nonnegative: bool = True
    resample: bool = True

    def __post_init__(self) -> None:
        whole(self, "n_modes", "k")

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Gradient descent of atoms and offset; loadings are found anew in every step."""
        device = device_of(config, matrix)
        matrix = matrix.to(device)
        step = math.sqrt(64 / matrix.shape[1])
        limit = min(_LR_LIMIT, step * _LR_LIMIT)
        config = filled(config, len(matrix), travel=step * _TRAVEL, limit=limit)
        with seeded(config, device):
            start = torch.randn(self.n_modes, matrix.shape[1], dtype=torch.float32)
            parameters = {
                ATOMS: unit_rows(start).to(device),
                "offset": matrix.median(0).values,
            }
            problem = Problem(
                parameters,
                self._cost,
                atoms_of_length_one,
                watch_dead=self.resample,
                reconstruct=self._reconstruct if self.resample else None,
                revive=_revive if self.resample else None,
                by_mode=(ATOMS,),
            )
            history = descend(problem, matrix, config, on_epoch)
        return Learned(parameters, config, history)

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Loadings by matching pursuit."""
        return pursue(
            matrix - tensors["offset"], tensors[ATOMS], self.k, nonnegative=self.nonnegative
        )

    def _cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        del step
        with torch.no_grad():
            loadings = self.encode(parameters, rows)
        return Cost((rows - decode(parameters, loadings)).square().mean(), loadings)

    def _reconstruct(self, parameters: Parameters, rows: Tensor) -> Tensor:
        return decode(parameters, self.encode(parameters, rows))


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
