"""Gradient descent: one engine for every learner that is trained on batches.

A learner gives a `Problem`, what is trained and what is minimised; the engine does the rest.
Batches stay on the device; only one number an epoch comes back. Fits whose shapes agree run
as one: their parameters are stacked along a first axis, and every step moves all of them.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from condec.basis.errors import DataError
from condec.dictionary.fitting.checkpoint import Keeper, State
from condec.dictionary.fitting.problem import ATOMS, OFFSET, Parameters, Problem, Revival, Step
from condec.dictionary.fitting.rows import TrainingRows
from condec.dictionary.records import Epoch, OnEpoch, TrainConfig

_LR_DEFAULT: Final = 1e-3
_SMALL_STEP: Final = 10_000_000
"""Products in a forward step up to which one CPU thread is as fast as two (64 units: 0.45 s
against 0.49 s for 400 steps on a quiet machine, and ten times faster on a busy one)."""
_CANDIDATES: Final = 1024
"""Rows out of which those are drawn that dead modes are set to."""
_BETTER: Final = 1e-3
"""Share by which a training loss must fall to count as better, for `TrainConfig.patience`."""


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit that the engine runs.

    Attributes
    ----------
    problem : Problem
        Its parameters are changed.
    rows : TrainingRows
        On the device.
    config : TrainConfig
        With `epochs` and `lr` filled in.
    """

    problem: Problem
    rows: TrainingRows
    config: TrainConfig


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
        seed(config.seed, device)
        yield


def seed(number: int, device: torch.device) -> None:
    """Seed the global random numbers of the CPU and of a device, and of no other."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def device_of(config: TrainConfig, matrix: Tensor) -> torch.device:
    """Where to fit."""
    return torch.device(config.device) if config.device else matrix.device


def descend(
    fits: Sequence[Fit], on_epoch: OnEpoch, keeper: Keeper | None = None
) -> list[tuple[float, ...]]:
    """Minimise losses by Adam, in place; the mean training loss of every epoch, fit by fit.

    Parameters
    ----------
    fits : sequence of Fit
        Several only where they differ in nothing but rows, initial values and seeds, have the
        same number of rows, and neither a plateau nor patience decides on their steps.
    on_epoch : callable
        Called after every pass, with the mean loss of all.
    keeper : Keeper, optional
        Where an earlier call was interrupted, and where this one may be.
    """
    descent = _Descent(fits)
    with _threads_for(descent.n_weights * fits[0].config.batch_size):
        return descent.run(on_epoch, keeper)


class _Descent:
    """State of fits that run as one, and how it moves on."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        self.fits, self.alone = fits, len(fits) == 1
        self.problem, self.config = fits[0].problem, fits[0].config
        self.lr, self.n_epochs = self.config.lr or _LR_DEFAULT, self.config.epochs or 1
        self.parameters = self._together()
        half = {"encoder": {*self.parameters} - {ATOMS, OFFSET}, "decoder": {ATOMS}}
        stay = half.get(self.config.freeze or "", set()) - {*self.problem.fixed}
        self.frozen = {name: self.parameters[name].detach().clone() for name in stay}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name not in self.frozen and name not in self.problem.fixed)
        moving = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.moving = list(moving.values())
        # On a CPU new memory for gradients costs as much as the optimiser, and `products` adds
        # rows to what is there; a GPU has its own pool.
        self.keeps = fits[0].rows.device.type == "cpu"
        if self.keeps:
            for parameter in self.moving:
                parameter.grad = torch.zeros_like(parameter)
        self.rates = [self.problem.rates.get(name, 1.0) for name in moving]
        self.optimiser = torch.optim.Adam(
            [
                {"params": [p], "lr": self.lr * r}
                for p, r in zip(self.moving, self.rates, strict=True)
            ],
            lr=self.lr,
            fused=True,
        )
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimiser, factor=0.5, patience=10
        )
        n_rows = fits[0].rows.n_rows
        self.n_steps = steps_of(self.config, n_rows)
        # A mode is dead when a whole pass does not use it; in a fit of few passes, a tenth of it.
        self.until_dead = max(1, min(n_rows, self.n_steps * self.config.batch_size // 10))
        self.idle: Tensor | None = None
        if self.problem.watch_dead:
            self.idle = torch.zeros(self.parameters[ATOMS].shape[:-1], device=fits[0].rows.device)
        self.draw = [torch.Generator().manual_seed(fit.config.seed) for fit in fits]
        self.shuffle = [torch.Generator().manual_seed(fit.config.seed) for fit in fits]
        self.revivals = self._revivals()
        self.step = self.done = self.waited = 0
        self.best = math.inf
        self.history: list[list[float]] = []
        self.total = torch.zeros(() if self.alone else len(fits), device=fits[0].rows.device)
        self.order = [generator.get_state() for generator in self.shuffle]

    @property
    def n_weights(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def run(self, on_epoch: OnEpoch, keeper: Keeper | None) -> list[tuple[float, ...]]:
        state = None if keeper is None else keeper.restore()
        if state is not None:
            self._restore(state)
        while len(self.history) < self.n_epochs and not self._enough():
            self._pass(keeper)
            loss = self._end_pass()
            on_epoch(Epoch(len(self.history) - 1, self.n_epochs, loss, self._rate()))
        if keeper is not None:
            keeper.last(self._state)
        for index, fit in enumerate(self.fits):
            for name, parameter in fit.problem.parameters.items():
                parameter.requires_grad_(False)
                parameter.grad = None
                if not self.alone:
                    parameter.copy_(self.parameters[name][index].detach())
        return [tuple(losses) for losses in zip(*self.history, strict=True)]

    def _together(self) -> Parameters:
        if self.alone:
            return self.problem.parameters
        every = [fit.problem.parameters for fit in self.fits]
        return {name: torch.stack([p[name] for p in every]) for name in every[0]}

    def _revivals(self) -> set[int]:
        part = self.n_steps // (2 * self.problem.n_revivals) if self.problem.n_revivals else 0
        if self.problem.revive is None or not part or self.config.freeze is not None:
            return set()
        return {part * (i + 1) for i in range(self.problem.n_revivals)}

    def _pass(self, keeper: Keeper | None) -> None:
        """The rest of a pass over all rows."""
        self.order = [generator.get_state() for generator in self.shuffle]
        size = self.config.batch_size
        batches = (
            fit.rows.batches(generator, size, self.done)
            for fit, generator in zip(self.fits, self.shuffle, strict=True)
        )
        for parts in zip(*batches, strict=True):
            rows = parts[0] if self.alone else torch.stack(parts)
            self.total += self._one_step(rows) * rows.shape[-2]
            self.step, self.done = self.step + 1, self.done + 1
            if keeper is not None:
                keeper.offer(self._state)

    def _end_pass(self) -> float:
        """Mean loss of the pass."""
        n_rows = self.fits[0].rows.n_rows
        losses = [total / n_rows for total in self.total.reshape(-1).tolist()]
        mean: float = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise DataError(
                f"fit: the training loss of epoch {len(self.history)} is {mean}: the fit has "
                f"diverged at a learning rate of {self.lr:g}; lower TrainConfig.lr, or set clip"
            )
        self.history.append(losses)
        self.total.zero_()
        self.done = 0
        if self.config.schedule == "plateau":
            self.plateau.step(mean)
        # While the loss itself changes, its values cannot be compared.
        if self.step >= self.problem.settling * self.n_steps:
            self.waited = 0 if mean < self.best * (1.0 - _BETTER) else self.waited + 1
            self.best = min(self.best, mean)
        return mean

    def _rate(self) -> float:
        rate: float = self.optimiser.param_groups[0]["lr"] / self.rates[0]
        return rate

    def _set_rate(self, rate: float) -> None:
        for group, relative in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * relative

    def _enough(self) -> bool:
        return self.config.patience is not None and self.waited >= self.config.patience

    def _one_step(self, rows: Tensor) -> Tensor:
        """Loss of every fit before the step."""
        if self.config.schedule == "cosine":
            self._set_rate(0.5 * self.lr * (1.0 + math.cos(math.pi * self.step / self.n_steps)))
        loss, loadings = self._cost(rows)
        self.optimiser.zero_grad(set_to_none=not self.keeps)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        if self.config.clip is not None:
            self._clip(self.config.clip)
        self.optimiser.step()
        with torch.no_grad():
            self._project()
            if self.idle is not None:
                used = (loadings != 0).any(-2)
                self.idle = torch.where(used, 0.0, self.idle + rows.shape[-2])
            if self.step in self.revivals:
                for index in range(len(self.fits)):
                    self._revive(index)
        return loss.detach()

    def _cost(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        def one(parameters: Parameters, rows: Tensor, dead: Tensor | None) -> tuple[Tensor, Tensor]:
            cost = self.problem.loss(parameters, rows, Step(self.step, self.n_steps, dead))
            return cost.loss, cost.loadings

        dead = None if self.idle is None else self.idle >= self.until_dead
        # On a GPU the question would wait for the device.
        if dead is not None and not (dead.is_cuda or bool(dead.any())):
            dead = None
        half = self.config.precision == "bfloat16"
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=half):
            if self.alone:
                return one(self.parameters, rows, dead)
            axes = (0, 0, None if dead is None else 0)
            together = torch.func.vmap(one, in_dims=axes, randomness="different")
            found: tuple[Tensor, Tensor] = together(dict(self.parameters), rows, dead)
            return found

    def _clip(self, longest: float) -> None:
        if self.alone:
            nn.utils.clip_grad_norm_(self.moving, longest)
            return
        gradients = [p.grad for p in self.moving if p.grad is not None]
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
        factors = (longest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def _project(self) -> None:
        self.problem.project(self.parameters)
        for name, value in self.frozen.items():
            self.parameters[name].copy_(value)

    def _of(self, index: int, values: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """One fit's part of stacked tensors, in the same memory."""
        return {key: value if self.alone else value[index] for key, value in values.items()}

    def _revive(self, index: int) -> None:
        """Set dead modes to rows that are described badly (Bricken et al. 2023)."""
        reconstruct, revive = self.problem.reconstruct, self.problem.revive
        if reconstruct is None or revive is None or self.idle is None:
            return
        idle = self.idle if self.alone else self.idle[index]
        modes = (idle >= self.until_dead).nonzero().flatten()
        if not len(modes):
            return
        sample, draw = self.fits[index].rows.sample, self.draw[index]
        order = torch.randperm(len(sample), generator=draw)[:_CANDIDATES]
        rows = sample[order.to(sample.device)]
        parameters = self._of(index, self.parameters)
        residuals = rows - reconstruct(parameters, rows)
        weight = residuals.square().sum(1).square().double().cpu()
        if not 0.0 < float(weight.sum()) < math.inf:
            return
        chosen = torch.multinomial(weight, len(modes), replacement=True, generator=draw)
        chosen = chosen.to(rows.device)
        revive(parameters, Revival(modes, rows[chosen], residuals[chosen]))
        self._project()
        idle[modes] = 0.0
        for name in self.problem.by_mode:
            state = self.optimiser.state.get(self.parameters[name], {})
            moments = {k: v for k, v in state.items() if k in ("exp_avg", "exp_avg_sq")}
            for moment in self._of(index, moments).values():
                moment[modes] = 0.0

    def _state(self) -> State:
        """Everything that decides on what comes."""
        tensors = {f"parameters.{name}": value for name, value in self.parameters.items()}
        for index, parameter in enumerate(self.moving):
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{index}.{key}"] = value
        if self.idle is not None:
            tensors["idle"] = self.idle
        tensors |= {"total": self.total, "random": torch.get_rng_state()}
        if self.total.is_cuda:
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.total.device)
        for index, (draw, order) in enumerate(zip(self.draw, self.order, strict=True)):
            tensors |= {f"draw.{index}": draw.get_state(), f"order.{index}": order}
        plateau = self.plateau
        record = {
            "step": self.step,
            "done": self.done,
            "waited": self.waited,
            "best": None if math.isinf(self.best) else self.best,
            "history": self.history,
            "lr": self._rate(),
            "plateau": None if math.isinf(plateau.best) else [plateau.best, plateau.num_bad_epochs],
        }
        return State(tensors, record)

    def _restore(self, state: State) -> None:
        tensors, record = state.tensors, state.record
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[f"parameters.{name}"])
        for index, parameter in enumerate(self.moving):
            head = f"adam.{index}."
            self.optimiser.state[parameter] = {
                name.removeprefix(head): value.to(parameter.device)
                for name, value in tensors.items()
                if name.startswith(head)
            }
        if self.idle is not None:
            self.idle.copy_(tensors["idle"])
        self.total.copy_(tensors["total"])
        torch.set_rng_state(tensors["random"])
        if self.total.is_cuda:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.total.device)
        for index, (draw, shuffle) in enumerate(zip(self.draw, self.shuffle, strict=True)):
            draw.set_state(tensors[f"draw.{index}"])
            shuffle.set_state(tensors[f"order.{index}"])
        self.step, self.done, self.waited = record["step"], record["done"], record["waited"]
        self.best = math.inf if record["best"] is None else record["best"]
        self.history = record["history"]
        self._set_rate(record["lr"])
        if record["plateau"] is not None:
            self.plateau.best, self.plateau.num_bad_epochs = record["plateau"]


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One CPU thread while steps are small: more gain nothing, and wait for each other if busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if products < _SMALL_STEP else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
