"""Preparation: scale and centre are taken out of rows before a fit, and put back in decoding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.basis.shapes import Atom, UnitMatrix
from condec.dictionary.records import Scaling

_CENTRE: Final = "prepared_centre"
_UNIT_SCALE: Final = "prepared_unit_scale"


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean, sum of squared deviations from it (float64) and extremes of every unit over rows."""

    n_rows: int
    mean: Atom
    m2: Atom
    low: Atom
    high: Atom

    @classmethod
    def of(cls, rows: UnitMatrix) -> "Moments":
        """Measure at least one row."""
        wide = rows.to(torch.float64)
        mean = wide.mean(0)
        low, high = rows.aminmax(dim=0)
        return cls(len(rows), mean, (wide - mean).square().sum(0), low, high)

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of the rows of both (Chan, Golub & LeVeque 1983)."""
        n_rows = self.n_rows + other.n_rows
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.n_rows / n_rows)
        m2 = self.m2 + other.m2 + apart.square() * (self.n_rows * other.n_rows / n_rows)
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Moments(n_rows, mean, m2, low, high)


@short_repr
@dataclass(frozen=True, eq=False)
class Preparation:
    r"""Rows become :math:`x' = (x / s - c) \oslash u`; decoding undoes it.

    `scale` s is the standard deviation of all entries, 1 where nothing is scaled; `centre` c the
    mean of every unit of rows divided by s; `unit_scale` u their standard deviation, 1 for units
    that do not vary.
    """

    scale: float
    centre: Atom | None = None
    unit_scale: Atom | None = None

    @classmethod
    def fitted(cls, moments: Moments, scaling: Scaling, centre: bool) -> "Preparation":
        """Work it out from the moments of training rows.

        DataError where they are constant, or have a spread that float32 cannot hold.
        """
        if bool((moments.low == moments.high).all()):
            raise DataError(
                f"fit: the matrix is constant: all {moments.n_rows} training rows are the same, so "
                "there is nothing to learn. Take another site, quantity or sign."
            )
        mean, variance = moments.mean, moments.m2 / moments.n_rows
        within = float(variance.mean())
        between = 0.0 if centre else float((mean - mean.mean()).square().mean())
        scale = math.sqrt(within + between)
        if not torch.finfo(torch.float32).tiny <= scale <= torch.finfo(torch.float32).max:
            raise DataError(
                f"fit: the standard deviation of the training rows, {scale:g}, is outside what "
                "float32 can hold; multiply the matrix by a constant"
            )
        scale = 1.0 if scaling == "none" else scale
        spread = None
        if scaling == "unit":
            varies = moments.low < moments.high
            spread = torch.where(varies, variance.sqrt() / scale, 1.0).to(torch.float32)
        return cls(scale, (mean / scale).to(torch.float32) if centre else None, spread)

    @classmethod
    def of(cls, scale: float, tensors: Mapping[str, Tensor]) -> "Preparation":
        """Read it from the tensors of a dictionary."""
        return cls(scale, tensors.get(_CENTRE), tensors.get(_UNIT_SCALE))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors saved with a dictionary, on the CPU; none for the default preparation."""
        both = {_CENTRE: self.centre, _UNIT_SCALE: self.unit_scale}
        return {name: value.cpu() for name, value in both.items() if value is not None}

    def apply(self, rows: Tensor) -> Tensor:
        """Prepare rows."""
        rows = rows / self.scale
        if self.centre is not None:
            rows = rows - self.centre
        return rows if self.unit_scale is None else rows / self.unit_scale

    def restore_size(self, rows: Tensor) -> Tensor:
        """Convert differences of prepared rows, such as atoms, to the data's units."""
        return (rows if self.unit_scale is None else rows * self.unit_scale) * self.scale

    def restore(self, rows: Tensor) -> Tensor:
        """Invert `apply`."""
        rows = rows if self.unit_scale is None else rows * self.unit_scale
        return (rows if self.centre is None else rows + self.centre) * self.scale
