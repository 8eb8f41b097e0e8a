"""Outputs under each of many edits, as numbers of every sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.effects.passes import Edits, Passes
from condec.effects.samples import HeldOut
from condec.network import proof_of, refuse_training

__all__ = ["Edits", "Measured", "measure"]


@short_repr
@dataclass(frozen=True, eq=False)
class Measured:
    """Outputs of a network under each of several sets of edits, [edit, sample].

    Attributes
    ----------
    labels : Tensor of shape [sample]
    predicted, rank : Tensor of shape [edit, sample], int64
        The label with the largest output; how many outputs are above the own label's.
    logit, probability, entropy : Tensor of shape [edit, sample]
        Output of the sample's own label, its softmax; entropy of the softmax over all, in nats.
    target_logit, target_probability : Tensor of shape [edit, sample]
        Of the label that is followed under that edit, on all samples; NaN where none is.
    """

    labels: Int[torch.Tensor, " sample"]
    predicted: Int[torch.Tensor, "edit sample"]
    rank: Int[torch.Tensor, "edit sample"]
    logit: Float[torch.Tensor, "edit sample"]
    probability: Float[torch.Tensor, "edit sample"]
    entropy: Float[torch.Tensor, "edit sample"]
    target_logit: Float[torch.Tensor, "edit sample"]
    target_probability: Float[torch.Tensor, "edit sample"]

    @property
    def right(self) -> Bool[torch.Tensor, "edit sample"]:
        """Samples whose own label is predicted."""
        return self.predicted == self.labels


def measure(
    model: nn.Module, samples: HeldOut, edits: Sequence[Edits], *,
    targets: Sequence[int | None] | None = None, batch_size: int = 64, prove: bool = True,
) -> Measured:  # fmt: skip
    """Run held-out samples under many edits.

    Sets of edits that begin at the same place share what lies before it (docs/how-to/control.md).
    Numbers are those of a whole pass for every set of edits, up to the rounding of another batch
    size.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; its output is [sample, label].
    samples : HeldOut
    edits : sequence of tuples of Edit
        Those of a tuple act together; ``()`` is the network as it is.
    targets : sequence of int or None, optional
        For every set of edits the label to follow on all samples.
    batch_size : int
        Samples that pass the model together. Memory holds one batch of them.
    prove : bool
        Try on the first batch whether outputs belong to single samples (`condec.prove`).

    Raises
    ------
    OptionError, ModelError
        Bad edits or targets; a model in training mode, not proven, or of another output.
    """
    refuse_training(model)
    targets = [None] * len(edits) if targets is None else list(targets)
    if not edits or len(targets) != len(edits):
        raise OptionError(
            f"measure: expected edits, and one target for each; got {len(edits)} edits and "
            f"{len(targets)} targets"
        )
    passes = Passes(model, edits)
    parts: list[dict[str, Tensor]] = []
    for inputs, labels in samples.batches(batch_size):
        found, inputs = {}, prepare_inputs(model, inputs)
        if prove and not parts:
            proof_of(model, inputs, ()).demand()
        for number, output in passes.outputs(inputs):
            samples.inputs.check_outputs(output.shape[1])
            found[number] = _numbers(output, labels, targets[number])
        in_order = [found[number] for number in range(len(edits))]
        parts.append({name: torch.stack([f[name] for f in in_order]).cpu() for name in in_order[0]})
    whole = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    return Measured(labels=samples.labels, **whole)


def _numbers(output: Tensor, labels: Tensor, target: int | None) -> dict[str, Tensor]:
    """Return the fields of `Measured` for one batch under one set of edits."""
    n_labels = output.shape[1]
    if target is not None and not 0 <= target < n_labels:
        raise OptionError(
            f"measure: target {target} is out of range; labels are 0 to {n_labels - 1}"
        )
    output = output.float()
    # Labels that the model does not have keep a place of their own: none of its outputs.
    known = (labels < n_labels).to(output.device)
    own = labels.to(output.device).clamp(max=n_labels - 1)[:, None]
    log_probability = output.log_softmax(1)
    probability = log_probability.exp()
    logit = output.gather(1, own)
    nothing = torch.full_like(logit[:, 0], torch.nan)
    return {
        "predicted": output.argmax(1),
        "rank": torch.where(known, (output > logit).sum(1), n_labels),
        "logit": torch.where(known, logit[:, 0], nothing),
        "probability": torch.where(known, probability.gather(1, own)[:, 0], 0.0),
        "entropy": -(probability * log_probability.nan_to_num(neginf=0.0)).sum(1),
        "target_logit": nothing if target is None else output[:, target],
        "target_probability": nothing if target is None else probability[:, target],
    }
