"""What a run says about a retina: responses, receptive fields, and what modes do with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.basis.errors import DataError
from condec.basis.metrics import correlation_matrix
from condec.data import Inputs
from condec.data.inputs import spread
from condec.modes import Modes
from condec.network import refuse_training, run_model
from condec.retina.cells import cluster, mode_cell_correlation
from condec.retina.combinations import CombinationFields, combinations, fields_of_combinations
from condec.retina.explained import explained_variance, pooled_stimulus
from condec.retina.fields import ReceptiveFields, receptive_fields
from condec.retina.movies.movies import Windows
from condec.retina.options import RetinaOptions

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Responses:
    """Rates of all cells over the movie, and what is known of it.

    Attributes
    ----------
    rates : Tensor of shape [sample, cell]
        Of the model.
    recorded : Tensor of shape [sample, cell], or None
        Of the recording, where it has as many cells as the model.
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
        """Time of every response."""
        return self.frames * self.seconds_per_frame

    @property
    def correlation(self) -> Float[Tensor, " cell"]:
        """Pearson correlation of model and recording for every cell; NaN without a recording."""
        if self.recorded is None:
            return torch.full((len(self.cells),), torch.nan)
        return correlation_matrix(self.rates, self.recorded).diagonal()


@dataclass(frozen=True, eq=False)
class SiteAnalysis:
    """What the modes of one site have to do with the cells.

    Attributes
    ----------
    cells : pandas.DataFrame
        One row for each pair: ``cell`` (name), ``mode`` (number in the dictionary),
        ``correlation``, ``cluster`` of the cell, ``cell_place`` and ``mode_place`` in a drawing,
        and ``silhouette`` of the clustering.
    combinations : pandas.DataFrame
        Of `condec.retina.combinations`, with numbers of modes in the dictionary, as text.
    combination_fields : CombinationFields, or None
        None where no combination is frequent enough.
    explained : pandas.DataFrame
        Of `condec.retina.explained_variance`.
    """

    cells: "pandas.DataFrame"
    combinations: "pandas.DataFrame"
    combination_fields: CombinationFields | None
    explained: "pandas.DataFrame"


def respond(model: nn.Module, windows: Windows, *, batch_size: int = 64) -> Responses:
    """Rates that the model gives to every clip of a recording, beside the recorded ones.

    Recorded rates stand beside them only where the recording's cells have the names of the
    model's (``windows.label_names``, where the model brings some).

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
    refuse_training(model)
    recording = windows.recording
    rates = _rates(model, windows, batch_size)
    frames = torch.tensor([int(one) for one in windows.ids])
    names = _names(windows, rates.shape[1])
    fits = recording.rates is not None and recording.cells == names
    events = list(recording.events.values())
    return Responses(
        rates=rates,
        recorded=recording.rates[frames] if fits and recording.rates is not None else None,
        events=torch.stack([e.float()[frames] for e in events])
        if events
        else rates.new_zeros(0, len(rates)),
        frames=frames,
        seconds_per_frame=recording.seconds_per_frame,
        cells=names,
        event_names=tuple(recording.events),
        name=recording.name,
    )


def _names(windows: Windows, n_cells: int) -> tuple[str, ...]:
    """The model's own names of its cells, else the recording's where it has as many."""
    for names in (windows.label_names, windows.recording.cells):
        if names is not None and len(names) == n_cells:
            return tuple(names)
    return tuple(str(cell) for cell in range(n_cells))


def _rates(model: nn.Module, inputs: Inputs, batch_size: int) -> Tensor:
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


def fields_of(model: nn.Module, windows: Windows, options: RetinaOptions) -> ReceptiveFields:
    """Receptive fields at frames spread evenly over the movie; signs do not jump."""
    return receptive_fields(
        model,
        windows,
        cells=options.cells or None,
        rows=spread(len(windows), options.n_fields),
        crop=options.crop,
        batch_size=options.batch_size,
    ).aligned()


def analyse(
    modes: Modes, responses: Responses, fields: ReceptiveFields, windows: Windows,
    options: RetinaOptions,
) -> SiteAnalysis:  # fmt: skip
    """What the modes of one site have to do with cells, with each other, and with fields.

    Parameters
    ----------
    modes : Modes
        Of a store of the same clips; at least one is alive.
    responses : Responses
    fields : ReceptiveFields
    windows : Windows
    options : RetinaOptions

    Raises
    ------
    DataError
        The store has other samples than the recording has clips.
    """
    loadings = modes.loadings
    if len(loadings) != len(responses.rates):
        raise DataError(
            f"{modes.site.key}: modes of {len(loadings)} samples, responses of "
            f"{len(responses.rates)}; collect and analyse the same recording, without skipped ones"
        )
    active = {"threshold": options.threshold, "relative": True}
    return SiteAnalysis(
        cells=_cells(modes, responses, options),
        combinations=_combinations(modes, options),
        combination_fields=_combination_fields(fields, loadings[fields.rows], active),
        explained=_explained(modes, fields, windows, options),
    )


def _cells(modes: Modes, responses: Responses, options: RetinaOptions) -> "pandas.DataFrame":
    import pandas

    found = mode_cell_correlation(modes.loadings, responses.rates)
    n_cells, n_modes = found.shape
    clusters, cell_order, silhouette = [0] * n_cells, torch.arange(n_cells), float("nan")
    if n_cells > 2:
        groups = cluster(found, options.method, seed=options.seed)
        clusters, cell_order = groups.labels.tolist(), groups.order
        silhouette = float(groups.silhouettes.max())
    # Modes by the cell that they go with most, in the order of the cells.
    place = cell_order.argsort()
    mode_order = (place[found.argmax(0)] - found.amax(0) / 10).argsort()
    mode_place = mode_order.argsort()
    return pandas.DataFrame(
        [
            {
                "cell": responses.cells[cell],
                "mode": int(modes.ids[mode]),
                "correlation": float(found[cell, mode]),
                "cluster": clusters[cell],
                "cell_place": int(place[cell]),
                "mode_place": int(mode_place[mode]),
                "silhouette": silhouette,
            }
            for cell in range(n_cells)
            for mode in range(n_modes)
        ]
    )


def _combinations(modes: Modes, options: RetinaOptions) -> "pandas.DataFrame":
    table = combinations(
        modes.loadings,
        threshold=options.threshold,
        relative=True,
        n_shifts=options.n_shifts,
        seed=options.seed,
    )
    names = [named(columns, modes.ids) for columns in table["combination"]]
    return table.assign(combination=names)


def named(columns: Sequence[int], ids: Tensor) -> str:
    """A combination in words: numbers of its modes in the dictionary; empty for none."""
    return ", ".join(str(int(ids[column])) for column in columns)


def _combination_fields(
    fields: ReceptiveFields, loadings: Tensor, active: dict[str, Any]
) -> CombinationFields | None:
    try:
        return fields_of_combinations(fields, loadings, **active)
    except DataError:  # every combination is rare: there is no mean field to show
        return None


def _explained(
    modes: Modes, fields: ReceptiveFields, windows: Windows, options: RetinaOptions
) -> "pandas.DataFrame":
    activations = modes.store.matrix(modes.site, quantity="activation", sign=modes.sign)
    return explained_variance(
        fields,
        modes.loadings[fields.rows],
        pooled_stimulus(windows, fields.rows),
        activations[fields.rows],
        folds=options.folds,
        seed=options.seed,
    )
