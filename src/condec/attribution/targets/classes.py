"""Targets of classifiers: outputs of shape [sample, label]."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, final

import torch
from torch import Tensor

from condec.attribution.targets.base import Target, gather, kept, scores
from condec.basis.checks import at_least, one_of
from condec.basis.errors import DataError, OptionError
from condec.basis.shapes import PerSample

# Outputs with as many axes after the sample hold the labels on the first, as torch's losses do.
_LABELS_FIRST: Final = 3

Rest = Literal["mean", "largest", "logsumexp", "all"]


@final
@dataclass(frozen=True, slots=True)
class TopK(Target):
    """Sum of the `k` largest outputs, chosen again at every step of the path.

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
        at_least("TopK", 1, k=self.k)

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Sum of the k largest entries, shape [sample]."""
        values = scores(output, probability=self.probability)
        if self.k > values.shape[1]:
            raise OptionError(f"TopK: k={self.k}, but the output has {values.shape[1]} labels")
        return values.topk(self.k, dim=1).values.sum(1)


@final
@dataclass(frozen=True, slots=True)
class Logit(Target):
    """One given output, the same for all samples.

    Parameters
    ----------
    index : int, or tuple of int
        Number of the output. For outputs with several axes after the sample, one index for each:
        ``Logit((-1, 262))`` is the logit of word 262 at the last token of [sample, token, label],
        ``Logit((2, 10, 10))`` that of class 2 at a place of [sample, label, y, x]. A negative
        label is refused rather than counted from the end; other indices may be negative.
    probability : bool
        Its softmax probability among the labels instead of its logit.
    axis : int, optional
        The axis of the output that holds the labels, from 1. By default the one on which the model
        makes features (`condec.inspect_model` shows it for its last module); where nothing tells,
        the last of one or two, else the first after the sample.

    Raises
    ------
    OptionError
        A label is negative, no index is given, or there is no such axis; or, at the first output,
        there are not as many indices as axes, or one is out of range.
    """

    index: int | tuple[int, ...]
    probability: bool = dataclasses.field(default=False, kw_only=True)
    axis: int | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.index, Sequence):
            object.__setattr__(self, "index", tuple(self.index))
        if not self._indices:
            raise OptionError("Logit: index is empty; give one for each axis after the sample")
        if self.axis is not None and not 1 <= self.axis <= len(self._indices):
            raise OptionError(
                f"Logit: axis must be from 1 to {len(self._indices)}, one of those after the "
                f"sample; got {self.axis}"
            )
        if self._indices[self._label_axis - 1] < 0:
            label = self._indices[self._label_axis - 1]
            raise OptionError(f"Logit: index must be 0 or more; got {label}")

    @property
    def _label_axis(self) -> int:
        n_axes = len(self._indices)
        return self.axis or (n_axes if n_axes < _LABELS_FIRST else 1)

    def settled(self, output_axis: Callable[[], int | None]) -> "Logit":
        """Take the axis of the labels, among which a probability is."""
        if self.axis is not None or not self.probability or len(self._indices) == 1:
            return self
        axis = output_axis()
        return self if axis in (None, self._label_axis) else dataclasses.replace(self, axis=axis)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form; an axis that is left open is not named."""
        record = Target.to_dict(self)
        return {key: value for key, value in record.items() if (key, value) != ("axis", None)}

    @property
    def _indices(self) -> tuple[int, ...]:
        return self.index if isinstance(self.index, tuple) else (self.index,)

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The output at `index`, shape [sample]."""
        whole = output[:, None] if output.ndim == 1 else output
        where = self._indices
        if len(where) != whole.ndim - 1:
            raise OptionError(
                f"Logit: {len(where)} indices for an output of shape {tuple(output.shape)}; give "
                "one for each axis after the sample, as Logit((token, label))"
            )
        for axis, index in enumerate(where, 1):
            size = whole.shape[axis]
            if not -size <= index < size:
                things = "labels" if axis == self._label_axis else f"entries on axis {axis}"
                raise OptionError(
                    f"Logit: index {index} is out of range; the output has {size} {things}, "
                    f"0 to {size - 1}"
                )
        for axis in range(len(where), 0, -1):
            whole = whole if axis == self._label_axis else whole.select(axis, where[axis - 1])
        return scores(whole, probability=self.probability)[:, where[self._label_axis - 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneClass(Target):
    """The output of one class of each sample, fixed along the path."""

    probability: bool = False

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The output at each sample's class, shape [sample]."""
        return gather(output, frozen, probability=self.probability)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Label(_OneClass):
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

    uses_labels: ClassVar[bool] = True

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Keep the labels, shape [sample]."""
        return _labels_of("Label", output, labels)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted(_OneClass):
    """The output of the class that the model predicts at the input, fixed along the path.

    Parameters
    ----------
    probability : bool
        Softmax probability instead of the logit.
    """

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Keep the predicted class, shape [sample]."""
        return scores(output).argmax(1)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(Target):
    """The largest output minus the second largest: why this class and not the next.

    What raises all classes alike drops out. The contrastive target of Melander et al. 2026
    chooses both classes again at every step; ``frozen=True`` fixes both at the input, so that
    contributions are of one pair of classes.

    Parameters
    ----------
    frozen : bool
        Keep the two classes of the input along the path.
    probability : bool
        Softmax probabilities instead of logits.
    pair : tuple of two int, or of two str, optional
        Two given classes, the same for all inputs: the first less the second, such as the tokens
        of "he" and "she". Names are found by `numbered`, which a run does.

    Raises
    ------
    OptionError
        A pair that is not two different labels, or is asked to be frozen, which it is already; at
        the first output, one that the model does not have, or a name that has no number yet.
    """

    frozen: bool = False
    probability: bool = False
    pair: tuple[int | str, int | str] | None = None

    def __post_init__(self) -> None:
        if self.pair is None:
            return
        try:
            pair = tuple(one if isinstance(one, str) else operator.index(one) for one in self.pair)
        except TypeError:
            raise OptionError(
                f"Contrast: pair must be two numbers of labels, or two names; got {self.pair}"
            ) from None
        object.__setattr__(self, "pair", pair)
        if len({*self.pair}) != 2 or len(self.pair) != 2 or self.frozen:
            raise OptionError(
                f"Contrast: pair must be two different labels, and not frozen; got {self.pair}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form; a pair is named only where there is one."""
        record = Target.to_dict(self)
        return {key: value for key, value in record.items() if (key, value) != ("pair", None)}

    def numbered(self, names: Callable[[], Sequence[str] | None]) -> "Contrast":
        """Find the numbers of two names; OptionError where a label has no such name."""
        if self.pair is None or all(isinstance(one, int) for one in self.pair):
            return self
        known = list(names() or ())
        wrong = [one for one in self.pair if isinstance(one, str) and known.count(one) != 1]
        if wrong:
            near = [name for name in known if str(wrong[0]).strip() in name][:5]
            raise OptionError(
                f"Contrast: {wrong[0]!r} is the name of {known.count(str(wrong[0]))} of the "
                f"model's {len(known)} labels; expected one. "
                + (f"Names like it: {near}" if near else "Give the number of the label")
            )
        first, second = (known.index(o) if isinstance(o, str) else o for o in self.pair)
        return dataclasses.replace(self, pair=(first, second))

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Keep the two classes, shape [sample, 2]; None where they are chosen again."""
        return scores(output, at_least=2).topk(2, dim=1).indices if self.frozen else None

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Difference of the two outputs, shape [sample]; not negative unless they are fixed."""
        if self.pair is not None:
            values = scores(output, probability=self.probability, at_least=2)
            first, second = self.pair
            size = values.shape[1]
            if not (isinstance(first, int) and isinstance(second, int)):
                raise OptionError(
                    f"Contrast: {self.pair} are names; give numbers, such as model.token(' he')"
                )
            if not (0 <= first < size and 0 <= second < size):
                raise OptionError(
                    f"Contrast: pair {self.pair}; the output has {size} labels, 0 to {size - 1}"
                )
            return values[:, first] - values[:, second]
        if self.frozen:
            pair = gather(output, frozen, probability=self.probability)
        else:
            pair = scores(output, probability=self.probability, at_least=2).topk(2).values
        return pair[:, 0] - pair[:, 1]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Margin(Target):
    r"""The output of each sample's own label against that of all the others.

    Parameters
    ----------
    against : {"mean", "largest", "logsumexp", "all"}
        Subtracted: the mean of the other outputs; the largest of them, chosen again at
        every step (the margin of support vector machines, negative where the sample is
        misclassified); their log-sum-exp, which makes the target the log-odds
        :math:`\log(p / (1 - p))` of the label's softmax probability; or the log-sum-exp of all
        outputs, the own one too, which makes it the log-probability :math:`\log p`.
    probability : bool
        Softmax probabilities instead of logits; not with ``logsumexp`` and ``all``.

    Raises
    ------
    OptionError
        Another word for `against`, or ``logsumexp`` or ``all`` of probabilities.
    DataError
        As of `Label`.
    """

    uses_labels: ClassVar[bool] = True
    against: Rest = "mean"
    probability: bool = False

    def __post_init__(self) -> None:
        one_of("Margin", "against", self.against, Rest)
        if self.probability and self.against in ("logsumexp", "all"):
            known = "log-odds" if self.against == "logsumexp" else "log-probability"
            raise OptionError(
                f"Margin: against={self.against!r} is the {known} already, of logits; leave "
                "probability=True out, or use 'mean' or 'largest'"
            )

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Keep the labels, shape [sample]."""
        return _labels_of("Margin", output, labels)

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The label's output minus that of the rest, shape [sample]."""
        values = scores(output, probability=self.probability, at_least=2)
        own = gather(output, frozen, probability=self.probability)
        if self.against == "all":
            return own - values.logsumexp(1)
        # Indices of the others: all labels, with those from the own one on moved up by one.
        place = torch.arange(values.shape[1] - 1, device=values.device).expand(len(values), -1)
        others = values.gather(1, place + (place >= kept(frozen)[:, None]))
        if self.against == "largest":
            return own - others.max(1).values
        return own - (others.mean(1) if self.against == "mean" else others.logsumexp(1))


def _labels_of(name: str, output: Tensor, labels: Tensor | None) -> Tensor:
    """Labels checked against the output, as int64 on its device."""
    if labels is None:
        raise DataError(
            f"{name}: this target needs the label of every sample and got none; give "
            "labels=... (to explain: label=..., --label), or data with labels, or use TopK or "
            "Predicted"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"{name}: expected integer labels of shape [sample]; got {labels.dtype}. Round them "
            "yourself, if they are classes"
        )
    n_labels = scores(output).shape[1]
    labels = labels.to(output.device)
    if labels.shape != (len(output),):
        raise DataError(
            f"{name}: expected one label for each of {len(output)} samples; got shape "
            f"{tuple(labels.shape)}"
        )
    wrong = ((labels < 0) | (labels >= n_labels)).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{name}: {len(wrong)} labels are not among the output's 0 to {n_labels - 1}; "
            f"the first is {int(labels[wrong[0]])}, at sample {wrong[0]} of the batch"
        )
    return labels.long()
