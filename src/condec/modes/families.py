"""Modes that go together: in two fits or networks, one to one, and from site to site as families.

Modes are alike where inputs use them alike: partners have the largest sum of correlations of their
loadings on the same inputs (Hungarian algorithm), and count where their correlation is above the
highest that any pair has when the inputs of one side are shuffled.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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

Links = list[tuple[int, int, float]]
"""Partners: a mode of one site, one of the next, by their places, and what joins them."""


def mode_families(
    several: Iterable[Modes], flows: Sequence[Tensor] | None = None
) -> "pandas.DataFrame":
    """Follow modes from site to site: a family is a chain of partners.

    Parameters
    ----------
    several : iterable of Modes
        A site each, in the order of the network, on the same inputs. Two are held at a time.
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
        Two modes of one site, modes of other inputs, or flows of other shapes.
    """
    sites, links = dict[str, list[int]](), list[Links]()
    before: Modes | None = None
    for modes in several:
        if modes.site.key in sites:
            raise DataError(f"mode_families: expected a site each; got {modes.site.key} twice")
        if before is not None:
            _same_inputs("mode_families", [before, modes])
        if before is not None and flows is None:
            found = partners(before.loadings, modes.loadings)
            links.append([(i, j, float(found.between[i, j])) for i, j in found.counted])
        sites[modes.site.key], before = modes.ids.tolist(), modes
    if flows is not None:
        wanted = list(pairwise(map(len, sites.values())))
        if (shapes := [tuple(flow.shape) for flow in flows]) != wanted:
            raise DataError(f"mode_families: expected flows of {wanted}; got {shapes}")
        links = [flowing(flow) for flow in flows]
    return chains(sites, links)


def flowing(flow: Tensor) -> Links:
    """Return partners by what flows from each mode into each of the next site, [mode, mode]."""
    into, out = flow.amax(0), flow.amax(1)
    return [
        (i, j, float(flow[i, j]))
        for i, j in _assigned(flow)
        if 0 < flow[i, j] >= max(into[j], out[i])
    ]


def chains(sites: Mapping[str, Sequence[int]], links: Sequence[Links]) -> "pandas.DataFrame":
    """Join partners to families: a table as `mode_families` returns it.

    `sites` have the numbers of their modes, in order; `links` are those between one and the next.
    """
    import pandas

    rows, before, n_families = list[dict[str, object]](), list[int](), 0
    for (site, numbers), some in zip(sites.items(), [[], *links], strict=False):
        linked, own = {j: (before[i], by) for i, j, by in some}, list[int]()
        for at, number in enumerate(numbers):
            family, by = linked.get(at, (n_families, math.nan))
            n_families += at not in linked
            own.append(family)
            rows.append({"site": site, "mode": number, "family": family, "link": by})
        before = own
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
