"""Engines: they have workers do tasks ahead of the chain, which then finds them done.

A worker holds one `Run` of the same plan and writes into the run folder itself, by the functions
of the chain, so that neither numbers nor bytes depend on the engine: one that fails loses only
time. Imports the rooms below `run`, and its links. A new engine is a `Pool` of `pool.py`, named
here.
"""

from importlib import import_module
from typing import Final

from condec.run.engines.pool import Pool
from condec.run.plan import EnginePlan

ENGINES: Final = {"local": "local:LocalPool", "ray": "on_ray:RayPool"}
"""Engines by their names in ``[engine]``, imported when they are asked for."""


def engine_of(plan: EnginePlan) -> Pool | None:
    """Return the engine of a plan, which starts workers when there are tasks; None for none.

    DependencyError where Ray is asked for and not installed.
    """
    if plan.kind == "here":
        return None
    module, _, name = ENGINES[plan.kind].partition(":")
    pool: Pool = getattr(import_module(f"{__name__}.{module}"), name)(plan)
    return pool
