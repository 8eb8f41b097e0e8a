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
from condec.basis.texts import Form, Texts

_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def _short(value: float) -> str:
    """Write a number without a superfluous ``.0``, and back exactly."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _constant(text: str) -> Constant:
    values = tuple(map(float, text.split(",")))
    return Constant(values if len(values) > 1 else values[0])


def _constant_text(b: Constant) -> str:
    values = b.value if isinstance(b.value, tuple) else (b.value,)
    return f"constant:{','.join(map(_short, values))}"


BASELINES: Final[Texts[Baseline]] = Texts(
    "baseline",
    {
        Zeros: Form("zeros", r"zeros", Zeros, lambda b: "zeros"),
        ZeroTokens: Form("zero_tokens", r"zero_tokens", ZeroTokens, lambda b: "zero_tokens"),
        Constant: Form(
            "constant:VALUE[,VALUE...]",
            rf"constant:({_NUMBER}(?:,{_NUMBER})*)",
            _constant,
            _constant_text,
        ),
        Blur: Form(
            "blur:SIGMA",
            rf"blur:({_NUMBER})",
            lambda sigma: Blur(float(sigma)),
            lambda b: f"blur:{_short(b.sigma)}",
        ),
        Mean: Form(
            "mean[:SAMPLES]",
            r"mean(?::(\d+))?",
            lambda n: Mean(n_samples=int(n or 256)),
            lambda b: f"mean:{b.n_samples}",
        ),
        Noise: Form(
            "noise:STD[:DRAWS]",
            rf"noise:({_NUMBER})(?::(\d+))?",
            lambda std, n: Noise(std=float(std), n_draws=int(n or 4)),
            lambda b: f"noise:{_short(b.std)}:{b.n_draws}",
        ),
        Samples: Form(
            "samples[:SAMPLES]",
            r"samples(?::(\d+))?",
            lambda n: Samples(n_samples=int(n or 8)),
            lambda b: f"samples:{b.n_samples}",
        ),
    },
)


def _integrated(
    steps: str | None, layer: str | None, rule: Any, baseline: str | None
) -> IntegratedGradients:
    return IntegratedGradients(
        steps="auto" if steps == "auto" else int(steps or 10),
        path="layer" if layer else "input",
        rule=rule or "trapezoid",
        baseline=Zeros() if baseline is None else parse_baseline(baseline),
    )


def _integrated_text(method: IntegratedGradients) -> str:
    layer = ":layer" if method.path == "layer" else ""
    rule = "" if method.rule == "trapezoid" else f":{method.rule}"
    start = "" if method.baseline == Zeros() else f"@{baseline_text(method.baseline)}"
    return f"ig:{method.steps}{layer}{rule}{start}"


def _plain(kind: type[Method]) -> Form:
    name = kind.__name__.lower()
    return Form(name, name, kind, lambda m: name)


METHODS: Final[Texts[Method]] = Texts(
    "method",
    {
        IntegratedGradients: Form(
            "ig[:STEPS|:auto][:layer][:left|:right|:gauss][@BASELINE]",
            r"ig(?::(\d+|auto))?(:layer)?(?::(left|right|gauss))?(?:@(.*))?",
            _integrated,
            _integrated_text,
        ),
        ActGrad: _plain(ActGrad),
        ActNormGrad: _plain(ActNormGrad),
        NormActNormGrad: _plain(NormActNormGrad),
        Activation: _plain(Activation),
        Gradient: _plain(Gradient),
        GradCAM: _plain(GradCAM),
        InputGrad: _plain(InputGrad),
        SmoothGrad: Form(
            "smoothgrad[:COPIES][(METHOD)]",
            r"smoothgrad(?::(\d+))?(?:\((.*)\))?",
            lambda n, inner: SmoothGrad(
                n_samples=int(n or 16), inner=parse_method(inner or "actgrad")
            ),
            lambda m: f"smoothgrad:{m.n_samples}({method_text(m.inner)})",
        ),
        UnitAblation: Form(
            "unit_ablation[:zero|:mean|:resample|:baseline]",
            r"unit_ablation(?::(zero|mean|resample|baseline))?",
            lambda replacement: UnitAblation(replacement=replacement or "zero"),
            lambda m: f"unit_ablation:{m.replacement}",
        ),
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
