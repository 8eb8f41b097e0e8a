"""The page of two runs: every row has the modes that were matched."""

import json
from pathlib import Path

import pytest

from condec.basis import locks
from condec.basis.errors import OptionError, StoreError
from condec.report import build_comparison, build_report, comparing, figures
from condec.report.tables import mode_rows
from condec.run.compare import compare_modes, modes_in_words
from small_runs import small_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [small_run(folder / name, links=("fit", "map")) for name in ("one", "other & 2")]


def test_rows_are_those_of_the_table(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    build_report(runs[0])
    table = compare_modes(*runs)
    said = list(modes_in_words(table))
    page = build_comparison(*runs, table, said, tmp_path / "both")
    text = page.read_text()
    assert all(line in text for line in said)
    assert "other &amp; 2" in text.replace("<wbr>", "")
    found = json.loads((page.parent / "data" / "compare.js").read_text().splitlines()[1])
    for side in ("first", "second"):
        numbers = [-1 if one is None else one[0] for one in found[side]]
        assert numbers == table[side].tolist()
    known = table["correlation"].round(3)
    assert found["correlation"] == [None if one != one else one for one in known]
    assert found["matched"] == table["matched"].tolist()
    number, _, tile, link = next(one for one in found["first"] if one and one[2])
    assert (page.parent / tile[0]).is_file()
    place, _, anchor = link.partition("#")
    assert (page.parent / place).resolve() == (runs[0] / "report" / "mode.html").resolve()
    assert anchor.endswith(f"/{number}")
    assert {one[3] for one in found["second"] if one} == {""}  # it has no report
    assert build_comparison(*runs, table, said, tmp_path / "both") == page  # in its place
    monkeypatch.setattr(locks, "SECONDS", 0.0)
    busy = []

    def rows_of(*given):
        for folder in runs:
            with pytest.raises(StoreError, match=": in use by"), locks.held(folder):
                pytest.fail("another process may write while the page is made")
            busy.append(folder)
        return mode_rows(*given)

    monkeypatch.setattr(comparing, "mode_rows", rows_of)
    assert build_comparison(*runs, table, said, tmp_path / "both") == page
    assert busy
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(OptionError, match="holds other things than a comparison"):
        build_comparison(*runs, table, said, tmp_path)
