"""Modes that choose units best: of contributions to the label's log-odds (how-to/control.md)."""

from typing import Final

from condec.attribution.targets import Margin
from condec.basis.errors import DataError
from condec.dictionary import Learner, ThresholdSAE, TrainConfig, fit
from condec.modes import Modes
from condec.store import Quantity, Store

LOG_ODDS: Final = Margin(against="logsumexp")
"""The label's output minus the log-sum-exp of the others: log(p / (1 - p)) of its softmax."""
MODES_PER_UNIT: Final = 3


def fit_signed(
    store: Store, like: Modes, *, learner: Learner | None = None, config: TrainConfig | None = None,
    quantity: Quantity = "contribution", name: str = "signed",
) -> Modes:  # fmt: skip
    r"""Fit modes of sums over positions, with their sign, for a ranking beside the modes `like`.

    Units are chosen best by contributions to the log-odds of each sample's own label l
    (``collect(..., method=ActGrad(), target=LOG_ODDS)``),

    .. math:: c_u = \sum_p h_{up} \frac{\partial}{\partial h_{up}}
              \left(y_l - \log \sum_{k \neq l} e^{y_k}\right).

    The `store` has the samples of `like`, whose held-out rows stay held out. The default learner,
    `ThresholdSAE` with three modes a unit, also stands in, with as many modes, for a `learner` that
    takes no negative entries.
    """
    site, held_out = like.site, like.held_out.nonzero().flatten()
    rows = store.matrix(site, quantity=quantity, sign="sum")
    learner = ThresholdSAE(MODES_PER_UNIT * rows.shape[1]) if learner is None else learner
    try:
        learner.check(rows)
    except DataError:
        learner = ThresholdSAE(learner.n_modes)
    found = fit(learner, rows, config=config, held_out_rows=held_out).dictionary
    return Modes.build(
        found, store, site, "sum", quantity=quantity, held_out_rows=held_out, name=name
    )
