"""The command in a process of its own: signals, closed pipes, terminals that know no accents."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from small_runs import NET

SLOW_TORCH = "import time; print('importing', flush=True); time.sleep(60)"
IN_C = """
import hashlib, sys
from condec.basis.signals import Stopped, end_soon, exit_code
end_soon()
try:
    print("at work", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in which Python runs no handler
except Stopped as error:
    sys.exit(exit_code(error))
"""
IN_PYTHON = """
import sys, time
from condec.basis.signals import Stopped, end_soon, exit_code
end_soon()
try:
    print("at work", flush=True)
    time.sleep(60)
except Stopped as error:
    try:
        raise ImportError("what a library makes of an interruption") from None
    except ImportError as late:
        assert exit_code(error) == exit_code(late)
        sys.exit(exit_code(late))
"""
OTHER_SIGNALS = """
import multiprocessing, signal, subprocess, time
from condec.basis import signals
signals.SECONDS = 0.1
signals.end_soon()
signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch's DataLoader does
subprocess.run(["true"])
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
child.terminate()
child.join()
time.sleep(0.5)
print(child.exitcode)
"""
SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)


def stopped(command: list[str], number: int, first: str, **options: object) -> tuple[int, str]:
    """Send a signal once a process has said its first line; return its exit status and errors."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that puts the tests into the background has SIGINT ignored, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, **pipes, **options)  # type: ignore[call-overload]
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout.readline() == first
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=50)
        return process.returncode, errors


SAID = (
    "\ncondec: interrupted; the same command keeps what is whole (shards, fits, tables), and does "
    "the rest again\n"
)


@SIGNALS
def test_a_signal_during_imports_is_no_traceback(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "torch.py").write_text(SLOW_TORCH)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "condec", "--version"]
    found = stopped(command, number, "importing\n", env=os.environ | {"PYTHONPATH": path})
    assert found == (code, SAID)


@SIGNALS
@pytest.mark.parametrize("work", [IN_PYTHON, IN_C], ids=["python", "c"])
def test_a_signal_ends_what_is_at_work(number: int, code: int, work: str) -> None:
    found = stopped([sys.executable, "-c", work], number, "at work\n")
    assert found == (code, SAID)


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "condec", "schema"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "n\N{LATIN SMALL LETTER E WITH ACUTE}\x1b[2Jt.py"
    file.write_text(NET)
    command = [sys.executable, "-m", "condec", "inspect", f"python:{file}:make"]
    command += ["--input-shape", "1,6,6"]
    done = subprocess.run(
        command, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert rb"n\xe9\x1b[2Jt.py" in done.stdout


IMPORTS = """
import sys
import condec
HEAVY = {"matplotlib", "torchvision", "timm", "ray", "pandas", "zarr", "xarray", "scipy",
         "obstore", "boto3"}
assert not sys.modules.keys() & (HEAVY | {"torch"})
condec.contribute
assert "pydantic" not in sys.modules
import condec.store.store
assert not sys.modules.keys() & HEAVY
from condec import *
assert {*condec.__all__} <= {*dir(condec)}
assert condec.data.load_data is load_data
assert not hasattr(condec, "nothing")
assert not sys.modules.keys() & (HEAVY - {"xarray", "scipy"})
from condec.report import figures
figures.training_history_figure([1.0, 0.5])
assert "matplotlib.pyplot" not in sys.modules
"""


def test_what_is_imported_is_light_and_has_every_name() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_those_of_the_imports_for_type_checkers() -> None:
    import ast
    import importlib

    import condec

    tree = ast.parse(Path(str(condec.__file__)).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    found = {
        name.name: vars(importlib.import_module(one.module))[name.name]
        for one in imports
        if str(one.module).startswith("condec.")
        for name in one.names
    }
    assert found.keys() == {*condec.__all__}
    assert all(getattr(condec, name) is value for name, value in found.items())


def test_a_child_that_ends_does_not_end_the_command() -> None:
    command = [sys.executable, "-c", OTHER_SIGNALS]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "-15\n", "")
