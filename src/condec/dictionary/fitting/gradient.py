"""Learners that train by gradient descent, and how several of them learn as one."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import Learner
from condec.dictionary.fitting.checkpoint import Keeper
from condec.dictionary.fitting.descent import Fit, descend, device_of, seed, seeded
from condec.dictionary.fitting.problem import Parameters, Problem
from condec.dictionary.fitting.rows import RowsInMemory, TrainingRows
from condec.dictionary.records import Learned, OnEpoch, TrainConfig


class GradientLearner(Learner):
    """What a learner by gradient descent says of itself; the engine does the rest.

    It can be fitted to rows that do not fit in memory, be interrupted and resumed, and learn
    together with others of the same shapes.
    """

    __slots__ = ()

    @property
    def draws(self) -> bool:
        """Whether the loss draws random numbers: such a fit would depend on its company."""
        return False

    @abstractmethod
    def settled(self, config: TrainConfig, n_rows: int, n_units: int) -> TrainConfig:
        """Config with its epochs and learning rate worked out."""

    @abstractmethod
    def start(self, sample: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """Initial parameters, on the device of the sample; random numbers are seeded."""

    @abstractmethod
    def problem(self, parameters: Parameters, config: TrainConfig) -> Problem:
        """What is minimised."""

    def finish(
        self, parameters: Parameters, sample: Tensor, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Tensors that are kept."""
        del sample, config
        return dict(parameters)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Gradient descent on batches that stay on the device."""
        rows = RowsInMemory(matrix.to(device_of(config, matrix)))
        return learn_together(self, [rows], [config], on_epoch)[0]


def learn_together(
    learner: GradientLearner,
    rows: Sequence[TrainingRows],
    configs: Sequence[TrainConfig],
    on_epoch: OnEpoch,
    keeper: Keeper | None = None,
) -> list[Learned]:
    """One learner on several rows or with several seeds, as one fit; see `descend`.

    Parameters
    ----------
    learner : GradientLearner
    rows : sequence of TrainingRows
        Of the same number of rows and units, on the same device.
    configs : sequence of TrainConfig
        One for each of them; they differ in their seeds only.
    on_epoch : callable
    keeper : Keeper, optional

    Returns
    -------
    list of Learned
        The same as each would be alone, up to rounding and what dropout draws.
    """
    n_rows, n_units = rows[0].n_rows, rows[0].n_units
    settled = [learner.settled(config, n_rows, n_units) for config in configs]
    with seeded(settled[0], rows[0].device):
        fits: list[Fit] = []
        # The first one last: its random numbers are those that go on.
        for each, config in reversed(list(zip(rows, settled, strict=True))):
            seed(config.seed, each.device)
            parameters = learner.start(each.sample, config)
            fits.insert(0, Fit(learner.problem(parameters, config), each, config))
        histories = descend(fits, on_epoch, keeper)
        with torch.no_grad():
            return [
                Learned(_finished(learner, fit), fit.config, history)
                for fit, history in zip(fits, histories, strict=True)
            ]


def _finished(learner: GradientLearner, fit: Fit) -> dict[str, Tensor]:
    kept = {k: v for k, v in fit.problem.parameters.items() if k not in fit.problem.fixed}
    return learner.finish(kept, fit.rows.sample, fit.config)
