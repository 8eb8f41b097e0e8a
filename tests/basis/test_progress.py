"""The one progress bar."""

import pytest

from condec.basis.progress import progress_bar


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
