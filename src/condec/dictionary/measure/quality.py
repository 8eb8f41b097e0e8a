"""Quality of a dictionary on some rows: fit, sparsity, use of its modes, its atoms."""

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from condec.basis import metrics as measures
from condec.basis.errors import DataError
from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import Dictionary, as_matrix
from condec.dictionary.records import Quality

if TYPE_CHECKING:
    import pandas

_NAN: Final = float("nan")


def quality(dictionary: Dictionary, rows: UnitMatrix | np.ndarray) -> Quality:
    """Measure a dictionary on rows; take rows that it was not fitted to.

    Everything is worked out for data divided by the dictionary's scale, where the paper's R2
    is not bent by its epsilon. DataError where there are no rows, or of another width, or with
    entries that are not finite.

    Examples
    --------
    >>> from condec.dictionary import PCA, fit
    >>> matrix = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    >>> report = fit(PCA(2), matrix)
    >>> found = quality(report.dictionary, matrix[report.held_out_rows])
    >>> found.n_rows, found.l0, round(found.coherence, 4), round(found.effective_rank, 4)
    (8, 2.0, 0.0, 2.0)
    """
    matrix = _checked(rows, "quality")
    return quality_of(dictionary, matrix, dictionary.encode(matrix))


def mode_table(dictionary: Dictionary, rows: UnitMatrix | np.ndarray) -> "pandas.DataFrame":
    """Measure every mode of a dictionary on rows: a table of one row a mode.

    Columns: `mode`; `alive`, with a loading above 0 in a row; `density`, share of the rows in which
    its loading is not 0; `atom_hoyer`, Hoyer sparsity of its atom (NaN for an atom of zeros, or of
    one unit); `coherence`, largest absolute cosine of its atom with that of another mode that is
    alive (NaN for a dead one).
    """
    import pandas as pd

    loadings = dictionary.encode(_checked(rows, "mode_table"))
    alive, atoms = (loadings > 0).any(0).cpu(), dictionary.atoms.cpu()
    coherence = atoms.new_full((len(atoms),), _NAN)
    coherence[alive] = measures.atom_coherence(atoms[alive])
    return pd.DataFrame({
        "mode": range(len(alive)),
        "alive": alive.numpy(),
        "density": (loadings != 0).to(torch.float32).mean(0).cpu().numpy(),
        "atom_hoyer": _hoyer(atoms).numpy(),
        "coherence": coherence.numpy(),
    })  # fmt: skip


def quality_of(dictionary: Dictionary, matrix: UnitMatrix, loadings: Loadings) -> Quality:
    """Measure a dictionary on rows whose loadings are known."""
    x, xhat = matrix / dictionary.scale, dictionary.decode(loadings) / dictionary.scale
    alive = (loadings > 0).any(0).cpu()
    n_alive, n_modes = int(alive.sum()), len(alive)
    used = dictionary.atoms.cpu()[alive]
    coherence = measures.atom_coherence(used)
    known = coherence[~coherence.isnan()]
    return Quality(
        n_rows=len(matrix),
        r2=measures.r2(x, xhat),
        r2_grand=measures.r2_grand(x, xhat),
        cosine=float(measures.cosine(x, xhat).mean()),
        l0=float(measures.l0(loadings).double().mean()),
        n_alive=n_alive,
        dead_share=(n_modes - n_alive) / n_modes,
        shrinkage=_or_none(measures.shrinkage(x, xhat)),
        atom_hoyer=_or_none(float(_hoyer(used).double().nanmean())),
        loading_hoyer=_or_none(float(_hoyer(loadings).double().nanmean())),
        coherence=_or_none(float(known.max()) if len(known) else _NAN),
        mean_coherence=_or_none(measures.mean_coherence(used)),
        effective_rank=_or_none(
            measures.effective_rank(measures.unit_length(used, 1)) if n_alive else _NAN
        ),
    )


def _checked(rows: UnitMatrix | np.ndarray, who: str) -> UnitMatrix:
    matrix = as_matrix(rows, who)
    if not len(matrix):
        raise DataError(f"{who}: expected at least one row; got shape {tuple(matrix.shape)}")
    return matrix


def _hoyer(vectors: torch.Tensor) -> torch.Tensor:
    """Hoyer sparsity of rows; NaN for rows of zeros, and for all where they have one entry."""
    if vectors.shape[1] < 2:
        return vectors.new_full((len(vectors),), _NAN)
    return measures.hoyer(vectors, eps=0.0)


def _or_none(value: float) -> float | None:
    """Return None for an undefined value: it can be written as JSON, and is equal to itself."""
    return value if math.isfinite(value) else None
