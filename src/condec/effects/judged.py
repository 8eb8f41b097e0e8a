r"""Dictionaries side by side: quality, labels, control, and what needs no dictionary.

Areas of faithfulness are those of the MIB benchmark (Mueller et al. 2025): with the first units of
a ranking kept and all others ablated, and :math:`m` the mean over labels of the accuracy relative
to the unedited network,

.. math:: f = \frac{m(\text{kept}) - m(\text{none})}{m(\text{all}) - m(\text{none})}, \qquad
   \text{CPR} = \int f, \quad \text{CMD} = \int |1 - f|,

over the fraction kept, from 0 to 1. A ranking is taken by signed scores, which ask what drives a
label, and by their size, which ask what moves it either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from torch import nn

from condec.basis.errors import DataError, OptionError
from condec.dictionary import quality, stability
from condec.dictionary.measure.stability import LEAST_SEEDS
from condec.effects.areas import summarise
from condec.effects.curve import measure_curves
from condec.effects.intervals import mean_over_labels
from condec.effects.rankings import (
    ByModeSum,
    ByUnitScores,
    RandomUnits,
    Ranking,
    Scores,
    by_units,
)  # fmt: skip
from condec.effects.table import CurveOptions
from condec.modes import UNNAMED, Modes, Properties, meaning
from condec.modes.naming import properties_of

if TYPE_CHECKING:
    import pandas

_FRACTIONS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_BY_SIZE: Final = " by size"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BySize(ByUnitScores):
    """The order of another ranking's scores by their size."""

    of: ByUnitScores
    name: str

    def scores(self, labels: Sequence[int]) -> Scores:
        """Return the size of every score."""
        return self.of.scores(labels).abs()

    def source(self) -> Any:
        """Return what the other ranking was made from."""
        return self.of.source()


def judge(
    candidates: Mapping[str, Modes], model: nn.Module | None = None, data: Any = None, *,
    properties: Properties | Sequence[Properties] | None = None, stability_seeds: int = 0,
    n_shuffles: int = 5, fractions: Sequence[float] = _FRACTIONS, n_random: int = 5,
    n_bootstrap: int = 400, seed: int = 0, batch_size: int = 64, prove: bool = True,
) -> "pandas.DataFrame":  # fmt: skip
    """Put dictionaries of one site side by side, wherever they come from, in one table.

    Parameters
    ----------
    candidates : mapping of str to Modes
        By name: each as `Modes.build` makes it of a fitted or imported dictionary, of contributions
        or activations. All of one store and site; held-out rows are those of the first that has
        some, which the others must share, unless they have none.
    model, data : optional
        As in `control_curve`; without them nothing is edited.
    properties : optional
        As in `meaning`; by default the labels of the store.
    stability_seeds : int
        Fits of other seeds for candidates whose learner can be fitted; 0 for none.
    n_shuffles : int
        Of labels, for the null.
    fractions : sequence of float
        Of units, from 0 to 1.
    n_random, n_bootstrap, seed, batch_size, prove
        As in `CurveOptions`.

    Returns
    -------
    DataFrame
        A row a candidate: ``name``, ``n_modes``, ``alive``; ``r2``, ``l0`` on held-out rows;
        ``stability``; ``named``, share of modes that have a name; ``covered``, share of properties
        with a mode; ``correlation``, median over properties of the held-out correlation of the mode
        chosen on training rows, and ``correlation_shuffled``, its mean under shuffled labels.
        With a model, for ``ablate`` and ``preserve`` the selectivity, mean over labels, with
        ``_low`` and ``_high`` (95 %, labels drawn again), ``cpr`` and ``cmd``, and both
        ``_by_size``; and rows for ``mean_contribution``, ``contribution_difference`` and
        ``random``, which need no dictionary.

    Raises
    ------
    OptionError
        No candidates, a name of a baseline, or fractions that do not go from 0 to 1.
    DataError
        Candidates of other stores, sites or held-out rows, or as in `meaning`, `control_curve`.
    """
    import pandas

    several = _together(candidates)
    fractions = tuple(fractions)
    if fractions[:1] != (0.0,) or fractions[-1:] != (1.0,):
        raise OptionError(f"judge: fractions go from 0 to 1; got {fractions}")
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    rows = []
    for name, modes in several.items():
        row: dict[str, Any] = {"name": name, "n_modes": modes.n_modes, "alive": len(modes)}
        row |= _quality(modes, stability_seeds, seed)
        rows.append(row | (_labels(modes, properties, n_shuffles, options) if len(modes) else {}))
    table = pandas.DataFrame(rows)
    if model is None:
        return table
    curves = CurveOptions(
        fractions=fractions, n_random=n_random, batch_size=batch_size, prove=prove,
        rankings=_rankings(several, n_random, seed), **options,
    )  # fmt: skip
    edited = _effects(model, data, several, curves).set_index("name")
    table = table.set_index("name").join(edited, how="outer")
    return table.loc[list(dict.fromkeys([*several, *edited.index]))].reset_index()


def _together(candidates: Mapping[str, Modes]) -> dict[str, Modes]:
    """Give all candidates the same held-out rows; refuse those that cannot be compared."""
    if not candidates:
        raise OptionError("judge: no candidates; give Modes by name")
    if taken := {"mean_contribution", "contribution_difference", "random"} & candidates.keys():
        raise OptionError(f"judge: {', '.join(sorted(taken))}: name of a baseline; choose another")
    if taken := {name for name in candidates if name.endswith(_BY_SIZE)}:
        raise OptionError(f"judge: {', '.join(sorted(taken))}: ends as a ranking of another does")
    every = list(candidates.values())
    first = next((one for one in every if bool(one.held_out.any())), every[0])
    found = {}
    for name, one in candidates.items():
        if one.store.config_hash != first.store.config_hash or one.site.key != first.site.key:
            raise DataError(
                f"judge: {name} is of {one.site.key} in {one.store.path}, others of "
                f"{first.site.key} in {first.store.path}; compare dictionaries of one site"
            )
        if not bool(one.held_out.any()):
            one = replace(one, held_out=first.held_out)
        if not torch.equal(one.held_out, first.held_out):
            raise DataError(
                f"judge: {name} was fitted to other rows than the first; give all fits one "
                "TrainConfig (held_out, split_seed), and Modes.build held_out_rows"
            )
        found[name] = one
    return found


def _quality(modes: Modes, seeds: int, seed: int) -> dict[str, float]:
    """Measure a dictionary on held-out rows; how stable it is, where it can be fitted."""
    found: dict[str, float] = {}
    if modes.encoder is None:
        return found
    rows = modes.matrix()
    if modes.rows == "samples" and bool(modes.held_out.any()):
        of = quality(modes.encoder, rows[modes.held_out])
        found = {"r2": of.r2, "l0": of.l0}
    about = modes.encoder.training
    if seeds and about is not None and about.history:  # learnt here, by descent
        many = max(seeds, LEAST_SEEDS)
        again = stability(
            modes.encoder.learner, rows, seeds=many, config=about.config, fitted=modes.encoder
        )
        found["stability"] = float(again.table()["seed_cosine"].mean())
    return found


def _labels(
    modes: Modes, properties: Properties | Sequence[Properties] | None, n_shuffles: int,
    options: Mapping[str, int],
) -> dict[str, float]:  # fmt: skip
    """Say how well labels are told, and how well shuffled ones are."""
    several = properties_of(modes, properties)
    real = meaning(modes, several, n_bootstrap=options["n_bootstrap"], seed=options["seed"])
    null = [
        meaning(modes, [one.shuffled(at) for one in several], n_bootstrap=1, seed=options["seed"])
        for at in range(n_shuffles)
    ]
    medians = [float(one.properties["correlation"].median()) for one in (real, *null)]
    return {
        "named": float((real.modes["name"] != UNNAMED).mean()),
        "covered": float(real.properties["covered"].mean()),
        "correlation": medians[0],
        "correlation_shuffled": float(np.mean(medians[1:])) if null else float("nan"),
    }


def _rankings(several: Mapping[str, Modes], n_random: int, seed: int) -> list[Ranking]:
    """Rank units by every candidate, and without any: signed, and by size."""
    first = next(iter(several.values()))
    scores: list[ByUnitScores] = [
        ByModeSum(modes=modes, name=name) for name, modes in several.items()
    ]
    scores += [by_units(first, "mean", "mean_contribution"),
               by_units(first, "difference", "contribution_difference")]  # fmt: skip
    sizes = [BySize(of=one, name=f"{one.name}{_BY_SIZE}") for one in scores]
    n_units = first.store.info(first.site).n_units
    return [*scores, *sizes, RandomUnits(n_units=n_units, n_draws=max(n_random, 1), seed=seed)]


def _effects(
    model: nn.Module, data: Any, several: Mapping[str, Modes], options: CurveOptions
) -> "pandas.DataFrame":
    """Edit the network by every ranking, and read selectivity and areas off the curves."""
    import pandas

    first, found = next(iter(several.values())), dict[str, dict[str, Any]]()
    for edit in ("ablate", "preserve"):
        curve = measure_curves(model, data, first, replace(options, edit=edit)).to_frame()
        areas = summarise(curve).groupby("ranking", sort=False)["auc_difference"]
        for ranking, values in areas:
            if not str(ranking).endswith(_BY_SIZE):
                middle = mean_over_labels(
                    torch.tensor(values.to_numpy()), n_bootstrap=options.n_bootstrap,
                    seed=options.seed,
                ).tolist()  # fmt: skip
                names = (edit, f"{edit}_low", f"{edit}_high")
                found.setdefault(str(ranking), {}).update(zip(names, middle, strict=True))
        if edit == "preserve":
            for ranking, points in curve.groupby("ranking", sort=False):
                name, by_size, _ = str(ranking).partition(_BY_SIZE)
                at = points.groupby("fraction")["target_accuracy"].mean()
                for area, value in faithfulness_areas(at.index.to_numpy(), at.to_numpy()).items():
                    found[name][area + ("_by_size" if by_size else "")] = value
    return pandas.DataFrame([{"name": name, **row} for name, row in found.items()])


def faithfulness_areas(fractions: np.ndarray, accuracy: np.ndarray) -> dict[str, float]:
    """Return the areas ``cpr`` and ``cmd`` of a curve from fraction 0 to 1; NaN where it is flat.

    Ideal are 1 and 0. Formula and source stand with the module.
    """
    span = accuracy[-1] - accuracy[0]
    faithful = (accuracy - accuracy[0]) / span if abs(span) > 0 else np.full_like(accuracy, np.nan)
    return {
        "cpr": float(np.trapezoid(faithful, fractions)),
        "cmd": float(np.trapezoid(np.abs(1 - faithful), fractions)),
    }
