r"""How well modes go with properties of samples: all modes against all properties, in blocks.

With loadings :math:`z` of a mode on :math:`n` samples, of which :math:`n_1` have a property:

- ``correlation``: Pearson's r of :math:`z` and having it;
- ``auroc``: how often a sample with it has a higher loading than one without, ties count half,
  :math:`(R_1 - n_1 (n_1 + 1) / 2) / (n_1 n_0)` with :math:`R_1` the sum of its samples' ranks;
- ``precision``: share with it of the `k` samples with the highest loadings, of those that use the
  mode (:math:`z > 0`); of tied ones at the border, their mean;
- ``information``: mutual information, in bits, of using the mode and having the property;
- ``selectivity``: :math:`(\bar z_1 - \bar z_0) / (\bar z_1 + \bar z_0)` of means of the positive
  loadings (Morcos et al. 2018);
- ``p``: probability under labels shuffled within their sizes that as many of the
  :math:`\min(n_1, \text{users})` samples with the highest loadings have the property. That number
  is hypergeometric, whatever the loadings are, so that this null has no sampling error. Ties are
  broken by an order that is drawn once.

Loadings are sparse or not; what is 0 costs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import DataError
from condec.basis.metrics import correlation_matrix, unit_length
from condec.basis.records import short_repr
from condec.basis.shapes import Loadings, Mask
from condec.modes.properties import LEAST_SAMPLES, Properties

if TYPE_CHECKING:
    import pandas

Table = np.ndarray[Any, np.dtype[Any]]
Known = dict[int, tuple[Table, Table]]
MODES_AT_ONCE: Final = 32
FIGURES: Final = ("correlation", "auroc", "precision", "information", "selectivity")
_SMALL: Final = 0.1
"""Values of p from which on false-discovery rates are given as 1."""


@short_repr
@dataclass(frozen=True, eq=False)
class ModeStatistics:
    """Figures of every mode and property, [mode, property]; see the module for formulas.

    `kinds`, `names` and `numbers` are those of the properties, `counts` how many samples have them;
    `left_out` names those that too few samples have, or lack.
    """

    correlation: Tensor
    auroc: Tensor
    precision: Tensor
    information: Tensor
    selectivity: Tensor
    p: Tensor
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    counts: tuple[int, ...]
    left_out: tuple[str, ...] = ()

    @cached_property
    def q(self) -> Tensor:
        """False-discovery rates over all modes and properties (Benjamini & Hochberg 1995).

        Those of `p` above 0.1 are given as 1, as they would be above 0.1 themselves.
        """
        from scipy.stats import false_discovery_control

        values = self.p.numpy()
        small, found = values <= _SMALL, np.ones(values.shape, dtype=np.float32)
        if small.any():  # of the k smallest alone, times what they are of all
            rates = false_discovery_control(values[small]) * (values.size / small.sum())
            found[small] = np.minimum(rates, 1.0)
        return torch.from_numpy(found)

    def pairs(self, mode: Tensor, place: Tensor) -> "pandas.DataFrame":
        """List the figures of some pairs: row of the mode, and place of the property."""
        import pandas

        at = (mode, place)
        table: dict[str, Any] = {"row": mode.tolist()}
        for name in ("kinds", "names", "numbers", "counts"):
            values = getattr(self, name)
            table[name.removesuffix("s")] = [values[p] for p in place.tolist()]
        for name in (*FIGURES, "p", "q"):
            table[name] = getattr(self, name)[at].tolist()
        return pandas.DataFrame(table)


def mode_statistics(
    loadings: Loadings, properties: Properties | Sequence[Properties], *,
    rows: Mask | None = None, k: int = 10, seed: int = 0,
) -> ModeStatistics:  # fmt: skip
    """Compare the loadings of all modes with all properties of the samples.

    Parameters
    ----------
    loadings : Tensor of shape [sample, mode]
    properties : Properties, or several
    rows : Tensor of shape [sample], bool, optional
        Samples that take part; all by default.
    k : int
        Of the precision.
    seed : int
        Of the order by which ties are broken for `p`.

    Raises
    ------
    DataError
        Properties of another number of samples, loadings that are not finite, or none of the
        properties has two samples that have it and two that do not.
    """
    at_least("mode_statistics", 1, k=k)
    rows = torch.ones(len(loadings), dtype=torch.bool) if rows is None else rows
    several = [properties] if isinstance(properties, Properties) else list(properties)
    parts, left_out = [], list[str]()
    for one in several:
        if len(one.known) != len(loadings):
            raise DataError(
                f"mode_statistics: loadings of {len(loadings)} samples, properties of "
                f"{len(one.known)}; give those of the same samples"
            )
        mine = one.of(rows)
        enough = mine.enough()
        left_out += [name for name, is_enough in zip(mine.names, enough, strict=True)
                     if not is_enough]  # fmt: skip
        if enough.any():
            parts.append(mine.chosen(enough))
    if not parts:
        raise DataError(
            f"mode_statistics: none of {len(left_out)} labels or other properties has "
            f"{LEAST_SAMPLES} of the samples and lacks {LEAST_SAMPLES} (a label with one sample "
            "tells nothing); give more samples, or superclasses"
        )
    shape, end = (loadings.shape[1], sum(map(len, parts))), 0
    found = {name: np.empty(shape, dtype=np.float32) for name in (*FIGURES, "p")}
    for part in parts:
        start, end = end, end + len(part)
        _fill({n: values[:, start:end] for n, values in found.items()}, loadings, part, k, seed)
    words = {
        name: tuple(value for part in parts for value in getattr(part, name))
        for name in ("kinds", "names", "numbers")
    }
    made: dict[str, Any] = {name: torch.from_numpy(values) for name, values in found.items()}
    made |= words
    made["counts"] = tuple(int(n) for part in parts for n in part.counts())
    return ModeStatistics(**made, left_out=tuple(left_out))


def _fill(found: dict[str, Table], loadings: Tensor, part: Properties, k: int, seed: int) -> None:
    """Work out all figures of the modes and the properties of one part, block by block."""
    n, counts, known = part.member.shape[0], part.counts(), Known()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    rows = part.known.nonzero().flatten()[order]
    member = part.member[order.numpy()].T.tocsr()
    # One for all blocks: fresh large arrays leave holes among the small ones, 0.2 GiB of them.
    buffer = loadings.new_empty(0)
    for start in range(0, loadings.shape[1], MODES_AT_ONCE):
        some = slice(start, start + MODES_AT_ONCE)
        torch.index_select(loadings[:, some].detach(), 0, rows, out=buffer.resize_(0))
        block = buffer.to(torch.float32).numpy()
        if not np.isfinite(block.sum(dtype=np.float64)):
            raise DataError("mode_statistics: loadings hold NaN or infinite entries")
        for name, values in _of_block(block, member, counts, k, known).items():
            found[name][some] = values.T


def _of_block(block: Table, member: Any, counts: Table, k: int, known: Known) -> dict[str, Table]:
    """Work out figures [property, mode] of some modes; `member` is [property, sample], sparse."""
    from scipy import sparse

    n, n_modes = block.shape
    column, row = np.nonzero(block.T)  # by mode, and there by sample
    z = block[row, column].astype(np.float64)
    starts = np.searchsorted(column, np.arange(n_modes + 1))

    def sums(values: Table) -> Any:
        """Add values of every property's samples."""
        made = sparse.csc_array((values, row, starts), shape=(n, n_modes))
        return (member @ made).toarray()

    def totals(values: Table) -> Any:
        return np.bincount(column, values, n_modes)

    n1, used = counts[:, None].astype(np.float64), z > 0
    n0, users = n - n1, totals(used)
    by_sample = _places(z, starts)
    found = {"correlation": _pearson(sums(z), totals(z), totals(z**2), n1, n)}
    ranks, of_zero = _ranks(z, by_sample, starts, n)
    total = n1 * of_zero + sums(ranks - of_zero[column])
    found["auroc"] = (total - n1 * (n1 + 1) / 2) / (n1 * n0)
    weight = _top_weights(z, by_sample, users[column], column, k)
    found["precision"] = sums(weight) / np.maximum(np.minimum(users, k), 1)
    both = sums(used.astype(np.float64))
    found["information"] = _information(both, users, n1, n)
    size = np.where(used, z, 0.0)
    inside = sums(size)
    mean1, mean0 = inside / n1, (totals(size) - inside) / n0
    found["selectivity"] = (mean1 - mean0) / np.where(mean1 + mean0 > 0, mean1 + mean0, 1)
    found["p"] = np.empty_like(both)
    for count in np.unique(
        counts
    ).tolist():  # of properties of one size, as many of the first samples
        mine = counts == count
        top = used & (by_sample < count)
        ends = np.searchsorted(column[top], np.arange(n_modes + 1))
        ones = np.ones(int(ends[-1]), dtype=np.float32)
        made = sparse.csc_array((ones, row[top], ends), shape=(n, n_modes))
        hits = (member[mine] @ made).toarray()
        found["p"][mine] = _hypergeometric(hits, n, count, np.minimum(count, users), known)
    return found


def _places(z: Table, starts: Table) -> Table:
    """Return the place of every entry among its mode's, the highest first; ties as they come."""
    place = np.empty(len(z), dtype=np.int64)
    for start, end in pairwise(starts.tolist()):
        place[start + np.argsort(-z[start:end], kind="stable")] = np.arange(end - start)
    return place


def _ranks(z: Table, place: Table, starts: Table, n: int) -> tuple[Table, Table]:
    """Return ranks from below of all entries that are not 0, ties averaged; and that of the 0s."""
    ranks, of_zero = np.empty(len(z)), np.empty(len(starts) - 1)
    for mode, (start, end) in enumerate(pairwise(starts.tolist())):
        size = end - start
        order = np.empty(size, dtype=np.int64)
        order[place[start:end]] = np.arange(size)
        low = z[start:end][order][::-1]  # ascending
        below = int(np.searchsorted(low, 0.0))
        first = np.searchsorted(low, low, "left")
        last = np.searchsorted(low, low, "right")
        between = np.where(low > 0, n - size, 0)
        ranks[start + order[::-1]] = (first + 1 + last) / 2 + between
        of_zero[mode] = below + (n - size + 1) / 2
    return ranks, of_zero


def _top_weights(z: Table, place: Table, users: Table, column: Table, k: int) -> Table:
    """Weigh the k highest entries above 0 of every mode; those tied at the border share."""
    k_of = np.minimum(k, users)
    border = np.full(int(column.max(initial=-1)) + 1, np.inf)
    last = place == k_of - 1
    border[column[last]] = z[last]
    at = border[column] if len(column) else z
    above, tied = z > at, z == at
    n_above, n_tied = (np.bincount(column, one, len(border)) for one in (above, tied))
    share = (k_of - n_above[column]) / np.maximum(n_tied[column], 1)
    found: Table = above + tied * share * (z > 0)
    return found


def _pearson(inside: Table, total: Table, squares: Table, n1: Table, n: int) -> Table:
    top = inside - n1 * total / n
    varies = squares - total**2 / n
    # Of equal values, what rounding leaves.
    varies = np.where(varies > 1e-9 * squares, varies, 0.0)
    below = np.sqrt(varies * (n1 - n1**2 / n))
    return np.where(below > 0, top / np.where(below > 0, below, 1), 0.0)


def _information(both: Table, users: Table, n1: Table, n: int) -> Table:
    """Return the mutual information of two yes-or-no variables, in bits."""
    total = np.zeros_like(both)
    for joint, of_mode, of_property in (
        (both, users, n1), (users - both, users, n - n1), (n1 - both, n - users, n1),
        (n - users - n1 + both, n - users, n - n1),
    ):  # fmt: skip
        ratio = joint * n / np.where(of_mode * of_property > 0, of_mode * of_property, 1)
        total += joint / n * np.log2(np.where(joint > 0, ratio, 1))
    return np.maximum(total, 0.0)


def _hypergeometric(hits: Table, n: int, n1: int, drawn: Table, known: Known) -> Table:
    """Return P(at least so many of `drawn` samples are among n1 of n), hits [property, mode].

    What was worked out for other modes is in `known`.
    """
    from scipy.stats import hypergeom

    keys = hits.astype(np.int64) * (n + 1) + drawn.astype(np.int64)[None]
    asked, where = np.unique(keys, return_inverse=True)
    had, values = known.get(n1, (np.empty(0, dtype=np.int64), np.empty(0)))
    new = np.setdiff1d(asked, had, assume_unique=True)
    if len(new):
        more = hypergeom.sf(new // (n + 1) - 1, n, n1, new % (n + 1))
        order = np.argsort(had := np.concatenate([had, new]))
        values = np.minimum(np.concatenate([values, more]), 1.0)[order]
        had = had[order]
        known[n1] = had, values
    found: Table = values[np.searchsorted(had, asked)][where].reshape(hits.shape)
    return found


def redundancy(loadings: Loadings) -> Tensor:
    """Return the largest size of the correlation of each mode's loadings with another's, [mode].

    NaN for a single mode.
    """
    n_modes = loadings.shape[1]
    found = []
    for start in range(0, n_modes, 16 * MODES_AT_ONCE):
        some = torch.arange(start, min(start + 16 * MODES_AT_ONCE, n_modes))
        between = correlation_matrix(loadings[:, some], loadings).abs()
        between[torch.arange(len(some)), some] = -1
        found.append(between.max(1).values)
    best = torch.cat(found)
    return torch.where(best < 0, math.nan, best)


def monosemanticity(loadings: Loadings, embedding: Tensor) -> Tensor:
    r"""Tell how alike the samples of a mode are to an embedding, -1 to 1, [mode].

    .. math:: \sum_{s \ne t} z_s z_t \cos(e_s, e_t) \,/\, \sum_{s \ne t} z_s z_t

    of positive loadings (Pach et al. 2025); NaN where fewer than two samples use a mode. Compare
    with that of all samples, loadings of ones. `embedding`, [sample, entry], is of another model.

    DataError where the samples are not as many, or a sample's embedding is 0 or not finite.
    """
    if embedding.ndim != 2 or len(embedding) != len(loadings):
        raise DataError(
            f"monosemanticity: embeddings of shape {tuple(embedding.shape)} for loadings of "
            f"{len(loadings)} samples"
        )
    length = embedding.double().norm(dim=1)
    if not bool((length.isfinite() & (length > 0)).all()):
        raise DataError("monosemanticity: embeddings must be finite, and none 0")
    direction = unit_length(embedding.double(), 1)
    z = loadings.double().clamp(min=0)
    own = z.square().sum(0)
    alike = (direction.T @ z).square().sum(0) - own
    pairs = z.sum(0).square() - own
    return torch.where((z > 0).sum(0) > 1, alike / pairs, math.nan).to(torch.float32)
