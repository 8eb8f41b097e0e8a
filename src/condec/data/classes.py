"""Numbers of classes: from their names, as folders and tables give them, and from labels of items.

Names are compared by one rule: as they are, else without case, and with every run of other signs
than letters and digits as one space; numbers keep theirs. A label name such as "tench, Tinca tinca"
is also each of its parts between commas. A name that begins with a synset of ImageNet
(``n01440764``) is that class, where the label names are those of ImageNet's 1000 classes.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.data.inputs import MOST_LABELS, UNLABELLED, Inputs, listed

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_NO_NAME: Final = re.compile(
    r"[+-]?(nan|inf|infinity)|<na>|.*\.(bmp|gif|jpe?g|png|ppm|tiff?|webp)", re.IGNORECASE
)
"""What numbers that are none are written as, and files where the columns are swapped."""
_SYNSET: Final = re.compile(r"n\d{8}(?!\d)")
_SAME: Final = 0.9  # Share of ImageNet's classes that label names call as WordNet does.
_RULE: Final = (
    "Names are compared without case, with _, - and spaces alike; of several between commas each "
    "counts. Rename them; or give label_names, a json list with the name of every output of the "
    "model; or a csv with the columns file,label that holds numbers"
)


def numbers_of_names(who: str, given: Sequence[str], names: Sequence[str] | None) -> Tensor:
    """Number the classes of samples, an empty one as unlabelled: by `names`, else by the alphabet.

    DataError, which shows both lists, where a class is none of the names, or several of them; and
    where two classes mean one name.
    """
    classes = sorted(set(given) - {""})
    numbers = {name: number for number, name in enumerate(classes)}
    if names is not None:
        numbers = {name: number for name in classes if (number := _place(name, names)) is not None}
    if unknown := [name for name in classes if name not in numbers]:
        raise DataError(
            f"{who}: {len(unknown)} of {len(classes)} classes are none of the label names, or "
            f"several of them: {listed(unknown)}. The {len(names or ())} label names: "
            f"{listed(names or ())}. {_RULE}"
        )
    spelled: dict[int, str] = {}
    for name, number in numbers.items():
        if (other := spelled.setdefault(number, name)) != name:
            raise DataError(
                f"{who}: classes {other!r} and {name!r} are both label {number}, "
                f"{(names or ())[number]!r}. Join them, or rename one. {_RULE}"
            )
    return torch.tensor([numbers.get(name, UNLABELLED) for name in given])


def with_classes(
    inputs: Inputs, given: Sequence[str], names: Sequence[str] | None, who: str
) -> Inputs:
    """Give inputs classes by their names; an empty one is none. Errors as `numbers_of_names`."""
    if not any(given):
        return inputs
    labels = numbers_of_names(who, given, names)
    own = tuple(sorted({*given} - {""})) if names is None else tuple(names)
    return replace(inputs, labels=labels, label_names=own, by_alphabet=names is None)


def with_labels(
    inputs: Inputs, given: Sequence[str], names: Sequence[str] | None, who: str,
    places: Sequence[str],
) -> Inputs:  # fmt: skip
    """Give inputs labels that are written, as numbers or as names of classes."""
    numbers = _written_numbers(f"{who}: labels", given, places, named=names is not None)
    if numbers is None:
        return with_classes(inputs, given, names, who)
    return replace(inputs, labels=torch.tensor(numbers))


def _written_numbers(
    who: str, given: Sequence[str], places: Sequence[str], *, named: bool
) -> list[int] | None:
    """Read numbers of a table, an empty one as unlabelled; None where labels are names.

    DataError, which shows the first offender and its place, for one that is no whole number, where
    some are numbers and some not, unless names of labels are known (`named`), and where names are
    those of files.
    """
    rows = [row for row, text in enumerate(given) if text]
    words = [row for row in rows if not _NUMBER.fullmatch(given[row])]
    odd = [row for row in words if _NO_NAME.fullmatch(given[row])]
    if not odd and (len(words) == len(rows) or (words and named)):
        return None
    if not odd and 2 * len(words) > len(rows):  # a number among names
        odd = sorted({*rows} - {*words})
    if odd := odd or words or [row for row in rows if not _is_label(given[row])]:
        raise DataError(
            f"{who}: expected whole numbers below {MOST_LABELS:,}, or a name for every class; got "
            f"{given[odd[0]]!r} in {places[odd[0]]}, among "
            f"{listed([given[row] for row in rows])}. Leave the field empty where there is "
            "no label"
        )
    return [int(float(text)) if text else UNLABELLED for text in given]


def _is_label(text: str) -> bool:
    number = float(text)
    return number.is_integer() and UNLABELLED <= number < MOST_LABELS


def label_number(who: str, label: Any, names: Mapping[str, int]) -> int:
    """Return the number of an item's label: a whole number, a name of a class, or None for none."""
    if label is None:
        return UNLABELLED
    if isinstance(label, str) and label in names:
        return names[label]
    if isinstance(label, Tensor | np.ndarray | np.generic) and np.prod(label.shape) == 1:
        label = label.item()
    if isinstance(label, int):
        return int(label)
    if isinstance(label, float) and label.is_integer():
        return int(label)
    named = f"of its classes {listed(list(names))}" if names else "(the data have no `classes`)"
    raise DataError(
        f"{who}: label {label!r:.80} is neither a whole number nor a name {named}. For other "
        "targets of training, such as numbers to predict, vectors or boxes, give the inputs alone"
    )


def _place(name: str, names: Sequence[str]) -> int | None:
    """Find the one label name that a name means; None without one, or with several."""
    if names.count(name) == 1:
        return names.index(name)
    words, (wholes, parts) = _plain(name), _spellings(tuple(names))
    for places in (wholes.get(words, ()), parts.get(words, ())):
        if len(places) == 1:
            return places[0]
    synset = _SYNSET.match(name)
    return _imagenet(tuple(names)).get(synset[0]) if synset else None


@cache
def _spellings(names: tuple[str, ...]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return places of label names by their whole text, and by what stands between commas."""
    wholes: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        wholes.setdefault(_plain(name), []).append(place)
        for part in _parts(name):
            parts.setdefault(part, []).append(place)
    return wholes, parts


def _plain(name: str) -> str:
    if _NUMBER.fullmatch(name.strip()):
        return name.strip()  # with its sign, and its point
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def synsets_of(names: Sequence[str]) -> list[str]:
    """Return the synset of every label: its name, or that of ImageNet's class; "" for background.

    DataError where label names are neither.
    """
    if all(map(_SYNSET.match, names)):
        return [name[:9] for name in names]
    if not (found := {number: synset for synset, number in _imagenet(tuple(names)).items()}):
        raise DataError(
            f"superclasses of WordNet: label names {listed(names, 3)} are neither synsets such as "
            "n02084071 nor those of ImageNet's 1000 classes"
        )
    return [found.get(number, "") for number in range(len(names))]


@cache
def _imagenet(names: tuple[str, ...]) -> dict[str, int]:
    """Return the number of every synset of ImageNet's 1000 classes, where these are label names.

    Some models have a class "background" before them. Synsets and their words are timm's.
    """
    before = len(names) - 1000
    if before not in (0, 1):
        return {}
    timm = importlib.util.find_spec("timm")
    if timm is None or timm.origin is None:
        raise DataError(
            "classes are called by synsets of ImageNet, whose numbers timm knows, which is not "
            'installed: pip install "condec[vision]"'
        )
    folder = Path(timm.origin).parent / "data" / "_info"
    synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines)
    pairs = zip(synsets, names[before:], strict=True)
    same = sum(bool(_parts(words[one]) & _parts(name)) for one, name in pairs)
    if same < _SAME * len(synsets):
        return {}
    return {synset: before + place for place, synset in enumerate(synsets)}


def _parts(name: str) -> set[str]:
    return {_plain(part) for part in name.split(",")}
