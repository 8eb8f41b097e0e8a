"""Methods of attribution: what they are given, and what they return."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from condec.attribution.baselines import Baseline
from condec.attribution.targets import Target
from condec.basis.errors import DataError
from condec.basis.options import Option
from condec.basis.records import short_repr
from condec.basis.shapes import PerSample, SampleIndex
from condec.network import BatchSizes, FoldedUnits, Site, Tape, Units, unfold, units_of

if TYPE_CHECKING:
    import condec.data


@short_repr
@dataclass(frozen=True, eq=False)
class Setup:
    """One batch, and what is asked about it: references, nothing is copied.

    The model is in evaluation mode; inputs [sample, ...] are on its device and in its type.
    `units` are those of the sites, by key, as `condec.network.survey_sites` finds them; where
    several rows of an activation belong to a sample, they are `condec.network.FoldedUnits`.
    Passes are of `sizes` that the model takes, as its proof found.
    """

    model: nn.Module
    inputs: Tensor
    sites: tuple[Site, ...]
    target: Target
    labels: Tensor | None = None
    units: Mapping[str, Units] = field(default_factory=dict)
    sizes: BatchSizes = field(default_factory=BatchSizes)

    @property
    def few(self) -> Tensor:
        """The fewest of the inputs that the model takes."""
        return self.sizes.few(self.inputs)

    def units_at(self, site: Site, activation: Tensor) -> Units:
        """Return the units of a site's activation [sample, ...]."""
        return self.units.get(site.key) or units_of(site, activation)

    def folded(self) -> list[str]:
        """Return the keys of sites where several rows belong to a sample."""
        return [key for key, units in self.units.items() if isinstance(units, FoldedUnits)]

    def read(
        self, tape: Tape, scalar: Tensor, n_folds: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what a pass is asked for: records [sample, ...], and gradients there."""
        gradients = tape.gradients(scalar)
        records, gradients = (
            {key: unfold(tensor.detach(), n_folds[key]) for key, tensor in each.items()}
            for each in (tape.records, gradients)
        )
        return records, gradients


@short_repr
@dataclass(frozen=True, eq=False)
class Attribution:
    """Contributions of one batch at several sites, as the method left them.

    Contributions (in the unit of the target) and activations have the shape of the activation,
    and stand by site key in execution order; the rest is as in `Contributions`.
    """

    contribution: dict[str, Tensor]
    activation: dict[str, Tensor]
    output: Tensor
    target: PerSample
    target_baseline: PerSample
    steps: SampleIndex | None = None


def without_baseline(
    contribution: dict[str, Tensor], activation: dict[str, Tensor], output: Tensor, target: Tensor
) -> Attribution:
    """Record the contributions of a method that has no baseline."""
    unknown = torch.full_like(target, torch.nan)
    return Attribution(contribution, activation, output, target, unknown)


class Method(Option, ABC):
    """A way to attribute a target to hidden units."""

    __slots__ = ()

    @property
    @abstractmethod
    def n_passes(self) -> int:
        """Forward and backward passes a batch costs; the most, where that depends on it."""

    @property
    def n_kept(self) -> int:
        """Points of a path, besides two, whose records and gradients are kept for a batch."""
        return 0

    @property
    def least_samples(self) -> int:
        """Samples that every batch must have at least."""
        return 1

    @abstractmethod
    def attribute(self, setup: Setup) -> Attribution:
        """Attribute the target of one batch to all entries of the activations at the sites.

        Errors are those of `contribute`.
        """

    @property
    def is_fitted(self) -> bool:
        """Tell whether baselines and methods inside need nothing more from a data set."""
        return all(part.is_fitted for part in self._inside().values())

    def fit(self, data: "condec.data.Inputs") -> "Method":
        """Take what baselines and methods inside need from a data set; itself if nothing."""
        fitted = {name: part.fit(data) for name, part in self._inside().items()}
        return replace(self, **fitted) if fitted else self  # type: ignore[type-var]

    def for_model(self, model: nn.Module) -> "Method":
        """Take the baselines that a model has in the place of those that are named."""
        inside = {name: part.for_model(model) for name, part in self._inside().items()}
        return replace(self, **inside) if inside else self  # type: ignore[type-var]

    def _inside(self) -> "dict[str, Baseline | Method]":
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: v for name, v in values.items() if isinstance(v, Baseline | Method)}


def check_finite(values: Tensor, what: str, why: str = "", *, n_samples: int | None = None) -> None:
    """Raise DataError naming the samples whose value is NaN or infinite.

    Where there are several values a sample, one after the other, `n_samples` is their number; 0
    where they belong to no samples.
    """
    wrong = (~values.detach().isfinite()).nonzero().flatten().tolist()
    if not wrong:
        return
    which = ""
    if n_samples != 0:
        n_samples = n_samples or len(values)
        wrong = sorted({row % n_samples for row in wrong})
        which = f" for {len(wrong)} of {n_samples} samples of the batch (first: {wrong[:5]})"
    error = DataError(
        f"{what} is not finite{which}; look at {why or 'these inputs'}, or at a model that "
        "overflows in its precision"
    )
    error.samples = () if n_samples == 0 else tuple(wrong)
    raise error
