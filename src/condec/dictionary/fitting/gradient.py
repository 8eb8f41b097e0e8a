"""Learners by gradient descent: their contract with the engine in `descent`."""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import Learner
from condec.dictionary.records import Learned, OnEpoch, TrainConfig

Parameters = Mapping[str, Tensor]

ATOMS: Final = "atoms"
"""Name of the decoder among the parameters."""
OFFSET: Final = "offset"
"""Name of the addend in decoding; with neither half of a learner is it frozen."""
DEFAULT_LR: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Step:
    """Position of a fit: step `index` of `n_steps`, from 0.

    `dead` marks the modes [mode] that no row of the last pass used; only for learners that ask
    for it, and on a CPU only while there are any. `warmup` is `TrainConfig.threshold_warmup`.
    """

    index: int
    n_steps: int
    dead: Tensor | None = None
    warmup: float = 0.0


@dataclass(frozen=True, eq=False)
class Cost:
    """Loss of a batch (one number), and its loadings before anything is added for dead modes."""

    loss: Tensor
    loadings: Tensor


class GradientLearner(Learner):
    """A learner that gives its parameters and its loss; the engine does the rest.

    It can be fitted to rows that do not fit in memory, be interrupted and resumed, and learn
    together with others of the same shapes: `cost` is pure but for random numbers, and does not
    look at values, since several fits run as one under `torch.func.vmap`.
    """

    __slots__ = ()
    feeds_dead: ClassVar[bool] = False
    """Whether the loss reads `Step.dead`."""
    warms_up: ClassVar[bool] = False
    """Whether the loss changes during `TrainConfig.threshold_warmup`: patience waits."""
    by_mode: ClassVar[tuple[str, ...]] = (ATOMS,)
    """Parameters whose first axis is modes, all of which `revive` sets."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Parameters that the loss reads and no step changes."""

    @property
    def draws(self) -> bool:
        """Tell whether the loss draws random numbers: such a fit would depend on its company."""
        return bool(getattr(self, "dropout", 0.0) > 0.0)

    @property
    def revives(self) -> bool:
        """Tell whether `revive` renews dead modes, evenly over the first half of a fit."""
        return bool(getattr(self, "resample", False))

    def rates(self, n_units: int) -> Mapping[str, float]:
        """Return learning rates of parameters relative to the fit's, where they are not 1."""
        del n_units
        return {}

    @abstractmethod
    def settled(self, config: TrainConfig, n_rows: int, n_units: int) -> TrainConfig:
        """Return the config with its epochs and learning rate worked out."""

    @abstractmethod
    def start(self, sample: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """Return initial parameters, on the device of the sample; random numbers are seeded."""

    @abstractmethod
    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return the loss of a batch."""

    def project(self, parameters: Parameters) -> None:
        """Change parameters in place after a step, for any axes before those of `start`."""

    def reconstruct(self, parameters: Parameters, rows: Tensor) -> Tensor:
        """Return prepared rows as the dictionary describes them."""
        return self.encode(parameters, rows) @ parameters[ATOMS]

    def revive(self, parameters: Parameters, modes: Tensor, rows: Tensor, left: Tensor) -> None:
        """Set dead modes in place, by badly described rows [dead mode, unit] and what is left."""
        raise NotImplementedError

    def finish(
        self, parameters: Parameters, sample: Tensor, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the tensors that are kept."""
        del sample, config
        return dict(parameters)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Descend on batches that stay on the device."""
        from condec.dictionary.fitting.descent import learn_together
        from condec.dictionary.fitting.rows import TrainingRows

        rows = TrainingRows(matrix.to(device_of(config, matrix)))
        return learn_together(self, [rows], [config], on_epoch)[0]


def device_of(config: TrainConfig, matrix: Tensor) -> torch.device:
    """Return the device to fit on."""
    return torch.device(config.device) if config.device else matrix.device


def steps_of(config: TrainConfig, n_rows: int) -> int:
    """Return the number of steps of a fit to `n_rows` rows, whole passes."""
    batches = math.ceil(n_rows / config.batch_size)
    epochs = config.epochs or max(1, round(config.steps / batches))
    return epochs * batches


def filled(
    config: TrainConfig, n_rows: int, *, travel: float, limit: float = DEFAULT_LR
) -> TrainConfig:
    """Return the config with its epochs and learning rate worked out.

    The default rate makes the sum of all rates `travel`, but is at most `limit`.
    """
    n_steps = steps_of(config, n_rows)
    mean = 0.5 if config.schedule == "cosine" else 1.0
    lr = config.lr or min(limit, travel / (mean * n_steps))
    epochs = n_steps // math.ceil(n_rows / config.batch_size)
    return dataclasses.replace(config, epochs=epochs, lr=lr)
