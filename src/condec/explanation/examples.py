"""Which inputs of a store are worth a look, by how they use the modes of a site."""

from typing import Final, Literal, get_args

import torch

from condec.basis.checks import at_least, one_of
from condec.explanation.leading import descending
from condec.modes import Modes

ExampleKind = Literal["typical", "misclassified", "outlying"]
EXAMPLES: Final[tuple[ExampleKind, ...]] = get_args(ExampleKind)


def example_rows(modes: Modes, kind: ExampleKind, n: int = 2) -> list[int]:
    """Choose inputs of the modes' store.

    The distance of an input is that of its loadings from their mean over its class, relative to the
    length of that mean. Its class is its label, or, where the store has no labels, the prediction;
    inputs without are left out, unless all are: they are one class then.

    ``typical`` inputs are those of least distance, one of a class at most, that use some mode and
    are classified rightly; ``outlying`` ones those of largest distance; ``misclassified`` are those
    whose prediction is not their label, the ones with the highest target first.

    Parameters
    ----------
    modes : Modes
    kind : {"typical", "misclassified", "outlying"}
    n : int
        At most so many.

    Returns
    -------
    list of int
        Rows of ``modes.loadings``.
    """
    one_of("example_rows", "kind", kind, ExampleKind)
    at_least("example_rows", 1, n=n)
    store, loadings = modes.store, modes.loadings.double()
    labels, predictions = store.labels, store.predictions
    classes = 1 + (labels if bool((labels >= 0).any()) else predictions)  # 0: of none
    wrong = (labels >= 0) & (predictions >= 0) & (labels != predictions)
    if kind == "misclassified":
        return [row for row in descending(store.target.double()) if wrong[row]][:n]
    counts = classes.bincount()[:, None]
    sums = loadings.new_zeros(len(counts), loadings.shape[1]).index_add_(0, classes, loadings)
    means = (sums / counts.clamp(min=1))[classes]
    away = (loadings - means).norm(dim=1) / means.norm(dim=1).clamp(min=torch.finfo().tiny)
    known = (classes > 0) | (len(counts) == 1)
    if kind == "outlying":
        return [row for row in descending(away) if known[row]][:n]
    right = known & ~wrong & (loadings > 0).any(1)
    first: dict[int, int] = {}
    for row in descending(-away):
        if right[row]:
            first.setdefault(int(classes[row]), row)
    return list(first.values())[:n]
