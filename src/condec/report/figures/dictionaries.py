"""Figures of one dictionary: how often its modes are used, and whether other fits find them."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from condec.basis.errors import DataError
from condec.dictionary.measure.quality import DENSITY_BINS
from condec.report.figures.style import (
    CONTRIBUTION,
    SHUFFLED,
    draw_shares,
    list_names,
    panels,
    styled,
    title,
)

_GREEN: Final = "#009E73"
_GREY: Final = "#8A8F96"


def density_figure(density: Mapping[str, Float[Tensor, " mode"]]) -> Figure:
    """How many modes are used by how many inputs; dead ones stand apart on the left.

    Bins are half a power of ten each, as in `condec.dictionary.Quality.density_histogram`.

    Parameters
    ----------
    density : mapping of str to Tensor of shape [mode]
        Share of the inputs of a split that use each mode, 0 for dead ones; one or two splits.

    Raises
    ------
    DataError
        There are no modes, or more than two splits.
    """
    shares = {name: values.double().numpy() for name, values in density.items()}
    if not 1 <= len(shares) <= 2 or not all(len(values) for values in shares.values()):
        raise DataError(
            "density_figure: expected the densities of one or two splits, of at least one mode "
            f"each; got {', '.join(f'{k}: {len(v)}' for k, v in shares.items()) or 'none'}"
        )
    inner = np.array(DENSITY_BINS[1:-1])
    heights = {}
    for name, values in shares.items():
        # Rounded: a hundredth in float32 is just below -2.
        place = np.digitize(np.log10(values[values > 0]).round(6), inner)
        counts = np.bincount(place, minlength=len(inner) + 1)
        heights[name] = np.concatenate([[np.sum(values == 0), 0], counts])
    first = min(
        int(np.flatnonzero(h[2:])[0]) if h[2:].any() else len(inner) for h in heights.values()
    )
    with styled():
        figure, (axis,) = panels(1, height=2.5)
        title(axis, "Density", "number of modes by the share of the inputs that use them")
        colours = (_GREY, CONTRIBUTION)[-len(heights) :]
        width = 0.84 / len(heights)
        for number, (counts, colour) in enumerate(zip(heights.values(), colours, strict=True)):
            kept = np.concatenate([counts[:2], counts[2 + first :]])
            x = np.arange(len(kept)) + (number - (len(heights) - 1) / 2) * width
            axis.bar(x, kept, width * 0.94, color=colour)
        edges = np.array(DENSITY_BINS[first:])
        whole = [(place, edge) for place, edge in enumerate(edges) if edge == round(edge)]
        axis.set_xticks(
            [0, *(place + 1.5 for place, _ in whole)],
            ["dead", *(f"{100 * 10.0**edge:g} %" for _, edge in whole)],
        )
        axis.set_xlim(-0.6, len(edges) + 0.6)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.set_xlabel("share of the inputs, logarithmic")
        list_names(axis, list(zip(heights, colours, strict=True)))
    return figure


def stability_figure(
    seeds: Float[Tensor, " mode"], halves: Float[Tensor, " mode"], chance: Float[Tensor, " mode"]
) -> Figure:
    """How well modes are found again: by other seeds, on either half of the data, by chance.

    Parameters
    ----------
    seeds, halves, chance : Tensor of shape [mode]
        `seed_cosine`, `half_cosine` and `chance` of a `Stability`; NaN for dead modes.

    Raises
    ------
    DataError
        No mode has values.
    """
    named = {"other seeds": seeds, "half the data": halves, "chance": chance}
    kept = {name: values.numpy()[np.isfinite(values.numpy())] for name, values in named.items()}
    if not all(len(values) for values in kept.values()):
        raise DataError("stability_figure: every mode is dead; nothing to draw")
    edges = np.linspace(min(0.0, *(float(values.min()) for values in kept.values())), 1, 31)
    with styled():
        figure, (axis,) = panels(1, height=2.5)
        title(axis, "Stability", "cosine of each mode with its partner in another fit")
        draw_shares(axis, edges, kept, (CONTRIBUTION, _GREEN, SHUFFLED))
        axis.set_xlabel("cosine")
    return figure
