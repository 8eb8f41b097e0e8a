"""Modes that choose units best: of contributions to the label's log-odds (how-to/control.md)."""

from pathlib import Path
from typing import Any, Final

from torch import nn

from condec.attribution import ActGrad
from condec.attribution.targets import Margin
from condec.dictionary import Learner, ThresholdSAE, TrainConfig, fit
from condec.modes import Modes
from condec.store import Store, collect

LOG_ODDS: Final = Margin(against="logsumexp")
"""The label's output minus the log-sum-exp of the others: log(p / (1 - p)) of its softmax."""
MODES_PER_UNIT: Final = 3


def collect_log_odds(
    model: nn.Module, data: Any, sites: Any, *, out: str | Path, **options: Any
) -> Store:
    r"""Collect contributions of units to the log-odds of each sample's own label.

    .. math:: c_u = \sum_p h_{up} \frac{\partial}{\partial h_{up}}
              \left(y_l - \log \sum_{k \neq l} e^{y_k}\right)

    for the label l, over positions p: `ActGrad` with the target ``Margin("logsumexp")``.

    Parameters are those of `condec.collect`, without a method and a target; every sample needs a
    label that the model has, else it is a DataError.
    """
    return collect(model, data, sites, method=ActGrad(), target=LOG_ODDS, out=out, **options)


def fit_log_odds(
    store: Store, like: Modes, *, learner: Learner | None = None, config: TrainConfig | None = None
) -> Modes:
    """Fit modes of those contributions, signed, for the `log_odds` of `standard_rankings`.

    The `store`, from `collect_log_odds`, has the samples of the modes `like`, whose held-out rows
    stay held out. The `learner`, by default `ThresholdSAE` with three modes a unit, must take
    negative entries.
    """
    site, held_out = like.site, like.held_out.nonzero().flatten()
    rows = store.matrix(site, sign="sum")
    learner = ThresholdSAE(MODES_PER_UNIT * rows.shape[1]) if learner is None else learner
    fitted = fit(learner, rows, config=config, held_out_rows=held_out).dictionary
    return Modes.build(fitted, store, site, "sum", held_out_rows=held_out, name="log_odds")
