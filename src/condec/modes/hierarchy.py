"""Superclasses of labels, on one level or several, and where they come from."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch

from condec.basis.checks import nearest
from condec.basis.errors import DataError, DependencyError, OptionError
from condec.basis.files import reading, user_path
from condec.basis.records import short_repr
from condec.basis.shapes import Labels, Membership
from condec.data.inputs import UNLABELLED

_DEEPEST: Final = 64
_FORM: Final = {"groups", "parents"}
_CIFAR_10: Final = {
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "vehicle": ("airplane", "automobile", "ship", "truck"),
}
_CIFAR_100: Final = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
"""Krizhevsky 2009, table 1."""
BUILT_IN: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "cifar10": _CIFAR_10,
    "cifar100": {name: tuple(labels.split()) for name, labels in _CIFAR_100.items()},
}
"""Superclasses of data sets, by names of labels as torchvision has them."""


@short_repr
@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Superclasses: the nearest one of each label, and those above it.

    A label is its number: two of one name are two. A superclass is its name.

    Parameters
    ----------
    groups : sequence of str
        Group of label 0, 1, 2, ...; an empty name puts a label into no group.
    parents : sequence of pairs of str
        Group, and the one above it; those that are on top have none.

    Raises
    ------
    OptionError
        No label belongs to a group, a group has two above it, or stands above itself.

    Examples
    --------
    >>> animals = Hierarchy(("dog", "", "bird", "dog"), (("dog", "animal"), ("bird", "animal")))
    >>> animals.names, animals.labels("dog"), animals.labels("animal")
    (('dog', 'bird', 'animal'), (0, 3), (0, 2, 3))
    """

    groups: tuple[str, ...]
    parents: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not _are_texts(self.groups) or not any(self.groups):
            raise OptionError("Hierarchy: expected at least one label that belongs to a group")
        above: dict[str, str] = {}
        for child, parent in self.parents:
            if above.setdefault(child, parent) != parent:
                raise OptionError(
                    f"Hierarchy: {child!r} stands below {above[child]!r} and below {parent!r}; "
                    "give every superclass one above it"
                )
        for start in above:
            _chain(start, above)

    @property
    def names(self) -> tuple[str, ...]:
        """Group names, in the order of their first labels; then those of the levels above."""
        direct = tuple(dict.fromkeys(group for group in self.groups if group))
        above = dict(self.parents)
        return tuple(dict.fromkeys([*direct, *(n for g in direct for n in _chain(g, above))]))

    def labels(self, name: str) -> tuple[int, ...]:
        """Return the labels below one group, at any level; OptionError where none has that name."""
        if name not in self.names:
            raise OptionError(f"Hierarchy: no group {name!r}; groups: {', '.join(self.names)}")
        return tuple(label for label in range(len(self.groups)) if name in self.above(label))

    def above(self, label: int) -> tuple[str, ...]:
        """Return the groups that a label belongs to, the nearest first."""
        group = self.groups[label] if 0 <= label < len(self.groups) else ""
        return _chain(group, dict(self.parents)) if group else ()

    def membership(self) -> Membership:
        """Return which groups, in the order of `names`, every label belongs to, [label, group]."""
        place = {name: i for i, name in enumerate(self.names)}
        found = torch.zeros(len(self.groups), len(place), dtype=torch.bool)
        for label in range(len(self.groups)):
            found[label, [place[name] for name in self.above(label)]] = True
        return found

    def group_of(self, labels: Labels) -> Labels:
        """Return every sample's nearest group, as an index into `names`; -1 where it has none."""
        index = {name: i for i, name in enumerate(self.names)}
        table = torch.tensor([index.get(group, UNLABELLED) for group in self.groups])
        known = (labels >= 0) & (labels < len(table))
        return torch.where(known, table[labels.clamp(0, len(table) - 1)], UNLABELLED)

    def to_record(self) -> Any:
        """Return plain values, as json has them: a list of groups, or a table with `parents`."""
        groups = list(self.groups)
        return {"groups": groups, "parents": dict(self.parents)} if self.parents else groups

    @staticmethod
    def read(
        source: str | Path | Mapping[str, Any] | Sequence[str],
        label_names: Sequence[str] | None = None,
    ) -> "Hierarchy":
        """Make superclasses from what says them.

        Parameters
        ----------
        source : mapping, list or path
            A list with the group of every label; superclasses by name, each a list of its labels
            (names, or numbers) and of such tables: ``{"animal": {"bird": ["hen"], "dog": [3]}}``;
            what `to_record` gives; a json file with one of these; or a csv with the columns
            ``child,parent``, children being labels or superclasses.
        label_names : sequence of str, optional
            Needed where labels are called by name.

        Raises
        ------
        OptionError
            An unknown label, or a name that two labels have; a label or superclass below two
            others; loops.
        DataError
            The file cannot be read.
        """
        if isinstance(source, str | Path):
            return _from_file(user_path(source), label_names)
        if not isinstance(source, Mapping):
            return Hierarchy(tuple(source))
        if set(source) == _FORM and isinstance(source["groups"], list):
            above = source["parents"]
            if not (isinstance(above, Mapping) and _are_texts([*above, *above.values()])):
                raise OptionError(
                    "Hierarchy: parents: expected the superclass above by the name of the one "
                    f"below, such as {{'dog': 'animal'}}; got {above!r:.80}"
                )
            return Hierarchy(tuple(source["groups"]), tuple(above.items()))
        branches = list(_branches(source))
        often = Counter(path[-1] for path in {path for path, _ in branches})
        shown = {path: path[-1] if often[path[-1]] == 1 else "/".join(path) for path, _ in branches}
        parents = {shown[path]: shown[path[:-1]] for path in shown if path[1:]}
        pairs = [(label, shown[path]) for path, labels in branches for label in labels]
        return _joined(pairs, parents, label_names)

    @staticmethod
    def built_in(name: str, label_names: Sequence[str]) -> "Hierarchy":
        """Return the superclasses of ``cifar10`` or ``cifar100``; labels go by their names.

        OptionError where labels have other names, or there is no such data set.
        """
        if name not in BUILT_IN:
            raise OptionError(f"Hierarchy: no {name!r}; there is {', '.join(BUILT_IN)}")
        plain = [text.strip().lower().replace(" ", "_") for text in label_names]
        return Hierarchy.read(BUILT_IN[name], plain)

    @staticmethod
    def from_column(labels: Labels, values: Sequence[str], n_labels: int = 0) -> "Hierarchy":
        """Give labels the superclass that their samples have in a column, "" for none.

        There are `n_labels`, or as many as samples have.

        DataError where samples of one label have two; the superclasses would be no such.
        """
        found: dict[int, str] = {}
        for row, (label, value) in enumerate(zip(labels.tolist(), values, strict=True)):
            if label >= 0 and found.setdefault(label, value) != value:
                raise DataError(
                    f"superclasses: label {label} has {found[label]!r} and, in row {row}, "
                    f"{value!r}; a superclass is the same for all samples of a label. Give other "
                    "columns as attributes"
                )
        top = max(n_labels, max(found, default=UNLABELLED) + 1)
        return Hierarchy(tuple(found.get(label, "") for label in range(top)))

    @staticmethod
    def from_wordnet(synsets: Sequence[str]) -> "Hierarchy":
        """Give labels the hypernyms of their synsets, such as ``n02084071``, as WordNet has them.

        A label without one ("") is in no group. Of several hypernyms the first is taken.
        Superclasses with one child are left out, as are those of all labels that have one
        (Melander et al. 2026).

        Raises DependencyError without nltk, DataError without its WordNet, or where a synset is
        unknown.
        """
        paths = {n: _hypernyms(name) if name else [] for n, name in enumerate(synsets)}
        return _pruned(paths)


def _chain(start: str, above: Mapping[str, str]) -> tuple[str, ...]:
    """Return a group and all above it; OptionError where that has no end."""
    found = dict.fromkeys([start])
    while (name := above.get(next(reversed(found)))) is not None:
        if name in found:
            raise OptionError(
                f"Hierarchy: a loop: {' below '.join([*found, name])}; a superclass cannot stand "
                "above itself"
            )
        found[name] = None
    return tuple(found)


def _number(label: Any, names: Sequence[str] | None) -> int:
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        if names is not None and label >= len(names):
            raise OptionError(f"Hierarchy: label {label} is not among the {len(names)} labels")
        return label
    if not isinstance(label, str):
        raise OptionError(f"Hierarchy: expected a name or number of a label; got {label!r:.80}")
    places = [place for place, name in enumerate(names or ()) if name == label]
    if len(places) == 1:
        return places[0]
    if places:
        raise OptionError(
            f"Hierarchy: labels {places} are all called {label!r}; give the number of the one meant"
        )
    near = nearest(label, names or ())
    hint = f"; nearest: {near[0]!r}" if near else "; give label_names, or numbers"
    raise OptionError(f"Hierarchy: no label is called {label!r}{hint}")


def _branches(
    tree: Mapping[Any, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """Yield the path of every superclass of a tree, and the labels right below it."""
    if len(above) > _DEEPEST:
        raise OptionError(f"Hierarchy: more than {_DEEPEST} levels, or a loop")
    for name, content in tree.items():
        if not isinstance(name, str) or not name:
            raise OptionError(f"Hierarchy: expected names of superclasses; got {name!r}")
        parts = content if isinstance(content, list | tuple) else [content]
        yield (*above, name), [part for part in parts if not isinstance(part, Mapping)]
        for part in parts:
            if isinstance(part, Mapping):
                yield from _branches(part, (*above, name))


def _joined(
    pairs: Iterable[tuple[Any, str]], parents: Mapping[str, str], names: Sequence[str] | None
) -> Hierarchy:
    """Put every label into its group; OptionError where it is in two."""
    below: dict[int, str] = {}
    for label, group in pairs:
        number = _number(label, names)
        if below.setdefault(number, group) != group:
            raise OptionError(
                f"Hierarchy: label {label!r} stands below {below[number]!r} and below {group!r}; "
                "give it one place"
            )
    size = max(below, default=UNLABELLED) + 1 if names is None else len(names)
    return Hierarchy(tuple(below.get(n, "") for n in range(size)), tuple(parents.items()))


def _from_file(file: Path, names: Sequence[str] | None) -> Hierarchy:
    expected = "a json list with the name of every label's superclass, a table of superclasses"
    with reading(file, expected, "Or a csv with the columns child,parent.", DataError):
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix != ".csv":
            found = json.loads(text)
            listed = isinstance(found, list) and _are_texts(found)
            if not listed and not (isinstance(found, dict) and found):
                raise ValueError(f"got {type(found).__name__}")
        else:
            rows = list(csv.DictReader(text.splitlines(), strict=True))
            if not rows or not {"child", "parent"} <= rows[0].keys():
                raise ValueError(f"got the columns {', '.join(rows[0] if rows else ())}")
            pairs = [((row["child"] or "").strip(), (row["parent"] or "").strip()) for row in rows]
            if below := [parent for child, parent in pairs if parent and not child]:
                raise ValueError(f"a row with the parent {below[0]!r} has no child")
    return _from_pairs(pairs, names) if file.suffix == ".csv" else Hierarchy.read(found, names)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


def _from_pairs(pairs: Iterable[tuple[str, str]], names: Sequence[str] | None) -> Hierarchy:
    """Read a table in which a name may be a label, a superclass, or one of each."""
    pairs = [pair for pair in pairs if all(pair)]
    groups, known = {parent for _, parent in pairs}, {*(names or ())}
    of_labels: list[tuple[Any, str]] = [
        (int(child) if child.isdecimal() and child not in known else child, parent)
        for child, parent in pairs
        if child in known or child not in groups
    ]
    above = tuple(dict.fromkeys((c, p) for c, p in pairs if c in groups and c != p))
    found = _joined(of_labels, {}, names)
    return Hierarchy(found.groups, above)


def _hypernyms(name: str) -> list[tuple[str, str]]:
    """Return the hypernyms of a synset, nearest first, each with its first word."""
    try:
        from nltk.corpus import wordnet  # type: ignore[import-not-found]
    except ImportError as error:
        raise DependencyError(
            "superclasses of WordNet need nltk: pip install nltk, then python -m nltk.downloader "
            "wordnet"
        ) from error
    with reading(
        f"synset {name!r}", "of WordNet, such as n02084071, in the data of nltk",
        "To get those: python -m nltk.downloader wordnet.", DataError,
    ):  # fmt: skip
        try:
            synset = wordnet.synset_from_pos_and_offset(name[:1], int(name[1:]))
        except LookupError as error:  # nltk's message is twenty lines
            raise ValueError("WordNet is not installed") from error
        found = []
        while above := [*synset.hypernyms(), *synset.instance_hypernyms()]:
            synset = above[0]
            found.append((synset.name(), synset.lemma_names()[0].replace("_", " ")))
    return found


def _pruned(paths: Mapping[int, list[tuple[str, str]]]) -> Hierarchy:
    """Join the hypernyms of labels; those with one child, and of all labels, are left out."""
    children: dict[str, set[Any]] = {}
    covered: Counter[str] = Counter()
    for label, path in paths.items():
        below: Any = label
        for name, _ in path:
            children.setdefault(name, set()).add(below)
            covered[name] += 1
            below = name
    n_labels = sum(map(bool, paths.values()))
    kept = {n for n in children if len(children[n]) > 1 and covered[n] < n_labels}
    words = {name: word for path in paths.values() for name, word in path if name in kept}
    often = Counter(words.values())
    shown = {name: word if often[word] == 1 else name for name, word in words.items()}
    groups, parents = [], dict[str, str]()
    for path in paths.values():
        names = [shown[name] for name, _ in path if name in kept]
        groups.append(names[0] if names else "")
        parents |= dict(pairwise(names))
    return Hierarchy(tuple(groups), tuple(parents.items()))
