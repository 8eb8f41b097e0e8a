"""Movies that probe a retina: noise, natural statistics, flashes, bars, patterns that break off.

Light is given as contrast: 0 is the mean, 1 twice as bright, -1 dark. Distances are in pixels,
times in seconds. `x` grows to the right and `y` downwards; directions are in degrees, 0 to the
right, 90 downwards. Every function takes `size`, the pixels along y and x, and
`seconds_per_frame`, gives a `Recording` without rates whose events are 1 in the frames of an event
and 0 elsewhere unless it says otherwise, and raises OptionError where an option is out of range.
"""

import math
from typing import Final, Literal

import torch
from torch import Tensor

from condec.basis.checks import at_least, one_of
from condec.basis.errors import OptionError
from condec.retina.checks import above
from condec.retina.movies.recording import SECONDS_PER_FRAME, Recording

_DARK: Final = -1.0
_CANVAS: Final = 4
"""Side of a natural image over that of the field that is seen of it."""
_FINE: Final = 2
"""Points of a natural image for each pixel, so that drifting between pixels hardly blurs it."""

Noise = Literal["binary", "gaussian"]


def white_noise(
    *, n_frames: int = 1000, size: int = 50, kind: Noise = "binary", contrast: float = 0.35,
    checker: int = 2, frames_per_pattern: int = 3, seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
    """Draw checkers independently of each other, pattern after pattern.

    The event ``pattern`` is the frames in which a new one appears.

    Parameters
    ----------
    kind : {"binary", "gaussian"}
        Checkers are plus or minus the contrast, or normal with it as standard deviation (cut at
        -1: there is no negative light).
    checker : int
        Side of a checker in pixels; `size` for a uniform field.
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
    return _made("white noise", movie.contiguous(), {"pattern": pattern}, seconds_per_frame)


def natural_movie(
    *, n_frames: int = 1000, size: int = 50, contrast: float = 0.3, exponent: float = 2.0,
    n_images: int = 8, jitter: float = 0.5, saccade_seconds: float = 1.0, seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
    """Draw images of natural statistics, seen by an eye that drifts and jumps.

    The power of an image falls with the square of spatial frequency, as that of photographs does
    (Field 1987); its phases are random. The gaze drifts as a random walk, and jumps to another
    place of another image now and then.

    The event ``saccade`` is the frames in which the gaze has jumped.

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
    """
    above("natural_movie", n_frames=n_frames, size=size, contrast=contrast, n_images=n_images)
    at_least("natural_movie", 0, jitter=jitter, exponent=exponent)
    between = _frames("saccade_seconds", saccade_seconds, seconds_per_frame)
    generator = torch.Generator().manual_seed(seed)
    images = _natural_images(n_images, _CANVAS * size, exponent, generator) * contrast
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
        movie[frame] = _seen(image, gaze, size)
    return _made("natural movie", movie, {"saccade": saccade}, seconds_per_frame)


def flashes(
    *, n_flashes: int = 5, size: int = 50, contrast: float = 1.0, on_seconds: float = 0.5,
    off_seconds: float = 0.5, seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
    """Step the whole field from the mean to another light and back, one step after the other.

    Before each flash and after the last there are `off_seconds` of mean light. The event ``flash``
    is the frames of the flashes.
    """
    above("flashes", n_flashes=n_flashes, size=size)
    on = torch.ones(_frames("on_seconds", on_seconds, seconds_per_frame))
    off = torch.zeros(_frames("off_seconds", off_seconds, seconds_per_frame))
    course = torch.cat((torch.cat((off, on)).repeat(n_flashes), off))
    return _whole_field("flashes", size, contrast, {"flash": course}, seconds_per_frame)


def omitted_stimulus(
    *, n_before: int = 12, n_after: int = 3, size: int = 50, contrast: float = -1.0,
    period_seconds: float = 0.1, flash_seconds: float = 0.04, lead_seconds: float = 0.5,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
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
    events = {"flash": flash, "omitted": omitted}
    return _whole_field("omitted stimulus", size, contrast, events, seconds_per_frame)


def moving_bar(
    *, direction: float = 0.0, size: int = 50, contrast: float = 1.0, width: float = 6.0,
    pixels_per_second: float = 60.0, pause_seconds: float = 0.4,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
    """Sweep a long bar over the field, at right angles to itself.

    There is mean light of `pause_seconds` before and after. The event, such as ``0 degrees``, is
    the frames of the sweep.
    """
    above("moving_bar", size=size, width=width, pixels_per_second=pixels_per_second)
    step, far = pixels_per_second * seconds_per_frame, _reach(size, width, direction)
    places = torch.arange(-far, far + step, step)
    light = _contrast(contrast) * _bars(places, size, width, direction)
    spans = {f"{direction:g} degrees": (0, len(places))}
    return _between_pauses("moving bar", light, spans, pause_seconds, seconds_per_frame)


def reversal(
    *, direction: float = 0.0, size: int = 50, contrast: float = -1.0, width: float = 6.0,
    pixels_per_second: float = 60.0, pause_seconds: float = 0.4,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
    """Move a bar in, turn it round at once, and move it out again (Schwartz et al. 2007).

    It first moves along `direction`, and turns in the centre of the field. Events are ``forth`` and
    ``back``, the frames of either movement, and ``reversal``, the frame after the last of
    ``forth``, in which the bar is farthest.
    """
    above("reversal", size=size, width=width, pixels_per_second=pixels_per_second)
    step, far = pixels_per_second * seconds_per_frame, _reach(size, width, direction)
    there = -step * torch.arange(math.ceil(far / step) + 1).flip(0)
    places = torch.cat((there, there[:-1].flip(0)))
    light = _contrast(contrast) * _bars(places, size, width, direction)
    turn = len(there)
    spans = {"forth": (0, turn), "back": (turn, len(places)), "reversal": (turn, turn + 1)}
    return _between_pauses("reversal", light, spans, pause_seconds, seconds_per_frame)


def contrast_steps(
    *, contrasts: tuple[float, ...] = (0.05, 0.35, 0.05, 0.35), step_seconds: float = 5.0,
    size: int = 50, frames_per_pattern: int = 3, seed: int = 0,
    seconds_per_frame: float = SECONDS_PER_FRAME,
) -> Recording:  # fmt: skip
    """Flicker all of the field: contrast changes at once, the mean never (Smirnakis et al. 1997).

    Light is that of `white_noise`, normal; each of `contrasts` lasts `step_seconds`. Events are
    ``contrast``, the contrast of every frame, and ``step``, the frames in which it changes.
    """
    if not contrasts:
        raise OptionError("contrast_steps: expected at least one contrast; got none")
    length = _frames("step_seconds", step_seconds, seconds_per_frame)
    parts = [
        white_noise(
            n_frames=length, size=size, kind="gaussian", contrast=contrast, checker=size,
            frames_per_pattern=frames_per_pattern, seed=seed + place,
        ).movie
        for place, contrast in enumerate(contrasts)
    ]  # fmt: skip
    step = torch.zeros(length * len(contrasts))
    step[length::length] = 1
    events = {"contrast": torch.tensor(contrasts).repeat_interleave(length), "step": step}
    return _made("contrast steps", torch.cat(parts), events, seconds_per_frame)


# --- parts --------------------------------------------------------------------------------------


def _made(
    name: str, movie: Tensor, events: dict[str, Tensor], seconds_per_frame: float
) -> Recording:
    return Recording(movie=movie, name=name, events=events, seconds_per_frame=seconds_per_frame)


def _natural_images(number: int, side: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Draw periodic images of standard deviation 1 whose power falls as frequency**-exponent.

    `side` is in pixels; there are several points a pixel, but nothing finer than a pixel shows.
    """
    noise = torch.randn(number, _FINE * side, _FINE * side, generator=generator)
    along = torch.fft.fftfreq(_FINE * side) * _FINE  # cycles a pixel
    gain = torch.hypot(along[:, None], along).clamp(min=1 / side) ** (-exponent / 2)
    gain *= (along.abs()[:, None] <= 0.5) & (along.abs() <= 0.5)
    gain[0, 0] = 0.0
    images: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) * gain).real
    return images / images.std((1, 2), keepdim=True, correction=0)


def _seen(image: Tensor, gaze: Tensor, size: int) -> Tensor:
    """Return the field with its corner at pixel `gaze` (y, x), linear between image points."""
    fine = gaze * _FINE
    first = fine.floor()
    in_y, in_x = (float(part) for part in fine - first)
    y, x = ((int(start) + _FINE * torch.arange(size)) % len(image) for start in first)
    rows = image[y] * (1 - in_y) + image[(y + 1) % len(image)] * in_y
    left, right = rows[:, x], rows[:, (x + 1) % len(image)]
    return left * (1 - in_x) + right * in_x


def _whole_field(
    name: str, size: int, contrast: float, events: dict[str, Tensor], seconds_per_frame: float
) -> Recording:
    """Light the whole field during the first of the events."""
    course = next(iter(events.values()))
    movie = _contrast(contrast) * course[:, None, None] * torch.ones(size, size)
    return _made(name, movie, events, seconds_per_frame)


def _bars(places: Tensor, size: int, width: float, direction: float) -> Tensor:
    """Return shares of pixels that a bar covers with its centre at each place along `direction`."""
    from_centre, angle = torch.arange(size) - (size - 1) / 2, math.radians(direction)
    along = from_centre * math.cos(angle) + from_centre[:, None] * math.sin(angle)
    away = (along - places[:, None, None]).abs()
    return ((width + 1) / 2 - away).clamp(0.0, min(1.0, width))


def _reach(size: int, width: float, direction: float) -> float:
    """Return how far from the centre a bar is just out of sight."""
    angle = math.radians(direction)
    corner = (abs(math.cos(angle)) + abs(math.sin(angle))) * (size - 1) / 2
    return corner + (width + 1) / 2


def _between_pauses(
    name: str, light: Tensor, spans: dict[str, tuple[int, int]], pause_seconds: float,
    seconds_per_frame: float,
) -> Recording:  # fmt: skip
    """Put mean light before and after; events are spans of frames of `light`."""
    before = _frames("pause_seconds", pause_seconds, seconds_per_frame)
    pause = light.new_zeros(before, *light.shape[1:])
    frames = torch.arange(len(light) + 2 * before) - before
    events = {event: ((a <= frames) & (frames < b)).float() for event, (a, b) in spans.items()}
    return _made(name, torch.cat((pause, light, pause)), events, seconds_per_frame)


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
