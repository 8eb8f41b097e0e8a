"""Superclasses: from trees, tables, columns, WordNet and data sets; what is refused."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.modes.hierarchy import Hierarchy

NAMES = ("crane", "hen", "crane", "truck", "terrier")
TREE = {"animal": {"bird": [0, "hen"], "dog": ["terrier"]}, "machine": [2, "truck"]}


def test_two_labels_of_one_name_are_two() -> None:
    found = Hierarchy.read(TREE, NAMES)
    assert found.groups == ("bird", "bird", "machine", "machine", "dog")
    assert found.names == ("bird", "machine", "dog", "animal")
    assert found.labels("machine") == (2, 3)
    assert found.labels("animal") == (0, 1, 4)
    assert (found.above(0), found.above(9)) == (("bird", "animal"), ())
    assert found.membership().tolist() == [
        [True, False, False, True], [True, False, False, True], [False, True, False, False],
        [False, True, False, False], [False, False, True, True],
    ]  # fmt: skip
    assert found.group_of(torch.tensor([0, 4, 2, -1])).tolist() == [0, 2, 1, -1]


def test_two_superclasses_of_one_name_are_two() -> None:
    found = Hierarchy.read({"crane": [0], "bird": [{"crane": [1]}, 2]})
    assert found.groups == ("crane", "bird/crane", "bird")
    assert found.labels("crane") == (0,)
    assert found.labels("bird") == (1, 2)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for made in (Hierarchy.read(TREE, NAMES), Hierarchy(("x", "", "y"))):
        file = tmp_path / "groups.json"
        file.write_text(json.dumps(made.to_record()))
        assert Hierarchy.read(file) == made
    table = tmp_path / "parents.csv"
    table.write_text("child,parent\n0,bird\n1,bird\nbird,animal\nterrier,dog\ndog,animal\n")
    found = Hierarchy.read(table, NAMES)
    assert found.groups == ("bird", "bird", "", "", "dog")
    assert found.labels("animal") == (0, 1, 4)


def test_a_name_may_be_a_label_and_a_superclass(tmp_path: Path) -> None:
    table = tmp_path / "parents.csv"
    table.write_text("child,parent\ndog,animal\npoodle,dog\n")
    found = Hierarchy.read(table, ("dog", "poodle"))
    assert found.above(1) == ("dog", "animal")
    assert found.above(0) == ("animal",)


LABELS = torch.tensor([0, 0, 1, -1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Hierarchy.read({"a": ["hem"]}, NAMES), "called 'hem'; nearest: 'hen'"),
        (lambda: Hierarchy.read({"a": ["hen"]}), "called 'hen'; give label_names, or numbers"),
        (lambda: Hierarchy.read({"a": ["crane"]}, NAMES), r"labels \[0, 2\] are all called"),
        (lambda: Hierarchy.read({"a": [1], "b": [1]}), "label 1 stands below 'a' and below 'b'"),
        (lambda: Hierarchy.read({"a": [7]}, NAMES), "label 7 is not among the 5 labels"),
        (lambda: Hierarchy.read({"a": [1.5]}), "name or number of a label; got 1.5"),
        (lambda: Hierarchy.read({"": [1]}), "expected names of superclasses; got ''"),
        (lambda: Hierarchy(("a",), (("a", "b"), ("b", "a"))), "a loop: a below b below a"),
        (lambda: Hierarchy(("a",), (("a", "b"), ("a", "c"))), "'a' stands below 'b' and below 'c'"),
        (lambda: Hierarchy.built_in("cifar11", NAMES), "no 'cifar11'; there is cifar10, cifar100"),
    ],
)
def test_what_is_no_hierarchy_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError, match=message):
        call()


def test_a_tree_in_itself_is_refused() -> None:
    tree: dict[str, object] = {}
    tree["a"] = tree
    with pytest.raises(OptionError, match="more than 64 levels, or a loop"):
        Hierarchy.read(tree)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "3", "expected a json list|got int"),
        ("a.json", "[1, 2]", "json list with the name of every label.*got list"),
        ("a.csv", "x,y\n1,2\n", "got the columns x, y"),
        ("a.csv", "parent,child\nbird,0\nanimal\n", "the parent 'animal' has no child"),
    ],
)
def test_files_of_something_else_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        Hierarchy.read(tmp_path / name, NAMES)


@pytest.mark.parametrize("parents", [[["bird", "animal"]], {"bird": ["animal"]}, 3])
def test_parents_that_are_no_table_are_refused(tmp_path: Path, parents: object) -> None:
    form = {"groups": ["bird"], "parents": parents}
    (tmp_path / "a.json").write_text(json.dumps(form))
    for source in (form, tmp_path / "a.json"):
        with pytest.raises(OptionError, match="parents: expected the superclass above"):
            Hierarchy.read(source)


def test_a_column_gives_superclasses() -> None:
    found = Hierarchy.from_column(LABELS, ["bird", "bird", "", "dog"], 3)
    assert found.groups == ("bird", "", "")
    with pytest.raises(DataError, match="label 0 has 'bird' and, in row 1, 'dog'"):
        Hierarchy.from_column(LABELS, ["bird", "dog", "dog", ""])


def test_cifar() -> None:
    words = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
    names = words.split(", ")
    found = Hierarchy.built_in("cifar10", names)
    assert found.labels("vehicle") == (0, 1, 8, 9)
    from condec.modes.hierarchy import BUILT_IN

    fine = sorted(label for labels in BUILT_IN["cifar100"].values() for label in labels)
    assert len(set(fine)) == len(fine) == 100
    many = Hierarchy.built_in("cifar100", [name.replace("_", " ") for name in fine])
    assert len(many.names) == 20
    assert {len(many.labels(name)) for name in many.names} == {5}


class Synset:
    """A synset of a small WordNet."""

    above = {1: 10, 2: 10, 3: 11, 10: 20, 11: 20, 20: 30, 4: 31, 31: 30}
    words = {10: "dog", 11: "cat", 20: "animal", 30: "entity", 31: "dog"}

    def __init__(self, number: int) -> None:
        self.number = number

    def name(self) -> str:
        return f"{self.words.get(self.number, 'x')}.n.{self.number:02}"

    def lemma_names(self) -> list[str]:
        return [self.words[self.number]]

    def hypernyms(self) -> list["Synset"]:
        return [Synset(self.above[self.number])] if self.number in self.above else []

    def instance_hypernyms(self) -> list["Synset"]:
        return []


def small_wordnet(monkeypatch: pytest.MonkeyPatch, find: object) -> None:
    corpus = types.ModuleType("nltk.corpus")
    corpus.wordnet = types.SimpleNamespace(synset_from_pos_and_offset=find)  # type: ignore[attr-defined]
    nltk = types.ModuleType("nltk")
    nltk.corpus = corpus  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wordnet_without_chains_of_one_child(monkeypatch: pytest.MonkeyPatch) -> None:
    small_wordnet(monkeypatch, lambda pos, offset: Synset(offset))
    found = Hierarchy.from_wordnet(["n1", "n2", "n3", "n4", ""])
    # cat has one child, and so has the other dog; entity has all labels that have a synset.
    assert found.groups == ("dog", "dog", "animal", "", "")
    assert found.names == ("dog", "animal")
    assert found.labels("animal") == (0, 1, 2)
    without = Hierarchy.from_wordnet(["n1", "n2", "n3", "n4"])
    assert without.groups == found.groups[:4]


def test_wordnet_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(pos: str, offset: int) -> Synset:
        raise LookupError("twenty lines")

    small_wordnet(monkeypatch, find)
    with pytest.raises(DataError, match=r"WordNet is not installed.*nltk.downloader wordnet"):
        Hierarchy.from_wordnet(["n1"])
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(DependencyError, match="pip install nltk"):
        Hierarchy.from_wordnet(["n1"])


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=12).filter(any))
def test_labels_below_and_groups_above_agree(groups: list[str]) -> None:
    made = Hierarchy(tuple(groups), (("a", "top"), ("b", "top")))
    member = made.membership()
    for place, name in enumerate(made.names):
        assert made.labels(name) == tuple(member[:, place].nonzero().flatten().tolist())
    assert Hierarchy.read(made.to_record()) == made
