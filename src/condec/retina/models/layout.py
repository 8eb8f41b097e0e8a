"""Sizes and parts of networks of the retina, in every variant that published models have."""

from dataclasses import dataclass
from typing import Final, Literal

from condec.basis.checks import at_least, one_of
from condec.basis.errors import OptionError
from condec.basis.options import Option

Norm = Literal["channel", "unit", "none"]
Readout = Literal["one-hot", "grabbed", "linear"]
Rate = Literal["softplus", "exp"]
Positions = tuple[tuple[int, int], ...]

EPS: Final = 1e-3
"""Added to variances by normalisation, in all published models."""
_NAME: Final = "RetinaLayout"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetinaLayout(Option):
    """Sizes and parts of a `RetinaNetwork`.

    Parameters
    ----------
    n_cells : int
        Ganglion cells.
    image_shape : (int, int, int)
        Frames of the history, and height and width of a frame.
    channels : tuple of int
        Of each hidden convolution.
    kernels : tuple of int
        Side of the kernel of each hidden convolution and of the last, which has one channel a
        cell; a linear readout has no last one.
    stack, stack_channels : tuple of int, optional
        Build each hidden convolution of smaller ones with kernels of this side, nothing
        nonlinear between them, and so many channels (by default those that come out). None:
        plain convolutions.
    dropout : float
        Probability with which numbers between the smaller ones are dropped in training.
    bias, last_bias : bool
        Give the hidden convolutions, and the last one, a bias.
    norm : {"channel", "unit", "none"}
        Normalise each channel over its map, or every unit of a map by itself.
    last_norm : bool
        Normalise the numbers of the readout, cell by cell.
    absolute : bool
        Normalisation multiplies by the absolute value of its weight, so that no sign flips.
    momentum : float
        Share of a new batch in the running statistics of normalisation.
    noise : float
        Standard deviation of the noise before each rectifier, in training.
    readout : {"one-hot", "grabbed", "linear"}
        ``one-hot``: each cell is a weighted mean of its map, after the rate. ``grabbed``: each
        cell is one place of its map. ``linear``: all units of the last hidden layer.
    positions : tuple of (int, int)
        Row and column of each cell in its map, for ``grabbed``; negative ones count from the
        end. Place j sees the pixels j to j + r, where r is the sum of all (kernel - 1).
    rate : {"softplus", "exp"}
        Makes the rate positive; `exponential` adds one more exponential at the end.

    Raises
    ------
    OptionError
        Numbers that do not fit each other, kernels larger than their map, unknown names.
    """

    n_cells: int
    image_shape: tuple[int, int, int] = (40, 50, 50)
    channels: tuple[int, ...] = (8, 8)
    kernels: tuple[int, ...] = (15, 11, 11)
    stack: tuple[int, ...] | None = (3, 3)
    stack_channels: tuple[int, ...] | None = None
    dropout: float = 0.0
    bias: bool = True
    last_bias: bool = True
    norm: Norm = "channel"
    last_norm: bool = True
    absolute: bool = True
    momentum: float = 0.01
    noise: float = 0.05
    readout: Readout = "one-hot"
    positions: Positions = ()
    rate: Rate = "softplus"
    exponential: bool = False

    def __post_init__(self) -> None:
        for name, known in (("norm", Norm), ("readout", Readout), ("rate", Rate)):
            one_of(_NAME, name, getattr(self, name), known)
        n_hidden = len(self.channels)
        lengths = {"stack": n_hidden, "stack_channels": n_hidden}
        for name, n in (lengths | {"kernels": n_hidden + (self.readout != "linear")}).items():
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise OptionError(
                    f"{_NAME}: expected {n} {name} for {n_hidden} hidden convolutions and a "
                    f"{self.readout} readout; got {value}"
                )
        for name in ("n_cells", "image_shape", "channels", "kernels", "stack_channels"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (1 if value is None else value,)
            if not values or min(values) < 1:
                raise OptionError(f"{_NAME}: {name} must be at least 1; got {value}")
        pairs = zip(self.stack or (), self.kernels, strict=False)
        if any(not 2 <= side <= kernel for side, kernel in pairs):
            raise OptionError(
                f"{_NAME}: stack must be between 2 and the kernel that it builds, "
                f"{self.kernels[: len(self.channels)]}; got {self.stack}"
            )
        at_least(_NAME, 0, noise=self.noise)
        if not 0.0 <= self.dropout < 1.0:
            raise OptionError(f"{_NAME}: dropout must be from 0 to below 1; got {self.dropout}")
        if min(min(side) for side in self.maps) < 1:
            _, height, width = self.image_shape
            raise OptionError(
                f"{_NAME}: kernels {self.kernels} are too large for frames of {height} x {width}: "
                f"maps would be {self.maps}"
            )
        self._check_positions()

    def _check_positions(self) -> None:
        wanted = self.readout == "grabbed"
        if len(self.positions) != (self.n_cells if wanted else 0):
            raise OptionError(
                f"{_NAME}: expected {'one position for each cell' if wanted else 'no positions'} "
                f"with a {self.readout} readout of {self.n_cells} cells; got {len(self.positions)}"
            )
        (height, width), places = self.maps[-1], self.positions
        outside = [(y, x) for y, x in places if not (-height <= y < height and -width <= x < width)]
        if outside:
            raise OptionError(
                f"{_NAME}: positions {outside} are outside the last map of {height} x {width}"
            )

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Return height and width of what each convolution gives."""
        sides, _, height, width = [], *self.image_shape
        for kernel in self.kernels:
            height, width = height - kernel + 1, width - kernel + 1
            sides.append((height, width))
        return tuple(sides)


def bn_cnn(n_cells: int, image_shape: tuple[int, int, int] = (40, 50, 50)) -> RetinaLayout:
    """Return the layout of Maheswaranathan et al. 2023: normalised unit by unit."""
    return RetinaLayout(
        n_cells=n_cells, image_shape=image_shape, channels=(8, 8), kernels=(15, 11), stack=None,
        norm="unit", absolute=False, noise=0.05, readout="linear", last_bias=False,
    )  # fmt: skip


def nips_cnn(n_cells: int, image_shape: tuple[int, int, int] = (40, 50, 50)) -> RetinaLayout:
    """Return the layout of McIntosh et al. 2016: without normalisation."""
    return RetinaLayout(
        n_cells=n_cells, image_shape=image_shape, channels=(16, 8), kernels=(15, 9), stack=None,
        norm="none", last_norm=False, noise=0.1, readout="linear",
    )  # fmt: skip
