"""How figures look, and pictures of inputs: what every room may draw with.

One visual language throughout. Colours are those of Okabe and Ito, told apart by colour-blind
readers: blue for contributions, orange for activations; blue for units ranked by modes, green
by mean contribution, grey at random; vermilion for what raises the target, violet for what
lowers it; rose for shuffled labels. Dashed lines are what the solid ones compare with: the network
with random weights. Lines are named where they end and the unit of an axis stands under the title.

Figures are made without pyplot, so nothing global changes, and `save_figure` writes the same
bytes every time. `style` has colours, titles and names, `pixels` maps over pictures. Imports
`basis` only, and matplotlib: so rooms below `report` import it inside the functions that draw.
"""

from condec.figures.pixels import as_picture, draw_maps, mode_map_figure, shows_signs, smoothing
from condec.figures.style import rankings_in, save_figure

__all__ = [
    "as_picture", "draw_maps", "mode_map_figure", "rankings_in", "save_figure", "shows_signs",
    "smoothing",
]  # fmt: skip
