"""What edits do to the output: control curves, rankings of units, and their summaries."""

from condec.effects.areas import auc_difference
from condec.effects.curve import (
    COLUMNS,
    PAPER_FRACTIONS,
    RANKINGS,
    EditKind,
    Replacement,
    control_curve,
    count_units,
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

__all__ = [
    "COLUMNS", "PAPER_FRACTIONS", "RANKINGS", "ByCorrelation", "ByMean", "ByMode", "ByModeSum",
    "ByScores", "EditKind", "Edits", "Measured", "RandomModes", "RandomUnits", "Ranked", "Ranking",
    "Replacement", "Samples", "auc_difference", "control_curve", "count_units", "held_out",
    "labels_of", "measure",
]  # fmt: skip
