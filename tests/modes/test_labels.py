"""Membership and superclasses."""

import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.modes.hierarchy import Hierarchy
from condec.modes.labels import check_labels, label_name, membership


def test_membership_is_one_hot_and_empty_for_the_unlabelled() -> None:
    member = membership(torch.tensor([2, 0, -1, 2]), 4)
    assert member.shape == (4, 4)
    assert member.sum(1).tolist() == [1, 1, 0, 1]
    assert member.nonzero().tolist() == [[0, 2], [1, 0], [3, 2]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: membership(torch.tensor([-1, -1])), DataError, "labels missing: none of 2"),
        (lambda: membership(torch.tensor([0, 5]), 3), DataError, "label 5 is out of range"),
        (lambda: membership(torch.tensor([2**40])), DataError, "expected 0 to 999999"),
        (lambda: check_labels(torch.tensor([1.5]), 1), DataError, "whole numbers of shape"),
        (lambda: check_labels(torch.tensor([torch.inf]), 1), DataError, "whole numbers of shape"),
        (lambda: check_labels(torch.tensor([1, 2]), 3), DataError, r"shape \(3,\)"),
        (lambda: Hierarchy(("", "")), OptionError, "at least one label that belongs"),
        (lambda: Hierarchy(("dog",)).labels("cat"), OptionError, "no group 'cat'; groups: dog"),
    ],
)
def test_bad_requests_are_explained(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()


def test_nan_is_unlabelled() -> None:
    found = check_labels(torch.tensor([1.0, torch.nan, 0.0, -3.0]), 4)
    assert found.tolist() == [1, -1, 0, -3]
    assert membership(found).sum(1).tolist() == [1, 0, 1, 0]


def test_hierarchy() -> None:
    kinds = Hierarchy(("", "dog", "dog", "", "bird"))
    assert kinds.names == ("dog", "bird")
    assert kinds.labels("dog") == (1, 2)
    found = kinds.group_of(torch.tensor([0, 1, 2, 3, 4, 9, -1])).tolist()
    assert found == [-1, 0, 0, -1, 1, -1, -1]


def test_names() -> None:
    assert label_name(("cat", "dog"), 1) == "dog"
    assert label_name(("cat", "dog"), 2) == "2"
    assert label_name(None, 0) == "0"
