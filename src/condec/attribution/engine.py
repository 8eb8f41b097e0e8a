"""The passes: points of a path, run forward and backward, all sites at once.

No tensor is kept from a pass but the records and the gradients at the sites.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from condec.attribution.affine import AffineParts, watched
from condec.attribution.base import check_finite
from condec.attribution.targets import Target
from condec.basis.errors import ModelError
from condec.basis.shapes import PerSample
from condec.network import AfterSite, Site, check_samples, frozen_parameters, record, run_model


@dataclass(frozen=True, eq=False)
class Point:
    """One forward and backward pass: detached records and gradients at all sites.

    Attributes
    ----------
    output : Tensor of shape [sample, ...]
    frozen : Tensor of shape [sample, ...], or None
        What the target fixed.
    target : Tensor of shape [sample]
    records, gradients : dict of site key to Tensor
    speeds : dict of site key to Tensor
        Derivative of the record along the path, where it was asked for.
    """

    output: Tensor
    frozen: Tensor | None
    target: Tensor
    records: dict[str, Tensor]
    gradients: dict[str, Tensor]
    speeds: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor | slice) -> "Point":
        """The same of some samples."""

        def each(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor[rows] for key, tensor in tensors.items()}

        return Point(
            output=self.output[rows],
            frozen=None if self.frozen is None else self.frozen[rows],
            target=self.target[rows],
            records=each(self.records),
            gradients=each(self.gradients),
            speeds=each(self.speeds),
        )

    def split(self, n_samples: int) -> "list[Point]":
        """Points that were stacked along the sample axis, `n_samples` each."""
        starts = range(0, len(self.target), n_samples)
        return [self.take(slice(start, start + n_samples)) for start in starts]


def run_point(
    model: nn.Module,
    inputs: Tensor,
    sites: Sequence[Site],
    target: Target,
    labels: Tensor | None = None,
    *,
    frozen: Tensor | None = None,
    direction: Tensor | None = None,
) -> Point:
    """One forward and one backward pass; freezes the target unless it is frozen already.

    Parameters
    ----------
    direction : Tensor like `inputs`, optional
        Change of the inputs along the path; the pass then also carries tangents
        (forward-mode differentiation), which come back as `Point.speeds`.
    """
    with record(model, sites) as tape:
        with _moving(inputs, direction) as x:
            output = run_model(model, x)
            if output.shape[:1] != inputs.shape[:1]:
                raise ModelError(
                    f"{type(model).__name__}: expected one output for each of {len(inputs)} "
                    f"samples; got shape {tuple(output.shape)}"
                )
            check_samples(tape.records, len(inputs))
            frozen = target.freeze(output.detach(), labels) if frozen is None else frozen
            value = target.value(output, frozen)
            check_finite(value, "the target")
            speeds = {}
            if direction is not None:
                speeds = {key: _parts(h)[1].detach() for key, h in tape.records.items()}
                value, output = _parts(value)[0], _parts(output)[0]
        # Tangents have gone by now: many operations could not carry them backwards.
        gradients = tape.gradients(value.sum())
        records = {key: tensor.detach() for key, tensor in tape.records.items()}
    return Point(output.detach(), frozen, value.detach(), records, gradients, speeds)


@contextmanager
def _moving(inputs: Tensor, direction: Tensor | None) -> Iterator[Tensor]:
    """The inputs, with their change along the path as a tangent if one is given."""
    if direction is None:
        yield inputs
        return
    # The fused attention kernels have no forward-mode derivative.
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    try:
        with forward_ad.dual_level(), math:
            # Attached to the graph: a record that is cut off would lose its tangent.
            start = inputs.detach().requires_grad_()
            yield forward_ad.make_dual(start, direction)  # type: ignore[no-untyped-call]
    except (NotImplementedError, ModelError) as error:
        if "forward AD" not in str(error):
            raise
        cause = error.__cause__ or error
        raise ModelError(
            "rule='gauss' needs the derivative of every layer along the path, by forward-mode "
            f"differentiation, and torch has none for one of them ({str(cause).splitlines()[0]}); "
            "use another rule"
        ) from error


@contextmanager
def _differentiable() -> Iterator[None]:
    """Inside, graphs are built whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _parts(dual: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent; zeros where nothing moves."""
    parts = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return parts.primal, torch.zeros_like(parts.primal) if parts.tangent is None else parts.tangent


@dataclass(frozen=True, slots=True)
class Kept(Target):
    """A target that stays as it was frozen at the clean inputs."""

    target: Target
    frozen: Tensor | None

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """What was frozen already."""
        return self.frozen

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """The target's value."""
        return self.target.value(output, frozen)


class Path(ABC):
    """Points between a baseline (0) and the inputs (1)."""

    @abstractmethod
    def at(self, alphas: Sequence[float], *, speeds: bool = False) -> list[Point]:
        """Points of the path, in one pass over all of them stacked along the sample axis."""

    @abstractmethod
    def end(self, first: Point) -> Point:
        """The point at 0, for the `first` one at 1."""

    @abstractmethod
    def take(self, rows: Tensor) -> "Path":
        """The path of some samples."""

    @property
    @abstractmethod
    def moved(self) -> Tensor:
        """What moves, at 1: shape [sample, ...]."""

    @property
    def runs_whole_batch(self) -> bool:
        """Whether a pass costs as much after `take` as before."""
        return False


@dataclass(frozen=True, eq=False)
class InputPath(Path):
    """The straight path from a baseline to the inputs, in the model's input space.

    Attributes
    ----------
    model : torch.nn.Module
    inputs : Tensor of shape [sample, ...]
    start : Tensor of shape [sample, ...] or [1, ...]
        The baseline.
    sites : sequence of Site
    target : Target
    frozen : Tensor of shape [sample, ...], or None
        What the target fixed at the inputs.
    affine : AffineParts, or None
        What need not be computed at every point.
    """

    model: nn.Module
    inputs: Tensor
    start: Tensor
    sites: Sequence[Site]
    target: Target
    frozen: Tensor | None
    affine: AffineParts | None = None

    @property
    def moved(self) -> Tensor:
        """The inputs."""
        return self.inputs

    def take(self, rows: Tensor) -> "InputPath":
        """The path of some samples."""
        return replace(
            self,
            inputs=self.inputs[rows],
            start=self.start if len(self.start) == 1 else self.start[rows],
            frozen=None if self.frozen is None else self.frozen[rows],
            affine=None if self.affine is None else self.affine.take(rows),
        )

    def at(self, alphas: Sequence[float], *, speeds: bool = False) -> list[Point]:
        """Points of the path, in one pass over all of them stacked along the sample axis."""
        where = [torch.lerp(self.start, self.inputs, alpha) for alpha in alphas]
        stacked = where[0] if len(where) == 1 else torch.cat(where)
        frozen = None if self.frozen is None else torch.cat([self.frozen] * len(where))
        direction = None
        if speeds:
            direction = torch.cat([self.inputs - self.start] * len(where))
        # Answers carry no tangents.
        known = None if self.affine is None or speeds else self.affine.at(alphas)
        with nullcontext() if known is None else watched(self.model, stacked, known):
            point = run_point(
                self.model, stacked, self.sites, self.target, frozen=frozen, direction=direction
            )
        return [point] if len(where) == 1 else point.split(len(self.inputs))

    def end(self, first: Point) -> Point:
        """The point at the baseline; run once for samples that share it, then spread over them."""
        n_samples = len(self.inputs)
        if len(self.start) != 1 or n_samples == 1:
            start = self.start.expand_as(self.inputs)
            return run_point(self.model, start, self.sites, self.target, frozen=self.frozen)
        start, distinct = self.start, None
        which = torch.zeros(n_samples, dtype=torch.int64, device=start.device)
        if self.frozen is not None:
            distinct, which = torch.unique(self.frozen, dim=0, return_inverse=True)
            start = start.expand(len(distinct), *start.shape[1:]).contiguous()
        end = run_point(self.model, start, self.sites, self.target, frozen=distinct)
        if distinct is not None:
            return replace(end.take(which), frozen=self.frozen)

        # Views, not copies: freezing may be declined only by targets that depend on nothing
        # but the output, so that every sample has the same records and gradients here.
        def spread(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: t.expand_as(first.records[key]) for key, t in tensors.items()}

        return Point(
            end.output.expand(n_samples, *end.output.shape[1:]),
            None,
            end.target.expand(n_samples),
            spread(end.records),
            spread(end.gradients),
        )


@dataclass(frozen=True, eq=False)
class LayerPath(Path):
    """The straight path of one site's activation; what bypasses the site stays as at the inputs.

    Attributes
    ----------
    suffix : AfterSite
        What lies after the site, at the inputs.
    start : Tensor of shape [sample, ...]
        The activation at the baseline.
    target : Target
    frozen : Tensor of shape [sample, ...], or None
    rows : Tensor of shape [sample], or None
        Which samples of the batch are on the path; None for all.
    """

    suffix: AfterSite
    start: Tensor
    target: Target
    frozen: Tensor | None
    rows: Tensor | None = None

    @property
    def moved(self) -> Tensor:
        """The activation."""
        return self.suffix.activation

    def take(self, rows: Tensor) -> "LayerPath":
        """The path of some samples."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    @property
    def runs_whole_batch(self) -> bool:
        """Yes: the suffix remembers the batch as a whole."""
        return True

    def at(self, alphas: Sequence[float], *, speeds: bool = False) -> list[Point]:
        """Points of the path, in one pass over all of them stacked along the sample axis."""
        whole = self.suffix.activation
        stacked = torch.cat([torch.lerp(self.start, whole, alpha) for alpha in alphas])
        frozen = None if self.frozen is None else torch.cat([self.frozen] * len(alphas))
        stacked.requires_grad_()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            frozen_parameters(self.suffix.model),
        ):
            output = self.suffix.run(stacked)
            value = self.target.value(output, frozen)
            check_finite(value, "the target")
            (gradient,) = torch.autograd.grad(value.sum(), (stacked,))
        key = self.suffix.site.key
        velocity = torch.cat([whole - self.start] * len(alphas)) if speeds else None
        point = Point(
            output.detach(),
            frozen,
            value.detach(),
            {key: stacked.detach()},
            {key: gradient},
            {} if velocity is None else {key: velocity},
        )
        points = point.split(len(whole))
        return points if self.rows is None else [p.take(self.rows) for p in points]

    def end(self, first: Point) -> Point:
        """The point where the activation is that of the baseline."""
        return self.at((0.0,))[0]
