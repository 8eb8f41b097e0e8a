"""Edits: change what a network hands on at its sites, while a context lasts.

>>> import torch
>>> from condec.testing.models import small_resnet
>>> model, images = small_resnet(), torch.ones(2, 1, 5, 5)
>>> with edited(model, [Ablate("block1", units=[0, 3])]):
...     logits = model(images)
>>> torch.equal(logits, model(images))
False

A new edit is a frozen option behind the contract `Edit` (base.py). Hooks that write are registered
in context.py, nowhere else. Imports network, attribution and store; knows of no dictionary and no
modes.
"""

from condec.edits.attention import CutAttention
from condec.edits.baking import baked
from condec.edits.base import Edit
from condec.edits.context import edited
from condec.edits.directions import Patch, Project, Steer
from condec.edits.erasure import Erase, erasure
from condec.edits.replacement import Donors, Replacement, record_activation, unit_means
from condec.edits.units import Ablate, Preserve, Scale, count_units

__all__ = [
    "Ablate", "CutAttention", "Donors", "Edit", "Erase", "Patch", "Preserve", "Project",
    "Replacement", "Scale", "Steer", "baked", "count_units", "edited", "erasure",
    "record_activation", "unit_means",
]  # fmt: skip
