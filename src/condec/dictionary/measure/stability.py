"""Stability of modes: over seeds, and over halves of the data."""

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import matched_cosine
from condec.basis.records import short_repr
from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import (
    ROWS_AT_ONCE,
    Dictionary,
    Learner,
    as_matrix,
    samples_of,
    with_samples,
)  # fmt: skip
from condec.dictionary.fitting.many import Job, fit_many
from condec.dictionary.fitting.rows import StoredRows, count_samples, rows_of
from condec.dictionary.fitting.train import DeadModesWarning, FitReport
from condec.dictionary.measure.rivals import known_report
from condec.dictionary.records import TrainConfig

if TYPE_CHECKING:
    import pandas

LEAST_SEEDS: Final = 5
"""Fits that a statement about seeds takes."""


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class Stability:
    """Likeness of fits of several seeds, and of either half of the data.

    All numbers are of the modes of the first fit, `reports[0]`: the cosine of each with its
    partner in another fit, by the one-to-one matching of alive modes that makes the sum of cosines
    largest; 0 where the other fit has no mode left, NaN for modes that are dead in the first.

    `reports` and `seeds` are of fits to the same rows. Of shape [mode], `seed_cosine` is the mean
    over the fits of other seeds, `half_cosine` over a fit of either half of the rows, each with a
    seed of its own, and `chance` as `seed_cosine` with the entries of each of the other fits' atoms
    permuted. `between_halves` is the mean cosine of the modes of the two halves' fits.
    """

    reports: tuple[FitReport, ...]
    seeds: tuple[int, ...]
    seed_cosine: Float[torch.Tensor, " mode"]
    half_cosine: Float[torch.Tensor, " mode"]
    chance: Float[torch.Tensor, " mode"]
    between_halves: float

    def stable(self, threshold: float = 0.9) -> Int[torch.Tensor, " stable"]:
        """Modes of the first fit, ascending, whose two cosines are at least the threshold."""
        found = (self.seed_cosine >= threshold) & (self.half_cosine >= threshold)
        return found.nonzero().flatten()

    def table(self) -> "pandas.DataFrame":
        """One row a mode: `mode`, `seed_cosine`, `half_cosine`, `chance`."""
        import pandas as pd

        columns = {n: getattr(self, n).numpy() for n in ("seed_cosine", "half_cosine", "chance")}
        return pd.DataFrame({"mode": range(len(self.seed_cosine)), **columns})


def stability(
    learner: Learner, matrix: UnitMatrix | np.ndarray, *, seeds: int | Sequence[int] = LEAST_SEEDS,
    config: TrainConfig | None = None, fitted: Dictionary | None = None,
) -> Stability:  # fmt: skip
    """Fit again with other seeds and on either half of the rows, and match the modes.

    A learner that starts from the data alone (`PCA`, and `NMF` as scikit-learn starts it)
    gives the same for every seed: then only the halves say something.

    Parameters
    ----------
    learner, matrix : as in `fit`
    seeds : int or sequence of int
        How many, from ``config.seed`` on, or which; at least 5. The split is that of `config`.
    config : TrainConfig, optional
    fitted : Dictionary, optional
        Result of `fit` with this learner, matrix, config and the first seed, if at hand: it is
        not fitted again, and the numbers are of its modes.

    Raises
    ------
    OptionError, DataError
        Fewer than five different seeds; fewer than four rows, or `fitted` to others; else as `fit`.

    Examples
    --------
    >>> from condec.dictionary import PCA
    >>> rows = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    >>> found = stability(PCA(2), rows * torch.tensor([4.0, 2.0, 1.0]))
    >>> round(float(found.seed_cosine.mean()), 4), found.stable().tolist()
    (1.0, [0, 1])
    """
    config = config or TrainConfig()
    chosen = _seeds(seeds, config)
    rows = as_matrix(matrix, "stability")
    if len(rows) < 4:
        raise DataError(f"stability: at least 4 rows make two halves; got {len(rows)}")
    known = [] if fitted is None else [known_report(fitted, len(rows), "stability")]
    generator = torch.Generator().manual_seed(config.split_seed)
    order, samples = torch.randperm(count_samples(rows), generator=generator), samples_of(rows)
    with warnings.catch_warnings():
        # Dead modes are NaN here: no need to say so once for every fit.
        warnings.simplefilter("ignore", DeadModesWarning)
        every = [(rows, seed) for seed in chosen[len(known) :]]
        for part, seed in zip(order.tensor_split(2), chosen[1:], strict=False):
            half = rows_of(rows, part)
            some = None if samples is None else samples[half]
            every.append((with_samples(rows[half], some), seed))
        jobs = {
            str(number): Job(learner, some, config=dataclasses.replace(config, seed=seed))
            for number, (some, seed) in enumerate(every)
        }
        found = known + list(fit_many(jobs).values())
    reports = tuple(found[: len(chosen)])
    alive = [alive_modes(report.dictionary, rows) for report in found]
    used = [report.dictionary.atoms[a] for report, a in zip(found, alive, strict=True)]
    first, others, parts = alive[0], used[1 : len(chosen)], used[len(chosen) :]
    generator = torch.Generator().manual_seed(config.seed)
    places = [torch.rand(other.shape, generator=generator).argsort(1) for other in others]
    permuted = [other.gather(1, order) for other, order in zip(others, places, strict=True)]
    atoms = reports[0].dictionary.atoms
    return Stability(
        reports=reports, seeds=chosen, seed_cosine=_mean_cosine(atoms, first, others),
        half_cosine=_mean_cosine(atoms, first, parts), chance=_mean_cosine(atoms, first, permuted),
        between_halves=float(matched_cosine(*parts).nan_to_num(0.0).mean()),
    )  # fmt: skip


def alive_modes(
    dictionary: Dictionary, rows: UnitMatrix | StoredRows
) -> Bool[torch.Tensor, " mode"]:
    """Mark modes with a loading above 0 in at least one row of a tensor, or of stored rows."""
    alive = torch.zeros(dictionary.n_modes, dtype=torch.bool)
    blocks = [rows] if isinstance(rows, Tensor) else map(rows.read, range(len(rows.blocks)))
    for block in blocks:
        for part in torch.split(block, ROWS_AT_ONCE):
            alive |= (dictionary.encode(part) > 0).any(0).cpu()
    return alive


def seed_agreement(atoms: Sequence[Float[torch.Tensor, "_ unit"]]) -> Float[torch.Tensor, " fit"]:
    """Average how well the modes of every fit are found in the others, as `Stability` does.

    `atoms` [mode, unit] are those of the alive modes of at least two fits that differ in their
    seed. A mode for which another fit has none left counts 0; NaN for a fit without modes.

    >>> seed_agreement([torch.eye(3), 2 * torch.eye(3).flip(0), torch.eye(3)[:2]])
    tensor([0.8333, 0.8333, 1.0000])
    """
    if len(atoms) < 2:
        raise OptionError(f"seed_agreement: at least two fits are compared; got {len(atoms)}")
    sums = torch.zeros(len(atoms))
    # The matching is the same from either side, so that every pair is matched once.
    for (i, one), (j, other) in itertools.combinations(enumerate(atoms), 2):
        if len(one) and len(other):
            sums[[i, j]] += matched_cosine(one, other).nansum().cpu()
    return sums / torch.tensor([len(each) or torch.nan for each in atoms]) / (len(atoms) - 1)


def _seeds(seeds: int | Sequence[int], config: TrainConfig) -> tuple[int, ...]:
    every = range(config.seed, config.seed + seeds) if isinstance(seeds, int) else seeds
    chosen = tuple(every)
    if len(set(chosen)) < max(LEAST_SEEDS, len(chosen)):
        raise OptionError(
            f"stability: seeds must be at least {LEAST_SEEDS}, all different; got {seeds}"
        )
    return chosen


def _mean_cosine(atoms: Tensor, alive: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Average the cosine of every alive atom with its partners; NaN for dead ones."""
    mean = atoms.new_full((len(atoms),), float("nan"))
    matched = [matched_cosine(atoms[alive], other).nan_to_num(0.0) for other in others]
    mean[alive] = torch.stack(matched).mean(0)
    return mean
