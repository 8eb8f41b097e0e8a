"""Maps of an input: the part through which a mode's units move the target.

`mode_map` draws one batch, `site_maps` the strongest modes of a site. Imports `modes` and what
lies below.
"""

from condec.explain.mode import ModeMap, mode_map
from condec.explain.site import SiteMaps, leading_modes, site_maps, strongest_units

__all__ = ["ModeMap", "SiteMaps", "leading_modes", "mode_map", "site_maps", "strongest_units"]
