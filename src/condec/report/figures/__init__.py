"""Figures: one function for every result, from its record or table to a matplotlib Figure.

One visual language throughout. Colours are those of Okabe and Ito, told apart by colour-blind
readers: blue for contributions, orange for activations; blue for units ranked by modes, green
by mean contribution, grey at random; vermilion for what raises the target, violet for what
lowers it; rose for shuffled labels. Dashed lines are what the solid ones compare with: other
labels' images, the network with random weights. Lines are named where they end and the unit of
an axis stands under the title.

Figures are made without pyplot, so nothing global changes, and `save_figure` writes the same
bytes every time. All refuse, by a DataError, to draw nothing. This is the only part of condec
that imports matplotlib. A new figure is a function in the file of its subject; `style` has its
colours, titles and names.
"""

from condec.report.figures.curves import auc_figure, control_figure
from condec.report.figures.dictionaries import (
    correlation_heatmap_figure,
    correlation_histogram_figure,
    density_figure,
    stability_figure,
    training_history_figure,
)
from condec.report.figures.pareto import pareto_figure
from condec.report.figures.pixels import (
    as_picture,
    draw_maps,
    mode_map_figure,
    shows_signs,
    smoothing,
)
from condec.report.figures.side_effects import (
    control_matrix_figure,
    interactions_figure,
    steering_figure,
    superclass_figure,
)
from condec.report.figures.sites import completeness_figure, layer_statistics_figure
from condec.report.figures.style import rankings_in, save_figure

__all__ = [
    "as_picture", "auc_figure", "completeness_figure", "control_figure", "control_matrix_figure",
    "correlation_heatmap_figure", "correlation_histogram_figure", "density_figure", "draw_maps",
    "interactions_figure", "layer_statistics_figure", "mode_map_figure", "pareto_figure",
    "rankings_in", "save_figure", "shows_signs", "smoothing", "stability_figure",
    "steering_figure", "superclass_figure", "training_history_figure",
]  # fmt: skip
