"""Models and data of other packages come in by entry points."""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from condec.basis import registry
from condec.basis.errors import DependencyError, OptionError
from condec.data import load_data
from condec.models import load_model

MODULE = """
import torch
from condec.data import as_inputs
from condec.models import LoadedModel, refuse_weights

def load(rest, weights, *, folder):
    refuse_weights(f"mine:{rest}", weights)
    return LoadedModel(torch.nn.Linear(int(rest), 2).eval(), f"mine:{rest}")

def read(rest, keys, *, folder, shape, scaling, cells):
    return as_inputs(torch.full((int(rest), 3), float(keys["value"])))
"""
POINTS = {
    "condec.models": {"mine": "condec_fake:load", "typo": "condec_fake:lod", "gone": "condec_no:x"},
    "condec.data": {"mine": "condec_fake:read"},
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "condec_fake.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "condec_fake", raising=False)

    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint(n, v, group) for n, v in POINTS.get(group, {}).items()]

    registry._points.cache_clear()
    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)
    yield
    registry._points.cache_clear()


def test_a_family_of_models() -> None:
    assert registry.names("condec.models") == ("gone", "mine", "typo")
    assert load_model("mine:3").model(torch.ones(1, 3)).shape == (1, 2)
    with pytest.raises(OptionError, match="mine:3' brings its own weights"):
        load_model("mine:3", "w.pt")
    with pytest.raises(OptionError, match=r"expected one of digits, .*mine.*Did you mean 'mine'"):
        load_model("mien:3")


def test_a_source_of_data() -> None:
    inputs = load_data("mine:4?value=7", limit=2)
    assert torch.equal(inputs.batch([0, 1]), torch.full((2, 3), 7.0))
    with pytest.raises(OptionError, match=r"digits, npz:FILE, .*folder:DIR.*, mine:\.\.\."):
        load_data("other:4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "typo",
            r"condec.models 'typo': .*condec_fake:lod does not import \(AttributeError: .*lod",
        ),
        ("gone", "condec_no:x does not import .*condec_no.*mend that package, or uninstall it"),
    ],
)
def test_a_broken_entry_point_says_which(name: str, message: str) -> None:
    with pytest.raises(DependencyError, match=message):
        load_model(f"{name}:1")
