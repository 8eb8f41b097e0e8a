"""Maps of an input: the part through which a mode's units move the target.

`mode_map` draws one batch, `site_maps` the leading modes of a site, which `leading` chooses.
Imports `modes` and what lies below.
"""

from condec.explain.leading import (
    ALIKE,
    LEAST_USERS,
    copies,
    held_out_users,
    held_out_value,
    leading_modes,
    strongest_units,
)
from condec.explain.mode import ModeMap, mode_map
from condec.explain.site import SiteMaps, site_maps

__all__ = [
    "ALIKE", "LEAST_USERS", "ModeMap", "SiteMaps", "copies", "held_out_users", "held_out_value",
    "leading_modes", "mode_map", "site_maps", "strongest_units",
]  # fmt: skip
