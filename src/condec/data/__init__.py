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

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)  # fmt: skip

from condec.basis import registry
from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.files import user_path
from condec.data.arrays import (
    as_batch,
    as_images,
    as_labels,
    digits,
    from_arrays,
    from_dataset,
    from_file,
    parts_of,
)  # fmt: skip
from condec.data.attributes import read_attributes
from condec.data.images import Orientation, from_folder, from_image
from condec.data.inputs import UNLABELLED, Inputs, Preprocess, read_names, scale_pixels, spread
from condec.data.several import SeveralInputs
from condec.data.tables import from_hub, from_parquet
from condec.data.tars import files_of, from_tars
from condec.data.texts import Language, from_texts, from_tokens

__all__ = [
    "UNLABELLED", "Inputs", "Language", "Orientation", "Preprocess", "SeveralInputs", "as_batch",
    "as_inputs", "load_data", "read_attributes", "read_names", "scale_pixels", "spread",
]  # fmt: skip

SOURCES: Final[dict[str, Callable[..., Inputs]]] = {
    "digits": lambda rest, keys, **facts: digits(),
    "npz:FILE": lambda rest, keys, *, folder, **facts: from_file(user_path(rest, folder)),
    "image:FILE": lambda rest, keys, *, folder, shape, orientation, **facts: from_image(
        user_path(rest, folder), shape, orientation
    ),
    "webdataset:FILES[?label=ENDING]": (
        lambda rest, keys, *, folder, cells, orientation, **facts: from_tars(
            files_of(rest, folder), keys, cells, orientation
        )
    ),
    "parquet:FILES[?image=COLUMN&label=COLUMN&id=COLUMN]": (
        lambda rest, keys, *, folder, cells, orientation, **facts: from_parquet(
            files_of(rest, folder), keys, cells, orientation
        )
    ),
    "hf:NAME[?split=NAME&config=NAME&image=COLUMN&label=COLUMN&id=COLUMN]": (
        lambda rest, keys, *, folder, cells, orientation, **facts: from_hub(
            rest, keys, folder, cells, orientation
        )
    ),
    "text:FILE[?length=TOKENS&stride=TOKENS&labels=next|none]": (
        lambda rest, keys, *, folder, language, **facts: from_texts(
            user_path(rest, folder), keys, language
        )
    ),
    "tokens:FILE.npz[?length=TOKENS&stride=TOKENS&labels=next|none]": (
        lambda rest, keys, *, folder, language, **facts: from_tokens(
            user_path(rest, folder), keys, language
        )
    ),
    "folder:DIR[?csv=FILE]": lambda rest, keys, *, folder, cells, orientation, **facts: from_folder(
        user_path(rest, folder),
        user_path(keys["csv"], folder) if "csv" in keys else None,
        cells,
        orientation,
    ),
}
"""Sources here, as they are written, with the keys that they take, and what opens them; called as
those of other packages."""


def load_data(
    source: str, *,
    csv: str | Path | None = None, label_names: str | Path | None = None,
    preprocess: Preprocess | None = None, shape: tuple[int, ...] | None = None,
    limit: int | None = None, scaling: tuple[float, float] | None = None,
    cells: Sequence[str] | None = None, orientation: Orientation | None = None,
    folder: str | Path = ".", language: Language | None = None,
) -> Inputs:  # fmt: skip
    """Open a data set by its text form.

    Parameters
    ----------
    source : str
        ``digits``: the 897 handwritten digits of scikit-learn that the embedded model has not
        seen. ``npz:FILE``: arrays ``images`` (uint8 [sample, y, x, channel], or float as the
        model takes it), and, if there, ``labels``, ``class_names`` and ``ids``; or a ``.npy``
        of images. ``image:FILE``: one. ``folder:DIR``: images, one subfolder a class; or, with a
        csv, the files that it lists. ``webdataset:FILES.tar``, ``parquet:FILES``, ``hf:NAME``:
        images in tars of WebDataset, in a column of parquet files, in a data set of Hugging
        Face (docs/how-to/own-model.md has their keys). ``movie:FILE?KEY=VALUE&...``: clips
        (`condec.retina.movies.files`).
    csv : path, optional
        Table with the columns ``file`` (relative to DIR), and, if there, ``label`` (number or
        class name) and ``name`` (of a numbered label). Also written ``folder:DIR?csv=FILE``.
    label_names : path, optional
        Json list with the name of every output of the model.
    preprocess, shape : optional
        As in `Inputs`.
    limit : int, optional
        At most so many samples, spread evenly over the set.
    scaling : (float, float), optional
        Of movies: the mean and standard deviation that the model was trained with, to be taken
        out unless the source says otherwise.
    cells : sequence of str, optional
        Names of the model's outputs: movies give the responses of these cells, in this order;
        classes of a folder have the numbers that they have here, or of `label_names`, if given.
    orientation : {"stored", "exif"}, optional
        Of folders: pictures as their pixels are stored, as torchvision and timm take them and by
        default; or turned as their EXIF says, as Hugging Face does. A warning names the first
        picture that is stored turned and taken as it is.
    folder : path
        What relative paths start from.
    language : LanguageModel, optional
        The model, for texts: it knows their tokens and embeds them.

    Raises
    ------
    OptionError
        The source is not understood, or the limit below 1.
    DataError
        Files missing or damaged, no samples, labels out of range, cells that are not there, or
        classes that no name of a label fits.
    """
    load = registry.opener("data", source, SOURCES, "condec.data")
    rest, _, query = source.partition(":")[2].partition("?")
    keys = {} if csv is None else {"csv": str(csv)}
    keys |= parse_qsl(query, keep_blank_values=True)
    if "csv" in keys and not source.startswith("folder:"):
        problem = f"a csv belongs to folder:DIR only; got csv={keys['csv']!r}"
        raise OptionError(f"data {source!r}: {problem}")
    written = next((text for text, one in SOURCES.items() if one is load), None)
    known = re.findall(r"(\w+)=", written or "")
    if written is not None and (others := keys.keys() - {*known}):
        expected = f"no key but {', '.join(known)}" if known else "no keys"
        raise OptionError(f"data {source!r}: expected {expected}; got {', '.join(sorted(others))}")
    at_least("data", 1, limit=1 if limit is None else limit)
    base, names = user_path(folder), None
    if label_names is not None:
        names = read_names(user_path(label_names, base))
    if names is not None and written is not None:
        cells = names
    facts = {"orientation": orientation, "language": language} if written is not None else {}
    inputs: Inputs = load(
        rest, keys, folder=base, shape=shape, scaling=scaling, cells=cells, **facts
    )
    if names is not None:
        inputs = replace(inputs, label_names=names)
    inputs = replace(inputs, preprocess=preprocess or inputs.preprocess, shape=shape)
    if limit is not None and limit < len(inputs):
        inputs = inputs.select(spread(len(inputs), limit))
    return inputs


def as_inputs(data: Any, *, preprocess: Preprocess | None = None) -> Inputs:
    """Take what users have as `Inputs`.

    Parameters
    ----------
    data : Inputs, Tensor, array, (inputs, labels), torch Dataset, DataLoader, or list of items
        Floats are taken as the model's inputs; uint8 as images [sample, y, x, channel], or
        PIL images in a data set. An item is an input, a pair (input, label), or a mapping with
        one input and perhaps a ``label``. Labels are whole numbers, names that the data set's
        ``classes`` hold, or None; they are those of the items, which are read once for them,
        pictures and all (a data set may change its ``targets`` on the way); but those of
        torchvision's folders, CIFAR and MNIST are taken from their lists. A DataLoader stands
        for its data set, where it draws every item once. A batch of a DataLoader, a list of
        inputs and labels, is a pair. DataError, which names what to give, for anything else.
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
    if isinstance(data, DataLoader):
        data = _behind(data)
    if isinstance(data, IterableDataset):
        raise DataError(
            f"data: {type(data).__name__} gives its items in turn, and they are needed by number; "
            "keep them in a list: condec.as_inputs(list(data))"
        )
    if type(data) is TensorDataset:
        data = data.tensors
    if isinstance(data, Mapping):
        data = parts_of(data)
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if _is_pair(data):
        given = data[1] if len(data) == 2 else None
        labels = None if given is None else as_labels("data", given)
        return from_arrays("data", as_images("data", data[0]), labels, preprocess=use)
    if hasattr(data, "__len__") and (isinstance(data, Dataset) or _has_items(data)):
        return from_dataset(data, use)
    raise DataError(
        "data: expected a tensor, a pair (inputs, labels), Inputs, a list of inputs or of such "
        f"pairs, or a torch Dataset with a length; got {type(data).__name__}"
    )


def _behind(loader: DataLoader[Any]) -> Any:
    """Return the data set that a loader reads, where it gives every item of it once, unchanged."""
    sampler, data = loader.sampler, loader.dataset
    draws = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    whole = isinstance(data, IterableDataset) or draws
    if loader.collate_fn is default_collate and whole and loader.batch_size is not None:
        return data
    raise DataError(
        "data: a DataLoader with a sampler or collate_fn of its own gives other samples than its "
        "data set; give a list of its samples, or its data set, condec.as_inputs(loader.dataset)"
    )


def _is_pair(data: Any) -> bool:
    """Tell a pair of inputs and labels; a list is one as a DataLoader makes it, of two tensors."""
    if isinstance(data, list):
        tensors = len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        return tensors and data[1].ndim == 1 < data[0].ndim and len(data[0]) == len(data[1])
    return isinstance(data, tuple) and 1 <= len(data) <= 2


def _has_items(data: Any) -> bool:
    """Tell a list of items, or what a library gives as one, by its first."""
    if isinstance(data, list):
        return bool(data) and not isinstance(data[0], int | float | str)
    return hasattr(data, "__getitem__") and not isinstance(data, str | bytes | tuple)
