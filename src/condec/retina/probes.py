"""Standard probes: stimuli to which the answer of the retina is known, and the cells' answers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from condec.basis.errors import OptionError
from condec.retina import stimuli
from condec.retina.movies.recording import SECONDS_PER_FRAME, Recording
from condec.retina.responses import Responses, respond

PROBES: Final[Mapping[str, Callable[..., Recording]]] = {
    "white noise": partial(stimuli.white_noise, n_frames=200),
    "natural movie": partial(stimuli.natural_movie, n_frames=200),
    "flashes": partial(stimuli.flashes, n_flashes=2),
    "moving bar": stimuli.moving_bar,
    "reversal": stimuli.reversal,
    "omitted stimulus": stimuli.omitted_stimulus,
    "contrast steps": partial(stimuli.contrast_steps, step_seconds=1.0),
}
"""The function that makes each probe; all take ``size`` and ``seconds_per_frame``."""


def standard_probes(
    size: tuple[int, int], *, seconds_per_frame: float = SECONDS_PER_FRAME
) -> dict[str, Recording]:
    """Make all probes of `PROBES`, a few seconds each.

    `size` is the model's pixels along y and x; a field that is not square shows the middle of a
    square one.
    """
    side = max(size)
    made = {
        name: make(size=side, seconds_per_frame=seconds_per_frame) for name, make in PROBES.items()
    }
    rows, columns = (slice((side - n) // 2, (side - n) // 2 + n) for n in size)
    return {name: replace(one, movie=one.movie[:, rows, columns]) for name, one in made.items()}


def probe(
    model: nn.Module, stimulus: Recording, history: int, *, contrast: float = 1.0,
    batch_size: int = 64,
) -> Responses:  # fmt: skip
    """Show a stimulus to a model, and return the rates of its cells and the events.

    Grey light stands still for one history before the stimulus begins, so that the first response
    is the one to its first frame.

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell]; in evaluation mode.
    stimulus : Recording
        Of `condec.retina.stimuli`, or any other movie of contrasts.
    history : int
        Frames of a clip.
    contrast : float
        Number in the model's unit that stands for contrast 1: with movies scaled to mean 0 and
        standard deviation 1, so many standard deviations.
    batch_size : int

    Raises
    ------
    OptionError, DataError
        The contrast is 0; as in `condec.retina.responses.respond`.
    """
    if contrast == 0:
        raise OptionError("probe: contrast must not be 0; got 0")

    def after_grey(course: Tensor) -> Tensor:
        return torch.cat((course.new_zeros(history, *course.shape[1:]), course))

    events = {name: after_grey(course) for name, course in stimulus.events.items()}
    padded = replace(stimulus, movie=after_grey(stimulus.movie * contrast), events=events)
    found = respond(model, padded.windows(history), batch_size=batch_size)
    return replace(found, frames=found.frames - history)
