"""Families over depth on the first page: by flow of the inputs explained, else by loadings."""

import pandas
import pytest

from condec.report import build_report
from condec.report.families import by_flow, family_rows
from condec.report.numbers import Flows
from condec.report.reading import read_run
from condec.store import RunFolder
from small_runs import SITES, record, small_run

FIRST, SECOND = SITES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(small_run(tmp_path_factory.mktemp("families"), links=("fit",)))
    rows = [(FIRST, 1, 0, float("nan"), 2), (FIRST, 2, 1, float("nan"), 1), (SECOND, 0, 0, 0.7, 2)]
    table = pandas.DataFrame(rows, columns=["site", "mode", "family", "link", "length"])
    folder.write_table(table, "families", "sae")
    names = pandas.DataFrame({"id": [1, 2], "name": ["owl <b>", "unnamed"]})
    names = names.assign(property="owl", correlation=0.5, low=0.4, high=0.6)
    folder.write_table(names, "meaning", FIRST, "sae")
    record(folder)
    return read_run(folder.path)


def test_families_by_loadings_are_read_and_named(run):
    (one,) = family_rows(run, "sae", Flows({}, {}))
    pages = [site.folder for site in run.sites]
    assert one == {
        "modes": [(f"{pages[0]}/sae", FIRST, 1, "owl <b>"), (f"{pages[1]}/sae", SECOND, 0, "")],
        "least": 0.7,
    }
    assert family_rows(run, "kmeans", Flows({}, {})) == []
    page = build_report(run.folder.path).read_text("utf-8")
    assert "Families over depth" in page
    assert "inputs use them alike" in page
    assert "owl &lt;b&gt;" in page


def test_families_by_flow_come_first(run):
    a, b, c, d = (FIRST, "sae", 1), (FIRST, "sae", 2), (SECOND, "sae", 5), (SECOND, "sae", 6)
    flows = Flows({a: 2, b: 2}, {a: {c: 3.0, d: 1.0}, b: {c: 2.0, d: 2.5}})
    assert by_flow("sae", flows)
    assert not by_flow("kmeans", flows)
    found = family_rows(run, "sae", flows)
    assert [[mode[1:3] for mode in one["modes"]] for one in found] == [
        [(FIRST, 1), (SECOND, 5)], [(FIRST, 2), (SECOND, 6)]
    ]  # fmt: skip
    assert [one["least"] for one in found] == [3.0, 2.5]
    # What leaves b most does not reach c most: no partners there.
    less = Flows({a: 2, b: 2}, {a: {c: 3.0, d: 1.0}, b: {c: 2.9, d: 2.5}})
    assert len(family_rows(run, "sae", less)) == 1
