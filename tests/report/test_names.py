"""Names of sites and labels from anybody: drawn literally, in files whose names fit any disk."""

import json
from collections import OrderedDict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from condec.attribution import ActGrad
from condec.basis.files import file_name
from condec.data import as_inputs
from condec.dictionary import KMeans
from condec.figures.style import literal, short
from condec.network import Site
from condec.report import build_report, figures
from condec.report.build import _clean
from condec.store import RunFolder, Store, collect, layer_statistics
from small_runs import add_modes, record

NASTY = (
    "$", "a$b$ c", r"\alpha_{1}^2", r"$\frac{1}$", "_hidden_", "^", "\\", "two\nlines\r\tand tab",
    "\x00nul\x1b[2J", "\x85\u2028\ufffe", "قطة سوداء", "חתול", "\u202egnp.exe",
    "\U0001f9ec\U0001f468\u200d\U0001f469", "lone \ud800", "汉字", "<b>&amp;'\"</b>", "%2F/..",
    "x" * 250, "é" * 250, "long words " * 400, " ", "",
)  # fmt: skip
OF_MODULES = [name.replace(".", ",") for name in NASTY[:-1] if "\ud800" not in name]


def drawn(figure, file: Path) -> str:
    """Return all words of a figure, which can be read as XML."""
    return " ".join(ElementTree.parse(figures.save_figure(figure, file)).getroot().itertext())


def test_names_in_figures_are_drawn_as_they_are(tmp_path):
    matrix = torch.rand(4, len(NASTY))
    figure = figures.correlation_heatmap_figure(matrix, NASTY, range(4))
    text = drawn(figure, tmp_path / "labels.svg")
    for name in ("a$b$ c", r"\alpha_{1}^2", r"$\frac{1}$", "two lines and tab", r"\x00nul\x1b[2J"):
        assert name in text
    assert "é" * 31 + "…" in text
    assert "é" * 32 not in text


def test_sites_in_figures_are_named_by_their_ends(tmp_path):
    complete = {name: torch.rand(3) for name in NASTY}
    text = drawn(figures.completeness_figure(complete), tmp_path / "sites.svg")
    assert "..." + "x" * 19 in text
    assert r"\u202egnp.exe" in text


def test_other_formats_take_signs_without_a_glyph(tmp_path):
    maps = {name: torch.rand(3, 4, 4) for name in ("\U0001f9ec", "قطة", "$", "\x1b")}
    for end in ("png", "pdf"):
        figures.save_figure(figures.mode_map_figure(torch.rand(4, 4), maps), tmp_path / f"a.{end}")


def test_a_logarithmic_axis_has_plain_numbers(tmp_path):
    text = drawn(figures.training_history_figure([10.0, 1.0, 0.01]), tmp_path / "training.svg")
    assert "0.1" in text
    assert "mathdefault" not in text


def test_short_names_stay_and_long_ones_are_cut():
    assert literal("layer1.0.conv1") == short("layer1.0.conv1") == "layer1.0.conv1"
    assert len(literal("y" * 100)) == 60


def test_names_of_files_are_bounded_and_differ():
    assert file_name("blocks.1:input@heads") == "blocks.1%3Ainput%40heads"
    assert file_name("a" * 200) == "a" * 200
    names = [file_name(name) for name in ("a" * 201, "a" * 202, "é" * 250, "\ud800" * 99)]
    assert len(set(names)) == 4
    assert {len(name.encode()) for name in names} == {200}


def test_pages_hold_no_control_characters():
    assert _clean("a\x00b\x1bc\u202ed\ud800e\n") == "a\ufffdb\ufffdc\ufffdd\ufffde\n"
    assert _clean(3) == 3


# --- a whole run ---------------------------------------------------------------------------


def run_of(folder: Path, sites: list[str], labels: list[str]) -> Path:
    """Collect, fit and describe a network whose modules and labels have these names."""
    layers = OrderedDict((name, nn.Linear(6, 6)) for name in sites)
    model = nn.Sequential(OrderedDict(layers, last=nn.Linear(6, 3))).eval()
    data = as_inputs((torch.rand(40, 6), torch.arange(40) % len(labels)))
    place, where = RunFolder(folder), [Site(name) for name in sites]
    store = collect(model, data, where, method=ActGrad(), out=place.store, progress=False)
    place.write(place.labels, json.dumps(labels).encode())
    place.write_table(layer_statistics(store), "statistics")
    for site in store.sites:
        add_modes(place, store, site, "kmeans", KMeans(4))
    record(place)
    return place.path


def check_report(folder: Path) -> None:
    """Every page and figure is whole, and has a name that fits."""
    report = build_report(folder).parent
    for file in report.rglob("*"):
        assert len(file.name.encode()) <= 255 - len(".12345678.partial")
        if file.suffix == ".svg":
            ElementTree.parse(file)
        if file.suffix == ".html":
            text = file.read_text(encoding="utf-8")
            assert not any(sign in text for sign in "\x00\x1b\x85\u202e\ufffe")


def test_a_site_with_a_long_name_has_a_store_modes_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.write_text("<svg/>"))
    name = "é$" * 125
    folder = run_of(tmp_path / "run", [name], ["a", "b"])
    check_report(folder)
    store = Store.open(folder / "contributions.zarr")
    assert store.matrix(name).shape == (40, 6)
    assert RunFolder(folder).learners(name) == ("kmeans",)
    assert (folder / "report" / "sites" / f"{file_name(name)}.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("start", range(4))
def test_a_run_of_nasty_names_has_its_report(tmp_path, start):
    check_report(run_of(tmp_path / "run", OF_MODULES[start::4], list(NASTY)))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(max_size=300), min_size=1, max_size=30))
def test_any_labels_can_be_drawn(tmp_path_factory, names):
    place = tmp_path_factory.mktemp("labels") / "labels.svg"
    matrix = torch.rand(3, len(names))
    drawn(figures.correlation_heatmap_figure(matrix, names, range(3)), place)
