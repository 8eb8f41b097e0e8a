"""Figures of a retina: what they show, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch

from condec.basis.errors import DataError
from condec.report.figures.style import NEGATIVE
from condec.retina import figures


def traces(**changes):
    time = torch.arange(30)
    given = {
        "seconds": time / 100,
        "rates": {"model": torch.rand(30), "recorded": torch.rand(30)},
        "contributions": torch.randn(30, 4),
        "loadings": {"mode 3": torch.rand(30), "mode 8": torch.zeros(30)},
        "events": {"gate": (time > 10).float(), "never": torch.zeros(30)},
        "cell": "7",
    }
    return figures.traces_figure(**(given | changes))


def test_traces_show_rates_events_contributions_and_loadings():
    figure = traces()
    rates, events, heat, loadings = figure.axes
    assert len(rates.lines) == 2
    assert [label.get_text() for label in events.get_yticklabels()] == ["gate"]
    assert heat.images[0].get_array().shape == (4, 30)
    assert [label.get_text() for label in loadings.get_yticklabels()] == ["mode 3", "mode 8"]


def test_traces_without_events_or_recording():
    figure = traces(events=None, rates={"model": torch.rand(30)})
    assert not figure.axes[1].get_yticks().size


@pytest.mark.usefixtures("unchecked")
def test_traces_of_other_lengths_are_refused():
    with pytest.raises(DataError, match="got lengths 12, 30"):
        traces(contributions=torch.randn(12, 4))


def test_fields_share_one_scale_and_films_too():
    spatial = torch.zeros(9, 5, 5)
    spatial[0, 2, 2], spatial[8, 1, 1] = 1.0, -4.0
    figure = figures.fields_figure(spatial, torch.rand(9, 6), list("abcdefghi"))
    limits = {image.get_clim() for axis in figure.axes for image in axis.images}
    assert limits == {(-4.0, 4.0)}
    film = figures.field_film(spatial, zoom=3)
    assert [one.shape for one in film] == [(15, 15, 3)] * 9
    assert film[8][3, 3].tolist() == [int(NEGATIVE[i : i + 2], 16) for i in (1, 3, 5)]
    assert (film[4] >= 254).all()  # white, within rounding of the colour map
    with pytest.raises(DataError, match="at least one; got 0, 0 and 0"):
        figures.fields_figure(spatial[:0], torch.rand(0, 6), [])


def test_mode_cell_matrix_has_lines_between_clusters():
    figure = figures.mode_cell_figure(
        torch.tensor([[0.5, -0.2], [0.1, 0.4], [0.0, 0.3]]), ["a", "b", "c"], ["1", "2"],
        clusters=[0, 1, 1],
    )  # fmt: skip
    axis = figure.axes[0]
    assert axis.images[0].get_clim() == (-0.5, 0.5)
    assert [line.get_ydata()[0] for line in axis.lines] == [0.5]
    with pytest.raises(DataError, match=r"expected \[cell, mode\]"):
        figures.mode_cell_figure(torch.zeros(0, 2), [], ["1", "2"])


def test_combinations_stand_by_their_counts():
    table = pd.DataFrame(
        {"combination": ["1, 2, 3, 4, 5, 6", "", "2"], "count": [5, 90, 30],
         "expected": [1.0, 70.0, 40.0]}
    )  # fmt: skip
    axis = figures.combinations_figure(table, most=2).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["2", "none"]
    assert [bar.get_width() for bar in axis.patches] == [30, 90]
    assert figures.combinations_figure(table).axes[0].get_yticklabels()[0].get_text() == (
        "1, 2, 3, 4 + 2"
    )
    with pytest.raises(DataError, match="no such row"):
        figures.combinations_figure(table[:0])


def test_explained_shows_the_cell_and_the_others():
    rows = [
        {"cell": cell, "predictor": name, "r2": 0.1 * cell, "r2_low": 0.0, "r2_high": 0.5}
        for cell in range(3)
        for name in ("modes", "stimulus clusters")
    ]
    axis = figures.explained_figure(pd.DataFrame(rows), cell=2).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["stimulus clusters", "modes"]
    points = [line.get_xdata() for line in axis.lines if line.get_marker() == "."]
    np.testing.assert_allclose(points, [[0.0, 0.1], [0.0, 0.1]])
