"""Any function of the output as a target, and how a store tells one from another."""

import contextlib
import dis
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from condec.attribution.targets.base import Target, TargetLike
from condec.basis.errors import ModelError, OptionError
from condec.basis.options import digest_of
from condec.basis.shapes import PerSample


@final
@dataclass(frozen=True, slots=True)
class Custom(Target):
    """A function of your own.

    Parameters
    ----------
    function : callable
        From the model's output [sample, ...] to one number a sample, Tensor [sample],
        differentiable. It is called with any number of samples, and must look at each alone.
    label : str, optional
        What recipes and reports call it; by default the function's name.

    Raises
    ------
    OptionError
        `function` cannot be called; or, at the first output, it fails, does not give one
        floating-point number a sample, or mixes the samples.

    Notes
    -----
    A store holds the name and a digest of the compiled code, of the values it closes over,
    of its defaults, of the globals that it uses, and of what it reads by name in classes and
    modules of your own. Another function, or another version of Python, does not go on with a
    store. What is installed (torch, other packages, the standard library) counts by its name
    alone, and so does a function of another module; what is read by ``getattr``, or from a file,
    is not seen.

    Examples
    --------
    >>> target = Custom(lambda output: output[:, 0] - output[:, 1])
    >>> target.value(torch.tensor([[3.0, 1.0], [0.5, 0.0]]), None)
    tensor([2.0000, 0.5000])
    """

    function: Callable[[Tensor], Tensor]
    label: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise OptionError(
                f"Custom: expected a function from output to Tensor[sample]; got {self.function!r}"
            )
        if not self.label:
            object.__setattr__(self, "label", _name(self.function))

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Nothing; checks that the last sample alone gives what it gives among the others."""
        together, alone = self._call(output)[-1:], self._call(output[-1:])
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise OptionError(
                f"Custom: {self.label} mixes the samples: for the last sample of the batch it "
                f"gives {together.item():g}, for the same sample alone {alone.item():g}. A target "
                "must look at each sample alone"
            )
        return None

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """What the function gives, shape [sample]."""
        return self._call(output)

    def _call(self, output: Tensor) -> Tensor:
        try:
            value = self.function(output)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ModelError(
                f"Custom: {self.label} failed on an output of shape {tuple(output.shape)}: "
                f"{error}. It must take any number of samples: the baseline is run once for all"
            ) from error
        if not isinstance(value, Tensor):
            raise OptionError(
                f"Custom: {self.label} must return a Tensor of shape [sample]; got "
                f"{type(value).__name__}"
            )
        if value.shape != output.shape[:1] or not value.is_floating_point():
            raise OptionError(
                f"Custom: {self.label} must return one floating-point number for each of "
                f"{len(output)} samples; got {value.dtype} of shape {tuple(value.shape)}"
            )
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain form: the name and a digest; the function itself cannot be read back."""
        return {"name": "Custom", "function": self.label, "code": code_digest(self.function)}


def as_target(target: TargetLike) -> Target:
    """The target itself, or a function of the output as one.

    Raises
    ------
    OptionError
        Neither a target nor a function.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, type) or not callable(target):
        raise OptionError(
            f"target: expected a target such as TopK(k=1), or a function from the output to "
            f"Tensor[sample]; got {target!r}"
        )
    return Custom(target)


def code_digest(function: Callable[..., Any]) -> str:
    """SHA-256, shortened, of what a function computes: its code and the values it uses.

    Raises
    ------
    OptionError
        The function uses a value that cannot be told from another.
    """
    digest = hashlib.sha256()
    for part in _parts(function, ()):
        digest.update(part)
    return digest.hexdigest()[:16]


def _name(function: Any) -> str:
    inner = function.func if isinstance(function, functools.partial) else function
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return str(name)


def _parts(value: Any, above: tuple[Any, ...]) -> Iterator[bytes]:
    """Bytes that tell one value from another; `above` are the values that it is inside of."""
    inner = value.of if isinstance(value, _Read) else value
    yield f"({type(inner).__qualname__} ".encode()
    if isinstance(inner, _PLAIN):
        yield repr(inner).encode()
    elif not any(inner is other for other in above):
        for item in _items(value):
            yield from _parts(item, (*above, inner))
    yield b")"


@dataclass(frozen=True, eq=False)
class _Read:
    """A module, class or object, and the names of attributes that the code near it reads."""

    of: Any
    names: frozenset[str]


_CALLED: Final = frozenset(("__call__", "forward"))


def _items(value: Any) -> Iterable[Any]:
    """What a value is made of."""
    if isinstance(value, _Read):
        return _of_read(value.of, value.names)
    for kinds, items in _INSIDE:
        if isinstance(value, kinds):
            return items(value)
    if hasattr(value, "__dict__") and not _is_installed(type(value).__module__):
        return _of_read(value, _CALLED)
    if callable(value) and hasattr(value, "__dict__"):
        return [type(value), type(value).__call__, vars(value)]
    raise OptionError(
        f"Custom: the function uses a value of type {type(value).__name__}, which a store cannot "
        "tell from another; use numbers, texts, tensors, modules and functions"
    )


def _of_read(value: Any, names: frozenset[str]) -> Iterable[Any]:
    """What code that reads these attributes of a value depends on."""
    if isinstance(value, types.ModuleType):
        own = {} if _is_installed(value.__name__) else vars(value)
        kinds = (*_PLAIN, *_DATA, types.ModuleType)
        read = {n: own[n] for n in sorted(names & own.keys()) if isinstance(own[n], kinds)}
        return [value.__name__, {n: _reading(v, names) for n, v in read.items()}]
    if isinstance(value, type):
        return _of_class(value, names)
    if isinstance(value, torch.nn.Module):
        return _of_module(value, names)
    known = isinstance(value, tuple(kind for kinds, _ in _INSIDE for kind in _several(kinds)))
    if known or not hasattr(value, "__dict__") or _is_installed(type(value).__module__):
        return _items(value)
    reached = _reached(type(value), names | _CALLED)
    held = {name: _reading(part, reached) for name, part in vars(value).items()}
    return [_Read(type(value), reached), held]


def _several(kinds: Any) -> tuple[type, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _reading(value: Any, names: frozenset[str]) -> Any:
    """The value with what is read of it, where that makes a difference."""
    plain = isinstance(value, (*_PLAIN, *_DATA, types.FunctionType))
    return value if plain else _Read(value, names)


def _is_installed(module: str) -> bool:
    """Whether a module comes with Python or from a package: its name tells what it is."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "numpy", "condec"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _of_class(kind: type, names: frozenset[str]) -> list[Any]:
    """Name of a class; of one's own also the code of all methods, and its plain values.

    Methods that are read by name, from outside or by one that is, stand there with all that
    they use; of the others only the code, so that they may use what cannot be told apart.
    """
    found: list[Any] = [f"{kind.__module__}.{kind.__qualname__}"]
    read = _reached(kind, names)
    for name, value in _members(kind):
        if functions := _functions(value):
            found += [name, functions if name in read else [f.__code__ for f in functions]]
        elif name.startswith("__") or hasattr(type(value), "__get__"):
            continue
        elif name in read:
            found += [name, _reading(value, read)]
        elif isinstance(value, _PLAIN):
            found += [name, value]
    return found


def _members(kind: type) -> list[tuple[str, Any]]:
    """Entries of a class and of those it inherits from, without what is installed."""
    own = [base for base in kind.__mro__ if not _is_installed(base.__module__)]
    return [(name, value) for base in own for name, value in sorted(vars(base).items())]


def _reached(kind: type, names: frozenset[str]) -> frozenset[str]:
    """These names, and those that methods read that are reached by them."""
    read, before = set(names), 0
    while len(read) > before:
        before = len(read)
        for name, value in _members(kind):
            if name in read:
                read.update(*(_names(function.__code__) for function in _functions(value)))
    return frozenset(read)


def _functions(value: Any) -> list[types.FunctionType]:
    """Functions that an entry of a class stands for."""
    parts = (
        (value.fget, value.fset) if isinstance(value, property)
        else (value.__func__,) if isinstance(value, staticmethod | classmethod)
        else (value.func,) if isinstance(value, functools.cached_property)
        else (value,)
    )  # fmt: skip
    return [part for part in parts if isinstance(part, types.FunctionType)]


def _of_module(module: torch.nn.Module, names: frozenset[str]) -> list[Any]:
    """A network: its classes, how it shows itself, weights, and plain attributes."""
    kinds = {name: _Read(type(part), names | _CALLED) for name, part in module.named_modules()}
    plain = {
        name: {
            key: value
            for key, value in sorted(vars(part).items())
            if isinstance(value, _PLAIN) and not key.startswith("_") and key != "training"
        }
        for name, part in module.named_modules()
    }
    return [kinds, repr(module), dict(module.state_dict()), plain]


def _of_function(function: types.FunctionType) -> list[Any]:
    """Code, defaults, values closed over, and the globals that the code reads."""
    names = frozenset(_names(function.__code__))
    closed: list[Any] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            closed.append(_reading(cell.cell_contents, names))
    read: dict[str, Any] = {}
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            value = function.__globals__[name]
            # Another module's function is known by its name; one of the same module may change.
            far = getattr(value, "__module__", None) != function.__module__
            is_function = isinstance(value, types.FunctionType)
            known = f"{value.__module__}.{_name(value)}" if is_function and far else None
            read[name] = known or _reading(value, names)
    return [function.__code__, function.__defaults__, function.__kwdefaults__, closed, read]


def _of_method(method: types.MethodType) -> list[Any]:
    """The function, and the object with what the function reads of it."""
    names = frozenset(_names(getattr(method.__func__, "__code__", None)))
    return [method.__func__, _reading(method.__self__, names)]


def _global_names(code: types.CodeType) -> set[str]:
    read = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    inside = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return read.union(*(_global_names(const) for const in inside))


def _names(code: types.CodeType | None) -> set[str]:
    """Names of globals and attributes in code, and in the functions inside it."""
    if code is None:
        return set()
    inside = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*(_names(const) for const in inside))


_PLAIN: Final = (
    type(None), bool, int, float, complex, str, bytes, types.EllipsisType, torch.dtype,
    torch.device, torch.Size,
)  # fmt: skip
_DATA: Final = (Tensor, np.ndarray, np.generic, list, tuple, set, frozenset, dict, slice)
_INSIDE: Final[tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...]] = (
    (torch.nn.Module, lambda m: _of_module(m, _CALLED)),
    (Tensor, lambda t: [digest_of(t)]),
    ((np.ndarray, np.generic), lambda a: [str(a.dtype), a.shape, a.tobytes()]),
    (types.ModuleType, lambda m: [m.__name__]),
    (enum.Enum, lambda e: [f"{type(e).__module__}.{type(e).__qualname__}", e.name, e.value]),
    (type, lambda t: _of_class(t, _CALLED)),
    ((list, tuple), list),
    ((set, frozenset), lambda s: sorted(s, key=repr)),
    (slice, lambda s: [s.start, s.stop, s.step]),
    (Mapping, lambda m: list(m.items())),
    (types.CodeType, lambda c: [c.co_code, c.co_consts, c.co_names, c.co_varnames]),
    (types.FunctionType, _of_function),
    (functools.partial, lambda p: [p.func, p.args, p.keywords]),
    (types.MethodType, _of_method),
    (types.BuiltinFunctionType, lambda f: [f.__qualname__]),
)
