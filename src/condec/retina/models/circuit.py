"""A circuit of the retina whose parts are known: four pathways, each behind a gate of its own.

Bipolar subunits tile the centre of the field, two for each pathway (fast and slow). Two
interneurons of a second layer pool each pathway's pair, as far as a wide-field amacrine cell lets
them: it is active in grey light and silenced by light in its own quadrant of the periphery.
Ganglion cells draw on one pathway, or on an ON and an OFF one, so that their receptive fields
change sign when gates switch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condec.basis.errors import OptionError
from condec.models import LoadedModel, refuse_weights

HISTORY: Final = 16
SIZE: Final = 24
"""Pixels of the field along y and x."""
BORDER: Final = 4
"""Pixels of periphery on every side."""
N_CELLS: Final = 12
PATHWAYS: Final = ("ON small", "OFF small", "ON wide", "OFF wide")
POLARITY: Final = (1, -1, 1, -1)
"""Of each pathway: 1 where light excites it."""

_SIGMA: Final = (0.7, 0.7, 1.2, 1.2)
_SIDE1, _SIDE2 = 7, 3
_N_CHANNELS: Final = 2 * len(PATHWAYS)
_MAP: Final = SIZE - 2 * BORDER - (_SIDE1 - 1) - (_SIDE2 - 1)
_LATENCY: Final = (2.0, 4.0)
"""Frames to the peak: of the fast and of the slow subunit."""
_MIXING: Final = ((0.75, 0.25), (0.25, 0.75))
"""Shares that the two interneurons of a pathway take from its fast and its slow subunit."""
_THRESHOLD1, _THRESHOLD2 = 0.2, 0.1
_GAIN, _BIAS = 8.0, -1.0
_POOL: Final = 2.0
"""Width of the area that a ganglion cell pools, in places of the second layer."""
_SLOPE: Final = 16.0
_N_RECENT: Final = 4
"""Frames over which an amacrine cell averages light."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """Connections of a circuit, pathway by pathway.

    `subunits` and `interneurons` are its two channels of the first and of the second layer;
    `quadrants` says where light opens its gate (0 top left, 1 top right, 2 bottom left, 3 bottom
    right). `cells` are the pathways that each ganglion cell draws on.
    """

    subunits: tuple[tuple[int, int], ...]
    interneurons: tuple[tuple[int, int], ...]
    quadrants: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]


class Amacrine(nn.Module):
    r"""Wide-field cells, one for each pathway: active in grey light, silenced by light.

    .. math:: a_p = \sigma(-k (L_p - \theta)),

    with the mean light :math:`L_p` of the quadrant's periphery over the last frames, which are
    the pixels of `masks` [pathway, y, x], and a threshold :math:`\theta` above 0.
    """

    def __init__(self, masks: Tensor, threshold: float) -> None:
        super().__init__()
        self.masks: Tensor
        self.register_buffer("masks", masks)
        self.threshold = threshold

    def forward(self, clip: Tensor) -> Float[Tensor, "sample pathway"]:
        """Return activity, 0 to 1."""
        light = torch.einsum("spyx,kyx->sk", clip[:, -_N_RECENT:], self.masks) / _N_RECENT
        return torch.sigmoid(-_SLOPE * (light - self.threshold))


class ShuntedConv2d(nn.Conv2d):
    """A convolution whose channels are let through by shares, before its bias."""

    def forward(self, maps: Tensor, shares: Tensor | None = None) -> Tensor:
        """Convolve maps [sample, channel, y, x]; shares [sample, channel out] scale the result."""
        drive = nn.functional.conv2d(maps, self.weight)
        drive = drive if shares is None else drive * shares[:, :, None, None]
        return drive if self.bias is None else drive + self.bias[:, None, None]


class RetinaCircuit(nn.Module):
    """Clips [sample, 16, 24, 24], oldest frame first, to rates [sample, 12]; sites as in a network.

    ``conv1``, ``relu1``: 8 subunits on maps of 10 x 10; ``conv2``, ``relu2``: 8 interneurons on
    maps of 8 x 8, gated; ``readout`` and ``rate``: ganglion cells. Zero is grey light: every
    gate is closed there.

    Attributes
    ----------
    wiring : Wiring
    """

    def __init__(self, wiring: Wiring, amacrine: Amacrine) -> None:
        super().__init__()
        self.wiring = wiring
        self.conv1 = nn.Conv2d(HISTORY, _N_CHANNELS, _SIDE1)
        self.relu1 = nn.ReLU()
        self.amacrine = amacrine
        self.conv2 = ShuntedConv2d(_N_CHANNELS, _N_CHANNELS, _SIDE2)
        self.relu2 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.readout = nn.Linear(_N_CHANNELS * _MAP**2, N_CELLS)
        self.rate = nn.Softplus()
        pathway_of = torch.empty(_N_CHANNELS, dtype=torch.int64)
        for pathway, channels in enumerate(wiring.interneurons):
            pathway_of[list(channels)] = pathway
        self.pathway_of: Tensor
        self.register_buffer("pathway_of", pathway_of)

    def gates(self, clip: Tensor) -> Float[Tensor, "sample pathway"]:
        """Return the share of each pathway that its amacrine cell lets through, 0 to 1."""
        let_through: Tensor = 1 - self.amacrine(clip)
        return let_through

    def forward(self, clip: Tensor) -> Float[Tensor, "sample cell"]:
        """Return rates, above 0."""
        centre = clip[:, :, BORDER:-BORDER, BORDER:-BORDER]
        subunits = self.relu1(self.conv1(centre))
        interneurons = self.relu2(self.conv2(subunits, self.gates(clip)[:, self.pathway_of]))
        rates: Tensor = self.rate(self.readout(self.flatten(interneurons)))
        return rates


def standard_circuit(seed: int = 0) -> RetinaCircuit:
    """Build the circuit of the benchmarks; the same for the same seed.

    Each pathway has one of its own 4 ganglion cells, and each pair of an ON and an OFF pathway
    two. The seed decides filters, thresholds of the gates, weights and places of ganglion cells,
    the order of channels and cells, and which quadrant opens which gate. Within a pathway, both
    channels have the same weights on ganglion cells and filters of the same length.
    """
    generator = torch.Generator().manual_seed(seed)
    wiring = _wiring(generator)
    masks = _quadrants()[list(wiring.quadrants)]
    with torch.random.fork_rng(devices=[]):
        circuit = RetinaCircuit(wiring, Amacrine(masks, _vary(0.5, generator)))
    with torch.no_grad():
        _set_subunits(circuit, generator)
        _set_interneurons(circuit, generator)
        _set_cells(circuit, generator)
    return circuit.eval()


def load_circuit(
    rest: str = "", weights: str | Path | None = None, *, folder: str | Path = "."
) -> LoadedModel:
    """Load ``circuit`` or ``circuit:SEED`` for `condec.models.load_model`; it has no weights."""
    if rest and not rest.isdecimal():
        raise OptionError(f"model 'circuit:{rest}': expected 'circuit' or 'circuit:SEED'")
    refuse_weights("circuit", weights)
    seed = int(rest or 0)
    names = tuple(str(cell) for cell in range(N_CELLS))
    name = f"circuit:{seed}" if seed else "circuit"
    return LoadedModel(standard_circuit(seed), name, (HISTORY, SIZE, SIZE), None, names)


# --- parts --------------------------------------------------------------------------------------


def _wiring(generator: torch.Generator) -> Wiring:
    def pairs() -> tuple[tuple[int, int], ...]:
        order = torch.randperm(_N_CHANNELS, generator=generator).view(-1, 2).tolist()
        return tuple((fast, slow) for fast, slow in order)

    on = [p for p, sign in enumerate(POLARITY) if sign > 0]
    off = [p for p, sign in enumerate(POLARITY) if sign < 0]
    subsets = [(p,) for p in range(len(PATHWAYS))] + 2 * [(a, b) for a in on for b in off]
    order = torch.randperm(N_CELLS, generator=generator).tolist()
    subunits, interneurons = pairs(), pairs()
    quadrants = torch.randperm(len(PATHWAYS), generator=generator).tolist()
    return Wiring(subunits, interneurons, tuple(quadrants), tuple(subsets[i] for i in order))


def _vary(value: float, generator: torch.Generator, share: float = 0.15) -> float:
    """Draw a number evenly within a share of the value, on either side."""
    return value * (1 + share * (2 * float(torch.rand((), generator=generator)) - 1))


def _quadrants() -> Tensor:
    """Average over the periphery of each quadrant, [quadrant, y, x]."""
    half = SIZE // 2
    masks = torch.zeros(4, SIZE, SIZE)
    for quadrant, mask in enumerate(masks):
        y, x = half * (quadrant // 2), half * (quadrant % 2)
        mask[y : y + half, x : x + half] = 1
    masks[:, BORDER:-BORDER, BORDER:-BORDER] = 0
    shares: Tensor = masks / masks.sum((1, 2), keepdim=True)
    return shares


def _gaussian(side: int, sigma: float, y: float, x: float) -> Tensor:
    """Return a Gaussian of sum 1 about a place, [y, x]."""
    along = torch.arange(side, dtype=torch.float64)
    bump = torch.exp(-((along - y)[:, None].square() + (along - x).square()) / (2 * sigma**2))
    shares: Tensor = bump / bump.sum()
    return shares


def _temporal(latency: float, rebound: float) -> Tensor:
    """Make a lobe with its peak `latency` frames ago, and before it a smaller, opposite one."""
    ago = torch.arange(HISTORY - 1, -1, -1, dtype=torch.float64)
    early, late = ago / latency, ago / (2.0 * latency)
    return (early * (1 - early).exp()) ** 4 - rebound * (late * (1 - late).exp()) ** 4


def _set_subunits(circuit: RetinaCircuit, generator: torch.Generator) -> None:
    """Set filters of length 1: to white noise of standard deviation 1, all vary alike."""
    middle = (_SIDE1 - 1) / 2
    for pathway, channels in enumerate(circuit.wiring.subunits):
        sigma, surround = _vary(_SIGMA[pathway], generator), _vary(0.8, generator)
        # A centre less a surround of twice its width.
        picture = _gaussian(_SIDE1, sigma, middle, middle)
        picture = picture - surround * _gaussian(_SIDE1, 2 * sigma, middle, middle)
        for channel, latency in zip(channels, _LATENCY, strict=True):
            course = _temporal(_vary(latency, generator), _vary(0.4, generator))
            kernel = POLARITY[pathway] * course[:, None, None] * picture
            circuit.conv1.weight[channel] = kernel / torch.linalg.vector_norm(kernel)
    nn.init.constant_(circuit.conv1.get_parameter("bias"), -_THRESHOLD1)


def _set_interneurons(circuit: RetinaCircuit, generator: torch.Generator) -> None:
    circuit.conv2.weight.zero_()
    wiring, middle = circuit.wiring, (_SIDE2 - 1) / 2
    for sources, targets in zip(wiring.subunits, wiring.interneurons, strict=True):
        pool = _gaussian(_SIDE2, _vary(1.0, generator), middle, middle)
        for target, shares in zip(targets, _MIXING, strict=True):
            for source, share in zip(sources, shares, strict=True):
                circuit.conv2.weight[target, source] = share * pool
    nn.init.constant_(circuit.conv2.get_parameter("bias"), -_THRESHOLD2)


def _set_cells(circuit: RetinaCircuit, generator: torch.Generator) -> None:
    weight = torch.zeros(N_CELLS, _N_CHANNELS, _MAP, _MAP)
    margin = (_MAP - 1) / 4
    for cell, pathways in enumerate(circuit.wiring.cells):
        y, x = (margin + 2 * margin * torch.rand(2, generator=generator)).tolist()
        for pathway in pathways:
            pool = _gaussian(_MAP, _vary(_POOL, generator), y, x)
            gain = _vary(_GAIN, generator, 0.25)
            for channel in circuit.wiring.interneurons[pathway]:
                weight[cell, channel] = gain * pool
    circuit.readout.weight.copy_(weight.flatten(1))
    circuit.readout.bias.fill_(_BIAS)
