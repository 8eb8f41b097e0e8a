"""What the last conformance run found is on the page, and nothing differs."""

from outcome import read, shown, table


def test_nothing_differs_and_the_page_says_so() -> None:
    rows = read()
    assert {row["result"] for row in rows.values()} == {"works", "refused"}
    assert shown() == table(rows)
