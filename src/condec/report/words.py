"""Numbers and options in words, as they stand on the pages."""

import math
from collections.abc import Mapping
from typing import Any, Final

from markupsafe import Markup, escape

from condec.store import TREND

DASH = "\N{EN DASH}"


def fixed(value: Any, digits: int = 2) -> str:
    """A number with a fixed number of digits; a dash where there is none.

    >>> fixed(-0.126), fixed(None), fixed(float("nan")), fixed(-0.001)
    ('\N{MINUS SIGN}0.13', '\N{EN DASH}', '\N{EN DASH}', '0.00')
    """
    if value is None or not math.isfinite(float(value)):
        return DASH
    text = f"{float(value):.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}")


def percent(value: Any, digits: int = 0) -> str:
    """A share in percent.

    >>> percent(0.984, 1)
    '98.4 %'
    """
    text = fixed(None if value is None else 100 * float(value), digits)
    return text if text == DASH else f"{text} %"


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands.

    >>> count(50000)
    '50\N{NARROW NO-BREAK SPACE}000'
    """
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


_METHODS: Final[Mapping[str, str]] = {
    "ActGrad": "activation times gradient",
    "ActNormGrad": "activation times normalised gradient",
    "NormActNormGrad": "normalised activation times normalised gradient",
    "Activation": "the activation alone",
    "Gradient": "the gradient alone",
    "GradCAM": "activation times the mean gradient of its unit",
    "InputGrad": "input times gradient",
}
_BASELINES: Final[Mapping[str, str]] = {
    "Zeros": "zeros",
    "ZeroTokens": "zero embeddings",
    "Mean": "the mean of the data",
}


def method_words(method: Mapping[str, Any]) -> str:
    """A method of attribution.

    >>> method_words({"name": "IntegratedGradients", "steps": 10, "baseline": {"name": "Zeros"}})
    'integrated gradients, 10 steps from zeros'
    >>> method_words({"name": "SmoothGrad", "inner": {"name": "ActGrad"}, "n_samples": 16})
    'activation times gradient, averaged over 16 noisy inputs'
    """
    name = str(method.get("name"))
    start = baseline_words(method.get("baseline") or {})
    match name:
        case "IntegratedGradients":
            return f"integrated gradients, {_path_words(method)} from {start}"
        case "SmoothGrad":
            inner = method_words(method.get("inner", {}))
            return f"{inner}, averaged over {method.get('n_samples')} noisy inputs"
        case "UnitAblation":
            return f"ablation of every unit, replaced by {method.get('replacement')}"
    return _METHODS.get(name) or plain(method)


def _path_words(method: Mapping[str, Any]) -> str:
    steps = method.get("steps")
    words = [f"{steps} steps"]
    if steps == "auto":
        words = [f"steps to a tolerance of {plain(method.get('tolerance'))}"]
    if method.get("rule", "trapezoid") != "trapezoid":
        words.append({"gauss": "Gauss-Legendre"}.get(method["rule"], f"{method['rule']} rule"))
    if method.get("path") == "layer":
        words.append("along the layer's own path")
    return ", ".join(words)


def baseline_words(baseline: Mapping[str, Any]) -> str:
    """Where a path begins.

    >>> baseline_words({"name": "Blur", "sigma": 3.0})
    'the blurred image (sigma 3)'
    """
    match baseline.get("name"):
        case "Constant":
            return f"the constant {plain(baseline.get('value'))}"
        case "Blur":
            return f"the blurred image (sigma {plain(baseline.get('sigma'))})"
        case "Noise":
            return f"{baseline.get('n_draws')} draws of noise"
        case "Samples":
            return f"{baseline.get('n_samples')} samples of the data"
        case None:
            return "a baseline"
    return _BASELINES.get(str(baseline["name"])) or plain(baseline)


def compute_words(compute: Mapping[str, Any]) -> str:
    """How the passes were computed.

    >>> compute_words({"name": "Compute", "precision": "model", "channels_last": False})
    "the model's precision"
    """
    precision = compute.get("precision")
    words = "the model's precision" if precision == "model" else f"{precision}, by autocast"
    return words + (", channels last" if compute.get("channels_last") else "")


def target_words(target: Mapping[str, Any]) -> str:
    """A target.

    >>> target_words({"name": "TopK", "k": 1, "probability": False})
    'the largest logit'
    >>> target_words({"name": "Label", "probability": True})
    "the probability of the input's own label"
    """
    what = "probability" if target.get("probability") else "logit"
    several = "probabilities" if target.get("probability") else "logits"
    match target.get("name"):
        case "TopK" if target.get("k") == 1:
            return f"the largest {what}"
        case "TopK":
            return f"the sum of the {target.get('k')} largest {several}"
        case "Logit":
            return f"{what} {plain(target.get('index'))}"
        case "Label":
            return f"the {what} of the input's own label"
        case "Predicted":
            return f"the {what} of the predicted class"
        case "Contrast":
            fixed = " of the classes at the input" if target.get("frozen") else ""
            return f"the largest {what}{fixed} less the second largest"
        case "Margin":
            against = target.get("against")
            return f"the {what} of the input's own label less the {against} of the others"
        case "Entropy":
            return "the entropy of the output"
        case "Sum":
            chosen = target.get("indices")
            return f"the sum of {'all outputs' if not chosen else 'outputs ' + plain(chosen)}"
        case "Surprisal":
            return "the surprisal of the output"
        case "Custom":
            return f"the function {target.get('function')}"
    return plain(target)


def control_words(control: Mapping[str, Any]) -> str:
    """A control.

    >>> control_words({"name": "RandomWeights", "seed": 0, "from_module": "block3"})
    'random weights from block3'
    >>> control_words({"name": "ShuffledLabels", "seed": 2})
    'shuffled labels, seed 2'
    """
    seed = f", seed {control['seed']}" if control.get("seed") else ""
    match control.get("name"):
        case "RandomWeights":
            begin = control.get("from_module")
            return "random weights" + (f" from {begin}" if begin else "") + seed
        case "ShuffledLabels":
            return f"shuffled labels{seed}"
    return plain(control)


STATISTICS: Final[Mapping[str, str]] = {
    "hoyer_contribution": "sparsity of contributions",
    "dims95_contribution": "the dimension of contributions",
    "participation_ratio_contribution": "the participation ratio of contributions",
    "sign_correlation": "the correlation of positive and negative part",
}
"""Statistics whose trends are put into words, and how they are called there."""


def trend_words(row: Mapping[str, Any], twin: str) -> str:
    """One row of `compare_trends` as a sentence; `twin` are the words of the control.

    >>> row = {"statistic": "hoyer_contribution", "trend": 1.0, "twin_trend": 0.8, "shared": True,
    ...        "above": 1, "sites": 4}
    >>> trend_words(row, "random weights")
    'Sparsity of contributions rises along the network, and with random weights as well: by ...'
    """
    subject = STATISTICS[row["statistic"]]

    def goes(trend: float) -> str:
        return "has no trend" if abs(trend) < TREND else "rises" if trend > 0 else "falls"

    own, other = goes(row["trend"]), goes(row["twin_trend"])
    begin = f"{subject[0].upper()}{subject[1:]} {own} along the network"
    above = f"It is above that of {twin} at {row['above']} of {row['sites']} sites."
    if row["shared"]:
        return f"{begin}, and with {twin} as well: by itself no sign of training. {above}"
    if own == other:
        return f"{begin}, nor with {twin}. {above}"
    return f"{begin}; with {twin} it {other}. {above}"


def plain(value: Any) -> str:
    """Any value of a recipe in one line.

    >>> plain({"name": "SAE", "n_modes": 8, "width": None, "nonnegative": False})
    'SAE, n_modes 8, width none, nonnegative no'
    """
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key != "name"}
        words = [str(value["name"])] if "name" in value else []
        return ", ".join(words + [f"{key} {plain(item)}" for key, item in rest.items()])
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def breakable(text: str) -> Markup:
    """Escaped text that may wrap after dots and underscores, for long module names."""
    safe = str(escape(text))
    for mark in "._:":
        safe = safe.replace(mark, f"{mark}<wbr>")
    # Entities hold none of these marks, so none was torn apart.
    return Markup(safe)  # escaped just above
