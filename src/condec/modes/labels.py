"""Labels of samples, and their names."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import correlation_by_label, correlation_matrix, in_columns
from condec.basis.shapes import Labels, Mask, Membership, ModeLabel
from condec.data.inputs import MOST_LABELS, UNLABELLED

_MANY_LABELS: Final = 4096
"""Labels from which no table of samples and labels is made."""
_WIDE: Final = 1.959964
"""Standard errors on either side in a 95 % interval."""


def membership(labels: Labels, n_labels: int | None = None) -> Membership:
    """Make the indicator of each label: entry (s, l) is True where sample s carries label l.

    Parameters
    ----------
    labels : Tensor of shape [sample]
        int64; negative where a sample has no label: its row is all False.
    n_labels : int, optional
        By default one more than the largest label.

    Returns
    -------
    Tensor of shape [sample, label], bool

    Raises
    ------
    DataError
        No sample has a label, or a label is not below `n_labels`.

    Examples
    --------
    >>> membership(torch.tensor([1, 0, -1])).tolist()
    [[False, True], [True, False], [False, False]]
    """
    check_any(labels)
    top = int(labels.max())
    n_labels = min(MOST_LABELS, top + 1 if n_labels is None else n_labels)
    if top >= n_labels:
        raise DataError(f"label {top} is out of range; expected 0 to {n_labels - 1}")
    return labels[:, None] == torch.arange(n_labels, device=labels.device)


def check_any(labels: Labels) -> None:
    """Raise DataError where no sample has a label."""
    if not bool((labels >= 0).any()):
        raise DataError(
            f"labels missing: none of {len(labels)} samples has one, and classes are needed here; "
            "collect from data with labels"
        )


def label_correlation(values: Tensor, labels: Labels, rows: Mask) -> ModeLabel:
    """Correlate columns of `values`, [sample, mode], with the indicator of each label, on rows.

    Samples without label are left out. Raises DataError: no sample has a label.
    """
    known = rows & (labels >= 0)
    if bool((labels >= _MANY_LABELS).any()):
        n_labels, given = int(labels.max()) + 1, labels[known]
        parts = (correlation_by_label(some[known], given, n_labels) for some in in_columns(values))
    else:
        member = membership(labels)[known]
        parts = (correlation_matrix(some[known], member) for some in in_columns(values))
    return torch.cat(list(parts))


def correlation_interval(
    values: Tensor, labels: Labels, rows: Mask, chosen: Tensor
) -> Float[Tensor, "bound mode rank"]:
    r"""Return 95 % intervals of `label_correlation`, for some labels of each column.

    Of no assumed distribution: with standardised loading :math:`u` and indicator :math:`v`, r has
    the variance :math:`\overline{(uv - r (u^2 + v^2) / 2)^2} / n` for large n (Steiger & Hakstian
    1982), taken to Fisher's scale :math:`\operatorname{artanh} r` for the bounds.

    `chosen`, [mode, rank], are labels. Returns [bound, mode, rank]: low and high, NaN where a
    column or a label does not vary on the rows.
    """
    known = rows & (labels >= 0)
    x, given = values[known].double(), labels[known]
    counts = torch.bincount(given, minlength=int(chosen.max()) + 1).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    powers = [torch.ones_like(x), x, x**2, x**3, x**4]
    whole = torch.stack([one.sum(0) for one in powers])
    some, place = torch.unique(chosen, return_inverse=True)
    at = torch.full((len(counts),), -1).index_put((some,), torch.arange(len(some)))[given]
    blank, has = x.new_zeros(len(some), x.shape[1]), at >= 0
    mine = torch.stack([blank.index_add(0, at[has], one[has]) for one in powers])
    own = mine[:, place, torch.arange(x.shape[1])[:, None]]  # [power, mode, rank]
    n, share = len(x), counts[chosen] / len(x)
    size = (share * (1 - share)).sqrt()
    r = own[1] / (n * size)
    r = r.clamp(-1, 1)
    variance = torch.zeros_like(r)
    for sums, v in ((own, (1 - share) / size), (whole[:, :, None] - own, -share / size)):
        # (uv - r u^2/2 - r v^2/2)^2, a polynomial in u where v is one number
        a, b, c = -r / 2, v, -r * v**2 / 2
        parts = (c**2, 2 * b * c, b**2 + 2 * a * c, 2 * a * b, a**2)
        variance += sum(part * sums[power] for power, part in enumerate(parts))
    error = (variance / n**2).clamp(min=0).sqrt() / (1 - r**2)
    return torch.stack([(r.atanh() + turn * _WIDE * error).tanh() for turn in (-1, 1)])


def label_name(names: Sequence[str] | None, label: int) -> str:
    """Return the name of a label, or its number where labels have no names."""
    return str(label) if names is None or label >= len(names) else names[label]


def check_labels(labels: Tensor, n_samples: int) -> Labels:
    """Convert labels to int64, one for each sample; NaN, as tables have it, means unlabelled.

    Raises DataError: another number of labels than samples, or labels that are no whole numbers.
    """
    if labels.is_floating_point():
        whole = labels.nan_to_num(UNLABELLED)
        # Infinite and broken numbers stay as they are, and are refused below.
        labels = whole.to(torch.int64) if bool((whole == whole.to(torch.int64)).all()) else labels
    if labels.shape != (n_samples,) or labels.is_floating_point():
        raise DataError(
            f"labels: expected whole numbers of shape ({n_samples},); got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    return labels.to(torch.int64)
