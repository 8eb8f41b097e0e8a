"""What edits do to the output: control curves, rankings of units, and their summaries."""

from condec.effects.areas import auc_difference, compare, mean_over_labels, summarise
from condec.effects.curve import (
    COLUMNS,
    PAPER_FRACTIONS,
    RANKINGS,
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
    RANKING_NAMES,
    head_weights,
    named_rankings,
    standard_rankings,
)

__all__ = [
    "COLUMNS", "PAPER_FRACTIONS", "RANKINGS", "RANKING_NAMES", "ByCorrelation", "ByMean",
    "ByMode", "ByModeSum", "ByScores", "CurveOptions", "CurveReplacement", "Curves", "EditKind",
    "Edits", "Measured", "OffTarget", "RandomModes", "RandomUnits", "Ranked", "Ranking",
    "Replacement", "Samples", "auc_difference", "compare", "control_curve", "count_units",
    "head_weights", "held_out", "labels_of", "mean_over_labels", "measure", "measure_curves",
    "named_rankings", "standard_rankings", "summarise",
]  # fmt: skip
