"""Movies that probe a retina: noise, natural statistics, flashes, bars, patterns that break off.

Light is given as contrast: 0 is the mean, 1 twice as bright, -1 dark. Distances are in pixels,
times in seconds. `x` grows to the right and `y` downwards.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import OptionError
from condec.retina.light import bars, disc, natural_images, reach, seen
from condec.retina.movies.movies import Recording

SECONDS_PER_FRAME: Final = 0.01
_DARK: Final = -1.0
_CANVAS: Final = 4
"""Side of a natural image over that of the field that is seen of it."""

Noise = Literal["binary", "gaussian"]


@dataclass(frozen=True, eq=False)
class Stimulus:
    """A movie made by rule, and when what happens in it.

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
        """The movie with responses to it, or with none."""
        return Recording(
            movie=self.movie,
            rates=rates,
            cells=cells,
            seconds_per_frame=self.seconds_per_frame,
            name=self.name,
            events=self.events,
        )


def white_noise(
    *,
    n_frames: int = 1000,
    size: int = 50,
    kind: Noise = "binary",
    contrast: float = 0.35,
    checker: int = 2,
    frames_per_pattern: int = 3,
    seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """Checkers drawn independently of each other, pattern after pattern.

    Parameters
    ----------
    n_frames, size : int
        Frames, and pixels along y and x.
    kind : {"binary", "gaussian"}
        Checkers are plus or minus the contrast, or normal with it as standard deviation (cut at
        -1: there is no negative light).
    contrast : float
    checker : int
        Side of a checker in pixels; `size` for a uniform field.
    frames_per_pattern : int
    seed : int
    seconds_per_frame : float

    Returns
    -------
    Stimulus
        Event ``pattern``: frames in which a new one appears.

    Raises
    ------
    OptionError
        An option out of range.
    """
    _check_positive(n_frames=n_frames, size=size, checker=checker, contrast=contrast)
    _check_positive(frames_per_pattern=frames_per_pattern)
    if kind not in get_args(Noise):
        raise OptionError(f"white_noise: kind must be binary or gaussian; got {kind!r}")
    n_patterns = -(-n_frames // frames_per_pattern)
    n_checkers = -(-size // checker)
    drawn = torch.randn(n_patterns, n_checkers, n_checkers, generator=_generator(seed))
    light = drawn.sign() if kind == "binary" else drawn
    light = (light * contrast).clamp(min=_DARK)
    light = light.repeat_interleave(checker, 1).repeat_interleave(checker, 2)[:, :size, :size]
    movie = light.repeat_interleave(frames_per_pattern, 0)[:n_frames]
    pattern = torch.zeros(n_frames)
    pattern[::frames_per_pattern] = 1
    return Stimulus("white noise", movie.contiguous(), {"pattern": pattern}, seconds_per_frame)


def natural_movie(
    *,
    n_frames: int = 1000,
    size: int = 50,
    contrast: float = 0.3,
    exponent: float = 2.0,
    n_images: int = 8,
    jitter: float = 0.5,
    saccade_seconds: float = 1.0,
    seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """Images of natural statistics, seen by an eye that drifts and jumps.

    The power of an image falls with the square of spatial frequency, as that of photographs does
    (Field 1987); its phases are random. The gaze drifts as a random walk, and jumps to another
    place of another image now and then.

    Parameters
    ----------
    n_frames, size : int
        Frames, and pixels along y and x.
    contrast : float
        Standard deviation of an image (cut at -1: there is no negative light). What is seen of
        it is a sixteenth, which may have less, and its own mean.
    exponent : float
        Of the power over frequency; 0 is white.
    n_images : int
    jitter : float
        Standard deviation of the drift from one frame to the next along either axis, in pixels.
    saccade_seconds : float
        Mean time between two jumps; each is drawn evenly from 0.5 to 1.5 of it.
    seed : int
    seconds_per_frame : float

    Returns
    -------
    Stimulus
        Event ``saccade``: frames in which the gaze has jumped.

    Raises
    ------
    OptionError
        An option out of range.
    """
    _check_positive(n_frames=n_frames, size=size, contrast=contrast, n_images=n_images)
    between = _frames("saccade_seconds", saccade_seconds, seconds_per_frame)
    if not (0.0 <= jitter < math.inf and 0.0 <= exponent < math.inf):
        raise OptionError(
            f"natural_movie: jitter and exponent must be 0 or more; got {jitter} and {exponent}"
        )
    generator = _generator(seed)
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
    *,
    n_flashes: int = 5,
    size: int = 50,
    contrast: float = 1.0,
    on_seconds: float = 0.5,
    off_seconds: float = 0.5,
    radius: float | None = None,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """Steps of light over the mean, and back, one after the other.

    Parameters
    ----------
    n_flashes, size : int
        Flashes, and pixels along y and x.
    contrast : float
        Below 0 for dark flashes.
    on_seconds, off_seconds : float
        Length of a flash, and of what comes before each and after the last.
    radius : float, optional
        Of a disc in the centre, in pixels; by default the whole field.
    seconds_per_frame : float

    Returns
    -------
    Stimulus
        Event ``flash``: frames of the flashes.

    Raises
    ------
    OptionError
        An option out of range.
    """
    _check_positive(n_flashes=n_flashes, size=size)
    on = _frames("on_seconds", on_seconds, seconds_per_frame)
    off = _frames("off_seconds", off_seconds, seconds_per_frame)
    course = torch.cat((torch.zeros(off), torch.ones(on))).repeat(n_flashes)
    course = torch.cat((course, torch.zeros(off)))
    light = _contrast(contrast) * course[:, None, None] * disc(size, _radius(radius))
    return Stimulus("flashes", light, {"flash": course}, seconds_per_frame)


def omitted_stimulus(
    *,
    n_before: int = 12,
    n_after: int = 3,
    size: int = 50,
    contrast: float = -1.0,
    period_seconds: float = 0.1,
    flash_seconds: float = 0.04,
    lead_seconds: float = 0.5,
    radius: float | None = None,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """Flashes in a steady rhythm, of which one is left out (Schwartz et al. 2007).

    Parameters
    ----------
    n_before, n_after, size : int
        Flashes before and after the one that is left out, and pixels along y and x. None after
        it: the rhythm ends.
    contrast : float
        Below 0 for dark flashes.
    period_seconds, flash_seconds : float
        From one flash to the next, and length of a flash.
    lead_seconds : float
        Mean light before the first flash and after the last period.
    radius : float, optional
        Of a disc in the centre, in pixels; by default the whole field.
    seconds_per_frame : float

    Returns
    -------
    Stimulus
        Events ``flash``: frames of the flashes, and ``omitted``: frames that the missing one
        would have had.

    Raises
    ------
    OptionError
        An option out of range, or a flash as long as the period.
    """
    _check_positive(n_before=n_before, size=size)
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
    light = _contrast(contrast) * flash[:, None, None] * disc(size, _radius(radius))
    events = {"flash": flash, "omitted": omitted}
    return Stimulus("omitted stimulus", light, events, seconds_per_frame)


def moving_bar(
    *,
    directions: tuple[float, ...] = (0.0,),
    size: int = 50,
    contrast: float = 1.0,
    width: float = 6.0,
    pixels_per_second: float = 60.0,
    pause_seconds: float = 0.4,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """A long bar that sweeps over the field, at right angles to itself, once in every direction.

    Parameters
    ----------
    directions : tuple of float
        Where it moves to, in degrees: 0 to the right, 90 downwards.
    size : int
        Pixels along y and x.
    contrast : float
        Below 0 for a dark bar.
    width : float
        Pixels.
    pixels_per_second : float
    pause_seconds : float
        Mean light before each sweep and after the last.
    seconds_per_frame : float

    Returns
    -------
    Stimulus
        An event for every direction, such as ``0 degrees``: frames of its sweep.

    Raises
    ------
    OptionError
        No direction or one that is named twice, or an option out of range.
    """
    _check_positive(size=size, width=width, pixels_per_second=pixels_per_second)
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
    *,
    direction: float = 0.0,
    size: int = 50,
    contrast: float = -1.0,
    width: float = 6.0,
    pixels_per_second: float = 60.0,
    at: float = 0.0,
    pause_seconds: float = 0.4,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """A bar that moves in, turns round at once, and moves out again (Schwartz et al. 2007).

    Parameters
    ----------
    direction : float
        Where it moves to at first, in degrees: 0 to the right, 90 downwards.
    size : int
        Pixels along y and x.
    contrast : float
        Below 0 for a dark bar.
    width : float
        Pixels.
    pixels_per_second : float
    at : float
        Where the centre of the bar turns: pixels beyond the centre of the field, along
        `direction`.
    pause_seconds : float
        Mean light before and after.
    seconds_per_frame : float

    Returns
    -------
    Stimulus
        Events ``forth`` and ``back``: frames of either movement; the bar is farthest in the last
        frame of ``forth``, and ``reversal`` is the frame after it.

    Raises
    ------
    OptionError
        An option out of range, or a place to turn outside the field.
    """
    _check_positive(size=size, width=width, pixels_per_second=pixels_per_second)
    far = reach(size, width, direction)
    if not abs(at) < size / 2:
        raise OptionError(
            f"reversal: at must be within the field, {size / 2:g} pixels from its centre; got {at}"
        )
    pause = torch.zeros(_frames("pause_seconds", pause_seconds, seconds_per_frame))
    step = pixels_per_second * seconds_per_frame
    there = at - step * torch.arange(math.ceil((at + far) / step) + 1).flip(0)
    back = there[:-1].flip(0)
    places = torch.cat((there, back))
    light = _contrast(contrast) * bars(places, size, width, direction)
    blank = pause[:, None, None].expand(-1, size, size)
    first = torch.zeros(len(back))
    first[0] = 1
    events = {
        "forth": torch.cat((pause, torch.ones(len(there)), torch.zeros(len(back)), pause)),
        "back": torch.cat((pause, torch.zeros(len(there)), torch.ones(len(back)), pause)),
        "reversal": torch.cat((pause, torch.zeros(len(there)), first, pause)),
    }
    return Stimulus("reversal", torch.cat((blank, light, blank)), events, seconds_per_frame)


def contrast_steps(
    *,
    contrasts: tuple[float, ...] = (0.05, 0.35, 0.05, 0.35),
    step_seconds: float = 5.0,
    size: int = 50,
    kind: Noise = "gaussian",
    checker: int | None = None,
    frames_per_pattern: int = 3,
    seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Stimulus:
    """White noise whose contrast changes at once, its mean never (Smirnakis et al. 1997).

    Parameters
    ----------
    contrasts : tuple of float
        One after the other.
    step_seconds : float
        Length of each.
    size, kind, checker, frames_per_pattern, seed, seconds_per_frame
        As in `white_noise`; by default the whole field is one checker.

    Returns
    -------
    Stimulus
        Events ``contrast``: the contrast of every frame; ``step``: frames in which it changes.

    Raises
    ------
    OptionError
        No contrast, or an option out of range.
    """
    if not contrasts:
        raise OptionError("contrast_steps: expected at least one contrast; got none")
    length = _frames("step_seconds", step_seconds, seconds_per_frame)
    parts = [
        white_noise(
            n_frames=length,
            size=size,
            kind=kind,
            contrast=contrast,
            checker=size if checker is None else checker,
            frames_per_pattern=frames_per_pattern,
            seed=seed + number,
        ).movie
        for number, contrast in enumerate(contrasts)
    ]
    step = torch.zeros(length * len(contrasts))
    step[length::length] = 1
    events = {"contrast": torch.tensor(contrasts).repeat_interleave(length), "step": step}
    return Stimulus("contrast steps", torch.cat(parts), events, seconds_per_frame)


# --- parts ------------------------------------------------------------------------------------


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _contrast(contrast: float) -> float:
    if not (contrast >= _DARK and contrast != 0.0 and math.isfinite(contrast)):
        raise OptionError(
            f"stimulus: contrast must be -1 (dark) or more, and not 0; got {contrast}"
        )
    return contrast


def _radius(radius: float | None) -> float | None:
    if radius is not None:
        _check_positive(radius=radius)
    return radius


def _frames(name: str, seconds: float, seconds_per_frame: float) -> int:
    _check_positive(seconds_per_frame=seconds_per_frame)
    frames = round(seconds / seconds_per_frame) if math.isfinite(seconds) else 0
    if frames < 1:
        raise OptionError(
            f"stimulus: {name} must be at least one frame of {seconds_per_frame} s; got {seconds}"
        )
    return frames


def _check_positive(**values: float | int) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise OptionError(f"stimulus: {name} must be above 0 and finite; got {value}")
