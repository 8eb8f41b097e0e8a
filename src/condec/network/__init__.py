"""Looking into a model: which places there are, what passes them, and what lies after them.

`find_sites` names places, `record` reads what passes, `split_at` runs what lies after one. Imports
`basis` only. A new model family adds a preset in `presets.py`; what can be counted at a site stands
in `units.py`. Hooks that read are registered in `tape.py` and `replay.py`, nowhere else.
"""

from condec.network.after_site import AfterSite, Splitter, split_at
from condec.network.cuts import find_cuts, inspect_model, survey_sites
from condec.network.folds import FoldedUnits, count_folds, fold, unfold
from condec.network.layouts import Seen, output_axis, settle_sites, settled, unhooked
from condec.network.module_io import (
    TensorMap,
    describe,
    first_tensor,
    is_recordable,
    with_first_tensor,
)
from condec.network.packed import PackedInput, fixed_of, hold
from condec.network.presets import presets_of
from condec.network.proof import Check, Proof, check_order, proof_of, prove
from condec.network.running import (
    alone,
    half_precision,
    own_precision,
    plain_attention,
    without_checkpointing,
)
from condec.network.sites import Place, Site, find_site, find_sites, match_sites, units_of
from condec.network.tape import (
    Tape,
    check_output,
    frozen_parameters,
    record,
    refuse_training,
    run_model,
)
from condec.network.trial import BatchSizes
from condec.network.units import Layout, Units
from condec.network.unwrap import eager, original

__all__ = [
    "AfterSite", "BatchSizes", "Check", "FoldedUnits", "Layout", "PackedInput", "Place", "Proof",
    "Seen", "Site", "Splitter", "Tape", "TensorMap", "Units", "alone", "check_order",
    "check_output", "count_folds", "describe", "eager", "find_cuts", "find_site", "find_sites",
    "first_tensor", "fixed_of", "fold", "frozen_parameters", "half_precision", "hold",
    "inspect_model", "is_recordable", "match_sites", "original", "output_axis", "own_precision",
    "plain_attention", "presets_of",
    "proof_of", "prove", "record", "refuse_training", "run_model", "settle_sites", "settled",
    "split_at", "survey_sites", "unfold", "unhooked", "units_of", "with_first_tensor",
    "without_checkpointing",
]  # fmt: skip
