"""The three-layer network of the retina, in every variant that published models have.

Convolutions over the frames of a clip, as linear interneurons; after each a normalisation, noise
(in training) and a rectifier; then a readout of ganglion cells, a normalisation and a positive
rate (McIntosh et al. 2016; Maheswaranathan et al. 2023). Sites ``conv1``, ``relu1``, ``conv2``,
``relu2``, ``conv3`` exist in all variants; the paper's contributions are those at ``conv*``.

>>> network = RetinaNetwork(RetinaLayout(n_cells=4)).eval()
>>> network(torch.zeros(1, 40, 50, 50)).shape
torch.Size([1, 4])
>>> network.layout.maps
((36, 36), (26, 26), (16, 16))
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from condec.basis.checks import at_least, one_of
from condec.basis.errors import ModelError, OptionError
from condec.basis.options import Option

Norm = Literal["channel", "unit", "none"]
Readout = Literal["one-hot", "grabbed", "linear"]
Rate = Literal["softplus", "exp"]
Positions = tuple[tuple[int, int], ...]

EPS: Final = 1e-3
"""Added to variances by normalisation, in all published models."""
_NAME: Final = "RetinaLayout"
_LARGEST: Final = 10_000
"""Most frames, pixels along a side, channels and cells of a network in a file."""


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
        n_hidden, grabbed = len(self.channels), self.readout == "grabbed"
        lengths = {
            "stack": n_hidden, "stack_channels": n_hidden,
            "kernels": n_hidden + (self.readout != "linear"),
            "positions": self.n_cells if grabbed else 0,
        }  # fmt: skip
        for name, n in lengths.items():
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise OptionError(
                    f"{_NAME}: expected {n} {name} for {n_hidden} hidden convolutions and a "
                    f"{self.readout} readout of {self.n_cells} cells; got {value}"
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
        height, width = self.maps[-1]
        if min(height, width) < 1:
            raise OptionError(
                f"{_NAME}: kernels {self.kernels} are too large for frames of "
                f"{self.image_shape[1]} x {self.image_shape[2]}: maps would be {self.maps}"
            )
        if any(not (-height <= y < height and -width <= x < width) for y, x in self.positions):
            raise OptionError(
                f"{_NAME}: positions {self.positions} are outside the last map of {height} x "
                f"{width}"
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


class RetinaNetwork(nn.Module):
    """From a clip of a movie to the rates of ganglion cells.

    Children run in this order: ``conv1``, ``norm1``, ``noise1``, ``relu1``, ``conv2``, ...,
    ``conv3``; then, by the readout, ``norm3``, ``rate``, ``readout`` (one-hot) or ``readout``,
    ``norm3``, ``rate``; then ``exponential`` where the layout wants one.
    """

    def __init__(self, layout: RetinaLayout) -> None:
        super().__init__()
        self.layout = layout
        n_inputs, last = layout.image_shape[0], len(layout.channels) + 1
        for number, n_channels in enumerate(layout.channels, 1):
            self.add_module(f"conv{number}", _hidden(layout, number - 1, n_inputs))
            if layout.norm != "none":
                self.add_module(f"norm{number}", _norm(layout, number - 1))
            self.add_module(f"noise{number}", GaussianNoise(layout.noise))
            self.add_module(f"relu{number}", nn.ReLU())
            n_inputs = n_channels
        # A linear readout is a convolution whose kernel is the whole map.
        kernel = layout.maps[-1] if layout.readout == "linear" else layout.kernels[-1]
        conv = nn.Conv2d(n_inputs, layout.n_cells, kernel, bias=layout.last_bias)
        self.add_module(f"conv{last}", conv)
        pooled = layout.readout == "one-hot"
        if not pooled:
            self.readout: nn.Module = nn.Flatten()
            if layout.readout == "grabbed":
                self.readout = GrabbedUnits(layout.positions)
        if layout.last_norm:
            self.add_module(f"norm{last}", _batch_norm(layout, layout.n_cells, flat=not pooled))
        self.rate = nn.Softplus() if layout.rate == "softplus" else Exponential()
        if pooled:
            self.readout = OneHotReadout(layout.n_cells, *layout.maps[-1])
        if layout.exponential:
            self.exponential = Exponential()

    def forward(self, clip: Float[Tensor, "sample history y x"]) -> Float[Tensor, "sample cell"]:
        """Return the rates of all cells from the frames before, oldest first."""
        x = clip
        for child in self.children():
            x = child(x)
        return x


class StackedConv2d(nn.Sequential):
    """Make one linear convolution of several smaller ones, with nothing nonlinear between them.

    With kernels of side s, (K - s) / (s - 1) + 1 of them make one of side K; where that is no
    whole number, the last is smaller. Only the last has a bias. There are `between` channels
    between them, by default `n_outputs`, of which `dropout` are dropped in training.
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, kernel: int, side: int, *,
        between: int | None = None, bias: bool = True, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        sides = [side] * ((kernel - 1) // (side - 1))
        if (kernel - 1) % (side - 1):
            sides.append((kernel - 1) % (side - 1) + 1)
        n_between = n_outputs if between is None else between
        widths = [n_inputs, *[n_between] * (len(sides) - 1), n_outputs]
        parts: list[nn.Module] = []
        for place, (n_in, n_out) in enumerate(pairwise(widths)):
            if place and dropout > 0.0:
                parts.append(nn.Dropout(dropout))
            ends = place == len(sides) - 1
            parts.append(nn.Conv2d(n_in, n_out, sides[place], bias=bias and ends))
        super().__init__(*parts)


class AbsBatchNorm(_BatchNorm):
    r"""Normalise over batches without flipping a sign.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} |w| + b
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return [sample, feature] or [sample, feature, y, x] as it came."""
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the mean over all batches, as in torch's own
                momentum = 1 / int(self.num_batches_tracked)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight.abs(), self.bias, self.training,
            momentum or 0.0, self.eps,
        )  # fmt: skip


class GaussianNoise(nn.Module):
    """Add independent noise of standard deviation `std` in training; else change nothing."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std: Tensor
        self.register_buffer("std", torch.full((1,), std))

    def forward(self, x: Tensor) -> Tensor:
        """Return any shape as it came."""
        return x + self.std * torch.randn_like(x) if self.training else x


class OneHotReadout(nn.Module):
    r"""Read each cell as a weighted mean over the places of its own map.

    :math:`p = (w - \min w) / \sum (w - \min w)`, so weights are at least 0 and add up to 1.
    """

    def __init__(self, n_cells: int, height: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(n_cells, height * width))

    def reset_parameters(self) -> None:
        """Draw the weights again, evenly between 0 and 1."""
        nn.init.uniform_(self.w)

    @property
    def places(self) -> Float[Tensor, "cell place"]:
        """Return the share of every place of the map, row by row."""
        above = self.w - self.w.amin(1, keepdim=True)
        return above / above.sum(1, keepdim=True)

    def forward(self, maps: Float[Tensor, "sample cell y x"]) -> Float[Tensor, "sample cell"]:
        """Return the mean of each map."""
        return (maps.flatten(2) * self.places).sum(2)


class GrabbedUnits(nn.Module):
    """Read each cell at one place (row, column) of its own map."""

    def __init__(self, positions: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        rows, columns = torch.tensor(positions).T
        self.rows: Tensor
        self.columns: Tensor
        # They are of the layout, not of what was learnt.
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.contiguous(), persistent=False)

    def forward(self, maps: Float[Tensor, "sample cell y x"]) -> Float[Tensor, "sample cell"]:
        """Return the unit of each cell."""
        cells = torch.arange(len(self.rows), device=maps.device)
        return maps[:, cells, self.rows, self.columns]


class Exponential(nn.Module):
    """The exponential, as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Return any shape as it came."""
        return x.exp()


@dataclass(frozen=True, eq=False, kw_only=True)
class RetinaCheckpoint:
    """A trained network and what is known about it.

    Attributes
    ----------
    network : RetinaNetwork
        In evaluation mode, on the CPU.
    cells : tuple of str
        Name of every ganglion cell, as in the recording.
    scaling : (float, float), or None
        Mean and standard deviation of the training movie, which movies must have taken out.
    dataset, stim_type : str, or None
        Recording, and kind of movie, that it was trained on.
    """

    network: RetinaNetwork
    cells: tuple[str, ...]
    scaling: tuple[float, float] | None = None
    dataset: str | None = None
    stim_type: str | None = None

    @property
    def layout(self) -> RetinaLayout:
        """Return the layout of the network."""
        return self.network.layout


def network_for(layout: RetinaLayout, state: Mapping[str, Tensor]) -> RetinaNetwork:
    """Make the network of a file; ModelError, before memory is taken, for one that it cannot fill.

    `layout` and the tensors `state` come from one file, of which either may be damaged.
    """
    sizes = (*layout.image_shape, *layout.channels, layout.n_cells)
    if max(sizes) > _LARGEST:
        raise ModelError(f"a layout of sizes {sizes}; expected {_LARGEST:,} at most")
    with torch.device("meta"):
        wanted = sum(each.numel() for each in RetinaNetwork(layout).state_dict().values())
    given = sum(tensor.numel() for tensor in state.values())
    if wanted > 2 * given + 1_000 * _LARGEST:
        raise ModelError(f"a layout of {wanted:,} numbers; its tensors are {given:,}")
    return RetinaNetwork(layout).eval()


def fill(what: str, network: RetinaNetwork, state: Mapping[str, Tensor]) -> None:
    """Load tensors by name into a network; ModelError where they do not fit its layout."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{what} do not fit the layout: {reason}") from error


# --- parts --------------------------------------------------------------------------------


def _hidden(layout: RetinaLayout, place: int, n_inputs: int) -> nn.Module:
    kernel, n_outputs = layout.kernels[place], layout.channels[place]
    if layout.stack is None:
        return nn.Conv2d(n_inputs, n_outputs, kernel, bias=layout.bias)
    between = (layout.stack_channels or layout.channels)[place]
    return StackedConv2d(
        n_inputs, n_outputs, kernel, layout.stack[place], between=between, bias=layout.bias,
        dropout=layout.dropout,
    )  # fmt: skip


def _norm(layout: RetinaLayout, place: int) -> nn.Module:
    shape = (layout.channels[place], *layout.maps[place])
    if layout.norm == "channel":
        return _batch_norm(layout, shape[0], flat=False)
    units = _batch_norm(layout, math.prod(shape), flat=True)
    parts = OrderedDict(flatten=nn.Flatten(), units=units, unflatten=nn.Unflatten(1, shape))
    return nn.Sequential(parts)


def _batch_norm(layout: RetinaLayout, n_features: int, *, flat: bool) -> _BatchNorm:
    if layout.absolute:
        return AbsBatchNorm(n_features, EPS, layout.momentum)
    kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
    return kind(n_features, EPS, layout.momentum)
