"""Rates that a model of the retina gives to a movie, and how well they agree with recorded ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.basis.errors import DataError, ModelError
from condec.basis.metrics import correlation_matrix
from condec.basis.records import short_repr
from condec.data import Inputs
from condec.network import refuse_training, run_model
from condec.retina.movies.recording import Windows


@short_repr
@dataclass(frozen=True, eq=False)
class Responses:
    """Rates of all cells over the movie, and what is known of it.

    Attributes
    ----------
    rates : Tensor of shape [sample, cell]
        Of the model.
    recorded : Tensor of shape [sample, cell], or None
        Of the recording, where it has the model's cells.
    events : Tensor of shape [event, sample]
    frames : Tensor of shape [sample], int64
        Frame of the movie that each response belongs to.
    seconds_per_frame : float
    cells, event_names : tuple of str
    name : str
        Of the recording.
    """

    rates: Float[Tensor, "sample cell"]
    events: Float[Tensor, "event sample"]
    frames: Int[Tensor, " sample"]
    seconds_per_frame: float
    cells: tuple[str, ...]
    event_names: tuple[str, ...]
    name: str
    recorded: Float[Tensor, "sample cell"] | None = None

    @property
    def seconds(self) -> Float[Tensor, " sample"]:
        """Return the time of every response."""
        return self.frames * self.seconds_per_frame

    @property
    def correlation(self) -> Float[Tensor, " cell"]:
        """Correlate model and recording over time (Pearson).

        NaN without a recording, and of cells that it holds without spikes, or at one rate.
        """
        if self.recorded is None:
            return torch.full((len(self.cells),), torch.nan)
        found = correlation_matrix(self.rates, self.recorded).diagonal()
        return torch.where((self.recorded == self.recorded[0]).all(0), torch.nan, found)


def respond(model: nn.Module, windows: Windows, *, batch_size: int = 64) -> Responses:
    """Return the rates that the model gives to every clip of a recording, with the recorded ones.

    Recorded rates stand there only where the recording's cells have the names of the model's
    (``windows.label_names``, where the model brings some).

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell]; in evaluation mode.
    windows : Windows
        Of `Recording.windows`.
    batch_size : int

    Raises
    ------
    DataError
        The model gives no rates, or rates that are not finite (the first frame is named).
    """
    recording, rates = windows.recording, _rates(model, windows, batch_size)
    frames = torch.tensor([int(one) for one in windows.ids])
    cells = tuple(str(cell) for cell in range(rates.shape[1]))
    for names in (recording.cells, windows.label_names):  # the model's own names count most
        if names is not None and len(names) == rates.shape[1]:
            cells = tuple(names)
    recorded = recording.rates if recording.cells == cells else None
    events = [course.float()[frames] for course in recording.events.values()]
    return Responses(
        rates=rates, recorded=None if recorded is None else recorded[frames], cells=cells,
        events=torch.stack(events) if events else rates.new_zeros(0, len(rates)), frames=frames,
        event_names=tuple(recording.events), name=recording.name,
        seconds_per_frame=recording.seconds_per_frame,
    )  # fmt: skip


def batches(
    model: nn.Module, movie: Tensor, rows: Tensor, history: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield clips [sample, history, y, x] on the model's device, and their rows."""
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


def _rates(model: nn.Module, inputs: Inputs, batch_size: int) -> Tensor:
    refuse_training(model)
    found = []
    for start in range(0, len(inputs), batch_size):
        rows = range(start, min(start + batch_size, len(inputs)))
        with torch.no_grad():
            rates = run_model(model, prepare_inputs(model, inputs.batch(rows)))
        if rates.ndim != 2:
            raise DataError(
                "respond: expected rates of shape [sample, cell]; the model gave "
                f"{tuple(rates.shape)}"
            )
        wrong = (~rates.isfinite()).any(1).nonzero().flatten().tolist()
        if wrong:
            raise DataError(
                f"{inputs.name}: rates to the clip of frame {inputs.ids[rows[wrong[0]]]} are not "
                "finite; check the movie's scaling and the model's weights"
            )
        found.append(rates.float().cpu())
    return torch.cat(found)
