"""Modes: atoms with their loadings on the samples of a store, and the labels they go with.

`Modes` joins a dictionary and a store; `Hierarchy` groups labels; `prototypes` are the kinds of
samples that modes find in a class. Imports `dictionary`, `store`
and what lies below. Statistics of modes against labels belong here; edits that use modes do not.
"""

from condec.modes.against_units import against_units
from condec.modes.annotations import Annotation, annotate, annotations
from condec.modes.families import mode_families, same_families
from condec.modes.hierarchy import BUILT_IN, Hierarchy
from condec.modes.labels import correlation_interval, label_correlation, label_name, membership
from condec.modes.modes import ModeMatch, Modes, Split
from condec.modes.naming import UNNAMED, Meaning, meaning
from condec.modes.probing import probe
from condec.modes.properties import Properties
from condec.modes.prototypes import Prototypes, prototypes
from condec.modes.responsibility import contribution_shares
from condec.modes.statistics import ModeStatistics, mode_statistics, monosemanticity, redundancy

__all__ = [
    "BUILT_IN",
    "UNNAMED",
    "Annotation",
    "Hierarchy",
    "Meaning",
    "ModeMatch",
    "ModeStatistics",
    "Modes",
    "Properties",
    "Prototypes",
    "Split",
    "against_units",
    "annotate",
    "annotations",
    "contribution_shares",
    "correlation_interval",
    "label_correlation",
    "label_name",
    "meaning",
    "membership",
    "mode_families",
    "mode_statistics",
    "monosemanticity",
    "probe",
    "prototypes",
    "redundancy",
    "same_families",
]  # fmt: skip
