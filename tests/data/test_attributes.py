"""Tables of what samples have besides a label."""

from pathlib import Path

import pandas
import pytest

from condec.basis.errors import DataError
from condec.data import read_attributes
from condec.modes import Properties

IDS = ("a.png", "007", "c.png")
TABLE = pandas.DataFrame({"file": ["c.png", "x", "a.png", "007"], "hue": [3.0, 9, 1, None],
                          "kind": ["u", "v", "w", None]})  # fmt: skip


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_rows_are_found_by_id(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    TABLE.to_csv(file, index=False) if name.endswith("csv") else TABLE.to_parquet(file)
    found = read_attributes(file, IDS, "hue")
    assert list(found.columns) == ["hue", "kind"]
    assert found["hue"].tolist()[::2] == [1.0, 3.0]
    assert found["kind"].isna().tolist() == [False, True, False]


def test_no_column_of_ids_is_an_attribute_and_blanks_of_headers_do_not_count(
    tmp_path: Path,
) -> None:
    file = tmp_path / "table.csv"
    file.write_text("hue, id ,file\n1,007,x\n2,008,y\n")
    found = read_attributes(file, ["008", "007"])
    assert found.to_dict("list") == {"hue": [2, 1]}


def test_words_that_pandas_takes_for_nothing_are_names(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    lines = ["id,group,all,hue,seen", "NA,None,null,1,True", "b,NA,null,NA,", "c,,null,,False"]
    file.write_text("\n".join(lines) + "\n")
    found = read_attributes(file, ["NA", "b", "c"])
    assert found["group"].tolist()[:2] == ["None", "NA"]
    assert found["group"].isna().tolist() == [False, False, True]
    assert found["all"].tolist() == ["null"] * 3
    assert found["hue"].dtype == float  # of numbers, NA is none
    assert found["hue"].isna().tolist() == [False, True, True]
    names = [name for one in Properties.of_table(found[["all", "seen"]]) for name in one.names]
    assert names == ["all: null"]


def test_without_ids_rows_are_in_order(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("hue\n1\n2\n3\n")
    assert read_attributes(file, IDS)["hue"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hue\n1\n2\n", "2 rows for 3 samples, and no column id or file"),
        ("id,hue\na.png,1\n007,2\n", "1 of 3 samples have no row: 'c.png'"),
        ("id,hue\na.png,1\na.png,2\n", "'a.png' comes twice"),
        ("id,hue\na.png,1\n007,2\nc.png,1\n", "no column 'hut'; nearest: 'hue'"),
        ("", "cannot be read as a table of attributes"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_attributes(file, IDS, "hut")
