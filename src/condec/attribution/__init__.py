"""Attribution: how much every hidden unit moved the target, at all sites in one go.

Every method is a frozen option with `Method.attribute`. One forward and one backward pass a
point serve all sites together, and no tensor is kept across the points of a path but the records
and the gradients of one and the running totals, so memory does not grow with the steps.
"""

from condec.attribution.ablation import UnitAblation, unit_effects
from condec.attribution.ablation_check import faithfulness
from condec.attribution.base import Attribution, Method, Setup, check_finite
from condec.attribution.baselines import (
    Baseline,
    Blur,
    Constant,
    Mean,
    MeanToken,
    Samples,
    Zeros,
    ZeroTokens,
)  # fmt: skip
from condec.attribution.contributions import (
    Contributions,
    SiteContributions,
    Sites,
    SiteUnits,
    UnitContributions,
    contribute,
    is_silent,
    make_setup,
    prepare_inputs,
    run_batch,
    warn_of_silence,
)  # fmt: skip
from condec.attribution.gradients import (
    ActGrad,
    Activation,
    ActNormGrad,
    GradCAM,
    Gradient,
    Pointwise,
    SmoothGrad,
)  # fmt: skip
from condec.attribution.path import IntegratedGradients
from condec.attribution.precision import Compute, Precision
from condec.attribution.reduce import (
    by_position,
    merge_signs,
    split_and_sum,
    spread_units,
    unit_numbers,
)  # fmt: skip
from condec.attribution.texts import METHODS, method_from_dict

__all__ = [
    "METHODS", "ActGrad", "ActNormGrad", "Activation", "Attribution", "Baseline", "Blur", "Compute",
    "Constant", "Contributions", "GradCAM", "Gradient", "IntegratedGradients", "Mean", "MeanToken",
    "Method", "Pointwise", "Precision", "Samples", "Setup", "SiteContributions", "SiteUnits",
    "Sites", "SmoothGrad", "UnitAblation", "UnitContributions", "ZeroTokens", "Zeros",
    "by_position", "check_finite", "contribute", "faithfulness", "is_silent", "make_setup",
    "merge_signs", "method_from_dict", "prepare_inputs", "run_batch", "split_and_sum",
    "spread_units", "unit_effects", "unit_numbers", "warn_of_silence",
]  # fmt: skip
