"""Inputs from tensors, from files of arrays, and from torch data sets."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from condec.basis.errors import DataError
from condec.basis.files import reading
from condec.data.classes import label_number
from condec.data.inputs import Inputs, Preprocess, bytes_of, scale_pixels
from condec.data.pictures import eight_bits

LABEL_KEYS: Final = ("label", "labels")
"""Under what a mapping holds its label."""
SEVERAL: Final = (
    "A model of several inputs, or of token numbers, goes into condec.SeveralInputs(model, batch); "
    "a causal language model into condec.LanguageModel(model, tokenizer), which embeds tokens"
)


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
    whole = "" if array.is_floating_point() or array.dtype == torch.uint8 else f". {SEVERAL}"
    raise DataError(
        f"{name}: expected uint8 images [sample, y, x, channel], or floats [sample, ...] as the "
        f"model takes them; got {array.dtype} of shape {tuple(array.shape)}{whole}"
    )


def as_labels(name: str, labels: Any, classes: Sequence[str] | None = None) -> Tensor:
    """Make labels int64 of shape [sample]: whole numbers, or names that `classes` hold."""
    if isinstance(labels, list | tuple | np.ndarray) and all(isinstance(x, str) for x in labels):
        numbers = {text: number for number, text in enumerate(classes or ())}
        labels = [label_number(f"{name}: labels", text, numbers) for text in labels]
    array, wrong = _as_tensor(f"{name}: labels", labels), ""
    if array.ndim != 1 or array.is_complex():
        wrong = f"{array.dtype} of shape {tuple(array.shape)}"
    elif array.is_floating_point():
        odd = array[~array.isfinite() | (array != array.round())]
        wrong = f"{len(odd)} that are none, first {odd[0]:g}" if len(odd) else ""
    if wrong:
        raise DataError(f"{name}: expected whole numbers as labels, of shape [sample]; got {wrong}")
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
    expected = "Expected numpy's .npz or .npy of plain numbers and text, saved without pickle."
    with reading(path, "arrays", expected, DataError), path.open("rb") as file:
        opened = np.load(file, allow_pickle=False)
        arrays = {"images": opened} if isinstance(opened, np.ndarray) else dict(opened)
    if "images" not in arrays:
        raise DataError(f"{path}: no array 'images'; it has {', '.join(arrays) or 'none'}")
    for name in arrays.keys() & {"class_names", "ids"}:
        if arrays[name].ndim != 1:
            shape = arrays[name].shape
            raise DataError(f"{path}: {name}: expected a list, shape [number]; got shape {shape}")
    images = as_images(path.name, arrays["images"])
    names = arrays.get("class_names")
    images = images if images.dtype == torch.uint8 else images.to(torch.float32)
    label_names = None if names is None else tuple(map(str, names))
    given = arrays.get("labels")
    labels = None if given is None else as_labels(path.name, given, label_names)
    return from_arrays(path.name, images, labels, ids=arrays.get("ids"), label_names=label_names)


def from_dataset(data: Any, preprocess: Preprocess) -> Inputs:
    """Make inputs of a torch data set, or anything else with items by number, read when wanted.

    Labels are those of the items, which are read once for them, pictures and all; but for data
    sets of torchvision whose items take them from a list (`_LISTED`).
    """

    def read(index: int) -> Tensor:
        try:
            return sample_of(parts_of(data[index])[0])
        except Exception as error:
            kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            raise DataError(f"data: item {index}: {kind}{error}") from error

    names, given = _class_names(data), _given_labels(data)
    labels = None
    if given is not None:
        pairs = enumerate(given)
        numbers = [label_number(f"data: item {index}", label, names) for index, label in pairs]
        labels = as_labels("data", numbers)
    # A target_transform makes other numbers of the classes; others may not count from 0 on.
    named = bool(names) and [*names.values()] == [*range(len(names))]
    named = named and getattr(_innermost(data), "target_transform", None) is None
    ids = tuple(str(index) for index in range(len(data)))
    return Inputs(
        type(data).__name__, ids, read, labels, tuple(names) if named else None, preprocess,
        by_alphabet=named,
    )  # fmt: skip


def parts_of(item: Any) -> tuple[Any, Any]:
    """Split an item, or a batch, into its input and its label, None without one.

    Of a tuple or list they are the first two; of a mapping the label is ``label`` or ``labels``,
    and the input all else, which must be one entry.
    """
    if isinstance(item, Mapping):
        inputs = {key: value for key, value in item.items() if key not in LABEL_KEYS}
        if len(inputs) != 1:
            raise DataError(
                f"expected one input beside {' or '.join(LABEL_KEYS)}; got "
                f"{', '.join(map(str, inputs)) or 'none'}. {SEVERAL}"
            )
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        return next(iter(inputs.values())), label
    if isinstance(item, tuple | list):
        value, label = (*item, None, None)[:2]
        return (parts_of(value)[0] if isinstance(value, Mapping) else value), label
    return item, None


def sample_of(value: Any) -> Tensor:
    """Make one sample of a tensor, an array or a picture of PIL."""
    if hasattr(value, "convert") and hasattr(value, "mode"):
        value = np.array(eight_bits(value))
    array = value if isinstance(value, Tensor) else np.asarray(value)
    return as_images("sample", _as_tensor("sample", array).unsqueeze(0))[0]


def _innermost(data: Any) -> Any:
    while type(data) is Subset:
        data = data.dataset
    return data


def _class_names(data: Any) -> dict[str, int]:
    """Return the numbers of a data set's own classes, by name; empty where it does not say."""
    owner = _innermost(data)
    names, numbers = getattr(owner, "classes", None), getattr(owner, "class_to_idx", None)
    own = [*numbers.values()] if isinstance(numbers, Mapping) else []
    whole = all(isinstance(number, int) for number in own)
    if isinstance(numbers, Mapping) and whole and len({*own}) == len(own):
        return {str(name): numbers[name] for name in sorted(numbers, key=lambda n: numbers[n])}
    listed = names if isinstance(names, list | tuple) else ()
    return {str(name): number for number, name in enumerate(listed)}


_LISTED: Final[dict[str, Callable[[Any], list[Any]]]] = {
    "torchvision.datasets.folder.DatasetFolder.__getitem__": lambda d: [n for _, n in d.samples],
    "torchvision.datasets.cifar.CIFAR10.__getitem__": lambda d: [*d.targets],
    "torchvision.datasets.mnist.MNIST.__getitem__": lambda d: [int(n) for n in d.targets],
}
"""Data sets whose items take their labels from a list, by what gives these items."""


def _given_labels(data: Any) -> list[Any] | None:
    """Return the label of every item, None for one that has none or cannot be read.

    None where the first item that can be read has no label.
    """
    if type(data) is Subset:
        inner = _given_labels(data.dataset)
        return None if inner is None else [inner[index] for index in data.indices]
    get: Any = getattr(type(data), "__getitem__", None)
    listed = _LISTED.get(f"{getattr(get, '__module__', '')}.{getattr(get, '__qualname__', '')}")
    if listed is not None:
        numbers = listed(data)
        return numbers if data.target_transform is None else [*map(data.target_transform, numbers)]
    labels: list[Any] = []
    is_first = True
    for index in range(len(data)):
        try:
            item = data[index]
        except Exception:  # noqa: BLE001  # whoever loads this item is told; here it has no label
            labels.append(None)
            continue
        has_label = isinstance(item, tuple | list | Mapping) and len(item) > 1
        if is_first and not has_label:
            return None
        is_first = False
        labels.append(parts_of(item)[1])
    return None if is_first else labels


def as_batch(owner: str, inputs: Any, first: str = "") -> Tensor:
    """Make one tensor of a batch; a mapping of one tensor stands for it.

    `first` is the name of the model's first argument, where it is known. DataError, which names
    what to use, for several inputs, lists of tensors, and whole data sets.
    """
    if isinstance(inputs, Mapping) and len(inputs) == 1 and first in ("", *inputs):
        (inputs,) = inputs.values()
    if isinstance(inputs, Mapping):
        keys = ", ".join(map(str, inputs))
        raise DataError(f"{owner}: expected one tensor; got a mapping of {keys}. {SEVERAL}")
    if isinstance(inputs, list | tuple) and any(isinstance(part, Tensor) for part in inputs):
        kinds = ", ".join(
            str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__
            for part in inputs
        )
        raise DataError(
            f"{owner}: expected one tensor [sample, ...]; got {type(inputs).__name__} of {kinds}"
            ". Of a pair of inputs and labels give x, and labels=y; of single samples "
            f"torch.stack(samples). {SEVERAL}"
        )
    if isinstance(inputs, Dataset | DataLoader):
        raise DataError(
            f"{owner}: expected one batch, a tensor [sample, ...]; got {type(inputs).__name__}. "
            "condec.collect takes whole data sets; of a DataLoader give one batch, x, y = "
            "next(iter(loader)), of a data set condec.as_inputs(data).batch(range(8))"
        )
    return _as_tensor(f"{owner}: inputs", inputs)
