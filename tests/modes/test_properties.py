"""Properties of samples: labels with superclasses, several labels, attributes."""

import numpy as np
import pandas
import pytest
import torch

from condec.basis.errors import DataError
from condec.modes.hierarchy import Hierarchy
from condec.modes.properties import Properties
from condec.modes.statistics import mode_statistics, monosemanticity

LABELS = torch.tensor([0, 2, 2, -1, 0, 5])


def test_labels_with_superclasses() -> None:
    hierarchy = Hierarchy(("x", "", "x", "", "", "y"), (("x", "top"), ("y", "top")))
    found = Properties.of_labels(LABELS, ("cat", "b", "cat"), hierarchy)
    # y has one label, and is it; labels 1, 3 and 4 have no sample; two are called cat.
    assert found.names == ("cat", "cat", "5", "x", "top")
    assert found.kinds == ("label",) * 3 + ("superclass",) * 2
    assert found.numbers == (0, 2, 5, -1, -1)
    assert found.member.toarray().tolist() == [
        [1, 0, 0, 1, 1], [0, 1, 0, 1, 1], [0, 1, 0, 1, 1], [1, 0, 0, 1, 1], [0, 0, 1, 0, 1],
    ]  # fmt: skip
    some = found.of(torch.tensor([True, True, False, True, False, False]))
    assert (some.member.shape, some.known.tolist()) == ((2, 5), [True, True, *[False] * 4])
    assert sorted(found.shuffled(3).counts()) == sorted(found.counts())


def test_attributes_of_words_and_numbers() -> None:
    table = pandas.DataFrame({
        "hue": [*range(19), None], "kind": ["u", "v"] * 9 + [None, "v"], "flag": [True, False] * 10,
        "none": [None] * 20, "few": [1, 2] * 10,
    })  # fmt: skip
    hue, kind, flag, few = Properties.of_table(table)
    assert hue.names == tuple(
        f"hue: {name} quarter" for name in ("highest", "lowest", "second", "third")
    )
    assert hue.counts().tolist() == [5, 4, 5, 5]
    assert hue.known.tolist() == [True] * 19 + [False]
    assert (kind.names, int(kind.known.sum())) == (("kind: u", "kind: v"), 19)
    assert set(flag.kinds) == {"attribute"}
    assert few.names == ("few: 1", "few: 2")
    loadings = torch.rand(20, 3)
    loadings[:, 1] = torch.arange(20.0)
    found = mode_statistics(loadings, [hue, kind])
    assert found.names == (*hue.names, *kind.names)
    assert float(found.auroc[1, 0]) == 1.0


def test_equal_numbers_are_of_one_quarter_and_the_lowest_of_the_lowest() -> None:
    rest = range(1, 21)
    table = pandas.DataFrame({"low": [0] * 30 + [*rest], "high": [*rest] + [99] * 30,
                              "mid": [*range(10)] + [10] * 30 + [*range(11, 21)]})  # fmt: skip
    low, high, mid = Properties.of_table(table)
    sizes = [dict(zip(p.names, p.counts().tolist(), strict=True)) for p in (low, high, mid)]
    assert sizes[0] == {"low: highest quarter": 13, "low: lowest quarter": 30,
                        "low: third quarter": 7}  # fmt: skip
    assert sizes[1] == {"high: highest quarter": 30, "high: lowest quarter": 12,
                        "high: second quarter": 8}  # fmt: skip
    assert sizes[2] == {"mid: highest quarter": 10, "mid: lowest quarter": 10,
                        "mid: third quarter": 30}  # fmt: skip


def test_values_of_one_sample_are_no_properties() -> None:
    texts = [f"caption {n}" for n in range(2_000)]
    kinds = pandas.Categorical(["u", "v"] * 999 + ["w", None], categories=["x", "v", "u", "w"])
    (kind,) = Properties.of_table(pandas.DataFrame({"text": texts, "kind": kinds}))
    assert kind.names == ("kind: v", "kind: u")
    assert kind.counts().tolist() == [999, 999]
    assert (kind.member.shape, int(kind.known.sum())) == ((1_999, 2), 1_999)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Properties.of_matrix(torch.ones(3, 2), ["a"]), r"matrix \[sample, 1\]"),
        (lambda: Properties.of_matrix(torch.full((3, 1), 2), ["a"]), "expected 0 and 1"),
        (lambda: Properties.of_labels(torch.tensor([-1, -1])), "labels missing"),
        (lambda: mode_statistics(torch.rand(5, 2), Properties.of_labels(LABELS)),
         "loadings of 5 samples, properties of 6"),
        (lambda: mode_statistics(torch.rand(3, 2), Properties.of_labels(torch.arange(3))),
         "none of 3 labels or other properties has 2 of the samples"),
        (lambda: mode_statistics(torch.full((6, 2), torch.nan), Properties.of_labels(LABELS)),
         "loadings hold NaN"),
        (lambda: monosemanticity(torch.rand(3, 2), torch.rand(4, 2)), r"shape \(4, 2\) for"),
        (lambda: monosemanticity(torch.rand(3, 2), torch.zeros(3, 2)), "finite, and none 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message: str, unchecked: None) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        call()


def test_several_labels_a_sample() -> None:
    member = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
    found = mode_statistics(torch.tensor([[1.0], [1], [0], [0]]),
                            Properties.of_matrix(member, ["a", "b"]))  # fmt: skip
    assert found.correlation.tolist() == [[1.0, 0.0]]
    assert found.auroc.tolist() == [[1.0, 0.5]]
