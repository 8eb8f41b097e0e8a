"""Messages, as a terminal may show them."""

import pytest

from condec.basis.errors import SiteError, StoreError, printable


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain, \N{MICRO SIGN}m, line\nand\ttab", "plain, \N{MICRO SIGN}m, line\nand\ttab"),
        ("clear\x1b[2J", r"clear\x1b[2J"),
        ("back\rto the start\x08", r"back\rto the start\x08"),
        ("right\N{RIGHT-TO-LEFT OVERRIDE}left", r"right\u202eleft"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_control_characters_are_escaped(given: str, shown: str) -> None:
    assert printable(given) == shown
    for kind in (StoreError, SiteError):
        assert str(kind(given)) == shown
