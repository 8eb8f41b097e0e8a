"""Inputs with stable names: arrays, files of arrays, folders of images, torch data sets.

A source of data is a line in `SOURCES` and a function there named; other packages bring theirs by
`condec.basis.registry`, in the group ``condec.data``.

>>> load_data("digits")
Inputs
  name         'digits'
  ids          (897 str)
  labels       Tensor[897] int64
  label_names  (10 str)
  preprocess   scale_pixels()
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from condec.basis import registry
from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.data.arrays import as_images, as_labels, digits, from_arrays, from_dataset, from_file
from condec.data.images import from_folder
from condec.data.inputs import UNLABELLED, Inputs, Preprocess, read_names, scale_pixels, spread

__all__ = [
    "UNLABELLED", "Inputs", "Preprocess", "as_inputs", "load_data", "read_names", "scale_pixels",
    "spread",
]  # fmt: skip

SOURCES: Final[dict[str, Callable[..., Inputs]]] = {
    "digits": lambda rest, keys, **facts: digits(),
    "npz:FILE": lambda rest, keys, *, folder, **facts: from_file(folder / rest),
    "folder:DIR[?csv=FILE]": lambda rest, keys, *, folder, **facts: from_folder(
        folder / rest, folder / keys["csv"] if "csv" in keys else None
    ),
}
"""Sources here, as they are written, and what opens them; called as those of other packages."""


def load_data(
    source: str, *,
    csv: str | Path | None = None, label_names: str | Path | None = None,
    preprocess: Preprocess | None = None, shape: tuple[int, ...] | None = None,
    limit: int | None = None, scaling: tuple[float, float] | None = None,
    cells: Sequence[str] | None = None, folder: str | Path = ".",
) -> Inputs:  # fmt: skip
    """Open a data set by its text form.

    Parameters
    ----------
    source : str
        ``digits``: the 897 handwritten digits of scikit-learn that the embedded model has not
        seen. ``npz:FILE``: arrays ``images`` (uint8 [sample, y, x, channel], or float as the
        model takes it), and, if there, ``labels``, ``class_names`` and ``ids``; or a ``.npy``
        of images. ``folder:DIR``: images, one subfolder a class; or, with a csv, the files
        that it lists. ``movie:FILE?KEY=VALUE&...``: clips (`condec.retina.movies.files`).
    csv : path, optional
        Table with the columns ``file`` (relative to DIR), and, if there, ``label`` (number or
        class name) and ``name`` (of a numbered label). Also written ``folder:DIR?csv=FILE``.
    label_names : path, optional
        Json list with the name of every label.
    preprocess, shape : optional
        As in `Inputs`.
    limit : int, optional
        At most so many samples, spread evenly over the set.
    scaling : (float, float), optional
        Of movies: the mean and standard deviation that the model was trained with, to be taken
        out unless the source says otherwise.
    cells : sequence of str, optional
        Of movies: names of the model's outputs, whose responses are taken in this order.
    folder : path
        What relative paths start from.

    Raises
    ------
    OptionError
        The source is not understood, or the limit below 1.
    DataError
        Files missing or damaged, no samples, labels out of range, cells that are not there.
    """
    load = registry.opener("data", source, SOURCES, "condec.data")
    rest, _, query = source.partition(":")[2].partition("?")
    keys = {} if csv is None else {"csv": str(csv)}
    keys |= parse_qsl(query, keep_blank_values=True)
    if "csv" in keys and not source.startswith("folder:"):
        problem = f"a csv belongs to folder:DIR only; got csv={keys['csv']!r}"
        raise OptionError(f"data {source!r}: {problem}")
    if load in SOURCES.values() and (others := keys.keys() - {"csv"}):
        raise OptionError(f"data {source!r}: expected no key but csv; got {', '.join(others)}")
    at_least("data", 1, limit=1 if limit is None else limit)
    base = Path(folder)
    inputs: Inputs = load(rest, keys, folder=base, shape=shape, scaling=scaling, cells=cells)
    if label_names is not None:
        inputs = replace(inputs, label_names=read_names(base / label_names))
    inputs = replace(inputs, preprocess=preprocess or scale_pixels, shape=shape)
    if limit is not None and limit < len(inputs):
        inputs = inputs.select(spread(len(inputs), limit))
    return inputs


def as_inputs(data: Any, *, preprocess: Preprocess | None = None) -> Inputs:
    """Take what users have as `Inputs`.

    Parameters
    ----------
    data : Inputs, Tensor, array, (inputs, labels), or torch Dataset
        Floats are taken as the model's inputs; uint8 as images [sample, y, x, channel], or
        PIL images in a data set. Labels of a data set come from its ``targets`` or
        ``labels``; where it has neither, its items are read once. DataError for anything else.
    preprocess : callable, optional
        For uint8 images; see `Inputs`.

    Examples
    --------
    >>> import torch
    >>> inputs = as_inputs((torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])))
    >>> inputs.ids, inputs.labels.tolist()
    (('0', '1', '2', '3'), [0, 1, 1, 0])
    """
    if isinstance(data, Inputs):
        return data if preprocess is None else replace(data, preprocess=preprocess)
    use = preprocess or scale_pixels
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if isinstance(data, tuple) and 1 <= len(data) <= 2:
        given = data[1] if len(data) == 2 else None
        labels = None if given is None else as_labels("data", given)
        return from_arrays("data", as_images("data", data[0]), labels, preprocess=use)
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return from_dataset(data, use)
    raise DataError(
        "data: expected a tensor, a pair (inputs, labels), Inputs, or a torch Dataset with a "
        f"length; got {type(data).__name__}"
    )
