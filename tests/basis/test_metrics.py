"""Metrics keep their ranges, their invariances and their policy on constants and NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.basis import metrics
from condec.basis.errors import DataError, OptionError

NAN = float("nan")
seeds = st.integers(0, 2**31 - 1)


def _normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- sparsity ---------------------------------------------------------------------------


@given(seeds, st.integers(2, 40), st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_hoyer_lies_between_0_and_1_and_forgets_scale_sign_and_order(
    seed: int, d: int, scale: float
) -> None:
    v = _normal(d, seed=seed, dtype=torch.float64) ** 3
    sparsity = metrics.hoyer(v, eps=0.0)
    assert -1e-12 <= float(sparsity) <= 1 + 1e-12
    torch.testing.assert_close(metrics.hoyer(-scale * v.flip(0), eps=0.0), sparsity)


def test_hoyer_of_a_zero_vector_follows_the_paper_or_is_nan() -> None:
    zero = torch.zeros(4)
    assert float(metrics.hoyer(zero)) == pytest.approx(2.0)
    assert metrics.hoyer(zero, eps=0.0).isnan()


def test_hoyer_along_any_axis_and_in_half_precision() -> None:
    x = _normal(3, 5, 7)
    torch.testing.assert_close(metrics.hoyer(x, dim=1), metrics.hoyer(x.movedim(1, -1)))
    assert metrics.hoyer(x.half()).dtype == torch.float32


@given(seeds, st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=30, deadline=None)
def test_participation_ratio_counts_equal_entries(seed: int, ones: int, zeros: int) -> None:
    v = torch.cat([torch.ones(ones), torch.zeros(zeros)])
    v = v[torch.randperm(len(v), generator=torch.Generator().manual_seed(seed))]
    # Fourth powers of 1e-15 are not representable in float32.
    assert float(metrics.participation_ratio(1e-15 * v)) == pytest.approx(ones)
    x = _normal(max(ones + zeros, 1), seed=seed)
    assert 1 - 1e-5 <= float(metrics.participation_ratio(x)) <= len(x) * (1 + 1e-5)


def test_participation_ratio_of_nothing_is_nan() -> None:
    assert metrics.participation_ratio(torch.zeros(2, 3)).isnan().all()


def test_too_short_vectors_are_refused() -> None:
    with pytest.raises(DataError, match=r"hoyer: needs at least 2 entries along axis -1.*\(3, 1\)"):
        metrics.hoyer(torch.ones(3, 1))
    with pytest.raises(DataError, match="participation_ratio: needs at least 1 entry"):
        metrics.participation_ratio(torch.ones(3, 0))
    with pytest.raises(DataError, match=r"hoyer: .*along axis 2; got shape \(3, 4\)"):
        metrics.hoyer(torch.ones(3, 4), dim=2)


# --- correlation ------------------------------------------------------------------------


@given(seeds, st.floats(0.1, 50.0), st.floats(-50.0, 50.0))
@settings(max_examples=30, deadline=None)
def test_pearson_ignores_offset_and_scale(seed: int, scale: float, offset: float) -> None:
    a, b = _normal(2, 30, seed=seed, dtype=torch.float64)
    r = metrics.pearson(a, b)
    assert -1 <= float(r) <= 1
    torch.testing.assert_close(metrics.pearson(scale * a + offset, b), r)
    torch.testing.assert_close(metrics.pearson(-scale * a, b), -r)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3.7e20])
def test_a_constant_has_correlation_0_even_where_its_mean_is_rounded(value: float) -> None:
    constant = torch.full((1001,), value)
    assert float(metrics.pearson(constant, _normal(1001))) == 0.0
    loadings = torch.stack([constant, _normal(1001)], dim=1)
    indicators = torch.zeros(1001, 2, dtype=torch.bool)
    indicators[::3, 0] = True
    r = metrics.correlation_matrix(loadings, indicators)
    assert r[0].tolist() == [0.0, 0.0]
    assert float(r[1, 1]) == 0.0
    assert float(r[1, 0]) != 0.0


def test_nan_stays_nan() -> None:
    loadings = _normal(6, 3)
    loadings[2, 1] = NAN
    constant_but_for_nan = torch.tensor([1.0, 1.0, NAN, 1.0, 1.0, 1.0])
    loadings[:, 2] = constant_but_for_nan
    r = metrics.correlation_matrix(loadings, _normal(6, 2, seed=1))
    assert r.isnan().tolist() == [[False, False], [True, True], [True, True]]
    assert metrics.pearson(constant_but_for_nan, _normal(6)).isnan()


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15])
def test_correlation_matrix_survives_scales_at_the_edge_of_float32(scale: float) -> None:
    loadings = _normal(200, 5)
    indicators = _normal(200, 3, seed=1) > 0.5
    wanted = metrics.correlation_matrix(loadings.double(), indicators)
    got = metrics.correlation_matrix(scale * loadings, indicators)
    torch.testing.assert_close(got.double(), wanted, atol=1e-6, rtol=0)


def test_correlation_matrix_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    loadings, others = torch.rand(40, 11), torch.rand(40, 7)
    whole = metrics.correlation_matrix(loadings, others)
    monkeypatch.setattr(metrics, "_COPIED_AT_ONCE", 80)
    assert [part.shape[1] for part in metrics.in_columns(loadings)] == [2, 2, 2, 2, 2, 1]
    assert [part.shape[1] for part in metrics.in_columns(torch.rand(1000, 17))] == [3] * 5 + [2]
    torch.testing.assert_close(metrics.correlation_matrix(loadings, others), whole)
    assert metrics.correlation_matrix(loadings, others[:, :0]).shape == (11, 0)


def test_correlation_matrix_leaves_its_inputs_alone() -> None:
    loadings, indicators = _normal(20, 4), _normal(20, 3, seed=1)
    before = loadings.clone(), indicators.clone()
    first = metrics.correlation_matrix(loadings, indicators)
    assert torch.equal(loadings, before[0])
    assert torch.equal(indicators, before[1])
    order = torch.randperm(20)
    torch.testing.assert_close(
        metrics.correlation_matrix(loadings[order], indicators[order]), first
    )


def test_unlike_sizes_are_refused(unchecked: None) -> None:
    with pytest.raises(DataError, match=r"loadings of 5 samples .* indicators of 4"):
        metrics.correlation_matrix(torch.ones(5, 2), torch.ones(4, 2))
    with pytest.raises(DataError, match=r"pearson: both tensors .*\(3,\) and \(4,\)"):
        metrics.pearson(torch.ones(3), torch.ones(4))


# --- dimensions -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(60, 20), (12, 20), (5000, 8)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_dimensions_of_a_matrix_of_known_rank(n: int, d: int, rank: int) -> None:
    # Orthonormal columns, also centred: equal variance in `rank` directions.
    columns = _normal(n, rank, dtype=torch.float64)
    q = torch.linalg.qr(columns - columns.mean(0))[0]
    x = q @ torch.linalg.qr(_normal(d, rank, seed=1, dtype=torch.float64))[0].T + 100.0
    assert metrics.pca_dimensions(x, 1.0) == rank
    assert metrics.pca_dimensions(x, 1.0 - 0.5 / rank) == rank
    if rank > 1:
        assert metrics.pca_dimensions(x, 1.0 - 1.5 / rank) == rank - 1


@given(seeds, st.integers(2, 30), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_dimensions_grow_with_the_share_and_ignore_offset(seed: int, n: int, d: int) -> None:
    x = _normal(n, d, seed=seed)
    found = [metrics.pca_dimensions(x, share) for share in (0.1, 0.5, 0.9, 1.0)]
    assert found == sorted(found)
    assert found[0] >= 1
    assert found[-1] == min(n - 1, d)
    assert metrics.pca_dimensions(x.double() + 3.0, 0.9) == found[2]


def test_nothing_that_varies_has_no_dimensions() -> None:
    assert metrics.pca_dimensions(torch.full((5, 3), 0.1)) == 0
    assert metrics.pca_dimensions(torch.zeros(3, 5)) == 0


def test_dimensions_refuse_what_they_cannot_use() -> None:
    x = _normal(4, 3)
    with pytest.raises(OptionError, match=r"variance must be above 0 and at most 1; got 95.0"):
        metrics.pca_dimensions(x, 95.0)
    x[1, 1] = NAN
    with pytest.raises(DataError, match="NaN or infinite"):
        metrics.pca_dimensions(x)
    with pytest.raises(DataError, match=r"needs rows and units; got shape \(0, 3\)"):
        metrics.pca_dimensions(torch.zeros(0, 3))


# --- reconstruction ---------------------------------------------------------------------


def test_predicting_the_mean_scores_0_by_unit_and_above_it_by_the_papers_measure() -> None:
    x = _normal(5000, 4) + torch.tensor([0.0, 5.0, -5.0, 1.0])
    means = x.double().mean(0).float().expand_as(x)
    assert metrics.r2(x, means) == pytest.approx(0.0, abs=1e-6)
    assert metrics.r2_grand(x, means) > 0.9
    assert metrics.r2(x, x) == 1.0
    assert metrics.r2_grand(x, x) == 1.0
    assert metrics.r2(x, -x) < 0.0


def test_r2_of_something_constant_is_nan() -> None:
    x = torch.ones(4, 3)
    assert metrics.r2(x, 2 * x) != metrics.r2(x, 2 * x)
    assert metrics.r2_grand(x, x) == 1.0


def test_r2_refuses_other_shapes(unchecked: None) -> None:
    for measure in (metrics.r2, metrics.r2_grand):
        with pytest.raises(DataError, match=r"same shape; got \(4, 3\) and \(4, 2\)"):
            measure(torch.ones(4, 3), torch.ones(4, 2))


def test_cosine_of_a_zero_vector_is_0_and_of_nan_is_nan() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [NAN, 1.0], [1e-30, 1e-30]])
    got = metrics.cosine(a, torch.tensor([1.0, 1.0]))
    assert got[[0, 1, 3]].tolist() == pytest.approx([2**-0.5, 0.0, 1.0])
    assert got[2].isnan()
    assert float(metrics.cosine(a, torch.ones(4, 1), dim=0)[1]) == pytest.approx(0.5)


def test_l0_counts_per_sample() -> None:
    z = torch.tensor([[0.0, 0.9, -0.0], [0.0, 0.0, 0.0], [1.0, 1.0, -2.0]])
    assert metrics.l0(z).tolist() == [1, 0, 3]
    assert metrics.l0(z, dim=0).tolist() == [1, 2, 1]


# --- matching ---------------------------------------------------------------------------


@given(seeds, st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_a_shuffled_and_rescaled_dictionary_matches_itself(seed: int, n: int) -> None:
    atoms = _normal(n, 16, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    scales = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) + 0.1
    got = metrics.matched_cosine(atoms, (scales * atoms)[order])
    torch.testing.assert_close(got, torch.ones(n))


def test_atoms_left_over_are_nan_and_other_units_are_refused(unchecked: None) -> None:
    atoms = torch.eye(3)
    assert metrics.matched_cosine(atoms, atoms[[2]]).isnan().tolist() == [True, True, False]
    with pytest.raises(DataError, match=r"over the same units; got shapes \(3, 3\) and \(2, 4\)"):
        metrics.matched_cosine(atoms, torch.ones(2, 4))


# --- against an independent implementation ----------------------------------------------


def test_dimensions_and_correlation_agree_with_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    x = _normal(300, 25) @ torch.diag(torch.linspace(0.1, 3.0, 25))
    shares = PCA(svd_solver="full").fit(x.double().numpy()).explained_variance_ratio_.cumsum()
    assert metrics.pca_dimensions(x, 0.95) == int((shares < 0.95).sum()) + 1
    r = metrics.correlation_matrix(x, x)
    torch.testing.assert_close(r, torch.corrcoef(x.T), atol=1e-5, rtol=1e-5)
