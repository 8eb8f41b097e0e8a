"""The rankings that have names, and whether rankings may be compared."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float

from condec.basis.errors import DataError, OptionError
from condec.effects.rankings import (
    ByMode,
    ByModeSum,
    ByScores,
    RandomModes,
    RandomUnits,
    Ranked,
    Ranking,
    by_units,
)  # fmt: skip
from condec.modes import Modes

LOG_ODDS_NAMES: Final = ("log_odds_modes", "log_odds_difference")
"""Rankings that need contributions to the label's log-odds (`condec.effects.log_odds`)."""
RANKINGS: Final = ("modes", "best_mode", "contribution_difference", "random")
"""Rankings of a control curve that is given no others."""
RANKING_NAMES: Final = (
    *LOG_ODDS_NAMES, "modes", "best_mode", "mode_sum", "mean_contribution",
    "contribution_difference", "activation_difference", "unit_correlation", "random",
    "random_modes", "activation_modes", "head_weights",
)  # fmt: skip
"""Names of all that `standard_rankings` can make, as they stand in run.toml."""
LEADING: Final = ("log_odds_modes", "modes", "best_mode")
"""The choice by modes that is read first is the first of these that was made."""


def standard_rankings(
    modes: Modes, *, log_odds: Modes | None = None, activation_modes: Modes | None = None,
    head: Float[torch.Tensor, "label unit"] | None = None, n_random: int = 5, seed: int = 0,
) -> list[Ranking]:  # fmt: skip
    """Return rankings that modes should be compared with, under names of their own.

    - ``modes``: all modes, each by how much more the label uses it than the others do
      (`ByModeSum`); ``best_mode``: the label's best mode alone (Melander et al. 2026);
      ``mode_sum``: all modes, weighted by correlation;
    - ``log_odds_modes``, ``log_odds_difference``: with `log_odds` of contributions to `LOG_ODDS`;
      as ``modes``, and without a dictionary as ``contribution_difference``;
    - ``activation_modes``: as ``modes``, with a dictionary of activations;
    - ``mean_contribution``, ``contribution_difference``: the label's mean contribution, and
      the same minus that of all other labels; ``activation_difference`` of activations;
    - ``unit_correlation``: single units; ``head_weights``: with `head` from `head_weights`;
    - ``random``: random units; ``random_modes``: modes drawn at random, `n_random` times each.
    """
    found: list[Ranking] = [
        ByModeSum(modes=modes),
        ByMode(modes=modes),
        ByModeSum(modes=modes, weight="correlation", name="mode_sum"),
    ]
    if log_odds is not None:
        found.insert(0, ByModeSum(modes=log_odds, name="log_odds_modes"))
    if activation_modes is not None:
        found.append(ByModeSum(modes=activation_modes, name="activation_modes"))
    if log_odds is not None:
        found.append(by_units(log_odds, "difference", "log_odds_difference"))
    found += [
        by_units(modes, "mean", "mean_contribution"),
        by_units(modes, "difference", "contribution_difference"),
        by_units(modes, "difference", "activation_difference", "activation"),
        by_units(modes, "correlation", "unit_correlation"),
    ]
    if head is not None:
        found.append(ByScores(scores=head, name="head_weights"))
    if n_random:
        n_units = modes.store.info(modes.site).n_units
        found.append(RandomUnits(n_units=n_units, n_draws=n_random, seed=seed))
        found.append(RandomModes(modes=modes, n_draws=n_random, seed=seed))
    return found


def check_rankings(rankings: Sequence[Ranking], modes: Modes) -> None:
    """Refuse rankings of one name, by other samples, or by other rows than the training rows."""
    names = [ranking.name for ranking in rankings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(
            f"control_curve: rankings need names of their own; {', '.join(twice)} is given more "
            "than once (rankings take name=...)"
        )
    for ranking in rankings:
        store, rows = ranking.source() or (modes.store, ~modes.held_out)
        if store is not modes.store and store.sample_ids != modes.store.sample_ids:
            raise DataError(
                f"control_curve: ranking {ranking.name!r} is made from other samples "
                f"({store.path}) than the modes ({modes.store.path}); collect both from the same "
                "data"
            )
        if not torch.equal(rows, ~modes.held_out):
            held = int((rows & modes.held_out).sum()) if len(rows) == len(modes.held_out) else 0
            raise DataError(
                f"control_curve: ranking {ranking.name!r} takes other training rows than the "
                f"modes do, {held} of them held out; give it rows=~modes.held_out, or fit its "
                "modes with the same held-out rows"
            )


def ranked_units(ranking: Ranking, label: int, n_units: int) -> Ranked:
    """Return the order of a ranking for a label; refuse one that lacks a unit of the site."""
    ranked = ranking.ranked(label)
    for order in ranked.orders:
        if not torch.equal(order.sort().values, torch.arange(n_units)):
            raise OptionError(
                f"control_curve: ranking {ranking.name!r} must put each of the site's {n_units} "
                f"units in order once; for label {label} it has {len(order)} entries"
            )
    return ranked
