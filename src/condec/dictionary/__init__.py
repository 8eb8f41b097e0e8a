"""Dictionaries: atoms of units that act together, and their loadings on samples."""

from condec.dictionary.base import Dictionary, Learner, load_dictionary
from condec.dictionary.export import LinearCode, linear_code, read_saelens, write_saelens
from condec.dictionary.fitting.many import Job, fit_many
from condec.dictionary.fitting.preparation import Preparation
from condec.dictionary.fitting.prepared import split_rows
from condec.dictionary.fitting.train import DeadModesWarning, FitReport, fit, forget_checkpoint
from condec.dictionary.learners.batch_topk import BatchTopKSAE, MatryoshkaSAE
from condec.dictionary.learners.classical import NMF, PCA, DictionaryLearning, FastICA, KMeans
from condec.dictionary.learners.pursuit import MatchingPursuit
from condec.dictionary.learners.sae import ThresholdSAE
from condec.dictionary.learners.sparse import JumpReLUSAE, ReLUSAE, TopKSAE
from condec.dictionary.measure.pareto import best_at_equal_l0, over_seeds, pareto_front
from condec.dictionary.measure.quality import Quality, quality
from condec.dictionary.measure.recovery import Recovery, recovery
from condec.dictionary.measure.rivals import RIVALS, fit_rivals, rival_words, rivals_as_good
from condec.dictionary.measure.stability import Stability, alive_modes, seed_agreement, stability
from condec.dictionary.records import DictionaryMetrics, Epoch, Learned, TrainConfig, Training

__all__ = [
    "NMF", "PCA", "RIVALS", "BatchTopKSAE", "DeadModesWarning", "Dictionary",
    "DictionaryLearning", "DictionaryMetrics", "Epoch", "FastICA", "FitReport", "Job",
    "JumpReLUSAE", "KMeans", "Learned", "Learner", "LinearCode", "MatchingPursuit",
    "MatryoshkaSAE", "Preparation", "Quality", "ReLUSAE", "Recovery", "Stability",
    "ThresholdSAE", "TopKSAE", "TrainConfig", "Training", "alive_modes", "best_at_equal_l0",
    "fit", "fit_many", "fit_rivals", "forget_checkpoint", "linear_code", "load_dictionary",
    "over_seeds", "pareto_front", "quality", "read_saelens", "recovery", "rival_words",
    "rivals_as_good", "seed_agreement", "split_rows", "stability", "write_saelens",
]  # fmt: skip
