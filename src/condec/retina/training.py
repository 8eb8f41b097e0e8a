"""Options of the training of a model of the retina, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.basis.options import Option
from condec.basis.records import short_repr
from condec.retina.checks import above

_NAME: Final = "RetinaTraining"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetinaTraining(Option):
    """Options of the training of a model of the retina.

    Parameters
    ----------
    history : int
        Frames of a clip.
    epochs : int
        Passes over the training samples, at most.
    batch_size : int
    lr : float
        Learning rate of Adam.
    weight_l2 : float
        Penalty on the sum of the squares of all weights, biases and normalisation left out
        (McIntosh et al. 2016: 0.001).
    activity_l1 : float
        Penalty on the mean rate, which keeps silent cells silent (McIntosh et al. 2016: 0.001).
    patience : int
        Stop after so many epochs in a row without a lower held-out loss.
    held_out : float
        Share of the samples that take no part, in blocks of time. Training samples that share a
        frame with one of them are left out.
    n_blocks : int
        Blocks of held-out samples, evenly over the recording.
    seed : int
        Of the order of the samples and of noise within the model. Initial weights are those
        that the model has.
    device : str, optional
        Where to train; by default where the model is.

    Raises
    ------
    OptionError
        A number outside its range, or no such device.
    """

    history: int = 40
    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3
    weight_l2: float = 0.0
    activity_l1: float = 0.0
    patience: int = 10
    held_out: float = 0.1
    n_blocks: int = 3
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("history", "epochs", "batch_size", "patience", "n_blocks"):
            at_least(_NAME, 1, **{name: getattr(self, name)})
        at_least(_NAME, 0, weight_l2=self.weight_l2, activity_l1=self.activity_l1)
        above(_NAME, lr=self.lr)
        if not 0.0 < self.held_out < 1.0:
            raise OptionError(
                f"{_NAME}: held_out must be a share between 0 and 1; got {self.held_out}"
            )
        if not 0 <= self.seed < 2**31:
            raise OptionError(f"{_NAME}: seed must be from 0 to 2**31 - 1; got {self.seed}")
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise OptionError(f"{_NAME}: device {self.device!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class RetinaEpoch:
    """One pass over the training samples.

    Attributes
    ----------
    index : int
        From 0.
    loss : float
        Mean training loss, penalties included.
    held_out_loss : float
        Poisson loss of the held-out samples, without penalties.
    correlation : float
        Mean over cells of the held-out correlation.
    """

    index: int
    loss: float
    held_out_loss: float
    correlation: float


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class FittedRetina:
    """A trained model, and how well it predicts.

    Attributes
    ----------
    model : torch.nn.Module
        A copy, with the weights of the best epoch; in evaluation mode, on the model's device.
    config : RetinaTraining
    history : tuple of RetinaEpoch
    best_epoch : int
        Index of the epoch with the lowest held-out loss.
    correlation : Tensor of shape [cell]
        Of predicted and recorded rates on the held-out samples.
    cells : tuple of str
    train_rows, held_out_rows : Tensor of shape [sample]
        Samples, numbered as in `Recording.windows`.
    seconds : float
        Time that the training took.
    """

    model: nn.Module
    config: RetinaTraining
    history: tuple[RetinaEpoch, ...]
    best_epoch: int
    correlation: Float[Tensor, " cell"]
    cells: tuple[str, ...]
    train_rows: Int[Tensor, " train"]
    held_out_rows: Int[Tensor, " held_out"]
    seconds: float


def copied(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give each memory of its own, so that tied weights can be written."""
    return {k: t.detach().clone().contiguous() for k, t in tensors.items()}
