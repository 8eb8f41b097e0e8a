"""The runner: carries out a plan in a run folder, link by link, here or elsewhere.

`Plan` says what to do (`condec.run.config` reads it from a run.toml), `Run` holds what is loaded,
and `FUNCTIONS` are the links; `chain` does them all.
"""

from condec.run.chain import FUNCTIONS, chain
from condec.run.plan import LINKS, LINKS_OF_IMAGES, LINKS_OF_MOVIES, Link, Plan
from condec.run.run import Outcome, Run
from condec.store import RunFolder

__all__ = [
    "FUNCTIONS", "LINKS", "LINKS_OF_IMAGES", "LINKS_OF_MOVIES", "Link", "Outcome", "Plan", "Run",
    "RunFolder", "chain",
]  # fmt: skip
