"""Inputs from tensors, from files of arrays, and from torch data sets."""

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from condec.basis.errors import DataError
from condec.data.inputs import UNLABELLED, Inputs, Preprocess, bytes_of, scale_pixels


def from_arrays(
    name: str, images: Tensor, labels: Tensor | None, *, ids: Iterable[Any] | None = None,
    label_names: tuple[str, ...] | None = None, preprocess: Preprocess = scale_pixels,
) -> Inputs:  # fmt: skip
    """Make inputs of one array; ids are the indices unless given."""
    ids = tuple(str(i) for i in (range(len(images)) if ids is None else ids))
    if len(ids) != len(images):
        raise DataError(f"{name}: {len(images)} samples, but {len(ids)} ids")

    def stored(rows: Iterable[int]) -> Iterator[bytes]:
        return (bytes_of(images[row]) for row in rows)

    read = images.__getitem__
    return Inputs(name, ids, read, labels, label_names, preprocess, stored=stored)


def as_images(name: str, images: Any) -> Tensor:
    """Make images or other samples a tensor; a uint8 array without channels is grey."""
    array = _as_tensor(f"{name}: images", images)
    if array.dtype == torch.uint8 and array.ndim == 3:
        array = array.unsqueeze(-1)
    if array.dtype == torch.uint8 and array.ndim == 4 and array.shape[-1] <= 4:
        return array
    if array.is_floating_point() and array.ndim >= 2:
        return array
    raise DataError(
        f"{name}: expected uint8 images [sample, y, x, channel], or floats [sample, ...] as the "
        f"model takes them; got {array.dtype} of shape {tuple(array.shape)}"
    )


def as_labels(name: str, labels: Any) -> Tensor:
    """Make labels int64 of shape [sample]."""
    array = _as_tensor(f"{name}: labels", labels)
    if array.ndim != 1 or array.is_floating_point() or array.is_complex():
        raise DataError(
            f"{name}: expected integer labels of shape [sample]; got {array.dtype} of shape "
            f"{tuple(array.shape)}"
        )
    return array.to(torch.int64)


def _as_tensor(what: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} are not an array of numbers: {error}") from error


def digits() -> Inputs:
    """Load digits that the embedded model has not seen: every second ten of the 1,797."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = np.flatnonzero(np.arange(len(bunch.target)) // 10 % 2 == 1)
    pixels = np.round(bunch.images[rows] * 255 / 16).astype(np.uint8)
    images, labels = torch.from_numpy(pixels).unsqueeze(-1), as_labels("", bunch.target[rows])
    return from_arrays("digits", images, labels, ids=rows, label_names=tuple("0123456789"))


def from_file(path: Path) -> Inputs:
    """Read samples of a ``.npz`` or ``.npy`` file; floats are float32."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            opened = np.load(file, allow_pickle=False)
            arrays = {"images": opened} if isinstance(opened, np.ndarray) else dict(opened)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        problem = f"not readable as arrays without pickle ({error}); expected numpy's .npz or .npy"
        raise DataError(f"{path}: {problem} of plain numbers and text") from error
    if "images" not in arrays:
        raise DataError(f"{path}: no array 'images'; it has {', '.join(arrays) or 'none'}")
    images = as_images(path.name, arrays["images"])
    names = arrays.get("class_names")
    images = images if images.dtype == torch.uint8 else images.to(torch.float32)
    labels = as_labels(path.name, arrays["labels"]) if "labels" in arrays else None
    label_names = None if names is None else tuple(map(str, names))
    return from_arrays(path.name, images, labels, ids=arrays.get("ids"), label_names=label_names)


def from_dataset(data: Any, preprocess: Preprocess) -> Inputs:
    """Make inputs of a torch data set, read one by one when they are wanted."""

    def read(index: int) -> Tensor:
        try:
            item = data[index]
        except Exception as error:
            raise DataError(f"data: item {index}: {type(error).__name__}: {error}") from error
        value = item[0] if isinstance(item, tuple | list) else item
        value = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        return as_images("data", value.unsqueeze(0))[0]

    ids = tuple(str(index) for index in range(len(data)))
    names = getattr(data, "classes", None)
    labels = _dataset_labels(data) if ids else None
    label_names = tuple(map(str, names)) if isinstance(names, list | tuple) else None
    return Inputs(type(data).__name__, ids, read, labels, label_names, preprocess)


def _dataset_labels(data: Any) -> Tensor | None:
    """Find labels by the conventions of torch and torchvision, else by reading every item once."""
    if isinstance(data, Subset):
        inner = _dataset_labels(data.dataset)
        return None if inner is None else inner[torch.as_tensor(list(data.indices))]
    for attribute in ("targets", "labels"):
        values = getattr(data, attribute, None)
        if values is not None and len(values) == len(data):
            return as_labels("data", values)
    if not isinstance(data[0], tuple | list) or len(data[0]) < 2:
        return None

    def label(index: int) -> int:
        try:
            return int(data[index][1])
        except Exception:  # noqa: BLE001  # whoever loads this item is told; here it has no label
            return UNLABELLED

    return as_labels("data", [label(index) for index in range(len(data))])
