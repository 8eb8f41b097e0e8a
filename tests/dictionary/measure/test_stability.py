import math
from dataclasses import replace

import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.dictionary import PCA, KMeans, Stability, TrainConfig, fit, stability
from condec.testing.planted import Planted

DATA = Planted.small()


def _clusters(n_clusters=4, each=20):
    centres = 5.0 * torch.eye(n_clusters, 6)
    noise = 0.05 * torch.randn(n_clusters * each, 6, generator=torch.Generator().manual_seed(0))
    return centres.repeat_interleave(each, 0) + noise


def test_modes_of_the_data_are_stable():
    found = stability(KMeans(4), _clusters())
    assert found.seeds == (0, 1, 2, 3, 4)
    assert len(found.reports) == 5
    assert float(found.seed_cosine.nanmean()) > 0.99
    assert float(found.half_cosine.nanmean()) > 0.99
    assert found.between_halves > 0.99
    assert float(found.chance.nanmean()) < 0.8
    assert found.stable().tolist() == [0, 1, 2, 3]
    assert found.stable(1.0).tolist() == []


def test_modes_of_noise_are_not():
    noise = torch.randn(300, 12, generator=torch.Generator().manual_seed(1))
    found = stability(KMeans(10), noise)
    assert float(found.seed_cosine.nanmean()) < 0.9
    assert found.between_halves < 0.8
    assert len(found.stable()) < 3


def test_seeds_share_the_rows_and_halves_do_not():
    found = stability(KMeans(4), _clusters(), seeds=[3, 1, 4, 15, 9])
    assert found.seeds == (3, 1, 4, 15, 9)
    assert [report.config.seed for report in found.reports] == [3, 1, 4, 15, 9]
    for report in found.reports[1:]:
        assert torch.equal(report.held_out_rows, found.reports[0].held_out_rows)


def test_chance_has_the_lengths_and_sparsity_of_the_atoms():
    # Atoms that are all alike stay what they are under any permutation.
    rows = torch.ones(60, 5) * torch.linspace(1, 9, 60)[:, None]
    found = stability(KMeans(3), rows)
    assert float(found.chance.nanmean()) == pytest.approx(1.0, abs=1e-4)


def test_modes_without_a_partner_score_0_and_dead_ones_nan():
    from condec.dictionary.measure.stability import _mean_cosine

    atoms, alive = torch.eye(4), torch.tensor([True, True, True, False])
    found = _mean_cosine(atoms, alive, [torch.eye(4)[:2], torch.eye(4)])
    assert found[:3].tolist() == [1.0, 1.0, 0.5]
    assert math.isnan(found[3])
    nothing = _mean_cosine(atoms, alive, [torch.zeros(0, 4)])
    assert nothing[:3].tolist() == [0.0, 0.0, 0.0]


def test_dead_modes_are_never_stable():
    nan = float("nan")
    numbers = {
        "seed_cosine": torch.tensor([0.95, nan, 0.95, 0.5]),
        "half_cosine": torch.tensor([0.95, nan, 0.5, 0.95]),
        "chance": torch.tensor([0.1, nan, 0.1, 0.1]),
    }
    found = Stability(reports=(), seeds=(), between_halves=0.0, **numbers)
    assert found.stable().tolist() == [0]
    assert float(found.seed_cosine.nanmean()) == pytest.approx(0.8)
    table = found.table()
    assert list(table.columns) == ["mode", *numbers]
    assert table["mode"].tolist() == [0, 1, 2, 3]


def test_input_is_left_alone_and_the_answer_is_the_same_again():
    matrix = DATA.matrix.clone()
    first, second = (stability(KMeans(8), matrix) for _ in range(2))
    assert torch.equal(matrix, DATA.matrix)
    for name in ("seed_cosine", "half_cosine", "chance"):
        assert torch.equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("seeds", [4, [1, 2, 3, 4, 4], [1, 2, 3]])
def test_too_few_seeds(seeds):
    with pytest.raises(OptionError, match="at least 5, all different"):
        stability(PCA(2), _clusters(), seeds=seeds)


def test_too_few_rows():
    with pytest.raises(DataError, match="at least 4 rows make two halves; got 3"):
        stability(PCA(1), _clusters()[:3], config=TrainConfig())


def test_a_dictionary_at_hand_is_not_fitted_again():
    config = TrainConfig(held_out=0.3, split_seed=2)
    whole = stability(KMeans(8), DATA.matrix, config=config)
    own = fit(KMeans(8), DATA.matrix, config=config).dictionary
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    # In another order: the numbers must be those of the dictionary that was given.
    turned = replace(own, tensors={"atoms": own.tensors["atoms"][order]})
    found = stability(KMeans(8), DATA.matrix, config=config, fitted=turned)
    assert found.reports[0].dictionary is turned
    for name in ("seed_cosine", "half_cosine"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name)[order])
    with pytest.raises(DataError, match="stability: fitted records 600 rows, the matrix has 500"):
        stability(KMeans(8), DATA.matrix[:500], fitted=own)
