"""The axis words, and the array shapes written with them.

The words ``sample sign unit position channel y x token head mode label`` mean the same
thing in every signature of condec. Shapes are checked by jaxtyping in the tests only.
"""

import torch
from jaxtyping import Bool, Float, Int

SIGNS = ("positive", "negative")
"""Names along the ``sign`` axis, in storage order."""

PerSample = Float[torch.Tensor, " sample"]
SampleIndex = Int[torch.Tensor, " sample"]
RowIndex = Int[torch.Tensor, " row"]
"""One number for each of some rows of a matrix; of several rows a sample, their samples."""
Labels = Int[torch.Tensor, " sample"]
Mask = Bool[torch.Tensor, " sample"]

Activation = Float[torch.Tensor, "sample ..."]
SignedUnits = Float[torch.Tensor, "sample sign unit"]
UnitMatrix = Float[torch.Tensor, "sample unit"]

Atoms = Float[torch.Tensor, "mode unit"]
Atom = Float[torch.Tensor, " unit"]
Loadings = Float[torch.Tensor, "sample mode"]
ModeLabel = Float[torch.Tensor, "mode label"]
Membership = Bool[torch.Tensor, "sample label"]
