"""The rankings that have names, and whether rankings may be compared."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float

from condec.basis.errors import DataError, OptionError
from condec.effects.rankings import (
    ByCorrelation,
    ByMean,
    ByMode,
    ByModeSum,
    ByScores,
    RandomModes,
    RandomUnits,
    Ranked,
    Ranking,
)
from condec.modes import Modes
from condec.store import Quantity, Sign, Store

LOG_ODDS_NAMES: Final = ("log_odds_modes", "log_odds_difference")
"""Rankings that need contributions to the label's log-odds (`condec.effects.log_odds`)."""
RANKINGS: Final = ("modes", "best_mode", "contribution_difference", "random")
"""Rankings of a control curve that is given no others."""
RANKING_NAMES: Final = (
    *LOG_ODDS_NAMES, "modes", "best_mode", "mode_sum", "mean_contribution",
    "contribution_difference", "activation_difference", "unit_correlation", "random",
    "random_modes",
)  # fmt: skip
"""Rankings that can be asked for by name, in run.toml and `standard_rankings`."""
LEADING: Final = ("log_odds_modes", "modes", "best_mode")
"""The choice by modes that is read first is the first of these that was made."""


def standard_rankings(
    modes: Modes, *, names: Sequence[str] | None = None, log_odds: Modes | None = None,
    activation_modes: Modes | None = None, stores: Mapping[str, Store] | None = None,
    head: Float[torch.Tensor, "label unit"] | None = None, rank: int = 0, n_random: int = 5,
    seed: int = 0,
) -> list[Ranking]:  # fmt: skip
    """Return rankings that modes should be compared with, under names of their own.

    - ``modes``: all modes, each by how much more the label uses it than the others do
      (`ByModeSum`); ``best_mode``: the label's best mode alone (Melander et al. 2026);
      ``mode_sum``: all modes, weighted by correlation;
    - ``log_odds_modes``, ``log_odds_difference``: with `log_odds` from `fit_log_odds`; as
      ``modes``, and without a dictionary as ``contribution_difference``;
    - ``activation_modes``: as ``modes``, with a dictionary of activations;
    - ``mean_contribution``, ``contribution_difference``: the label's mean contribution, and
      the same minus that of all other labels; one more difference for each of `stores`, of the
      same samples by another method, as ``{"act_grad": store}``;
    - ``activation_difference``: its mean activation minus that of all other labels;
    - ``unit_correlation`` (`ByCorrelation`); ``head_weights``: with `head` from `head_weights`;
    - ``random``: random units; ``random_modes``: modes drawn at random, `n_random` times each.

    Of these only `names`, where given (`RANKING_NAMES`); of `rank` is ``best_mode``. No names, one
    that is not known, or one that needs `log_odds` are an OptionError.
    """
    own, rows, site, sign = modes.store, ~modes.held_out, modes.site, _sign(modes)

    def difference(
        name: str, store: Store, like: Modes = modes, quantity: Quantity = "contribution"
    ) -> ByMean:
        sign = "sum" if quantity == "activation" else _sign(like)
        return ByMean(
            store=store, site=like.site, rows=~like.held_out, quantity=quantity, sign=sign,
            against_others=True, name=name,
        )  # fmt: skip

    found: list[Ranking] = [
        ByModeSum(modes=modes),
        ByMode(modes=modes, rank=rank),
        ByModeSum(modes=modes, weight="correlation", name="mode_sum"),
    ]
    if log_odds is not None:
        found.insert(0, ByModeSum(modes=log_odds, name="log_odds_modes"))
    if activation_modes is not None:
        found.append(ByModeSum(modes=activation_modes, name="activation_modes"))
    if log_odds is not None:
        found.append(difference("log_odds_difference", log_odds.store, log_odds))
    found.append(ByMean(store=own, site=site, rows=rows, sign=sign))
    for name, store in {"contribution_difference": own, **(stores or {})}.items():
        found.append(difference(name, store))
    found.append(difference("activation_difference", own, quantity="activation"))
    found.append(ByCorrelation(store=own, site=site, rows=rows, sign=sign))
    if head is not None:
        found.append(ByScores(scores=head, name="head_weights"))
    if n_random:
        n_units = own.info(site).n_units
        found.append(RandomUnits(n_units=n_units, n_draws=n_random, seed=seed))
        found.append(RandomModes(modes=modes, n_draws=n_random, seed=seed))
    if names is None:
        return found
    unknown = [name for name in names if name not in RANKING_NAMES]
    if unknown or not names:
        raise OptionError(
            f"rankings: expected some of {', '.join(RANKING_NAMES)}; got "
            f"{', '.join(unknown) or 'none'}"
        )
    asked = [name for name in names if name in LOG_ODDS_NAMES]
    if asked and log_odds is None:
        raise OptionError(
            f"rankings: {', '.join(asked)} needs contributions to the label's log-odds; give "
            "log_odds=fit_log_odds(collect_log_odds(...), modes), or leave it out"
        )
    return [ranking for ranking in found if ranking.name in names]


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


def _sign(modes: Modes) -> Sign:
    return "sum" if modes.sign == "concat" else modes.sign
