"""Classical factorisations of scikit-learn behind the contract of dictionaries."""

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from condec.dictionary.base import Learned, Learner, OnEpoch, TrainConfig
from condec.errors import DataError, OptionError
from condec.shapes import Loadings, UnitMatrix


@final
@dataclass(frozen=True, slots=True)
class NMF(Learner):
    r"""Non-negative matrix factorisation: :math:`X \approx Z D` with Z and D not negative.

    Coordinate descent on the squared error (`sklearn.decomposition.NMF`), in float64. The
    data must not be negative: take ``sign="positive"``, or the negated negative part.

    Parameters
    ----------
    n_modes : int
    max_iter : int
        Passes of coordinate descent at most; scikit-learn warns where they do not suffice.

    Raises
    ------
    OptionError
        A number below 1.
    """

    n_modes: int
    max_iter: int = 1000

    def __post_init__(self) -> None:
        _at_least_one(self, "n_modes", "max_iter")

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse negative entries, and fewer rows than modes."""
        _not_negative(matrix, "fit")
        _enough_rows(self, matrix)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Atoms by alternating coordinate descent."""
        import sklearn.decomposition

        model = sklearn.decomposition.NMF(
            self.n_modes, max_iter=self.max_iter, random_state=config.seed
        )
        model.fit(_numpy(matrix))
        return Learned({"atoms": _tensor(model.components_)}, config)

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Loadings of least squared error that are not negative, from a start at 0."""
        from sklearn.decomposition import non_negative_factorization

        _not_negative(matrix, "encode")
        if not len(matrix):
            return matrix.new_zeros(0, self.n_modes)
        loadings, _, _ = non_negative_factorization(
            _numpy(matrix),
            H=_numpy(tensors["atoms"]),
            n_components=self.n_modes,
            update_H=False,
            # The stopping rule looks at all rows at once: far below what float32 shows, so
            # that the company of a row does not matter.
            tol=1e-8,
            max_iter=10 * self.max_iter,
        )
        return _tensor(loadings).to(matrix.device)


@final
@dataclass(frozen=True, slots=True)
class PCA(Learner):
    r"""Principal components: :math:`X \approx Z D + \bar x`, atoms orthonormal before scaling.

    `sklearn.decomposition.PCA` by a full singular value decomposition, without whitening. The
    mean of the training rows is the dictionary's `offset`; loadings may be negative.

    Parameters
    ----------
    n_modes : int
        At most the number of training rows and of units.

    Raises
    ------
    OptionError
        A number below 1.
    """

    n_modes: int

    def __post_init__(self) -> None:
        _at_least_one(self, "n_modes")

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse more modes than training rows or units."""
        if self.n_modes > min(matrix.shape):
            raise DataError(
                f"PCA: {self.n_modes} modes are more than {matrix.shape[0]} training rows of "
                f"{matrix.shape[1]} units can have; take at most {min(matrix.shape)}"
            )

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Directions of largest variance."""
        import sklearn.decomposition

        model = sklearn.decomposition.PCA(self.n_modes, svd_solver="full", random_state=config.seed)
        model.fit(_numpy(matrix))
        return Learned(
            {"atoms": _tensor(model.components_), "offset": _tensor(model.mean_)}, config
        )

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Projection of the rows, less the mean."""
        return (matrix - tensors["offset"]) @ tensors["atoms"].T


@final
@dataclass(frozen=True, slots=True)
class KMeans(Learner):
    """Clusters of rows: atoms are their centres, loadings 1 for the nearest and 0 otherwise.

    `sklearn.cluster.KMeans` by Lloyd's algorithm. Loadings do not scale with the size of a
    row: a row is replaced by the centre of its cluster.

    Parameters
    ----------
    n_modes : int
        At most the number of different training rows.
    n_starts : int
        Runs from different starts, of which the best is kept.

    Raises
    ------
    OptionError
        A number below 1.
    """

    n_modes: int
    n_starts: int = 4

    def __post_init__(self) -> None:
        _at_least_one(self, "n_modes", "n_starts")

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse fewer rows than modes."""
        _enough_rows(self, matrix)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Centres of the best of several runs."""
        import sklearn.cluster
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        model = sklearn.cluster.KMeans(self.n_modes, n_init=self.n_starts, random_state=config.seed)
        # More than one thread sums in any order: the same seed would not be the same answer.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(_numpy(matrix))
            except ConvergenceWarning as error:
                raise DataError(
                    f"KMeans: {self.n_modes} modes are more than the training rows that differ "
                    f"({error}); take fewer modes"
                ) from error
        return Learned({"atoms": _tensor(model.cluster_centers_)}, config)

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """One-hot membership in the cluster of the nearest centre."""
        nearest = torch.cdist(matrix, tensors["atoms"]).argmin(1)
        return torch.nn.functional.one_hot(nearest, self.n_modes).to(torch.float32)


def _numpy(matrix: Tensor) -> np.ndarray:
    return matrix.cpu().to(torch.float64).numpy()


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _at_least_one(learner: Learner, *names: str) -> None:
    for name in names:
        value = getattr(learner, name)
        try:
            operator.index(value)
        except TypeError as error:
            raise OptionError(
                f"{type(learner).__name__}: {name} must be a whole number; got {value!r}"
            ) from error
        if value < 1:
            raise OptionError(f"{type(learner).__name__}: {name} must be at least 1; got {value}")


def _enough_rows(learner: Learner, matrix: Tensor) -> None:
    if len(matrix) < learner.n_modes:
        raise DataError(
            f"{type(learner).__name__}: {learner.n_modes} modes need at least as many training "
            f"rows; got {len(matrix)}. Take fewer modes, more samples, or hold out less."
        )


def _not_negative(matrix: Tensor, who: str) -> None:
    if len(matrix) and bool((matrix < 0).any()):
        raise DataError(
            f"NMF: {who}: entries must not be negative; the lowest is {float(matrix.min()):.6g} "
            "(scaled). Take sign='positive', the negated negative part, or another learner."
        )
