"""Parts of stimuli: natural images and the gaze on them, bars, discs."""

import math
from typing import Final

import torch
from torch import Tensor

FINE: Final = 2
"""Points of a natural image for each pixel, so that drifting between pixels hardly blurs it."""


def natural_images(number: int, side: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Draw periodic images of standard deviation 1 whose power falls as frequency**-exponent.

    `side` is in pixels; there are several points a pixel, but nothing finer than a pixel shows.
    """
    noise = torch.randn(number, FINE * side, FINE * side, generator=generator)
    along = torch.fft.fftfreq(FINE * side) * FINE  # cycles a pixel
    gain = torch.hypot(along[:, None], along).clamp(min=1 / side) ** (-exponent / 2)
    gain *= (along.abs()[:, None] <= 0.5) & (along.abs() <= 0.5)
    gain[0, 0] = 0.0
    images: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) * gain).real
    return images / images.std((1, 2), keepdim=True, correction=0)


def seen(image: Tensor, gaze: Tensor, size: int) -> Tensor:
    """Return the field with its corner at pixel `gaze` (y, x), linear between image points."""
    fine = gaze * FINE
    first = fine.floor()
    in_y, in_x = (float(part) for part in fine - first)
    y, x = ((int(start) + FINE * torch.arange(size)) % len(image) for start in first)
    rows = image[y] * (1 - in_y) + image[(y + 1) % len(image)] * in_y
    left, right = rows[:, x], rows[:, (x + 1) % len(image)]
    return left * (1 - in_x) + right * in_x


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Return the distances of the pixels from the centre along y and x."""
    along = torch.arange(size) - (size - 1) / 2
    return along[:, None], along[None]


def disc(size: int, radius: float | None) -> Tensor:
    """Return the share of every pixel that a disc in the centre covers; None: the whole field."""
    if radius is None:
        return torch.ones(size, size)
    y, x = _grid(size)
    return (radius + 0.5 - torch.hypot(y, x)).clamp(0.0, 1.0)


def bars(places: Tensor, size: int, width: float, direction: float) -> Tensor:
    """Return shares of pixels that a bar covers with its centre at each place along `direction`."""
    y, x = _grid(size)
    angle = math.radians(direction)
    along = x * math.cos(angle) + y * math.sin(angle)
    away = (along - places[:, None, None]).abs()
    return ((width + 1) / 2 - away).clamp(0.0, min(1.0, width))


def reach(size: int, width: float, direction: float) -> float:
    """Return how far from the centre a bar is just out of sight."""
    angle = math.radians(direction)
    corner = (abs(math.cos(angle)) + abs(math.sin(angle))) * (size - 1) / 2
    return corner + (width + 1) / 2
