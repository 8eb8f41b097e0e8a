"""Figures of flows: how much is drawn, what is said, and names from outside."""

import pandas
import pytest

import condec
from condec.figures import save_figure
from condec.figures.flows import flow_figure


def graph(n_sites=3, n_modes=4, name="blocks.{}"):
    sites = [name.format(number) for number in range(n_sites)]
    parts = [f"mode {m}" for m in range(n_modes)] + ["other modes", "left over"]
    rows = [(f"{s}: {p}", s, p, 1.0 + len(p), -0.5, 0.5 + len(p)) for s in sites for p in parts]
    rows.append(("target", "target", "target", 3.0, 0.0, 3.0))
    nodes = pandas.DataFrame(rows, columns=["name", "site", "part", "adds", "takes", "net"])
    ends = [*sites[1:], "target"]
    by_site = {site: list(nodes.loc[nodes["site"] == site, "name"]) for site in [*sites, "target"]}
    edges = [
        (start, end, (-1) ** k * (1.0 + k))
        for site, after in zip(sites, ends, strict=True)
        for k, (start, end) in enumerate((a, b) for a in by_site[site] for b in by_site[after])
    ]
    edges = pandas.DataFrame(edges, columns=["from", "to", "flow"])
    nodes = nodes.assign(error=float("nan"), goes_with="")
    return nodes, edges.assign(error=float("nan"))


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_all_is_drawn_where_it_has_room():
    figure = flow_figure(*graph())
    said = words(figure)
    assert {"blocks.0", "blocks.1", "blocks.2", "target", "mode 3 +6.50", "+3.00"} <= {*said}
    assert "All flow is drawn." in figure.axes[0].get_label()
    n_nodes, n_edges = 3 * 6 + 1, 2 * 36 + 6
    assert len(figure.axes[0].patches) == n_nodes + n_edges


def test_a_little_that_is_not_drawn_is_not_said_to_be_nothing():
    nodes, edges = graph(3)
    edges.loc[0, "flow"] = 1e-4 * edges["flow"].abs().max()
    said = flow_figure(nodes, edges).axes[0].get_label()
    assert "Less than 0.1 % of all flow, the thinnest, is not drawn." in said


@pytest.mark.parametrize("n_sites", [3, 8, 13])
def test_at_most_forty_nodes_are_drawn_and_what_lacks_is_said(n_sites):
    nodes, edges = graph(n_sites, 30)
    figure = flow_figure(nodes, edges)
    names = [word for word in words(figure) if word.startswith(("mode", "other", "left"))]
    assert n_sites <= len(names) <= 39
    said = figure.axes[0].get_label().split("right, for one input")[1].split(" %")[0].split()[-1]
    assert float(said) > 50


def test_errors_stand_at_the_target_too():
    nodes, edges = graph()
    assert "+3.00 \N{PLUS-MINUS SIGN} 0.25" in words(
        flow_figure(nodes.assign(error=0.25), edges, 4)
    )


def test_names_stay_readable_on_a_narrow_page():
    figure = flow_figure(*graph(4), width=4.06)
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert min(text.get_fontsize() for text in texts) >= 6.5
    ends = [text.get_window_extent().x1 for text in texts]
    assert max(ends) <= figure.bbox.x1
    assert {"target", "mode 0 +6.5"} <= {*words(figure)}


def test_what_a_mode_goes_with_is_said_where_it_fits():
    nodes, edges = graph(3, 2)
    nodes["goes_with"] = [
        "tench, Tinca tinca" if "mode 1" in name else "" for name in nodes["name"]
    ]
    assert "mode 1 \N{MIDDLE DOT} tench +6.50" in words(flow_figure(nodes, edges))
    narrow = words(flow_figure(nodes, edges, width=3.0))
    assert not any("tench" in word for word in narrow)
    assert "mode 1 +6.5" in narrow


def test_names_from_outside_are_drawn_as_they_are(tmp_path):
    nodes, edges = graph(2, 2, name="a$x^2$\x00{}")
    figure = flow_figure(nodes, edges)
    assert any("\\x00" in word for word in words(figure))
    assert save_figure(figure, tmp_path / "flow.svg").stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(condec.OptionError, match="14 sites make more than 40 nodes"):
        flow_figure(*graph(14, 1))
    with pytest.raises(condec.OptionError, match="width must be at least 3"):
        flow_figure(*graph(), width=1.0)


def test_nothing_flows_where_nothing_changes():
    nodes, edges = graph(2, 1)
    zero = nodes.assign(adds=0.0, takes=0.0, net=0.0), edges.assign(flow=0.0)
    assert {"mode 0 0", "0"} <= {*words(flow_figure(*zero))}
