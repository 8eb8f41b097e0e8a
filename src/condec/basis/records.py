"""Records that print in one line, or as one small table.

>>> import dataclasses, torch
>>> @short_repr
... @dataclasses.dataclass(frozen=True)
... class Found:
...     site: str
...     values: torch.Tensor
...     ids: tuple[str, ...] = ()
>>> Found("block1", torch.ones(64, 2), tuple("abcdef"))
Found(site='block1', values=Tensor[64, 2] float32, ids=(6 str))
"""

import dataclasses
import inspect
from collections.abc import Mapping, Set
from pathlib import Path, PurePath
from typing import Any, TypeVar

from torch import nn

Record = TypeVar("Record")

_LINE, _TEXT, _FEW = 100, 60, 3


def short_repr(kind: type[Record]) -> type[Record]:
    """Give a dataclass a short `repr`; write it above ``@dataclass``.

    One line where 100 characters hold it, else a line a field. Fields that are None, private or
    of ``repr=False`` are left out.
    """
    kind.__repr__ = _repr  # type: ignore[method-assign]
    return kind


def describe(value: Any) -> str:
    """Describe a value in at most about 60 characters: arrays by shape, long tuples by number."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, type):
        dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
        return f"{type(value).__name__}{list(shape)} {dtype}".rstrip()
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, PurePath):
        return describe(str(value))
    if inspect.isroutine(value):
        return f"{value.__name__}()"
    if isinstance(value, Mapping) and (len(value) > _FEW or not _is_plain(value.values())):
        return f"{{{len(value)} {_kinds(value.values())}}}"
    if isinstance(value, tuple | list | Set) and (len(value) > _FEW or not _is_plain(value)):
        return f"({len(value)} {_kinds(value)})"
    text = repr(value)
    if len(text) <= _TEXT and "\n" not in text:
        return text
    return f"{text[: _TEXT - 4]}...'" if isinstance(value, str) else f"{type(value).__name__}(...)"


def _is_plain(values: Any) -> bool:
    return all(isinstance(value, str | int | float | None) for value in values)


def _kinds(values: Any) -> str:
    return " or ".join(sorted({type(value).__name__ for value in values})[:_FEW])


def _repr(record: Any) -> str:
    fields = [f.name for f in dataclasses.fields(record) if f.repr and not f.name.startswith("_")]
    values = {name: getattr(record, name) for name in fields}
    shown = {name: describe(value) for name, value in values.items() if value is not None}
    head, line = type(record).__name__, ", ".join(f"{name}={text}" for name, text in shown.items())
    if len(head) + len(line) + 2 <= _LINE:
        return f"{head}({line})"
    width = max(map(len, shown))
    return "\n".join([head, *(f"  {name:{width}}  {text}" for name, text in shown.items())])


@short_repr
@dataclasses.dataclass(frozen=True, slots=True)
class Damage:
    """A file of a result that is not what was written, as `Store.damages` finds it.

    >>> import pathlib
    >>> print(Damage(pathlib.Path("a/b.json"), "expected 3 rows, got 2", "Remove it."))
    a/b.json: expected 3 rows, got 2. Remove it.
    """

    file: Path
    """Where it is, or should be."""
    problem: str
    """What is wrong, without an end of sentence."""
    remedy: str
    """What to do about it, as a sentence."""
    cause: Path | None = None
    """Another result, of which it was made, and which is another one now."""

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}. {self.remedy}"
