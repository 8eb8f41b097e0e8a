"""Targets of all outputs together: classes, firing rates or other numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor

from condec.attribution.targets.base import Target, scores, wide
from condec.basis.errors import DataError, ModelError, OptionError
from condec.basis.shapes import PerSample

if TYPE_CHECKING:
    import numpy

# Outputs are called dependent where the smallest eigenvalue of their correlation is below this.
_SINGULAR: Final = 1e-10


@final
@dataclass(frozen=True, slots=True)
class Entropy(Target):
    r"""Entropy of the softmax probabilities, :math:`-\sum_c p_c \ln p_c`, in nats.

    How uncertain the model is, whatever class it favours: ln(number of labels) if all are
    alike, 0 if one is certain. A unit with a negative contribution makes the model surer.
    """

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Entropy of every sample, shape [sample]."""
        logs = scores(output, at_least=2).log_softmax(1)
        # A label that is masked out (a logit of minus infinity) adds 0 and not NaN.
        logs = logs.clamp(min=torch.finfo(logs.dtype).min)
        return -(logs.exp() * logs).sum(1)


@final
@dataclass(frozen=True, slots=True)
class Sum(Target):
    """Sum of all outputs, or of some: a population's firing rate, a group of classes.

    Parameters
    ----------
    indices : tuple of int, optional
        Which entries of the output's last axis; all by default.
    probability : bool
        Softmax probabilities instead of logits: that the class is one of `indices`.

    Raises
    ------
    OptionError
        `indices` is empty, negative or holds one twice; `probability` without `indices` (the
        sum is always 1); or, at the first output, an index is out of range.
    """

    indices: tuple[int, ...] | None = None
    probability: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", _checked("Sum", self.indices))
        if self.indices is None and self.probability:
            raise OptionError(
                "Sum: all probabilities add up to 1 for every input; give indices, or logits"
            )

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Sum over everything but the sample axis, shape [sample]."""
        values = scores(output, probability=True) if self.probability else output.to(wide(output))
        values = values[:, None] if values.ndim == 1 else values
        return _pick("Sum", values, self.indices).flatten(1).sum(1)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Surprisal(Target):
    r"""Explain how unusual the outputs are: :math:`\tfrac12 (y - \mu)^T \Sigma^{-1} (y - \mu)`.

    For populations of neurons (the retina of Melander et al. 2026): up to a constant, minus
    the logarithm of a Gaussian's density in nats. Mean and covariance are those of the outputs
    given to `Surprisal.fit`, or else of those to the data that `condec.collect` is called with.

    Parameters
    ----------
    mean, precision : Tensor of shape [output] and [output, output], optional
        :math:`\mu` and :math:`\Sigma^{-1}`; kept in double precision.
    indices : tuple of int, optional
        Numbers of these outputs; all by default.
    shrinkage : float or "auto"
        How far the covariance is (or was) drawn towards a multiple of the identity, see `fit`.

    Raises
    ------
    OptionError
        Shapes do not fit, entries are not finite, or mean or precision is given alone; or the
        target is evaluated before it is fitted.

    Examples
    --------
    >>> rates = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [2.0, 2.0]])
    >>> target = Surprisal.fit(rates, shrinkage=0.0)
    >>> target.value(rates, None)
    tensor([1., 1., 1., 0.])
    """

    mean: Tensor | None = None
    precision: Tensor | None = None
    indices: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)
    shrinkage: float | str = dataclasses.field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        share = self.shrinkage
        if share != "auto" and not (isinstance(share, int | float) and 0 <= share <= 1):
            raise OptionError(
                f"Surprisal: shrinkage must be 'auto' or between 0 and 1; got {share!r}"
            )
        object.__setattr__(self, "indices", _checked("Surprisal", self.indices))
        if (self.mean is None) != (self.precision is None):
            raise OptionError("Surprisal: give both mean and precision, or neither")
        if self.mean is None or self.precision is None:
            return
        n = len(self.mean)
        if self.mean.ndim != 1 or self.precision.shape != (n, n):
            raise OptionError(
                "Surprisal: expected a mean [output] and a precision [output, output]; got shapes "
                f"{tuple(self.mean.shape)} and {tuple(self.precision.shape)}"
            )
        for name, given in (("mean", self.mean), ("precision", self.precision)):
            if not given.isfinite().all():
                raise OptionError(f"Surprisal: {name} holds NaN or infinity")
            object.__setattr__(self, name, given.detach().to("cpu", torch.float64, copy=True))
        if self.indices is not None and len(self.indices) != n:
            raise OptionError(f"Surprisal: {len(self.indices)} indices for a mean of {n} outputs")

    @property
    def is_fitted(self) -> bool:
        """Tell whether mean and precision are there."""
        return self.mean is not None

    def fitted(self, outputs: Tensor) -> "Surprisal":
        """Fit mean and covariance to these outputs, unless they are there."""
        if self.is_fitted:
            return self
        return Surprisal.fit(outputs, shrinkage=self.shrinkage, indices=self.indices)

    @staticmethod
    def fit(
        outputs: "Tensor | numpy.ndarray",
        *,
        shrinkage: float | str = "auto",
        indices: Sequence[int] | None = None,
    ) -> "Surprisal":
        r"""Fit mean and covariance to outputs.

        Parameters
        ----------
        outputs : Tensor or array of shape [sample, output]
        shrinkage : "auto", or number between 0 and 1
            s in :math:`(1 - s) S + s \bar v I`, with the covariance S (divided by n - 1) and
            the mean variance :math:`\bar v`. ``"auto"`` takes Ledoit and Wolf's estimate;
            0 is the plain covariance, the paper's.
        indices : sequence of int, optional

        Raises
        ------
        DataError
            Rows are not finite, outputs are constant or, together, dependent (all are named), or
            there are not more rows than outputs and no shrinkage.
        OptionError
            `shrinkage` is neither.
        """
        given = None if indices is None else tuple(int(i) for i in indices)
        chosen = Surprisal(indices=given, shrinkage=shrinkage).indices  # checks both
        rows = _rows(torch.as_tensor(outputs).detach(), chosen)
        amount = shrinkage
        if isinstance(amount, str):
            from sklearn.covariance import ledoit_wolf_shrinkage

            amount = float(ledoit_wolf_shrinkage(rows.numpy()))
        precision = torch.linalg.inv(_covariance(rows, amount, chosen))
        return Surprisal(rows.mean(0), precision, indices=chosen, shrinkage=float(amount))

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Surprisal of every sample, in nats, shape [sample]."""
        if self.mean is None or self.precision is None:
            raise OptionError(
                "Surprisal: it is not fitted; take Surprisal.fit(outputs) with the model's outputs "
                "to many inputs (condec.collect fits it to the outputs to its data)"
            )
        if output.ndim != 2:
            raise ModelError(
                "Surprisal: expected an output of shape [sample, output]; the model gave "
                f"{tuple(output.shape)}"
            )
        # In double precision: with strongly correlated outputs, large terms cancel.
        values = _pick("Surprisal", output.double(), self.indices)
        if values.shape[1] != len(self.mean):
            raise OptionError(
                f"Surprisal: fitted to {len(self.mean)} outputs; the model gives {values.shape[1]}"
            )
        away = values - self.mean.to(output.device)
        half = 0.5 * ((away @ self.precision.to(output.device)) * away).sum(1)
        return half.to(wide(output))

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form, with all numbers: it gives the same target back."""
        given = {"mean": self.mean, "precision": self.precision}
        numbers = {name: None if v is None else v.tolist() for name, v in given.items()}
        return Target.to_dict(self) | numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Surprisal) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        mean = None if self.mean is None else tuple(self.mean.tolist())
        return hash((mean, self.indices, self.shrinkage))


def _checked(name: str, indices: Sequence[int] | None) -> tuple[int, ...] | None:
    if indices is None:
        return None
    chosen = tuple(indices)
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise OptionError(
            f"{name}: indices must be different numbers from 0 on, at least one; got {chosen}"
        )
    return chosen


def _pick(name: str, values: Tensor, indices: tuple[int, ...] | None) -> Tensor:
    """Entries of the last axis."""
    if indices is None:
        return values
    size = values.shape[-1]
    if max(indices) >= size:
        raise OptionError(
            f"{name}: index {max(indices)} is out of range; the output has {size} entries, 0 to "
            f"{size - 1}"
        )
    return values[..., list(indices)]


def _names(numbers: Tensor, indices: tuple[int, ...] | None) -> list[int]:
    """Numbers that chosen outputs have in the model's output."""
    return [n if indices is None else indices[n] for n in numbers.flatten().tolist()]


def _rows(outputs: Tensor, indices: tuple[int, ...] | None) -> Tensor:
    """Check the outputs to fit to; in double precision."""
    if outputs.ndim != 2 or min(outputs.shape) < 1 or len(outputs) < 2:
        raise DataError(
            "Surprisal: expected outputs of shape [sample, output], two samples or more; got "
            f"shape {tuple(outputs.shape)}"
        )
    rows = _pick("Surprisal", outputs.to("cpu", torch.float64), indices)
    if wrong := (~rows.isfinite()).any(1).nonzero().flatten().tolist():
        raise DataError(
            f"Surprisal: {len(wrong)} rows hold NaN or infinity; the first are {wrong[:5]}"
        )
    # A constant output may differ in the last digit it was computed with, from batch to batch.
    digit = torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0
    spread, size = rows.amax(0) - rows.amin(0), rows.abs().amax(0)
    if constant := _names((spread <= max(2 * digit, 1e-12) * size).nonzero(), indices):
        raise DataError(
            f"Surprisal: {len(constant)} of {rows.shape[1]} outputs are the same for all "
            f"{len(rows)} samples: {constant[:8]}; nothing is surprising there: leave them out "
            "with Surprisal.fit(outputs, indices=[...])"
        )
    return rows


def _covariance(rows: Tensor, shrinkage: float, indices: tuple[int, ...] | None) -> Tensor:
    """Shrunk covariance, refused where it cannot be inverted."""
    n_rows, n_outputs = rows.shape
    if n_rows <= n_outputs and shrinkage == 0:
        raise DataError(
            f"Surprisal: {n_rows} samples of {n_outputs} outputs: the covariance is singular. "
            "Give more samples than outputs, or shrinkage='auto'"
        )
    away = rows - rows.mean(0)
    plain = away.T @ away / (n_rows - 1)
    variance = plain.diagonal()
    shrunk = (1 - shrinkage) * plain + shrinkage * variance.mean() * torch.eye(n_outputs).double()
    scale = shrunk.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(shrunk / scale / scale[:, None])
    if values[0] < _SINGULAR:
        weights = vectors[:, 0].abs()
        dependent = _names((weights > 0.1 * weights.max()).nonzero(), indices)
        raise DataError(
            f"Surprisal: outputs {dependent[:8]} depend on one another, so the covariance is "
            "singular; leave some out with Surprisal.fit(outputs, indices=[...]), or give "
            "shrinkage='auto'"
        )
    return shrunk
