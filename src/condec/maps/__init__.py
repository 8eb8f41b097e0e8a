"""Input-space maps: which part of an input drives a mode to drive the target."""

from condec.maps.mode import ModeMap, mode_map
from condec.maps.site import SiteMaps, leading_modes, site_maps, strongest_units

__all__ = ["ModeMap", "SiteMaps", "leading_modes", "mode_map", "site_maps", "strongest_units"]
