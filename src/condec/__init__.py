"""Contribution decomposition: why a network gives an output, by what its hidden units do.

    model + inputs -> sites -> tape -> attribution -> contributions -> store
    store -> dictionary -> modes -> control, maps -> effects -> figures, report

>>> import condec, torch
>>> from condec.testing.models import small_resnet
>>> model, images = small_resnet(), torch.rand(40, 1, 8, 8)
>>> batch = condec.contribute(model, images, "block*", target=condec.Predicted())
>>> batch["block2"].contribution.shape                        # as the activation there
torch.Size([40, 4, 8, 8])
>>> batch.completeness()["block2"].sub(1).abs().max() < 0.01  # they add up to the target
tensor(True)
>>> positive = batch.reduce()["block2"].contribution[:, 0]    # [sample, unit]
>>> report = condec.fit(condec.PCA(n_modes=2), positive)
>>> report.dictionary.atoms.shape                             # [mode, unit]
torch.Size([2, 4])
"""

from condec.errors import CondecError, DataError, DependencyError
from condec.errors import ModelError, OptionError, SiteError, StoreError
from condec.presets import presets_of
from condec.sites import Site, Units, find_site, find_sites
from condec.models import LoadedModel, load_model
from condec.models.attention import expose_attention
from condec.models.language import LanguageModel
from condec.data import Inputs, as_inputs, load_data
from condec.tape import find_cuts, inspect_model, record
from condec.targets import Contrast, Custom, Entropy, Label, Logit, Margin, Predicted, Sum
from condec.targets import Surprisal, Target, TopK
from condec.attribution import ActGrad, Constant, IntegratedGradients, Method, UnitAblation, Zeros
from condec.reduce import split_and_sum
from condec.compute import Compute
from condec.contributions import Contributions, contribute
from condec.agreement import faithfulness
from condec.store import Store
from condec.collection import collect
from condec.twins import RandomWeights, ShuffledLabels, collect_twin
from condec.dictionary import PCA, NMF, Dictionary, FitReport, KMeans, ThresholdSAE, TrainConfig
from condec.dictionary import fit, load_dictionary
from condec.labels import Hierarchy, membership
from condec.modes import ModeMatch, Modes
from condec.statistics import layer_statistics
from condec.control import Ablate, Preserve, edited, unit_means
from condec.maps import ModeMap, mode_map
from condec.effects import auc_difference, control_curve

__all__ = [
    "CondecError", "DataError", "DependencyError", "ModelError", "OptionError", "SiteError",
    "StoreError", "Site", "Units", "find_site", "find_sites", "presets_of", "LoadedModel",
    "load_model", "LanguageModel", "expose_attention", "Inputs", "as_inputs", "load_data",
    "find_cuts", "inspect_model", "record", "Contrast", "Custom", "Entropy", "Label", "Logit",
    "Margin", "Predicted", "Sum", "Surprisal", "Target", "TopK", "ActGrad", "Constant",
    "IntegratedGradients", "Method", "UnitAblation", "Zeros", "split_and_sum", "Compute",
    "Contributions", "contribute", "faithfulness", "Store", "collect", "RandomWeights",
    "ShuffledLabels", "collect_twin", "Dictionary", "FitReport", "KMeans", "NMF", "PCA",
    "ThresholdSAE", "TrainConfig", "fit", "load_dictionary", "Hierarchy", "membership", "ModeMatch",
    "Modes", "layer_statistics", "Ablate", "Preserve", "edited", "unit_means", "ModeMap",
    "mode_map", "auc_difference", "control_curve",
]  # fmt: skip
