"""Combinations of modes: counts, chance, shifts, and their receptive fields."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.retina.chance import keys_of, kinds_of, rolled
from condec.retina.combinations import active_modes, combinations, fields_of_combinations
from condec.retina.fields import ReceptiveFields, separate


def lasting(n: int, modes: int, seed: int, length: int = 25) -> Tensor:
    """Independent modes, each active or not for about `length` frames on end."""
    noise = torch.randn(modes, 1, n, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool1d(noise, length, 1, length // 2)[:, 0].T
    return smooth.clamp(min=0.0)


def fields_of(products: Tensor) -> ReceptiveFields:
    """From [sample, cell, history, y, x]."""
    both, n_cells = separate(products), products.shape[1]
    return ReceptiveFields(
        spatial=both.spatial, temporal=both.temporal, strength=both.strength,
        separability=both.separability, rows=torch.arange(len(products)),
        cells=torch.arange(n_cells), corners=torch.zeros(n_cells, 2, dtype=torch.int64),
    )  # fmt: skip


# --- what is active -----------------------------------------------------------------------


def test_active_is_above_the_threshold() -> None:
    loadings = torch.tensor([[0.0, 1.0], [0.2, 0.5], [1.0, 0.1]])
    assert active_modes(loadings).tolist() == [[False, True], [True, True], [True, True]]
    scaled = loadings * torch.tensor([10.0, 1.0])
    assert active_modes(scaled, 0.3).sum(0).tolist() == [1, 2]
    never = torch.cat((loadings, -torch.ones(3, 1)), 1)  # such a mode's maximum is no threshold
    assert active_modes(never, 0.5)[:, 2].tolist() == [False] * 3


# --- counts -------------------------------------------------------------------------------


def test_every_frame_is_counted_once() -> None:
    loadings = lasting(300, 4, 0)
    table = combinations(loadings, n_shifts=0)
    assert table["count"].sum() == 300
    assert table["combination"].is_unique
    assert table["count"].is_monotonic_decreasing
    assert table[["low", "high", "p_shift", "p_shift_corrected"]].isna().all(axis=None)


def test_order_of_frames_does_not_matter_without_shifts() -> None:
    loadings = lasting(200, 3, 1)
    order = torch.randperm(200)
    a, b = combinations(loadings, n_shifts=0), combinations(loadings[order], n_shifts=0)
    assert a.equals(b)


def test_order_of_modes_only_renames() -> None:
    loadings = lasting(200, 3, 2)
    a = combinations(loadings, n_shifts=0).set_index("combination")
    b = combinations(loadings[:, [2, 0, 1]], n_shifts=0)
    b["combination"] = [tuple(sorted([2, 0, 1][m] for m in some)) for some in b["combination"]]
    b = b.set_index("combination").loc[list(a.index)]
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-9)


def test_what_never_occurs_is_listed_where_chance_would_show_it() -> None:
    one = torch.tensor([1.0, 0.0]).repeat(20)
    table = combinations(torch.stack((one, 1 - one), 1), n_shifts=0)
    never = table[table["count"] == 0]
    assert never["combination"].tolist() == [(), (0, 1)]
    assert never["expected"].tolist() == [10.0, 10.0]
    assert never["ratio"].tolist() == [0.0, 0.0]
    assert (never["p_binomial_corrected"] < 1e-4).all()


def test_more_modes_than_a_word_has_bits() -> None:
    loadings = (torch.rand(40, 70) < 0.05).float()
    found, counts = np.unique(keys_of(loadings.bool().numpy()), return_counts=True)
    assert counts.sum() == 40
    kinds = kinds_of(found, 70)
    expected = np.unique(loadings.bool().numpy(), axis=0)
    assert {tuple(k) for k in kinds} == {tuple(k) for k in expected}
    assert combinations(loadings, n_shifts=2)["count"].sum() == 40


def test_modes_that_are_always_or_never_active_change_nothing() -> None:
    loadings = lasting(200, 2, 3)
    more = torch.cat((loadings, torch.ones(200, 1), torch.zeros(200, 1)), 1)
    a, b = combinations(loadings, n_shifts=20), combinations(more, n_shifts=0)
    assert [(*some, 2) for some in a["combination"]] == b["combination"].tolist()
    columns = ["count", "expected", "p_binomial", "p_binomial_corrected"]
    np.testing.assert_allclose(a[columns].to_numpy(), b[columns].to_numpy(), rtol=1e-9)


# --- shifts -------------------------------------------------------------------------------


def test_independent_modes_that_last_are_no_finding() -> None:
    wrong = {"p_shift_corrected": 0, "p_binomial_corrected": 0}
    for seed in range(30):
        table = combinations(lasting(300, 3, seed), n_shifts=59, seed=seed)
        for column in wrong:
            wrong[column] += bool(table[column].min() <= 0.05)
    # 1.5 of 30 are due by chance, and with probability 0.99 no more than 5.
    assert wrong["p_shift_corrected"] <= 5
    assert wrong["p_binomial_corrected"] >= 20  # frames taken for independent


def test_ratio_of_independent_modes_is_1_within_the_shifts() -> None:
    table = combinations(lasting(4000, 2, 0, length=5), n_shifts=200)
    assert table["ratio"].to_numpy() == pytest.approx(np.ones(4), abs=0.1)
    assert ((table["low"] <= table["count"]) & (table["count"] <= table["high"])).all()


def test_modes_that_act_together_are_found() -> None:
    loadings = lasting(1500, 4, 5)
    loadings[:, 1] = loadings[:, 0]
    table = combinations(loadings, n_shifts=99).set_index("combination")
    assert float(table.loc[[(0, 1)], "p_shift_corrected"].iloc[0]) <= 0.02
    assert float(table.loc[[(0, 1)], "ratio"].iloc[0]) > 1.5
    assert float(table.loc[[(0,)], "count"].iloc[0]) == 0
    assert float(table.loc[[(0,)], "p_shift_corrected"].iloc[0]) <= 0.02


def test_shifts_keep_each_mode_and_depend_on_the_seed_alone() -> None:
    on = lasting(50, 3, 1).numpy() > 0
    moved = rolled(on, np.array([0, 7, 49]))
    for mode, offset in enumerate((0, 7, 49)):
        assert (moved[:, mode] == np.roll(on[:, mode], offset)).all()
    loadings = lasting(200, 3, 1)
    a = combinations(loadings, n_shifts=20, seed=3)
    assert a.equals(combinations(loadings, n_shifts=20, seed=3))
    assert not a.equals(combinations(loadings, n_shifts=20, seed=4))


# --- fields -------------------------------------------------------------------------------


def test_fields_of_combinations_are_those_that_were_planted() -> None:
    """One mode turns the field over, the other moves it; the second cell never changes."""
    on = torch.rand(60, 2) < 0.5
    course = torch.tensor([0.2, 1.0, 0.4])
    here, there = torch.zeros(4, 4), torch.zeros(4, 4)
    here[1, 1], there[2, 3] = 3.0, 1.0
    pictures = torch.stack([
        torch.stack(((there if b else here) * (-1 if a else 1), here)) for a, b in on.tolist()
    ])  # fmt: skip
    fields = fields_of(torch.einsum("h,scyx->schyx", course, pictures))
    found = fields_of_combinations(fields, on.float(), least_frames=1)
    assert set(found.combinations) == {(), (0,), (1,), (0, 1)}
    assert found.counts.tolist() == sorted(found.counts.tolist(), reverse=True)
    for modes, spatial, strength in zip(
        found.combinations, found.spatial, found.strength, strict=True
    ):
        picture = (there if 1 in modes else here) * (-1 if 0 in modes else 1)
        torch.testing.assert_close(spatial[0], picture / picture.norm())
        assert float(strength[0]) == pytest.approx(float(picture.norm() * course.norm()), rel=1e-5)


def test_fields_that_differ_are_averaged() -> None:
    field = torch.zeros(8, 1, 2, 3, 3)
    field[:, 0, 0, 0, 0] = torch.tensor([1.0, -1.0]).repeat(4)
    field[:4, 0, 0, 1, 1] = 1.0
    loadings = torch.tensor([[1.0]] * 4 + [[0.0]] * 4)
    found = fields_of_combinations(fields_of(field), loadings, least_frames=4)
    assert found.combinations == ((), (0,))
    # The first pixel turns over from frame to frame, the second is in half of them.
    assert found.strength.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert found.spatial[1, 0].flatten().tolist() == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0, 0])
    order = torch.randperm(8)
    again = fields_of_combinations(fields_of(field[order]), loadings[order], least_frames=4)
    torch.testing.assert_close(again.spatial[1], found.spatial[1])


# --- what is refused ----------------------------------------------------------------------


def test_combinations_refuse() -> None:
    loadings = torch.rand(6, 2)
    for share in (-1.0, 1.0):
        with pytest.raises(OptionError, match=f"share from 0 to below 1; got {share}"):
            combinations(loadings, threshold=share)
    with pytest.raises(OptionError, match="n_shifts must be at least 0; got -1"):
        combinations(loadings, n_shifts=-1)
    with pytest.raises(
        DataError, match=r"no mode is active .* of 6 frames: .* \(the largest is 0\)"
    ):
        combinations(loadings * 0)
    with pytest.raises(DataError, match=r"two frames and one mode, or more; got shape \(1, 2\)"):
        combinations(loadings[:1])
    with pytest.raises(DataError, match=r"two frames and one mode, or more; got shape \(6, 0\)"):
        combinations(loadings[:, :0])
    loadings[4, 1] = math.nan
    with pytest.raises(DataError, match=r"1 of 6 rows hold NaN or infinity; .* \[4\]"):
        combinations(loadings)


def test_fields_of_combinations_refuse(unchecked: None) -> None:
    fields = fields_of(torch.randn(5, 1, 2, 3, 3))
    with pytest.raises(DataError, match=r"loadings of 6 frames, fields of 5; give loadings\["):
        fields_of_combinations(fields, torch.rand(6, 2))
    with pytest.raises(DataError, match=r"no combination has 9 frames \(the most frequent has 5\)"):
        fields_of_combinations(fields, torch.ones(5, 2), least_frames=9)
