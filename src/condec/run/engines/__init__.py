"""Engines: they have workers do tasks ahead of the chain, which then finds them done.

A worker holds one `Run` of the same plan and writes into the run folder itself, by the functions
of the chain, so that neither numbers nor bytes depend on the engine: one that fails loses only
time. Imports the rooms below `run`, and its links. A new engine is a `Pool` of `pool.py`, named
here.
"""

from importlib import import_module
from typing import Final

from condec.basis.errors import OptionError
from condec.run.engines.pool import Pool
from condec.run.plan import Plan

ENGINES: Final = {"local": "local:LocalPool", "ray": "on_ray:RayPool"}
"""Engines by their names in ``[engine]``, imported when they are asked for."""


def engine_of(plan: Plan, *, trust_code: bool = False, address: str = "") -> Pool | None:
    """Return the engine of a plan, which starts workers when there are tasks; None for none.

    Raises
    ------
    OptionError
        The plan of a run folder, which may be somebody else's, names a Ray cluster, which could run
        any code here; neither is that trusted by `trust_code` nor the `address` one that the user
        gave. Or there is no cluster.
    DependencyError
        Ray is asked for and not installed.
    """
    named = plan.engine.address or "auto"
    if plan.of_folder and not trust_code and named not in ("auto", address):
        raise OptionError(
            f"engine: the run folder names a Ray cluster, {named!r}, which could run any code: "
            "if you trust it, give --trust-code, or the plan itself, a .toml outside of run folders"
        )
    if plan.engine.kind == "here":
        return None
    module, _, name = ENGINES[plan.engine.kind].partition(":")
    pool: Pool = getattr(import_module(f"{__name__}.{module}"), name)(plan.engine)
    return pool
