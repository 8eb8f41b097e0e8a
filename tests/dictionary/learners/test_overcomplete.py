import sys

import numpy as np
import pytest
import torch

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.dictionary import PCA, Overcomplete, OvercompleteFactorisation, TrainConfig, fit
from condec.dictionary.learners.overcomplete import library
from condec.testing.contracts import DictionaryContract

pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
# They work in float32, which cannot show the gap that scikit-learn asks for.
_gap = pytest.mark.filterwarnings("ignore:Objective did not converge")


def _rows(n=60):
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(0))


def test_options_are_checked(unchecked):
    with pytest.raises(OptionError, match="Overcomplete: n_modes must be at least 1; got 0"):
        Overcomplete(0)
    with pytest.raises(OptionError, match=r"expected 'name=value' such as 'top_k=8'; got 'top_k'"):
        Overcomplete(4, options=("top_k",))
    with pytest.raises(OptionError, match="l1 must be finite and not negative"):
        Overcomplete(4, l1=-1.0)


def test_options_of_factorisations_are_checked(unchecked):
    made = "OvercompleteFactorisation"
    with pytest.raises(OptionError, match=f"{made}: n_modes must be at least 1; got 0"):
        OvercompleteFactorisation(0)
    with pytest.raises(OptionError, match=r"expected one of SkPCA, .*; got 'PCA'"):
        OvercompleteFactorisation(4, model="PCA")
    with pytest.raises(OptionError, match=r"such as 'solver=mu'; got 'mu'"):
        OvercompleteFactorisation(4, options=("mu",))


def test_negative_rows_are_refused_where_there_can_be_none():
    rows = _rows() - 0.5
    for model in ("NMF", "SkNMF"):
        with pytest.raises(DataError, match=rf"{model} takes entries that are not negative"):
            fit(OvercompleteFactorisation(4, model=model), rows)


@pytest.mark.parametrize("learner", [Overcomplete(4), OvercompleteFactorisation(4)])
def test_library_is_missing(monkeypatch, learner):
    monkeypatch.setitem(sys.modules, "overcomplete.sae", None)
    monkeypatch.setitem(sys.modules, "overcomplete.optimization", None)
    with pytest.raises(DependencyError, match="'pip install overcomplete'"):
        fit(learner, _rows())


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


class TestArchetypalJump(TestArchetypal):
    learner = Overcomplete(6, model="RAJumpSAE", n_points=20)


class TestJump(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="JumpSAE")


class TestQuantised(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="QSAE")


class TestMatchingPursuit(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="MpSAE", options=("k=2",))


class TestOrthogonalPursuit(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="OMPSAE", options=("k=2",))


class TestSAE(TestInstalled, DictionaryContract):
    learner = Overcomplete(6, model="SAE", l1=0.01)


class TestNMF(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="NMF")

    def test_nothing_is_negative(self):
        report = fit(self.learner, _rows())
        assert bool((report.dictionary.atoms >= 0).all())
        assert bool((report.dictionary.encode(_rows()) >= 0).all())

    def test_codes_are_those_of_least_error(self):
        from scipy.optimize import nnls

        dictionary = fit(self.learner, _rows()).dictionary
        atoms = dictionary.atoms.double().numpy()
        expected = [nnls(atoms.T, row.double().numpy())[0] for row in _rows()]
        torch.testing.assert_close(
            dictionary.encode(_rows()),
            torch.tensor(np.array(expected), dtype=torch.float32),
            atol=1e-4,
            rtol=1e-4,
        )


class TestMultiplicativeNMF(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="NMF", options=("solver=mu",))


class TestSemiNMF(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3)

    def test_atoms_may_be_negative_and_codes_not(self):
        report = fit(self.learner, _rows() - 0.5)
        assert bool((report.dictionary.atoms < 0).any())
        assert bool((report.dictionary.encode(_rows() - 0.5) >= 0).all())
        assert report.metrics["train"].r2 > 0.2


class TestConvexNMF(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="ConvexNMF", options=("strict_convex=true",))

    def test_atoms_are_mixtures_of_training_rows(self):
        report = fit(self.learner, _rows())
        lowest, highest = _rows()[report.train_rows].aminmax(dim=0)
        atoms = report.dictionary.atoms
        assert bool((atoms >= lowest - 1e-4).all())
        assert bool((atoms <= highest + 1e-4).all())


class TestSkNMF(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="SkNMF", options=("max_iter=2000",))


class TestSkPCA(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="SkPCA")

    def test_is_our_own(self):
        found, own = (fit(learner, _rows()) for learner in (self.learner, PCA(3)))
        assert found.r2 == pytest.approx(own.r2, abs=1e-5)
        assert found.metrics["train"].r2 == pytest.approx(own.metrics["train"].r2, abs=1e-5)


class TestSkSVD(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="SkSVD")


class TestSkICA(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="SkICA", options=("max_iter=2000",))


@_gap
class TestSkSparsePCA(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="SkSparsePCA", options=("sparsity=0.1",))


class TestSkKMeans(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(3, model="SkKMeans")

    def test_codes_are_memberships(self):
        loadings = fit(self.learner, _rows()).dictionary.encode(_rows())
        assert torch.equal(loadings.sum(1), torch.ones(60))
        assert set(loadings.unique().tolist()) == {0.0, 1.0}


@_gap
class TestSkDictionaryLearning(TestInstalled, DictionaryContract):
    learner = OvercompleteFactorisation(
        3, model="SkDictionaryLearning", options=("sparsity=0.1", "max_iter=200")
    )


class TestFactorisation(TestInstalled):
    def test_unknown_option(self):
        learner = OvercompleteFactorisation(3, model="SkPCA", options=("tau=3",))
        with pytest.raises(OptionError, match="SkPCA does not take the options"):
            fit(learner, _rows())

    def test_too_many_modes(self):
        learner = OvercompleteFactorisation(20, model="SkPCA")
        with pytest.raises(DataError, match="SkPCA cannot fit 20 modes to 48 rows of 8 units"):
            fit(learner, _rows())


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
