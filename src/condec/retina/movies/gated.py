"""A recording of the standard circuit, with the gates that were open as events."""

from pathlib import Path

import torch
from jaxtyping import Float

from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.retina.models.circuit import (
    BORDER,
    HISTORY,
    PATHWAYS,
    SIZE,
    RetinaCircuit,
    standard_circuit,
)
from condec.retina.movies.files import write_recording
from condec.retina.movies.recording import Recording
from condec.retina.responses import batches

_BATCH = 256
_BRIGHT = 0.4
"""Probability that light in a quadrant is bright."""


def gated_movie(
    n_frames: int, *, seed: int = 0, dwell: float = 40.0
) -> Float[torch.Tensor, "frame y x"]:
    """Draw noise, and around it four quadrants that turn bright and dark by themselves.

    Pixels of the centre are drawn again in every frame (normal, standard deviation 1). Each
    quadrant of the periphery is 1 or -1: now and then, on average every `dwell` frames, it is
    drawn again, whatever the others are.

    Frames are 24 x 24 and 0 is grey. OptionError where `n_frames` or `dwell` is below 1.
    """
    at_least("gated_movie", 1, n_frames=n_frames, dwell=dwell)
    generator = torch.Generator().manual_seed(seed)
    movie = torch.randn(n_frames, SIZE, SIZE, generator=generator)
    drawn = (torch.rand(n_frames, 4, generator=generator) < _BRIGHT).float()
    fresh = torch.rand(n_frames, 4, generator=generator) < 1 / dwell
    fresh[0] = True
    # The last frame up to this one at which the quadrant was drawn.
    since = torch.where(fresh, torch.arange(n_frames)[:, None], 0).cummax(0).values
    light = (2 * drawn.gather(0, since) - 1).view(-1, 2, 2)
    light = light.repeat_interleave(SIZE // 2, 1).repeat_interleave(SIZE // 2, 2)
    light[:, BORDER:-BORDER, BORDER:-BORDER] = movie[:, BORDER:-BORDER, BORDER:-BORDER]
    return light


def circuit_recording(
    circuit: RetinaCircuit, n_frames: int = 4000, *, seed: int = 0, dwell: float = 40.0
) -> Recording:
    """Record the responses of a circuit to a `gated_movie`, and its gates.

    The event ``gate NAME`` of every pathway is 1 in frames during which its gate is open (more
    than half of the pathway is let through), else 0. Rates and gates of the first 16 frames,
    which have no whole clip before them, are 0. OptionError where there are no more frames.
    """
    if n_frames <= HISTORY:
        raise OptionError(
            f"circuit_recording: n_frames must be more than the {HISTORY} of a clip; got {n_frames}"
        )
    movie = gated_movie(n_frames, seed=seed, dwell=dwell)
    rows = torch.arange(n_frames - HISTORY)
    with torch.no_grad():
        parts = batches(circuit, movie, rows, HISTORY, _BATCH)
        found = [(circuit(clips), circuit.gates(clips)) for clips, _ in parts]
    rates, gates = (torch.cat(parts) for parts in zip(*found, strict=True))
    before = torch.zeros(HISTORY, 1)
    opened = torch.cat((before.expand(-1, len(PATHWAYS)), (gates > 0.5).float()))
    return Recording(
        movie=movie,
        rates=torch.cat((before.expand(-1, rates.shape[1]), rates)),
        name="circuit",
        events={f"gate {name}": opened[:, p] for p, name in enumerate(PATHWAYS)},
    )


def write_circuit_recording(path: Path, n_frames: int = 2000) -> None:
    """Write `circuit_recording` of the standard circuit to a file, unless it is there."""
    if not path.exists():
        write_recording(path, circuit_recording(standard_circuit(), n_frames))
