"""Every method and baseline: their texts for run.toml and the command line, and plain records.

>>> parse_method("ig:20:layer@blur:3")
IntegratedGradients(steps=20, baseline=Blur(sigma=3.0), path='layer', ...)
>>> method_text(parse_method("smoothgrad:8(gradient)"))
'smoothgrad:8(gradient)'
"""

from collections.abc import Mapping
from typing import Any, Final

from condec.attribution.ablation import UnitAblation
from condec.attribution.base import Method
from condec.attribution.baselines import (
    Baseline,
    Blur,
    Constant,
    Mean,
    Noise,
    Samples,
    Zeros,
    ZeroTokens,
)
from condec.attribution.gradients import (
    ActGrad,
    Activation,
    ActNormGrad,
    GradCAM,
    Gradient,
    InputGrad,
    NormActNormGrad,
    SmoothGrad,
)
from condec.attribution.path import IntegratedGradients
from condec.basis.options import option_from_dict
from condec.basis.texts import Part, Texts, choice, count

_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def _short(value: float) -> str:
    """Write a number without a superfluous ``.0``, and back exactly."""
    short = f"{value:g}"
    return f":{short if float(short) == value else repr(float(value))}"


def _constant(text: str) -> float | tuple[float, ...]:
    values = tuple(map(float, text.split(",")))
    return values if len(values) > 1 else values[0]


def _constant_text(value: float | tuple[float, ...]) -> str:
    return (
        _short(value)
        if not isinstance(value, tuple)
        else ":" + ",".join(_short(v)[1:] for v in value)
    )


BASELINES: Final[Texts[Baseline]] = Texts(
    "baseline",
    {
        Zeros: ("zeros",),
        ZeroTokens: ("zero_tokens",),
        Constant: (
            "constant",
            Part(
                "value",
                ":VALUE[,VALUE...]",
                rf":({_NUMBER}(?:,{_NUMBER})*)",
                _constant,
                _constant_text,
            ),
        ),
        Blur: ("blur", Part("sigma", ":SIGMA", rf":({_NUMBER})", float, _short)),
        Mean: ("mean", count("n_samples", "SAMPLES")),
        Noise: (
            "noise",
            Part("std", ":STD", rf":({_NUMBER})", float, _short),
            count("n_draws", "DRAWS"),
        ),
        Samples: ("samples", count("n_samples", "SAMPLES")),
    },
)
_PLAIN: Final = (ActGrad, ActNormGrad, NormActNormGrad, Activation, Gradient, GradCAM, InputGrad)
METHODS: Final[Texts[Method]] = Texts(
    "method",
    {
        IntegratedGradients: (
            "ig",
            Part(
                "steps",
                "[:STEPS|:auto]",
                r"(?::(\d+|auto))?",
                lambda text: "auto" if text == "auto" else int(text),
            ),
            choice("path", "layer", default="input"),
            choice("rule", "left|right|gauss", default="trapezoid"),
            Part(
                "baseline",
                "[@BASELINE]",
                r"(?:@(.*))?",
                BASELINES.parse,
                lambda baseline: "" if baseline == Zeros() else f"@{BASELINES.text(baseline)}",
            ),
        ),
        **{kind: (kind.__name__.lower(),) for kind in _PLAIN},
        SmoothGrad: (
            "smoothgrad",
            count("n_samples", "COPIES"),
            Part(
                "inner",
                "[(METHOD)]",
                r"(?:\((.*)\))?",
                lambda text: METHODS.parse(text),  # noqa: PLW0108  # not there yet
                lambda inner: f"({METHODS.text(inner)})",
            ),
        ),
        UnitAblation: ("unit_ablation", choice("replacement", "zero|mean|resample|baseline")),
    },
)
_INSIDE: Final[dict[str, dict[str, Any]]] = {
    "baseline": BASELINES.classes,
    "inner": METHODS.classes,
}


def parse_method(text: str) -> Method:
    """Make a method of its text; [Choose a method](../how-to/method.md) lists them.

    Raises
    ------
    OptionError
        There is no such method, or a number is out of range.
    """
    return METHODS.parse(text)


def method_text(method: Method) -> str:
    """Inverse of `parse_method`.

    Raises
    ------
    OptionError
        The method has options that no text says.
    """
    return METHODS.text(method)


def parse_baseline(text: str) -> Baseline:
    """Make a baseline of its text, as it stands after the ``@`` of a method.

    Raises
    ------
    OptionError
        There is no such baseline, or a number is out of range.

    Examples
    --------
    >>> parse_baseline("constant:0.5")
    Constant(value=0.5)
    """
    return BASELINES.parse(text)


def baseline_text(baseline: Baseline) -> str:
    """Inverse of `parse_baseline`.

    Raises
    ------
    OptionError
        The baseline has options that no text says.
    """
    return BASELINES.text(baseline)


def method_from_dict(record: Mapping[str, Any]) -> Method:
    """Inverse of `Method.to_dict`.

    Raises
    ------
    OptionError
        No method has that name or those fields.
    """
    method: Method = option_from_dict("method", METHODS.classes, _INSIDE, record)
    return method
