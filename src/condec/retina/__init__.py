"""The retina: modes of model interneurons, how they combine, and where receptive fields change.

A model of the retina maps a clip of the movie [sample, history, y, x], oldest frame first, to
the rates of ganglion cells [sample, cell] (Melander et al. 2026, Figure 8). This room comes in as
any user's package could, by the entry points in pyproject.toml: models (`models/`), data
(`movies/`), a link of the chain (`link.py`) and a page of the report (`page.py`).
"""

from condec.retina.cells import Clustering, cluster, mode_cell_correlation
from condec.retina.combinations import (
    CombinationFields,
    active_modes,
    combinations,
    fields_of_combinations,
)
from condec.retina.fields import RankOne, ReceptiveFields, receptive_fields, separate
from condec.retina.fitting import fit_model, poisson_loss
from condec.retina.models.checkpoint import load_checkpoint, save_checkpoint
from condec.retina.models.circuit import RetinaCircuit, standard_circuit
from condec.retina.models.network import (
    RetinaCheckpoint,
    RetinaLayout,
    RetinaNetwork,
    bn_cnn,
    nips_cnn,
)
from condec.retina.models.openretina import OpenRetina
from condec.retina.movies.files import read_recording, write_recording
from condec.retina.movies.recording import Recording, Scaling, Windows
from condec.retina.options import RetinaOptions
from condec.retina.probes import PROBES, probe, standard_probes
from condec.retina.responses import Responses, respond
from condec.retina.sources import FieldSources, PartWeights, field_sources, part_fields
from condec.retina.training import FittedRetina, RetinaEpoch, RetinaTraining

__all__ = [
    "PROBES", "Clustering", "CombinationFields", "FieldSources", "FittedRetina", "OpenRetina",
    "PartWeights", "RankOne",
    "ReceptiveFields", "Recording", "Responses", "RetinaCheckpoint", "RetinaCircuit",
    "RetinaEpoch", "RetinaLayout", "RetinaNetwork", "RetinaOptions", "RetinaTraining", "Scaling",
    "Windows", "active_modes", "bn_cnn", "cluster", "combinations",
    "field_sources", "fields_of_combinations", "fit_model", "load_checkpoint",
    "mode_cell_correlation", "nips_cnn", "part_fields", "poisson_loss", "probe",
    "read_recording", "receptive_fields", "respond", "save_checkpoint", "separate",
    "standard_circuit", "standard_probes", "write_recording",
]  # fmt: skip
