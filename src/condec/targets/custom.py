"""Any function of the output as a target, and how a store tells one from another."""

import contextlib
import dis
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from condec.errors import ModelError, OptionError
from condec.options import digest_of
from condec.shapes import PerSample
from condec.targets.base import Target, TargetLike


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
    of its defaults and of the globals that it uses. Another function, or another version of
    Python, does not go on with a store.

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
    yield f"({type(value).__qualname__} ".encode()
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif not any(value is other for other in above):
        for item in _items(value):
            yield from _parts(item, (*above, value))
    yield b")"


def _items(value: Any) -> Iterable[Any]:
    """What a value is made of."""
    for kinds, items in _INSIDE:
        if isinstance(value, kinds):
            return items(value)
    if callable(value) and hasattr(value, "__dict__"):
        return [type(value), type(value).__call__, vars(value)]
    raise OptionError(
        f"Custom: the function uses a value of type {type(value).__name__}, which a store cannot "
        "tell from another; use numbers, texts, tensors, modules and functions"
    )


def _of_function(function: types.FunctionType) -> list[Any]:
    """Code, defaults, values closed over, and the globals that the code reads."""
    closed: list[Any] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            closed.append(cell.cell_contents)
    read: dict[str, Any] = {}
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            value = function.__globals__[name]
            # Another module's function is known by its name; one of the same module may change.
            far = getattr(value, "__module__", None) != function.__module__
            is_function = isinstance(value, types.FunctionType)
            read[name] = f"{value.__module__}.{_name(value)}" if is_function and far else value
    return [function.__code__, function.__defaults__, function.__kwdefaults__, closed, read]


def _global_names(code: types.CodeType) -> set[str]:
    read = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    inside = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return read.union(*(_global_names(const) for const in inside))


_PLAIN: Final = (
    type(None), bool, int, float, complex, str, bytes, types.EllipsisType, torch.dtype,
    torch.device, torch.Size,
)  # fmt: skip
_INSIDE: Final[tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...]] = (
    (torch.nn.Module, lambda m: [type(m), repr(m), dict(m.state_dict())]),
    (Tensor, lambda t: [digest_of(t)]),
    ((np.ndarray, np.generic), lambda a: [str(a.dtype), a.shape, a.tobytes()]),
    (types.ModuleType, lambda m: [m.__name__]),
    (type, lambda t: [f"{t.__module__}.{t.__qualname__}"]),
    ((list, tuple), list),
    ((set, frozenset), lambda s: sorted(s, key=repr)),
    (slice, lambda s: [s.start, s.stop, s.step]),
    (Mapping, lambda m: list(m.items())),
    (types.CodeType, lambda c: [c.co_code, c.co_consts, c.co_names, c.co_varnames]),
    (types.FunctionType, _of_function),
    (functools.partial, lambda p: [p.func, p.args, p.keywords]),
    (types.MethodType, lambda m: [m.__func__, m.__self__]),
    (types.BuiltinFunctionType, lambda f: [f.__qualname__]),
)
