"""Sweeps: many dictionaries of one store, over learners, widths, sparsities and seeds.

`read` makes a `SweepPlan` from a sweep.toml; `sweep` fits what is not done yet and compares all
of it on held-out rows, in a table and a figure.
"""

from condec.run.sweeps.fitting import SweepResult, sweep
from condec.run.sweeps.folder import SweepFolder
from condec.run.sweeps.plan import Configuration, Grid, SweepPlan, from_dict, read, to_dict
from condec.run.sweeps.results import Fitted, results_table, sweep_words

__all__ = [
    "Configuration",
    "Fitted",
    "Grid",
    "SweepFolder",
    "SweepPlan",
    "SweepResult",
    "from_dict",
    "read",
    "results_table",
    "sweep",
    "sweep_words",
    "to_dict",
]
