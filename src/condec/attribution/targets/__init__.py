"""Targets: what about the output is to be explained, as one number a sample.

A target is a frozen option. `Target.freeze` is called once, on the output at the input
itself, and may fix what must not change along the path (the predicted class, the label);
`Target.value` is called at every step. Any function from the output to one number a sample
will do as well.
"""

from condec.attribution.targets.base import Target, TargetLike, predictions, scores
from condec.attribution.targets.classes import Contrast, Label, Logit, Margin, Predicted, TopK
from condec.attribution.targets.custom import Custom, as_target
from condec.attribution.targets.outputs import Entropy, Sum, Surprisal
from condec.attribution.targets.texts import TARGETS, target_from_dict

__all__ = [
    "TARGETS", "Contrast", "Custom", "Entropy", "Label", "Logit", "Margin", "Predicted", "Sum",
    "Surprisal", "Target", "TargetLike", "TopK", "as_target", "predictions", "scores",
    "target_from_dict",
]  # fmt: skip
