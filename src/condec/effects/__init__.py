"""What edits do to the output: control curves, rankings of units, and their summaries."""

from condec.effects.areas import auc_difference, compare, mean_over_labels, summarise
from condec.effects.curve import (
    COLUMNS,
    PAPER_FRACTIONS,
    CurveOptions,
    CurveReplacement,
    Curves,
    EditKind,
    OffTarget,
    Replacement,
    control_curve,
    count_units,
    measure_curves,
)
from condec.effects.interactions import INTERACTION_COLUMNS, mode_interactions
from condec.effects.log_odds import LOG_ODDS, collect_log_odds, fit_log_odds
from condec.effects.matrix import ControlMatrix, GroupAgreement, MatrixQuantity, control_matrix
from condec.effects.measured import Edits, Measured, measure
from condec.effects.rankings import (
    ByCorrelation,
    ByMean,
    ByMode,
    ByModeSum,
    ByScores,
    RandomModes,
    RandomUnits,
    Ranked,
    Ranking,
)
from condec.effects.samples import Samples, held_out, labels_of
from condec.effects.standard import (
    LOG_ODDS_NAMES,
    RANKING_NAMES,
    RANKINGS,
    head_weights,
    named_rankings,
    standard_rankings,
)
from condec.effects.steering import (
    STEERING_COLUMNS,
    Direction,
    LabelDirection,
    steering_curve,
    steering_direction,
)
from condec.effects.superclass import SuperclassControl, SuperclassQuantity, superclass_control

__all__ = [
    "COLUMNS", "INTERACTION_COLUMNS", "LOG_ODDS", "LOG_ODDS_NAMES", "PAPER_FRACTIONS", "RANKINGS",
    "RANKING_NAMES", "STEERING_COLUMNS", "ByCorrelation", "ByMean", "ByMode", "ByModeSum",
    "ByScores", "ControlMatrix", "CurveOptions", "CurveReplacement", "Curves", "Direction",
    "EditKind", "Edits", "GroupAgreement", "LabelDirection", "MatrixQuantity", "Measured",
    "OffTarget", "RandomModes", "RandomUnits", "Ranked", "Ranking", "Replacement", "Samples",
    "SuperclassControl", "SuperclassQuantity", "auc_difference", "collect_log_odds", "compare",
    "control_curve", "control_matrix", "count_units", "fit_log_odds", "head_weights", "held_out",
    "labels_of", "mean_over_labels", "measure", "measure_curves", "mode_interactions",
    "named_rankings", "standard_rankings", "steering_curve", "steering_direction", "summarise",
    "superclass_control",
]  # fmt: skip
