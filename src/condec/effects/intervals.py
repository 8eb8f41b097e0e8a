"""Bootstrap intervals of control curves: the same images, drawn again, for all that is compared.

A resample draws, within every label, as many images as there are. All points, rankings and
labels see the same resamples, so that their differences are paired. Row 0 of everything here
is the data as they are; the other rows are resamples.
"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEVEL: Final = 0.95
"""Share of resamples within an interval."""


def image_counts(
    labels: Int[torch.Tensor, " sample"], n_bootstrap: int, seed: int
) -> Float[torch.Tensor, "resample sample"]:
    """How often every image is in each resample; row 0 has all of them once.

    Parameters
    ----------
    labels : Tensor of shape [sample]
        Images are drawn again within each label, so that none is ever without images.
    n_bootstrap, seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.ones(1 + n_bootstrap, len(labels))
    for label in sorted(set(labels.tolist())):
        places = (labels == label).nonzero().flatten()
        counts[1:, places] = _drawn_again(n_bootstrap, len(places), generator)
    return counts


def draw_weights(n_draws: int, n_bootstrap: int, seed: int) -> Float[torch.Tensor, "resample draw"]:
    """Weights of random draws of units, which are drawn again as well; rows add up to 1."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.ones(1 + n_bootstrap, n_draws, dtype=torch.float64)
    counts[1:] = _drawn_again(n_bootstrap, n_draws, generator).double()
    return counts / n_draws


class Resampled:
    """Numbers of images that are right under every edit, in every resample.

    Parameters
    ----------
    right : Tensor of shape [edit, sample], bool
        Edit 0 is the network as it is.
    labels : Tensor of shape [sample]
    n_bootstrap, seed : int
    """

    def __init__(
        self,
        right: Bool[torch.Tensor, "edit sample"],
        labels: Int[torch.Tensor, " sample"],
        *,
        n_bootstrap: int,
        seed: int,
    ) -> None:
        self._right, self._labels = right.float(), labels
        self._counts = image_counts(labels, n_bootstrap, seed)
        self._all = self._right @ self._counts.T
        self._of: dict[int, Tensor] = {}
        self._n_bootstrap, self._seed = n_bootstrap, seed

    def relative(
        self, numbers: Int[torch.Tensor, "fraction draw"], label: int, off: int | None
    ) -> Float[torch.Tensor, "of resample fraction"]:
        """Accuracy relative to the unedited network's, of target and off-target; means of draws.

        Parameters
        ----------
        numbers : Tensor of shape [fraction, draw]
            The edits.
        label : int
            The target.
        off : int, or None
            Off-target: another label, or all others.

        Returns
        -------
        Tensor of shape [2, resample, fraction]
            NaN where the unedited network gets nothing right.
        """
        target = self._sums(label)
        others = self._all - target if off is None else self._sums(off)
        right = torch.stack([target, others]).double()
        unedited = right[:, 0]
        # Nothing right without an edit: no ratio, rather than one that is infinite.
        unedited = torch.where(unedited > 0, unedited, torch.nan)
        ratio = right[:, numbers] / unedited[:, None, None]  # [of, fraction, draw, resample]
        weights = draw_weights(numbers.shape[1], self._n_bootstrap, self._seed)
        return torch.einsum("ofdr,rd->orf", ratio, weights)

    def _sums(self, label: int) -> Tensor:
        if label not in self._of:
            mine = self._labels == label
            self._of[label] = self._right[:, mine] @ self._counts[:, mine].T
        return self._of[label]


def selectivity(
    relative: Float[torch.Tensor, "of resample fraction"], fractions: Sequence[float]
) -> Float[torch.Tensor, " resample"]:
    r""":math:`(A_\text{target} - A_\text{off}) / A_\text{off}` with areas by the trapezoid rule.

    NaN with fewer than two fractions, or no area off-target.
    """
    if len(fractions) < 2:
        return torch.full((relative.shape[1],), torch.nan, dtype=torch.float64)
    x = torch.tensor(fractions, dtype=torch.float64)
    target, off = torch.trapezoid(relative, x, dim=-1).unbind()
    return (target - off) / torch.where(off > 0, off, torch.nan)


def lead(
    relative: Float[torch.Tensor, "of resample fraction"], fractions: Sequence[float]
) -> Float[torch.Tensor, " resample"]:
    """Mean of off-target minus target accuracy over the fractions, by the trapezoid rule."""
    x = torch.tensor(fractions, dtype=torch.float64)
    target, off = torch.trapezoid(relative, x, dim=-1).unbind()
    return (off - target) / (x[-1] - x[0])


def interval(values: Float[torch.Tensor, "resample ..."]) -> Float[torch.Tensor, "bound ..."]:
    """Lower and upper bound by percentiles of the resamples, row 0 left out.

    NaN where there are none, or where the value itself (row 0) is not defined; resamples in
    which it is not are passed over.
    """
    tail = (1 - LEVEL) / 2
    if len(values) < 2:
        return torch.full((2, *values.shape[1:]), torch.nan, dtype=values.dtype)
    bounds = values[1:].nanquantile(torch.tensor([tail, 1 - tail], dtype=values.dtype), 0)
    return torch.where(values[0].isnan(), torch.nan, bounds)


def _drawn_again(n_rows: int, size: int, generator: torch.Generator) -> Tensor:
    """How often each of `size` things is among as many draws of them, `n_rows` times."""
    drawn = torch.randint(size, (n_rows, size), generator=generator)
    return torch.zeros(n_rows, size).scatter_add_(1, drawn, torch.ones(n_rows, size))
