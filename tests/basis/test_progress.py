"""The one progress bar."""

import json

import pytest

from condec.basis.progress import IN_LINES, progress_bar


def test_moves_and_notes_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("fits", None, unit="epochs") as move:
        move(completed=3, total=4, note="loss 0.25")
        move(advance=1)
    shown = capsys.readouterr()
    assert not shown.out
    assert all(word in shown.err for word in ("fits", "4/4", "epochs", "loss 0.25"))


@pytest.mark.parametrize("case", [{"shown": False}, {"done": 3}])
def test_says_nothing(case: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("fits", 3, **case) as move:  # type: ignore[arg-type]
        move(advance=1)
    assert capsys.readouterr() == ("", "")


def test_bars_are_lines_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(IN_LINES, "lines")
    with progress_bar("fits", None, unit="epochs") as move:
        for _ in range(100):
            move(advance=1)  # between the ends hardly any is told
        move(completed=199, total=200, note="loss 0.25")
        move(advance=1)
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.err.splitlines()]
    assert not shown.out
    assert (lines[0]["done"], lines[0]["total"]) == (0, None)
    ended = {"bar": "fits", "done": 200, "total": 200, "unit": "epochs", "note": "loss 0.25"}
    assert lines[-1] == ended
    assert len(lines) < 10
