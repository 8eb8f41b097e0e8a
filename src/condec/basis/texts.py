"""Texts of options: what stands for them in a run.toml and on the command line."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from condec.basis.errors import OptionError

T = TypeVar("T")


class Form(NamedTuple):
    """Text form of one class of options.

    Attributes
    ----------
    usage : str
        As error messages show it.
    pattern : str
        Regular expression of all of its texts.
    read : callable
        From the groups of the pattern, None where one is absent, to the option.
    write : callable
        From the option to a text, which need not say everything about it.
    """

    usage: str
    pattern: str
    read: Callable[..., Any]
    write: Callable[[Any], str]


@dataclass(frozen=True)
class Texts(Generic[T]):
    """Text forms of all options of one kind, both ways.

    Attributes
    ----------
    kind : str
        Names the options in messages: ``"target"``.
    forms : mapping of class to Form
    """

    kind: str
    forms: Mapping[type[T], Form]

    @property
    def classes(self) -> dict[str, type[T]]:
        """Classes by name, as `option_from_dict` takes them."""
        return {kind.__name__: kind for kind in self.forms}

    def parse(self, text: str) -> T:
        """Make an option of its text.

        Raises
        ------
        OptionError
            The text fits no form, or a value in it is out of range.
        """
        for form in self.forms.values():
            if found := re.fullmatch(form.pattern, text):
                option: T = form.read(*found.groups())
                return option
        usages = ", ".join(form.usage for form in self.forms.values())
        raise OptionError(f"{self.kind} {text!r}: expected {usages}")

    def text(self, option: T) -> str:
        """Write the text that `parse` makes the same option of.

        Raises
        ------
        OptionError
            There is none.
        """
        if (form := self.forms.get(type(option))) is not None:
            text = form.write(option)
            if re.fullmatch(form.pattern, text) and self.parse(text) == option:
                return text
        raise OptionError(
            f"{self.kind} {type(option).__name__}: no text says all of its options, so a run.toml "
            "cannot hold it; collect in Python, with condec.collect"
        )
