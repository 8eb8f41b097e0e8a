"""Attribution: how much every hidden unit moved the target, at all sites in one go.

Every method is a frozen option with `Method.attribute`; one forward and one backward pass a
step serve all sites together, and no tensor is kept across steps but the records and the
gradients of one step and the running totals, so memory does not grow with the steps.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from condec.errors import DataError, ModelError, OptionError
from condec.shapes import PerSample
from condec.sites import Site
from condec.tape import check_samples, record, run_model
from condec.targets import Target


@dataclass(frozen=True, eq=False)
class Attribution:
    """Contributions of one batch at several sites, as the method left them.

    Attributes
    ----------
    contribution, activation : dict of site key to Tensor
        In execution order; shape of the activation at the site; contribution in the unit of
        the target.
    output : Tensor of shape [sample, ...]
        The model's output at the inputs.
    target, target_baseline : Tensor of shape [sample]
        The target at the inputs and at the baseline; NaN where a method has no baseline.
    """

    contribution: dict[str, Tensor]
    activation: dict[str, Tensor]
    output: Tensor
    target: PerSample
    target_baseline: PerSample


@dataclass(frozen=True, eq=False)
class _Pass:
    """One forward and backward pass: detached records and gradients at all sites."""

    output: Tensor
    frozen: Tensor | None
    target: Tensor
    records: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Baseline(ABC):
    """Where the path of integrated gradients begins, in the model's input space."""

    __slots__ = ()

    @abstractmethod
    def make(self, inputs: Tensor) -> Tensor:
        """Baseline of a batch: one for all samples (sample axis of size 1) or one for each."""

    def to_dict(self) -> dict[str, Any]:
        """Plain form for recipes: the class name and its fields."""
        return {"name": type(self).__name__} | _fields(self)


@final
@dataclass(frozen=True, slots=True)
class Zeros(Baseline):
    """Zero in the model's input space: after normalisation, the mean colour and not black."""

    def make(self, inputs: Tensor) -> Tensor:
        """Zeros of shape [1, ...]."""
        return torch.zeros_like(inputs[:1])


class Method(ABC):
    """A way to attribute a target to hidden units."""

    __slots__ = ()

    @property
    @abstractmethod
    def n_passes(self) -> int:
        """Forward and backward passes a batch costs."""

    @abstractmethod
    def attribute(
        self,
        model: nn.Module,
        inputs: Tensor,
        sites: Sequence[Site],
        target: Target,
        labels: Tensor | None = None,
    ) -> Attribution:
        """Contributions of one batch.

        Parameters
        ----------
        model : torch.nn.Module
            In evaluation mode.
        inputs : Tensor of shape [sample, ...]
        sites : sequence of Site
        target : Target
        labels : Tensor of shape [sample], optional

        Raises
        ------
        ModelError
            The model is in training mode, fails on the inputs, or gives a target that is
            not finite.
        SiteError
            A site does not run, is ambiguous, or has no influence on the target.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain form for recipes: the class name and its fields."""
        return {"name": type(self).__name__} | _fields(self)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients(Method):
    r"""Integrated gradients at hidden layers, along the path of the input (conductance).

    On the straight path :math:`x(\alpha_k) = x_0 + \alpha_k (x - x_0)`,
    :math:`\alpha_k = k / S`, with the site's activation :math:`h_k` and the gradient
    :math:`g_k` of the target there,

    .. math:: C = \sum_{k=1}^{S} (h_k - h_{k-1}) \odot \tfrac12 (g_k + g_{k-1}),

    the trapezoid rule along the path of h (Melander et al. 2026; in the limit of many
    steps the layer conductance of Dhamdhere et al. 2019). At a site that cuts the network
    the sum over all units tends to T(x) - T(x_0).

    Parameters
    ----------
    steps : int
        S, the number of intervals; S + 1 points are evaluated.
    baseline : Baseline
        Gives x_0.

    Raises
    ------
    OptionError
        `steps` is below 1.
    """

    steps: int = 10
    baseline: Baseline = field(default_factory=Zeros)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"IntegratedGradients: steps must be at least 1; got {self.steps}")

    @property
    def n_passes(self) -> int:
        """One for each of the steps + 1 points."""
        return self.steps + 1

    def attribute(
        self,
        model: nn.Module,
        inputs: Tensor,
        sites: Sequence[Site],
        target: Target,
        labels: Tensor | None = None,
    ) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        start = self.baseline.make(inputs)
        # From the input back to the baseline: the first pass then shows what to freeze.
        first = last = _pass(model, inputs, sites, target, labels)
        total = {key: torch.zeros_like(h, dtype=_wide(h)) for key, h in first.records.items()}
        for k in range(self.steps - 1, 0, -1):
            point = torch.lerp(start, inputs, k / self.steps)
            step = _pass(model, point, sites, target, labels, frozen=first.frozen)
            _add_trapezoid(total, last, step)
            last = step
        end = _baseline_pass(model, start, sites, target, first)
        _add_trapezoid(total, last, end)
        return Attribution(total, first.records, first.output, first.target, end.target)


@final
@dataclass(frozen=True, slots=True)
class ActGrad(Method):
    r"""Activation times gradient at the input, :math:`C = h \odot \partial T / \partial h`.

    One pass and no baseline (``target_baseline`` is NaN); the first-order part of
    integrated gradients, exact where the network is linear above the site.
    """

    @property
    def n_passes(self) -> int:
        """One."""
        return 1

    def attribute(
        self,
        model: nn.Module,
        inputs: Tensor,
        sites: Sequence[Site],
        target: Target,
        labels: Tensor | None = None,
    ) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        at = _pass(model, inputs, sites, target, labels)
        contribution = {
            key: h.to(_wide(h)) * at.gradients[key].to(_wide(h)) for key, h in at.records.items()
        }
        unknown = torch.full_like(at.target, torch.nan)
        return Attribution(contribution, at.records, at.output, at.target, unknown)


def method_from_dict(record: Mapping[str, Any]) -> Method:
    """Inverse of `Method.to_dict`.

    Raises
    ------
    OptionError
        No method has that name or those fields.
    """
    known: dict[str, type[Method]] = {c.__name__: c for c in (IntegratedGradients, ActGrad)}
    fields = dict(record)
    name = fields.pop("name", None)
    if name not in known:
        raise OptionError(f"method: expected one of {', '.join(known)}; got {name!r}")
    if "baseline" in fields:
        fields["baseline"] = baseline_from_dict(fields["baseline"])
    try:
        return known[name](**fields)
    except TypeError as error:
        raise OptionError(f"method {name}: {error}") from error


def baseline_from_dict(record: Mapping[str, Any]) -> Baseline:
    """Inverse of `Baseline.to_dict`.

    Raises
    ------
    OptionError
        No baseline has that name or those fields.
    """
    if dict(record) != {"name": "Zeros"}:
        raise OptionError(f"baseline: expected {{'name': 'Zeros'}}; got {dict(record)!r}")
    return Zeros()


def _fields(option: Any) -> dict[str, Any]:
    values = {f.name: getattr(option, f.name) for f in dataclasses.fields(option)}
    return {k: v.to_dict() if isinstance(v, Baseline) else v for k, v in values.items()}


def _pass(
    model: nn.Module,
    inputs: Tensor,
    sites: Sequence[Site],
    target: Target,
    labels: Tensor | None,
    *,
    frozen: Tensor | None = None,
) -> _Pass:
    """One forward and one backward pass; freezes the target unless it is frozen already."""
    with record(model, sites) as tape:
        output = run_model(model, inputs)
        if output.shape[:1] != inputs.shape[:1]:
            raise ModelError(
                f"{type(model).__name__}: expected one output for each of {len(inputs)} samples; "
                f"got shape {tuple(output.shape)}"
            )
        check_samples(tape.records, len(inputs))
        frozen = target.freeze(output.detach(), labels) if frozen is None else frozen
        value = target.value(output, frozen)
        check_finite(value, "the target")
        gradients = tape.gradients(value.sum())
        records = {key: tensor.detach() for key, tensor in tape.records.items()}
    return _Pass(output.detach(), frozen, value.detach(), records, gradients)


def _baseline_pass(
    model: nn.Module, start: Tensor, sites: Sequence[Site], target: Target, first: _Pass
) -> _Pass:
    """The pass at the baseline; run once for samples that share it, then spread over the batch."""
    n_samples = len(first.target)
    if len(start) != 1 or n_samples == 1:
        return _pass(model, start, sites, target, None, frozen=first.frozen)
    if first.frozen is None:
        distinct, which = None, torch.zeros(n_samples, dtype=torch.int64, device=start.device)
    else:
        distinct, which = torch.unique(first.frozen, dim=0, return_inverse=True)
        start = start.expand(len(distinct), *start.shape[1:]).contiguous()
    end = _pass(model, start, sites, target, None, frozen=distinct)
    if distinct is None:
        # Freezing may be declined only by targets that depend on nothing but the output.
        spread = {key: g.expand_as(first.records[key]) for key, g in end.gradients.items()}
        records = {key: h.expand_as(first.records[key]) for key, h in end.records.items()}
    else:
        spread = {key: g[which] for key, g in end.gradients.items()}
        records = {key: h[which] for key, h in end.records.items()}
    return _Pass(end.output[which], first.frozen, end.target[which], records, spread)


def _add_trapezoid(total: dict[str, Tensor], later: _Pass, earlier: _Pass) -> None:
    """Add one interval of the trapezoid rule to the running totals, in place."""
    for key, sums in total.items():
        dtype = sums.dtype
        change = later.records[key].to(dtype) - earlier.records[key].to(dtype)
        slope = later.gradients[key].to(dtype) + earlier.gradients[key].to(dtype)
        sums.addcmul_(change, slope, value=0.5)


def _wide(tensor: Tensor) -> torch.dtype:
    """Type of sums and products: at least float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_finite(values: Tensor, what: str) -> None:
    """Raise DataError naming the samples whose value is NaN or infinite."""
    wrong = (~values.detach().isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{what} is not finite for {len(wrong)} of {len(values)} samples of the batch (first: "
            f"{wrong[:5]}); look at these inputs, or at a model that overflows in its precision"
        )
