import sys

import pytest
import torch

from condec.dictionary import Overcomplete, TrainConfig, fit
from condec.dictionary.overcomplete import library
from condec.errors import DependencyError, OptionError
from condec.testing.contracts import DictionaryContract

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")


def _rows(n=60):
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(0))


def test_options_are_checked(unchecked):
    with pytest.raises(OptionError, match="Overcomplete: n_modes must be at least 1; got 0"):
        Overcomplete(0)
    with pytest.raises(OptionError, match=r"expected 'name=value' such as 'top_k=8'; got 'top_k'"):
        Overcomplete(4, options=("top_k",))
    with pytest.raises(OptionError, match="l1 must be finite and not negative"):
        Overcomplete(4, l1=-1.0)


def test_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "overcomplete.sae", None)
    with pytest.raises(DependencyError, match="'pip install overcomplete'"):
        fit(Overcomplete(4), _rows())


class TestInstalled:
    """With the library; every class of it is skipped where it is not installed."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        try:
            library()
        except DependencyError as error:
            pytest.skip(str(error))


class TestTopK(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, options=("top_k=2",))


class TestBatchTopK(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="BatchTopKSAE", options=("top_k=32",))


class TestArchetypal(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="RATopKSAE", options=("top_k=2",), n_points=20)

    # Its state holds training rows: other units of the data, other rounding of their mixtures.
    def test_atoms_lie_near_the_data(self):
        report = fit(self.learner, _rows(), config=self.config)
        assert "state.dictionary.C" in report.dictionary.tensors
        assert report.dictionary.tensors["state.dictionary.C"].shape == (20, 8)


class TestPenalty(TestInstalled):
    def test_vanilla(self):
        config = TrainConfig(epochs=30, batch_size=16, lr=3e-3)
        report = fit(Overcomplete(6, model="SAE", l1=0.01), _rows(), config=config)
        assert report.history[-1] < report.history[0]
        assert len(report.history) == 30

    def test_unknown_model(self):
        with pytest.raises(OptionError, match="has no class 'NoSAE'; expected one of"):
            fit(Overcomplete(6, model="NoSAE"), _rows())

    def test_unknown_option(self):
        with pytest.raises(OptionError, match="TopKSAE does not take the options"):
            fit(Overcomplete(6, options=("tau=3",)), _rows())
