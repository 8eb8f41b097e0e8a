"""Whether labels can be read off a few modes, or a few units: logistic regression on held-out rows.

Who is asked with `k` columns has those `k` whose correlation with the label is largest in size on
training rows. All columns together are the ceiling (Gurnee et al. 2023, k-sparse probing).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from condec.basis.checks import ascending
from condec.basis.errors import DataError
from condec.modes.labels import label_correlation
from condec.modes.modes import Modes
from condec.modes.naming import halves

if TYPE_CHECKING:
    import pandas

_LEAST: Final = 2


def probe(
    modes: Modes, ks: Sequence[int] = (1, 2, 5, 10), *, labels: Sequence[int] | None = None,
    seed: int = 0,
) -> "pandas.DataFrame":  # fmt: skip
    """Read every label off `k` modes, off `k` units, and off all of either.

    Logistic regression of scikit-learn (L2, C = 1, classes balanced, columns standardised by
    training rows) on the rows that the modes were chosen by, judged on the others.

    Parameters
    ----------
    modes : Modes
    ks : sequence of int
        Numbers of columns, ascending.
    labels : sequence of int, optional
        By default all that two samples on either half have, and two lack.
    seed : int
        Of the halves, where no rows were held out.

    Returns
    -------
    DataFrame
        A row for each label, each number of columns and each of ``loadings`` and ``units``:
        ``label``, ``of``, ``k``, ``auroc``, the area under the curve of held-out samples. The last
        ``k`` is all columns.

    Raises
    ------
    DataError
        No label has two samples, and lacks two, on either half.
    """
    import pandas
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ascending("probe", tuple(ks), "ks: expected ascending numbers from 1", low=0, high=math.inf)
    of = modes.store.labels
    choose, judge = (half & (of >= 0) for half in halves(modes, seed))
    counts = [torch.bincount(of[half], minlength=int(of.max()) + 1) for half in (choose, judge)]
    both = torch.stack([torch.minimum(n, n.sum() - n) for n in counts]).amin(0) >= _LEAST
    wanted = both.nonzero().flatten().tolist() if labels is None else list(labels)
    if not wanted or not all(0 <= label < len(both) and both[label] for label in wanted):
        raise DataError(
            f"probe: expected labels that {_LEAST} samples have, and {_LEAST} others lack, on "
            f"either half; got {wanted[:5]}"
        )
    rows = []
    units = modes.store.matrix(modes.site, modes.quantity, modes.sign)  # [sample, unit], whatever
    for name, matrix in (("loadings", modes.loadings), ("units", units)):  # the modes' rows are
        order = (
            label_correlation(matrix, of, choose).abs().argsort(dim=0, descending=True, stable=True)
        )
        values, n = matrix.numpy().astype(np.float64), matrix.shape[1]
        for label in wanted:
            has = (of == label).numpy()
            for k in [*(k for k in ks if k < n), n]:
                some = values[:, order[:k, label].numpy()]
                model = make_pipeline(
                    StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
                )
                model.fit(some[choose.numpy()], has[choose.numpy()])
                score = model.decision_function(some[judge.numpy()])
                area = float(roc_auc_score(has[judge.numpy()], score))
                rows.append({"label": label, "of": name, "k": k, "auroc": area})
    return pandas.DataFrame(rows)
