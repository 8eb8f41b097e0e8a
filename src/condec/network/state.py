"""State of a model: what its modules hold besides parameters, compared and put back.

What a pass leaves behind in buffers is seen by whoever looks for it; what it leaves in plain
attributes (a counter, a list, a statistic of the first batch) is as much a state.
"""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_OF_TORCH: Final = frozenset(nn.Module().__dict__)
_NO_SETTINGS: Final = _OF_TORCH - {"training"}
_PLAIN: Final = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_DEPTH: Final = 3
"""How many containers and objects lie in each other that are looked into."""
_LONG: Final = 1000
"""Entries of a container that is not looked into."""


def settings_of(model: nn.Module) -> tuple[object, ...]:
    """Return name, class, functions and settings of modules.

    Settings are plain attributes, as of dropout, and those in containers and objects among them.
    """
    seen: set[int] = set()

    def digest(value: object, depth: int) -> object:
        if isinstance(value, _PLAIN):
            return value
        inside = None if callable(value) else _inside(value)
        if inside is None or not depth or len(inside) > _LONG or id(value) in seen:
            return id(value) if callable(value) else type(value)
        seen.add(id(value))
        return type(value), entries(inside, depth - 1)

    def entries(of: Mapping[Any, object], depth: int) -> tuple[object, ...]:
        keys = ((key if isinstance(key, _PLAIN) else id(key), part) for key, part in of.items())
        return tuple((key, digest(part, depth)) for key, part in keys if key not in _NO_SETTINGS)

    return tuple((name, type(m), entries(vars(m), _DEPTH)) for name, m in model.named_modules())


def _inside(value: object) -> Mapping[Any, object] | None:
    """Return what a container or an object holds; None for what is not looked into."""
    if isinstance(value, Tensor | nn.Module | ModuleType | type):
        return None
    if isinstance(value, list | tuple | deque | set | frozenset):
        return dict(enumerate(value))
    entries = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    return entries if isinstance(entries, dict) else None


class State:
    """Buffers and attributes of a model as they are now.

    Of attributes that are containers or objects what they hold counts too, of tensors the values.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [
            (f"{name}.{key}".lstrip("."), module, key, buffer, _Values(buffer))
            for name, module in model.named_modules()
            for key, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]
        self._back: list[Callable[[], None]] = []
        self._seen = {id(part) for part in (*model.parameters(), *model.buffers())}
        for module in model.modules():
            if not any(is_lazy(part) for part in module.parameters(recurse=False)):
                own = {k: value for k, value in vars(module).items() if k not in _OF_TORCH}
                self._back.append(partial(_put_attributes, module, own, _registered(module)))
                for value in own.values():
                    self._keep(value, _DEPTH)

    def changed_buffers(self) -> list[str]:
        """Name the buffers that hold something else now."""
        return [
            name
            for name, module, key, buffer, values in self._buffers
            if dict(module._buffers.items()).get(key) is not buffer or values.differ()
        ]

    def put_back(self) -> None:
        """Make all as it was."""
        for _, module, key, buffer, values in self._buffers:
            module._buffers[key] = buffer
            values.put_back()
        for back in self._back:
            back()

    def _keep(self, value: Any, depth: int) -> None:
        """Note what a container, an object or a tensor holds."""
        if not depth or id(value) in self._seen:
            return
        self._seen.add(id(value))
        inside = _inside(value)
        if isinstance(value, Tensor):
            if not (value.requires_grad or value.is_inference()):
                self._back.append(_Values(value).put_back)
        elif isinstance(value, list | deque | set):
            self._back.append(partial(_put_items, value, [*value]))
        elif isinstance(inside, dict) and not isinstance(value, tuple | frozenset):
            self._back.append(partial(_put_entries, inside, {**inside}))
        for part in [*inside.values()] if inside and len(inside) <= _LONG else ():
            self._keep(part, depth - 1)


class _Values:
    """The values of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version, self.values = tensor, tensor._version, tensor.detach().clone()

    def differ(self) -> bool:
        return self.tensor._version != self.version and not torch.equal(self.tensor, self.values)

    def put_back(self) -> None:
        if self.tensor._version != self.version:
            with torch.no_grad():
                self.tensor.copy_(self.values)


def _registered(module: nn.Module) -> list[list[str]]:
    return [[*part.keys()] for part in (module._modules, module._parameters, module._buffers)]


def _put_attributes(module: nn.Module, before: Mapping[str, Any], parts: list[list[str]]) -> None:
    if _registered(module) == parts:  # else it was built by its first pass
        _put_entries(vars(module), before, _OF_TORCH)


def _put_entries(
    entries: dict[Any, Any], before: Mapping[Any, Any], but: frozenset[str] = frozenset()
) -> None:
    for key in [key for key in entries if key not in before and key not in but]:
        del entries[key]
    for key, value in before.items():
        if key not in entries or entries[key] is not value:
            entries[key] = value


def _put_items(container: Any, before: list[Any]) -> None:
    now = [*container]
    if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(before)
