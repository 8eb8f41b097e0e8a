"""What can be said of a dictionary on some rows: fit, sparsity, use of its modes, its atoms."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import (
    atom_coherence,
    cosine,
    effective_rank,
    hoyer,
    l0,
    mean_coherence,
    r2,
    r2_grand,
    shrinkage,
    unit_length,
)
from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import Dictionary, as_matrix
from condec.dictionary.records import DictionaryMetrics

if TYPE_CHECKING:
    import pandas

DENSITY_BINS: Final = tuple(-5.0 + 0.5 * step for step in range(11))
"""Edges of the density histogram, in powers of ten: from 1 row of 100,000 to every row."""
_NAN: Final = float("nan")


@dataclass(frozen=True, eq=False, kw_only=True)
class Quality:
    """Numbers of a dictionary on some rows.

    Those of atoms are over modes that are alive on these rows: atoms that nothing uses are
    left as they were drawn, and would speak for the initial values.

    Attributes
    ----------
    n_rows : int
    r2 : float
        Share of the variance within units explained (`condec.basis.metrics.r2`).
    r2_grand : float
        The paper's R2, against one mean for all entries (`condec.basis.metrics.r2_grand`).
    cosine : float
        Mean over rows of the cosine between row and reconstruction.
    shrinkage : float
        Mean over rows of the reconstruction's length relative to the row's.
    l0 : float
        Mean number of loadings that are not 0.
    loading_hoyer : float
        Mean over rows of the Hoyer sparsity of the loadings; rows without any are left out.
    mean_coherence : float
        Mean absolute cosine between two different atoms.
    effective_rank : float
        Directions that the atoms use, each of length 1 (`condec.basis.metrics.effective_rank`).
    alive : Bool tensor of shape [mode]
        Modes with a loading above 0 in at least one row.
    density : Tensor of shape [mode]
        Share of the rows in which a mode's loading is not 0.
    atom_hoyer : Tensor of shape [mode]
        Hoyer sparsity of every atom; NaN for an atom of zeros, or of one unit.
    coherence : Tensor of shape [mode]
        Largest absolute cosine of an atom with another one; NaN for dead modes.
    """

    n_rows: int
    r2: float
    r2_grand: float
    cosine: float
    shrinkage: float
    l0: float
    loading_hoyer: float
    mean_coherence: float
    effective_rank: float
    alive: Bool[torch.Tensor, " mode"]
    density: Float[torch.Tensor, " mode"]
    atom_hoyer: Float[torch.Tensor, " mode"]
    coherence: Float[torch.Tensor, " mode"]

    @property
    def n_alive(self) -> int:
        """Number of modes that are alive on these rows."""
        return int(self.alive.sum())

    @property
    def n_dead(self) -> int:
        """Number of modes that are not."""
        return len(self.alive) - self.n_alive

    @property
    def dead_share(self) -> float:
        """Share of the modes that are not."""
        return self.n_dead / len(self.alive)

    @property
    def mean_atom_hoyer(self) -> float:
        """Mean Hoyer sparsity of the atoms of alive modes."""
        return float(self.atom_hoyer[self.alive].double().nanmean())

    @property
    def max_coherence(self) -> float:
        """Coherence: the largest absolute cosine between two different atoms."""
        known = self.coherence[~self.coherence.isnan()]
        return float(known.max()) if len(known) else _NAN

    def density_histogram(self) -> "pandas.DataFrame":
        """Number of modes by density: `log10_from`, `log10_to` and `n_modes` of every bin.

        Half a power of ten each; the first holds what is rarer, too. Modes of density 0 are
        in none.
        """
        import pandas as pd

        # Rounded: a hundredth in float32 is just below -2.
        used = self.density[self.density > 0].double().log10().round(decimals=6)
        edges = torch.tensor(DENSITY_BINS, dtype=torch.float64)
        # A density that is an edge belongs to the bin above it; 1 to the last bin.
        place = torch.bucketize(used, edges[1:-1], right=True)
        counts = torch.bincount(place, minlength=len(edges) - 1)
        return pd.DataFrame({
            "log10_from": DENSITY_BINS[:-1],
            "log10_to": DENSITY_BINS[1:],
            "n_modes": counts.numpy(),
        })  # fmt: skip

    def table(self) -> "pandas.DataFrame":
        """One row a mode: `mode`, `alive`, `density`, `atom_hoyer`, `coherence`."""
        import pandas as pd

        return pd.DataFrame({
            "mode": range(len(self.alive)),
            "alive": self.alive.numpy(),
            "density": self.density.numpy(),
            "atom_hoyer": self.atom_hoyer.numpy(),
            "coherence": self.coherence.numpy(),
        })  # fmt: skip

    def metrics(self) -> DictionaryMetrics:
        """The numbers that are one for the whole dictionary, as `FitReport` has them."""
        return DictionaryMetrics(
            n_rows=self.n_rows,
            r2=self.r2,
            r2_grand=self.r2_grand,
            cosine=self.cosine,
            l0=self.l0,
            n_alive=self.n_alive,
            dead_share=self.dead_share,
            shrinkage=_or_none(self.shrinkage),
            atom_hoyer=_or_none(self.mean_atom_hoyer),
            loading_hoyer=_or_none(self.loading_hoyer),
            coherence=_or_none(self.max_coherence),
            mean_coherence=_or_none(self.mean_coherence),
            effective_rank=_or_none(self.effective_rank),
        )


def quality(dictionary: Dictionary, rows: UnitMatrix | np.ndarray) -> Quality:
    """Measure a dictionary on rows; take rows that it was not fitted to.

    Everything is worked out for data divided by the dictionary's scale, where the paper's R2
    is not bent by its epsilon.

    Parameters
    ----------
    dictionary : Dictionary
    rows : Tensor of shape [sample, unit]

    Raises
    ------
    DataError
        No rows, of another width, or with entries that are not finite.

    Examples
    --------
    >>> from condec.dictionary import PCA, fit
    >>> matrix = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    >>> report = fit(PCA(2), matrix)
    >>> found = quality(report.dictionary, matrix[report.held_out_rows])
    >>> found.n_rows, found.l0, round(found.max_coherence, 4), round(found.effective_rank, 4)
    (8, 2.0, 0.0, 2.0)
    """
    matrix = as_matrix(rows, "quality")
    if not len(matrix):
        raise DataError(f"quality: expected at least one row; got shape {tuple(matrix.shape)}")
    loadings = dictionary.encode(matrix)
    x, xhat = matrix / dictionary.scale, dictionary.decode(loadings) / dictionary.scale
    alive = (loadings > 0).any(0).cpu()
    atoms = dictionary.atoms.cpu()
    coherence = atoms.new_full((len(atoms),), _NAN)
    coherence[alive] = atom_coherence(atoms[alive])
    wide = dictionary.n_units > 1
    return Quality(
        n_rows=len(matrix),
        r2=r2(x, xhat),
        r2_grand=r2_grand(x, xhat),
        cosine=float(cosine(x, xhat).mean()),
        shrinkage=shrinkage(x, xhat),
        l0=float(l0(loadings).double().mean()),
        loading_hoyer=_loading_hoyer(loadings),
        mean_coherence=mean_coherence(atoms[alive]),
        effective_rank=effective_rank(unit_length(atoms[alive], 1)) if bool(alive.any()) else _NAN,
        alive=alive,
        density=(loadings != 0).to(torch.float32).mean(0).cpu(),
        atom_hoyer=hoyer(atoms, eps=0.0) if wide else atoms.new_full((len(atoms),), _NAN),
        coherence=coherence,
    )


def _loading_hoyer(loadings: Tensor) -> float:
    if loadings.shape[1] < 2:
        return _NAN
    # NaN where a row has no loading at all.
    return float(hoyer(loadings, eps=0.0).double().nanmean())


def _or_none(value: float) -> float | None:
    """None for what is not defined: it can be written as JSON, and is equal to itself."""
    return value if math.isfinite(value) else None
