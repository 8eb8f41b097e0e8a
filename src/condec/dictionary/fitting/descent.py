"""Gradient descent: the contract of learners that are trained on batches, and their one engine.

Batches stay on the device; only one number an epoch comes back. Fits whose shapes agree run
as one: their parameters are stacked along a first axis, and every step moves all of them.
"""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor, nn

from condec.basis.errors import DataError
from condec.basis.shapes import UnitMatrix
from condec.dictionary.base import ATOMS, OFFSET, Learner, Parameters, Tensors
from condec.dictionary.fitting.checkpoint import Keeper, State
from condec.dictionary.fitting.rows import TrainingRows
from condec.dictionary.records import Epoch, Learned, OnEpoch, TrainConfig

SMALL_STEP: Final = 10_000_000
"""Products at a time up to which one CPU thread is as fast as two, on a quiet machine."""
_CANDIDATES: Final = 1024
"""Rows out of which those are drawn that dead modes are set to."""
_REVIVALS: Final = 4
"""Times that dead modes are set to rows, evenly over the first half of the steps."""
_COUNTS: Final = ("step", "done", "waited", "history")
_BETTER: Final = 1e-3
"""Share by which a training loss must fall to count as better, for `TrainConfig.patience`."""


def steps_of(config: TrainConfig, n_rows: int) -> int:
    """Return the number of steps of a fit to `n_rows` rows, whole passes."""
    batches = math.ceil(n_rows / config.batch_size)
    return batches * (config.epochs or max(1, round(config.steps / batches)))


@dataclass(frozen=True, eq=False)
class Step:
    """Position of a fit: step `index` of `n_steps`, from 0.

    `dead` marks the modes [mode] that no row of the last pass used; only for learners that ask
    for it, and on a CPU only while there are any. `warmup` is `TrainConfig.threshold_warmup`.
    """

    index: int
    n_steps: int
    dead: Tensor | None = None
    warmup: float = 0.0


class Cost(NamedTuple):
    """Loss of a batch (one number), and its loadings before anything is added for dead modes."""

    loss: Tensor
    loadings: Tensor


class GradientLearner(Learner):
    """A learner that gives its parameters and its loss; the engine does the rest.

    It can be fitted to rows that do not fit in memory, be interrupted and resumed, and learn
    together with others of the same shapes: `cost` is pure but for random numbers, and does not
    look at values, since several fits run as one under `torch.func.vmap`.
    """

    __slots__ = ()
    by_descent: ClassVar[bool] = True
    feeds_dead: ClassVar[bool] = False
    """Whether the loss reads `Step.dead`."""
    warms_up: ClassVar[bool] = False
    """Whether the loss changes during `TrainConfig.threshold_warmup`: patience waits."""
    by_mode: ClassVar[tuple[str, ...]] = (ATOMS,)
    """Parameters whose first axis is modes, all of which `revive` sets."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Parameters that the loss reads and no step changes."""

    @property
    def draws(self) -> bool:
        """Tell whether the loss draws random numbers: such a fit would depend on its company."""
        return bool(getattr(self, "dropout", 0.0) > 0.0)

    @property
    def revives(self) -> bool:
        """Tell whether `revive` renews dead modes, evenly over the first half of a fit."""
        return bool(getattr(self, "resample", False))

    def rates(self, n_units: int) -> Mapping[str, float]:
        """Return learning rates of parameters relative to the fit's, where they are not 1."""
        return {}

    @abstractmethod
    def pace(self, n_units: int) -> tuple[float, float]:
        """Return the sum of the learning rates of a default fit, and the highest of them."""

    def settled(self, config: TrainConfig, n_rows: int, n_units: int) -> TrainConfig:
        """Return the config with its epochs and learning rate worked out, the rate by `pace`."""
        travel, limit = self.pace(n_units)
        n_steps = steps_of(config, n_rows)
        mean = 0.5 if config.schedule == "cosine" else 1.0
        lr = config.lr or min(limit, travel / (mean * n_steps))
        epochs = n_steps // math.ceil(n_rows / config.batch_size)
        return dataclasses.replace(config, epochs=epochs, lr=lr)

    @abstractmethod
    def start(self, sample: Tensor, config: TrainConfig) -> Tensors:
        """Return initial parameters, on the device of the sample; random numbers are seeded."""

    @abstractmethod
    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return the loss of a batch."""

    def project(self, parameters: Parameters) -> None:
        """Change parameters in place after a step, for any axes before those of `start`."""

    def reconstruct(self, parameters: Parameters, rows: Tensor) -> Tensor:
        """Return prepared rows as the dictionary describes them."""
        return self.encode(parameters, rows) @ parameters[ATOMS]

    def revive(self, parameters: Parameters, modes: Tensor, rows: Tensor, left: Tensor) -> None:
        """Set dead modes in place, by badly described rows [dead mode, unit] and what is left."""
        raise NotImplementedError

    def finish(self, parameters: Parameters, sample: Tensor, config: TrainConfig) -> Tensors:
        """Return the tensors that are kept."""
        return dict(parameters)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Descend on batches that stay on the device."""
        rows = TrainingRows(matrix.to(config.device or matrix.device))
        return learn_together(self, [rows], [config], on_epoch)[0]


def learn_together(
    learner: GradientLearner, rows: Sequence[TrainingRows], configs: Sequence[TrainConfig],
    on_epoch: OnEpoch, keeper: Keeper | None = None,
) -> list[Learned]:  # fmt: skip
    """Fit one learner to several matrices or with several seeds, as one fit.

    The results are those of each alone, up to rounding and the numbers that dropout draws.
    All `rows` are of one shape and on one device; `configs` differ in their seeds only, and
    several may not depend on a plateau or on patience. `on_epoch` gets the mean loss of all;
    `keeper` has the state of an earlier call that was interrupted, and keeps that of this one.
    """
    settled = [learner.settled(config, rows[0].n_rows, rows[0].n_units) for config in configs]
    with seeded(settled[0], rows[0].device):
        starts: list[dict[str, Tensor]] = []
        # The first one last: its random numbers are those that go on.
        for each, config in reversed(list(zip(rows, settled, strict=True))):
            seed(config.seed, each.device)
            starts.insert(0, learner.start(each.sample, config))
        descent = _Descent(learner, starts, rows, settled)
        batch = min(settled[0].batch_size, rows[0].n_rows)
        with threads_for(sum(p.numel() for p in descent.parameters.values()) * batch):
            histories = descent.run(on_epoch, keeper)
        own = {n: p.detach() for n, p in descent.parameters.items() if n not in learner.fixed}
        found = []
        with torch.no_grad():
            for index, (each, config) in enumerate(zip(rows, settled, strict=True)):
                kept = {n: p if descent.alone else p[index].clone() for n, p in own.items()}
                tensors = learner.finish(kept, each.sample, config)
                found.append(Learned(tensors, config, histories[index]))
        return found


@contextmanager
def threads_for(products: int) -> Iterator[None]:
    """Take one thread for few products at a time.

    More gain nothing, wait for each other if the machine is busy, and may sum in another order.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if products < SMALL_STEP else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turn gradients on and seed the global random numbers; both are put back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        seed(config.seed, device)
        yield


def seed(number: int, device: torch.device) -> None:
    """Seed the global random numbers of the CPU and of a device, and of no other."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


class _Descent:
    """State of fits that run as one; Adam moves it on, in place."""

    def __init__(
        self, learner: GradientLearner, starts: Sequence[Mapping[str, Tensor]],
        rows: Sequence[TrainingRows], configs: Sequence[TrainConfig],
    ) -> None:  # fmt: skip
        self.learner, self.rows, self.config = learner, rows, configs[0]
        self.alone, device = len(rows) == 1, rows[0].device
        # Settled: neither is None.
        self.lr, self.n_epochs = self.config.lr or 1e-3, self.config.epochs or 1
        self.parameters: dict[str, Tensor] = dict(starts[0])
        if not self.alone:
            self.parameters = {n: torch.stack([start[n] for start in starts]) for n in starts[0]}
        half = {"encoder": {*self.parameters} - {ATOMS, OFFSET}, "decoder": {ATOMS}}
        stay = half.get(self.config.freeze or "", set()) - {*learner.fixed}
        self.frozen = {name: self.parameters[name].detach().clone() for name in stay}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name not in self.frozen and name not in learner.fixed)
        moving = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.moving = list(moving.values())
        # On a CPU new memory for gradients costs as much as the optimiser, and `products` adds
        # rows to what is there; a GPU has its own pool.
        self.keeps = device.type == "cpu"
        if self.keeps:
            for parameter in self.moving:
                parameter.grad = torch.zeros_like(parameter)
        rates = learner.rates(rows[0].n_units)
        self.rates = [rates.get(name, 1.0) for name in moving]
        groups = [{"params": [p], "lr": self.lr * rates.get(n, 1.0)} for n, p in moving.items()]
        self.optimiser = torch.optim.Adam(groups, lr=self.lr, fused=True)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        self.plateau = plateau(self.optimiser, factor=0.5, patience=10)
        n_rows = rows[0].n_rows
        self.n_steps = steps_of(self.config, n_rows)
        # A mode is dead when a whole pass does not use it; in a fit of few passes, a tenth of it.
        self.until_dead = max(1, min(n_rows, self.n_steps * self.config.batch_size // 10))
        self.idle: Tensor | None = None
        if learner.revives or learner.feeds_dead:
            self.idle = torch.zeros(self.parameters[ATOMS].shape[:-1], device=device)
        self.draw = [torch.Generator().manual_seed(config.seed) for config in configs]
        self.shuffle = [torch.Generator().manual_seed(config.seed) for config in configs]
        self.revivals: set[int] = set()
        part = self.n_steps // (2 * _REVIVALS)
        if learner.revives and part and self.config.freeze is None:
            self.revivals = {part * (i + 1) for i in range(_REVIVALS)}
        self.step = self.done = self.waited = 0
        self.best = math.inf
        self.history: list[list[float]] = []
        self.total = torch.zeros(() if self.alone else len(rows), device=device)
        self.order = [generator.get_state() for generator in self.shuffle]

    def run(self, on_epoch: OnEpoch, keeper: Keeper | None) -> list[tuple[float, ...]]:
        """Descend to the end; the mean training loss of every epoch, fit by fit."""
        state = None if keeper is None else keeper.restore()
        if state is not None:
            self._restore(state)
        patience = self.config.patience
        while len(self.history) < self.n_epochs and (patience is None or self.waited < patience):
            self._pass(keeper)
            loss = self._end_pass()
            on_epoch(Epoch(len(self.history) - 1, self.n_epochs, loss, self._rate()))
        if keeper is not None:
            keeper.last(self._state)
        return [tuple(losses) for losses in zip(*self.history, strict=True)]

    def _pass(self, keeper: Keeper | None) -> None:
        """Do the rest of a pass over all rows."""
        self.order = [generator.get_state() for generator in self.shuffle]
        batches = (
            rows.batches(generator, self.config.batch_size, self.done)
            for rows, generator in zip(self.rows, self.shuffle, strict=True)
        )
        for parts in zip(*batches, strict=True):
            rows = parts[0] if self.alone else torch.stack(parts)
            self.total += self._one_step(rows) * rows.shape[-2]
            self.step, self.done = self.step + 1, self.done + 1
            if keeper is not None:
                keeper.offer(self._state)

    def _end_pass(self) -> float:
        """Return the mean loss of the pass."""
        losses = [total / self.rows[0].n_rows for total in self.total.reshape(-1).tolist()]
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
        settling = self.config.threshold_warmup if self.learner.warms_up else 0.0
        if self.step >= settling * self.n_steps:
            self.waited = 0 if mean < self.best * (1.0 - _BETTER) else self.waited + 1
            self.best = min(self.best, mean)
        return mean

    def _rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"] / self.rates[0])

    def _set_rate(self, rate: float) -> None:
        for group, relative in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * relative

    def _one_step(self, rows: Tensor) -> Tensor:
        """Take a step; return the loss of every fit before it."""
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
                for index in range(len(self.rows)):
                    self._revive(index)
        return loss.detach()

    def _cost(self, rows: Tensor) -> Cost:
        def one(parameters: Parameters, rows: Tensor, dead: Tensor | None) -> Cost:
            step = Step(self.step, self.n_steps, dead, self.config.threshold_warmup)
            return self.learner.cost(parameters, rows, step)

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
            found: Cost = together(self.parameters, rows, dead)
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
        self.learner.project(self.parameters)
        for name, value in self.frozen.items():
            self.parameters[name].copy_(value)

    def _revive(self, index: int) -> None:
        """Set dead modes to rows that are described badly (Bricken et al. 2023).

        Rows are drawn with a probability that grows with the square of their error, each once: two
        modes set to one row would be the same for ever. What is more than the rows stays dead.
        """
        if self.idle is None:
            return
        idle = self.idle if self.alone else self.idle[index]
        modes = (idle >= self.until_dead).nonzero().flatten()
        if not len(modes):
            return
        sample, draw = self.rows[index].sample, self.draw[index]
        order = torch.randperm(len(sample), generator=draw)[:_CANDIDATES]
        rows = sample[order.to(sample.device)]
        part = ... if self.alone else index  # A view: what is set there is set in all.
        parameters = {name: value[part] for name, value in self.parameters.items()}
        residuals = rows - self.learner.reconstruct(parameters, rows)
        weight = residuals.square().sum(1).square().double().cpu()
        if not 0.0 < float(weight.sum()) < math.inf:
            return
        modes = modes[: int(weight.count_nonzero())]
        chosen = torch.multinomial(weight, len(modes), replacement=False, generator=draw)
        chosen = chosen.to(rows.device)
        self.learner.revive(parameters, modes, rows[chosen], residuals[chosen])
        self._project()
        idle[modes] = 0.0
        # Adam forgets what it knew of these modes.
        for name in self.learner.by_mode:
            state = self.optimiser.state.get(self.parameters[name], {})
            for moment in (state[key] for key in ("exp_avg", "exp_avg_sq") if key in state):
                moment[part][modes] = 0.0

    def _state(self) -> State:
        """Return everything that decides on what comes."""
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
        record = {name: getattr(self, name) for name in _COUNTS} | {
            "best": None if math.isinf(self.best) else self.best,
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
        for name in _COUNTS:
            setattr(self, name, record[name])
        self.best = math.inf if record["best"] is None else record["best"]
        self._set_rate(record["lr"])
        if record["plateau"] is not None:
            self.plateau.best, self.plateau.num_bad_epochs = record["plateau"]
