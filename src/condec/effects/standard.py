"""The rankings that a control curve is given, and whether they may stand side by side."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condec.attribution import (
    merge_signs,
    prepare_inputs,
    split_and_sum,
    spread_units,
    unit_numbers,
)
from condec.basis.errors import DataError, OptionError, SiteError
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
    Scores,
)
from condec.modes import Modes
from condec.network import (
    Site,
    Units,
    find_sites,
    original,
    record,
    refuse_training,
    run_model,
    units_of,
)
from condec.store import Quantity, Sign, Store

LOG_ODDS_NAMES: Final = ("log_odds_modes", "log_odds_difference")
"""Rankings that need contributions to the label's log-odds (`condec.effects.log_odds`)."""
RANKINGS: Final = ("modes", "best_mode", "contribution_difference", "random")
"""How units are put in order, where a control curve is given no other rankings."""
RANKING_NAMES: Final = (
    *LOG_ODDS_NAMES, "modes", "best_mode", "mode_sum", "mean_contribution",
    "contribution_difference", "activation_difference", "unit_correlation", "random",
    "random_modes",
)  # fmt: skip
"""Rankings that can be asked for by name, in run.toml and `named_rankings`."""


def default_rankings(
    modes: Modes, *, rank: int = 0, n_random: int = 5, seed: int = 0
) -> list[Ranking]:
    """What a control curve compares where nothing else is asked for: `RANKINGS`."""
    found: list[Ranking] = [
        ByModeSum(modes=modes),
        ByMode(modes=modes, rank=rank),
        _by_difference("contribution_difference", modes.store, modes),
    ]
    if n_random:
        n_units = modes.store.info(modes.site).n_units
        found.append(RandomUnits(n_units=n_units, n_draws=n_random, seed=seed))
    return found


def standard_rankings(
    modes: Modes,
    *,
    log_odds: Modes | None = None,
    activation_modes: Modes | None = None,
    stores: Mapping[str, Store] | None = None,
    head: Float[torch.Tensor, "label unit"] | None = None,
    n_random: int = 5,
    seed: int = 0,
) -> list[Ranking]:
    """All that modes should be compared with, under names of their own.

    - ``modes``: all modes, each by how much more the label uses it than the others do;
      ``best_mode``: the label's best mode alone (Melander et al. 2026); ``mode_sum``: all modes,
      weighted by correlation;
    - ``log_odds_modes``, if given: as ``modes``, of contributions to the label's log-odds;
      ``log_odds_difference``: the label's mean of these minus the others', without a dictionary;
    - ``activation_modes``, if given: as ``modes``, of a dictionary of activations;
    - ``mean_contribution``, ``contribution_difference``: the label's mean contribution, and
      the same minus that of all other labels;
    - ``activation_difference``: its mean activation minus that of all other labels;
    - one for each of `stores`: the label's mean contribution minus the others' by another
      method;
    - ``unit_correlation``: the correlation of every single unit's contribution with the label;
    - ``head_weights``: if given;
    - ``random``: random units; ``random_modes``: modes drawn at random.

    Parameters
    ----------
    modes : Modes
    log_odds : Modes, optional
        From `fit_log_odds`.
    activation_modes : Modes, optional
        Of the same store and training rows.
    stores : mapping of str to Store, optional
        Stores of the same samples by other methods, as ``{"act_grad": store}``.
    head : Tensor of shape [label, unit], optional
        From `head_weights`.
    n_random : int
        Draws of random units and modes; 0 leaves both out.
    seed : int

    Returns
    -------
    list of Ranking
        For the ``rankings`` of `control_curve`.
    """
    own, rows, site, sign = modes.store, ~modes.held_out, modes.site, _sign(modes)
    found: list[Ranking] = []
    if log_odds is not None:
        found.append(ByModeSum(modes=log_odds, name="log_odds_modes"))
    found += [
        ByModeSum(modes=modes),
        ByMode(modes=modes),
        ByModeSum(modes=modes, weight="correlation", name="mode_sum"),
    ]
    if activation_modes is not None:
        found.append(ByModeSum(modes=activation_modes, name="activation_modes"))
    if log_odds is not None:
        found.append(_by_difference("log_odds_difference", log_odds.store, log_odds))
    found.append(ByMean(store=own, site=site, rows=rows, sign=sign))
    for name, store in {"contribution_difference": own, **(stores or {})}.items():
        found.append(_by_difference(name, store, modes))
    found += [
        _by_difference("activation_difference", own, modes, quantity="activation"),
        ByCorrelation(store=own, site=site, rows=rows, sign=sign),
    ]
    if head is not None:
        found.append(ByScores(scores=head, name="head_weights"))
    if n_random:
        n_units = modes.store.info(site).n_units
        found.append(RandomUnits(n_units=n_units, n_draws=n_random, seed=seed))
        found.append(RandomModes(modes=modes, n_draws=n_random, seed=seed))
    return found


def _by_difference(
    name: str, store: Store, modes: Modes, *, quantity: Quantity = "contribution"
) -> ByMean:
    """The label's mean minus that of the others, on the training rows of modes."""
    return ByMean(
        store=store,
        site=modes.site,
        rows=~modes.held_out,
        quantity=quantity,
        sign="sum" if quantity == "activation" else _sign(modes),
        against_others=True,
        name=name,
    )


def named_rankings(
    modes: Modes,
    names: Sequence[str],
    *,
    log_odds: Modes | None = None,
    n_random: int = 5,
    seed: int = 0,
) -> list[Ranking]:
    """Some of `standard_rankings`, by name.

    Parameters
    ----------
    modes : Modes
    names : sequence of str
        Of `RANKING_NAMES`; both random ones are left out where `n_random` is 0.
    log_odds : Modes, optional
        From `fit_log_odds`, for the rankings that need them.
    n_random, seed : int

    Raises
    ------
    OptionError
        No names, one that is not known, or one that needs `log_odds`.
    """
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
    every = standard_rankings(modes, log_odds=log_odds, n_random=n_random, seed=seed)
    return [ranking for ranking in every if ranking.name in names]


def check_rankings(rankings: Sequence[Ranking], modes: Modes) -> None:
    """Refuse rankings that would not be a fair comparison.

    Raises
    ------
    OptionError
        Two rankings of one name.
    DataError
        A ranking scores by other samples, or by other rows than the modes' training rows.
    """
    names = [ranking.name for ranking in rankings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(
            f"control_curve: rankings need names of their own; {', '.join(twice)} is given more "
            "than once (rankings take name=...)"
        )
    for ranking in rankings:
        source = ranking.source()
        if source is None:
            continue
        store, rows = source
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
    """The order of a ranking for a label, with every unit of the site once.

    Raises
    ------
    OptionError
        It is an order of something else.
    """
    ranked = ranking.ranked(label)
    for order in ranked.orders:
        if not torch.equal(order.sort().values, torch.arange(n_units)):
            raise OptionError(
                f"control_curve: ranking {ranking.name!r} must put each of the site's {n_units} "
                f"units in order once; for label {label} it has {len(order)} entries"
            )
    return ranked


def head_weights(
    model: nn.Module, site: Site | str, inputs: Tensor, *, tolerance: float = 1e-4
) -> Float[torch.Tensor, "label unit"]:
    r"""Weights of the last layer, where a site is followed by nothing but it.

    Where only an average over positions and a linear layer follow, every logit is
    :math:`\sum_u w_{ku} \bar h_u + b_k`, and its gradient the same for all inputs and
    positions. That is what is checked, with the gradients of all logits; the weights are

    .. math:: w_{ku} = \sum_\text{positions} \frac{\partial y_k}{\partial h_u}.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; its output is [sample, label].
    site : Site, or its text
    inputs : Tensor of shape [sample, ...]
        At least two, to tell a gradient that depends on the input from one that does not.
    tolerance : float
        Largest difference between gradients, relative to the largest of them.

    Returns
    -------
    Tensor of shape [label, unit]
        For `ByScores`.

    Raises
    ------
    OptionError
        Fewer than two inputs.
    SiteError
        The gradients differ: more than averaging and a linear layer follows.
    ModelError
        The model is in training mode.
    """
    refuse_training(model)
    (site,) = find_sites(original(model), site)
    if len(inputs) < 2:
        raise OptionError(f"head_weights: expected at least two inputs; got {len(inputs)}")
    with record(model, [site]) as tape:
        logits = run_model(model, prepare_inputs(model, inputs))
        (activation,) = tape.records.values()
        units = units_of(site, activation)
        rows = [
            _constant_gradient(site, units, logits[:, label].sum(), activation, tolerance)
            for label in range(logits.shape[1])
        ]
    return torch.stack(rows).cpu()


def _constant_gradient(
    site: Site, units: Units, logit: Tensor, activation: Tensor, tolerance: float
) -> Scores:
    """Gradient of a logit, summed over positions; the same for all inputs and positions."""
    (gradient,) = torch.autograd.grad(logit, activation, retain_graph=True, materialize_grads=True)
    summed = merge_signs(split_and_sum(gradient, units)).float()
    counted = int((unit_numbers(units, gradient.shape) >= 0).sum())
    n_positions = counted // summed.shape[1]
    same = spread_units(
        summed.mean(0).expand_as(summed) / n_positions, units, tuple(gradient.shape)
    )
    largest, off = float(gradient.abs().max()), float((gradient - same).abs().max())
    if not off <= tolerance * largest:
        raise SiteError(
            f"head_weights: {site.key} is not followed by averaging and a linear layer alone: the "
            f"gradient of a logit differs between inputs or positions by {off:.2g}, where it is "
            f"{largest:.2g} at most. There are no final-layer weights of these units."
        )
    return summed.mean(0)


def _sign(modes: Modes) -> Sign:
    return "sum" if modes.sign == "concat" else modes.sign
