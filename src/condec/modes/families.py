"""Modes that go together: in two fits or networks, one to one, and from site to site as families.

Modes are alike where inputs use them alike: partners have the largest sum of correlations of their
loadings on the same inputs (Hungarian algorithm), and count where their correlation is above the
highest that any pair has when the inputs of one side are shuffled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import correlation_matrix
from condec.modes.modes import Modes

if TYPE_CHECKING:
    import pandas


def mode_families(
    several: Sequence[Modes], flows: Sequence[Tensor] | None = None
) -> "pandas.DataFrame":
    """Follow modes from site to site: a family is a chain of partners.

    Parameters
    ----------
    several : sequence of Modes
        A site each, in the order of the network, on the same inputs.
    flows : sequence of Tensor of shape [mode, mode of the next site], optional
        How much flows from each mode into each of the next site, one for every pair of sites, as
        `condec.flow` has it: partners are then those with the largest sum of flows, and count
        where the flow is above 0, and the largest that leaves the one and reaches the other.

    Returns
    -------
    DataFrame
        A row a mode: ``site``, ``mode`` (its id), ``family``, ``length`` of the family, ``link``,
        the correlation (or flow) with the mode of the family before, NaN for the first one.

    Raises
    ------
    DataError
        Modes of other inputs, or flows of other shapes.
    """
    import pandas

    sizes = [len(modes) for modes in several]
    _same_inputs("mode_families", several)
    shapes = [tuple(flow.shape) for flow in flows or ()]
    if flows is not None and shapes != list(pairwise(sizes)):
        raise DataError(f"mode_families: expected flows of {list(pairwise(sizes))}; got {shapes}")
    family = [torch.arange(size) for size in sizes]
    links, n_families = [torch.full((size,), torch.nan) for size in sizes], sizes[0] if sizes else 0
    for at, (one, other) in enumerate(pairwise(several)):
        family[at + 1] += n_families
        n_families += sizes[at + 1]
        if flows is None:
            found = partners(one.loadings, other.loadings)
            between, pairs = found.between, found.counted
        else:
            between, into, out = flows[at], flows[at].amax(0), flows[at].amax(1)
            pairs = [
                (i, j) for i, j in _assigned(between) if 0 < between[i, j] >= max(into[j], out[i])
            ]
        for i, j in pairs:
            family[at + 1][j], links[at + 1][j] = family[at][i], between[i, j]
    rows = [
        {"site": modes.site.key, "mode": int(number), "family": int(f), "link": float(link)}
        for modes, of, by in zip(several, family, links, strict=True)
        for number, f, link in zip(modes.ids.tolist(), of.tolist(), by.tolist(), strict=True)
    ]
    table = pandas.DataFrame(rows, columns=["site", "mode", "family", "link"])
    table["family"] = pandas.factorize(table["family"])[0]
    return table.assign(length=table.groupby("family")["family"].transform("size"))


def same_families(several: Sequence[Modes], again: Sequence[Modes]) -> float:
    """Tell how far another fit has the same families: the adjusted Rand index, 1 for the same ones.

    Over modes that have a partner in the other fit; 0 is what chance gives, NaN with fewer than two
    partners. DataError: other sites, or other inputs.
    """
    from sklearn.metrics import adjusted_rand_score

    if [one.site.key for one in several] != [other.site.key for other in again]:
        raise DataError("same_families: expected two fits of the same sites, in one order")
    _same_inputs("same_families", [*several, *again])
    tables = [
        mode_families(each).set_index(["site", "mode"])["family"] for each in (several, again)
    ]
    both: list[tuple[int, int]] = []
    for one, other in zip(several, again, strict=True):
        both += [
            (int(tables[0][one.site.key, int(one.ids[i])]),
             int(tables[1][other.site.key, int(other.ids[j])]))
            for i, j in partners(one.loadings, other.loadings).counted
        ]  # fmt: skip
    return float(adjusted_rand_score(*zip(*both, strict=True))) if len(both) > 1 else float("nan")


@dataclass(frozen=True, eq=False)
class Partners:
    """Pairs of columns, how all columns correlate, and the highest that chance gives."""

    pairs: list[tuple[int, int]]
    between: Tensor
    chance: float

    @property
    def counted(self) -> list[tuple[int, int]]:
        """Pairs that are more than chance."""
        return [pair for pair in self.pairs if float(self.between[pair]) > self.chance]


def partners(one: Tensor, other: Tensor) -> Partners:
    """Match columns of loadings, [sample, mode], on the same inputs."""
    if not one.shape[1] or not other.shape[1]:
        return Partners([], torch.zeros(one.shape[1], other.shape[1]), 0.0)
    between = correlation_matrix(one, other)
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))
    chance = float(correlation_matrix(one[order], other).max())
    return Partners(_assigned(between), between, chance)


def _assigned(between: Tensor) -> list[tuple[int, int]]:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(between.numpy(), maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]


def _same_inputs(who: str, several: Sequence[Modes]) -> None:
    ids = {tuple(modes.store.sample_ids) for modes in several}
    if len(ids) > 1 or len({len(modes.loadings) for modes in several}) > 1:
        raise DataError(f"{who}: modes of different inputs; collect all from the same data")
