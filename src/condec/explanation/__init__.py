"""Seeing one input: its output as a sum of modes, and where in the input each of them looks.

`explain` divides contributions among modes (`shares`), `check` takes parts away again. `graph`
leads from the modes of one site to those of the next (`segments`), `flow` for several inputs.
`mode_map` maps units of one batch, `site_maps` the leading modes of a site, as `leading` chooses;
`find_shortcuts` tries whether the place of a map decides by itself.
Imports `modes` and what lies below.
"""

from condec.explanation.check import PartCheck
from condec.explanation.examples import EXAMPLES, ExampleKind, example_rows
from condec.explanation.graph import Graph
from condec.explanation.input_map import InputMaps
from condec.explanation.kept import ExplainedInput, keep
from condec.explanation.leading import (
    ALIKE,
    LEAST_USERS,
    copies,
    held_out_users,
    held_out_value,
    leading_modes,
    strongest_units,
)
from condec.explanation.mode import ModeMap, mode_map
from condec.explanation.one_input import Explanation, explain
from condec.explanation.parts import Part, SiteExplanation
from condec.explanation.several_inputs import flow
from condec.explanation.shares import Shares
from condec.explanation.shortcuts import Shortcuts, find_shortcuts
from condec.explanation.site import SiteMaps, site_maps

__all__ = [
    "ALIKE", "EXAMPLES", "LEAST_USERS", "ExampleKind", "ExplainedInput", "Explanation", "Graph",
    "InputMaps", "ModeMap", "Part", "PartCheck", "Shares", "Shortcuts", "SiteExplanation",
    "SiteMaps", "copies", "example_rows", "explain", "find_shortcuts", "flow", "held_out_users",
    "held_out_value", "keep", "leading_modes", "mode_map", "site_maps", "strongest_units",
]  # fmt: skip
