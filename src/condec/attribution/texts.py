"""Every method and baseline: their texts for run.toml and the command line, and plain records.

>>> METHODS.parse("ig:20:layer@blur:3")
IntegratedGradients(steps=20, baseline=Blur(sigma=3.0), spacing='uniform', path='layer', ...)
>>> METHODS.text(METHODS.parse("smoothgrad:8(gradient)"))
'smoothgrad:8(gradient)'
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from condec.attribution import baselines, gradients
from condec.attribution.ablation import UnitAblation
from condec.attribution.base import Method
from condec.attribution.path import IntegratedGradients
from condec.basis.errors import OptionError
from condec.basis.options import option_from_dict, require
from condec.basis.texts import Part, Texts, choice, count

_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_NUMBERS: Final = rf":({_NUMBER}(?:,{_NUMBER})*)"


def _constant(text: str) -> float | tuple[float, ...]:
    values = tuple(map(float, text.split(",")))
    return values if len(values) > 1 else values[0]


def _constant_text(value: float | tuple[float, ...]) -> str:
    return f":{','.join(map(str, value if isinstance(value, tuple) else (value,)))}"


_VALUE: Final = Part("value", ":VALUE[,VALUE...]", _NUMBERS, _constant, _constant_text)
BASELINES: Final[Texts[baselines.Baseline]] = Texts(
    "baseline",
    {
        baselines.Zeros: ("zeros",),
        baselines.ZeroTokens: ("zero_tokens",),
        baselines.MeanToken: ("mean_token",),
        baselines.Constant: ("constant", _VALUE),
        baselines.Blur: ("blur", Part("sigma", ":SIGMA", rf":({_NUMBER})", float)),
        baselines.Mean: ("mean", count("n_samples", "SAMPLES")),
        baselines.Samples: ("samples", count("n_samples", "SAMPLES")),
    },
)


def _steps(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _baseline_text(baseline: baselines.Baseline) -> str:
    return "" if baseline == baselines.Zeros() else f"@{BASELINES.text(baseline)}"


_PLAIN: Final = (
    gradients.ActGrad, gradients.ActNormGrad, gradients.Activation, gradients.Gradient,
    gradients.GradCAM,
)  # fmt: skip
METHODS: Final[Texts[Method]] = Texts(
    "method",
    {
        IntegratedGradients: (
            "ig",
            Part("steps", "[:STEPS|:auto]", r"(?::(\d{1,9}|auto))?", _steps),
            choice("path", "layer", default="input"),
            Part(
                "spacing",
                "[:uniform|:fitted|:power:P]",
                r"(?::(uniform|fitted|power:\d+(?:\.\d+)?))?",
                str,
                lambda text: "" if text == "uniform" else f":{text}",
            ),
            Part("baseline", "[@BASELINE]", r"(?:@(.*))?", BASELINES.parse, _baseline_text),
        ),
        **{kind: (kind.__name__.lower(),) for kind in _PLAIN},
        gradients.SmoothGrad: (
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
"""Texts of methods; [Choose a method](../how-to/method.md) lists them."""
_INSIDE: Final[dict[str, dict[str, Any]]] = {
    "baseline": BASELINES.classes,
    "inner": METHODS.classes,
}


def method_from_dict(record: Mapping[str, Any]) -> Method:
    """Read what `Method.to_dict` wrote; OptionError for another name or other fields."""
    method: Method = option_from_dict("method", METHODS.classes, _INSIDE, record)
    return method


def as_method(owner: str, method: Method | None, model: nn.Module) -> Method:
    """Return the method for a model, by default integrated gradients; OptionError for no method."""
    if isinstance(method, str):
        raise OptionError(
            f"{owner}: method {method!r}: a text stands for a method in a run.toml only; in Python "
            f"give condec.attribution.{METHODS.parse(method)!r}"
        )
    method = method or IntegratedGradients()
    require(owner, "method", method, Method)
    return method.for_model(model)
