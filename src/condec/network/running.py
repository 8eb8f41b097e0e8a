"""How a model runs while it is looked at: in its own precision, nothing computed a second time.

What the caller set up for passes of his own stays outside: autocast, which changes numbers, and
gradient checkpointing, whose second forward pass would meet the hooks again. One thread at a time
looks at a model, for what it does to the model (hooks, frozen parameters) is there for all.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from condec.network.unwrap import original

_KINDS: Final = ("cpu", "cuda", "mps", "xpu")
"""Devices whose autocast is left outside."""


class _Here(threading.local):
    """What is in force in this thread."""

    is_asked = False  # for autocast, by condec itself
    n_direct = 0  # contexts in which functions run without checkpointing


_HERE: Final = _Here()
_LOCK: Final = threading.Lock()
_OWNED: Final[WeakKeyDictionary[nn.Module, threading.RLock]] = WeakKeyDictionary()
"""What a thread holds while it looks at a model."""


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Keep other threads from looking at the same model inside the context; they wait.

    Parts of a model that are looked at by themselves are other models.
    """
    with _LOCK:
        lock = _OWNED.setdefault(original(model), threading.RLock())
    with lock:
        yield


def of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Make a hook pass over what runs in other threads, such as a plain pass of the caller's."""
    owner = threading.get_ident()
    return lambda *given: hook(*given) if threading.get_ident() == owner else None


@contextmanager
def exchanged(parts: Iterable[Any], **values: Any) -> Iterator[None]:
    """Set attributes of modules or parameters inside the context."""
    before = [(part, {name: getattr(part, name) for name in values}) for part in parts]
    try:
        for part, _ in before:
            _set(part, values)
        yield
    finally:
        for part, own in before:
            _set(part, own)


def _set(part: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(part, name, value)


@contextmanager
def own_precision() -> Iterator[None]:
    """Leave the caller's autocast outside: passes inside run in the precision of the model.

    That of `half_precision` stays in force.
    """
    with ExitStack() as stack:
        for kind in () if _HERE.is_asked else _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def half_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run matrix products and convolutions inside in half precision, by autocast."""
    before, _HERE.is_asked = _HERE.is_asked, True
    try:
        with torch.autocast(device.type, dtype=dtype):
            yield
    finally:
        _HERE.is_asked = before


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Run what is under `torch.utils.checkpoint` as any other function, in this thread.

    The numbers are the same; only memory was to be saved.
    """
    with _GATES():
        _HERE.n_direct += 1
        try:
            yield
        finally:
            _HERE.n_direct -= 1


class _Shared:
    """A setting of the whole process: made by the first that needs it, undone by the last.

    Whoever made it may leave before others do, in whatever thread.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self.make, self.n_users, self.undo = make, 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with _LOCK:
            if not self.n_users:
                self.undo.enter_context(self.make())
            self.n_users += 1
        try:
            yield
        finally:
            with _LOCK:
                self.n_users -= 1
                if not self.n_users:
                    self.undo.close()


def _gated() -> ExitStack:
    """Make both of torch's ways to checkpoint ask whether the thread wants them."""
    reentrant: Any = checkpoint.CheckpointFunction
    plain, saving = reentrant.apply, checkpoint._checkpoint_without_reentrant_generator

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if _HERE.n_direct else plain(function, preserve, *args)

    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        return _nothing() if _HERE.n_direct else saving(*args, **kwargs)

    back = ExitStack()
    back.callback(delattr, reentrant, "apply")  # hides that of its base until then
    back.callback(setattr, checkpoint, "_checkpoint_without_reentrant_generator", saving)
    reentrant.apply = apply
    checkpoint._checkpoint_without_reentrant_generator = generator
    return back


def _nothing() -> Iterator[None]:
    yield


_GATES: Final = _Shared(_gated)
plain_attention: Final = _Shared(lambda: sdpa_kernel(SDPBackend.MATH))
"""Attention by plain operations, which alone have a forward-mode derivative; in other threads too,
where it differs by rounding, as long as one needs it."""
