"""Stimuli: what their statistics are, when their events happen, and every message."""

import math

import pytest
import torch

from condec.basis.errors import OptionError
from condec.retina import Recording
from condec.retina.stimuli import (
    _seen,
    contrast_steps,
    flashes,
    moving_bar,
    natural_movie,
    omitted_stimulus,
    reversal,
    white_noise,
)

ALL = (
    white_noise, natural_movie, flashes, omitted_stimulus, moving_bar, reversal, contrast_steps,
)  # fmt: skip


def times(stimulus: Recording, event: str) -> list[int]:
    return stimulus.events[event].nonzero()[:, 0].tolist()


def slope(frames: torch.Tensor) -> float:
    """Exponent of power over frequency, by a line through the mean of windowed frames."""
    size = frames.shape[-1]
    window = torch.hann_window(size, periodic=False)
    power = torch.fft.fft2((frames - frames.mean()) * window[:, None] * window).abs().square()
    along = torch.fft.fftfreq(size) * size
    frequency = torch.hypot(along[:, None], along)
    rings = torch.arange(3, size // 4)
    means = torch.stack([power.mean(0)[(frequency - ring).abs() < 0.5].mean() for ring in rings])
    x, y = rings.log(), means.log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def centre(stimulus: Recording, axis: int) -> torch.Tensor:
    """Centre of what differs from mean light, in pixels from that of the field, frame by frame."""
    weight = stimulus.movie.abs().sum(3 - axis)
    along = torch.arange(weight.shape[1]) - (weight.shape[1] - 1) / 2
    return (weight * along).sum(1) / weight.sum(1)


# --- all of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", ALL)
def test_movie_events_and_recording(make) -> None:
    stimulus = make(size=12)
    movie = stimulus.movie
    assert movie.dtype == torch.float32
    assert movie.shape[1:] == (12, 12)
    assert float(movie.min()) >= -1.0
    assert stimulus.events
    assert stimulus.seconds_per_frame == 0.01
    assert stimulus.rates is None
    assert {len(course) for course in stimulus.events.values()} == {len(movie)}
    assert torch.equal(make(size=12).movie, movie)


@pytest.mark.parametrize("make", [white_noise, natural_movie, contrast_steps])
def test_seeds_draw_other_movies(make) -> None:
    assert not torch.equal(make(size=8, seed=1).movie, make(size=8, seed=2).movie)


# --- noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "gaussian"])
def test_white_noise(kind) -> None:
    stimulus = white_noise(
        n_frames=601, size=11, kind=kind, contrast=0.3, checker=3, frames_per_pattern=4
    )
    movie = stimulus.movie
    assert movie.shape == (601, 11, 11)
    assert times(stimulus, "pattern") == list(range(0, 601, 4))
    patterns = movie[::4]
    assert torch.equal(movie, patterns.repeat_interleave(4, 0)[:601])
    checkers = patterns[:, ::3, ::3]
    whole = checkers.repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert torch.equal(patterns, whole[:, :11, :11])
    n = checkers.numel()
    assert float(checkers.mean()) == pytest.approx(0, abs=4 * 0.3 / math.sqrt(n))
    if kind == "binary":
        assert torch.equal(movie.abs(), torch.full_like(movie, 0.3))
    else:
        assert float(checkers.std()) == pytest.approx(0.3, rel=4 / math.sqrt(2 * n))
        assert len(checkers.unique()) == n
    for a, b in (
        (checkers[1:], checkers[:-1]),
        (checkers[:, 1:], checkers[:, :-1]),
        (checkers[..., 1:], checkers[..., :-1]),
    ):
        assert abs(float((a * b).mean())) / 0.09 < 4 / math.sqrt(a.numel())


def test_contrast_steps() -> None:
    stimulus = contrast_steps(contrasts=(0.1, 0.3, 0.2), step_seconds=20.0, size=6)
    assert times(stimulus, "step") == [2000, 4000]
    contrast = stimulus.events["contrast"]
    assert contrast[[0, 1999, 2000, 3999, 4000]].tolist() == pytest.approx(
        [0.1, 0.1, 0.3, 0.3, 0.2]
    )
    assert torch.equal(stimulus.movie, stimulus.movie[:, :1, :1].expand_as(stimulus.movie))
    light = stimulus.movie[:, 0, 0].view(3, 2000)
    assert light.std(1).tolist() == pytest.approx([0.1, 0.3, 0.2], rel=4 / math.sqrt(2 * 667))
    assert not torch.allclose(light[0] / 0.1, light[1] / 0.3)


# --- natural statistics ----------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [2.0, 1.0])
def test_power_of_a_natural_movie_falls_with_frequency(exponent) -> None:
    stimulus = natural_movie(
        n_frames=300, size=48, n_images=40, exponent=exponent, saccade_seconds=0.01, jitter=0.0
    )
    assert slope(stimulus.movie) == pytest.approx(-exponent, abs=0.2)
    # What is seen of an image, over all gazes, has its contrast and its mean.
    assert float(stimulus.movie.std()) == pytest.approx(0.3, rel=0.1)
    assert float(stimulus.movie.mean()) == pytest.approx(0.0, abs=0.05)


def test_gaze_rests_without_jitter_and_jumps_at_saccades() -> None:
    stimulus = natural_movie(n_frames=1500, size=10, saccade_seconds=0.4, jitter=0.0)
    jumps = times(stimulus, "saccade")
    waits = torch.tensor([0, *jumps]).diff()
    assert 20 <= int(waits.min()) < 27
    assert 53 < int(waits.max()) <= 60
    moved = (stimulus.movie[1:] != stimulus.movie[:-1]).flatten(1).any(1).nonzero()[:, 0] + 1
    assert moved.tolist() == jumps


def test_drift_is_a_random_walk() -> None:
    def difference(jitter: float, lag: int) -> float:
        movie = natural_movie(
            n_frames=1000, size=10, jitter=jitter, saccade_seconds=20.0, exponent=6.0
        ).movie
        return float((movie[lag:] - movie[:-lag]).square().mean())

    # Smooth images: the squared difference grows as the squared distance.
    assert difference(0.01, 4) / difference(0.01, 1) == pytest.approx(4, rel=0.25)
    assert difference(0.02, 1) / difference(0.01, 1) == pytest.approx(4, rel=0.25)


def test_gaze_between_pixels_and_over_the_edge() -> None:
    image = torch.arange(256.0).reshape(16, 16)  # two points a pixel
    there = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert torch.equal(_seen(image, there, 3), image[2:8:2, 6:12:2])
    between = _seen(image, there + torch.tensor([0.25, 0.125]), 3)
    assert torch.allclose(between, image[2:8:2, 6:12:2] + 0.5 * 16 + 0.25)
    assert torch.equal(_seen(image, there - 2, 3), image.roll(2, 0)[:6:2, 2:8:2])


# --- probes ----------------------------------------------------------------------------------


def test_flashes() -> None:
    stimulus = flashes(n_flashes=2, size=9, contrast=-0.5, on_seconds=0.03, off_seconds=0.05)
    assert times(stimulus, "flash") == [5, 6, 7, 13, 14, 15]
    assert len(stimulus.movie) == 21
    assert torch.equal(
        stimulus.movie, -0.5 * stimulus.events["flash"][:, None, None].expand(21, 9, 9)
    )


def test_omitted_stimulus() -> None:
    stimulus = omitted_stimulus(
        n_before=3, n_after=2, size=4, period_seconds=0.1, flash_seconds=0.02, lead_seconds=0.3
    )
    starts = [30, 40, 50, 70, 80]
    assert times(stimulus, "flash") == [start + k for start in starts for k in (0, 1)]
    assert times(stimulus, "omitted") == [60, 61]
    shown = stimulus.movie[:, 2, 2]
    assert torch.equal(shown, -stimulus.events["flash"])
    assert len(shown) == 120
    ends = omitted_stimulus(n_before=3, n_after=0, size=4)
    assert times(ends, "flash")[-1] < times(ends, "omitted")[0]


@pytest.mark.parametrize(("direction", "axis", "sign"), [(0.0, 2, 1), (90.0, 1, 1), (180.0, 2, -1)])
def test_bar_moves_with_its_speed(direction, axis, sign) -> None:
    stimulus = moving_bar(
        direction=direction, size=30, width=4.0, pixels_per_second=50.0, contrast=0.6
    )
    place = centre(stimulus, axis)
    seen = place.abs() < 12
    assert torch.allclose(place[seen].diff(), torch.tensor(sign * 0.5), atol=1e-4)
    middle = stimulus.movie[place.abs().nan_to_num(99).argmin()]
    assert float(middle.max()) == pytest.approx(0.6)
    assert float(middle.sum()) == pytest.approx(0.6 * 4 * 30, rel=1e-3)
    lit = stimulus.movie.flatten(1).any(1).nonzero()[:, 0]
    sweep = times(stimulus, f"{direction:g} degrees")
    assert sweep[0] == 40
    assert abs(int(lit[0]) - sweep[0]) <= 1
    assert 0 <= sweep[-1] - int(lit[-1]) <= 2


def test_bar_in_oblique_directions() -> None:
    there, back = (moving_bar(direction=angle, size=20).movie for angle in (45.0, 225.0))
    assert torch.allclose(there, back.flip(1, 2), atol=1e-5)
    assert torch.allclose(there, there.transpose(1, 2), atol=1e-5)


def test_bar_that_reverses() -> None:
    stimulus = reversal(size=30, width=4.0, pixels_per_second=50.0)
    place = centre(stimulus, 2)
    turn = times(stimulus, "forth")[-1]
    assert float(place[turn]) == pytest.approx(0.0, abs=1e-4)
    assert times(stimulus, "reversal") == [turn + 1] == times(stimulus, "back")[:1]
    around = slice(turn - 8, turn + 9)
    wanted = -0.5 * (torch.arange(17) - 8).abs()
    assert torch.allclose(place[around], wanted, atol=1e-4)
    assert torch.allclose(
        stimulus.movie, stimulus.movie[list(range(2 * turn, 2 * turn - len(place), -1))]
    )
    assert not bool(stimulus.movie[[0, 39, -40, -1]].any())
    assert float(stimulus.movie.min()) == pytest.approx(-1.0)


# --- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (white_noise, {"n_frames": 0}, "n_frames must be above 0 and finite; got 0"),
        (white_noise, {"contrast": math.nan}, "contrast must be above 0 and finite; got nan"),
        (white_noise, {"checker": 0}, "checker must be above 0"),
        (white_noise, {"frames_per_pattern": 0}, "frames_per_pattern must be above 0"),
        (white_noise, {"kind": "pink"}, "kind must be one of binary, gaussian; got 'pink'"),
        (natural_movie, {"jitter": -1.0}, "jitter must be at least 0 and finite; got -1.0"),
        (natural_movie, {"n_images": 0}, "n_images must be above 0"),
        (natural_movie, {"saccade_seconds": 0.0}, "saccade_seconds must be at least one frame"),
        (flashes, {"contrast": -1.5}, r"contrast must be -1 \(dark\) or more, and not 0; got -1.5"),
        (flashes, {"on_seconds": 0.001}, "on_seconds must be at least one frame of 0.01 s; got"),
        (flashes, {"seconds_per_frame": 0.0}, "seconds_per_frame must be above 0"),
        (omitted_stimulus, {"flash_seconds": 0.1}, "flash shorter than the period; got 3, 10 and"),
        (omitted_stimulus, {"n_after": -1}, "expected n_after of 0 or more"),
        (moving_bar, {"width": 0.0}, "width must be above 0"),
        (contrast_steps, {"contrasts": ()}, "expected at least one contrast; got none"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_options(make, options, message) -> None:
    with pytest.raises(OptionError, match=message):
        make(**options)
