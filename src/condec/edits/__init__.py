"""Edits: change what a network hands on at its sites, and see what the output does.

An edit is a frozen option that says where and what. `edited` puts edits into a model for the
time of a context:

>>> import torch
>>> from condec.testing.models import small_resnet
>>> model, images = small_resnet(), torch.ones(2, 1, 5, 5)
>>> with edited(model, [Ablate("block1", units=[0, 3])]):
...     logits = model(images)
>>> torch.equal(logits, model(images))
False

- units: `Ablate` replaces some, `Preserve` all others, `Scale` turns them up or down;
- directions: `Steer` adds along one, `Corrupt` adds noise along it, `Project` removes some;
- other inputs: `Patch` puts in what they have, units or along a direction;
- attention: `CutAttention` keeps tokens from reading others.

This is the only part of condec that registers hooks to write.
"""

from collections.abc import Mapping
from typing import Any

from condec.basis.options import option_from_dict
from condec.edits.attention import CutAttention
from condec.edits.baking import baked, save_baked
from condec.edits.base import Edit
from condec.edits.choice import choose_units
from condec.edits.context import edited
from condec.edits.directions import Corrupt, Project, Steer
from condec.edits.patch import Patch
from condec.edits.units import Ablate, Preserve, Scale
from condec.edits.values import (
    Recorded,
    Replacement,
    Resample,
    Values,
    record_activation,
    unit_means,
)

__all__ = [
    "Ablate", "Corrupt", "CutAttention", "Edit", "Patch", "Preserve", "Project", "Recorded",
    "Replacement", "Resample", "Scale", "Steer", "Values", "baked", "choose_units",
    "edit_from_dict", "edited", "record_activation", "save_baked", "unit_means",
]  # fmt: skip

_EDITS: dict[str, type[Edit]] = {
    kind.__name__: kind
    for kind in (Ablate, Preserve, Scale, Steer, Corrupt, Project, Patch, CutAttention)
}


def edit_from_dict(record: Mapping[str, Any]) -> Edit:
    """Inverse of `Edit.to_dict`.

    Raises
    ------
    OptionError
        No edit has that name or those fields, or it holds a tensor, of which the plain form
        has the digest only.

    Examples
    --------
    >>> edit_from_dict(Ablate("fc", units=[1]).to_dict()) == Ablate("fc", units=[1])
    True
    """
    edit: Edit = option_from_dict("edit", _EDITS, {}, record)
    return edit
