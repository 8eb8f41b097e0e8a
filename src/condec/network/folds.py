"""Folds: another axis that a model folds into the batch, as frames, sentences or windows.

Where ``x.flatten(0, 1)`` of [sample, frame, ...] goes through a layer, that layer's activation
has several rows a sample. It is taken apart again here: [sample, fold, ...], and folds are
positions. That is right where the rows of a sample stand together, in the order of the samples,
which the proof of the model tries.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from condec.basis.errors import SiteError
from condec.network.units import Units


@dataclass(frozen=True)
class FoldedUnits(Units):
    """Units of an activation [sample, fold, ...]; without the axis of folds, as `Units`."""

    folds: ClassVar[int] = 1

    @staticmethod
    def of(units: Units) -> "FoldedUnits":
        """Lay units over folds."""
        return FoldedUnits(units.layout, units.n_heads, units.tokens)


def fold(tensor: Tensor) -> Tensor:
    """Fold [sample, fold, ...] into the batch, as the model has it."""
    return tensor.flatten(0, 1)


def unfold(tensor: Tensor, n_folds: int) -> Tensor:
    """Give folds an axis after that of the samples; where there is one a sample, none."""
    return tensor if n_folds == 1 else tensor.view(-1, n_folds, *tensor.shape[1:])


def count_folds(
    records: Mapping[str, Tensor], n_samples: int, *, allowed: Collection[str] = ()
) -> dict[str, int]:
    """Return the rows of a sample in every record; SiteError where there is no such number.

    More than one belongs to those `allowed`: where the order of rows is known, or does not count.
    """
    counts = {}
    for key, tensor in records.items():
        shape = tuple(tensor.shape)
        counts[key], rest = divmod(shape[0] if shape else 0, n_samples)
        if rest or not counts[key] or (counts[key] > 1 and key not in allowed):
            raise not_in_order(key, f"has shape {shape} for {n_samples} samples")
    return counts


def not_in_order(key: str, found: str) -> SiteError:
    """Return the error about a site where samples cannot be told apart."""
    return SiteError(
        f"{key}: expected an activation of shape [sample, ...], or several rows a sample that "
        f"stand together in the order of the samples; it {found}. "
        "Activations with the samples elsewhere (sequence first, parts of all samples one after "
        "the other) cannot be told apart; choose a site before or after"
    )
