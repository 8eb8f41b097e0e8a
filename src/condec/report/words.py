"""Numbers and options in words, as they stand on the pages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup, escape

from condec.modes import label_name

DASH: Final = "\N{EN DASH}"


def fixed(value: Any, digits: int = 2) -> str:
    """Write a number with so many digits after the point, four in all; a dash for none.

    >>> fixed(-0.126), fixed(None), fixed(float("nan")), fixed(-0.001)
    ('\N{MINUS SIGN}0.13', '\N{EN DASH}', '\N{EN DASH}', '0.00')
    >>> fixed(123.456), fixed(-37938.56), fixed(2.5e9)
    ('123.5', '\N{MINUS SIGN}37\N{NARROW NO-BREAK SPACE}940', '2.5e+09')
    """
    if value is None or not math.isfinite(float(value)):
        return DASH
    number = float(value)
    places = min(digits, 4 - len(str(int(abs(number)))))
    text = f"{round(number, places):,.{max(0, places)}f}" if places > -4 else f"{number:.4g}"
    if not text.strip("-0."):
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}").replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(value: Any, digits: int = 0) -> str:
    """Write a share in percent.

    >>> percent(0.984, 1)
    '98.4 %'
    """
    text = fixed(None if value is None else 100 * float(value), digits)
    return text if text == DASH else f"{text} %"


def count(value: Any) -> str:
    """Write a whole number with thin spaces between thousands.

    >>> count(50000)
    '50\N{NARROW NO-BREAK SPACE}000'
    """
    return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plain(value: Any) -> str:
    """Write any value of a recipe in one line.

    >>> plain({"name": "SAE", "n_modes": 8, "width": None, "nonnegative": False})
    'SAE, n_modes 8, width none, nonnegative no'
    """
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key != "name"}
        words = [str(value["name"])] if "name" in value else []
        return ", ".join(words + [f"{key} {plain(item)}" for key, item in rest.items()])
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def label_words(names: Sequence[str] | None, number: int) -> str:
    """Return the name of a label; a dash for none."""
    return DASH if number < 0 else label_name(names, number)


def breakable(text: str) -> Markup:
    """Escape a text that may wrap after dots and underscores, for long module names."""
    safe = str(escape(text))
    for mark in "._:":
        safe = safe.replace(mark, f"{mark}<wbr>")
    # Entities hold none of these marks, so none was torn apart.
    return Markup(safe)  # escaped just above


def listed(parts: Sequence[str], most: int = 24) -> str:
    """Join the parts of a sentence, the first ones where they are many.

    >>> listed(["a", "b", "c"], most=2)
    'a; b; and 1 more'
    """
    rest = [f"and {count(len(parts) - most)} more"] if len(parts) > most else []
    return "; ".join([*parts[:most], *rest])


METHODS: Final[Mapping[str, str]] = {
    "ActGrad": "activation times gradient",
    "ActNormGrad": "activation times normalised gradient",
    "Activation": "the activation alone",
    "GradCAM": "activation times the mean gradient of its unit",
    "Gradient": "the gradient alone",
    "IntegratedGradients": "integrated gradients, {path} from {start}{places}",
    "SmoothGrad": "{of}, averaged over {n_samples} noisy inputs",
    "UnitAblation": "ablation of every unit, replaced by {replacement}",
}
BASELINES: Final[Mapping[str, str]] = {
    "Blur": "the blurred image (sigma {sigma})", "Constant": "the constant {value}",
    "Mean": "the mean of the data", "MeanToken": "the mean of all tokens",
    "Samples": "{n_samples} samples of the data",
    "Zeros": "zeros", "ZeroTokens": "zero embeddings",
}  # fmt: skip
TARGETS: Final[Mapping[str, str]] = {
    "Contrast": "the largest {what}{frozen} less the second largest",
    "Custom": "the function {function}",
    "Entropy": "the entropy of the output",
    "Label": "the {what} of the input's own label",
    "Logit": "{what} {index}",
    "Margin": "the {what} of the input's own label less the {against} of the others",
    "Predicted": "the {what} of the predicted class",
    "Sum": "the sum of {outputs}",
    "Surprisal": "the surprisal of the output",
    "TopK": "the {largest}",
}
_LOG: Final = {"logsumexp": "log-odds", "all": "log-probability"}
TWINS: Final[Mapping[str, str]] = {
    "RandomWeights": "random weights{begin}", "ShuffledLabels": "shuffled labels",
}  # fmt: skip


def _filled(forms: Mapping[str, str], option: Mapping[str, Any], **more: str) -> str:
    """Fill the form of an option with its values and with `more`; without a form, list all."""
    form = forms.get(str(option.get("name")))
    values = {key: plain(value) for key, value in option.items()}
    return plain(option) if form is None else form.format_map(values | more)


def method_words(method: Mapping[str, Any]) -> str:
    """Write a method of attribution.

    >>> method_words({"name": "IntegratedGradients", "steps": 10, "baseline": {"name": "Zeros"}})
    'integrated gradients, 10 steps from zeros'
    >>> method_words({"name": "IntegratedGradients", "steps": 10, "spacing": "fitted"})
    'integrated gradients, 10 steps from a baseline, closest where the path turns'
    >>> method_words({"name": "SmoothGrad", "inner": {"name": "ActGrad"}, "n_samples": 16})
    'activation times gradient, averaged over 16 noisy inputs'
    """
    path = [f"{method.get('steps')} steps"]
    if method.get("steps") == "auto":
        path = [f"steps to a tolerance of {plain(method.get('tolerance'))}"]
    kind, _, power = str(method.get("spacing", "uniform")).partition(":")
    places = {"power": f", spaced by the power {power}", "fitted": ", closest where the path turns"}
    if method.get("path") == "layer":
        path.append("along the layer's own path")
    baseline = method.get("baseline")
    return _filled(
        METHODS, method, path=", ".join(path),
        start=_filled(BASELINES, baseline) if baseline else "a baseline",
        of=method_words(method["inner"]) if "inner" in method else "", places=places.get(kind, ""),
    )  # fmt: skip


def target_words(target: Mapping[str, Any]) -> str:
    """Write a target.

    >>> target_words({"name": "TopK", "k": 1, "probability": False})
    'the largest logit'
    >>> target_words({"name": "Label", "probability": True})
    "the probability of the input's own label"
    """
    what = "probability" if target.get("probability") else "logit"
    several = "probabilities" if target.get("probability") else "logits"
    k, chosen = target.get("k"), target.get("indices")
    if pair := target.get("pair"):
        return f"the {what} of label {pair[0]} less that of label {pair[1]}"
    if target.get("against") in _LOG:
        return f"the {_LOG[target['against']]} of the input's own label"
    return _filled(
        TARGETS, target, what=what,
        largest=f"largest {what}" if k == 1 else f"sum of the {k} largest {several}",
        frozen=" of the classes at the input" if target.get("frozen") else "",
        outputs=f"outputs {plain(chosen)}" if chosen else "all outputs",
    )  # fmt: skip


def twin_words(twin: Mapping[str, Any]) -> str:
    """Write a twin.

    >>> twin_words({"name": "RandomWeights", "seed": 0, "from_module": "block3"})
    'random weights from block3'
    >>> twin_words({"name": "ShuffledLabels", "seed": 2})
    'shuffled labels, seed 2'
    """
    begin, seed = twin.get("from_module"), twin.get("seed")
    found = _filled(TWINS, twin, begin=f" from {begin}" if begin else "")
    return found + (f", seed {seed}" if seed else "")
