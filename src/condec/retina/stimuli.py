"""Movies that probe a retina: noise, natural statistics, flashes, bars, patterns that break off.

Light is given as contrast: 0 is the mean, 1 twice as bright, -1 dark. Distances are in pixels,
times in seconds. `x` grows to the right and `y` downwards; directions are in degrees, 0 to the
right, 90 downwards. Every function takes `size`, the pixels along y and x, and
`seconds_per_frame`, and raises OptionError where an option is out of range.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.checks import at_least, one_of
from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.retina.checks import above
from condec.retina.light import bars, disc, natural_images, reach, seen
from condec.retina.movies.recording import SECONDS_PER_FRAME, Recording

_DARK: Final = -1.0
_CANVAS: Final = 4
"""Side of a natural image over that of the field that is seen of it."""

Noise = Literal["binary", "gaussian"]


@short_repr
@dataclass(frozen=True, eq=False)
class Stimulus:
    """A movie made by rule, and when its events happen.

    Attributes
    ----------
    name : str
    movie : Tensor of shape [frame, y, x]
        Contrast, float32.
    events : dict of str to Tensor of shape [frame]
        Time courses by name: 1 in the frames of an event and 0 elsewhere, unless the function
        that made the stimulus says otherwise.
    seconds_per_frame : float
    """

    name: str
    movie: Float[Tensor, "frame y x"]
    events: dict[str, Tensor]
    seconds_per_frame: float

    def recording(
        self, rates: Float[Tensor, "frame cell"] | None = None, cells: tuple[str, ...] = ()
    ) -> Recording:
        """Return the movie with responses to it, or with none."""
        return Recording(
            movie=self.movie, rates=rates, cells=cells, name=self.name, events=self.events,
            seconds_per_frame=self.seconds_per_frame,
        )  # fmt: skip


def white_noise(
    *, n_frames: int = 1000, size: int = 50, kind: Noise = "binary", contrast: float = 0.35,
    checker: int = 2, frames_per_pattern: int = 3, seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Draw checkers independently of each other, pattern after pattern.

    Parameters
    ----------
    kind : {"binary", "gaussian"}
        Checkers are plus or minus the contrast, or normal with it as standard deviation (cut at
        -1: there is no negative light).
    checker : int
        Side of a checker in pixels; `size` for a uniform field.

    The event ``pattern`` is the frames in which a new one appears.
    """
    above("white_noise", n_frames=n_frames, size=size, checker=checker, contrast=contrast)
    above("white_noise", frames_per_pattern=frames_per_pattern)
    one_of("white_noise", "kind", kind, Noise)
    n_patterns = -(-n_frames // frames_per_pattern)
    n_checkers = -(-size // checker)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_patterns, n_checkers, n_checkers, generator=generator)
    light = drawn.sign() if kind == "binary" else drawn
    light = (light * contrast).clamp(min=_DARK)
    light = light.repeat_interleave(checker, 1).repeat_interleave(checker, 2)[:, :size, :size]
    movie = light.repeat_interleave(frames_per_pattern, 0)[:n_frames]
    pattern = torch.zeros(n_frames)
    pattern[::frames_per_pattern] = 1
    return Stimulus("white noise", movie.contiguous(), {"pattern": pattern}, seconds_per_frame)


def natural_movie(
    *, n_frames: int = 1000, size: int = 50, contrast: float = 0.3, exponent: float = 2.0,
    n_images: int = 8, jitter: float = 0.5, saccade_seconds: float = 1.0, seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Draw images of natural statistics, seen by an eye that drifts and jumps.

    The power of an image falls with the square of spatial frequency, as that of photographs does
    (Field 1987); its phases are random. The gaze drifts as a random walk, and jumps to another
    place of another image now and then.

    Parameters
    ----------
    contrast : float
        Standard deviation of an image (cut at -1: there is no negative light). The part of it
        that is seen, a sixteenth, may have less, and its own mean.
    exponent : float
        Of the power over frequency; 0 is white.
    jitter : float
        Standard deviation of the drift from one frame to the next along either axis, in pixels.
    saccade_seconds : float
        Mean time between two jumps; each is drawn evenly from 0.5 to 1.5 of it.

    The event ``saccade`` is the frames in which the gaze has jumped.
    """
    above("natural_movie", n_frames=n_frames, size=size, contrast=contrast, n_images=n_images)
    at_least("natural_movie", 0, jitter=jitter, exponent=exponent)
    between = _frames("saccade_seconds", saccade_seconds, seconds_per_frame)
    generator = torch.Generator().manual_seed(seed)
    images = natural_images(n_images, _CANVAS * size, exponent, generator) * contrast
    images.clamp_(min=_DARK)
    steps = torch.randn(n_frames, 2, generator=generator, dtype=torch.float64) * jitter
    movie = torch.empty(n_frames, size, size)
    saccade = torch.zeros(n_frames)
    due, image, gaze = 0, images[0], steps[0]
    for frame in range(n_frames):
        gaze = gaze + steps[frame]
        if frame == due:
            place = torch.rand(3, generator=generator, dtype=torch.float64)
            image, gaze = images[int(place[0] * n_images)], place[1:] * _CANVAS * size
            wait = between * (0.5 + float(torch.rand((), generator=generator)))
            due += max(1, round(wait))
            saccade[frame] = float(frame > 0)
        movie[frame] = seen(image, gaze, size)
    return Stimulus("natural movie", movie, {"saccade": saccade}, seconds_per_frame)


def flashes(
    *, n_flashes: int = 5, size: int = 50, contrast: float = 1.0, on_seconds: float = 0.5,
    off_seconds: float = 0.5, radius: float | None = None,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Step from the mean to another light and back, one step after the other.

    Before each flash and after the last there are `off_seconds` of mean light. `radius` is that of
    a disc in the centre, in pixels; by default the whole field flashes. The event ``flash`` is the
    frames of the flashes.
    """
    above("flashes", n_flashes=n_flashes, size=size)
    if radius is not None:
        above("flashes", radius=radius)
    on = _frames("on_seconds", on_seconds, seconds_per_frame)
    off = _frames("off_seconds", off_seconds, seconds_per_frame)
    course = torch.cat((torch.zeros(off), torch.ones(on))).repeat(n_flashes)
    course = torch.cat((course, torch.zeros(off)))
    light = _contrast(contrast) * course[:, None, None] * disc(size, radius)
    return Stimulus("flashes", light, {"flash": course}, seconds_per_frame)


def omitted_stimulus(
    *, n_before: int = 12, n_after: int = 3, size: int = 50, contrast: float = -1.0,
    period_seconds: float = 0.1, flash_seconds: float = 0.04, lead_seconds: float = 0.5,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Flash in a steady rhythm, and leave one flash out (Schwartz et al. 2007).

    There are `n_before` flashes before the one that is left out and `n_after` after it (0: the
    rhythm ends there), and `lead_seconds` of mean light before the first and after the last period.
    Events are ``flash``, the frames of the flashes, and ``omitted``, the frames that the missing
    one would have had.
    """
    above("omitted_stimulus", n_before=n_before, size=size)
    period = _frames("period_seconds", period_seconds, seconds_per_frame)
    length = _frames("flash_seconds", flash_seconds, seconds_per_frame)
    lead = torch.zeros(_frames("lead_seconds", lead_seconds, seconds_per_frame))
    if n_after < 0 or length >= period:
        raise OptionError(
            "omitted_stimulus: expected n_after of 0 or more, and a flash shorter than the "
            f"period; got {n_after}, {length} and {period} frames"
        )
    beat = (torch.arange(period) < length).float()
    pause = torch.zeros(period)
    flash = torch.cat((lead, beat.repeat(n_before), pause, beat.repeat(n_after), lead))
    before, after = pause.repeat(n_before), pause.repeat(n_after)
    omitted = torch.cat((lead, before, beat, after, lead))
    light = _contrast(contrast) * flash[:, None, None] * torch.ones(size, size)
    events = {"flash": flash, "omitted": omitted}
    return Stimulus("omitted stimulus", light, events, seconds_per_frame)


def moving_bar(
    *, directions: tuple[float, ...] = (0.0,), size: int = 50, contrast: float = 1.0,
    width: float = 6.0, pixels_per_second: float = 60.0, pause_seconds: float = 0.4,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Sweep a long bar over the field, at right angles to itself, once in every direction.

    There is mean light of `pause_seconds` before each sweep and after the last. There is an event
    for every direction, such as ``0 degrees``: the frames of its sweep.
    """
    above("moving_bar", size=size, width=width, pixels_per_second=pixels_per_second)
    names = [f"{direction:g} degrees" for direction in directions]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"moving_bar: expected different directions; got {directions}")
    pause = torch.zeros(_frames("pause_seconds", pause_seconds, seconds_per_frame), size, size)
    step = pixels_per_second * seconds_per_frame
    parts, numbers = [pause], [torch.full((len(pause),), -1)]
    for number, direction in enumerate(directions):
        far = reach(size, width, direction)
        places = torch.arange(-far, far + step, step)
        parts += [_contrast(contrast) * bars(places, size, width, direction), pause]
        numbers += [torch.full((len(places),), number), numbers[0]]
    shown = torch.cat(numbers)
    events = {name: (shown == number).float() for number, name in enumerate(names)}
    return Stimulus("moving bar", torch.cat(parts), events, seconds_per_frame)


def reversal(
    *, direction: float = 0.0, size: int = 50, contrast: float = -1.0, width: float = 6.0,
    pixels_per_second: float = 60.0, at: float = 0.0, pause_seconds: float = 0.4,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Move a bar in, turn it round at once, and move it out again (Schwartz et al. 2007).

    It first moves along `direction`, and turns where its centre is `at` pixels beyond the centre of
    the field. Events are ``forth`` and ``back``, the frames of either movement, and ``reversal``,
    the frame after the last of ``forth``, in which the bar is farthest.
    """
    above("reversal", size=size, width=width, pixels_per_second=pixels_per_second)
    if not abs(at) < size / 2:
        raise OptionError(
            f"reversal: at must be within the field, {size / 2:g} pixels from its centre; got {at}"
        )
    n_pause = _frames("pause_seconds", pause_seconds, seconds_per_frame)
    step = pixels_per_second * seconds_per_frame
    far = reach(size, width, direction)
    there = at - step * torch.arange(math.ceil((at + far) / step) + 1).flip(0)
    back = there[:-1].flip(0)
    light = _contrast(contrast) * bars(torch.cat((there, back)), size, width, direction)
    blank = torch.zeros(n_pause, size, size)
    movie = torch.cat((blank, light, blank))
    turn = n_pause + len(there)
    last = turn + len(back)
    spans = {"forth": (n_pause, turn), "back": (turn, last), "reversal": (turn, turn + 1)}
    frames = torch.arange(len(movie))
    events = {n: ((a <= frames) & (frames < b)).float() for n, (a, b) in spans.items()}
    return Stimulus("reversal", movie, events, seconds_per_frame)


def contrast_steps(
    *, contrasts: tuple[float, ...] = (0.05, 0.35, 0.05, 0.35), step_seconds: float = 5.0,
    size: int = 50, kind: Noise = "gaussian", checker: int | None = None,
    frames_per_pattern: int = 3, seed: int = 0, seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:  # fmt: skip
    """Draw white noise whose contrast changes at once, its mean never (Smirnakis et al. 1997).

    Each of `contrasts` lasts `step_seconds`; other options are those of `white_noise`, by default
    with the whole field as one checker. Events are ``contrast``, the contrast of every frame, and
    ``step``, the frames in which it changes.
    """
    if not contrasts:
        raise OptionError("contrast_steps: expected at least one contrast; got none")
    length = _frames("step_seconds", step_seconds, seconds_per_frame)
    make = partial(
        white_noise, n_frames=length, size=size, kind=kind, frames_per_pattern=frames_per_pattern,
        checker=size if checker is None else checker,
    )  # fmt: skip
    parts = [make(contrast=each, seed=seed + place).movie for place, each in enumerate(contrasts)]
    step = torch.zeros(length * len(contrasts))
    step[length::length] = 1
    events = {"contrast": torch.tensor(contrasts).repeat_interleave(length), "step": step}
    return Stimulus("contrast steps", torch.cat(parts), events, seconds_per_frame)


def _contrast(contrast: float) -> float:
    if not _DARK <= contrast < math.inf or contrast == 0.0:
        raise OptionError(
            f"stimulus: contrast must be -1 (dark) or more, and not 0; got {contrast}"
        )
    return contrast


def _frames(name: str, seconds: float, seconds_per_frame: float) -> int:
    above("stimulus", seconds_per_frame=seconds_per_frame)
    frames = round(seconds / seconds_per_frame) if math.isfinite(seconds) else 0
    if frames < 1:
        raise OptionError(
            f"stimulus: {name} must be at least one frame of {seconds_per_frame} s; got {seconds}"
        )
    return frames
