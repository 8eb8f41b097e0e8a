"""A retina whose pathways and gates are known: ground truth for its modes.

By construction of `condec.retina.models.circuit`, the two channels of a pathway act together, and
they act while its gate is open.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.retina import Recording, RetinaCircuit, Windows, standard_circuit
from condec.retina.models.circuit import HISTORY, PATHWAYS
from condec.retina.movies.gated import circuit_recording

_HELD_OUT: Final = 0.25


@short_repr
@dataclass(frozen=True, eq=False)
class PlantedRetina:
    """A circuit, a recording of it with the gates as events, and what is to be found."""

    circuit: RetinaCircuit
    recording: Recording

    @classmethod
    def standard(
        cls, seed: int = 0, *, n_frames: int = 4000, dwell: float = 40.0
    ) -> "PlantedRetina":
        """Make `standard_circuit` and a recording of it, both of one seed.

        As it stands, that of the benchmarks; with 1,000 frames and a `dwell` of 15 one that is
        analysed in seconds.
        """
        circuit = standard_circuit(seed)
        return cls(circuit, circuit_recording(circuit, n_frames, seed=seed, dwell=dwell))

    @cached_property
    def windows(self) -> Windows:
        """Clips of the recording."""
        return self.recording.windows(HISTORY)

    @property
    def train(self) -> Int[Tensor, " row"]:
        """Return the samples to fit and choose on: those that share no frame with the others."""
        return torch.arange(round((1 - _HELD_OUT) * len(self.windows)) - HISTORY)

    @property
    def held_out(self) -> Int[Tensor, " row"]:
        """Return the samples to judge on: the last quarter."""
        return torch.arange(len(self.train) + HISTORY, len(self.windows))

    @cached_property
    def gates(self) -> Bool[Tensor, "sample pathway"]:
        """Tell which gates are open."""
        return torch.stack(list(self.recording.events.values()), 1)[HISTORY:] > 0

    def atoms(self, site: str) -> Float[Tensor, "pathway unit"]:
        """Return the planted atoms of site conv1, relu1, conv2 or relu2.

        They are 1 for the two channels of a pathway, else 0.
        """
        wiring = self.circuit.wiring
        known = {"1": wiring.subunits, "2": wiring.interneurons}
        if site[:-1] not in ("conv", "relu") or site[-1:] not in known:
            raise OptionError(
                f"PlantedRetina: expected site conv1, relu1, conv2 or relu2; got {site!r}"
            )
        atoms = torch.zeros(len(PATHWAYS), 2 * len(PATHWAYS))
        for pathway, channels in enumerate(known[site[-1]]):
            atoms[pathway, list(channels)] = 1.0
        return atoms
