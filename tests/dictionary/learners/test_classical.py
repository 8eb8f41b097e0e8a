import numpy as np
import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import matched_cosine
from condec.dictionary import NMF, PCA, DictionaryLearning, FastICA, KMeans, TrainConfig, fit
from condec.testing.contracts import DictionaryContract


class TestNMF(DictionaryContract):
    learner = NMF(3)


@pytest.mark.parametrize("learner", [NMF(4, max_iter=2), FastICA(4, max_iter=1)])
def test_too_few_passes_are_told_with_what_to_set(learner):
    rows = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    words = f"{type(learner).__name__}: not at its end after . passes: .*Set max_iter higher"
    with pytest.warns(UserWarning, match=words) as told:
        fit(learner, rows, config=TrainConfig(held_out=0.0))
    assert len(told) == 1


class TestPCA(DictionaryContract):
    learner = PCA(4)


class TestKMeans(DictionaryContract):
    learner = KMeans(5)


class TestFastICA(DictionaryContract):
    learner = FastICA(3)


class TestDictionaryLearning(DictionaryContract):
    learner = DictionaryLearning(4)


class TestDictionaryLearningPositive(DictionaryContract):
    learner = DictionaryLearning(4, positive_atoms=True)


def _rows(n=60, units=8):
    return torch.rand(n, units, generator=torch.Generator().manual_seed(0))


def test_pca_is_the_singular_value_decomposition():
    rows = 5 * _rows() + 3
    report = fit(PCA(3), rows)
    train = rows[report.train_rows].double()
    _, _, directions = torch.linalg.svd(train - train.mean(0), full_matrices=False)
    cosines = torch.nn.functional.cosine_similarity(
        report.dictionary.atoms.double(), directions[:3]
    )
    torch.testing.assert_close(cosines.abs(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(report.dictionary.offset.double(), train.mean(0))


def test_pca_of_full_rank_is_exact():
    report = fit(PCA(8), _rows())
    assert report.r2 == pytest.approx(1.0, abs=1e-5)
    assert report.l0 == 8.0
    assert report.history == ()


def test_nmf_finds_the_parts_and_nothing_negative():
    made = torch.Generator().manual_seed(1)
    parts = torch.eye(9).view(3, 3, 9).sum(1)
    rows = torch.rand(100, 3, generator=made) @ parts
    report = fit(NMF(3), rows)
    loadings = report.dictionary.encode(rows)
    assert bool((report.dictionary.atoms >= 0).all())
    assert bool((loadings >= 0).all())
    assert bool((matched_cosine(parts, report.dictionary.atoms) > 0.98).all())
    assert report.r2 > 0.99


def test_nmf_loadings_are_those_of_least_error():
    from scipy.optimize import nnls

    report = fit(NMF(3), _rows())
    loadings = report.dictionary.encode(_rows())
    atoms = report.dictionary.atoms.double().numpy()
    for row, found in zip(_rows().double().numpy(), loadings, strict=True):
        np.testing.assert_allclose(found.numpy(), nnls(atoms.T, row)[0], atol=1e-4)


def test_nmf_loadings_fall_back_on_coordinate_descent(monkeypatch):
    import scipy.optimize

    dictionary = fit(NMF(3), _rows()).dictionary
    exact = dictionary.encode(_rows())

    def in_circles(*args):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(scipy.optimize, "nnls", in_circles)
    torch.testing.assert_close(dictionary.encode(_rows()), exact, rtol=1e-3, atol=1e-4)


def test_nmf_refuses_units_of_two_signs():
    rows = _rows()
    rows[3, 2] = -0.5
    with pytest.raises(DataError, match=r"NMF: fit: entries of a unit.* unit 2 go"):
        fit(NMF(3), rows, held_out_rows=torch.tensor([0]))
    report = fit(NMF(3), _rows())
    with pytest.raises(DataError, match="NMF: encode: entries of a unit must have one sign"):
        report.dictionary.encode(rows)


def test_nmf_of_units_of_either_sign_is_that_of_their_sizes():
    rows = _rows()
    sizes, negative = (fit(NMF(3), some).dictionary for some in (rows, -rows))
    assert torch.equal(negative.atoms, -sizes.atoms)
    assert torch.equal(negative.encode(-rows), sizes.encode(rows))
    signs = torch.where(torch.arange(rows.shape[1]) % 3 == 0, -1.0, 1.0)
    both = fit(NMF(3), rows * signs).dictionary
    assert bool((both.atoms * signs >= 0).all())
    missed = [d.decode(d.encode(x)) - x for d, x in ((both, rows * signs), (sizes, rows))]
    assert float(missed[0].norm() / missed[1].norm()) == pytest.approx(1, abs=0.05)


def test_kmeans_replaces_rows_by_the_nearest_centre():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    which = torch.arange(30) % 3
    jitter = 0.1 * torch.rand(30, 2, generator=torch.Generator().manual_seed(2))
    rows = centres[which] + jitter
    report = fit(KMeans(3), rows)
    loadings = report.dictionary.encode(rows)
    assert bool((loadings.sum(1) == 1).all())
    assert bool(((loadings == 0) | (loadings == 1)).all())
    assert bool(((report.dictionary.decode(loadings) - rows).abs() < 0.2).all())
    assert report.l0 == 1.0


def test_kmeans_encodes_a_row_as_it_would_alone():
    """Bit for bit: rows almost halfway between two centres, far from the origin."""
    made = torch.Generator().manual_seed(0)
    atoms = 1e4 + torch.rand(40, 64, generator=made)
    halfway = (atoms[:, None] + atoms[None]).flatten(0, 1) / 2
    rows = halfway + 1e-4 * torch.randn(1600, 64, generator=made)
    found = KMeans(40).encode({"atoms": atoms}, rows)
    alone = torch.cat([KMeans(40).encode({"atoms": atoms}, row) for row in torch.split(rows, 1)])
    assert torch.equal(found, alone)


def test_kmeans_refuses_more_modes_than_rows_that_differ():
    rows = torch.eye(3).repeat(10, 1)
    with pytest.raises(DataError, match="KMeans: 5 modes are more than the training rows that"):
        fit(KMeans(5), rows)


@pytest.mark.parametrize("learner", [NMF(20), KMeans(20), DictionaryLearning(20)])
def test_more_modes_than_rows(learner):
    with pytest.raises(DataError, match="20 modes need at least as many training rows; got 8"):
        fit(learner, _rows(10))


def test_more_components_than_there_can_be():
    with pytest.raises(DataError, match=r"PCA: 9 modes are more than 48 .* take at most 8"):
        fit(PCA(9), _rows())
    with pytest.raises(DataError, match="take at most 4"):
        fit(PCA(8), _rows(5), config=TrainConfig(held_out=0.2))


@pytest.mark.parametrize("kind", [NMF, PCA, KMeans, FastICA, DictionaryLearning])
def test_options_are_checked(unchecked, kind):
    with pytest.raises(
        OptionError, match=f"{kind.__name__}: n_modes must be a whole number of at least 1; got 0"
    ):
        kind(0)
    for wrong in (2.5, "3"):
        with pytest.raises(
            OptionError, match=f"n_modes must be a whole number of at least 1; got {wrong!r}"
        ):
            kind(wrong)
    if kind is KMeans:
        with pytest.raises(
            OptionError, match="n_starts must be a whole number of at least 1; got 0"
        ):
            kind(2, n_starts=0)


def test_ica_finds_what_was_mixed_and_turns_it_up():
    made = torch.Generator().manual_seed(3)
    # Long tails on one side, mixed with either sign.
    sources = torch.rand(2000, 3, generator=made).pow(8)
    mixing = torch.randn(3, 6, generator=made)
    rows = sources @ mixing
    report = fit(FastICA(3), rows)
    loadings = report.dictionary.encode(rows)
    assert bool((loadings.pow(3).mean(0) > 0).all())
    assert bool((matched_cosine(mixing, report.dictionary.atoms) > 0.99).all())
    train = loadings[report.train_rows]
    torch.testing.assert_close(train.var(0), torch.ones(3), rtol=0.02, atol=0)
    assert report.r2 > 0.999


def test_more_independent_components_than_there_can_be():
    with pytest.raises(DataError, match=r"FastICA: 9 modes are more than 48 .* take at most 8"):
        fit(FastICA(9), _rows())


def test_dictionary_learning_finds_the_parts():
    made = torch.Generator().manual_seed(1)
    parts = torch.eye(9).view(3, 3, 9).sum(1)
    used = torch.rand(200, 3, generator=made) < 0.5
    rows = (used * torch.rand(200, 3, generator=made)) @ parts + 0.001
    report = fit(DictionaryLearning(3, alpha=0.02, positive_atoms=True), rows)
    loadings = report.dictionary.encode(rows)
    assert bool((report.dictionary.atoms >= 0).all())
    assert bool((loadings >= 0).all())
    assert bool((matched_cosine(parts, report.dictionary.atoms) > 0.95).all())


def test_dictionary_learning_takes_negative_rows_unless_both_are_positive():
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    signed = fit(DictionaryLearning(3, positive_loadings=False), rows).dictionary
    assert bool((signed.encode(rows) < 0).any())
    with pytest.raises(DataError, match="DictionaryLearning: fit: entries must not be negative"):
        fit(DictionaryLearning(3, positive_atoms=True), rows)
    with pytest.raises(OptionError, match=r"alpha must be above 0 and finite; got 0\.0"):
        DictionaryLearning(3, alpha=0.0)
