"""The sparse autoencoder of CODEC: sigmoid codes, a hard threshold, atoms by gradient descent."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condec.dictionary.base import Epoch, Learned, Learner, OnEpoch, TrainConfig
from condec.errors import OptionError
from condec.shapes import Loadings, UnitMatrix

_TRAVEL: Final = 2.0
"""Sum of the learning rates of a default fit at `_TRAVEL_UNITS` hidden units."""
_TRAVEL_UNITS: Final = 64
_LR_LIMIT: Final = 3e-3
"""Highest default rate, up to `_LR_UNITS` hidden units; beyond, wide layers need 1 / width."""
_LR_UNITS: Final = 256
_CODES_AT_START: Final = 64
"""Codes of a row that pass the threshold when it starts to rise."""
_SMALL_STEP: Final = 10_000_000
"""Products in a forward step up to which one CPU thread is as fast as two (64 units: 0.45 s
against 0.49 s for 400 steps on a quiet machine, and ten times faster on a busy one)."""
_ENCODER: Final = "encoder."


@final
@dataclass(frozen=True, slots=True)
class ThresholdSAE(Learner):
    r"""Sparse autoencoder with a hard threshold on sigmoid codes (Melander et al. 2026).

    The encoder is Linear(d, h) - Dropout - ReLU - LayerNorm - Linear(h, h) - Dropout - ReLU -
    LayerNorm - Linear(h, k, no bias) - Sigmoid. Its codes c give loadings

    .. math:: z = c \odot [c \ge \tau], \qquad \hat x = z D,

    where the mask passes no gradient, so that loadings in use lie in :math:`[\tau, 1)`:
    nearly binary. Adam minimises

    .. math:: \langle (x - \hat x)^2 \rangle + \lambda \langle |D| \rangle

    (angles: mean over all entries) on data divided by their standard deviation. There is no
    penalty on the codes; sparsity comes from the threshold.

    Parameters
    ----------
    n_modes : int
        k; the paper takes 3 times the number of units.
    threshold : float
        :math:`\tau`, from 0 to below 1.
    atom_l1 : float
        :math:`\lambda`.
    nonnegative : bool
        Keep the entries of the atoms at 0 or above, by projection after every step.
    width : int, optional
        h; by default the number of units d.
    dropout : float
        Probability, while fitting.

    Raises
    ------
    OptionError
        A number outside its range.
    """

    n_modes: int
    _: KW_ONLY
    threshold: float = 0.9
    atom_l1: float = 5e-5
    nonnegative: bool = False
    width: int | None = None
    dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in ("n_modes", "width"):
            value = getattr(self, name)
            if value is None and name == "width":
                continue
            try:
                operator.index(value)
            except TypeError as error:
                raise OptionError(
                    f"ThresholdSAE: {name} must be a whole number; got {value!r}"
                ) from error
            if value < 1:
                raise OptionError(f"ThresholdSAE: {name} must be at least 1; got {value}")
        for name in ("threshold", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise OptionError(
                    f"ThresholdSAE: {name} must be from 0 to below 1; got {getattr(self, name)}"
                )
        if not 0.0 <= self.atom_l1 < math.inf:
            raise OptionError(
                f"ThresholdSAE: atom_l1 must be finite and not negative; got {self.atom_l1}"
            )

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Gradient descent on batches that stay on the device."""
        device = torch.device(config.device) if config.device else matrix.device
        matrix = matrix.to(device)
        config = self._filled(config, *matrix.shape)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(config.seed)
            # Made on the CPU: one seed starts alike on every device.
            encoder = self._encoder(matrix.shape[1], torch.device("cpu")).to(device)
            atoms = torch.empty(self.n_modes, matrix.shape[1], dtype=torch.float32)
            nn.init.xavier_uniform_(atoms)
            atoms = nn.Parameter((atoms.abs() if self.nonnegative else atoms).to(device))
            weights = sum(p.numel() for p in encoder.parameters()) + atoms.numel()
            with _threads_for(weights * config.batch_size):
                history = self._train(encoder, atoms, matrix, config, on_epoch)
        tensors = {f"{_ENCODER}{k}": v.detach() for k, v in encoder.state_dict().items()}
        return Learned({"atoms": atoms.detach(), **tensors}, config, tuple(history))

    def encode(self, tensors: Mapping[str, Tensor], matrix: UnitMatrix) -> Loadings:
        """Codes at or above the threshold; the others are 0."""
        state = {k.removeprefix(_ENCODER): v for k, v in tensors.items() if k.startswith(_ENCODER)}
        # A skeleton without memory of its own: the numbers are those of `tensors`.
        encoder = self._encoder(matrix.shape[1], torch.device("meta")).eval()
        codes = torch.func.functional_call(encoder, state, (matrix,))
        return keep(codes, self.threshold)

    def _encoder(self, n_units: int, device: torch.device) -> nn.Sequential:
        width = self.width or n_units
        linear = partial(nn.Linear, device=device, dtype=torch.float32)
        norm = partial(nn.LayerNorm, device=device, dtype=torch.float32)
        return nn.Sequential(
            linear(n_units, width),
            nn.Dropout(self.dropout),
            nn.ReLU(),
            norm(width),
            linear(width, width),
            nn.Dropout(self.dropout),
            nn.ReLU(),
            norm(width),
            linear(width, self.n_modes, bias=False),
            nn.Sigmoid(),
        )

    def _filled(self, config: TrainConfig, n_rows: int, n_units: int) -> TrainConfig:
        """Config with its epochs and learning rate worked out."""
        batches = math.ceil(n_rows / config.batch_size)
        epochs = config.epochs or max(1, round(config.steps / batches))
        mean = 0.5 if config.schedule == "cosine" else 1.0
        width = self.width or n_units
        travel = _TRAVEL * min(1.0, math.sqrt(_TRAVEL_UNITS / width))
        limit = _LR_LIMIT * min(1.0, _LR_UNITS / width)
        lr = config.lr or min(limit, travel / (mean * epochs * batches))
        return dataclasses.replace(config, epochs=epochs, lr=lr)

    def _train(
        self,
        encoder: nn.Sequential,
        atoms: nn.Parameter,
        matrix: Tensor,
        config: TrainConfig,
        on_epoch: OnEpoch,
    ) -> list[float]:
        lr, epochs = config.lr or _LR_LIMIT, config.epochs or 1  # Both are filled in by now.
        optimiser = torch.optim.Adam([*encoder.parameters(), atoms], lr=lr, fused=True)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=10)
        shuffle = torch.Generator().manual_seed(config.seed)
        n_steps = epochs * math.ceil(len(matrix) / config.batch_size)
        threshold = self._rising_threshold(encoder, matrix, config, n_steps)
        history: list[float] = []
        step = 0
        for index in range(epochs):
            total = matrix.new_zeros(())
            order = torch.randperm(len(matrix), generator=shuffle).to(matrix.device)
            for rows in torch.split(order, config.batch_size):
                if config.schedule == "cosine":
                    rate = 0.5 * lr * (1.0 + math.cos(math.pi * step / n_steps))
                    optimiser.param_groups[0]["lr"] = rate
                loss = self._loss(encoder, atoms, matrix[rows], threshold(step))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                if self.nonnegative:
                    atoms.data.clamp_(min=0.0)
                total += loss.detach() * len(rows)
                step += 1
            history.append(float(total) / len(matrix))
            on_epoch(Epoch(index, epochs, history[-1], optimiser.param_groups[0]["lr"]))
            if config.schedule == "plateau":
                plateau.step(history[-1])
        return history

    def _loss(self, encoder: nn.Module, atoms: Tensor, rows: Tensor, threshold: float) -> Tensor:
        loadings = keep(encoder(rows), threshold)
        return F.mse_loss(loadings @ atoms, rows) + self.atom_l1 * atoms.abs().mean()

    def _rising_threshold(
        self, encoder: nn.Sequential, matrix: Tensor, config: TrainConfig, n_steps: int
    ) -> Callable[[int], float]:
        """Threshold by step: evenly in the logit, from where some codes of every row pass."""
        duration = config.threshold_warmup * n_steps
        with torch.no_grad():
            codes = encoder(matrix[: config.batch_size])
        share = min(1.0, _CODES_AT_START / self.n_modes)
        start = float(codes.flatten().sort().values[-max(1, int(share * codes.numel()))])
        if not 0.0 < start < self.threshold:
            return lambda step: self.threshold
        low, high = (math.log(c / (1.0 - c)) for c in (start, self.threshold))

        def threshold(step: int) -> float:
            if step >= duration:
                return self.threshold
            return 1.0 / (1.0 + math.exp(-(low + (high - low) * step / duration)))

        return threshold


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One CPU thread while steps are small: more gain nothing, and wait for each other if busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if products < _SMALL_STEP else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep(codes: Tensor, threshold: float) -> Tensor:
    """Codes at or above a threshold, 0 elsewhere; the mask passes no gradient.

    >>> keep(torch.tensor([0.2, 0.9, 0.95]), 0.9)
    tensor([0.0000, 0.9000, 0.9500])
    """
    return codes * (codes >= threshold).detach()
