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
from condec.dictionary.sae import ThresholdSAE
from condec.dictionary.train import FitReport, fit, split_rows

__all__ = [
    "NMF",
    "PCA",
    "Dictionary",
    "DictionaryMetrics",
    "Epoch",
    "FitReport",
    "KMeans",
    "Learned",
    "Learner",
    "ThresholdSAE",
    "TrainConfig",
    "Training",
    "fit",
    "load_dictionary",
    "split_rows",
]
