"""Texts of options: what stands for them in a run.toml and on the command line."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from condec.basis.errors import OptionError

T = TypeVar("T")
_LONGEST: Final = 1_000
"""Letters of a text: options inside one another end before Python's stack does."""


class Part(NamedTuple):
    """One field of an option in its text; where it is absent the field keeps its default.

    Error messages show `usage`; `pattern` has one group, which `read` turns into the value.
    """

    field: str
    usage: str
    pattern: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = lambda value: f":{value}"


def flag(field: str, word: str) -> Part:
    """Make a part ``:word`` that sets a field to True."""
    return Part(field, f"[:{word}]", f"(:{word})?", bool, lambda on: f":{word}" if on else "")


def choice(field: str, words: str, default: str = "") -> Part:
    """Make a part ``:word`` of several words, as in ``"mean|largest"``."""
    usage = f"[:{words.replace('|', '|:')}]"
    return Part(field, usage, f"(?::({words}))?", str, lambda v: "" if v == default else f":{v}")


def count(field: str, usage: str) -> Part:
    """Make a part ``:NUMBER`` of a whole number."""
    return Part(field, f"[:{usage}]", r"(?::(\d{1,9}))?", int)


@dataclass(frozen=True)
class Texts(Generic[T]):
    """Text forms of all options of one kind, both ways.

    `kind` names them in messages; `forms` are, by class, the word that the text begins with, and
    the `Part` of every field that follows it.
    """

    kind: str
    forms: Mapping[type[T], tuple[Any, ...]]

    @property
    def classes(self) -> dict[str, type[T]]:
        """Classes by name, as `option_from_dict` takes them."""
        return {kind.__name__: kind for kind in self.forms}

    def parse(self, text: str) -> T:
        """Make an option of its text; OptionError where it fits no form."""
        if len(text) > _LONGEST:
            raise OptionError(f"{self.kind} {text[:40]!r}...: longer than {_LONGEST} letters")
        for kind, (word, *parts) in self.forms.items():
            if found := re.fullmatch(word + "".join(part.pattern for part in parts), text):
                given = zip(parts, found.groups(), strict=True)
                return kind(**{p.field: p.read(value) for p, value in given if value is not None})
        forms = self.forms.values()
        usages = ", ".join(word + "".join(part.usage for part in parts) for word, *parts in forms)
        raise OptionError(f"{self.kind} {text!r}: expected {usages}")

    def words(self, option: T) -> str:
        """Write an option as a text; that may say less than `parse` needs."""
        word, *parts = self.forms.get(type(option), ("",))
        return "".join([word, *(part.write(getattr(option, part.field)) for part in parts)])

    def text(self, option: T) -> str:
        """Write the text that `parse` makes the same option of; OptionError without one."""
        text = self.words(option)
        try:
            if text and self.parse(text) == option:
                return text
        except OptionError:
            pass
        raise OptionError(
            f"{self.kind} {type(option).__name__}: no text says all of its options, so a run.toml "
            "cannot hold it; collect in Python, with condec.collect"
        )
