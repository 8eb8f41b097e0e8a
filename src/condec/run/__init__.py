"""The runner: carries out a plan in a run folder, link by link.

`Plan` says what to do (`condec.run.config` reads it from a run.toml), `Run` holds what is loaded,
`chain` does all links of a plan, and `Link` is one that a package brings. Imports the rooms below
it; a new link goes into `links.py`, and its options into `plan.py`.
"""

from condec.run.links import FUNCTIONS, chain
from condec.run.plan import Plan
from condec.run.plugins import LINKS, Link
from condec.run.run import Outcome, Run
from condec.store import RunFolder

__all__ = ["FUNCTIONS", "LINKS", "Link", "Outcome", "Plan", "Run", "RunFolder", "chain"]
