"""Reports of many sites, labels and modes: bounded pages, with a word on what is left out."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from condec.basis import metrics
from condec.basis.metrics import correlation_by_label, correlation_matrix
from condec.modes import Modes, label_correlation, membership
from condec.modes import labels as labels_of
from condec.report import build_report, drawing, figures, numbers, records
from condec.report.reading import read_run
from condec.report.words import listed

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "large_report.py"


@pytest.fixture(scope="module")
def large():
    spec = importlib.util.spec_from_file_location("large_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sized(**changes):
    return Namespace(
        **{"sites": 42, "labels": 30, "modes": 9, "wide": 1, "inputs": 60, "pictures": 0} | changes
    )


def test_correlation_by_label_is_that_with_indicators(monkeypatch):
    values, labels = torch.rand(50, 7), torch.randint(-1, 9, (50,))
    values[:, 3] = 0.5
    rows = torch.rand(50) > 0.3
    known = rows & (labels >= 0)
    whole = label_correlation(values, labels, rows)
    assert torch.equal(whole, correlation_matrix(values[known], membership(labels)[known]))
    monkeypatch.setattr(labels_of, "_MANY_LABELS", 3)
    torch.testing.assert_close(label_correlation(values, labels, rows), whole)
    alike = correlation_by_label(values, torch.zeros(50, dtype=torch.int64), 2)
    assert torch.equal(alike, torch.zeros(7, 2))


def test_pages_of_many_sites_link_to_their_neighbours(large, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    monkeypatch.setattr(drawing, "_MOST_DICTIONARIES", 2)
    monkeypatch.setattr(drawing, "_HEATMAP_LABELS", 5)
    folder = large.make_run(tmp_path, sized())
    loads, load = [], Modes.load
    monkeypatch.setattr(Modes, "load", staticmethod(lambda *a: loads.append(a) or load(*a)))
    run = read_run(folder)
    assert loads == []
    assert sum(drawing.has_charts(run, part) for _, part in run.parts) == 2
    loads.clear()
    report = build_report(folder).parent
    assert len(loads) == 42  # each for its page; the first page needs none of them again
    pages = [file.read_text() for file in sorted(report.glob("sites/*.html"))]
    assert len(pages) == 42
    for page in pages:
        nav = page.partition("</nav>")[0]
        assert "all 42 sites</a>" in nav
        assert 12 <= nav.count("<a href") <= 24
    assert sum("Charts are left out here" in page for page in pages) == 40
    index = (report / "index.html").read_text()
    assert index.count('<a href="sites/') > 42
    assert all(not one.__dict__.keys() & {"correlation"} for _, one in run.parts)


def test_pages_are_the_same_of_loadings_in_small_parts(large, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    # So many inputs that no two correlations are equal but for rounding, which orders them.
    folder = large.make_run(tmp_path, sized(sites=3, wide=1, labels=3, inputs=400))

    def data():
        report = build_report(folder).parent
        return {
            file.relative_to(report): file.read_text()
            for file in sorted(report.rglob("data/**/*.js"))
        }

    whole = data()
    monkeypatch.setattr(metrics, "_COPIED_AT_ONCE", 1)
    monkeypatch.setattr(metrics, "_PARTS", 4)
    monkeypatch.setattr(records, "_SORTED_AT_ONCE", 100)
    monkeypatch.setattr(numbers, "_ENTRIES_AT_ONCE", 100)
    assert len(metrics.in_columns(torch.rand(400, 9))) == 3
    assert data() == whole


def test_figures_of_many_say_what_is_left_out():
    found = figures.correlation_heatmap_figure(torch.rand(2, 3), "abc", range(2), n_labels=8)
    assert "the 3 of 8 labels that correlate most" in found.axes[0].get_label()
    many = {f"site.{n}": torch.rand(4) for n in range(130)}
    drawn = figures.completeness_figure(many)
    assert "one site of 3" in drawn.axes[0].get_label()
    assert len(drawn.axes[0].get_yticks()) == 44


def test_lists_in_sentences_are_cut():
    assert listed([str(n) for n in range(30)]).endswith("23; and 6 more")
    assert listed(["a", "b"]) == "a; b"


@pytest.mark.slow
def test_a_large_run_has_its_report(large, tmp_path):
    found = large.built(
        large.make_run(tmp_path, sized(sites=120, labels=6000, modes=800, inputs=6000))
    )
    assert found["mb"] < 30
    assert found["files"] < 900
