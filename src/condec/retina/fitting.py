"""Training a model of the retina on a movie and the responses to it."""

import copy
import math
import time
from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condec.basis.errors import DataError, ModelError
from condec.basis.metrics import pearson
from condec.basis.progress import progress_bar
from condec.dictionary.fitting.descent import seed
from condec.network import run_model
from condec.retina.movies.recording import Recording
from condec.retina.responses import batches, check_cells
from condec.retina.training import FittedRetina, RetinaEpoch, RetinaTraining, copied

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
    progress: bool = False,
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
    progress : bool
        Show a bar on standard error.

    Raises
    ------
    DataError
        No rates, rates below 0, or a movie too short for the history and the held-out blocks.
    ModelError
        The model has nothing to train, fails, gives other cells or rates below 0; or the loss
        became infinite.

    Examples
    --------
    >>> recording = Recording(movie=torch.randn(300, 4, 4), rates=torch.rand(300, 2))
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(5 * 4 * 4, 2), nn.Softplus())
    >>> fitted = fit_model(model, recording, RetinaTraining(history=5, epochs=2))
    >>> fitted.correlation.shape, len(fitted.history), len(fitted.held_out_rows)
    (torch.Size([2]), 2, 30)
    """
    config = config or RetinaTraining()
    start, training = time.perf_counter(), _Training(model, recording, config)
    history: list[RetinaEpoch] = []
    best, weights = 0, dict[str, Tensor]()
    with progress_bar(type(model).__name__, None, unit="epochs", shown=progress) as move:
        for index in range(config.epochs):
            history.append(epoch := training.epoch(index))
            note = f"loss {epoch.held_out_loss:.4f}"
            move(completed=index + 1, total=config.epochs, note=note)
            if not index or epoch.held_out_loss < history[best].held_out_loss:
                best, weights = index, copied(training.model.state_dict())
            elif index - best >= config.patience:
                break
    training.model.load_state_dict(weights)
    return FittedRetina(
        model=training.model.to(training.home).eval(), config=config, history=tuple(history),
        best_epoch=best, correlation=pearson(*training.held_out(), dim=0), cells=recording.cells,
        train_rows=training.train_rows, held_out_rows=training.held_out_rows,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


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


class _Training:
    """A copy of a model, and how it moves on by one epoch."""

    def __init__(self, model: nn.Module, recording: Recording, config: RetinaTraining) -> None:
        answers = recording.responses(config.history)
        if bool((answers < 0).any()):
            raise DataError(
                f"{recording.name}: {int((answers < 0).sum())} rates are below 0, which no number "
                "of spikes is; give rates of 0 or more"
            )
        self.config = config
        self.train_rows, self.held_out_rows = split_blocks(
            len(answers), config.held_out, config.n_blocks, config.history
        )
        first = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.home, self.device = first, torch.device(config.device or first)
        self.model = copy.deepcopy(model).to(self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ModelError(f"{type(model).__name__} has no parameter to train")
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.lr)
        self.movie, self.answers = recording.movie.to(self.device), answers.to(self.device)
        predicted = self._predicted(self.held_out_rows[: config.batch_size])
        check_cells(model, predicted, answers)
        if bool((predicted < 0).any()):
            raise ModelError(
                f"{type(model).__name__}: gives rates below 0 (the least is "
                f"{float(predicted.min()):.3g}), which have no Poisson loss; end it with "
                "torch.nn.Softplus()"
            )

    def epoch(self, index: int) -> RetinaEpoch:
        """Run one epoch, and measure it."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            seed((self.config.seed << 20) + index, self.device)
            loss = self._descend()
        predicted, answers = self.held_out()
        held_out_loss = float(poisson_loss(predicted, answers))
        if not (math.isfinite(loss) and math.isfinite(held_out_loss)):
            raise ModelError(
                f"{type(self.model).__name__}: the loss is {loss} on the training samples and "
                f"{held_out_loss} on the held-out ones after epoch {index}; lower lr (it is "
                f"{self.config.lr}), or see to it that no rate is below 0"
            )
        correlation = float(pearson(predicted, answers, dim=0).mean())
        return RetinaEpoch(
            index=index, loss=loss, held_out_loss=held_out_loss, correlation=correlation
        )

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return predicted rates and answers of the held-out samples."""
        answers = self.answers[self.held_out_rows.to(self.device)]
        return self._predicted(self.held_out_rows), answers.cpu()

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

    @torch.no_grad()
    def _predicted(self, rows: Tensor) -> Tensor:
        self.model.eval()
        found = [run_model(self.model, clips).float().cpu() for clips, _ in self._batches(rows)]
        return torch.cat(found)

    def _batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        config = self.config
        return batches(self.model, self.movie, rows, config.history, config.batch_size)
