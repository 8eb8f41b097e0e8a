"""Inputs: samples with stable names, labels and pictures, wherever they come from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from condec.basis.errors import DataError
from condec.basis.files import reading
from condec.basis.records import short_repr
from condec.basis.shapes import Labels

UNLABELLED: Final = -1
MOST_LABELS: Final = 1_000_000
"""Labels are numbers of classes, each of which has a place in tables: larger ones are none."""

Preprocess = Callable[[Tensor], Tensor]
Stored = Callable[[Sequence[int]], Iterable[bytes]]

_N_READ: Final = 1_000  # samples that the fingerprint reads where `Inputs.stored` is None
_N_PREPARED: Final = 16  # samples that it preprocesses


def scale_pixels(images: Tensor) -> Tensor:
    """Divide by 255: uint8 [sample, y, x, channel] to float [sample, channel, y, x].

    Examples
    --------
    >>> scale_pixels(torch.full((1, 2, 4, 3), 255, dtype=torch.uint8)).shape
    torch.Size([1, 3, 2, 4])
    """
    return images.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255


@short_repr
@dataclass(frozen=True, eq=False)
class Inputs(Dataset[tuple[Tensor, int]]):
    """Samples to analyse; itself a torch data set of (input, label) pairs.

    DataError where there are none, or labels do not fit them or their names.

    Attributes
    ----------
    name : str
        Where the samples come from; used in messages.
    ids : tuple of str
        Stable name of every sample: the file relative to its folder, or the index.
    read : callable
        From an index to one sample as stored: uint8 [y, x, channel], int64 tokens, or a float
        tensor that the model takes as it is.
    labels : Tensor of shape [sample], or None
        int64; -1 marks a sample without label.
    label_names : tuple of str, or None
    preprocess : callable
        From uint8 images [sample, y, x, channel] to float [sample, channel, y, x], or from tokens
        to their embeddings; not applied to samples that are floats already.
    shape : tuple of int, or None
        That of every preprocessed sample; None: that of the first readable one.
    stored : callable, or None
        From indices to bytes that stand for these samples, for the fingerprint.
    by_alphabet : bool
        Whether labels number the names in the order of the alphabet, or as a data set does:
        they are numbers of outputs only where the model has as many of these.
    notes : tuple of str
        What of the source is left out, in sentences.
    """

    name: str
    ids: tuple[str, ...]
    read: Callable[[int], Tensor] = field(repr=False)
    labels: Labels | None = None
    label_names: tuple[str, ...] | None = None
    preprocess: Preprocess = scale_pixels
    shape: tuple[int, ...] | None = None
    stored: Stored | None = field(default=None, repr=False)
    by_alphabet: bool = field(default=False, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f"{self.name}: empty; expected at least one sample")
        if len(set(self.ids)) < len(self.ids):
            first, second = repeated(self.ids)
            raise DataError(
                f"{self.name}: samples {first} and {second} have the same id, "
                f"{self.ids[first]!r}; ids tell samples apart in stores and tables. Give each "
                "sample its own, and each once"
            )
        if self.labels is not None:
            self._check_labels(self.labels)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = UNLABELLED if self.labels is None else int(self.labels[index])
        return self.load(index), label

    def load(self, index: int) -> Tensor:
        """Load one sample as the model takes it, without a sample axis.

        DataError where it cannot be read, has another shape than the others, or is not finite.
        """
        sample = self._prepared(index)
        if tuple(sample.shape) != self.sample_shape:
            raise DataError(
                f"{self.name}: sample {self.ids[index]!r} has shape {tuple(sample.shape)}; "
                f"{'the model' if self.shape else 'the first sample'} has {self.sample_shape}. "
                "Resize it, or choose a preprocessing that does."
            )
        if wrong := int((~sample.isfinite()).sum()):
            raise DataError(
                f"{self.name}: sample {self.ids[index]!r}: {wrong} of {sample.numel()} values are "
                "not finite (NaN or infinite)"
            )
        return sample

    def batch(self, indices: Iterable[int] | Tensor) -> Tensor:
        """Load several samples, shape [sample, ...]; errors as in `load`."""
        return torch.stack([self.load(int(index)) for index in indices])

    def indices_of(self, ids: Sequence[str], *, who: str, of: str) -> list[int]:
        """Find samples by their ids; DataError, "`who` lacks n `of`", where some are missing."""
        index = {sample_id: place for place, sample_id in enumerate(self.ids)}
        if missing := [sample_id for sample_id in ids if sample_id not in index]:
            raise DataError(
                f"{who} lacks {len(missing)} {of}; the first are {missing[:3]}. Give the data "
                "that were collected."
            )
        return [index[sample_id] for sample_id in ids]

    def picture(self, index: int) -> Tensor:
        """Show one sample as the model sees it: uint8, shape [y, x, 3].

        The preprocessing's scaling of pictures is undone: what it makes of black and of white
        becomes 0 and 255 again, channel by channel; its resizing and cropping stay, so that a
        map in the model's input lies exactly over the picture. Floats are stretched from their
        least to their largest value. DataError as in `load`, or where it is no image.
        """
        image = self.load(index)
        if image.ndim != 3:
            raise DataError(
                f"{self.name}: sample {self.ids[index]!r} of shape {tuple(image.shape)} is no "
                "picture; expected [channel, y, x]"
            )
        black, white = self._black_and_white(self.read(index))
        if black is None or white is None or bool((black == white).any()):
            black, white = image.amin(), image.amax()
        span = (white - black).clamp(min=torch.finfo(image.dtype).tiny)
        pixels = ((image - black) / span * 255).round().clamp(0, 255).to(torch.uint8)
        if len(pixels) != 3:  # grey, or channels that are no colours
            pixels = pixels.float().mean(0).round().to(torch.uint8).expand(3, -1, -1)
        return pixels.permute(1, 2, 0).contiguous()

    def select(self, indices: Sequence[int]) -> "Inputs":
        """Take the samples at `indices`, in that order, under the same ids."""
        rows = [int(index) for index in indices]
        stored = self.stored
        return replace(
            self, ids=tuple(self.ids[row] for row in rows), read=lambda i: self.read(rows[i]),
            labels=None if self.labels is None else self.labels[rows],
            stored=None if stored is None else lambda some: stored([rows[i] for i in some]),
        )  # fmt: skip

    def needed_labels(self, purpose: str) -> Labels:
        """Return the labels of all samples; DataError, naming the `purpose`, where none are."""
        if self.labels is None or bool((self.labels == UNLABELLED).all()):
            raise DataError(
                f"{self.name}: labels missing, and {purpose} needs them; give an array 'labels', "
                "a folder with one subfolder a class, or a csv with the columns file,label"
            )
        return self.labels

    def check_outputs(self, n_outputs: int) -> None:
        """Raise DataError where labels cannot be numbers of a model's outputs."""
        names = self.label_names or ()
        if self.by_alphabet and len(names) != n_outputs:
            raise DataError(
                f"{self.name}: {len(names)} classes ({listed(names, 5)}) have the numbers 0 to "
                f"{len(names) - 1} among themselves, and the model has {n_outputs} outputs: which "
                "belongs to which is not known. Give label_names, a json list with the name of "
                "every output; or the model's own numbers, in a csv with the columns file,label, "
                "or by a target_transform of the data set"
            )

    @cached_property
    def sample_shape(self) -> tuple[int, ...]:
        """Find the shape of one preprocessed sample, without the sample axis."""
        if self.shape is not None:
            return self.shape
        for index in range(len(self)):
            try:
                return tuple(self._prepared(index).shape)
            except DataError as error:
                failure = error
        problem = f"none of {len(self)} samples can be read; the last: {failure}"
        raise DataError(f"{self.name}: {problem}")

    @cached_property
    def fingerprint(self) -> str:
        """Hash the samples, their ids and labels, and what the preprocessing makes of some.

        It sees every id, every label and the shape of a prepared sample, but no names of labels,
        and

        - of arrays in memory (tensors, ``.npz``, ``.npy``, digits): every value;
        - of folders: the size of every file, and the contents of all files up to 256 MiB in
          all, else of 1,000 spread evenly over the set; no places or dates, so that copies agree;
        - of torch data sets, and `Inputs` without `stored`: up to 1,000 samples, evenly spread;
        - of the preprocessing: 16 samples spread evenly over the set, prepared (to the last bit),
          and what becomes of black and white images of their shape.
        """
        digest = hashlib.sha256(json.dumps(self.ids).encode())
        digest.update(b"" if self.labels is None else bytes_of(self.labels))
        digest.update(repr(self.sample_shape).encode())
        stored = self._read_some() if self.stored is None else self.stored(range(len(self)))
        for piece in stored:
            digest.update(piece)
        for index in spread(len(self), _N_PREPARED):
            try:
                raw, prepared = self.read(index), self._prepared(index)
            except DataError:
                digest.update(b"unreadable")
                continue
            for tensor in (prepared, *self._black_and_white(raw)):
                digest.update(b"" if tensor is None else bytes_of(tensor))
        return digest.hexdigest()[:16]

    def _read_some(self) -> Iterator[bytes]:
        for index in spread(len(self), _N_READ):
            try:
                yield bytes_of(self.read(index))
            except DataError:
                yield b"unreadable"

    def _prepared(self, index: int) -> Tensor:
        raw = self.read(index)
        if raw.is_floating_point():
            return raw
        try:
            return self._apply(raw.unsqueeze(0))[0]
        except Exception as error:
            raise DataError(
                f"{self.name}: preprocessing of sample {self.ids[index]!r}, uint8 of shape "
                f"{tuple(raw.shape)}, failed: {type(error).__name__}: {error}"
            ) from error

    def _apply(self, images: Tensor) -> Tensor:
        out = torch.as_tensor(self.preprocess(images))
        if not out.is_floating_point() or len(out) != len(images):
            raise DataError(
                f"expected {len(images)} float samples from the preprocessing; got {out.dtype} of "
                f"shape {tuple(out.shape)}"
            )
        return out

    def _black_and_white(self, raw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Preprocess one black and one white pixel, shape [channel, 1, 1]."""
        if raw.dtype != torch.uint8:
            return None, None
        out = self._apply(torch.stack((torch.zeros_like(raw), torch.full_like(raw, 255))))
        centre = out[..., out.shape[-2] // 2, out.shape[-1] // 2, None, None]
        return centre[0], centre[1]

    def _check_labels(self, labels: Labels) -> None:
        if len(labels) != len(self):
            raise DataError(f"{self.name}: {len(self)} samples, but {len(labels)} labels")
        names = self.label_names
        number = MOST_LABELS if names is None else len(names)
        wrong = (labels < UNLABELLED) | (labels >= number)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            top = f" to {number - 1}" + ("" if names is None else f" ({number} names)")
            raise DataError(
                f"{self.name}: label {int(labels[first])} of sample {self.ids[first]!r} is out of "
                f"range; expected 0{top}, or {UNLABELLED} for none"
            )


def read_names(path: Path) -> tuple[str, ...]:
    """Read names of labels from a json list."""
    remedy = "Expected a json list with the name of every label."
    with reading(path, "json", remedy, DataError):
        names = json.loads(path.read_text(encoding="utf-8"))
        "".join(n for n in names if isinstance(n, str)).encode()  # as files will hold them
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a json list with the name of every label")
    return tuple(names)


def repeated(ids: Sequence[str]) -> tuple[int, int]:
    """Return the places of the first id that comes twice."""
    seen: dict[str, int] = {}
    second = next(place for place, name in enumerate(ids) if seen.setdefault(name, place) != place)
    return seen[ids[second]], second


def bytes_of(tensor: Tensor) -> bytes:
    """Return the type, shape and values of a tensor, for hashes."""
    # By way of uint8, since numpy has no bfloat16.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    kind = repr((tensor.dtype, tuple(tensor.shape))).encode()
    return kind + flat.view(torch.uint8).numpy().tobytes()


def spread(total: int, number: int) -> list[int]:
    """Spread at most `number` indices evenly over 0 .. total - 1: 0, 3, 6 for 10 and 3."""
    number = min(number, total)
    return [index * total // number for index in range(number)]


def listed(names: Sequence[str], most: int = 10) -> str:
    """Show the first of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
