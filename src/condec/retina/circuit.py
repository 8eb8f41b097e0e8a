"""A recording of the standard circuit, with the gates that were open as events."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import OptionError
from condec.retina.accuracy import batches
from condec.retina.models.circuit import (
    BORDER,
    HISTORY,
    PATHWAYS,
    SIZE,
    RetinaCircuit,
    standard_circuit,
)
from condec.retina.movies.files import write_recording
from condec.retina.movies.movies import Recording

_BATCH = 256


def gated_movie(
    n_frames: int, *, seed: int = 0, share_bright: float = 0.4, dwell: float = 40.0
) -> tuple[Float[torch.Tensor, "frame y x"], Float[torch.Tensor, "frame quadrant"]]:
    """Noise in the centre, and around it four quadrants that turn bright and dark by themselves.

    Pixels of the centre are drawn anew in every frame (normal, standard deviation 1). Each
    quadrant of the periphery is 1 or -1: now and then, on average every `dwell` frames, it is
    drawn anew, whatever the others are.

    Parameters
    ----------
    n_frames : int
    seed : int
    share_bright : float
        Probability of bright light, between 0 and 1.
    dwell : float
        Frames, 1 or more.

    Returns
    -------
    movie : Tensor of shape [frame, y=24, x=24]
        0 is grey.
    bright : Tensor of shape [frame, quadrant=4]
        1 where the quadrant is bright, else 0.

    Raises
    ------
    OptionError
        A number outside its range.
    """
    if n_frames < 1:
        raise OptionError(f"gated_movie: n_frames must be at least 1; got {n_frames}")
    if not 0.0 < share_bright < 1.0:
        raise OptionError(f"gated_movie: share_bright must be between 0 and 1; got {share_bright}")
    if not 1.0 <= dwell < math.inf:
        raise OptionError(f"gated_movie: dwell must be 1 frame or more; got {dwell}")
    generator = torch.Generator().manual_seed(seed)
    movie = torch.randn(n_frames, SIZE, SIZE, generator=generator)
    drawn = (torch.rand(n_frames, 4, generator=generator) < share_bright).float()
    anew = torch.rand(n_frames, 4, generator=generator) < 1 / dwell
    anew[0] = True
    # The last frame up to this one at which the quadrant was drawn anew.
    since = torch.where(anew, torch.arange(n_frames)[:, None], 0).cummax(0).values
    bright = drawn.gather(0, since)
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[BORDER:-BORDER, BORDER:-BORDER] = False
    light = (2 * bright - 1).view(-1, 2, 2)
    light = light.repeat_interleave(SIZE // 2, 1).repeat_interleave(SIZE // 2, 2)
    return torch.where(outside, light, movie), bright


def circuit_recording(
    circuit: RetinaCircuit, n_frames: int = 4000, *, seed: int = 0, dwell: float = 40.0
) -> Recording:
    """Responses of a circuit to a `gated_movie`, and its gates.

    Parameters
    ----------
    circuit : RetinaCircuit
    n_frames, seed, dwell
        Of the movie.

    Returns
    -------
    Recording
        Event ``gate NAME`` for every pathway: 1 in frames during which its gate is open (more
        than half of the pathway is let through), else 0. Rates and gates of the first 16
        frames, which have no whole clip before them, are 0.

    Raises
    ------
    OptionError
        Not more frames than a clip has, or what `gated_movie` refuses.
    """
    if n_frames <= HISTORY:
        raise OptionError(
            f"circuit_recording: n_frames must be more than the {HISTORY} of a clip; got {n_frames}"
        )
    movie, _ = gated_movie(n_frames, seed=seed, dwell=dwell)
    rows = torch.arange(n_frames - HISTORY)
    found: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for clips, _ in batches(circuit, movie, rows, HISTORY, _BATCH):
            found.append((circuit(clips), circuit.gates(clips)))
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
    """`circuit_recording` of the standard circuit as a file, unless it is there."""
    if not path.exists():
        write_recording(path, circuit_recording(standard_circuit(), n_frames))
