import re

import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.dictionary import NMF, fit, recovery
from condec.testing.planted import Planted


def test_planted_modes_are_found():
    data = Planted.small()
    found = recovery(fit(NMF(8), data.matrix).dictionary.atoms, data.atoms)
    assert found.share >= 0.75
    assert found.n_false <= 2


def test_truth_recovers_itself_in_any_order_and_length():
    known = Planted.small().atoms
    order = torch.randperm(8)
    found = recovery(known[order] * torch.linspace(0.1, 9.0, 8)[:, None], known)
    assert found.share == 1.0
    assert (found.n_false, found.n_copies) == (0, 0)
    assert bool(found.recovered.all())
    torch.testing.assert_close(found.cosine, torch.ones(8))


def test_false_modes_and_copies_are_told_apart():
    known = torch.eye(3)
    learned = torch.tensor([[1.0, 0, 0], [1.0, 0.1, 0], [0, 1.0, 1.0], [0, -1.0, 0]])
    found = recovery(learned, known)
    assert found.recovered.tolist() == [True, False, False]
    assert found.share == pytest.approx(1 / 3)
    assert found.n_false == 2  # A mixture, and one that points the other way.
    assert found.n_copies == 1
    assert recovery(learned, known, threshold=0.7).share == pytest.approx(2 / 3)


def test_nothing_learned():
    found = recovery(torch.zeros(0, 3), torch.eye(3))
    assert (found.share, found.n_false, found.n_copies) == (0.0, 0, 0)
    assert found.cosine.tolist() == [0.0, 0.0, 0.0]


def test_bad_requests_are_explained(unchecked):
    with pytest.raises(DataError, match=re.escape("got shapes (3, 3) and (2, 2)")):
        recovery(torch.eye(3), torch.eye(2))
    with pytest.raises(OptionError, match=r"threshold must be from 0 to below 1; got 1\.0"):
        recovery(torch.eye(3), torch.eye(3), threshold=1.0)
