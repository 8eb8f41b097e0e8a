"""Standard probes: what every cell answers to stimuli whose answer in the retina is known."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from condec.basis.errors import OptionError
from condec.retina import stimuli
from condec.retina.analysis import Responses, respond
from condec.retina.movies.movies import SECONDS_PER_FRAME
from condec.retina.stimuli import Stimulus

PROBES: Final[Mapping[str, Callable[..., Stimulus]]] = {
    "white noise": partial(stimuli.white_noise, n_frames=200),
    "natural movie": partial(stimuli.natural_movie, n_frames=200),
    "flashes": partial(stimuli.flashes, n_flashes=2),
    "moving bar": stimuli.moving_bar,
    "reversal": stimuli.reversal,
    "omitted stimulus": stimuli.omitted_stimulus,
    "contrast steps": partial(stimuli.contrast_steps, step_seconds=1.0),
}
"""What makes each probe, by its name; every one takes ``size`` and ``seconds_per_frame``."""


def standard_probes(
    size: tuple[int, int], *, seconds_per_frame: float = SECONDS_PER_FRAME
) -> dict[str, Stimulus]:
    """All probes of `PROBES`, a few seconds each.

    Parameters
    ----------
    size : (int, int)
        Pixels along y and x: those of the model.
    seconds_per_frame : float
    """
    height, width = size
    made = {
        name: make(size=max(size), seconds_per_frame=seconds_per_frame)
        for name, make in PROBES.items()
    }
    return {
        name: replace(probe, movie=probe.movie[:, :height, :width]) for name, probe in made.items()
    }


def probe(
    model: nn.Module,
    stimulus: Stimulus,
    history: int,
    *,
    contrast: float = 1.0,
    batch_size: int = 64,
) -> Responses:
    """Rates of a model's cells to a stimulus, with its events.

    Grey light stands still for one history before the stimulus begins, so that the first response
    is the one to its first frame.

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell]; in evaluation mode.
    stimulus : Stimulus
    history : int
        Frames of a clip.
    contrast : float
        What contrast 1 is in the unit that the model takes: with movies scaled to mean 0 and
        standard deviation 1, so many standard deviations.
    batch_size : int

    Raises
    ------
    OptionError
        The contrast is 0.
    DataError
        As in `condec.retina.analysis.respond`.
    """
    if contrast == 0:
        raise OptionError("probe: contrast must not be 0; got 0")
    events = {name: _after_grey(course, history) for name, course in stimulus.events.items()}
    movie = _after_grey(stimulus.movie * contrast, history)
    padded = replace(stimulus, movie=movie, events=events)
    found = respond(model, padded.recording().windows(history), batch_size=batch_size)
    return replace(found, frames=found.frames - history)


def _after_grey(course: Tensor, history: int) -> Tensor:
    """The same with zeros before it, along the first axis."""
    return torch.cat((course.new_zeros(history, *course.shape[1:]), course))
