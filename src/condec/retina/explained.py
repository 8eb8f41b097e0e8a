"""Variance of receptive fields over time that modes explain.

Fields are predicted from loadings by ridge regression, in blocks of time that were not fitted,
and for comparison from clusters and principal components of the stimulus and of activations.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from condec.basis.checks import one_of
from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import pca_dimensions
from condec.data.inputs import Inputs
from condec.effects import interval, resample_counts
from condec.retina.checks import finite_rows, is_clips
from condec.retina.fields import ReceptiveFields

if TYPE_CHECKING:
    import pandas

FieldPart = Literal["picture", "field"]

_PENALTIES: Final = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, float("inf"))
_N_SEGMENTS: Final = 20  # stretches of time that are drawn again for the intervals
_N_STARTS: Final = 4
_COLUMNS: Final = 4096  # of a wide matrix, made double at one time

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
    activations: Float[torch.Tensor, "sample ..."] | None = None, *, of: FieldPart = "picture",
    folds: int = 5, variance: float = 0.95, n_shifts: int = 5, n_bootstrap: int = 1000,
    seed: int = 0,
) -> "pandas.DataFrame":  # fmt: skip
    r"""Score modes, and what they must beat, by R2 of each cell's receptive field over time.

    The field of a frame is its picture, with aligned signs (`ReceptiveFields.aligned`), along the
    principal components that hold 95 % of its variance. Time is cut into `folds` blocks; each is
    predicted from the others by ridge regression, whose penalty (per cell) was chosen within the
    others in the same manner. Frames that share a part of their clips with the block are left out
    of what is fitted. With the prediction :math:`\hat y` and the mean :math:`\bar y` of the
    fitted frames,

    .. math:: R^2 = 1 - \frac{\sum_s \|y_s - \hat y_s\|^2}{\sum_s \|y_s - \bar y\|^2}

    over all blocks: 1 where the field follows exactly, 0 for the mean field, below 0 for worse.

    Parameters
    ----------
    fields : ReceptiveFields
        Of frames in the order of time.
    loadings : Tensor of shape [sample, mode]
        Of the same frames: ``loadings[fields.rows]`` where those are of all samples.
    stimulus, activations : Tensor of shape [sample, ...], optional
        Of the same frames: clips, as `pooled_stimulus` gives them, and activations of the modes'
        site, such as ``store.matrix(site, quantity="activation", sign="concat")``.
    of : {"picture", "field"}
        The picture of length 1: shape and sign, weak fields as much as strong ones. Or picture
        times strength, which follows the gain of the cell as well.
    folds : int
    variance : float
        Share of the field's variance that is to be predicted, 0 to 1.
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

    one_of("explained_variance", "of", of, FieldPart)
    if folds < 2 or n_shifts < 0 or n_bootstrap < 0 or not 0 < variance <= 1:
        raise OptionError(
            "explained_variance: expected folds of 2 or more, n_shifts and n_bootstrap of 0 or "
            f"more, and a variance above 0 and at most 1; got {folds}, {n_shifts}, {n_bootstrap} "
            f"and {variance}"
        )
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
    targets = _targets(fields, of, variance)
    y = torch.cat(targets, 1)
    owner = torch.cat([torch.full((t.shape[1],), cell) for cell, t in enumerate(targets)])
    blocks = _Blocks(fields.rows, folds, gap=fields.temporal.shape[-1], owner=owner)
    total = blocks.errors_of_mean(y)
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


def pooled_stimulus(
    inputs: Inputs, rows: Sequence[int] | Tensor | None = None, *,
    shape: tuple[int, int, int] = (8, 10, 10), batch_size: int = 64,
) -> Float[torch.Tensor, "sample entry"]:  # fmt: skip
    """Average clips [history, y, x] over boxes, so that those of a whole movie fit into memory.

    Parameters
    ----------
    inputs : Inputs
    rows : sequence of int, optional
        Samples, such as ``fields.rows``; all by default.
    shape : (int, int, int)
        Boxes along history, y and x, at most the entries of the clip.
    batch_size : int

    Raises
    ------
    OptionError, DataError
        A number below 1; samples that are no clips.
    """
    is_clips("pooled_stimulus", inputs.name, inputs.sample_shape)
    if min(*shape, batch_size) < 1:
        raise OptionError(
            f"pooled_stimulus: shape and batch_size must be 1 or more; got {shape}, {batch_size}"
        )
    history, height, width = inputs.sample_shape
    boxes = min(shape[0], history), min(shape[1], height), min(shape[2], width)
    chosen = range(len(inputs)) if rows is None else [int(row) for row in rows]
    found = [
        F.adaptive_avg_pool3d(inputs.batch(chosen[start : start + batch_size]), boxes).flatten(1)
        for start in range(0, len(chosen), batch_size)
    ]
    return torch.cat(found)


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
            within = sum(
                self._of_cells((_ridge(x, y, fitted, part) - y[part]).square()).sum(1)
                for part, fitted in self._splits(train)
            )
            assert isinstance(within, Tensor)
            # Of equal errors the larger penalty.
            best = len(_PENALTIES) - 1 - within.flip(0).argmin(0)
            away = (_ridge(x, y, train, test) - y[test]).square()
            every = self._of_cells(away)  # [penalty, sample, cell]
            found[test] = every.gather(0, best.expand(1, len(test), -1))[0]
        return found

    def errors_of_mean(self, y: Tensor) -> Tensor:
        """Return the squared errors of the mean of the fitted frames, [sample, cell]."""
        found = torch.empty_like(y)
        for test, train in self._splits(torch.arange(len(y))):
            found[test] = (y[test] - y[train].mean(0)).square()
        return self._of_cells(found)

    def _of_cells(self, squares: Tensor) -> Tensor:
        """Sum over each cell's components, which are the last axis."""
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
    mean = rows.mean(0)
    if rows.shape[1] > len(rows):  # the smaller of the two matrices, without a copy of the rows
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for start in range(0, rows.shape[1], _COLUMNS):
            some = slice(start, start + _COLUMNS)
            away = rows[:, some].double() - mean[some].double()
            gram.addmm_(away, away.T)
        values, vectors = torch.linalg.eigh(gram)
        scores: Tensor = vectors * values.clamp(min=0.0).sqrt()
    else:
        away = rows.double() - mean.double()
        scores = away @ torch.linalg.eigh(away.T @ away).eigenvectors
    return scores.flip(1)


def _clusters(scores: Tensor, n_clusters: int, seed: int) -> Tensor:
    """Return membership in k-means clusters, [sample, cluster]."""
    from sklearn.cluster import KMeans

    n_clusters = min(n_clusters, len(torch.unique(scores, dim=0)))
    means = KMeans(n_clusters=n_clusters, n_init=_N_STARTS, random_state=seed)
    labels = torch.as_tensor(means.fit_predict(scores.numpy()), dtype=torch.int64)
    return F.one_hot(labels, n_clusters).to(scores.dtype)


def _targets(fields: ReceptiveFields, of: FieldPart, variance: float) -> list[Tensor]:
    """Return the components of each cell that hold so much of its variance; one at least."""
    whole = fields.aligned()
    pictures = whole.spatial.flatten(2).double()
    each = whole.strength[..., None] * pictures if of == "field" else pictures
    return [_scores(one)[:, : max(pca_dimensions(one, variance), 1)] for one in each.unbind(1)]


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
