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
from condec.dictionary.batch_topk import BatchTopKSAE, MatryoshkaSAE
from condec.dictionary.classical import NMF, PCA, DictionaryLearning, FastICA, KMeans
from condec.dictionary.controls import CONTROLS, control_words, controls_as_good, fit_controls
from condec.dictionary.export import LinearCode, linear_code, read_saelens, write_saelens
from condec.dictionary.many import Job, fit_many
from condec.dictionary.measure import Quality, quality
from condec.dictionary.overcomplete import Overcomplete, OvercompleteFactorisation
from condec.dictionary.pareto import best_at_equal_l0, over_seeds, pareto_front
from condec.dictionary.preparation import Preparation
from condec.dictionary.prepared import split_rows
from condec.dictionary.pursuit import MatchingPursuit
from condec.dictionary.sae import ThresholdSAE
from condec.dictionary.seeds import Stability, alive_modes, seed_agreement, stability
from condec.dictionary.sparse import JumpReLUSAE, ReLUSAE, TopKSAE
from condec.dictionary.train import DeadModesWarning, FitReport, fit, forget_checkpoint
from condec.dictionary.truth import Recovery, recovery

__all__ = [
    "CONTROLS",
    "NMF",
    "PCA",
    "BatchTopKSAE",
    "DeadModesWarning",
    "Dictionary",
    "DictionaryLearning",
    "DictionaryMetrics",
    "Epoch",
    "FastICA",
    "FitReport",
    "Job",
    "JumpReLUSAE",
    "KMeans",
    "Learned",
    "Learner",
    "LinearCode",
    "MatchingPursuit",
    "MatryoshkaSAE",
    "Overcomplete",
    "OvercompleteFactorisation",
    "Preparation",
    "Quality",
    "ReLUSAE",
    "Recovery",
    "Stability",
    "ThresholdSAE",
    "TopKSAE",
    "TrainConfig",
    "Training",
    "alive_modes",
    "best_at_equal_l0",
    "control_words",
    "controls_as_good",
    "fit",
    "fit_controls",
    "fit_many",
    "forget_checkpoint",
    "linear_code",
    "load_dictionary",
    "over_seeds",
    "pareto_front",
    "quality",
    "read_saelens",
    "recovery",
    "seed_agreement",
    "split_rows",
    "stability",
    "write_saelens",
]
