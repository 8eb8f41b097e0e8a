"""Targets: what about the output is to be explained, as one number a sample.

A target is a frozen option. `Target.freeze` is called once, on the output at the input
itself, and may fix what must not change along the path (the predicted class, the label);
`Target.value` is called at every step.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from condec.errors import DataError, ModelError, OptionError
from condec.shapes import PerSample


class Target(ABC):
    """One number a sample, from the output of a model."""

    __slots__ = ()

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """What is fixed at the input itself and kept along the path; None if nothing is.

        Parameters
        ----------
        output : Tensor of shape [sample, label]
            The model's output at the inputs.
        labels : Tensor of shape [sample], or None
        """
        return None

    @abstractmethod
    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The target of every sample, differentiable in `output`; unit: that of the output."""

    def to_dict(self) -> dict[str, Any]:
        """Plain form for recipes: the class name and its fields."""
        return {"name": type(self).__name__} | _fields(self)


@final
@dataclass(frozen=True, slots=True)
class TopK(Target):
    """Sum of the `k` largest outputs, chosen anew at every step of the path.

    The target of the paper's ResNet figures (k = 1, logits). The largest class may change
    along the path: the sum of contributions is then the change of the *largest* logit, not
    of one class's. Use `Predicted` to keep the class.

    Parameters
    ----------
    k : int
    probability : bool
        Softmax probabilities instead of logits.

    Raises
    ------
    OptionError
        `k` is below 1; or, at the first output, above the number of labels.
    """

    k: int = 1
    probability: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise OptionError(f"TopK: k must be at least 1; got {self.k}")

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Sum of the k largest entries, shape [sample]."""
        scores = _scores(output, probability=self.probability)
        if self.k > scores.shape[1]:
            raise OptionError(f"TopK: k={self.k}, but the output has {scores.shape[1]} labels")
        return scores.topk(self.k, dim=1).values.sum(1)


@final
@dataclass(frozen=True, slots=True)
class Logit(Target):
    """One given output.

    Parameters
    ----------
    index : int
        Which output; negative numbers are refused rather than counted from the end.
    probability : bool
        Its softmax probability instead of its logit.

    Raises
    ------
    OptionError
        `index` is negative; or, at the first output, not among the labels.
    """

    index: int
    probability: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.index < 0:
            raise OptionError(f"Logit: index must be 0 or more; got {self.index}")

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The output at `index`, shape [sample]."""
        scores = _scores(output, probability=self.probability)
        if self.index >= scores.shape[1]:
            raise OptionError(
                f"Logit: index {self.index} is out of range; the output has {scores.shape[1]} "
                f"labels, 0 to {scores.shape[1] - 1}"
            )
        return scores[:, self.index]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Target):
    """The output of each sample's own label, fixed along the path.

    Parameters
    ----------
    probability : bool
        Softmax probability instead of the logit.

    Raises
    ------
    DataError
        No labels are given, a sample has none (negative), or a label is out of range.
    """

    probability: bool = False

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """The labels, shape [sample]."""
        if labels is None:
            raise DataError(
                "Label: this target needs the label of every sample and got none; give "
                "labels=..., or data with labels, or use TopK or Predicted"
            )
        n_labels = _scores(output, probability=False).shape[1]
        labels = labels.to(output.device)
        if labels.shape != (len(output),):
            raise DataError(
                f"Label: expected one label for each of {len(output)} samples; got shape "
                f"{tuple(labels.shape)}"
            )
        wrong = ((labels < 0) | (labels >= n_labels)).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"Label: {len(wrong)} labels are not among the output's 0 to {n_labels - 1}; "
                f"the first is {int(labels[first])}, at sample {first} of the batch"
            )
        return labels.long()

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The output at each sample's label, shape [sample]."""
        return _gather(output, frozen, probability=self.probability)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted(Target):
    """The output of the class that the model predicts at the input, fixed along the path.

    Parameters
    ----------
    probability : bool
        Softmax probability instead of the logit.
    """

    probability: bool = False

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """The predicted class, shape [sample]."""
        return _scores(output, probability=False).argmax(1)

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The output at each sample's predicted class, shape [sample]."""
        return _gather(output, frozen, probability=self.probability)


def target_from_dict(record: Mapping[str, Any]) -> Target:
    """Inverse of `Target.to_dict`.

    Raises
    ------
    OptionError
        No target has that name or those fields.
    """
    known: dict[str, type[Target]] = {c.__name__: c for c in (TopK, Logit, Label, Predicted)}
    fields = dict(record)
    name = fields.pop("name", None)
    if name not in known:
        raise OptionError(f"target: expected one of {', '.join(known)}; got {name!r}")
    try:
        return known[name](**fields)
    except TypeError as error:
        raise OptionError(f"target {name}: {error}") from error


def predictions(output: Tensor) -> Tensor:
    """Predicted class of every sample; -1 where the output is not a matrix of classes."""
    if output.ndim != 2 or output.shape[1] < 2:
        return torch.full((len(output),), -1, dtype=torch.int64, device=output.device)
    return output.argmax(1)


def _fields(option: object) -> dict[str, Any]:
    return {f.name: getattr(option, f.name) for f in dataclasses.fields(option)}  # type: ignore[arg-type]


def _scores(output: Tensor, *, probability: bool) -> Tensor:
    if output.ndim != 2:
        raise ModelError(
            "the target needs an output of shape [sample, label]; the model gave "
            f"{tuple(output.shape)}"
        )
    # Sums over many labels lose digits in half precision, and the target is one number.
    output = output if output.dtype == torch.float64 else output.float()
    return output.softmax(1) if probability else output


def _gather(output: Tensor, frozen: Tensor | None, *, probability: bool) -> Tensor:
    if frozen is None:
        raise ModelError("this target must be frozen at the inputs before it is evaluated")
    return _scores(output, probability=probability).gather(1, frozen[:, None]).squeeze(1)
