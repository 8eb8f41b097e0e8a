"""The picture of the architecture is that of today's imports."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "architecture.py"


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_that_of_todays_imports(architecture: ModuleType) -> None:
    assert architecture.drawn() == architecture.imports(), "run python docs/architecture.py"
    assert str(SCRIPT.parents[1]) not in architecture.PICTURE.read_text(encoding="utf-8")


def test_a_picture_tells_its_imports(architecture: ModuleType, tmp_path: Path) -> None:
    architecture.draw(tmp_path / "a.svg")
    assert architecture.drawn(tmp_path / "a.svg") == architecture.imports()


def test_what_is_counted(architecture: ModuleType, tmp_path: Path) -> None:
    for room, text in {
        "low": "def f(): ...\n",
        "high": "from condec.low import f, _g\nimport condec\nclass A:\n    def h(self, x):\n"
        "        self._own = f._private\n        return self._own, x._own, f.__name__\n",
    }.items():
        (tmp_path / room).mkdir()
        (tmp_path / room / "one.py").write_text(text)
    assert architecture.imports(tmp_path) == {"high": {"low": 1}, "low": {}}
    assert dict(architecture.private(tmp_path)) == {str(Path("high", "one.py")): 2}
