"""Options: frozen records that can be written down and read back.

An option's plain form is a mapping of JSON values: the name of its class and its fields, options
inside it likewise. It is what recipes, manifests and reports hold.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from condec.basis.errors import OptionError

_TENSOR: Final = "tensor "


class Option:
    """Base of frozen dataclasses that say how something is done."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form: the class name and the fields that the constructor takes.

        A tensor stands there as its digest, so that a recipe says which it was; such an
        option cannot be made from its plain form.
        """
        fields = (f for f in dataclasses.fields(self) if f.init)  # type: ignore[arg-type]
        return {"name": type(self).__name__} | {
            f.name: _plain(getattr(self, f.name)) for f in fields
        }


def require(owner: str, name: str, value: Any, kind: type) -> None:
    """Raise OptionError where an option inside another is of the wrong kind."""
    if not isinstance(value, kind):
        shown = value.__name__ if isinstance(value, type) else type(value).__name__
        hint = f"; call it: {shown}()" if isinstance(value, type) else ""
        raise OptionError(
            f"{owner}: {name} must be a {kind.__name__} such as those in condec.attribution; got "
            f"{'the class ' if hint else ''}{shown}{hint}"
        )


def option_from_dict(
    kind: str,
    known: Mapping[str, type],
    inside: Mapping[str, Mapping[str, type]],
    record: Mapping[str, Any],
) -> Any:
    """Make an option of its plain form, as `Option.to_dict` leaves it.

    `kind` names it in messages; `known` are the classes that may stand there, by name, and `inside`
    those that may stand in its fields, by field and name. OptionError where there is no such class,
    or it has no such fields.
    """
    if not isinstance(record, Mapping):
        raise OptionError(f"{kind}: expected a record with a name; got {record!r:.80}")
    fields = dict(record)
    if any(isinstance(value, str) and value.startswith(_TENSOR) for value in fields.values()):
        raise OptionError(
            f"{kind} {fields.get('name')}: it holds a tensor, of which the record has the digest "
            "only; give the option itself in Python"
        )
    name = fields.pop("name", None)
    if not isinstance(name, str) or name not in known:
        raise OptionError(f"{kind}: expected one of {', '.join(known)}; got {name!r}")
    for key, value in fields.items():
        if key in inside:
            fields[key] = option_from_dict(key, inside[key], inside, value)
        elif isinstance(value, list):
            fields[key] = tuple(value)
    try:
        return known[name](**fields)
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(f"{kind} {name}: {error}") from error


def digest_of(tensor: Tensor | None) -> str:
    """Hash (SHA-256) a tensor's shape, type and bytes, shortened; empty for None."""
    if tensor is None:
        return ""
    flat = tensor.detach().cpu().contiguous().flatten()
    head = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    return hashlib.sha256(head + flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Option):
        return value.to_dict()
    if isinstance(value, Tensor):
        return f"{_TENSOR}{digest_of(value)}"
    return list(value) if isinstance(value, tuple) else value
