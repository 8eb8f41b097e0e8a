"""Autoencoders and factorisations of Overcomplete behind the contract of dictionaries."""

import importlib
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import Learner, not_negative, whole
from condec.dictionary.fitting.descent import device_of, filled, seeded
from condec.dictionary.fitting.problem import ATOMS
from condec.dictionary.records import Epoch, Learned, OnEpoch, TrainConfig
from condec.models.torchvision import import_torchvision

_STATE: Final = "state."
_RUNNING: Final = "running_threshold"
_POINTS: Final = "dictionary.C"
_TRAVEL: Final = 2.0
_SWEEPS: Final = 300
"""Passes of coordinate descent over the codes of new rows: Overcomplete's own limit."""
Code = Literal["linear", "nonnegative", "nearest", "lasso"]
_CODES: Final[dict[str, Code]] = {
    "SkPCA": "linear",
    "SkSVD": "linear",
    "SkICA": "linear",
    "SkSparsePCA": "linear",
    "NMF": "nonnegative",
    "SkNMF": "nonnegative",
    "SemiNMF": "nonnegative",
    "ConvexNMF": "nonnegative",
    "SkKMeans": "nearest",
    "SkDictionaryLearning": "lasso",
}
"""Factorisations, and how each finds the codes of a row by itself."""

Plain = bool | int | float | str


@final
@dataclass(frozen=True, slots=True)
class Overcomplete(Learner):
    r"""A sparse autoencoder of Overcomplete (Fel et al. 2025), trained by its own loop.

    Any class of ``overcomplete.sae`` that takes ``(input_shape, nb_concepts, ...)``: ``SAE``,
    ``TopKSAE``, ``BatchTopKSAE``, ``JumpSAE``, ``QSAE``, ``MpSAE``, ``OMPSAE``, and the
    archetypal ``RATopKSAE`` and ``RAJumpSAE``, whose atoms lie near mixtures of training rows
    (`n_points` drawn by the seed). Note that ``top_k`` of ``BatchTopKSAE`` counts codes of a
    whole batch. Adam minimises

    .. math:: \langle (x - \hat x)^2 \rangle + \lambda \langle |z| \rangle.

    Needs ``pip install overcomplete``; ``schedule="plateau"`` is taken as constant, and
    ``freeze`` is not known here.

    Parameters
    ----------
    n_modes : int
    model : str
        Name of the class.
    options : tuple of str
        Its further arguments, ``"name=value"``: ``("top_k=8",)``. Numbers, true and false are
        read as such.
    l1 : float
        :math:`\lambda`.
    n_points : int
        Training rows that archetypal models mix, at most.

    Raises
    ------
    OptionError
        A number outside its range, an option without a name, and when fitted, a model that
        does not exist or does not take the options.
    DependencyError
        When fitted: Overcomplete is not installed.
    """

    n_modes: int
    _: KW_ONLY
    model: str = "TopKSAE"
    options: tuple[str, ...] = ()
    l1: float = 0.0
    n_points: int = 1000

    def __post_init__(self) -> None:
        whole(self, "n_modes", "n_points")
        not_negative(self, "l1")
        _named(self.options, "Overcomplete", "top_k=8")

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse a model that Overcomplete does not have."""
        del matrix
        found = library()
        if not isinstance(getattr(found, self.model, None), type):
            raise OptionError(
                f"Overcomplete: model: overcomplete.sae has no class {self.model!r}; expected one "
                f"of {', '.join(n for n in dir(found) if n.endswith('SAE'))}"
            )

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Adam, by Overcomplete's loop."""
        loop, device = library().train_sae, device_of(config, matrix)
        config = filled(config, len(matrix), travel=_TRAVEL)
        data = torch.utils.data.TensorDataset(matrix.cpu())
        order = torch.Generator().manual_seed(config.seed)
        loader = torch.utils.data.DataLoader(
            data, batch_size=config.batch_size, shuffle=True, generator=order
        )
        with seeded(config, device):
            draw = torch.randperm(len(matrix))[: self.n_points]
            model = self._made(matrix.shape[1], matrix.cpu()[draw]).to(device)
            optimiser = torch.optim.Adam(model.parameters(), lr=config.lr or _TRAVEL)
            n_steps = (config.epochs or 1) * len(loader)
            falling = torch.optim.lr_scheduler.LambdaLR(
                optimiser, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / n_steps)
            )
            history: list[float] = []
            for index in range(config.epochs or 1):
                criterion = _Criterion(self.l1)
                loop(
                    model,
                    loader,
                    criterion,
                    optimiser,
                    scheduler=falling if config.schedule == "cosine" else None,
                    nb_epochs=1,
                    clip_grad=config.clip,
                    monitoring=0,
                    device=str(device),
                )
                history.append(float(criterion.total) / len(matrix))
                lr = optimiser.param_groups[0]["lr"]
                on_epoch(Epoch(index, config.epochs or 1, history[-1], lr))
            with torch.no_grad():
                model.eval()
                atoms = model.get_dictionary().detach().clone()
        tensors = {f"{_STATE}{name}": value for name, value in model.state_dict().items()}
        running = getattr(model, _RUNNING, None)
        if running is not None:
            tensors[_RUNNING] = running
        return Learned({ATOMS: atoms, **tensors}, config, tuple(history))

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Codes of the model."""
        if not len(matrix):
            return matrix.new_zeros(0, self.n_modes)
        state = {n.removeprefix(_STATE): t for n, t in tensors.items() if n.startswith(_STATE)}
        with torch.random.fork_rng(devices=[]):
            model = self._made(matrix.shape[1], state.get(_POINTS)).to(matrix.device)
        model.load_state_dict(state)
        if _RUNNING in tensors:
            setattr(model, _RUNNING, tensors[_RUNNING])
        model.eval()
        found = model.encode(matrix)
        codes: Tensor = found[1] if isinstance(found, tuple) else found
        return codes.to(torch.float32)

    def _made(self, n_units: int, points: Tensor | None) -> Any:
        more = {"points": points} if self.model.startswith("RA") else {}
        return _made(self, library(), n_units, self.n_modes, **more)


@final
@dataclass(frozen=True, slots=True)
class OvercompleteFactorisation(Learner):
    r"""A factorisation of Overcomplete's ``optimization``, fitted by its own solver.

    ``NMF``, ``SemiNMF`` (atoms of any sign), ``ConvexNMF`` (atoms are mixtures of training rows),
    and its wrappers of scikit-learn: ``SkPCA``, ``SkSVD``, ``SkICA``, ``SkSparsePCA``, ``SkNMF``,
    ``SkKMeans``, ``SkDictionaryLearning``. Overcomplete finds codes of a batch together, from a
    random start; here those of a row do not depend on its company:

    - PCA, SVD, ICA, sparse PCA: the linear map that the library applies, read off once;
    - NMF, semi-NMF, convex NMF: :math:`\min_{z \ge 0} |x - zD|^2` by 300 passes of its
      hierarchical coordinate descent from 0 (a penalty of the fit is left out);
    - k-means: 1 for the nearest centre (the library gives distances, which do not decode);
    - dictionary learning: the lasso, :math:`\min_{z \ge 0} \tfrac12 |x - zD|^2 + \lambda |z|_1`.

    Needs ``pip install overcomplete``.

    Parameters
    ----------
    n_modes : int
    model : str
        Name of the class.
    options : tuple of str
        Its further arguments, ``"name=value"``: ``("solver=mu",)``, ``("sparsity=0.1",)``.

    Raises
    ------
    OptionError
        A number below 1, an unknown model, an option without a name, and when fitted, options
        that the model does not take.
    DataError
        When fitted: negative entries for a model that has none, or rows it cannot fit.
    DependencyError
        When fitted: Overcomplete is not installed.
    """

    n_modes: int
    _: KW_ONLY
    model: str = "SemiNMF"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole(self, "n_modes")
        _named(self.options, "OvercompleteFactorisation", "solver=mu")
        if self.model not in _CODES:
            raise OptionError(
                f"OvercompleteFactorisation: model: expected one of {', '.join(_CODES)}; got "
                f"{self.model!r}"
            )

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse negative entries where there can be none."""
        if self.model in ("NMF", "SkNMF") and bool((matrix < 0).any()):
            raise DataError(
                f"OvercompleteFactorisation: {self.model} takes entries that are not negative; "
                f"the lowest is {float(matrix.min()):.3g}. Take sign='positive', or SemiNMF."
            )

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Atoms by the library's solver, on the CPU."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        rows = matrix.cpu()
        with seeded(config, torch.device("cpu")), _numpy_seeded(config.seed), threadpool_limits(1):
            model = self._made(config.seed)
            try:
                model.fit(rows)
            except (ValueError, AssertionError) as error:
                raise DataError(
                    f"OvercompleteFactorisation: {self.model} cannot fit {self.n_modes} modes to "
                    f"{len(rows)} rows of {rows.shape[1]} units: {error}"
                ) from error
            return Learned(_read_off(model, _CODES[self.model], rows.shape[1]), config)

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Codes of every row by itself."""
        atoms = tensors[ATOMS]
        if not len(matrix):
            return matrix.new_zeros(0, self.n_modes)
        match _CODES[self.model]:
            case "linear":
                return matrix @ tensors["encoder"].T + tensors["bias"]
            case "nearest":
                nearest = torch.cdist(matrix, atoms).argmin(1)
                return torch.nn.functional.one_hot(nearest, self.n_modes).to(torch.float32)
            case "nonnegative":
                solve = optimisation().nmf.hierarchical_als
                start = matrix.new_zeros(len(matrix), self.n_modes)
                found: Tensor = solve(
                    matrix, start, atoms, update_D=False, max_iter=_SWEEPS, tol=0.0
                )[0]
                return found
            case "lasso":
                return self._lasso(atoms, matrix)

    def _lasso(self, atoms: Tensor, matrix: Tensor) -> Tensor:
        from sklearn.decomposition import sparse_encode

        loadings = sparse_encode(
            matrix.cpu().double().numpy(),
            atoms.cpu().double().numpy(),
            algorithm="lasso_cd",
            alpha=float(_given(self.options).get("sparsity", 1.0)),
            positive=True,
            max_iter=10_000,
        )
        return torch.from_numpy(loadings).to(matrix)

    def _made(self, seed: int) -> Any:
        more = {"random_state": seed} if self.model.startswith("Sk") else {}
        return _made(self, optimisation(), self.n_modes, **more)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Global random numbers of numpy, from which NMF starts: those of the seed; put back after."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _read_off(model: Any, code: Code, n_units: int) -> dict[str, Tensor]:
    """Atoms, and where codes are linear, the maps: what the library makes of unit vectors."""
    if code != "linear":
        return {ATOMS: model.get_dictionary().detach().to(torch.float32).contiguous()}
    # Its own decode of ICA forgets the mean.
    decode, encode = model.model.inverse_transform, model.model.transform
    maps = {}
    for name, apply, size in (
        (ATOMS, decode, model.nb_concepts),
        ("encoder", encode, n_units),
    ):
        at = torch.from_numpy(apply(np.vstack((np.zeros((1, size)), np.eye(size)))))
        maps[name] = (at[1:] - at[0], at[0])
    atoms, offset = maps[ATOMS]
    encoder, bias = maps["encoder"]
    tensors = {ATOMS: atoms, "offset": offset, "encoder": encoder.T, "bias": bias}
    return {name: value.to(torch.float32).contiguous() for name, value in tensors.items()}


class _Criterion:
    """Squared error and penalty, as Overcomplete's loop calls it; sums what it gave."""

    def __init__(self, l1: float) -> None:
        self.l1 = l1
        self.total: Tensor | float = 0.0

    def __call__(
        self, x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor
    ) -> Tensor:
        loss = (x - x_hat).square().mean()
        if self.l1:
            loss = loss + self.l1 * codes.abs().mean()
        self.total = self.total + loss.detach() * len(x)
        return loss


def _named(options: tuple[str, ...], who: str, example: str) -> None:
    """Refuse options that are not "name=value"."""
    for option in options:
        if not option.partition("=")[0].isidentifier() or "=" not in option:
            raise OptionError(
                f"{who}: options: expected 'name=value' such as {example!r}; got {option!r}"
            )


def _made(
    learner: "Overcomplete | OvercompleteFactorisation", module: Any, *sizes: int, **more: Any
) -> Any:
    """A model of the library with a learner's options."""
    try:
        return getattr(module, learner.model)(*sizes, **_given(learner.options) | more)
    except (TypeError, ValueError, AssertionError) as error:
        raise OptionError(
            f"{type(learner).__name__}: {learner.model} does not take the options "
            f"{learner.options}: {error}"
        ) from error


def _given(options: tuple[str, ...]) -> dict[str, Any]:
    return {name: _value(text) for name, _, text in (o.partition("=") for o in options)}


def _value(text: str) -> Plain:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def library() -> Any:
    """Overcomplete's module of autoencoders.

    Raises
    ------
    DependencyError
        It, or something it needs, is not installed.
    """
    return _module("overcomplete.sae")


def optimisation() -> Any:
    """Overcomplete's module of factorisations.

    Raises
    ------
    DependencyError
        It, or something it needs, is not installed.
    """
    return _module("overcomplete.optimization")


def _module(name: str) -> Any:
    try:
        # Overcomplete imports it, and it may need help (see there).
        import_torchvision()
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:
        # The colour maps of version 0.3 need an old matplotlib; what is used here comes first.
        if isinstance(error, AttributeError) and name in sys.modules:
            return sys.modules[name]
        raise DependencyError(
            f"Overcomplete: the library cannot be imported ({error}); install it with "
            "'pip install overcomplete'"
        ) from error
