"""Intervals of means over samples and labels, and of areas under curves, by the bootstrap."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.bootstrap import interval, resample_counts


def interval_of_means(
    values: Float[torch.Tensor, "row sample"], *, n_bootstrap: int, seed: int
) -> Float[torch.Tensor, "bound row"]:
    """Return the interval of the mean over samples; all rows see the same resamples."""
    n_samples = values.shape[1]
    if not n_samples:
        return torch.full((2, len(values)), torch.nan, dtype=torch.float64)
    counts = resample_counts(n_samples, n_bootstrap, seed).double()
    return interval(counts @ values.double().T / n_samples)


def mean_over_labels(
    values: Float[torch.Tensor, "label ..."], *, n_bootstrap: int = 1000, seed: int = 0
) -> Float[torch.Tensor, "bound ..."]:
    """Return mean over labels, lower and upper bound, [3, ...]: 95 %, labels drawn again.

    NaN, where a label has no value, is passed over; bounds are NaN with a single label.
    """
    n_labels, values = len(values), values.double()
    weights = draw_weights(n_labels, n_bootstrap if n_labels > 1 else 0, seed)
    flat = values.reshape(n_labels, -1)
    # Means of those that are not NaN; NaN where all are.
    means = (weights @ flat.nan_to_num()) / (weights @ (~flat.isnan()).double())
    means = means.view(-1, *values.shape[1:])
    return torch.cat([means[:1], interval(means)])


def mean_of_resampled(
    values: Float[torch.Tensor, "label resample"], seed: int
) -> Float[torch.Tensor, " bound"]:
    """Return the mean over labels and its interval: images and labels drawn again together."""
    if not len(values):
        return torch.full((3,), torch.nan, dtype=torch.float64)
    weights = draw_weights(len(values), values.shape[1] - 1, seed).T * ~values.isnan()
    means = (weights * values.nan_to_num()).sum(0) / weights.sum(0)
    return torch.cat([means[:1], interval(means)])


def draw_weights(n: int, n_bootstrap: int, seed: int) -> Float[torch.Tensor, "resample draw"]:
    """Return the share of each of n draws in every resample."""
    return resample_counts(n, n_bootstrap, seed).double() / n


def selectivity(
    relative: Float[torch.Tensor, "of resample fraction"], fractions: Sequence[float]
) -> Float[torch.Tensor, " resample"]:
    r"""Return :math:`(A_\text{target} - A_\text{off}) / A_\text{off}` with areas by trapezoids.

    NaN with fewer than two fractions, or no area off-target.
    """
    if len(fractions) < 2:
        return torch.full((relative.shape[1],), torch.nan, dtype=torch.float64)
    target, off = _areas(relative, fractions)
    return (target - off) / torch.where(off > 0, off, torch.nan)


def lead(
    relative: Float[torch.Tensor, "of resample fraction"], fractions: Sequence[float]
) -> Float[torch.Tensor, " resample"]:
    """Return the mean of off-target minus target accuracy over the fractions, by trapezoids."""
    target, off = _areas(relative, fractions)
    return (off - target) / (fractions[-1] - fractions[0])


def _areas(relative: Tensor, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
    target, off = torch.trapezoid(relative, torch.tensor(fractions, dtype=torch.float64), dim=-1)
    return target, off
