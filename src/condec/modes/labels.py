"""Labels of samples, and their names."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import correlation_by_label, correlation_matrix
from condec.basis.shapes import Labels, Mask, Membership, ModeLabel
from condec.data.inputs import MOST_LABELS, UNLABELLED

_MANY_LABELS: Final = 4096
"""Labels from which no table of samples and labels is made."""


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
        return correlation_by_label(values[known], labels[known], int(labels.max()) + 1)
    return correlation_matrix(values[known], membership(labels)[known])


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
