"""Every target: its text for run.toml and the command line, and its plain record."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from condec.attribution.targets.base import Target
from condec.attribution.targets.classes import Contrast, Label, Logit, Margin, Predicted, TopK
from condec.attribution.targets.outputs import Entropy, Sum, Surprisal
from condec.basis.errors import OptionError
from condec.basis.options import option_from_dict
from condec.basis.texts import Part, Texts, choice, flag


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _index(text: str) -> int | tuple[int, ...]:
    numbers = _numbers(text)
    return numbers if len(numbers) > 1 else numbers[0]


def _index_text(index: int | tuple[int, ...] | None) -> str:
    numbers = index if isinstance(index, tuple) else (index,)
    return "" if index is None else f":{','.join(map(str, numbers))}"


def _pair(text: str) -> tuple[int | str, ...]:
    return tuple(int(one) if one.isdecimal() else one for one in text.split(":"))


def _pair_text(pair: tuple[int | str, int | str] | None) -> str:
    return "" if pair is None else f":{pair[0]}:{pair[1]}"


_SOFT: Final = flag("probability", "softmax")
_PAIR: Final = r"(?::((?!softmax:|frozen:)[^:]+:(?!softmax$)[^:]+))?"
TARGETS: Final[Texts[Target]] = Texts(
    "target",
    {
        TopK: ("top", Part("k", "K", r"(\d{1,9})", int, str), _SOFT),
        Logit: (
            "logit",
            Part("index", ":INDEX[,INDEX...]", r":((?:-?\d{1,9},)*\d{1,9})", _index, _index_text),
            _SOFT,
        ),
        Label: ("label", _SOFT),
        Predicted: ("predicted", _SOFT),
        Contrast: (
            "contrast", flag("frozen", "frozen"),
            Part("pair", "[:LABEL:LABEL]", _PAIR, _pair, _pair_text), _SOFT,
        ),
        Margin: ("margin", choice("against", "mean|largest|logsumexp|all"), _SOFT),
        Entropy: ("entropy",),
        Sum: (
            "sum",
            Part(
                "indices", "[:INDEX[,INDEX...]]", r"(?::(\d{1,9}(?:,\d{1,9})*))?", _numbers,
                _index_text,
            ),
            _SOFT,
        ),
        Surprisal: (
            "surprisal",
            Part(
                "shrinkage", "[:SHRINKAGE]", r"(?::(\d+(?:\.\d+)?(?:e-\d+)?))?", float,
                lambda share: "" if share == "auto" else f":{share}",
            ),
        ),
    },
)  # fmt: skip
"""Texts of targets; [Choose a target](../how-to/target.md) lists them.

>>> TARGETS.parse("logit:285:softmax")
Logit(index=285, probability=True)
"""


def target_from_dict(record: Mapping[str, Any]) -> Target:
    """Read what `Target.to_dict` wrote; OptionError for another name, and for functions."""
    name = record.get("name")
    if name == "Custom":
        raise OptionError(
            f"target Custom: the record holds the name of the function only, "
            f"{record.get('function')!r}; give the function itself in Python"
        )
    fields = dict(record)
    if name == "Surprisal":
        for key in ("mean", "precision"):
            given = record.get(key)
            try:
                fields[key] = None if given is None else torch.tensor(given, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise OptionError(f"target Surprisal: {key}: {error}") from error
    target: Target = option_from_dict("target", TARGETS.classes, {}, fields)
    return target
