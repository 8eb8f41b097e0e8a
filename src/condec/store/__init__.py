"""Contributions of a whole data set on disk, with the recipe that made them, and their twins.

`collect` fills a `Store`, `collect_twin` the same under random weights or shuffled labels;
`layer_statistics` is a table of it. Where a run keeps what lies in `folder.py`. Imports
`attribution`, `data`, `network` and `basis`. A statistic per site is added in `statistics.py`.
"""

from condec.store.batches import fingerprint
from condec.store.collection import collect, usable_device
from condec.store.folder import SIDE_EFFECTS, RunFolder
from condec.store.matrix import Sign
from condec.store.places import Places, Rows
from condec.store.random_weights import randomize
from condec.store.shards import QUANTITIES, Quantity, SiteInfo
from condec.store.statistics import (
    QUARTILES,
    STATISTICS,
    TREND,
    compare_trends,
    layer_statistics,
)  # fmt: skip
from condec.store.store import Store
from condec.store.twins import (
    TWINS,
    RandomWeights,
    ShuffledLabels,
    Twin,
    collect_twin,
    is_twin,
)

__all__ = [
    "QUANTITIES", "QUARTILES", "SIDE_EFFECTS", "STATISTICS", "TREND", "TWINS", "Places", "Quantity",
    "RandomWeights", "Rows", "RunFolder", "ShuffledLabels", "Sign", "SiteInfo", "Store", "Twin",
    "collect", "collect_twin", "compare_trends", "fingerprint", "is_twin", "layer_statistics",
    "randomize", "usable_device",
]  # fmt: skip
