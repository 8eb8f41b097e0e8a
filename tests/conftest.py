"""What every test shares: seeds, one thread, and the real data beside the checkout."""

import dataclasses
import gc
import inspect
import os
import types
import uuid
from collections.abc import Iterator
from functools import partial, update_wrapper, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import jaxtyping
import pytest
import torch

if TYPE_CHECKING:
    from object_server import ObjectServer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_JAXTYPED: Any = jaxtyping.jaxtyped


def _typed(given: Any = None, **options: Any) -> Any:
    """Have types checked where a function is made once: 3 ms for every closure are half of all.

    And not before it is called: to do it for all that is imported takes seconds of every process.
    """
    if given is None:
        return partial(_typed, **options)
    if inspect.isclass(given):
        if dataclasses.is_dataclass(given) and "__init__" in vars(given):
            given.__init__ = _typed(given.__init__, **options)
        return given
    if "<locals>" in given.__qualname__:
        return given
    checked: Any = None

    @wraps(given)
    def typed(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return given(*args, **kwargs)
        checked = checked or _checked(given, **options)
        return checked(*args, **kwargs)

    return typed


def _checked(given: Any, typechecker: Any) -> Any:
    """Check types of arguments and result; shapes only where there are some, 10 us a call."""
    try:
        hints = get_type_hints(given, include_extras=True)
    except NameError:  # imported for mypy alone: jaxtyping passes over these
        return _JAXTYPED(given, typechecker=typechecker)
    if any(map(_has_shape, hints.values())):
        return _JAXTYPED(given, typechecker=typechecker)
    parts = given.__code__, given.__globals__, given.__name__, given.__defaults__, given.__closure__
    plain = update_wrapper(types.FunctionType(*parts), given)
    del plain.__wrapped__
    plain.__kwdefaults__, plain.__annotations__ = given.__kwdefaults__, hints
    return typechecker(plain)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list | tuple):
        return any(map(_has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))


jaxtyping.jaxtyped = _typed  # `--jaxtyping-packages` has every function of condec decorated by it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real models and images; skips where a checkout has none beside it."""
    if not SHARED.is_dir():
        pytest.skip(f"real models and images are not at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests trust out of the user's own settings, and flush nothing to the disk.

    Every file of a store is flushed, 10 ms each: against a loss of power, which no test causes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_configure(config: pytest.Config) -> None:
    # Two workers on two cores: more threads only fight each other.
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    # What was imported stays: to look through it again and again takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = SHARED.is_dir()
    cuda = torch.cuda.is_available()
    for item in items:
        if "needs_shared" in item.keywords and not here:
            item.add_marker(pytest.mark.skip(reason=f"real models and images are not at {SHARED}"))
        if "gpu" in item.keywords and not cuda:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turn run-time type checks off: for the messages that users get, who have none, and speed."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def object_server() -> Iterator["ObjectServer"]:
    """Give a real server of objects on this machine, with a bucket ``s3://tests``."""
    from object_server import ObjectServer, settings

    server = ObjectServer()
    server.bucket("tests")
    with settings(server.url):
        yield server
    server.close()


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give an empty place for stores: on disk, in memory, in a real server of objects."""
    if request.param == "local":
        return tmp_path
    if request.param == "s3":
        request.getfixturevalue("object_server")
    from condec.basis.files import store_path  # not before types are checked

    start = "memory:/" if request.param == "memory" else "s3://tests"
    return store_path(f"{start}/{uuid.uuid4().hex}")
