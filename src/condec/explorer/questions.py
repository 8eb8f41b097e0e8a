"""Questions by their names, as pages and notebooks ask them; answers are JSON or files.

Those of `COMPUTED` run the network, one at a time; others look something up, or note something.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from condec.basis.checks import whole_number
from condec.basis.errors import OptionError
from condec.explorer.session import Session

Given = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class File:
    """An answer that is a file; with a `name`, to be kept."""

    content: bytes
    kind: str
    name: str = ""


def _upload(session: Session, given: Given) -> Any:
    return session.explain_upload(given["content"], text=given["text"])


def _turn(session: Session, given: Given) -> Any:
    return session.turn(_text(given, "key"), _text(given, "site"), _factors(given))


def _weights(session: Session, given: Given) -> Any:
    content = session.weights(_text(given, "key"), _text(given, "site"), _factors(given))
    return File(content, "application/octet-stream", "edited.safetensors")


COMPUTED: Final[Mapping[str, Callable[[Session, Given], Any]]] = {
    "explain": lambda session, given: session.explain(_text(given, "id")),
    "upload": _upload,
    "turn": _turn,
    "page": lambda session, given: File(
        session.page(_text(given, "key")), "application/zip", "explained.zip"
    ),
    "weights": _weights,
}
NOTED: Final[Mapping[str, Callable[[Session, Given], Any]]] = {
    "inputs": lambda session, _: session.offered(),
    "picture": lambda session, given: File(session.thumbnail(_text(given, "id")), "image/png"),
    "jobs": lambda session, _: session.jobs.told(),
    "start": lambda session, given: session.start(_text(given, "link"), given),
    "cancel": lambda session, given: session.jobs.cancel(_number(given, "job")),
    "selection": lambda session, given: File(
        session.selection(given.get("modes")).encode(), "application/toml", "selection.toml"
    ),
    "curves": lambda session, given: session.curves(
        _text(given, "site"), _number(given, "mode"), _text(given, "dictionary")
    ),
}


def answer(session: Session, name: str, given: Given) -> Any:
    """Answer one question; OptionError where it is none."""
    if name in COMPUTED:
        session.refresh()
        return COMPUTED[name](session, given)
    if name not in NOTED:
        raise OptionError(f"explore: there is no question {name!r}")
    return NOTED[name](session, given)


def _text(given: Given, name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise OptionError(f"explore: {name}: expected a text; got {value!r}")
    return value


def _number(given: Given, name: str) -> int:
    return whole_number(f"explore: {name}", given.get(name))


def _factors(given: Given) -> dict[str, float]:
    factors = given.get("factors")
    if not isinstance(factors, dict) or not all(type(f) is float for f in factors.values()):
        raise OptionError("explore: expected factors, numbers by the names of parts")
    return factors
