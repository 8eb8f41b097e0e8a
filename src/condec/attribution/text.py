"""Methods and baselines as text: what stands in a run.toml and on the command line.

>>> method_from_text("ig:20:layer@blur:3")
IntegratedGradients(steps=20, baseline=Blur(sigma=3.0), path='layer', ...)
>>> method_text(method_from_text("smoothgrad:8(gradient)"))
'smoothgrad:8(gradient)'
"""

import re
from collections.abc import Callable
from typing import Final

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
from condec.attribution.deeplift import DeepLift
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
from condec.basis.errors import OptionError

_PLAIN: Final[dict[str, type[Method]]] = {
    kind.__name__.lower(): kind
    for kind in (
        ActGrad, ActNormGrad, NormActNormGrad, Activation, Gradient, GradCAM, InputGrad,
    )
}  # fmt: skip
_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_BASELINES: Final[dict[str, Callable[[re.Match[str]], Baseline]]] = {
    r"zeros": lambda m: Zeros(),
    r"zero_tokens": lambda m: ZeroTokens(),
    rf"constant:({_NUMBER}(?:,{_NUMBER})*)": lambda m: Constant(_numbers(m[1])),
    rf"blur:({_NUMBER})": lambda m: Blur(float(m[1])),
    r"mean(?::(\d+))?": lambda m: Mean(n_samples=int(m[1])) if m[1] else Mean(),
    rf"noise:({_NUMBER})(?::(\d+))?": lambda m: Noise(std=float(m[1]), n_draws=int(m[2] or 4)),
    r"samples(?::(\d+))?": lambda m: Samples(n_samples=int(m[1])) if m[1] else Samples(),
}


def _integrated(found: re.Match[str]) -> Method:
    steps = found[1] or "10"
    return IntegratedGradients(
        steps="auto" if steps == "auto" else int(steps),
        path="layer" if found[2] else "input",
        rule={"left": "left", "right": "right", "gauss": "gauss"}.get(found[3], "trapezoid"),  # type: ignore[arg-type]
        baseline=baseline_from_text(found[4] if found[4] is not None else "zeros"),
    )


_METHODS: Final[dict[str, Callable[[re.Match[str]], Method]]] = {
    r"ig(?::(\d+|auto))?(:layer)?(?::(left|right|gauss))?(?:@(.*))?": _integrated,
    r"smoothgrad(?::(\d+))?(?:\((.*)\))?": lambda m: SmoothGrad(
        n_samples=int(m[1] or 16), inner=method_from_text(m[2] or "actgrad")
    ),
    r"deeplift(?:@(.*))?": lambda m: DeepLift(baseline_from_text(m[1] or "zeros")),
    r"unit_ablation(?::(zero|mean|resample|baseline))?": lambda m: _ablation(m[1]),
    "|".join(_PLAIN): lambda m: _PLAIN[m[0]](),
}


def method_from_text(text: str) -> Method:
    """A method from its text.

    ``ig[:STEPS|:auto][:layer][:left|:right|:gauss][@BASELINE]``,
    ``smoothgrad[:COPIES][(METHOD)]``, ``deeplift[@BASELINE]``,
    ``unit_ablation[:zero|:mean|:resample|:baseline]``, and ``actgrad``, ``actnormgrad``,
    ``normactnormgrad``, ``activation``, ``gradient``, ``gradcam``, ``inputgrad``.

    Raises
    ------
    OptionError
        There is no such method, or a number is out of range.
    """
    for pattern, make in _METHODS.items():
        if found := re.fullmatch(pattern, text):
            return make(found)
    raise OptionError(
        f"method {text!r}: expected 'ig:STEPS' or 'ig:auto', then ':layer', ':left', ':right' or "
        "':gauss', then '@BASELINE' where they are wanted; 'smoothgrad[:COPIES][(METHOD)]', "
        "'deeplift[@BASELINE]', 'unit_ablation[:zero|:mean|:resample|:baseline]' or one of "
        f"{', '.join(_PLAIN)}"
    )


def baseline_from_text(text: str) -> Baseline:
    """A baseline from its text.

    ``zeros``, ``zero_tokens``, ``constant:VALUE[,VALUE...]`` (one a channel), ``blur:SIGMA``,
    ``mean[:SAMPLES]``, ``noise:STD[:DRAWS]``, ``samples[:SAMPLES]``.

    Raises
    ------
    OptionError
        There is no such baseline, or a number is out of range.

    Examples
    --------
    >>> baseline_from_text("constant:0.5")
    Constant(value=0.5)
    """
    for pattern, make in _BASELINES.items():
        if found := re.fullmatch(pattern, text):
            return make(found)
    raise OptionError(
        f"baseline {text!r}: expected 'zeros', 'zero_tokens', 'constant:VALUE[,VALUE...]', "
        "'blur:SIGMA', 'mean[:SAMPLES]', 'noise:STD[:DRAWS]' or 'samples[:SAMPLES]'"
    )


def method_text(method: Method) -> str:
    """Inverse of `method_from_text`.

    Raises
    ------
    OptionError
        The method has options that no text says.
    """
    text = type(method).__name__.lower()
    match method:
        case IntegratedGradients():
            layer = ":layer" if method.path == "layer" else ""
            rule = "" if method.rule == "trapezoid" else f":{method.rule}"
            text = f"ig:{method.steps}{layer}{rule}{_after_at(method.baseline)}"
        case SmoothGrad():
            text = f"smoothgrad:{method.n_samples}({method_text(method.inner)})"
        case DeepLift():
            text = f"deeplift{_after_at(method.baseline)}"
        case UnitAblation():
            text = f"unit_ablation:{method.replacement}"
    if not _says(method_from_text, text, method):
        raise OptionError(
            f"method {type(method).__name__}: no text says all of its options, so a run.toml "
            "cannot hold it; collect in Python, with condec.collect(..., method=...)"
        )
    return text


def baseline_text(baseline: Baseline) -> str:
    """Inverse of `baseline_from_text`.

    Raises
    ------
    OptionError
        The baseline has options that no text says.
    """
    text = type(baseline).__name__.lower()
    match baseline:
        case Constant(value):
            values = value if isinstance(value, tuple) else (value,)
            text = f"constant:{','.join(map(_short, values))}"
        case ZeroTokens():
            text = "zero_tokens"
        case Blur():
            text = f"blur:{_short(baseline.sigma)}"
        case Noise():
            text = f"noise:{_short(baseline.std)}:{baseline.n_draws}"
        case Mean() | Samples():
            text = f"{text}:{baseline.n_samples}"
    if not _says(baseline_from_text, text, baseline):
        raise OptionError(
            f"baseline {type(baseline).__name__}: no text says all of its options, so a run.toml "
            "cannot hold it; collect in Python, with condec.collect(..., method=...)"
        )
    return text


def _says(read: Callable[[str], object], text: str, option: object) -> bool:
    try:
        return read(text) == option
    except OptionError:
        return False


def _ablation(replacement: str | None) -> Method:
    return UnitAblation(replacement=replacement or "zero")  # type: ignore[arg-type]


def _after_at(baseline: Baseline) -> str:
    return "" if baseline == Zeros() else f"@{baseline_text(baseline)}"


def _numbers(text: str) -> float | tuple[float, ...]:
    values = tuple(float(number) for number in text.split(","))
    return values if len(values) > 1 else values[0]


def _short(value: float) -> str:
    """The number without a superfluous ``.0``, and back exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
