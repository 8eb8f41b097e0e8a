"""Classical factorisations of scikit-learn behind the contract of dictionaries.

All options are checked when they are made: a number outside its range is an OptionError.
"""

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import Learner, Parameters
from condec.dictionary.fitting.descent import SMALL_STEP
from condec.dictionary.records import Learned, OnEpoch, TrainConfig


class Classical(Learner):
    """Base of factorisations: needs as many rows as modes, or also as many units."""

    __slots__ = ()
    of_rank: ClassVar[bool] = False
    """Whether modes are directions, of which there are no more than units."""
    estimator: ClassVar[str]
    """Class in `sklearn`."""
    kept: ClassVar[Mapping[str, str]] = {"atoms": "components_"}
    """Attributes of the fitted estimator by the tensors that they become."""
    one_thread: ClassVar[bool] = True
    """Whether more threads would sum in any order: the same seed would not be the same answer.
    Few products take one thread in any case."""
    tells: ClassVar[bool] = False
    """Whether scikit-learn warns where `max_iter` passes do not suffice."""

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse more modes than training rows, or units, can have."""
        name = type(self).__name__
        if self.of_rank and self.n_modes > min(matrix.shape):
            raise DataError(
                f"{name}: {self.n_modes} modes are more than {matrix.shape[0]} training rows of "
                f"{matrix.shape[1]} units can have; take at most {min(matrix.shape)}"
            )
        if len(matrix) < self.n_modes:
            raise DataError(
                f"{name}: {self.n_modes} modes need at least as many training rows; got "
                f"{len(matrix)}. Take fewer modes, more samples, or hold out less."
            )

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Fit scikit-learn's estimator to the rows, in float64."""
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        module, name = self.estimator.split(".")
        kind, rows = getattr(import_module(f"sklearn.{module}"), name), _numpy(matrix)
        options = self._options(config, matrix.shape[1])
        few = rows.size * self.n_modes < SMALL_STEP
        with threadpool_limits(1 if self.one_thread or few else None), warnings.catch_warnings():
            if self.tells:
                warnings.simplefilter("ignore", ConvergenceWarning)
            model = kind(self.n_modes, random_state=config.seed, **options).fit(rows)
            found = self._found(model, rows)
        if self.tells and model.n_iter_ >= options["max_iter"]:
            warnings.warn(
                f"{type(self).__name__}: not at its end after {model.n_iter_} passes: modes may "
                "change with more. Set max_iter higher ([fit] of a run.toml)",
                stacklevel=2,
            )
        return Learned({name: _tensor(values) for name, values in found.items()}, config)

    def _options(self, config: TrainConfig, n_units: int) -> dict[str, Any]:
        """Return options of the estimator."""
        return {}

    def _found(self, model: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: getattr(model, attribute) for name, attribute in self.kept.items()}


@final
@dataclass(frozen=True, slots=True)
class NMF(Classical):
    r"""Non-negative matrix factorisation: :math:`X \approx Z D` with Z not negative.

    Coordinate descent on the squared error (`sklearn.decomposition.NMF`), in float64, at most
    `max_iter` passes; a warning says where they do not suffice. The sizes of the entries are
    factored; D has their signs. So all entries of a unit must have one sign, as in matrices of
    every sign but ``"sum"``.
    """

    estimator: ClassVar[str] = "decomposition.NMF"
    tells: ClassVar[bool] = True
    one_thread: ClassVar[bool] = False
    rules: ClassVar[Mapping[str, str]] = {"max_iter": "count"}
    max_iter: int = 1000

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse units with entries of both signs, and fewer rows than modes."""
        _one_sign(matrix, matrix, "fit")
        Classical.check(self, matrix)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Factor the sizes of the entries, and give atoms their signs."""
        found = Classical.learn(self, matrix.abs(), config, on_epoch)
        signs = torch.where((matrix < 0).any(0), -1.0, 1.0).cpu()
        return Learned({"atoms": found.tensors["atoms"] * signs}, found.config)

    def _options(self, config: TrainConfig, n_units: int) -> dict[str, Any]:
        return {"max_iter": self.max_iter}

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Find the loadings of least squared error that are not negative, exact for every row."""
        from scipy.optimize import nnls
        from sklearn.decomposition import non_negative_factorization

        _one_sign(matrix, tensors["atoms"], "encode")
        atoms, loadings = _numpy(tensors["atoms"].abs()), np.zeros((len(matrix), self.n_modes))
        for place, row in enumerate(_numpy(matrix.abs())):
            try:  # By the active set method (Lawson and Hanson 1974).
                loadings[place] = nnls(atoms.T, row)[0]
            except RuntimeError:
                # More atoms than units can send it round in circles: then by coordinate descent.
                loadings[place] = non_negative_factorization(
                    row[None], H=atoms, n_components=len(atoms), update_H=False, tol=1e-8,
                    max_iter=10 * self.max_iter,
                )[0][0]  # fmt: skip
        return _tensor(loadings).to(matrix.device)


@final
@dataclass(frozen=True, slots=True)
class PCA(Classical):
    r"""Principal components: :math:`X \approx Z D + \bar x`, atoms orthonormal before scaling.

    `sklearn.decomposition.PCA` by a full singular value decomposition, without whitening. The
    mean of the training rows is the dictionary's `offset`; loadings may be negative. `n_modes`
    is at most the number of training rows and of units.
    """

    of_rank: ClassVar[bool] = True
    estimator: ClassVar[str] = "decomposition.PCA"
    kept: ClassVar[Mapping[str, str]] = {"atoms": "components_", "offset": "mean_"}
    one_thread: ClassVar[bool] = False

    def _options(self, config: TrainConfig, n_units: int) -> dict[str, Any]:
        return {"svd_solver": "full"}

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Project the rows, less the mean."""
        return (matrix - tensors["offset"]) @ tensors["atoms"].T


@final
@dataclass(frozen=True, slots=True)
class KMeans(Classical):
    """Clusters of rows: atoms are their centres, loadings 1 for the nearest and 0 otherwise.

    `sklearn.cluster.KMeans` by Lloyd's algorithm, the best of `n_starts` runs. Loadings do not
    scale with the size of a row: a row is replaced by the centre of its cluster. `n_modes` is at
    most the number of different training rows.
    """

    estimator: ClassVar[str] = "cluster.KMeans"
    kept: ClassVar[Mapping[str, str]] = {"atoms": "cluster_centers_"}
    rules: ClassVar[Mapping[str, str]] = {"n_starts": "count"}
    n_starts: int = 4

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Find the centres of the best of several runs."""
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                return Classical.learn(self, matrix, config, on_epoch)
            except ConvergenceWarning as error:
                raise DataError(
                    f"KMeans: {self.n_modes} modes are more than the training rows that differ "
                    f"({error}); take fewer modes"
                ) from error

    def _options(self, config: TrainConfig, n_units: int) -> dict[str, Any]:
        return {"n_init": self.n_starts}

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Mark the nearest centre of every row."""
        # Pair by pair: a matrix product would round a row differently in other company.
        exact = "donot_use_mm_for_euclid_dist"
        nearest = torch.cdist(matrix, tensors["atoms"], compute_mode=exact).argmin(1)
        return torch.nn.functional.one_hot(nearest, self.n_modes).to(torch.float32)


@final
@dataclass(frozen=True, slots=True)
class FastICA(Classical):
    r"""Independent components: :math:`X \approx Z D + \bar x` with loadings far from normal.

    `sklearn.decomposition.FastICA` (parallel, log cosh, at most `max_iter` iterations) on whitened
    rows; loadings of the training rows have variance 1. A component and its atom may both change
    sign: they are turned so that the mean cube of the loadings is positive, which makes the long
    tail, the samples that a mode is about, positive. Loadings are centred, so many are below 0.
    `n_modes` is at most the number of training rows and of units.
    """

    of_rank: ClassVar[bool] = True
    estimator: ClassVar[str] = "decomposition.FastICA"
    tells: ClassVar[bool] = True
    rules: ClassVar[Mapping[str, str]] = {"max_iter": "count"}
    max_iter: int = 1000

    def _options(self, config: TrainConfig, n_units: int) -> dict[str, Any]:
        return {"whiten": "unit-variance", "max_iter": self.max_iter}

    def _found(self, model: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
        sign = np.where((model.transform(rows) ** 3).mean(0) < 0, -1.0, 1.0)[:, None]
        unmixing = sign * model.components_
        return {"atoms": sign * model.mixing_.T, "unmixing": unmixing, "offset": model.mean_}

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Unmix the rows, less the mean."""
        return (matrix - tensors["offset"]) @ tensors["unmixing"].T


@final
@dataclass(frozen=True, slots=True)
class DictionaryLearning(Classical):
    r"""Online dictionary learning (Mairal et al. 2009): atoms of length 1, lasso loadings.

    .. math:: \min_{Z, D}\; \tfrac12 \sum (X - ZD)^2 + \alpha \sqrt{d} \sum |Z|

    `sklearn.decomposition.MiniBatchDictionaryLearning` with coordinate descent, at most `max_iter`
    passes; loadings of new rows solve the lasso for the atoms found. `alpha` is the weight of the
    penalty relative to :math:`\sqrt d` for d units (the length of a row); `positive_loadings` and
    `positive_atoms` keep them at 0 or above.
    """

    estimator: ClassVar[str] = "decomposition.MiniBatchDictionaryLearning"
    rules: ClassVar[Mapping[str, str]] = {"max_iter": "count", "alpha": "positive"}
    _: KW_ONLY
    alpha: float = 0.1
    positive_loadings: bool = True
    positive_atoms: bool = False
    max_iter: int = 50

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse fewer rows than modes, and rows that atoms and loadings above 0 cannot make."""
        Classical.check(self, matrix)
        if self.positive_loadings and self.positive_atoms:
            _not_negative(matrix, "DictionaryLearning: fit")

    def _options(self, config: TrainConfig, n_units: int) -> dict[str, Any]:
        return {
            "alpha": self._penalty(n_units), "max_iter": self.max_iter,
            "batch_size": config.batch_size, "fit_algorithm": "cd",
            "transform_algorithm": "lasso_cd", "positive_code": self.positive_loadings,
            "positive_dict": self.positive_atoms,
        }  # fmt: skip

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Solve the lasso for every row."""
        from sklearn.decomposition import sparse_encode

        if not len(matrix):
            return matrix.new_zeros(0, self.n_modes)
        loadings = sparse_encode(
            _numpy(matrix), _numpy(tensors["atoms"]), algorithm="lasso_cd",
            alpha=self._penalty(matrix.shape[1]), positive=self.positive_loadings, max_iter=10_000,
        )  # fmt: skip
        return _tensor(loadings).to(matrix.device)

    def _penalty(self, n_units: int) -> float:
        return self.alpha * float(np.sqrt(n_units))


def _numpy(matrix: Tensor) -> np.ndarray:
    return matrix.cpu().to(torch.float64).numpy()


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _not_negative(matrix: Tensor, who: str) -> None:
    if len(matrix) and bool((matrix < 0).any()):
        raise DataError(
            f"{who}: entries must not be negative; the lowest is {float(matrix.min()):.6g} "
            "(scaled). Take sign='positive', the negated negative part, centre=False, or another "
            "learner."
        )


def _one_sign(matrix: Tensor, values: Tensor, what: str) -> None:
    """Refuse units with entries of another sign than their values have."""
    wrong = ((matrix < 0) & (values > 0).any(0)) | ((matrix > 0) & (values < 0).any(0))
    if units := wrong.any(0).nonzero().flatten().tolist():
        column = matrix[:, units[0]]
        raise DataError(
            f"NMF: {what}: entries of a unit must have one sign, that of its atoms; those of unit "
            f"{units[0]} go from {float(column.min()):.6g} to {float(column.max()):.6g} (scaled). "
            "Take another sign than 'sum', centre=False, or another learner."
        )
