"""What a model of the retina answers to a movie, and how well that agrees with recorded cells."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condec.basis.errors import ModelError
from condec.basis.metrics import pearson
from condec.network import refuse_training, run_model
from condec.retina.movies.movies import Recording


def correlation(
    model: nn.Module,
    recording: Recording,
    *,
    history: int = 40,
    rows: Sequence[int] | Tensor | None = None,
    batch_size: int = 128,
) -> Float[Tensor, " cell"]:
    """Pearson correlation over time of predicted and recorded rates, cell by cell.

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell]; in evaluation mode.
    recording : Recording
        With rates.
    history : int
        Frames of a clip.
    rows : sequence of int, optional
        Samples to take, numbered as in `Recording.windows`; by default all.
    batch_size : int

    Returns
    -------
    Tensor of shape [cell]
        0 where either of both does not change.

    Raises
    ------
    DataError
        No rates, or a movie that is not longer than the history.
    ModelError
        The model is in training mode, fails, or gives another number of cells.
    """
    answers = recording.responses(history)
    chosen = _rows(rows, len(answers))
    predicted = predicted_rates(
        model, recording, history=history, rows=chosen, batch_size=batch_size
    )
    answers = answers[chosen.to(answers.device)].cpu()
    check_cells(model, predicted, answers)
    return pearson(predicted, answers, dim=0)


@torch.no_grad()
def predicted_rates(
    model: nn.Module,
    recording: Recording,
    *,
    history: int = 40,
    rows: Sequence[int] | Tensor | None = None,
    batch_size: int = 128,
) -> Float[Tensor, "sample cell"]:
    """Rates that a model gives to the clips of a recording; on the CPU.

    Parameters
    ----------
    model, recording, history, rows, batch_size
        As in `correlation`; the recording needs no rates.

    Raises
    ------
    DataError
        A movie that is not longer than the history.
    ModelError
        The model is in training mode or fails.
    """
    refuse_training(model)
    chosen = _rows(rows, len(recording.windows(history)))
    found = [
        run_model(model, clips).float().cpu()
        for clips, _ in batches(model, recording.movie, chosen, history, batch_size)
    ]
    return torch.cat(found)


def batches(
    model: nn.Module, movie: Tensor, rows: Tensor, history: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips [sample, history, y, x] on the model's device, and their rows, batch by batch."""
    device = next((p.device for p in model.parameters()), movie.device)
    frames = torch.arange(history)
    for part in torch.split(rows, batch_size):
        place = (part[:, None] + frames).to(movie.device)
        yield movie[place].to(device), part


def check_cells(model: nn.Module, predicted: Tensor, answers: Tensor) -> None:
    """Raise ModelError where a model gives other cells than were recorded."""
    if predicted.ndim != 2 or predicted.shape[1:] != answers.shape[1:]:
        raise ModelError(
            f"{type(model).__name__}: expected rates [sample, cell] of the {answers.shape[1]} "
            f"cells of the recording; got shape {tuple(predicted.shape)}. Choose the cells of the "
            "recording that the model has (Recording.of_cells), or another model"
        )


def _rows(rows: Sequence[int] | Tensor | None, n_samples: int) -> Tensor:
    return torch.arange(n_samples) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
