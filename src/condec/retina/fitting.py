"""Training a model of the retina on a movie and the responses to it."""

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condec.basis.errors import DataError, ModelError
from condec.basis.metrics import pearson
from condec.basis.options import digest_of
from condec.basis.progress import progress_bar
from condec.dictionary.fitting.checkpoint import Keeper, State
from condec.dictionary.fitting.descent import seed
from condec.network import run_model
from condec.retina.movies.recording import Recording
from condec.retina.responses import batches, check_cells
from condec.retina.training import FittedRetina, RetinaEpoch, RetinaTraining, copied
from condec.store import fingerprint

_TINY: Final = 1e-8


def poisson_loss(
    rates: Float[Tensor, "sample cell"], answers: Float[Tensor, "sample cell"]
) -> Float[Tensor, ""]:
    r"""Return the negative log likelihood of Poisson answers, without its constant.

    .. math:: L = \frac{1}{SC} \sum_{s,c} r_{sc} - y_{sc} \log (r_{sc} + 10^{-8})

    (McIntosh et al. 2016). Least where rates are the answers.
    """
    return (rates - answers * (rates + _TINY).log()).mean()


def fit_model(
    model: nn.Module, recording: Recording, config: RetinaTraining | None = None, *,
    checkpoint: str | Path | None = None, checkpoint_seconds: float = 60.0,
    progress: bool = False, on_epoch: Callable[[RetinaEpoch], None] | None = None,
) -> FittedRetina:  # fmt: skip
    """Train a model of the retina on a movie and the responses to it.

    Poisson loss, Adam; stops when held-out blocks of time are predicted no better, and keeps the
    weights of the best epoch. Rates of about 1 on average are learnt fastest: divide those in
    spikes a second by 10 or so (`Recording.in_units_of`; the model then gives rates in that unit).

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell], none below 0. It is not
        changed; training starts from its weights.
    recording : Recording
        With rates.
    config : RetinaTraining, optional
    checkpoint : path, optional
        Folder for the state of this one fit. If it was interrupted there, it goes on at the last
        epoch that was kept, and ends with the same bits (on the CPU). The folder stays;
        `condec.dictionary.forget_checkpoint` removes it.
    checkpoint_seconds : float
        Between two checkpoints; none is written by fits that are done earlier.
    progress : bool
        Show a bar on standard error.
    on_epoch : callable, optional
        Called with each `RetinaEpoch`.

    Raises
    ------
    DataError
        No rates, rates below 0, or a movie too short for the history and the held-out blocks.
    ModelError
        The model has nothing to train, fails, gives other cells or rates below 0; or the loss
        became infinite.
    StoreError
        The checkpoint is that of another fit, is damaged, or cannot be written.

    Examples
    --------
    >>> recording = Recording(movie=torch.randn(300, 4, 4), rates=torch.rand(300, 2))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(5 * 4 * 4, 2), nn.Softplus())
    >>> fitted = fit_model(model, recording, RetinaTraining(history=5, epochs=2))
    >>> fitted.correlation.shape, len(fitted.history), len(fitted.held_out_rows)
    (torch.Size([2]), 2, 30)
    """
    config = config or RetinaTraining()
    training = _Training(model, recording, config)
    keeper = None
    if checkpoint is not None:
        keeper = Keeper(checkpoint, training.identity, checkpoint_seconds)
        if (state := keeper.restore()) is not None:
            training.restore(state)
    start = time.perf_counter()
    with progress_bar(type(model).__name__, None, unit="epochs", shown=progress) as move:
        while not training.done:
            epoch = training.step()
            if keeper is not None:
                keeper.offer(training.state)
            note = f"loss {epoch.held_out_loss:.4f}"
            move(completed=epoch.index + 1, total=config.epochs, note=note)
            if on_epoch is not None:
                on_epoch(epoch)
    if keeper is not None:
        keeper.last(training.state)
    return training.finish(time.perf_counter() - start if keeper is None else keeper.elapsed)


def split_blocks(
    n_samples: int, held_out: float, n_blocks: int, history: int
) -> tuple[Tensor, Tensor]:
    """Split samples into rows to train on and blocks to hold out that share no frame with them.

    Sample j takes frames j .. j + history, its response included; training samples within
    `history` of a block are left out. DataError where nothing is left on either side.
    """
    length = round(n_samples * held_out / n_blocks)
    centres = (torch.arange(n_blocks) + 0.5) * n_samples / n_blocks
    starts = (centres - length / 2).long()
    held = (starts[:, None] + torch.arange(length)).flatten()
    near = torch.zeros(n_samples, dtype=torch.bool)
    for start in starts.tolist():
        near[max(0, start - history) : start + length + history] = True
    train = (~near).nonzero()[:, 0]
    if length < 2 or not len(train):
        raise DataError(
            f"fit_model: {n_samples} samples are too few for {n_blocks} held-out blocks of "
            f"{length} and {history} frames left out on either side of each; take a longer movie, "
            "fewer blocks, or another share"
        )
    return train, held


def _warn_of_silence(recording: Recording, answers: Tensor) -> None:
    """Warn of cells without spikes, of which nothing can be learnt; DataError where all are."""
    silent = (~answers.any(0)).nonzero().flatten().tolist()
    cells = recording.cells or tuple(map(str, range(answers.shape[1])))
    if len(silent) == len(cells):
        raise DataError(
            f"{recording.name}: none of {len(cells)} cells has a spike in the training frames, so "
            "nothing can be learnt; give the rates of these cells, or a longer recording"
        )
    if silent:
        warnings.warn(
            f"{recording.name}: cells without spikes in the training frames: "
            f"{', '.join(cells[one] for one in silent)}. Their rates are learnt as 0, whatever is "
            "shown; leave them out by Recording.of_cells",
            UserWarning,
            stacklevel=4,
        )


class _Training:
    """State of a fit, and how it moves on by one epoch."""

    def __init__(self, model: nn.Module, recording: Recording, config: RetinaTraining) -> None:
        answers = recording.responses(config.history)
        if bool((answers < 0).any()):
            raise DataError(
                f"{recording.name}: {int((answers < 0).sum())} rates are below 0, which no number "
                "of spikes is; give rates of 0 or more"
            )
        self.given, self.recording, self.config = model, recording, config
        self.train_rows, self.held_out_rows = split_blocks(
            len(answers), config.held_out, config.n_blocks, config.history
        )
        _warn_of_silence(recording, answers[self.train_rows])
        first = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.home, self.device = first, torch.device(config.device or first)
        self.model = copy.deepcopy(model).to(self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ModelError(f"{type(model).__name__} has no parameter to train")
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.lr)
        self.movie, self.answers = recording.movie.to(self.device), answers.to(self.device)
        self.history: list[RetinaEpoch] = []
        self.best = copied(self.model.state_dict())
        predicted = self._predicted(self.held_out_rows[: config.batch_size])
        check_cells(model, predicted, answers)
        if bool((predicted < 0).any()):
            raise ModelError(
                f"{type(model).__name__}: gives rates below 0 (the least is "
                f"{float(predicted.min()):.3g}), which have no Poisson loss; end it with "
                "torch.nn.Softplus()"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Return what tells the checkpoint of this fit from others."""
        return {
            "versions": {"condec": metadata.version("condec"), "torch": torch.__version__},
            "model": fingerprint(self.given),
            "config": self.config.to_dict(),
            "movie": self.recording.windows(self.config.history).fingerprint,
            "rates": digest_of(self.recording.rates),
        }

    @property
    def best_epoch(self) -> int:
        """Return the index of the epoch with the lowest held-out loss, the first of several."""
        losses = [epoch.held_out_loss for epoch in self.history]
        return losses.index(min(losses))

    @property
    def done(self) -> bool:
        """Tell whether all epochs are run, or the last ones were no better."""
        n_done = len(self.history)
        worse = n_done - self.best_epoch if n_done else 0
        return n_done >= self.config.epochs or worse > self.config.patience

    def step(self) -> RetinaEpoch:
        """Run one epoch, and measure it."""
        index = len(self.history)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            seed((self.config.seed << 20) + index, self.device)
            loss = self._descend()
        predicted, answers = self._held_out()
        epoch = RetinaEpoch(
            index=index, loss=loss, held_out_loss=float(poisson_loss(predicted, answers)),
            correlation=float(pearson(predicted, answers, dim=0).mean()),
        )  # fmt: skip
        if not (math.isfinite(epoch.loss) and math.isfinite(epoch.held_out_loss)):
            raise ModelError(
                f"{type(self.given).__name__}: the loss is {epoch.loss} on the training samples "
                f"and {epoch.held_out_loss} on the held-out ones after epoch {index}; lower lr "
                f"(it is {self.config.lr}), or see to it that no rate is below 0"
            )
        self.history.append(epoch)
        if self.best_epoch == index:
            self.best = copied(self.model.state_dict())
        return epoch

    def state(self) -> State:
        """Return all that going on needs."""
        found = _named("model", copied(self.model.state_dict())) | _named("best", self.best)
        for place, moments in self.optimiser.state_dict()["state"].items():
            found |= _named(f"adam {place}", moments)
        epochs = [dataclasses.asdict(epoch) for epoch in self.history]
        return State(found, {"step": len(self.history), "history": epochs})

    def restore(self, state: State) -> None:
        """Go on from a checkpoint."""
        self.history = [RetinaEpoch(**epoch) for epoch in state.record["history"]]
        self.model.load_state_dict(_under("model", state.tensors))
        self.best = _under("best", state.tensors)
        adam = self.optimiser.state_dict()
        places = range(len(self.parameters))
        moments = {place: _under(f"adam {place}", state.tensors) for place in places}
        adam["state"] = {place: each for place, each in moments.items() if each}
        self.optimiser.load_state_dict(adam)

    def finish(self, seconds: float) -> FittedRetina:
        """Put the best weights back, and measure."""
        self.model.load_state_dict(self.best)
        predicted, answers = self._held_out()
        return FittedRetina(
            model=self.model.to(self.home).eval(), config=self.config, history=tuple(self.history),
            best_epoch=self.best_epoch, correlation=pearson(predicted, answers, dim=0),
            cells=self.recording.cells, train_rows=self.train_rows,
            held_out_rows=self.held_out_rows, seconds=seconds,
        )  # fmt: skip

    def _descend(self) -> float:
        """Pass over the training samples once; return the mean loss."""
        config, total = self.config, torch.zeros((), device=self.device)
        # A last batch of one sample has no variance, which batch norm needs.
        order = self.train_rows[torch.randperm(len(self.train_rows))]
        if len(order) > 1 and len(order) % config.batch_size == 1:
            order = order[:-1]
        self.model.train()
        for clips, rows in self._batches(order):
            rates = run_model(self.model, clips)
            loss = poisson_loss(rates, self.answers[rows.to(self.device)])
            if config.activity_l1:
                loss = loss + config.activity_l1 * rates.abs().mean()
            if config.weight_l2:
                weights = [p for p in self.parameters if p.ndim > 1]
                loss = loss + config.weight_l2 * sum(p.square().sum() for p in weights)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            total += loss.detach() * len(rows)
        return float(total) / len(order)

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """Return predicted rates and answers of the held-out samples."""
        answers = self.answers[self.held_out_rows.to(self.device)]
        return self._predicted(self.held_out_rows), answers.cpu()

    @torch.no_grad()
    def _predicted(self, rows: Tensor) -> Tensor:
        self.model.eval()
        found = [run_model(self.model, clips).float().cpu() for clips, _ in self._batches(rows)]
        return torch.cat(found)

    def _batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        return batches(self.model, self.movie, rows, config.history, config.batch_size)


def _named(head: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{head}/{name}": tensor for name, tensor in tensors.items()}


def _under(head: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{head}/"): t for k, t in tensors.items() if k.startswith(f"{head}/")}
