"""Bootstrap: the same samples, drawn again, for all that is compared, and percentiles of them.

Row 0 of all resamples is the data as they are. Where several things see the same resamples,
their differences are paired.
"""

from typing import Final

import torch
from jaxtyping import Float, Int

LEVEL: Final = 0.95
"""Share of resamples within an interval."""


def resample_counts(
    groups: Int[torch.Tensor, " sample"] | int, n_bootstrap: int, seed: int
) -> Float[torch.Tensor, "resample sample"]:
    """Return how often every sample is in each resample; row 0 has all of them once.

    Within each group as many samples are drawn as it has. `groups` may be a number of samples,
    which are one group.
    """
    if isinstance(groups, int):
        groups = torch.zeros(groups, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.ones(1 + n_bootstrap, len(groups))
    for group in sorted(set(groups.tolist())):
        places = (groups == group).nonzero().flatten()
        shape = n_bootstrap, len(places)
        drawn = torch.randint(len(places), shape, generator=generator)
        counts[1:, places] = torch.zeros(shape).scatter_add_(1, drawn, torch.ones(shape))
    return counts


def interval(values: Float[torch.Tensor, "resample ..."]) -> Float[torch.Tensor, "bound ..."]:
    """Return the lower and upper bound by percentiles of the resamples, row 0 left out.

    NaN where there are none, or where row 0 is; resamples that are NaN are passed over.
    """
    tail = (1 - LEVEL) / 2
    if len(values) < 2:
        return torch.full((2, *values.shape[1:]), torch.nan, dtype=values.dtype)
    bounds = values[1:].nanquantile(torch.tensor([tail, 1 - tail], dtype=values.dtype), 0)
    return torch.where(values[0].isnan(), torch.nan, bounds)
