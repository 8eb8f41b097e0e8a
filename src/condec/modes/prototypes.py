"""Prototypes of a class: the kinds of its samples that modes tell apart, and what is none."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.basis.shapes import Mask
from condec.data import as_inputs
from condec.modes.modes import Modes

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

LEAST: Final = 20
"""Fewest samples of a class that has prototypes."""
_LEAST_MEMBERS: Final = 5
_STRUCTURE: Final = 0.25
"""Silhouettes below it find no substantial structure (Kaufman & Rousseeuw 1990)."""
_ROUNDING: Final = 1e-6
"""Of single precision, in which loadings are."""
_FENCE: Final = 3.0
"""Interquartile ranges beyond the upper quartile: "far out" (Tukey 1977)."""


@short_repr
@dataclass(frozen=True, eq=False)
class Prototypes:
    """Clusters of the loadings of one class, from `prototypes`.

    Attributes
    ----------
    label : int
    centres : Tensor of shape [prototype, mode]
        Mean loadings; the prototype of most samples first.
    table : pandas.DataFrame
        One row a sample of the class, nearest first: `row` (of loadings), `id`, `prediction`,
        `prototype` (the nearest), `distance` (from its centre), `outlier`.
    silhouette : float
        Of the clustering; NaN where there is one prototype.
    fence : float
        Distance beyond which a sample is an outlier; infinite where distances are tied and so none
        can be told.
    """

    label: int
    centres: Tensor
    table: "pandas.DataFrame"
    silhouette: float
    fence: float

    def draw(self, data: Any, n: int = 8) -> "Figure":
        """Draw the inputs nearest to every prototype, and the outliers, or that there are none.

        `data`, as `as_inputs` takes it, holds the store's samples as images; DataError where it
        lacks one.
        """
        from condec.figures.sheets import Picture, sheet

        inputs, of = as_inputs(data), f"samples of label {self.label}"

        def pictures(rows: "pandas.DataFrame") -> list[Picture]:
            places = inputs.indices_of(rows["id"].tolist(), who=f"draw: {inputs.name}", of=of)
            given = zip(places, rows["prediction"], strict=True)
            return [Picture(inputs.picture(place), f"predicted {to}") for place, to in given]

        counts = self.table["prototype"].value_counts()
        drawn = {
            f"prototype {i}\n{counts[i]} inputs\nmode {self.leading(i, 1)[0]}": pictures(
                self.typical(i, n)
            )
            for i in range(len(self.centres))
            if i in counts
        }
        found = f"{len(self.outliers) or 'none'} found"
        if self.fence == math.inf:
            found = "not told:\ninputs are alike"
        return sheet(drawn | {f"outliers\n{found}": pictures(self.outliers[:n])})

    @property
    def outliers(self) -> "pandas.DataFrame":
        """Return the rows of samples that are far from all prototypes, farthest first; or none."""
        return self.table[self.table["outlier"]][::-1]

    def typical(self, prototype: int, n: int = 8) -> "pandas.DataFrame":
        """Return the rows of the samples nearest to a prototype."""
        return self.table[self.table["prototype"] == prototype][:n]

    def leading(self, prototype: int, n: int = 3) -> list[int]:
        """Return the modes (rows of atoms) by which a prototype exceeds the class's mean most."""
        sizes = self.table["prototype"].value_counts()
        counts = torch.tensor([float(sizes.get(i, 0)) for i in range(len(self.centres))])
        mean = (counts.to(self.centres) @ self.centres) / counts.sum()
        over = (self.centres[prototype] - mean).argsort(descending=True, stable=True)
        return [int(mode) for mode in over[:n]]


def prototypes(modes: Modes, label: int, *, most: int = 4, seed: int = 0) -> Prototypes:
    r"""Cluster the loadings of the samples of a class, and find those that are far from all.

    `sklearn.cluster.KMeans`, with the number of clusters, 2 to `most`, of the largest silhouette;
    one where that is below 0.25. A cluster of fewer than 5 samples is no prototype: its samples
    belong to the nearest other one. With d a sample's distance from its prototype's centre and
    :math:`q_1, q_3` the quartiles of :math:`\log d` over the class, outliers are those of
    :math:`\log d > q_3 + 3 (q_3 - q_1)` (Tukey's fence). There may be none. Where the quartiles are
    the same but for rounding (half of the class alike) there is no spread to judge by: no sample is
    called an outlier, and `fence` is infinite.

    Parameters
    ----------
    modes : Modes
    label : int
        A label of the store; a prediction, where the store has no labels.
    most : int
        At most so many prototypes.
    seed : int

    Raises
    ------
    DataError
        Fewer than 20 samples have the label.
    OptionError
        `most` is below 1.

    Examples
    --------
    >>> import condec, tempfile
    >>> from condec.testing.models import small_resnet
    >>> images, labels = torch.rand(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64)
    >>> store = condec.collect(
    ...     small_resnet(), (images, labels), "block1", out=tempfile.mkdtemp(), progress=False
    ... )
    >>> fitted = condec.fit(condec.PCA(n_modes=2), store.matrix("block1"))
    >>> found = prototypes(condec.Modes.build(fitted.dictionary, store, "block1"), 0)
    >>> len(found.table), list(found.table)
    (40, ['row', 'id', 'prediction', 'prototype', 'distance', 'outlier'])
    """
    at_least("prototypes", 1, most=most)
    store = modes.store
    classes = store.labels if bool((store.labels >= 0).any()) else store.predictions
    rows = (classes == label).nonzero().flatten()
    if len(rows) < LEAST:
        raise DataError(
            f"prototypes: {modes.site.key}: label {label} has {len(rows)} samples, too few for "
            f"prototypes; expected {LEAST} at least: collect more, or take another label"
        )
    import pandas

    loadings = modes.loadings[rows].double()
    members, silhouette = _clusters(loadings, most, seed)
    centres = torch.stack([loadings[mask].mean(0) for mask in members])
    distance, nearest = torch.cdist(loadings, centres).min(1)
    logs = distance.clamp(min=torch.finfo(torch.float64).tiny).log()
    low, high = logs.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    fence = high + _FENCE * (high - low)
    if high.exp() - low.exp() <= _ROUNDING * (loadings.norm(dim=1).median() + high.exp()):
        fence = torch.full_like(fence, math.inf)
    outlier = logs > fence
    order = distance.argsort(stable=True)
    of = rows[order].tolist()
    table = pandas.DataFrame(
        {
            "row": of, "id": [store.sample_ids[row] for row in of],
            "prediction": store.predictions[of].tolist(), "prototype": nearest[order].tolist(),
            "distance": distance[order].tolist(), "outlier": outlier[order].tolist(),
        }
    )  # fmt: skip
    return Prototypes(label, centres, table, silhouette, float(fence.exp()))


def _clusters(loadings: Tensor, most: int, seed: int) -> tuple[list[Mask], float]:
    """Return the members of each prototype, most first, and the silhouette of the clustering."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    best = (_STRUCTURE, torch.zeros(len(loadings), dtype=torch.int64))
    values, most = loadings.numpy(), min(most, len(loadings) // _LEAST_MEMBERS)
    for n in range(2, min(most, len({*map(tuple, loadings.tolist())})) + 1):
        found = KMeans(n, n_init=10, random_state=seed).fit_predict(values)
        if len({*found}) > 1 and (score := silhouette_score(values, found)) > best[0]:
            best = float(score), torch.from_numpy(found).long()
    counts = best[1].bincount()
    kept = [int(i) for i in counts.argsort(descending=True, stable=True)]
    kept = [i for i in kept if counts[i] >= _LEAST_MEMBERS]
    return [best[1] == i for i in kept], best[0] if len(kept) > 1 else float("nan")
