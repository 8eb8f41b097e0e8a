"""What a fit begins with: rows split, scaled, in memory or in blocks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.shapes import SampleIndex
from condec.dictionary.base import Learner, as_matrix
from condec.dictionary.fitting.descent import device_of
from condec.dictionary.fitting.gradient import GradientLearner
from condec.dictionary.fitting.preparation import Moments, Preparation
from condec.dictionary.fitting.rows import (
    RowsInBlocks,
    RowsInMemory,
    StoredRows,
    TrainingRows,
    check_blocks,
    fits,
    in_memory,
    survey,
)
from condec.dictionary.records import TrainConfig, complement


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows of one fit.

    Attributes
    ----------
    rows : TrainingRows
        Prepared; for a learner by gradient descent on the device.
    preparation : Preparation
    train, held_out : Tensor of shape [row, unit]
        Rows of either split as they came, to be measured: all of them, or a sample of those
        that do not fit in memory.
    n_rows : int
        Of both splits.
    held_out_rows : Tensor of shape [row]
    """

    rows: TrainingRows
    preparation: Preparation
    train: Tensor
    held_out: Tensor
    n_rows: int
    held_out_rows: SampleIndex


def prepare(
    learner: Learner,
    matrix: Tensor | np.ndarray | StoredRows,
    config: TrainConfig,
    held_out_rows: Tensor | np.ndarray | None,
) -> Prepared:
    """Split rows and scale them; the errors are those of `fit`."""
    check_freeze(learner, config)
    if isinstance(matrix, Tensor | np.ndarray):
        found = _of_tensor(learner, as_matrix(matrix, "fit"), config, held_out_rows)
    elif fits(matrix, config.memory_gib):
        found = _of_tensor(learner, as_matrix(in_memory(matrix), "fit"), config, held_out_rows)
    else:
        found = _of_blocks(learner, matrix, config, held_out_rows)
    learner.check(found.rows.sample)
    return found


def check_freeze(learner: Learner, config: TrainConfig) -> None:
    """Refuse to freeze a half that a learner does not have."""
    if config.freeze is not None and not learner.freezes:
        raise OptionError(
            f"fit: {type(learner).__name__} has no {config.freeze} that could stay as it was "
            "drawn; leave TrainConfig.freeze at None"
        )


def split_rows(n_rows: int, held_out: float, seed: int = 0) -> SampleIndex:
    """Rows to hold out: a share of `n_rows` drawn at random, ascending.

    At least one row, and never all, where `held_out` is above 0.

    Raises
    ------
    DataError
        Fewer than two rows to split.

    Examples
    --------
    >>> split_rows(10, 0.2).shape
    torch.Size([2])
    """
    if held_out and n_rows < 2:
        raise DataError(f"split: at least 2 rows are needed to hold some out; got {n_rows}")
    number = min(max(round(held_out * n_rows), 1), n_rows - 1) if held_out else 0
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return order[:number].sort().values


def _of_tensor(
    learner: Learner, rows: Tensor, config: TrainConfig, wanted: Tensor | np.ndarray | None
) -> Prepared:
    held_out = _held_out(tuple(rows.shape), config, wanted)
    train = rows[complement(held_out, len(rows)).to(rows.device)]
    preparation = Preparation.fitted(Moments.of(train), config.scaling, config.centre)
    prepared = preparation.apply(train)
    if isinstance(learner, GradientLearner):
        prepared = prepared.to(device_of(config, rows))
    apart = rows[held_out.to(rows.device)]
    return Prepared(RowsInMemory(prepared), preparation, train, apart, len(rows), held_out)


def _of_blocks(
    learner: Learner, matrix: StoredRows, config: TrainConfig, wanted: Tensor | np.ndarray | None
) -> Prepared:
    if not isinstance(learner, GradientLearner):
        raise DataError(
            f"fit: {type(learner).__name__} needs all rows in memory, and {matrix.shape[0]} rows "
            f"of {matrix.shape[1]} units do not fit in {config.memory_gib:g} GiB with the copies "
            "that fitting makes; raise TrainConfig.memory_gib, or take a learner by gradient "
            "descent, which reads them in blocks"
        )
    held_out = _held_out(matrix.shape, config, wanted)
    check_blocks(matrix, config.memory_gib)
    seen = survey(matrix, held_out, config.memory_gib)
    preparation = Preparation.fitted(seen.moments, config.scaling, config.centre)
    device = torch.device(config.device or "cpu")
    rows = RowsInBlocks(matrix, held_out, seen, preparation, config.memory_gib, device)
    return Prepared(rows, preparation, seen.train, seen.held_out, matrix.shape[0], held_out)


def _held_out(
    shape: tuple[int, ...], config: TrainConfig, wanted: Tensor | np.ndarray | None
) -> Tensor:
    n_rows = shape[0]
    if not n_rows:
        raise DataError(f"fit: expected at least one row; got shape {shape}")
    if wanted is None:
        return split_rows(n_rows, config.held_out, config.split_seed)
    given: Tensor = torch.as_tensor(wanted).cpu()
    if given.dtype is torch.bool or given.is_floating_point() or given.ndim != 1:
        raise DataError(
            f"fit: held_out_rows must be numbers of rows, one axis of whole numbers; got "
            f"{given.dtype} of shape {tuple(given.shape)}. Of a mask take mask.nonzero().flatten()."
        )
    rows: Tensor = torch.unique(given.to(torch.int64))
    if len(rows) and not 0 <= int(rows[0]) <= int(rows[-1]) < n_rows:
        raise DataError(
            f"fit: held_out_rows must be among 0 ... {n_rows - 1}; got {int(rows[0])} ... "
            f"{int(rows[-1])}"
        )
    if len(rows) == n_rows:
        raise DataError(f"fit: all {n_rows} rows are held out; none is left to fit")
    return rows
