"""Functions in a user's own file: models, and preprocessing of images."""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from condec.basis.errors import ModelError, OptionError
from condec.basis.files import user_path
from condec.basis.trust import admitted
from condec.models import LoadedModel
from condec.models.library import located, seeded


def load_python_model(spec: str, weights: str | Path | None, *, folder: Path) -> LoadedModel:
    """Call ``FILE.py:FUNCTION`` for a model, with the same random numbers every time.

    The function may return a `torch.nn.Module` or a whole `LoadedModel`.
    """
    make = load_function(spec, folder=folder)
    if weights is not None and weights != "default":
        weights = located(weights, folder)
    with _beside(_file(spec, folder).parent):
        try:
            made = seeded(make if weights is None else lambda: make(weights))
        except Exception as error:
            given = "no arguments" if weights is None else repr(str(weights))
            raise ModelError(
                f"python:{spec}: called with {given}, it raised {type(error).__name__}: {error}"
            ) from error
    loaded = made if isinstance(made, LoadedModel) else LoadedModel(made, f"python:{spec}")
    if not isinstance(loaded.model, nn.Module):
        raise ModelError(
            f"python:{spec}: expected a torch.nn.Module or a LoadedModel; "
            f"got {type(loaded.model).__name__}"
        )
    loaded.model.eval()
    return loaded


def load_function(spec: str, *, folder: str | Path = ".") -> Callable[..., Any]:
    """Import ``FILE.py:FUNCTION``; a leading ``python:`` is allowed.

    A relative FILE starts from `folder`; the file's own folder is importable while it runs.
    OptionError where there is no such file or function, ModelError where the file itself fails.
    """
    path, name = _file(spec, folder), spec.rpartition(":")[2]
    module = vars(_module(path, admitted(path, name)))
    function: Any = module.get(name)
    if not callable(function):
        own = [name for name, one in module.items() if callable(one) and not name.startswith("_")]
        raise OptionError(f"{spec!r}: {path.name} has no function {name!r}; it has {own}")
    checked: Callable[..., Any] = function
    return checked


def _file(spec: str, folder: str | Path) -> Path:
    file, colon, name = spec.removeprefix("python:").rpartition(":")
    if not colon or not file or not name:
        raise OptionError(f"{spec!r}: expected python:FILE.py:FUNCTION")
    path = user_path(file, folder).resolve()
    if not path.is_file():
        raise OptionError(
            f"{spec!r}: there is no file {path}. Put it there, or say in the plan where it is; "
            "without it, a run can be read: condec report, stats, compare, verify"
        )
    return path


def _module(path: Path, source: bytes) -> ModuleType:
    """Import a file once, under a name of its own (two files may share a stem)."""
    name = f"condec_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up here
    try:
        with _beside(path.parent):
            # Not by the loader: it would take compiled code that lies in __pycache__ instead.
            exec(compile(source, path, "exec"), vars(module))
    except Exception as error:
        del sys.modules[name]
        raise ModelError(f"{path} failed on import: {type(error).__name__}: {error}") from error
    return module


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let a file import what lies beside it, while it runs."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
