"""Passes: points of a path, run forward and backward, all sites at once.

No tensor is kept from a pass but the records and the gradients at the sites.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from condec.attribution.affine import AffineParts, Alpha, between, watched
from condec.attribution.base import Attribution, Setup, check_finite
from condec.attribution.targets import Target
from condec.basis.shapes import PerSample
from condec.network import (
    AfterSite,
    check_output,
    count_folds,
    frozen_parameters,
    record,
    run_model,
)

_Batch = TypeVar("_Batch", "Point", Attribution)


@dataclass(frozen=True, eq=False)
class Point:
    """One forward and backward pass: detached records and gradients at all sites, by their keys.

    They have an axis of samples first, also where the model folds another axis into the batch.
    `frozen` is what the target fixed.
    """

    output: Tensor
    frozen: Tensor | None
    target: Tensor
    records: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def take(self, rows: Tensor | slice) -> "Point":
        """Choose samples."""

        def each(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor[rows] for key, tensor in tensors.items()}

        frozen = None if self.frozen is None else self.frozen[rows]
        parts = each(self.records), each(self.gradients)
        return Point(self.output[rows], frozen, self.target[rows], *parts)

    def split(self, n_samples: int) -> "list[Point]":
        """Undo the stacking of points along the sample axis, `n_samples` each."""
        starts = range(0, len(self.target), n_samples)
        return [self.take(slice(start, start + n_samples)) for start in starts]


def joined(parts: Sequence[_Batch]) -> _Batch:
    """Join samples of records of batches, one part after the other."""

    def each(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: each([value[key] for value in values]) for key in values[0]}
        return None if values[0] is None else torch.cat(tuple(values))

    names = (field.name for field in fields(parts[0]))
    return replace(parts[0], **{n: each([getattr(part, n) for part in parts]) for n in names})


def run_point(
    setup: Setup, inputs: Tensor, *, frozen: Tensor | None = None, place: str = "",
    n_samples: int | None = None,
) -> Point:  # fmt: skip
    """Run one forward and one backward pass; freezes the target unless it is frozen already.

    Several where the model does not take so many samples. Where the target is not finite, the
    error names the `place` on a path, and samples as `check_finite` does.
    """
    n_inputs = len(inputs)
    if setup.sizes.takes(n_inputs):
        point = _run(setup, inputs, frozen)
    else:
        parts = []
        for rows in setup.sizes.passes(n_inputs):
            whole = setup.labels is not None and len(setup.labels) == n_inputs
            labels = setup.labels[rows] if whole and setup.labels is not None else setup.labels
            some = None if frozen is None else frozen[rows]
            part = _run(replace(setup, labels=labels), inputs[rows], some)
            parts.append(part.take(slice(0, 1 + int(rows[-1] - rows[0]))))
        point = joined(parts)
    what = f"the target {place}".rstrip()
    check_finite(point.target, what, "the baseline" if place else "", n_samples=n_samples)
    return point


def _run(setup: Setup, inputs: Tensor, frozen: Tensor | None) -> Point:
    target = setup.target
    with record(setup.model, setup.sites) as tape:
        output = run_model(setup.model, inputs)
        check_output(setup.model, output, len(inputs))
        n_folds = count_folds(tape.records, len(inputs), allowed=setup.folded())
        frozen = target.freeze(output.detach(), setup.labels) if frozen is None else frozen
        value = target.value(output, frozen)
        records, gradients = setup.read(tape, value.sum(), n_folds)
    return Point(output.detach(), frozen, value.detach(), records, gradients)


@dataclass(frozen=True, slots=True)
class Kept(Target):
    """A target that stays as it was frozen at the clean inputs."""

    target: Target
    frozen: Tensor | None

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Return what was frozen before."""
        return self.frozen

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Return the value of the target inside."""
        return self.target.value(output, frozen)


@dataclass(frozen=True, eq=False)
class Path(ABC):
    """Points between a baseline (0) and the inputs (1), where the target fixed `frozen`.

    `start`, of shape [sample, ...], or of the input space [1, ...], is where the path begins.
    """

    setup: Setup
    start: Tensor
    frozen: Tensor | None

    @abstractmethod
    def at(self, alphas: Sequence[Alpha]) -> list[Point]:
        """Run points of the path in one pass, stacked along the sample axis."""

    @abstractmethod
    def end(self, first: Point) -> Point:
        """Run the point at 0, for the `first` one at 1."""

    @abstractmethod
    def take(self, rows: Tensor) -> "Path":
        """Choose samples."""

    def _frozen(self, n_points: int) -> Tensor | None:
        return None if self.frozen is None else torch.cat([self.frozen] * n_points)


@dataclass(frozen=True, eq=False)
class InputPath(Path):
    """The straight path from a baseline to the inputs, in the model's input space.

    `affine` holds what need not be computed at every point.
    """

    affine: AffineParts | None = None

    def take(self, rows: Tensor) -> "InputPath":
        """Choose samples."""
        return InputPath(
            replace(self.setup, inputs=self.setup.inputs[rows]),
            self.start if len(self.start) == 1 else self.start[rows],
            None if self.frozen is None else self.frozen[rows],
            None if self.affine is None else self.affine.take(rows),
        )

    def at(self, alphas: Sequence[Alpha]) -> list[Point]:
        """Run points of the path in one pass, stacked along the sample axis."""
        inputs = self.setup.inputs
        where = [between(self.start, inputs, alpha) for alpha in alphas]
        stacked = where[0] if len(where) == 1 else torch.cat(where)
        frozen = self._frozen(len(where))
        known = None if self.affine is None else self.affine.at(alphas)
        with nullcontext() if known is None else watched(self.setup.model, stacked, known):
            point = run_point(
                self.setup, stacked, frozen=frozen, place="on the path from the baseline",
                n_samples=len(inputs),
            )  # fmt: skip
        return [point] if len(where) == 1 else point.split(len(inputs))

    def end(self, first: Point) -> Point:
        """Run the baseline; once for samples that share it, then spread over them."""
        inputs, start, distinct = self.setup.inputs, self.start, None
        n_samples = len(inputs)
        if len(start) != 1 or n_samples == 1:
            return self._start(start.expand_as(inputs), self.frozen, n_samples)
        if self.frozen is not None:
            distinct, which = torch.unique(self.frozen, dim=0, return_inverse=True)
            start = start.expand(len(distinct), *start.shape[1:]).contiguous()
            end = self._start(start, distinct, 0)
            return replace(end.take(which), frozen=self.frozen)
        end = self._start(start, None, 0)

        # Views, not copies: freezing may be declined only by targets that depend on nothing
        # but the output, so that every sample has the same records and gradients here.
        def spread(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: t.expand_as(first.records[key]) for key, t in tensors.items()}

        output = end.output.expand(n_samples, *end.output.shape[1:])
        target = end.target.expand(n_samples)
        return Point(output, None, target, spread(end.records), spread(end.gradients))

    def _start(self, start: Tensor, frozen: Tensor | None, n_samples: int) -> Point:
        """Run a baseline of so many samples; 0 where it is that of all."""
        place = "at the baseline"
        return run_point(self.setup, start, frozen=frozen, place=place, n_samples=n_samples)


@dataclass(frozen=True, eq=False)
class LayerPath(Path):
    """The straight path of one site's activation; what bypasses the site stays as at the inputs.

    `after` runs what lies after the site. It remembers the batch as a whole, so that a pass
    costs as much for some samples, chosen by `rows`, as for all.
    """

    after: AfterSite
    rows: Tensor | None = None

    def take(self, rows: Tensor) -> "LayerPath":
        """Choose samples."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def at(self, alphas: Sequence[Alpha]) -> list[Point]:
        """Run points of the path in one pass."""
        whole, key = self.after.activation, self.after.site.key
        where = [self._for_all(alpha) for alpha in alphas]
        stacked = torch.cat([between(self.start, whole, alpha) for alpha in where])
        stacked.requires_grad_()
        with torch.inference_mode(False), torch.enable_grad(), frozen_parameters(self.after.model):
            output = self.after.run(stacked)
            value = self.setup.target.value(output, self._frozen(len(alphas)))
            check_finite(value, "the target", n_samples=len(whole))
            (gradient,) = torch.autograd.grad(value.sum(), (stacked,))
        records, gradients = {key: stacked.detach()}, {key: gradient}
        point = Point(output.detach(), None, value.detach(), records, gradients)
        points = point.split(len(whole))
        return points if self.rows is None else [p.take(self.rows) for p in points]

    def _for_all(self, alpha: Alpha) -> Alpha:
        if self.rows is None or not isinstance(alpha, Tensor):
            return alpha
        return alpha.new_ones(len(self.after.activation)).index_copy(0, self.rows, alpha)

    def end(self, first: Point) -> Point:
        """Run the point where the activation is that of the baseline."""
        return self.at((0.0,))[0]
