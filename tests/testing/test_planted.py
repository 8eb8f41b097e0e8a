import re
from types import SimpleNamespace

import pytest
import torch

from condec.basis.errors import OptionError
from condec.models.torchvision import import_torchvision
from condec.testing.planted import Planted, planted


def test_same_seed_same_data():
    first, second, other = Planted.small(), Planted.small(), Planted.small(seed=1)
    torch.manual_seed(5)
    for name in ("matrix", "atoms", "loadings", "rare", "partner"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.matrix, other.matrix)


def test_data_are_what_they_are_said_to_be():
    data = planted(20, 50, 4, 3000, 0.0)
    assert torch.equal((data.loadings > 0).sum(1), torch.full((3000,), 4))
    assert bool((data.loadings[data.loadings > 0] >= 0.5).all())
    assert bool((data.atoms >= 0).all())
    torch.testing.assert_close(data.atoms.norm(dim=1), torch.ones(20))
    assert torch.equal((data.atoms > 0).sum(1), torch.full((20,), 3))
    torch.testing.assert_close(data.matrix, data.loadings @ data.atoms)
    assert not bool(data.rare.any())
    assert bool((data.partner == -1).all())


def test_noise_is_relative_to_the_signal():
    clean, noisy = planted(20, 50, 4, 3000, 0.0), planted(20, 50, 4, 3000, 0.25)
    signal = clean.loadings @ clean.atoms
    assert torch.equal(clean.loadings, noisy.loadings)
    assert float(noisy.matrix.min()) == 0.0
    # Where the signal is far above 0, nothing is cut off.
    high = signal > 4 * float(signal.std())
    error = (noisy.matrix - signal)[high]
    assert float(error.std()) == pytest.approx(0.25 * float(signal.std()), rel=0.1)


def test_rare_modes_are_drawn_a_fifth_as_often():
    data = planted(50, 60, 1, 50_000, 0.0, rare=0.2)
    share = (data.loadings > 0).double().mean(0)
    ratio = float(share[data.rare].mean() / share[~data.rare].mean())
    assert int(data.rare.sum()) == 10
    assert ratio == pytest.approx(0.2, abs=0.02)


def test_partners_go_together():
    data = planted(40, 60, 3, 20_000, 0.0, correlated=0.5)
    active = (data.loadings > 0).double()
    together = torch.corrcoef(active.T)
    paired = (data.partner >= 0).nonzero().flatten()
    assert len(paired) == 20
    assert torch.equal(data.partner[data.partner[paired]], paired)
    assert float(together[paired, data.partner[paired]].min()) > 0.1
    together[paired, data.partner[paired]] = 0.0
    assert float(together.fill_diagonal_(0.0).max()) < 0.05
    assert torch.equal((data.loadings > 0).sum(1), torch.full((20_000,), 3))


def test_standard_instance_is_that_of_the_benchmarks():
    data = Planted.standard()
    assert data.matrix.shape == (20_000, 256)
    assert data.atoms.shape == (200, 256)
    assert torch.equal((data.loadings > 0).sum(1), torch.full((20_000,), 5))
    assert (int(data.rare.sum()), int((data.partner >= 0).sum())) == (10, 20)
    # No two modes are so alike that one could be taken for the other.
    assert float((data.atoms @ data.atoms.T).fill_diagonal_(0.0).max()) < 0.8


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        ((0, 9, 1, 9, 0.0), {}, "n_modes must be at least 1; got 0"),
        ((4, 9, 5, 9, 0.0), {}, "n_active must be from 1 to 4 modes; got 5"),
        ((4, 9, 2, 9, -1.0), {}, "noise must be finite and not negative; got -1.0"),
        ((4, 9, 2, 9, 0.0), {"correlated": 0.7, "rare": 0.7}, "together at most 1; got 0.7"),
    ],
)
def test_options_are_checked(numbers, options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        planted(*numbers, **options)


# Importing it brings in warnings of its own and of what it needs.
@pytest.mark.filterwarnings("ignore")
def test_the_ground_truth_of_saelens():
    """Features of a hierarchy fire with their parents alone, and rows are made of them."""
    import_torchvision()
    reason = "pip install sae-lens"
    theirs = pytest.importorskip("sae_lens.synthetic", reason=reason, exc_type=ImportError)
    hierarchy = theirs.HierarchyConfig(total_root_nodes=3, branching_factor=2, max_depth=2)
    config = theirs.SyntheticModelConfig(
        num_features=30, hidden_dim=16, hierarchy=hierarchy, seed=1
    )
    planted = Planted.synthetic(theirs.SyntheticModel(config), 500)
    torch.testing.assert_close(
        planted.matrix, planted.loadings @ planted.atoms, rtol=1e-4, atol=1e-5
    )
    child = (planted.partner >= 0).nonzero().flatten()
    assert len(child) >= 6
    fires = planted.loadings > 0
    assert not bool((fires[:, child] & ~fires[:, planted.partner[child]]).any())


def test_a_synthetic_model_of_two_levels():
    """What `Planted.synthetic` reads off a model, of one that is made here."""
    leaves = [SimpleNamespace(feature_index=i, children=[]) for i in (1, 2)]
    root = SimpleNamespace(feature_index=0, children=leaves)
    loadings = torch.zeros(100, 4)
    loadings[:60, 0] = loadings[:30, 1] = loadings[30:60, 2] = 1.0
    loadings[:2, 3] = 2.0
    atoms, bias = torch.eye(4, 5), torch.ones(5)
    model = SimpleNamespace(
        sample_with_features=lambda n: (loadings[:n] @ atoms + bias, loadings[:n].to_sparse()),
        feature_dict=SimpleNamespace(feature_vectors=atoms, bias=bias),
        hierarchy=SimpleNamespace(roots=[root]),
    )
    planted = Planted.synthetic(model, 100)
    assert planted.partner.tolist() == [-1, 0, 0, -1]
    assert planted.rare.tolist() == [False, False, False, True]
    torch.testing.assert_close(planted.matrix, planted.loadings @ planted.atoms)
