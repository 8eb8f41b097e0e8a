"""Targets: what about the output is to be explained, as one number a sample.

A target is a frozen option. `Target.freeze` is called once, on the output at the input
itself, and may fix what must not change along the path (the predicted class, the label);
`Target.value` is called at every step. Any function from the output to one number a sample
will do as well.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch

from condec.attribution.targets.base import Target, TargetLike, predictions, scores
from condec.attribution.targets.classes import Contrast, Label, Logit, Margin, Predicted, TopK
from condec.attribution.targets.custom import Custom, as_target
from condec.attribution.targets.outputs import Entropy, Sum, Surprisal
from condec.basis.errors import OptionError
from condec.basis.options import option_from_dict

__all__ = [
    "Contrast", "Custom", "Entropy", "Label", "Logit", "Margin", "Predicted", "Sum", "Surprisal",
    "Target", "TargetLike", "TopK", "as_target", "predictions", "scores", "target_from_dict",
]  # fmt: skip

_KNOWN: Final[dict[str, type[Target]]] = {
    kind.__name__: kind
    for kind in (TopK, Logit, Label, Predicted, Contrast, Margin, Entropy, Sum, Surprisal)
}


def target_from_dict(record: Mapping[str, Any]) -> Target:
    """Inverse of `Target.to_dict`.

    Raises
    ------
    OptionError
        No target has that name or those fields, or it is a function of the user's own, which
        a record does not hold.
    """
    name = record.get("name")
    if name == "Custom":
        raise OptionError(
            f"target Custom: the record holds the name of the function, "
            f"{record.get('function')!r}, and a digest; give the function itself in Python"
        )
    fields = dict(record)
    if name == "Surprisal":
        for key in ("mean", "precision"):
            given = record.get(key)
            fields[key] = None if given is None else torch.tensor(given, dtype=torch.float64)
    target: Target = option_from_dict("target", _KNOWN, {}, fields)
    return target
