"""Dictionaries: atoms of units that act together, and their loadings on samples."""

from condec.dictionary.base import (
    Dictionary,
    DictionaryMetrics,
    Epoch,
    Learned,
    Learner,
    TrainConfig,
    Training,
    load_dictionary,
)
from condec.dictionary.classical import NMF, PCA, KMeans
from condec.dictionary.controls import CONTROLS, control_words, fit_controls
from condec.dictionary.measure import Quality, quality
from condec.dictionary.sae import ThresholdSAE
from condec.dictionary.seeds import Stability, stability
from condec.dictionary.train import DeadModesWarning, FitReport, fit, split_rows
from condec.dictionary.truth import Recovery, recovery

__all__ = [
    "CONTROLS",
    "NMF",
    "PCA",
    "DeadModesWarning",
    "Dictionary",
    "DictionaryMetrics",
    "Epoch",
    "FitReport",
    "KMeans",
    "Learned",
    "Learner",
    "Quality",
    "Recovery",
    "Stability",
    "ThresholdSAE",
    "TrainConfig",
    "Training",
    "control_words",
    "fit",
    "fit_controls",
    "load_dictionary",
    "quality",
    "recovery",
    "split_rows",
    "stability",
]
