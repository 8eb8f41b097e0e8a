"""Autoencoders of the library Overcomplete behind the contract of dictionaries."""

import importlib
import math
import sys
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from condec.dictionary.base import Learner, not_negative, whole
from condec.dictionary.descent import device_of, filled, seeded
from condec.dictionary.problem import ATOMS
from condec.dictionary.records import Epoch, Learned, OnEpoch, TrainConfig
from condec.errors import DependencyError, OptionError
from condec.models.torchvision import import_torchvision
from condec.shapes import Loadings, UnitMatrix

_STATE: Final = "state."
_RUNNING: Final = "running_threshold"
_POINTS: Final = "dictionary.C"
_TRAVEL: Final = 2.0

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
        for option in self.options:
            if not option.partition("=")[0].isidentifier() or "=" not in option:
                raise OptionError(
                    f"Overcomplete: options: expected 'name=value' such as 'top_k=8'; got "
                    f"{option!r}"
                )

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
        given: dict[str, Any] = {
            name: _value(text) for name, _, text in (o.partition("=") for o in self.options)
        }
        kind = getattr(library(), self.model)
        if self.model.startswith("RA"):
            given["points"] = points
        try:
            return kind(n_units, self.n_modes, **given)
        except (TypeError, ValueError, AssertionError) as error:
            raise OptionError(
                f"Overcomplete: {self.model} does not take the options {self.options}: {error}"
            ) from error


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
    try:
        # Overcomplete imports it, and it may need help (see there).
        import_torchvision()
        return importlib.import_module("overcomplete.sae")
    except (ImportError, AttributeError) as error:
        # The colour maps of version 0.3 need an old matplotlib; the autoencoders come first.
        if isinstance(error, AttributeError) and "overcomplete.sae" in sys.modules:
            return sys.modules["overcomplete.sae"]
        raise DependencyError(
            f"Overcomplete: the library cannot be imported ({error}); install it with "
            "'pip install overcomplete'"
        ) from error
