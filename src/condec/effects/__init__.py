"""Effects: what edits do to the output, on held-out samples.

A control curve is rankings.py x fractions -> edits (choice.py) -> outputs (measured.py) -> table
(table.py) -> areas with intervals (areas.py). Matrix, superclass, interactions and steering choose
units, measure and tabulate likewise. A new ranking is a class in rankings.py with an entry in
standard.py. Imports edits, modes and what lies below; writes no file.
"""

from condec.basis.bootstrap import interval, resample_counts
from condec.effects.areas import auc_difference, compare, summarise
from condec.effects.choice import EditKind, FixedReplacement, ReplacementKind
from condec.effects.curve import control_curve, measure_curves
from condec.effects.head import head_weights
from condec.effects.interactions import INTERACTION_COLUMNS, mode_interactions
from condec.effects.intervals import mean_over_labels
from condec.effects.judged import faithfulness_areas, judge
from condec.effects.log_odds import LOG_ODDS, fit_signed
from condec.effects.matrix import ControlMatrix, GroupAgreement, MatrixQuantity, control_matrix
from condec.effects.measured import Edits, Measured, measure
from condec.effects.rankings import (
    ByMode,
    ByModeSum,
    ByScores,
    ByUnit,
    RandomModes,
    RandomUnits,
    Ranked,
    Ranking,
)  # fmt: skip
from condec.effects.samples import HeldOut, held_out, labels_of
from condec.effects.standard import (
    LEADING,
    LOG_ODDS_NAMES,
    RANKING_NAMES,
    RANKINGS,
    standard_rankings,
)  # fmt: skip
from condec.effects.steering import (
    STEERING_COLUMNS,
    DirectionKind,
    steering_curve,
    steering_direction,
)  # fmt: skip
from condec.effects.superclass import SuperclassControl, SuperclassQuantity, superclass_control
from condec.effects.table import COLUMNS, PAPER_FRACTIONS, Curve, CurveOptions, Curves, OffTarget

__all__ = [
    "COLUMNS",
    "INTERACTION_COLUMNS",
    "LEADING",
    "LOG_ODDS",
    "LOG_ODDS_NAMES",
    "PAPER_FRACTIONS",
    "RANKINGS",
    "RANKING_NAMES",
    "STEERING_COLUMNS",
    "ByMode",
    "ByModeSum",
    "ByScores",
    "ByUnit",
    "ControlMatrix",
    "Curve",
    "CurveOptions",
    "Curves",
    "DirectionKind",
    "EditKind",
    "Edits",
    "FixedReplacement",
    "GroupAgreement",
    "HeldOut",
    "MatrixQuantity",
    "Measured",
    "OffTarget",
    "RandomModes",
    "RandomUnits",
    "Ranked",
    "Ranking",
    "ReplacementKind",
    "SuperclassControl",
    "SuperclassQuantity",
    "auc_difference",
    "compare",
    "control_curve",
    "control_matrix",
    "faithfulness_areas",
    "fit_signed",
    "head_weights",
    "held_out",
    "interval",
    "judge",
    "labels_of",
    "mean_over_labels",
    "measure",
    "measure_curves",
    "mode_interactions",
    "resample_counts",
    "standard_rankings",
    "steering_curve",
    "steering_direction",
    "summarise",
    "superclass_control",
]  # fmt: skip
