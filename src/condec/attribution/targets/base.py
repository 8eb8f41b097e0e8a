"""Targets in general, and how outputs become scores and predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from condec.basis.errors import ModelError
from condec.basis.options import Option
from condec.basis.shapes import PerSample


class Target(Option, ABC):
    """One number a sample, from the output of a model; `uses_labels` where it needs the label."""

    __slots__ = ()
    uses_labels: ClassVar[bool] = False

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Fix at the input itself what is kept along the path; None if nothing is.

        Parameters
        ----------
        output : Tensor of shape [sample, ...]
            The model's output at the inputs.
        labels : Tensor of shape [sample], or None

        Returns
        -------
        Tensor of shape [sample, ...], or None
            None only where the target depends on nothing but the output of the sample itself.
        """
        return None

    @property
    def is_fitted(self) -> bool:
        """Tell whether the target needs nothing more from the outputs to a data set."""
        return True

    def fitted(self, outputs: Tensor) -> "Target":
        """Take what the target needs from the outputs to a data set; itself if nothing."""
        return self

    def settled(self, output_axis: Callable[[], int | None]) -> "Target":
        """Take the axis of the output that holds its labels, if that is left open and matters.

        `output_axis` finds it; None where nothing tells.
        """
        return self

    def numbered(self, names: Callable[[], Sequence[str] | None]) -> "Target":
        """Replace names of labels, or texts of tokens, by their numbers; itself without any.

        `names` gives those of all labels, None where the model has none.
        """
        return self

    @abstractmethod
    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The target of every sample, differentiable in `output`; unit: that of the output."""


TargetLike = Target | Callable[[Tensor], Tensor]
"""Target in every call: a target, or a function of the output."""


def wide(tensor: Tensor) -> torch.dtype:
    """Return the type of sums and products: at least float32, for half precision loses digits."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def scores(output: Tensor, *, probability: bool = False, at_least: int = 1) -> Tensor:
    """Return logits or softmax probabilities of the labels, in at least single precision.

    ModelError where the output is no matrix [sample, label], or has fewer labels than `at_least`.
    """
    if output.ndim != 2:
        raise ModelError(
            "the target needs an output of shape [sample, label]; the model gave "
            f"{tuple(output.shape)}. Sum, Logit with one index an axis, and a function of your own "
            "take other shapes"
        )
    at_least = max(at_least, 2) if probability else at_least
    if output.shape[1] < at_least:
        raise ModelError(
            f"the target needs at least {at_least} labels; the model gave {output.shape[1]}"
            + (" (the softmax of a single output is always 1)" if probability else "")
        )
    values = output.to(wide(output))
    return values.softmax(1) if probability else values


def gather(output: Tensor, frozen: Tensor | None, *, probability: bool = False) -> Tensor:
    """Gather scores at the frozen labels: [sample] or [sample, several] as `frozen` is."""
    where = kept(frozen)
    picked = scores(output, probability=probability).gather(1, where.view(len(where), -1))
    return picked.view(where.shape)


def kept(frozen: Tensor | None) -> Tensor:
    """Return what was frozen; ModelError if nothing was."""
    if frozen is None:
        raise ModelError("this target must be frozen at the inputs before it is evaluated")
    return frozen


def predictions(output: Tensor) -> Tensor:
    """Return the predicted class of each sample; -1 where the output is no matrix of classes."""
    if output.ndim != 2 or output.shape[1] < 2:
        return torch.full((len(output),), -1, dtype=torch.int64, device=output.device)
    return output.argmax(1)
