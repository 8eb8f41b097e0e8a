"""Code in files: run as the caller names it, but behind a gate only where it is trusted."""

import json
import py_compile
import shutil
from pathlib import Path

import pytest

from condec.basis.errors import OptionError, StoreError
from condec.basis.trust import admitted, admitted_here, gated, only


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    file = tmp_path / "net.py"
    file.write_text("def make(): ...\n")
    return file


def settings(code: Path) -> Path:
    return code.parent / "settings" / "condec" / "trusted.json"


def test_outside_a_gate_code_is_run_as_it_is_named(code: Path) -> None:
    assert admitted(code, "make") == code.read_bytes()
    assert not settings(code).exists()


def test_behind_a_gate_code_is_refused_until_it_is_trusted(code: Path) -> None:
    with (
        gated(trusted=False),
        pytest.raises(OptionError, match="it, give the same command with --trust-c"),
    ):
        admitted(code, "make")
    with gated(trusted=True):
        admitted(code, "make")
    with gated(trusted=False):
        assert admitted(code, "make") == code.read_bytes()
        # `from os import system` in a trusted file would make it a function of that file.
        with pytest.raises(OptionError, match="not run unasked"):
            admitted(code, "system")
    assert list(json.loads(settings(code).read_text())["trusted"]) == [f"{code}:make"]


def test_changed_code_is_asked_for_again(code: Path) -> None:
    with gated(trusted=True):
        admitted(code, "make")
    code.write_text("def make(): return 1\n")
    with (
        gated(trusted=False),
        pytest.raises(OptionError, match="since you trusted it; only"),
    ):
        admitted(code, "make")


def test_a_damaged_list_trusts_nothing_and_is_made_again(code: Path) -> None:
    settings(code).parent.mkdir(parents=True)
    for text in ("", "[]", '{"trusted": 3}', "\0"):
        settings(code).write_text(text)
        with pytest.warns(UserWarning, match="trusted.json: cannot be read .*Nothing counts"):
            with gated(trusted=False), pytest.raises(OptionError, match="not run unasked"):
                admitted(code, "make")
    with pytest.warns(UserWarning, match="Nothing counts"), gated(trusted=True):
        admitted(code, "make")
    with gated(trusted=False):
        admitted(code, "make")


def test_settings_that_cannot_be_kept_are_asked_for_again(code: Path) -> None:
    (code.parent / "settings").write_text("in the way")
    with gated(trusted=True):
        admitted(code, "make")
    with gated(trusted=False), pytest.raises(OptionError, match="not run unasked"):
        admitted(code, "make")


def test_code_that_cannot_be_read_is_named(code: Path) -> None:
    with pytest.raises(StoreError, match=r"gone.py: there is no such file"):
        admitted(code.with_name("gone.py"), "make")


def test_compiled_code_beside_a_file_is_not_run(code: Path) -> None:
    """It may be of another text: the file is all that was read, and all that is run."""
    from condec.models.python import load_function

    code.write_text("def make(): return 2\n")
    other = shutil.copy2(code, code.with_name("other.py"))
    cached = Path(py_compile.compile(str(code), doraise=True))
    Path(other).write_text("def make(): return 3\n")
    content = py_compile.compile(str(other), doraise=True)
    head = cached.read_bytes()[:16]  # with the time and size of the file that is asked for
    cached.write_bytes(head + Path(content or "").read_bytes()[16:])
    assert load_function(f"{code}:make")() == 2


def test_a_worker_runs_what_its_driver_has_run_and_nothing_else(code: Path) -> None:
    with gated(trusted=True):
        admitted(code, "make")
    known = {name: of for name, of in admitted_here().items() if name.startswith(f"{code}:")}
    assert list(known) == [f"{code}:make"]
    try:
        only(known)
        with gated(trusted=False):
            assert admitted(code, "make") == code.read_bytes()
        only({})
        for gate in (True, False):  # whatever the plan of a worker says, or this user trusts
            with gated(trusted=gate), pytest.raises(OptionError, match="a worker runs only code"):
                admitted(code, "make")
        with pytest.raises(OptionError, match="put the same file at the same place on all mac"):
            admitted(code, "make")
    finally:
        only(None)
