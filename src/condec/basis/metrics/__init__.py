"""Pure numbers from tensors: sparsity, dimensions, correlation, reconstruction, matching.

Nothing here knows of sites, stores or dictionaries. Inputs are never modified, half
precision is computed in float32, and a NaN among the inputs comes out as NaN: it is never
replaced by a number. Formulas are those of Melander et al. 2026 (CODEC) where it has one.

>>> import torch
>>> hoyer(torch.tensor([0.0, 0.0, 0.0, 2.0])).round(decimals=4)
tensor(1.)
>>> participation_ratio(torch.tensor([1.0, 1.0, 1.0, 1.0]))
tensor(4.)
"""

from condec.basis.metrics.atoms import atom_coherence, matched_cosine, mean_coherence
from condec.basis.metrics.matrices import effective_rank, pca_dimensions, r2, r2_grand, shrinkage
from condec.basis.metrics.vectors import (
    auc,
    correlation_matrix,
    cosine,
    hoyer,
    l0,
    participation_ratio,
    pearson,
    unit_length,
)

__all__ = [
    "atom_coherence",
    "auc",
    "correlation_matrix",
    "cosine",
    "effective_rank",
    "hoyer",
    "l0",
    "matched_cosine",
    "mean_coherence",
    "participation_ratio",
    "pca_dimensions",
    "pearson",
    "r2",
    "r2_grand",
    "shrinkage",
    "unit_length",
]
