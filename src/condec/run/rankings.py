"""The rankings of a site that a plan asks for, and the modes that some of them need."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float

from condec import effects
from condec.basis.errors import DataError, SiteError
from condec.dictionary import DeadModesWarning
from condec.effects import Ranking
from condec.modes import Modes
from condec.run.run import Run
from condec.store import Quantity, Store

LabelUnit = Float[torch.Tensor, "label unit"]


@dataclass(frozen=True, eq=False)
class SiteRankings:
    """Rankings of one site, made when first asked for.

    `log_odds` are contributions to the label's log-odds; without them, the rankings that need
    them are left out. So are final-layer weights where more than averaging and a linear layer
    follows. `fitted` are the modes that some of them need, by the folders where they belong.
    """

    run: Run
    modes: Modes
    log_odds: Store | None
    fitted: dict[Path, Modes] = field(default_factory=dict)

    @cached_property
    def found(self) -> tuple[Ranking, ...]:
        """Rankings of the plan, as far as the run has what they are made from."""
        plan, folder, key = self.run.plan.control, self.run.folder, self.modes.site.key
        wanted = set(plan.rankings)
        log_odds = activation = None
        if self.log_odds is not None and wanted & set(effects.LOG_ODDS_NAMES):
            place, names = folder.log_odds_modes(key), ", ".join(effects.LOG_ODDS_NAMES)
            log_odds = self._fitted(self.log_odds, "contribution", names, place)
        if "activation_modes" in wanted:
            place = folder.activation_modes(key)
            activation = self._fitted(self.modes.store, "activation", "activation_modes", place)
        every = effects.standard_rankings(
            self.modes, log_odds=log_odds, activation_modes=activation,
            head=self._head() if "head_weights" in wanted else None, n_random=plan.n_random,
            seed=plan.seed,
        )  # fmt: skip
        chosen = tuple(ranking for ranking in every if ranking.name in wanted)
        return chosen or tuple(ranking for ranking in every if ranking.name in effects.RANKINGS)

    @property
    def leading(self) -> Ranking:
        """The choice by modes that side effects are looked at with."""
        named = {ranking.name: ranking for ranking in self.found}
        first = next((named[name] for name in effects.LEADING if name in named), None)
        return effects.ByMode(modes=self.modes) if first is None else first

    def _fitted(self, store: Store, quantity: Quantity, names: str, place: Path) -> Modes | None:
        """Signed modes of a matrix, by the run's learner where that takes signs."""
        plan, site = self.run.plan.fit, self.modes.site
        try:
            with warnings.catch_warnings():
                # Modes that order units are not shown one by one.
                warnings.simplefilter("ignore", DeadModesWarning)
                learner = plan.learner_for(store.info(site).n_units, len(store))
                found = effects.fit_signed(
                    store, self.modes, learner=learner,
                    config=plan.train, quantity=quantity, name=place.parent.name,
                )  # fmt: skip
        except DataError as error:
            self.run.say(f"{site.key}: {names} left out: {error}")
            return None
        self.fitted[place] = found
        return found

    def _head(self) -> LabelUnit | None:
        """Final-layer weights, where a site is followed by nothing but averaging and them."""
        run = self.run
        samples = effects.held_out(run.inputs, self.modes, "control")
        # Two tell: the gradient is the same for all inputs, or there are no such weights.
        few = run.inputs.batch((samples.indices * 2)[:2])
        try:
            return effects.head_weights(run.model_of_store, self.modes.site, few)
        except SiteError:
            return None
