"""The held-out samples on which effects are measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.data import Inputs, as_inputs
from condec.modes import Modes


@short_repr
@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out rows of the data (`indices` of `inputs`) with their labels. Made by `held_out`."""

    inputs: Inputs
    indices: list[int]
    labels: Int[torch.Tensor, " sample"]

    def __len__(self) -> int:
        return len(self.indices)

    def of(self, labels: Sequence[int]) -> "HeldOut":
        """Return the samples of some labels."""
        chosen = torch.isin(self.labels, torch.tensor(list(labels)))
        places = chosen.nonzero().flatten().tolist()
        return replace(self, indices=[self.indices[i] for i in places], labels=self.labels[chosen])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels, `size` samples at a time; every input is loaded once."""
        for start in range(0, len(self.indices), size):
            part = slice(start, start + size)
            yield self.inputs.batch(self.indices[part]), self.labels[part]


def held_out(data: Any, modes: Modes, who: str = "control_curve") -> HeldOut:
    """Find the labelled held-out rows of modes in the data that were collected, by id.

    Without labels or held-out rows, or for other data, it is a DataError, beginning with `who`.
    """
    inputs, store = as_inputs(data), modes.store
    if not bool((store.labels >= 0).any()):
        raise DataError(
            f"{who}: labels missing: no sample of {store.path} has one; collect "
            "contributions from data with labels"
        )
    rows = (modes.held_out & (store.labels >= 0)).nonzero().flatten()
    if not len(rows):
        raise DataError(
            f"{who}: {modes.site.key}: no labelled rows are held out; split rows off when "
            "fitting (TrainConfig(held_out=0.2)) and hand them to Modes.build"
        )
    wanted, labels = [store.sample_ids[row] for row in rows.tolist()], store.labels[rows]
    of = f"of {len(wanted)} held-out samples of {store.path}"
    indices = inputs.indices_of(wanted, who=f"{who}: the data", of=of)
    given = labels if inputs.labels is None else inputs.labels[torch.tensor(indices)]
    other = (given != labels).nonzero().flatten().tolist()
    if other:
        first = other[0]
        raise DataError(
            f"{who}: {len(other)} samples have another label in the data than in the "
            f"store; the first is {wanted[first]}: {int(given[first])} in the data, "
            f"{int(labels[first])} in the store. Give the data that were collected."
        )
    return HeldOut(inputs, indices, labels)


def labels_of(samples: HeldOut, modes: Modes, wanted: Sequence[int] | None, who: str) -> list[int]:
    """Return the labels to measure: those wanted, or all with training and held-out rows."""
    training = set(modes.store.labels[~modes.held_out].tolist())
    both = sorted(training & set(samples.labels.tolist()))
    if not both:
        raise DataError(f"{who}: no label has both training and held-out rows; use another split")
    if wanted is None:
        return both
    wanted = list(dict.fromkeys(int(label) for label in wanted))
    without = [label for label in wanted if label not in both]
    if without:
        raise DataError(
            f"{who}: labels {without[:5]} have no training row or no held-out row; those "
            f"with both: {both[:10]}{', ...' if len(both) > 10 else ''}"
        )
    return wanted
