"""Figures: one function for every result, from its record or table to a matplotlib Figure.

They look as `condec.figures` says, whose names stand here as well. All refuse, by a DataError, to
draw nothing. A new figure is a function in the file of its subject.
"""

from condec.figures import (
    as_picture,
    draw_maps,
    mode_map_figure,
    rankings_in,
    save_figure,
    shows_signs,
    smoothing,
)
from condec.report.figures.curves import IMAGES, auc_figure, control_figure
from condec.report.figures.dictionaries import (
    correlation_heatmap_figure,
    correlation_histogram_figure,
    density_figure,
    meaning_figure,
    stability_figure,
    training_history_figure,
)
from condec.report.figures.pareto import pareto_figure
from condec.report.figures.side_effects import (
    control_matrix_figure,
    interactions_figure,
    steering_figure,
    superclass_figure,
)
from condec.report.figures.sites import completeness_figure, layer_statistics_figure

__all__ = [
    "IMAGES", "as_picture", "auc_figure", "completeness_figure", "control_figure",
    "control_matrix_figure",
    "correlation_heatmap_figure", "correlation_histogram_figure", "density_figure", "draw_maps",
    "interactions_figure", "layer_statistics_figure", "meaning_figure", "mode_map_figure",
    "pareto_figure",
    "rankings_in", "save_figure", "shows_signs", "smoothing", "stability_figure",
    "steering_figure", "superclass_figure", "training_history_figure",
]  # fmt: skip
