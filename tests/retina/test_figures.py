"""Figures of a retina: what they show, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch

from condec.basis.errors import DataError
from condec.figures.style import NEGATIVE, described
from condec.retina import FieldSources, RankOne, Responses, figures


def answers(n: int = 30, **changes) -> Responses:
    time = torch.arange(n)
    given = {
        "rates": torch.rand(n, 3),
        "events": torch.stack(((time > 10).float(), torch.zeros(n))),
        "frames": time,
        "seconds_per_frame": 0.01,
        "cells": ("5", "6", "7"),
        "event_names": ("gate", "never"),
        "name": "movie",
        "recorded": torch.rand(n, 3),
    }
    return Responses(**(given | changes))


def traces(responses: Responses, n: int = 20):
    loadings = {"mode 3": torch.rand(20), "mode 8": torch.zeros(20)}
    return figures.traces_figure(responses, 2, slice(5, 25), torch.randn(n, 4), loadings)


def test_traces_show_rates_events_contributions_and_loadings():
    given = answers()
    figure = traces(given)
    rates, events, heat, loadings = figure.axes
    recorded, model = (line.get_ydata() for line in rates.lines)
    np.testing.assert_array_equal(recorded, given.recorded[5:25, 2])
    np.testing.assert_array_equal(model, given.rates[5:25, 2])
    assert rates.get_ylim()[0] == 0
    assert "Cell 7" in described(figure)
    assert [label.get_text() for label in events.get_yticklabels()] == ["gate"]
    assert heat.images[0].get_array().shape == (4, 20)
    assert [label.get_text() for label in loadings.get_yticklabels()] == ["mode 3", "mode 8"]


def test_traces_without_events_or_recording():
    figure = traces(answers(event_names=(), events=torch.zeros(0, 30), recorded=None))
    assert len(figure.axes[0].lines) == 1
    assert not figure.axes[1].get_yticks().size


@pytest.mark.usefixtures("unchecked")
def test_traces_of_other_lengths_are_refused():
    with pytest.raises(DataError, match="contributions of 20 frames, one or more; got 12"):
        traces(answers(), 12)


def test_fields_share_one_scale_and_films_too():
    spatial = torch.zeros(9, 1, 5, 5)
    spatial[0, 0, 2, 2], spatial[8, 0, 1, 1] = 1.0, -1.0
    strength = torch.ones(9, 1)
    strength[8] = 4.0
    fields = RankOne(
        spatial=spatial, temporal=torch.rand(9, 1, 6), strength=strength, separability=strength
    )
    options = {"heading": "Fields of cell 7", "seconds_per_frame": 0.01}
    figure = figures.fields_figure(fields, 0, list("abcdefghi"), **options)
    limits = {image.get_clim() for axis in figure.axes for image in axis.images}
    assert limits == {(-4.0, 4.0)}
    assert described(figure).startswith("Fields of cell 7: ")
    film = figures.field_film(fields, 0, zoom=3)
    assert [one.shape for one in film] == [(15, 15, 3)] * 9
    assert film[8][3, 3].tolist() == [int(NEGATIVE[i : i + 2], 16) for i in (1, 3, 5)]
    assert (film[4] >= 254).all()  # white, within rounding of the colour map
    with pytest.raises(DataError, match="names of 9 fields, one or more; got 0"):
        figures.fields_figure(fields, 0, [], **options)


def test_probes_are_drawn_as_changes_over_the_largest_of_each_cell():
    still = torch.full((10, 3), 0.5)
    weak = torch.full((20, 3), 0.5)
    weak[8, :2] = torch.tensor([0.51, 0.49])
    given = {
        "flashes": answers(),
        "bar": answers(20, rates=weak),
        "omitted": answers(10, rates=still),
    }
    figure = figures.probes_figure(given)
    heats = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [heat.shape for heat in heats] == [(3, 30), (3, 20), (3, 10)]
    assert all((heat[:, 0] == 0).all() for heat in heats)
    np.testing.assert_allclose(np.abs(heats[0]).max(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.abs(heats[1]).max(1), [1, 1, 0], rtol=1e-6)  # weak, but seen
    assert not heats[2].any()
    names = [axis.get_title("left") for axis in figure.axes if axis.get_title("left")]
    assert names[0] == "flashes: changes up to 100 %"
    most = (given["flashes"].rates - given["flashes"].rates[0]).abs().amax(0)
    share = max(0.01 / float(most[0]), 0.01 / float(most[1]))
    assert names[1] == f"bar: changes up to {100 * share:.0f} %; 1 of 3 do not respond"
    assert names[2] == "omitted: no cell responds"
    assert described(figure) == "Standard probes: rates of all cells"
    with pytest.raises(DataError, match="no probes"):
        figures.probes_figure({})


def test_mode_cell_matrix_has_lines_between_clusters():
    correlation = torch.tensor([[0.1, 0.4], [0.5, -0.2], [0.0, 0.3]])
    rows = [
        {"cell": name, "mode": mode, "correlation": float(correlation[row, column]),
         "cluster": int(row != 1), "cell_place": [1, 0, 2][row], "mode_place": column}
        for row, name in enumerate("bac") for column, mode in enumerate((4, 9))
    ]  # fmt: skip
    axis = figures.mode_cell_figure(pd.DataFrame(rows)).axes[0]
    assert axis.images[0].get_clim() == (-0.5, 0.5)
    np.testing.assert_allclose(axis.images[0].get_array(), correlation[[1, 0, 2]])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "9"]
    assert [line.get_ydata()[0] for line in axis.lines] == [0.5]
    with pytest.raises(DataError, match="no such row"):
        figures.mode_cell_figure(pd.DataFrame(rows[:0]))


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


def sources() -> FieldSources:
    amount = torch.tensor([[[2.0, 0.0, 0.5]], [[1.0, -2.0, 0.0]], [[0.0, -1.0, 0.0]]])
    share = torch.tensor([[0.7, 0.2, 0.1]])
    names = ("mode 4", "left over", "past the site")
    return FieldSources(names, share, amount.double(), torch.arange(3), torch.tensor([1]))


def test_sources_stand_in_a_matrix_with_what_is_of_no_mode_last():
    table = sources().table()
    other = table.assign(cell=0, share=float("nan"))
    figure = figures.sources_figure(pd.concat([other, table]), ("a", "b"))
    axis = figure.axes[0]
    columns = [label.get_text() for label in axis.get_xticklabels()]
    assert columns == ["mode 4", "left over", "past the site"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axis.texts][-3:] == ["70", "20", "10"]
    with pytest.raises(DataError, match="no such row"):
        figures.sources_figure(table.iloc[:0], ("a", "b"))


def test_amounts_add_up_to_the_whole_and_changes_of_sign_are_marked():
    figure = figures.amounts_figure(sources(), 0, torch.tensor([0.0, 0.1, 0.2]), "b")
    _, whole, *parts = figure.axes[0].lines
    np.testing.assert_allclose(whole.get_ydata(), [2.5, -1.0, -1.0])
    np.testing.assert_allclose(sum(line.get_ydata() for line in parts[:3]), [2.5, -1.0, -1.0])
    assert [line.get_xdata()[0] for line in parts[3:]] == pytest.approx([0.05])
    with pytest.raises(DataError, match="times of 3 frames, two or more; got 2"):
        figures.amounts_figure(sources(), 0, torch.zeros(2), "b")
