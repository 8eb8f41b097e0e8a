"""What is taken out of rows before a dictionary is fitted to them, and put back in decoding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from condec.dictionary.records import Scaling
from condec.errors import DataError
from condec.shapes import Atom, UnitMatrix

CENTRE: Final = "prepared_centre"
UNIT_SCALE: Final = "prepared_unit_scale"


@dataclass(frozen=True, eq=False)
class Preparation:
    r"""Rows become :math:`x' = (x / s - c) \oslash u`; decoding undoes it.

    Attributes
    ----------
    scale : float
        s: standard deviation of all entries; 1 where nothing is scaled.
    centre : Tensor of shape [unit], optional
        c: mean of every unit, of rows divided by s.
    unit_scale : Tensor of shape [unit], optional
        u: standard deviation of every unit, of rows divided by s; 1 for units that do not vary.
    """

    scale: float
    centre: Atom | None = None
    unit_scale: Atom | None = None

    @classmethod
    def fitted(cls, train: UnitMatrix, scaling: Scaling, centre: bool) -> "Preparation":
        """Worked out from training rows alone.

        Raises
        ------
        DataError
            Constant rows, or a spread that float32 cannot hold.
        """
        if bool((train == train[0]).all()):
            raise DataError(
                f"fit: the matrix is constant: all {len(train)} training rows are the same, so "
                "there is nothing to learn. Take another site, quantity or sign."
            )
        wide = train.to(torch.float64)
        mean = wide.mean(0)
        scale = float((wide - mean).square().mean().sqrt() if centre else wide.std(correction=0))
        if not torch.finfo(torch.float32).tiny <= scale <= torch.finfo(torch.float32).max:
            raise DataError(
                f"fit: the standard deviation of the training rows, {scale:g}, is outside what "
                "float32 can hold; multiply the matrix by a constant"
            )
        scale = 1.0 if scaling == "none" else scale
        spread = None
        if scaling == "unit":
            spread = wide.std(0, correction=0) / scale
            spread = torch.where(spread > 0, spread, torch.ones_like(spread)).to(torch.float32)
        return cls(scale, (mean / scale).to(torch.float32) if centre else None, spread)

    @classmethod
    def of(cls, scale: float, tensors: Mapping[str, Tensor]) -> "Preparation":
        """As saved with a dictionary."""
        return cls(scale, tensors.get(CENTRE), tensors.get(UNIT_SCALE))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is saved beside the scale, on the CPU; empty for the default preparation."""
        both = {CENTRE: self.centre, UNIT_SCALE: self.unit_scale}
        return {name: value.cpu() for name, value in both.items() if value is not None}

    def apply(self, rows: Tensor) -> Tensor:
        """Prepared rows."""
        rows = rows / self.scale
        if self.centre is not None:
            rows = rows - self.centre
        return rows if self.unit_scale is None else rows / self.unit_scale

    def restore_size(self, rows: Tensor) -> Tensor:
        """Differences of prepared rows, such as atoms, in the data's units."""
        return (rows if self.unit_scale is None else rows * self.unit_scale) * self.scale

    def restore(self, rows: Tensor) -> Tensor:
        """Inverse of `apply`."""
        rows = rows if self.unit_scale is None else rows * self.unit_scale
        return (rows if self.centre is None else rows + self.centre) * self.scale
