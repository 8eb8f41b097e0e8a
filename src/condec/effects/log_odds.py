"""Modes that choose units best: of what each unit does to the label's log-odds.

Which units to edit is decided by what is attributed, more than by the dictionary: contributions
of the paper (integrated gradients to the largest output) say what made that output large, not
what tells the label from the others. Activation times gradient to the log-odds of the label,
signed, is cheap (one pass forward and backward) and orders units nearly as ablating them one by
one does (docs/benchmarks.md, "Which units control a class?").
"""

from pathlib import Path
from typing import Any, Final

from torch import nn

from condec.attribution import ActGrad
from condec.attribution.targets import Margin
from condec.dictionary import Learner, ThresholdSAE, TrainConfig, fit
from condec.modes import Modes
from condec.network import Site
from condec.store import Store, collect

LOG_ODDS: Final = Margin(against="logsumexp")
"""The label's output minus the log-sum-exp of the others: log(p / (1 - p)) of its softmax."""
MODES_PER_UNIT: Final = 3


def collect_log_odds(
    model: nn.Module, data: Any, sites: Any, *, out: str | Path, **options: Any
) -> Store:
    r"""Contributions of units to the log-odds of each sample's own label.

    .. math:: c_u = \sum_p h_{up} \frac{\partial}{\partial h_{up}}
              \left(y_l - \log \sum_{k \neq l} e^{y_k}\right)

    for the label l, over positions p: `ActGrad` with the target ``Margin("logsumexp")``.

    Parameters
    ----------
    model : torch.nn.Module
    data : Inputs, (tensor, labels), or a data set
        With a label for every sample.
    sites : as in `condec.find_sites`
    out : path
        Of the store.
    **options
        Of `condec.collect`: ``batch_size``, ``progress``, ``devices``, ...

    Returns
    -------
    Store

    Raises
    ------
    DataError
        A sample has no label, or one that the model does not have.
    """
    return collect(model, data, sites, method=ActGrad(), target=LOG_ODDS, out=out, **options)


def fit_log_odds(
    store: Store,
    like: Modes,
    *,
    site: Site | str | None = None,
    learner: Learner | None = None,
    config: TrainConfig | None = None,
) -> Modes:
    """Modes of those contributions, signed, with the same training rows as other modes.

    Parameters
    ----------
    store : Store
        From `collect_log_odds`, of the samples that the other modes are of.
    like : Modes
        With held-out rows, which stay held out.
    site : Site or str, optional
        By default that of the other modes.
    learner : Learner, optional
        By default `ThresholdSAE` with three modes a unit. It must take negative entries.
    config : TrainConfig, optional

    Returns
    -------
    Modes
        Of sign ``sum``; for ``ByModeSum``, or the `log_odds` of `standard_rankings`.
    """
    site = like.site if site is None else site
    rows = store.matrix(site, sign="sum")
    learner = ThresholdSAE(MODES_PER_UNIT * rows.shape[1]) if learner is None else learner
    held_out = like.held_out.nonzero().flatten()
    report = fit(learner, rows, config=config, held_out_rows=held_out)
    return Modes.build(
        report.dictionary, store, site, "sum", held_out_rows=held_out, name="log_odds"
    )
