"""Every target: its text for run.toml and the command line, and its plain record."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from condec.attribution.targets.base import Target
from condec.attribution.targets.classes import Contrast, Label, Logit, Margin, Predicted, TopK
from condec.attribution.targets.outputs import Entropy, Sum, Surprisal
from condec.basis.errors import OptionError
from condec.basis.options import option_from_dict
from condec.basis.texts import Form, Texts


def _soft(target: Any) -> str:
    return ":softmax" if target.probability else ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _logit(index: str, soft: str | None) -> Logit:
    numbers = _numbers(index)
    return Logit(numbers if len(numbers) > 1 else numbers[0], probability=bool(soft))


def _logit_text(t: Logit) -> str:
    indices = t.index if isinstance(t.index, tuple) else (t.index,)
    return f"logit:{','.join(map(str, indices))}{_soft(t)}"


def _sum_text(t: Sum) -> str:
    return "sum" if t.indices is None else f"sum:{','.join(map(str, t.indices))}{_soft(t)}"


TARGETS: Final[Texts[Target]] = Texts(
    "target",
    {
        TopK: Form(
            "topK[:softmax]",
            r"top(\d+)(:softmax)?",
            lambda k, soft: TopK(int(k), bool(soft)),
            lambda t: f"top{t.k}{_soft(t)}",
        ),
        Logit: Form(
            "logit:INDEX[,INDEX...][:softmax]",
            r"logit:((?:-?\d+,)*\d+)(:softmax)?",
            _logit,
            _logit_text,
        ),
        Label: Form(
            "label[:softmax]",
            r"label(:softmax)?",
            lambda soft: Label(probability=bool(soft)),
            lambda t: f"label{_soft(t)}",
        ),
        Predicted: Form(
            "predicted[:softmax]",
            r"predicted(:softmax)?",
            lambda soft: Predicted(probability=bool(soft)),
            lambda t: f"predicted{_soft(t)}",
        ),
        Contrast: Form(
            "contrast[:frozen][:softmax]",
            r"contrast(:frozen)?(:softmax)?",
            lambda frozen, soft: Contrast(frozen=bool(frozen), probability=bool(soft)),
            lambda t: f"contrast{':frozen' if t.frozen else ''}{_soft(t)}",
        ),
        Margin: Form(
            "margin[:mean|:largest|:logsumexp][:softmax]",
            r"margin(?::(mean|largest|logsumexp))?(:softmax)?",
            lambda rest, soft: Margin(against=rest or "mean", probability=bool(soft)),
            lambda t: f"margin:{t.against}{_soft(t)}",
        ),
        Entropy: Form("entropy", r"entropy", Entropy, lambda t: "entropy"),
        Sum: Form(
            "sum[:INDEX[,INDEX...][:softmax]]",
            r"sum(?::(\d+(?:,\d+)*)(:softmax)?)?",
            lambda some, soft: Sum(_numbers(some) if some else None, probability=bool(soft)),
            _sum_text,
        ),
        Surprisal: Form(
            "surprisal[:SHRINKAGE]",
            r"surprisal(?::(\d+(?:\.\d+)?(?:e-\d+)?))?",
            lambda share: Surprisal(shrinkage=float(share) if share else "auto"),
            lambda t: "surprisal" if t.shrinkage == "auto" else f"surprisal:{t.shrinkage}",
        ),
    },
)


def parse_target(text: str) -> Target:
    """Make a target of its text; [Choose a target](../how-to/target.md) lists them.

    >>> parse_target("logit:285:softmax")
    Logit(index=285, probability=True)

    Raises
    ------
    OptionError
        There is no such target, or a number is out of range.
    """
    return TARGETS.parse(text)


def target_text(target: Target) -> str:
    """Inverse of `parse_target`.

    Raises
    ------
    OptionError
        The target has no text: it holds numbers or a function.
    """
    return TARGETS.text(target)


def target_from_dict(record: Mapping[str, Any]) -> Target:
    """Inverse of `Target.to_dict`.

    Raises
    ------
    OptionError
        No target has that name or those fields, or it is a function of the user's own, which
        a record does not hold.
    """
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
            fields[key] = None if given is None else torch.tensor(given, dtype=torch.float64)
    target: Target = option_from_dict("target", TARGETS.classes, {}, fields)
    return target
