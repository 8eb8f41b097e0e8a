"""Dictionaries: atoms of units that act together, and their loadings on samples.

`base` has the contract (a dictionary is what has atoms, encode and decode), `learners` the ways to
find one in rows, `fitting` the engine that trains, resumes and shares them out, `measure` whether
to believe them. Rows come as tensors or stored rows; nothing here knows of models or labels. A new
learner is one class in `learners`, exported here.
"""

from condec.dictionary.base import Dictionary, Learner, load_dictionary
from condec.dictionary.export import read_saelens, write_saelens
from condec.dictionary.fitting.checkpoint import forget_checkpoint
from condec.dictionary.fitting.many import Job, fit_many
from condec.dictionary.fitting.preparation import Preparation
from condec.dictionary.fitting.rows import split_rows
from condec.dictionary.fitting.train import DeadModesWarning, FitReport, fit
from condec.dictionary.imported import import_dictionary, measured
from condec.dictionary.learners.classical import NMF, PCA, DictionaryLearning, FastICA, KMeans
from condec.dictionary.learners.given import GivenAtoms, Imported
from condec.dictionary.learners.sae import ThresholdSAE
from condec.dictionary.learners.sparse import JumpReLUSAE, MatchingPursuit, ReLUSAE
from condec.dictionary.learners.topk import BatchTopKSAE, MatryoshkaSAE, TopKSAE
from condec.dictionary.measure.pareto import best_at_equal_l0, over_seeds, pareto_front
from condec.dictionary.measure.quality import mode_table, quality
from condec.dictionary.measure.recovery import Recovery, recovery
from condec.dictionary.measure.rivals import RIVALS, fit_rivals, rival_words, rivals_as_good
from condec.dictionary.measure.stability import Stability, alive_modes, seed_agreement, stability
from condec.dictionary.records import Epoch, Learned, Quality, TrainConfig, Training

__all__ = [
    "NMF", "PCA", "RIVALS", "BatchTopKSAE", "DeadModesWarning", "Dictionary",
    "DictionaryLearning", "Epoch", "FastICA", "FitReport", "GivenAtoms", "Imported",
    "Job", "JumpReLUSAE", "KMeans",
    "Learned", "Learner", "MatchingPursuit", "MatryoshkaSAE", "Preparation",
    "Quality", "ReLUSAE", "Recovery", "Stability", "ThresholdSAE", "TopKSAE", "TrainConfig",
    "Training", "alive_modes", "best_at_equal_l0", "fit", "fit_many", "fit_rivals",
    "forget_checkpoint", "import_dictionary", "load_dictionary", "measured",
    "mode_table", "over_seeds",
    "pareto_front", "quality", "read_saelens", "recovery", "rival_words", "rivals_as_good",
    "seed_agreement", "split_rows", "stability", "write_saelens",
]  # fmt: skip
