"""Analysis of a retina in a run: receptive fields, and what modes have to do with the cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.data.inputs import spread
from condec.modes import Modes
from condec.retina.cells import cluster, mode_cell_correlation
from condec.retina.combinations import CombinationFields, combinations, fields_of_combinations
from condec.retina.explained import explained_variance, pooled_stimulus
from condec.retina.fields import ReceptiveFields, receptive_fields
from condec.retina.movies.recording import Windows
from condec.retina.options import RetinaOptions
from condec.retina.responses import Responses

if TYPE_CHECKING:
    import pandas


@short_repr
@dataclass(frozen=True, eq=False)
class SiteAnalysis:
    """Relations of the modes of one site to cells, to each other, and to receptive fields.

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


def fields_of(model: nn.Module, windows: Windows, options: RetinaOptions) -> ReceptiveFields:
    """Take receptive fields at frames spread evenly over the movie; signs do not jump."""
    return receptive_fields(
        model, windows, cells=options.cells or None, rows=spread(len(windows), options.n_fields),
        crop=options.crop, batch_size=options.batch_size,
    ).aligned()  # fmt: skip


def analyse(
    modes: Modes, responses: Responses, fields: ReceptiveFields, windows: Windows,
    options: RetinaOptions,
) -> SiteAnalysis:  # fmt: skip
    """Relate the modes of one site to cells, to each other, and to receptive fields.

    The modes are those of a store of the same clips, at least one of them alive. DataError where
    the store has other samples than the recording has clips.
    """
    loadings = modes.loadings
    if len(loadings) != len(responses.rates):
        raise DataError(
            f"{modes.site.key}: modes of {len(loadings)} samples, responses of "
            f"{len(responses.rates)}; collect and analyse the same recording, without skipped ones"
        )
    table = combinations(
        loadings, threshold=options.threshold, n_shifts=options.n_shifts, seed=options.seed
    )
    try:
        found = fields_of_combinations(fields, loadings[fields.rows], threshold=options.threshold)
    except DataError:  # every combination is rare: there is no mean field to show
        found = None
    activations = modes.store.matrix(modes.site, quantity="activation", sign=modes.sign)
    names = [named(columns, modes.ids) for columns in table["combination"]]
    explained = explained_variance(
        fields, loadings[fields.rows], pooled_stimulus(windows, fields.rows),
        activations[fields.rows], folds=options.folds, seed=options.seed,
    )  # fmt: skip
    cells = _cells(modes, responses, options)
    return SiteAnalysis(cells, table.assign(combination=names), found, explained)


def named(columns: Sequence[int], ids: Tensor) -> str:
    """Write a combination as numbers of its modes in the dictionary; empty for none."""
    return ", ".join(str(int(ids[column])) for column in columns)


def _cells(modes: Modes, responses: Responses, options: RetinaOptions) -> "pandas.DataFrame":
    import pandas

    found = mode_cell_correlation(modes.loadings, responses.rates)
    n_cells, n_modes = found.shape
    clusters, cell_order, silhouette = [0] * n_cells, torch.arange(n_cells), float("nan")
    if n_cells > 2:
        groups = cluster(found, seed=options.seed)
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
