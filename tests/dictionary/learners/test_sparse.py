import json
import re
from dataclasses import replace

import pytest
import torch

from condec.basis.errors import OptionError
from condec.basis.metrics import matched_cosine
from condec.dictionary import (
    BatchTopKSAE,
    JumpReLUSAE,
    Learner,
    MatchingPursuit,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
    TrainConfig,
    fit,
)
from condec.testing.contracts import DictionaryContract
from condec.testing.planted import planted

FAST = TrainConfig(epochs=8, batch_size=16, lr=3e-3)


class TestReLUSAE(DictionaryContract):
    learner = ReLUSAE(6)


class TestReLUSAEPlain(DictionaryContract):
    learner = ReLUSAE(6, l1=0.5, resample=False)


class TestTopKSAE(DictionaryContract):
    learner = TopKSAE(6, k=2)


class TestBatchTopKSAE(DictionaryContract):
    learner = BatchTopKSAE(6, k=2)


class TestJumpReLUSAE(DictionaryContract):
    learner = JumpReLUSAE(6, target_l0=2.0)


class TestJumpReLUSAEPlain(DictionaryContract):
    learner = JumpReLUSAE(6, target_l0=None, l0_weight=0.01)


class TestMatryoshkaSAE(DictionaryContract):
    learner = MatryoshkaSAE(6, k=2, prefixes=(0.5, 1.0))


class TestMatchingPursuit(DictionaryContract):
    learner = MatchingPursuit(6, k=2)


class TestMatchingPursuitSigned(DictionaryContract):
    learner = MatchingPursuit(6, k=3, nonnegative=False)


EVERY = [
    ReLUSAE(64),
    TopKSAE(64, k=4),
    BatchTopKSAE(64, k=4),
    JumpReLUSAE(64, target_l0=4.0),
    MatryoshkaSAE(64, k=4),
    MatchingPursuit(64, k=4),
]
ids = {"ids": lambda learner: type(learner).__name__}


def _data(n=60, units=8, seed=0):
    return torch.rand(n, units, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.parametrize("learner", [*EVERY[:4], EVERY[5]], **ids)
@pytest.mark.usefixtures("unchecked")
def test_planted_modes_are_found(learner):
    data = planted(20, 32, 3, 1500, 0.1)
    sparse = {name: 3 for name in ("k", "target_l0") if hasattr(learner, name)}
    learner = replace(learner, n_modes=24, **sparse)
    report = fit(learner, data.matrix, config=TrainConfig(steps=1200))
    dictionary = report.dictionary
    alive = (dictionary.encode(data.matrix) > 0).any(0)
    found = matched_cosine(data.atoms, dictionary.atoms[alive])
    assert float((found > 0.9).float().mean()) >= 0.9
    assert report.r2 > 0.8


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.parametrize("learner", EVERY, **ids)
def test_atoms_have_length_one_in_prepared_units(learner):
    dictionary = fit(learner, _data(200), config=FAST).dictionary
    torch.testing.assert_close(dictionary.tensors["atoms"].norm(dim=1), torch.ones(64))
    assert "offset" in dictionary.tensors


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("learner", EVERY[:5], **ids)
def test_a_frozen_half_stays_as_it_was_drawn(learner, half):
    config = TrainConfig(epochs=3, batch_size=16, lr=3e-3, freeze=half)
    start = TrainConfig(epochs=1, batch_size=160, lr=1e-30)
    moved = fit(learner, _data(200), config=config).dictionary.tensors
    drawn = fit(learner, _data(200), config=start).dictionary.tensors
    same = {name for name in ("atoms", "encoder") if torch.allclose(moved[name], drawn[name])}
    assert same == ({"encoder"} if half == "encoder" else {"atoms"})


def test_top_k_keeps_at_most_k_positive_codes():
    loadings = fit(TopKSAE(12, k=3), _data(200), config=FAST).dictionary.encode(_data(200))
    assert bool((loadings >= 0).all())
    assert int((loadings > 0).sum(1).max()) == 3


def test_batch_top_k_threshold_gives_k_codes_on_average():
    report = fit(BatchTopKSAE(12, k=3), _data(400), config=FAST)
    assert report.metrics["train"].l0 == pytest.approx(3.0, abs=0.5)
    threshold = float(report.dictionary.tensors["threshold"])
    loadings = report.dictionary.encode(_data(400))
    assert threshold > 0
    assert bool((loadings[loadings != 0] > threshold).all())


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.usefixtures("unchecked")
def test_jump_relu_reaches_its_target():
    data = planted(40, 64, 4, 3000, 0.1).matrix
    few = fit(JumpReLUSAE(64, target_l0=3.0), data, config=TrainConfig(steps=300))
    many = fit(JumpReLUSAE(64, target_l0=9.0), data, config=TrainConfig(steps=300))
    assert few.metrics["train"].l0 == pytest.approx(3.0, rel=0.35)
    assert many.metrics["train"].l0 == pytest.approx(9.0, rel=0.35)


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.usefixtures("unchecked")
def test_first_modes_of_a_matryoshka_describe_the_data_alone():
    data = planted(40, 64, 4, 3000, 0.1).matrix

    def error(learner):
        dictionary = fit(learner, data, config=TrainConfig(steps=250)).dictionary
        loadings = dictionary.encode(data)
        loadings[:, 16:] = 0
        return float((dictionary.decode(loadings) - data).square().mean())

    nested = MatryoshkaSAE(64, k=4, prefixes=(0.25, 1.0))
    assert nested.sizes == (16, 64)
    assert error(nested) < 0.9 * error(BatchTopKSAE(64, k=4))


@pytest.mark.usefixtures("unchecked")
def test_more_l1_fewer_codes():
    config = TrainConfig(steps=200)
    l0 = [
        fit(ReLUSAE(12, l1=l1), _data(300), config=config).metrics["train"].l0 for l1 in (0.0, 0.5)
    ]
    assert l0[1] < 0.8 * l0[0]


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.usefixtures("unchecked")
def test_dead_modes_of_a_pursuit_come_back():
    data = planted(40, 64, 4, 3000, 0.1).matrix
    config = TrainConfig(steps=250)
    alive = fit(MatchingPursuit(256, k=2), data, config=config).n_alive
    assert alive > fit(MatchingPursuit(256, k=2, resample=False), data, config=config).n_alive


def test_signed_pursuit_takes_the_largest_product():
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    loadings = fit(MatchingPursuit(12, k=3, nonnegative=False), rows, config=FAST).dictionary
    assert bool((loadings.encode(rows) < 0).any())


@pytest.mark.parametrize("kind", [TopKSAE, BatchTopKSAE, MatryoshkaSAE])
def test_k_larger_than_the_number_of_modes(kind):
    with pytest.raises(OptionError, match=f"{kind.__name__}: k = 9 codes of a row are more than 4"):
        fit(kind(4, k=9), _data())


def test_prefixes_survive_json():
    learner = MatryoshkaSAE(8, prefixes=(0.5, 1.0))
    assert Learner.from_dict(json.loads(json.dumps(learner.to_dict()))) == learner


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReLUSAE(0), "ReLUSAE: n_modes must be a whole number of at least 1; got 0"),
        (lambda: ReLUSAE(2.5), "ReLUSAE: n_modes must be a whole number of at least 1; got 2.5"),
        (lambda: ReLUSAE(2, l1=-1.0), "ReLUSAE: l1 must be finite and not negative; got -1.0"),
        (lambda: TopKSAE(2, k=0), "TopKSAE: k must be a whole number of at least 1; got 0"),
        (lambda: TopKSAE(2, aux_weight=-1.0), "TopKSAE: aux_weight must be finite and not neg"),
        (
            lambda: BatchTopKSAE(2, k="3"),
            "BatchTopKSAE: k must be a whole number of at least 1; got '3'",
        ),
        (lambda: JumpReLUSAE(2, target_l0=0.0), "JumpReLUSAE: target_l0 must be above 0"),
        (lambda: JumpReLUSAE(2, bandwidth=0.0), "JumpReLUSAE: bandwidth must be above 0"),
        (lambda: MatryoshkaSAE(2, prefixes=()), "prefixes must be shares above 0 in ascending"),
        (lambda: MatryoshkaSAE(2, prefixes=(0.5,)), "the last 1; got (0.5,)"),
        (lambda: MatryoshkaSAE(2, prefixes=(0.5, 0.2, 1.0)), "in ascending order"),
        (
            lambda: MatchingPursuit(2, k=0),
            "MatchingPursuit: k must be a whole number of at least 1; got 0",
        ),
    ],
)
def test_options_are_checked(unchecked, make, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        make()
