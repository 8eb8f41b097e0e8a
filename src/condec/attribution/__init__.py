"""Attribution: how much every hidden unit moved the target, at all sites in one go.

Every method is a frozen option with `Method.attribute`. One forward and one backward pass a
point serve all sites together, and no tensor is kept across the points of a path but the records
and the gradients of one and the running totals, so memory does not grow with the steps.
"""

from collections.abc import Mapping
from typing import Any

from condec.attribution.ablation import UnitAblation, unit_effects
from condec.attribution.base import Attribution, Method, check_finite
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
from condec.attribution.contributions import (
    Contributions,
    Sites,
    assemble,
    contribute,
    is_silent,
    prepare_inputs,
    run_batch,
    warn_of_silence,
)
from condec.attribution.deeplift import DeepLift
from condec.attribution.faithful import faithfulness
from condec.attribution.gradients import (
    ActGrad,
    Activation,
    ActNormGrad,
    GradCAM,
    Gradient,
    InputGrad,
    NormActNormGrad,
    Pointwise,
    SmoothGrad,
)
from condec.attribution.path import IntegratedGradients
from condec.attribution.precision import Compute, Precision
from condec.attribution.reduce import merge_signs, split_and_sum, spread_units, unit_numbers
from condec.basis.options import option_from_dict

__all__ = [
    "ActGrad",
    "ActNormGrad",
    "Activation",
    "Attribution",
    "Baseline",
    "Blur",
    "Compute",
    "Constant",
    "Contributions",
    "DeepLift",
    "GradCAM",
    "Gradient",
    "InputGrad",
    "IntegratedGradients",
    "Mean",
    "Method",
    "Noise",
    "NormActNormGrad",
    "Pointwise",
    "Precision",
    "Samples",
    "Sites",
    "SmoothGrad",
    "UnitAblation",
    "ZeroTokens",
    "Zeros",
    "assemble",
    "baseline_from_dict",
    "check_finite",
    "contribute",
    "faithfulness",
    "is_silent",
    "merge_signs",
    "method_from_dict",
    "prepare_inputs",
    "run_batch",
    "split_and_sum",
    "spread_units",
    "unit_effects",
    "unit_numbers",
    "warn_of_silence",
]

_BASELINES: dict[str, type[Baseline]] = {
    kind.__name__: kind for kind in (Zeros, ZeroTokens, Constant, Blur, Mean, Noise, Samples)
}
_METHODS: dict[str, type[Method]] = {
    kind.__name__: kind
    for kind in (
        IntegratedGradients, ActGrad, ActNormGrad, NormActNormGrad, Activation, Gradient, GradCAM,
        InputGrad, SmoothGrad, DeepLift, UnitAblation,
    )
}  # fmt: skip
_INSIDE: Mapping[str, Mapping[str, type]] = {"baseline": _BASELINES, "inner": _METHODS}


def method_from_dict(record: Mapping[str, Any]) -> Method:
    """Inverse of `Method.to_dict`.

    Raises
    ------
    OptionError
        No method has that name or those fields.
    """
    method: Method = option_from_dict("method", _METHODS, _INSIDE, record)
    return method


def baseline_from_dict(record: Mapping[str, Any]) -> Baseline:
    """Inverse of `Baseline.to_dict`.

    Raises
    ------
    OptionError
        No baseline has that name or those fields.
    """
    baseline: Baseline = option_from_dict("baseline", _BASELINES, _INSIDE, record)
    return baseline
