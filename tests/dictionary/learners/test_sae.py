import dataclasses
import re

import pytest
import torch
from torch import nn

from condec.basis.errors import OptionError
from condec.basis.metrics import matched_cosine
from condec.dictionary import Learner, ThresholdSAE, TrainConfig, alive_modes, fit, recovery
from condec.dictionary.learners.sae import keep
from condec.testing.contracts import DictionaryContract
from condec.testing.planted import Planted

# Dictionaries of a few dozen rows may well have modes that no held-out row uses.
pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")


class TestThresholdSAE(DictionaryContract):
    learner = ThresholdSAE(6, threshold=0.6)


class TestNonnegative(DictionaryContract):
    learner = ThresholdSAE(6, threshold=0.6, nonnegative=True, width=12, atom_l1=1e-3)

    def test_atoms_are_not_negative(self, unchecked):
        # A strong penalty takes every entry past 0: only the projection stops it there.
        learner = ThresholdSAE(6, threshold=0.6, nonnegative=True, atom_l1=100.0)
        config = TrainConfig(epochs=60, batch_size=16, lr=3e-3)
        atoms = fit(learner, _data(), config=config).dictionary.atoms
        assert bool((atoms >= 0).all())
        assert bool((atoms == 0).any())


class TestPlateau(DictionaryContract):
    learner = ThresholdSAE(8, threshold=0.5, dropout=0.0)
    config = TrainConfig(epochs=8, batch_size=16, lr=3e-3, schedule="plateau")


def _data(n=60, units=8, seed=0):
    return torch.rand(n, units, generator=torch.Generator().manual_seed(seed))


def planted(n_rows, n_units=64, n_modes=40, active=3, support=6, seed=0):
    """Sparse atoms that are not negative, in random mixtures of a few, with some noise."""
    made = torch.Generator().manual_seed(seed)
    atoms = torch.zeros(n_modes, n_units)
    for atom in atoms:
        chosen = torch.randperm(n_units, generator=made)[:support]
        atom[chosen] = 0.5 + torch.rand(support, generator=made)
    atoms /= atoms.norm(dim=1, keepdim=True)
    used = torch.rand(n_rows, n_modes, generator=made) < active / n_modes
    loadings = used * (0.5 + torch.rand(n_rows, n_modes, generator=made))
    noise = 0.006 * torch.rand(n_rows, n_units, generator=made)
    return atoms, loadings @ atoms + noise


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_default_recovers_planted_modes():
    atoms, matrix = planted(4000)
    report = fit(ThresholdSAE(192), matrix)
    used = (report.dictionary.encode(matrix) > 0).any(0)
    matched = matched_cosine(atoms, report.dictionary.atoms[used])
    assert int(used.sum()) == report.n_alive
    assert matched.mean() > 0.9
    assert (matched > 0.9).float().mean() > 0.7
    assert report.r2 > 0.8
    assert report.r2 < report.metrics["train"].r2
    assert 1.0 < report.l0 < 20.0


def test_architecture_is_the_papers():
    report = fit(ThresholdSAE(10, threshold=0.3), _data(40, 5), config=TrainConfig(epochs=1))
    shapes = {name: tuple(tensor.shape) for name, tensor in report.dictionary.tensors.items()}
    assert shapes == {
        "atoms": (10, 5),
        "encoder.0.weight": (5, 5),
        "encoder.0.bias": (5,),
        "encoder.3.weight": (5,),
        "encoder.3.bias": (5,),
        "encoder.4.weight": (5, 5),
        "encoder.4.bias": (5,),
        "encoder.7.weight": (5,),
        "encoder.7.bias": (5,),
        "encoder.8.weight": (10, 5),
    }
    encoder = ThresholdSAE(10)._encoder(5)
    kinds = [type(layer) for layer in encoder]
    assert kinds == [
        *(nn.Linear, nn.Dropout, nn.ReLU, nn.LayerNorm),
        *(nn.Linear, nn.Dropout, nn.ReLU, nn.LayerNorm),
        *(nn.Linear, nn.Sigmoid),
    ]
    assert [layer.p for layer in encoder if isinstance(layer, nn.Dropout)] == [0.05, 0.05]


def test_width_is_an_option():
    report = fit(
        ThresholdSAE(10, width=7, threshold=0.3), _data(40, 5), config=TrainConfig(epochs=1)
    )
    assert report.dictionary.tensors["encoder.8.weight"].shape == (10, 7)


def test_loadings_are_zero_or_at_least_the_threshold():
    report = fit(ThresholdSAE(24, threshold=0.7), _data(200), config=TrainConfig(steps=300))
    loadings = report.dictionary.encode(_data(200))
    used = loadings[loadings != 0]
    assert len(used)
    assert bool((used >= 0.7).all())
    assert bool((used <= 1.0).all())


def test_mask_passes_no_gradient():
    codes = torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    (gradient,) = torch.autograd.grad(keep(codes, 0.5).sum(), codes)
    assert gradient.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.usefixtures("unchecked")
def test_rising_threshold_saves_the_modes():
    # Codes begin near 0.5: with the threshold at 0.97 from the start none ever passes.
    learner = ThresholdSAE(24, threshold=0.97, resample=False)
    config = TrainConfig(steps=400, lr=3e-3)
    data = planted(400, n_units=16, n_modes=8)[1]
    risen = fit(learner, data, config=config)
    assert risen.n_alive > 0
    cold = dataclasses.replace(config, threshold_warmup=0.0)
    with pytest.warns(UserWarning, match="all 24 modes are dead"):
        assert fit(learner, data, config=cold).n_alive == 0


def test_steps_are_the_same_for_any_number_of_rows():
    few = fit(ThresholdSAE(4, threshold=0.3), _data(40), config=TrainConfig(steps=20)).config
    many = fit(ThresholdSAE(4, threshold=0.3), _data(1600), config=TrainConfig(steps=20)).config
    assert (few.epochs, many.epochs) == (20, 2)
    assert few.lr == many.lr


def test_default_rate_falls_with_steps_and_width():
    def rate(units, **options):
        learner = ThresholdSAE(4, threshold=0.3, **options)
        return fit(learner, _data(60, units), config=TrainConfig(epochs=1)).config.lr

    # One step would allow for a huge rate: the limit holds, and falls for wide layers.
    assert rate(8) == rate(8, width=256) == pytest.approx(3e-3)
    assert rate(8, width=1024) == pytest.approx(3e-3 / 4)
    config = ThresholdSAE(4).settled(TrainConfig(), 1600, 256)
    assert config.lr * config.epochs * 13 == pytest.approx(2 * 1.5)
    wide = ThresholdSAE(4).settled(TrainConfig(), 1600, 1024)
    assert wide.lr == pytest.approx(config.lr / 2)
    # The atoms' rate is the same at every width.
    assert ThresholdSAE(4).rates(1024)["atoms"] * wide.lr == pytest.approx(
        ThresholdSAE(4).rates(64)["atoms"] * config.lr
    )
    assert ThresholdSAE(4, atom_rate=1.0).rates(1024) == {"atoms": 1.0}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps", [1000, pytest.param(3000, marks=pytest.mark.slow)])
def test_default_recovers_every_mode_of_the_small_instance(steps):
    data = Planted.small()
    report = fit(ThresholdSAE(24), data.matrix, config=TrainConfig(steps=steps))
    alive = alive_modes(report.dictionary, data.matrix)
    assert recovery(report.dictionary.atoms[alive], data.atoms).share == 1.0
    assert report.r2 > 0.85


@pytest.mark.slow
def test_default_recovers_the_standard_instance():
    data = Planted.standard()
    report = fit(ThresholdSAE(768), data.matrix)
    alive = alive_modes(report.dictionary, data.matrix)
    found = recovery(report.dictionary.atoms[alive], data.atoms)
    assert found.share >= 0.95
    assert found.recovered[data.rare].double().mean() >= 0.5
    assert found.n_false < 200
    assert report.r2 > 0.9


@pytest.mark.slow
def test_codes_do_not_erode_once_the_threshold_has_risen():
    data = Planted.small()
    told, blind = (fit(ThresholdSAE(24, jump=jump), data.matrix) for jump in (2.0, 0.0))
    assert told.r2 > blind.r2 + 0.1


def test_loss_is_reported_by_epoch_and_falls():
    seen = []
    config = TrainConfig(epochs=30, lr=3e-3, batch_size=16)
    learner = ThresholdSAE(8, threshold=0.3)
    report = fit(learner, _data(), config=config, on_epoch=seen.append)
    assert [epoch.index for epoch in seen] == list(range(30))
    assert tuple(epoch.loss for epoch in seen) == report.history
    assert report.history[-1] < 0.7 * report.history[0]
    rates = [epoch.lr for epoch in seen]
    assert rates == sorted(rates, reverse=True)


def test_paper_recipe_halves_the_rate_on_a_plateau():
    seen = []
    config = TrainConfig.paper(epochs=60, lr=1e-12, batch_size=48)
    with pytest.warns(UserWarning, match="dead"):
        fit(ThresholdSAE(4, threshold=0.999), _data(), config=config, on_epoch=seen.append)
    assert seen[0].lr == 1e-12
    assert seen[-1].lr == pytest.approx(1e-12)  # Adam's rate may not fall by less than 1e-8.
    assert (config.schedule, config.threshold_warmup) == ("plateau", 0.0)
    assert (TrainConfig.paper().epochs, TrainConfig.paper().batch_size) == (300, 128)


def test_seeds_differ_but_share_the_split():
    a = fit(ThresholdSAE(4, threshold=0.3), _data(), config=TrainConfig(epochs=2, seed=1))
    b = fit(ThresholdSAE(4, threshold=0.3), _data(), config=TrainConfig(epochs=2, seed=2))
    assert torch.equal(a.held_out_rows, b.held_out_rows)
    assert not torch.equal(a.dictionary.atoms, b.dictionary.atoms)


def test_float64_default_dtype_changes_nothing():
    a = fit(ThresholdSAE(4, threshold=0.3), _data(), config=TrainConfig(epochs=2))
    matrix = _data()
    torch.set_default_dtype(torch.float64)
    b = fit(ThresholdSAE(4, threshold=0.3), matrix, config=TrainConfig(epochs=2))
    assert b.dictionary.atoms.dtype == torch.float32
    assert torch.equal(a.dictionary.atoms, b.dictionary.atoms)


def test_fits_inside_no_grad():
    with torch.no_grad():
        inside = fit(ThresholdSAE(4, threshold=0.3), _data(), config=TrainConfig(epochs=2))
    outside = fit(ThresholdSAE(4, threshold=0.3), _data(), config=TrainConfig(epochs=2))
    assert torch.equal(inside.dictionary.atoms, outside.dictionary.atoms)


def test_global_random_state_survives_an_error():
    torch.manual_seed(5)
    before = torch.get_rng_state()

    def stop(epoch):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fit(ThresholdSAE(4, threshold=0.3), _data(), on_epoch=stop)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_modes": 0}, "n_modes must be a whole number of at least 1; got 0"),
        ({"n_modes": 2.5}, "n_modes must be a whole number of at least 1; got 2.5"),
        ({"n_modes": "3"}, "n_modes must be a whole number of at least 1; got '3'"),
        ({"n_modes": None}, "n_modes must be a whole number of at least 1; got None"),
        ({"width": 2.5}, "width must be a whole number of at least 1; got 2.5"),
        ({"width": 0}, "width must be a whole number of at least 1; got 0"),
        ({"threshold": 1.0}, "threshold must be from 0 to below 1; got 1.0"),
        ({"threshold": -0.1}, "threshold must be from 0 to below 1; got -0.1"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1; got 1.0"),
        ({"atom_l1": -1.0}, "atom_l1 must be finite and not negative; got -1.0"),
        ({"atom_l1": float("nan")}, "atom_l1 must be finite"),
        ({"jump": -1.0}, "jump must be finite and not negative; got -1.0"),
        ({"atom_rate": 0.0}, "atom_rate must be above 0 and finite; got 0.0"),
        ({"atom_rate": float("inf")}, "atom_rate must be above 0 and finite; got inf"),
    ],
)
def test_options_are_checked(unchecked, options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        ThresholdSAE(**{"n_modes": 3} | options)


def test_unknown_learner_is_named():
    with pytest.raises(OptionError, match=r"expected one of .*ThresholdSAE.*; got 'Other'"):
        Learner.from_dict({"name": "Other", "n_modes": 3})
    with pytest.raises(OptionError, match=r"learner ThresholdSAE: .*n_atoms"):
        Learner.from_dict({"name": "ThresholdSAE", "n_modes": 2, "n_atoms": 3})
