"""Variance of receptive fields over time that modes explain.

Fields are predicted from loadings by ridge regression, in blocks of time that were not fitted,
and for comparison from clusters and principal components of the stimulus and of activations.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from condec.basis.checks import at_least
from condec.basis.errors import DataError
from condec.basis.metrics import pca_dimensions
from condec.data.inputs import Inputs
from condec.effects import interval, resample_counts
from condec.retina.checks import finite_rows, is_clips
from condec.retina.fields import ReceptiveFields

if TYPE_CHECKING:
    import pandas

_VARIANCE: Final = 0.95  # of a field, that is to be predicted
_PENALTIES: Final = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, float("inf"))
_N_SEGMENTS: Final = 20  # stretches of time that are drawn again for the intervals
_N_STARTS: Final = 4
_BOXES: Final = (8, 10, 10)  # of a pooled clip, along history, y and x
_CLIPS: Final = 64  # pooled at one time

MODES: Final = "modes"
COMPARED: Final = {
    MODES: "loadings of the modes",
    "shifted modes": "the same loadings, shifted in time: what chance and slow drift give",
    "stimulus clusters": "which of as many k-means clusters of the stimulus",
    "stimulus components": "as many principal components of the stimulus",
    "activation clusters": "which of as many k-means clusters of the activations",
    "activation components": "as many principal components of the activations",
}
"""The predictors of fields, in words."""


def explained_variance(
    fields: ReceptiveFields, loadings: Float[torch.Tensor, "sample mode"],
    stimulus: Float[torch.Tensor, "sample ..."] | None = None,
    activations: Float[torch.Tensor, "sample ..."] | None = None, *, folds: int = 5,
    n_shifts: int = 5, n_bootstrap: int = 1000, seed: int = 0,
) -> "pandas.DataFrame":  # fmt: skip
    r"""Score modes, and what they must beat, by R2 of each cell's receptive field over time.

    The field of a frame is its picture of length 1 (shape and sign, weak fields as much as strong
    ones), with aligned signs (`ReceptiveFields.aligned`), along the principal components that
    hold 95 % of its variance. Time is cut into `folds` blocks; each is predicted from the others
    by ridge regression, whose penalty (per cell) was chosen within the others in the same manner.
    Frames that share a part of their clips with the block are left out of what is fitted. With
    the prediction :math:`\hat y` and the mean :math:`\bar y` of the fitted frames,

    .. math:: R^2 = 1 - \frac{\sum_s \|y_s - \hat y_s\|^2}{\sum_s \|y_s - \bar y\|^2}

    over all blocks: 1 where the field follows exactly, 0 for the mean field, below 0 for worse.

    Parameters
    ----------
    fields : ReceptiveFields
        Of frames in the order of time.
    loadings : Tensor of shape [sample, mode]
        Of the same frames: ``loadings[fields.rows]`` where those are of all samples.
    stimulus, activations : Tensor of shape [sample, ...], optional
        Of the same frames: clips, as `pooled_stimulus` gives them, and activations of the site.
    folds : int
    n_shifts : int
        Shifts of the loadings, by a tenth to nine tenths of the time; errors are averaged.
    n_bootstrap : int
        Resamples of 20 stretches of time, for the intervals; 0: none.
    seed : int
        Of clusters, shifts and resamples.

    Returns
    -------
    pandas.DataFrame
        One row for each cell and predictor (rows of what is not given are missing), columns:

        - ``cell``: output of the model;
        - ``predictor``: as in `COMPARED`; ``compared``: the same in words;
        - ``n_predictors``: modes that vary, clusters or components;
        - ``n_components``: of the field;
        - ``r2``, ``r2_low``, ``r2_high``: R2 and its 95 % interval over stretches of time; NaN
          for a cell whose field never changes;
        - ``lead``, ``lead_low``, ``lead_high``: R2 of the modes minus this one, over the same
          resamples; NaN for the modes themselves.

    Raises
    ------
    OptionError, DataError
        A number is out of range; other numbers of frames, frames that are not in the order of
        time, too few, entries that are not finite, or no mode that varies.
    """
    import pandas

    at_least("explained_variance", 2, folds=folds)
    at_least("explained_variance", 0, n_shifts=n_shifts, n_bootstrap=n_bootstrap)
    if bool((fields.rows.diff() <= 0).any()):
        raise DataError(
            "explained_variance: the frames of the fields are not in the order of time; call "
            "receptive_fields with ascending rows"
        )
    given = {"loadings": loadings, "stimulus": stimulus, "activations": activations}
    known = {name: _rows(name, each, fields) for name, each in given.items() if each is not None}
    varying = known.pop("loadings").double()
    varying = varying[:, varying.amax(0) > varying.amin(0)]
    if not varying.shape[1]:
        raise DataError(
            f"explained_variance: none of {loadings.shape[1]} modes varies over {len(fields)} "
            "frames; nothing can be predicted from them"
        )
    # Of each cell the components of its pictures that hold so much of their variance; one at least.
    pictures = fields.aligned().spatial.flatten(2).double().unbind(1)
    targets = [_scores(one)[:, : max(pca_dimensions(one, _VARIANCE), 1)] for one in pictures]
    y = torch.cat(targets, 1)
    owner = torch.cat([torch.full((t.shape[1],), cell) for cell, t in enumerate(targets)])
    blocks = _Blocks(fields.rows, folds, gap=fields.temporal.shape[-1], owner=owner)
    total = blocks.errors(y.new_zeros(len(y), 1), y)  # of the mean: there is nothing to fit
    counts = resample_counts(min(_N_SEGMENTS, len(y)), n_bootstrap, seed)
    scores: dict[str, Tensor] = {}
    widths: dict[str, int] = {}
    for name, designs in _designs(varying, known, n_shifts, seed):
        residual = torch.stack([blocks.errors(x, y) for x in designs]).mean(0)
        scores[name] = _r2(residual, total, counts)
        widths[name] = designs[0].shape[1]
    rows = []
    for place, cell in enumerate(fields.cells.tolist()):
        for name, score in scores.items():
            lead = scores[MODES][:, place] - score[:, place]
            row = {"cell": cell, "predictor": name, "compared": COMPARED[name]}
            row |= {"n_predictors": widths[name], "n_components": targets[place].shape[1]}
            row |= _with_interval("r2", score[:, place])
            rows.append(row | _with_interval("lead", lead * torch.nan if name == MODES else lead))
    return pandas.DataFrame(rows)


def pooled_stimulus(inputs: Inputs, rows: Tensor) -> Float[torch.Tensor, "sample entry"]:
    """Average clips [history, y, x] over 8 x 10 x 10 boxes, so that a whole movie fits into memory.

    Parameters
    ----------
    inputs : Inputs
    rows : sequence of int
        Samples, such as ``fields.rows``.

    Raises
    ------
    DataError
        Samples that are no clips.
    """
    is_clips("pooled_stimulus", inputs.name, inputs.sample_shape)
    depth, height, width = map(min, _BOXES, inputs.sample_shape)
    batches = (inputs.batch(some.tolist()) for some in torch.split(rows, _CLIPS))
    boxes = depth, height, width
    return torch.cat([F.adaptive_avg_pool3d(clips, boxes).flatten(1) for clips in batches])


class _Blocks:
    """Blocks of time, each predicted from frames that share no part of a clip with it."""

    def __init__(self, times: Tensor, folds: int, *, gap: int, owner: Tensor) -> None:
        self._times, self._folds, self._gap, self._owner = times, folds, gap, owner
        self._n_cells = int(owner.max()) + 1
        for test, train in self._splits(torch.arange(len(times))):
            if min(len(part) for _, part in self._splits(train)) < 2 or not len(test):
                raise DataError(
                    f"explained_variance: {len(times)} frames are too few for {folds} blocks with "
                    f"{gap} frames between fitted and predicted ones; take fields at more frames, "
                    "or fewer folds"
                )

    def errors(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the squared errors of the predictions of y from x, [sample, cell]."""
        found = y.new_zeros(len(y), self._n_cells)
        for test, train in self._splits(torch.arange(len(y))):
            parts = self._splits(train)
            within = [self._of_cells(x, y, fitted, part).sum(1) for part, fitted in parts]
            # Of equal errors the larger penalty.
            best = len(_PENALTIES) - 1 - sum(within, y.new_zeros(())).flip(0).argmin(0)
            every = self._of_cells(x, y, train, test)
            found[test] = every.gather(0, best.expand(1, len(test), -1))[0]
        return found

    def _of_cells(self, x: Tensor, y: Tensor, train: Tensor, test: Tensor) -> Tensor:
        """Return the squared errors over each cell's components, [penalty, sample, cell]."""
        squares = (_ridge(x, y, train, test) - y[test]).square()
        sums = squares.new_zeros(*squares.shape[:-1], self._n_cells)
        return sums.index_add_(-1, self._owner, squares)

    def _splits(self, frames: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each block of these frames, and the frames that it can be predicted from."""
        for block in frames.tensor_split(self._folds):
            if len(block):
                first, last = self._times[block[0]], self._times[block[-1]]
                times = self._times[frames]
                yield block, frames[(times <= first - self._gap) | (times >= last + self._gap)]


def _ridge(x: Tensor, y: Tensor, train: Tensor, test: Tensor) -> Tensor:
    """Predict the test frames, [penalty, sample, column]."""
    mean, spread = x[train].mean(0), x[train].std(0, correction=0)
    scale = torch.where(spread > 1e-9 * x[train].abs().amax(0), spread, torch.inf)
    fitted, wanted = (x[train] - mean) / scale, (x[test] - mean) / scale
    offset = y[train].mean(0)
    values, vectors = torch.linalg.eigh(fitted.T @ fitted / len(train))
    along = vectors.T @ (fitted.T @ (y[train] - offset)) / len(train)
    penalties = torch.tensor(_PENALTIES, dtype=y.dtype)
    shrunk = along / (values.clamp(min=0.0) + penalties[:, None])[..., None]
    predicted: Tensor = offset + (wanted @ vectors) @ shrunk
    return predicted


def _designs(
    loadings: Tensor, known: dict[str, Tensor], n_shifts: int, seed: int
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each predictor: its name, and the matrices whose errors are averaged."""
    n_frames, n_modes = loadings.shape
    yield MODES, [loadings]
    generator = torch.Generator().manual_seed(seed)
    if n_shifts:
        least = max(n_frames // 10, 1)
        offsets = torch.randint(least, n_frames - least + 1, (n_shifts,), generator=generator)
        yield "shifted modes", [loadings.roll(offset, 0) for offset in offsets.tolist()]
    for name, word in (("stimulus", "stimulus"), ("activations", "activation")):
        if name in known:
            scores = _scores(known[name])
            yield f"{word} clusters", [_clusters(scores, n_modes, seed)]
            yield f"{word} components", [scores[:, :n_modes]]


def _scores(rows: Tensor) -> Tensor:
    """Return all principal components, largest first; distances between rows are kept."""
    away = rows.double() - rows.mean(0).double()
    if rows.shape[1] > len(rows):  # the smaller of the two matrices
        values, vectors = torch.linalg.eigh(away @ away.T)
        scores: Tensor = vectors * values.clamp(min=0.0).sqrt()
    else:
        scores = away @ torch.linalg.eigh(away.T @ away).eigenvectors
    return scores.flip(1)


def _clusters(scores: Tensor, n_clusters: int, seed: int) -> Tensor:
    """Return membership in k-means clusters, [sample, cluster]."""
    from sklearn.cluster import KMeans

    n_clusters = min(n_clusters, len(torch.unique(scores, dim=0)))
    means = KMeans(n_clusters=n_clusters, n_init=_N_STARTS, random_state=seed)
    labels = torch.as_tensor(means.fit_predict(scores.numpy()), dtype=torch.int64)
    return F.one_hot(labels, n_clusters).to(scores.dtype)


def _r2(residual: Tensor, total: Tensor, counts: Tensor) -> Tensor:
    """Return R2 in every resample of stretches of time, [resample, cell]; row 0 is the data."""
    segments = torch.arange(len(residual)).tensor_split(counts.shape[1])
    sums = [torch.stack([e[s].sum(0) for s in segments]) for e in (residual, total)]
    wrong, all_of_it = (counts.to(each.dtype) @ each for each in sums)
    varies = total.sum(0) > 0
    return torch.where(varies & (all_of_it > 0), 1 - wrong / all_of_it, torch.nan)


def _with_interval(name: str, values: Tensor) -> dict[str, float]:
    low, high = interval(values).tolist()
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}


def _rows(name: str, values: Tensor, fields: ReceptiveFields) -> Tensor:
    """Check that there is one finite row a frame."""
    if len(values) != len(fields):
        raise DataError(
            f"explained_variance: {name} of {len(values)} frames, fields of {len(fields)}; give "
            f"{name}[fields.rows]"
        )
    rows = values.flatten(1).cpu()
    finite_rows(f"explained_variance: {name}", rows)
    return rows
