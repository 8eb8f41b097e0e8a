"""Contribution decomposition: why a network gives an output, by what its hidden units do.

    model + inputs -> network -> attribution -> store -> dictionary -> modes
    modes -> edits -> effects, explanation -> report

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

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condec.basis.errors import (
        CondecError, DataError, DependencyError, ModelError, OptionError, SiteError, StoreError,
    )  # fmt: skip
    from condec.network import (
        Proof, Site, Units, find_cuts, find_site, find_sites, inspect_model, presets_of, prove,
        record,
    )  # fmt: skip
    from condec.models import LanguageModel, LoadedModel, expose_attention, load_model
    from condec.data import Inputs, SeveralInputs, as_inputs, load_data
    from condec.attribution.targets import (
        Contrast, Custom, Entropy, Label, Logit, Margin, Predicted, Sum, Surprisal, Target, TopK,
    )  # fmt: skip
    from condec.attribution import (
        ActGrad, Compute, Constant, Contributions, IntegratedGradients, Method, UnitAblation, Zeros,
        contribute, faithfulness, split_and_sum,
    )  # fmt: skip
    from condec.store import (
        RandomWeights, ShuffledLabels, Store, collect, collect_twin, layer_statistics,
    )  # fmt: skip
    from condec.dictionary import (
        Dictionary, FitReport, KMeans, NMF, PCA, ThresholdSAE, TrainConfig, fit,
        import_dictionary, load_dictionary,
    )  # fmt: skip
    from condec.modes import (
        Hierarchy, ModeMatch, Modes, Properties, meaning, membership, mode_statistics,
    )  # fmt: skip
    from condec.edits import Ablate, Preserve, edited, unit_means
    from condec.explanation import Explanation, Graph, ModeMap, explain, flow, mode_map
    from condec.effects import auc_difference, control_curve, judge
    from condec.explorer.notebook import show

__all__ = [
    "CondecError", "DataError", "DependencyError", "ModelError", "OptionError", "SiteError",
    "StoreError", "Site", "Units", "find_site", "find_sites", "presets_of", "LoadedModel",
    "load_model", "LanguageModel", "expose_attention", "Inputs", "as_inputs", "load_data",
    "find_cuts", "inspect_model", "Proof", "prove", "record", "Contrast", "Custom", "Entropy",
    "Label", "Logit", "Margin", "Predicted", "Sum", "Surprisal", "Target", "TopK", "ActGrad",
    "Constant", "IntegratedGradients", "Method", "UnitAblation", "Zeros", "split_and_sum",
    "Compute", "Contributions", "contribute", "faithfulness", "Store", "collect", "RandomWeights",
    "ShuffledLabels", "collect_twin", "Dictionary", "FitReport", "KMeans", "NMF", "PCA",
    "ThresholdSAE", "TrainConfig", "fit", "load_dictionary", "Hierarchy", "membership", "ModeMatch",
    "Modes", "layer_statistics", "Ablate", "Preserve", "edited", "unit_means", "ModeMap",
    "mode_map", "auc_difference", "control_curve", "SeveralInputs", "Explanation", "explain",
    "flow", "Graph", "Properties", "meaning", "mode_statistics",
    "import_dictionary", "judge", "show",
]  # fmt: skip

# Imported when first asked for, so that a command can be stopped before torch is there.
_ROOMS = (
    "basis.errors", "network", "models", "data", "attribution.targets", "attribution", "store",
    "dictionary", "modes", "edits", "explanation", "effects", "explorer.notebook",
)  # fmt: skip

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            rooms = (import_module(f"{__name__}.{room}") for room in _ROOMS)
            globals()[name] = found = next(vars(room)[name] for room in rooms if name in vars(room))
            return found
        if not name.startswith("_") and util.find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
