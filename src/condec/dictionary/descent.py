"""Gradient descent: one engine for every learner that is trained on batches.

A learner gives a `Problem`, what is trained and what is minimised; the engine does the rest.
Batches stay on the device; only one number an epoch comes back.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from condec.dictionary.records import Epoch, OnEpoch, TrainConfig
from condec.shapes import UnitMatrix

Parameters = Mapping[str, Tensor]

ATOMS: Final = "atoms"
"""Name of the decoder among the parameters; all others are the encoder's."""
_LR_DEFAULT: Final = 1e-3
_SMALL_STEP: Final = 10_000_000
"""Products in a forward step up to which one CPU thread is as fast as two (64 units: 0.45 s
against 0.49 s for 400 steps on a quiet machine, and ten times faster on a busy one)."""
_CANDIDATES: Final = 1024
"""Rows out of which those are drawn that dead modes are set to."""
_REVIVALS: Final = 4
"""How often dead modes are set anew, evenly over the first half of the steps."""


@dataclass(frozen=True, eq=False)
class Step:
    """Where a fit is.

    Attributes
    ----------
    index : int
        From 0.
    n_steps : int
    dead : Bool tensor of shape [mode], optional
        Modes that no row of the last pass used; only for problems that ask for it.
    """

    index: int
    n_steps: int
    dead: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Cost:
    """Value of the loss for a batch.

    Attributes
    ----------
    loss : Tensor
        One number.
    loadings : Tensor of shape [sample, mode]
        Of the batch, before anything is added for dead modes.
    """

    loss: Tensor
    loadings: Tensor


@dataclass(frozen=True, eq=False)
class Revival:
    """Dead modes and what they may be set to.

    Attributes
    ----------
    modes : Tensor of int
        Dead modes.
    rows, residuals : Tensor of shape [dead mode, unit]
        A row for each, drawn with a probability that grows with the square of its error, and
        what the dictionary leaves of it.
    """

    modes: Tensor
    rows: Tensor
    residuals: Tensor


def _nothing(parameters: Parameters) -> None:
    del parameters


@dataclass(frozen=True, eq=False)
class Problem:
    """What a learner gives the engine.

    Attributes
    ----------
    parameters : mapping of str to Tensor
        Initial values on the device; ``"atoms"`` [mode, unit] are the decoder.
    loss : callable
        Of parameters, rows of a batch and `Step`: a `Cost`. Pure but for random numbers.
    project : callable
        Changes parameters in place after a step: where they may lie.
    watch_dead : bool
        Whether `Step.dead` is worked out.
    reconstruct, revive : callable, optional
        Rows as the dictionary describes them; and a change of parameters in place that sets
        dead modes anew (`Revival`). Both, or neither.
    by_mode : tuple of str
        Parameters whose first axis is modes, all of which `revive` sets; the optimiser's
        memory of those modes is cleared.
    """

    parameters: Parameters
    loss: Callable[[Parameters, Tensor, Step], Cost]
    project: Callable[[Parameters], None] = _nothing
    watch_dead: bool = False
    reconstruct: Callable[[Parameters, Tensor], Tensor] | None = None
    revive: Callable[[Parameters, Revival], None] | None = None
    by_mode: tuple[str, ...] = ()


def steps_of(config: TrainConfig, n_rows: int) -> int:
    """Number of steps of a fit to `n_rows` rows, whole passes."""
    batches = math.ceil(n_rows / config.batch_size)
    epochs = config.epochs or max(1, round(config.steps / batches))
    return epochs * batches


def filled(
    config: TrainConfig, n_rows: int, *, travel: float, limit: float = _LR_DEFAULT
) -> TrainConfig:
    """Config with its epochs and learning rate worked out.

    The default rate makes the sum of all rates `travel`, but is at most `limit`.
    """
    n_steps = steps_of(config, n_rows)
    mean = 0.5 if config.schedule == "cosine" else 1.0
    lr = config.lr or min(limit, travel / (mean * n_steps))
    epochs = n_steps // math.ceil(n_rows / config.batch_size)
    return dataclasses.replace(config, epochs=epochs, lr=lr)


@contextmanager
def seeded(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Gradients on, and the global random numbers those of the seed; both put back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(config.seed)
        yield


def device_of(config: TrainConfig, matrix: Tensor) -> torch.device:
    """Where to fit."""
    return torch.device(config.device) if config.device else matrix.device


def descend(
    problem: Problem, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch
) -> tuple[float, ...]:
    """Minimise a problem's loss by Adam, in place; the mean training loss of every epoch.

    Parameters
    ----------
    problem : Problem
        Its parameters are changed.
    matrix : Tensor of shape [sample, unit]
        On the device.
    config : TrainConfig
        With `epochs` and `lr` filled in.
    on_epoch : callable
        Called after every pass.
    """
    run = _Run(problem, matrix, config)
    weights = sum(p.numel() for p in problem.parameters.values())
    with _threads_for(weights * config.batch_size):
        return run.all_epochs(on_epoch)


class _Run:
    """State of one fit."""

    def __init__(self, problem: Problem, matrix: Tensor, config: TrainConfig) -> None:
        self.problem, self.matrix, self.config = problem, matrix, config
        self.lr, self.epochs = config.lr or _LR_DEFAULT, config.epochs or 1
        half = {"encoder": [n for n in problem.parameters if n != ATOMS], "decoder": [ATOMS]}
        stay = half.get(config.freeze or "", [])
        self.frozen = {name: problem.parameters[name].detach().clone() for name in stay}
        for name, parameter in problem.parameters.items():
            parameter.requires_grad_(name not in self.frozen)
        self.moving = [p for p in problem.parameters.values() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self.moving, lr=self.lr, fused=True)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimiser, factor=0.5, patience=10
        )
        self.n_steps = steps_of(config, len(matrix))
        # A mode is dead when a whole pass does not use it; in a fit of few passes, a tenth of it.
        self.patience = min(len(matrix), self.n_steps * config.batch_size // 10)
        self.idle: Tensor | None = None
        if problem.watch_dead:
            self.idle = torch.zeros(len(problem.parameters[ATOMS]), device=matrix.device)
        self.draw = torch.Generator().manual_seed(config.seed)
        part = self.n_steps // (2 * _REVIVALS)
        revives = problem.revive is not None and part and config.freeze is None
        self.revivals = {part * (i + 1) for i in range(_REVIVALS)} if revives else set()

    def all_epochs(self, on_epoch: OnEpoch) -> tuple[float, ...]:
        shuffle = torch.Generator().manual_seed(self.config.seed)
        history: list[float] = []
        step = 0
        for index in range(self.epochs):
            total = self.matrix.new_zeros(())
            order = torch.randperm(len(self.matrix), generator=shuffle).to(self.matrix.device)
            for rows in torch.split(order, self.config.batch_size):
                total += self._step(step, self.matrix[rows]) * len(rows)
                step += 1
            history.append(float(total) / len(self.matrix))
            on_epoch(Epoch(index, self.epochs, history[-1], self.optimiser.param_groups[0]["lr"]))
            if self.config.schedule == "plateau":
                self.plateau.step(history[-1])
        for parameter in self.problem.parameters.values():
            parameter.requires_grad_(False)
        return tuple(history)

    def _step(self, index: int, rows: Tensor) -> Tensor:
        """One step; the loss before it."""
        if self.config.schedule == "cosine":
            rate = 0.5 * self.lr * (1.0 + math.cos(math.pi * index / self.n_steps))
            self.optimiser.param_groups[0]["lr"] = rate
        dead = None if self.idle is None else self.idle >= self.patience
        cost = self.problem.loss(self.problem.parameters, rows, Step(index, self.n_steps, dead))
        self.optimiser.zero_grad()
        cost.loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.moving, self.config.clip)
        self.optimiser.step()
        with torch.no_grad():
            self._project()
            if self.idle is not None:
                used = (cost.loadings != 0).any(0)
                self.idle = torch.where(used, 0.0, self.idle + len(rows))
            if index in self.revivals:
                self._revive()
        return cost.loss.detach()

    def _project(self) -> None:
        self.problem.project(self.problem.parameters)
        for name, value in self.frozen.items():
            self.problem.parameters[name].copy_(value)

    def _revive(self) -> None:
        """Set dead modes to rows that are described badly (Bricken et al. 2023)."""
        reconstruct, revive = self.problem.reconstruct, self.problem.revive
        if reconstruct is None or revive is None or self.idle is None:
            return
        modes = (self.idle >= self.patience).nonzero().flatten()
        if not len(modes):
            return
        order = torch.randperm(len(self.matrix), generator=self.draw)[:_CANDIDATES]
        rows = self.matrix[order.to(self.matrix.device)]
        residuals = rows - reconstruct(self.problem.parameters, rows)
        weight = residuals.square().sum(1).square().double().cpu()
        if not 0.0 < float(weight.sum()) < math.inf:
            return
        chosen = torch.multinomial(weight, len(modes), replacement=True, generator=self.draw)
        chosen = chosen.to(rows.device)
        revive(self.problem.parameters, Revival(modes, rows[chosen], residuals[chosen]))
        self._project()
        self.idle[modes] = 0.0
        for name in self.problem.by_mode:
            state = self.optimiser.state.get(self.problem.parameters[name], {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment][modes] = 0.0


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One CPU thread while steps are small: more gain nothing, and wait for each other if busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if products < _SMALL_STEP else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
