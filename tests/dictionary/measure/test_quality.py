import dataclasses
import json
import math
import re
import warnings

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.basis.errors import DataError
from condec.basis.metrics import atom_coherence, effective_rank, mean_coherence, shrinkage
from condec.dictionary import (
    NMF,
    PCA,
    DeadModesWarning,
    Dictionary,
    KMeans,
    Quality,
    TrainConfig,
    fit,
    load_dictionary,
    mode_table,
    quality,
)

SCALARS = tuple(field.name for field in dataclasses.fields(Quality))
PER_MODE = ("alive", "density", "atom_hoyer", "coherence")


def _rows(n=60, units=8):
    return torch.rand(n, units, generator=torch.Generator().manual_seed(0))


def _one_hot():
    """Four modes of one unit each; mode m in 2 ** m of 40 rows; the fifth atom is unused."""
    matrix = torch.zeros(40, 5)
    start = 0
    for mode in range(4):
        matrix[start : start + 2**mode, mode] = 2.0
        start += 2**mode
    return matrix


def _units() -> Dictionary:
    # The clusters of a row are the nearest atoms: unit vectors, zeros, and one far away.
    atoms = torch.zeros(6, 5)
    atoms[torch.arange(4), torch.arange(4)] = 2.0
    atoms[4] = 50.0
    return Dictionary(KMeans(6), {"atoms": atoms}, 1.0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_the_modes_does_not_matter(seed):
    report = fit(PCA(5), _rows())
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    tensors = dict(report.dictionary.tensors) | {"atoms": report.dictionary.tensors["atoms"][order]}
    mixed = dataclasses.replace(report.dictionary, tensors=tensors)
    before, after = quality(report.dictionary, _rows()), quality(mixed, _rows())
    for name in SCALARS:
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-5, abs=1e-6)
    table = mode_table(report.dictionary, _rows()).iloc[order.numpy()].reset_index(drop=True)
    table["mode"] = range(5)
    pandas.testing.assert_frame_equal(mode_table(mixed, _rows()), table, rtol=1e-5, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_of_the_rows_does_not_matter(seed):
    dictionary = fit(NMF(3), _rows()).dictionary
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    before, after = quality(dictionary, _rows()), quality(dictionary, _rows()[order])
    for name in SCALARS:
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-4)


def test_dead_modes_say_nothing_about_the_atoms():
    found, table = quality(_units(), _one_hot()), mode_table(_units(), _one_hot())
    assert list(table.columns) == ["mode", *PER_MODE]
    assert table["alive"].tolist() == [True, True, True, True, False, True]
    density = [1 / 40, 2 / 40, 4 / 40, 8 / 40, 0.0, 25 / 40]
    assert table["density"].tolist() == pytest.approx(density)
    assert math.isnan(table["coherence"][4])
    assert math.isnan(table["atom_hoyer"][5])  # It is a vector of zeros.
    assert found.atom_hoyer == pytest.approx(1.0)
    assert found.coherence == 0.0
    assert found.effective_rank == pytest.approx(4.0)
    assert (found.l0, found.r2) == (1.0, 1.0)
    assert found.loading_hoyer == pytest.approx(1.0)
    assert found.shrinkage == 1.0
    assert found.dead_share == 1 / 6


def test_a_number_that_is_not_defined_is_none(tmp_path):
    found = quality(fit(KMeans(1), _rows()).dictionary, _rows())
    assert (found.coherence, found.mean_coherence, found.loading_hoyer) == (None, None, None)
    assert found.effective_rank == pytest.approx(1.0)
    fit(KMeans(1), _rows()).save(tmp_path)
    text = (tmp_path / "dictionary.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_dictionaries_saved_before_these_numbers_load(tmp_path):
    fit(PCA(2), _rows()).save(tmp_path)
    file = tmp_path / "dictionary.json"
    record = json.loads(file.read_text())
    old = {"n_rows", "r2", "r2_grand", "cosine", "l0", "n_alive"}
    for split, metrics in record["training"]["metrics"].items():
        record["training"]["metrics"][split] = {k: v for k, v in metrics.items() if k in old}
    del record["training"]["config"]["freeze"]
    record["format"] = 2  # the last one without a digest of itself
    file.write_text(json.dumps(record))
    training = load_dictionary(tmp_path).training
    assert training.metrics["held_out"].dead_share is None
    assert training.metrics["held_out"].effective_rank is None
    assert training.metrics["held_out"].r2 > 0
    assert training.config.freeze is None
    assert set(Quality.__dataclass_fields__) > old


def test_bad_rows_are_refused():
    dictionary = fit(PCA(2), _rows()).dictionary
    with pytest.raises(DataError, match="quality: expected at least one row"):
        quality(dictionary, _rows()[:0])
    with pytest.raises(DataError, match="fitted to rows of 8 units"):
        quality(dictionary, _rows()[:, :5])
    with pytest.raises(DataError, match="quality: 1 of 60 rows hold NaN"):
        quality(dictionary, _rows().index_fill(0, torch.tensor([4]), float("nan")))


def test_many_dead_modes_are_said():
    # The four clusters at the end are of training rows only.
    matrix = torch.eye(8).repeat_interleave(8, 0) + 0.01 * torch.rand(64, 8)
    chosen = torch.arange(0, 32, 4)
    message = (
        r"4 of 8 modes \(50%\) are dead on the 8 held-out rows: .* About 4 of them are rare "
        r".*take fewer modes"
    )
    with pytest.warns(DeadModesWarning, match=message):
        report = fit(KMeans(8), matrix, held_out_rows=chosen)
    assert report.metrics["held_out"].dead_share == 0.5
    assert report.metrics["train"].dead_share == 0.0


def test_few_dead_modes_are_not():
    matrix = torch.eye(5).repeat_interleave(8, 0) + 0.01 * torch.rand(40, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # One of five, which is not more than 20 %.
        report = fit(KMeans(5), matrix, held_out_rows=torch.arange(0, 32, 2))
        fit(KMeans(5), matrix, config=TrainConfig(held_out=0.0))
    assert report.metrics["held_out"].dead_share == pytest.approx(0.2)


@settings(max_examples=15, deadline=None)
@given(
    k=st.integers(2, 8), d=st.integers(2, 8), factor=st.floats(0.01, 100.0), seed=st.integers(0, 99)
)
def test_numbers_of_atoms_keep_their_bounds(k, d, factor, seed):
    made = torch.Generator().manual_seed(seed)
    atoms = torch.randn(k, d, generator=made, dtype=torch.float64)
    rank = effective_rank(atoms)
    assert 1.0 - 1e-9 <= rank <= min(k, d) + 1e-9
    assert effective_rank(factor * atoms) == pytest.approx(rank)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=made, dtype=torch.float64))
    assert effective_rank(atoms @ turn) == pytest.approx(rank)
    coherence = atom_coherence(atoms)
    assert bool(((coherence >= 0) & (coherence <= 1)).all())
    assert mean_coherence(atoms) <= float(coherence.max()) + 1e-12
    torch.testing.assert_close(atom_coherence(-factor * atoms @ turn), coherence)


def test_copies_of_an_atom_are_seen():
    atoms = torch.tensor([[1.0, 2.0, 0.0], [-2.0, -4.0, 0.0], [0.0, 0.0, 3.0]])
    assert atom_coherence(atoms).tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert mean_coherence(atoms) == pytest.approx(1 / 3)
    assert effective_rank(atoms[:2]) == pytest.approx(1.0)
    assert bool(atom_coherence(atoms[:1]).isnan().all())
    assert math.isnan(effective_rank(torch.zeros(2, 3)))


def test_effective_rank_refuses_what_has_none():
    for matrix in (torch.zeros(0, 3), torch.tensor([[1.0, float("nan")]])):
        with pytest.raises(DataError, match="effective_rank: expected a matrix of finite entries"):
            effective_rank(matrix)


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0, 3.0])
def test_shrinkage_is_the_factor_of_the_lengths(factor):
    x = torch.randn(20, 5)
    x[3] = 0.0  # Left out.
    assert shrinkage(x, factor * x) == pytest.approx(factor)


def test_shrinkage_needs_a_reconstruction_of_the_same_shape(unchecked):
    x = torch.randn(20, 5)
    with pytest.raises(DataError, match=re.escape("got (20, 5) and (20, 4)")):
        shrinkage(x, x[:, :4])
