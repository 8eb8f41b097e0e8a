"""Models and functions from a user's own file."""

from pathlib import Path

import pytest
import torch

from condec.basis.errors import ModelError, OptionError
from condec.models import load_model
from condec.models.python import load_function

FILE = """
import torch
from beside_it import WIDTH

def make(weights=None):
    net = torch.nn.Linear(2, WIDTH)
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True))
    return net

def late():
    import beside_it
    return torch.nn.Linear(2, beside_it.WIDTH)

def fails():
    raise KeyError("no such thing")

def number():
    return 3

constant = 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "beside_it.py").write_text("WIDTH = 5\n")
    (tmp_path / "broken.py").write_text("import a_module_nobody_has\n")
    return tmp_path


def test_model_from_a_file_beside_the_configuration(folder: Path) -> None:
    loaded = load_model("python:net.py:make", folder=folder)
    assert loaded.model(torch.zeros(1, 2)).shape == (1, 5)
    assert not loaded.model.training
    assert loaded.name == "python:net.py:make"
    assert loaded.preprocess is None


def test_weights_are_handed_to_the_function(folder: Path) -> None:
    state = {"weight": torch.ones(5, 2), "bias": torch.arange(5.0)}
    torch.save(state, folder / "w.pt")  # noqa: TID251  # a file as users have them
    loaded = load_model("python:net.py:make", "w.pt", folder=folder)
    assert loaded.model(torch.ones(1, 2)).tolist() == [[2.0, 3.0, 4.0, 5.0, 6.0]]


def test_import_of_a_neighbour_while_the_function_runs(folder: Path) -> None:
    assert load_model("python:net.py:late", folder=folder).model(torch.zeros(1, 2)).shape == (1, 5)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("python:net.py", OptionError, "expected python:FILE.py:FUNCTION"),
        (
            "python:gone.py:make",
            OptionError,
            "there is no file .*gone.py. Put it",
        ),
        ("python:net.py:maek", OptionError, r"no function 'maek'; it has \['make', 'late'"),
        ("python:net.py:constant", OptionError, "no function 'constant'"),
        ("python:broken.py:make", ModelError, "broken.py failed on import: ModuleNotFoundError"),
        ("python:net.py:fails", ModelError, "called with no arguments, it raised KeyError"),
        ("python:net.py:number", ModelError, "expected a torch.nn.Module or a LoadedModel; got"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_messages(folder: Path, spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(spec, folder=folder)


def test_missing_weights_are_named(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"weights 'w.pt': there is no file .*w.pt"):
        load_model("python:net.py:make", "w.pt", folder=folder)


def test_function_is_imported_once(folder: Path) -> None:
    first = load_function("python:net.py:make", folder=folder)
    assert load_function("net.py:late", folder=folder).__globals__ is first.__globals__


def test_random_weights_are_the_same_every_time(folder: Path) -> None:
    torch.manual_seed(5)
    first = load_model("python:net.py:make", folder=folder).model.state_dict()
    assert torch.initial_seed() == 5
    second = load_model("python:net.py:make", folder=folder).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
