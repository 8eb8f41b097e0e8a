"""What came of a sweep: the table of its fits, and what it says, in words."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condec.dictionary import Learner, best_at_equal_l0, over_seeds, pareto_front
from condec.dictionary.fitting.train import MANY_DEAD
from condec.run.sweeps.plan import Configuration, text

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted:
    """One fit that is done.

    Attributes
    ----------
    site : str
    configuration : Configuration
    learner : Learner
        With the number of modes worked out for the site.
    seed : int
    n_units : int
    folder : Path
        Of its dictionary, from the folder of the sweep on.
    record : dict
        From `SweepFolder.fit_record`.
    stability : float, optional
        From `condec.dictionary.seed_agreement`.
    """

    site: str
    configuration: Configuration
    learner: Learner
    seed: int
    n_units: int
    folder: Path
    record: Mapping[str, Any]
    stability: float | None


def results_table(fits: Sequence[Fitted]) -> "pandas.DataFrame":
    """One row a fit.

    Returns
    -------
    pandas.DataFrame
        `site`, `configuration`, `learner`, `n_units`, `n_modes`, `modes_per_unit`, the options
        that the plan names (missing where a learner has no such), `seed`; every field of
        `DictionaryMetrics`, of the held-out rows, and with ``_train`` of the training rows;
        `n_epochs`, `seconds`; `stability` (missing for a single seed); `on_front`, whether
        the configuration's means over the seeds are on the front of R2 against L0; `folder`.
    """
    import pandas as pd

    named = dict.fromkeys(name for fit in fits for name in fit.configuration.options)
    table = pd.DataFrame([_row(fit, named) for fit in fits])
    for name in named:
        # Whole numbers stay whole although other learners have no such option.
        table[name] = table[name].astype(object).convert_dtypes()
    means = over_seeds(table)
    keys = ["site", "configuration"]
    front = pd.MultiIndex.from_frame(means.loc[pareto_front(means), keys])
    table["on_front"] = pd.MultiIndex.from_frame(table[keys]).isin(front)
    table["folder"] = [fit.folder.as_posix() for fit in fits]
    return table


def sweep_words(table: "pandas.DataFrame") -> str:
    """What a table of results says: at about equal L0, which configuration is best.

    Parameters
    ----------
    table : pandas.DataFrame
        From `results_table`.
    """
    means = over_seeds(table)
    best = best_at_equal_l0(means)
    lines = [
        "Best at about equal L0, R2 on held-out rows (mean over seeds, lowest to highest):",
    ]
    for site in means["site"].unique():
        here = means[means["site"] == site]
        front = here.loc[pareto_front(here), "configuration"]
        lines.append(f"{site}: {len(here)} configurations, {len(front)} on the front")
        lines += [f"  {line}" for line in _best_words(best[best["site"] == site], here)]
    many = int((table["dead_share"] > MANY_DEAD).sum())
    if many:
        lines.append(
            f"{many} of {len(table)} dictionaries have more than {MANY_DEAD:.0%} dead modes "
            "(column dead_share)."
        )
    return "\n".join(lines)


def _best_words(best: "pandas.DataFrame", means: "pandas.DataFrame") -> Iterator[str]:
    stability = dict(zip(means["configuration"], means["stability"], strict=True))
    for row in best.itertuples():
        line = f"L0 about {row.about_l0:g}: {row.configuration}, R2 {_range(row, '')}"
        agree = stability[str(row.configuration)]
        if math.isfinite(agree):
            line += f", stability {agree:.2f}"
        if isinstance(row.next_configuration, str):
            line += f"; of other learners {row.next_configuration}, {_range(row, 'next_')}"
            if not row.told_apart:
                line += " (not told apart)"
        yield line


def _range(row: Any, of: str) -> str:
    mean, low, high = (getattr(row, f"{of}r2{end}") for end in ("", "_low", "_high"))
    spread = f" ({low:.3f} to {high:.3f})" if getattr(row, f"{of}n_seeds") > 1 else ""
    return f"{mean:.3f}{spread} at L0 {getattr(row, f'{of}l0'):.1f}"


def _row(fit: Fitted, named: Iterable[str]) -> dict[str, Any]:
    metrics = fit.record["metrics"]
    held_out, train = (metrics[split].items() for split in ("held_out", "train"))
    return {
        "site": fit.site,
        "configuration": fit.configuration.name,
        "learner": fit.configuration.fit.name,
        "n_units": fit.n_units,
        "n_modes": fit.learner.n_modes,
        "modes_per_unit": fit.learner.n_modes / fit.n_units,
        **{name: _plain(fit.configuration.options.get(name)) for name in named},
        "seed": fit.seed,
        **{name: _number(value) for name, value in held_out},
        **{f"{name}_train": _number(value) for name, value in train},
        "n_epochs": fit.record["n_epochs"],
        "seconds": fit.record["seconds"],
        "stability": _number(fit.stability),
    }


def _number(value: float | int | None) -> float | int:
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    return text(value) if isinstance(value, tuple) else value
