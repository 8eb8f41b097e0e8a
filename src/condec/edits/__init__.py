"""Edits: change what a network hands on at its sites, while a context lasts.

>>> import torch
>>> from condec.testing.models import small_resnet
>>> model, images = small_resnet(), torch.ones(2, 1, 5, 5)
>>> with edited(model, [Ablate("block1", units=[0, 3])]):
...     logits = model(images)
>>> torch.equal(logits, model(images))
False

A new edit is a frozen option behind the contract `Edit` (base.py), with an entry in the table
below. Hooks that write are registered in context.py, nowhere else. Imports network, attribution
and store; knows of no dictionary and no modes.
"""

from collections.abc import Mapping
from typing import Any

from condec.basis.options import option_from_dict
from condec.edits.attention import CutAttention
from condec.edits.baking import baked, save_baked
from condec.edits.base import Edit
from condec.edits.choice import choose_units, count_units
from condec.edits.context import edited
from condec.edits.directions import Corrupt, Patch, Project, Steer
from condec.edits.replacement import (
    Donors,
    Recorded,
    Replacement,
    Resample,
    record_activation,
    unit_means,
)
from condec.edits.units import Ablate, Preserve, Scale

__all__ = [
    "Ablate", "Corrupt", "CutAttention", "Donors", "Edit", "Patch", "Preserve", "Project",
    "Recorded", "Replacement", "Resample", "Scale", "Steer", "baked", "choose_units",
    "count_units", "edit_from_dict", "edited", "record_activation", "save_baked", "unit_means",
]  # fmt: skip

_EDITS: dict[str, type[Edit]] = {
    kind.__name__: kind
    for kind in (Ablate, Preserve, Scale, Steer, Corrupt, Project, Patch, CutAttention)
}


def edit_from_dict(record: Mapping[str, Any]) -> Edit:
    """Make an edit from its plain form, the inverse of `Edit.to_dict`.

    It is an OptionError where no edit has that name or those fields, or it holds a tensor.

    >>> edit_from_dict(Ablate("fc", units=[1]).to_dict()) == Ablate("fc", units=[1])
    True
    """
    edit: Edit = option_from_dict("edit", _EDITS, {}, record)
    return edit
