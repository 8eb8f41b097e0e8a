import re

import numpy as np
import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.dictionary import (
    NMF,
    PCA,
    FastICA,
    KMeans,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    split_rows,
)

# Dictionaries of a few dozen rows may well have modes that no held-out row uses.
pytestmark = pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")

QUICK = TrainConfig(epochs=2)
LEARNERS = [ThresholdSAE(4, threshold=0.3), NMF(4), PCA(4), KMeans(4)]


@pytest.mark.parametrize(
    "rows", [torch.arange(60) > 40, torch.tensor([1.5, 2.0]), torch.tensor([[1, 2]])]
)
def test_held_out_rows_are_numbers_of_rows(unchecked, rows):
    with pytest.raises(DataError, match="held_out_rows must be numbers of rows"):
        fit(PCA(2), torch.rand(60, 4), held_out_rows=rows)


def test_held_out_rows_of_numpy():
    report = fit(PCA(2), torch.rand(60, 4), held_out_rows=np.array([7, 3]))
    assert report.held_out_rows.tolist() == [3, 7]


def test_a_fit_that_diverges_is_said():
    with pytest.raises(DataError, match=r"diverged at a learning rate of 1e.30; lower"):
        fit(TopKSAE(4, k=2), torch.rand(60, 4), config=TrainConfig(lr=1e30, epochs=4))


def _rows(n=60, units=8):
    return torch.rand(n, units, generator=torch.Generator().manual_seed(0))


def test_figures_are_those_of_the_held_out_rows():
    report = fit(PCA(2), _rows())
    held_out = _rows()[report.held_out_rows]
    xhat = report.dictionary.decode(report.dictionary.encode(held_out))
    residual = ((held_out - xhat) ** 2).sum()
    total = ((held_out - held_out.mean(0)) ** 2).sum()
    assert report.r2 == pytest.approx(float(1 - residual / total), abs=1e-5)
    assert report.r2 == report.metrics["held_out"].r2
    assert report.r2_grand == report.metrics["held_out"].r2_grand
    assert report.cosine == report.metrics["held_out"].cosine
    assert report.l0 == report.metrics["held_out"].l0
    assert report.r2 != report.metrics["train"].r2


def test_a_dictionary_that_predicts_the_mean_scores_zero():
    # One cluster: every row is replaced by the mean of the training rows.
    rows = _rows() * torch.arange(1.0, 9.0)
    report = fit(KMeans(1), rows)
    assert report.metrics["train"].r2 == pytest.approx(0.0, abs=1e-6)
    assert report.metrics["train"].r2_grand > 0.2
    assert report.r2 < 0.0


def test_scale_is_that_of_the_training_rows():
    rows = 40 * _rows()
    report = fit(PCA(2), rows)
    expected = float(rows[report.train_rows].double().std(correction=0))
    assert report.dictionary.scale == pytest.approx(expected, rel=1e-12)


def test_alive_modes_are_counted_on_both_splits():
    # The sixth unit is used in row 0 only, which is held out.
    rows = torch.eye(5).repeat(8, 1) * torch.linspace(1, 2, 40)[:, None]
    report = fit(KMeans(5), rows, held_out_rows=torch.arange(4))
    assert report.metrics["train"].n_alive == 5
    assert report.metrics["held_out"].n_alive == 4
    assert report.n_alive == 5


def test_no_rows_held_out():
    report = fit(PCA(2), _rows(), config=TrainConfig(held_out=0.0))
    assert set(report.metrics) == {"train"}
    assert len(report.train_rows) == 60
    with pytest.raises(DataError, match="no rows were held out"):
        _ = report.r2


def test_chosen_rows_are_held_out():
    chosen = torch.tensor([5, 1, 5])
    report = fit(PCA(2), _rows(), held_out_rows=chosen)
    assert report.held_out_rows.tolist() == [1, 5]
    assert chosen.tolist() == [5, 1, 5]


@pytest.mark.parametrize("rows", [[-1, 2], [3, 60]])
def test_rows_to_hold_out_must_exist(rows):
    with pytest.raises(DataError, match=r"held_out_rows must be among 0 \.\.\. 59"):
        fit(PCA(2), _rows(), held_out_rows=torch.tensor(rows))
    with pytest.raises(DataError, match="all 60 rows are held out"):
        fit(PCA(2), _rows(), held_out_rows=torch.arange(60))


def test_split_depends_on_its_seed_alone():
    assert torch.equal(split_rows(50, 0.2), split_rows(50, 0.2))
    assert not torch.equal(split_rows(50, 0.2), split_rows(50, 0.2, seed=1))
    assert len(split_rows(3, 0.9)) == 2
    assert len(split_rows(3, 0.01)) == 1
    with pytest.raises(DataError, match="at least 2 rows"):
        split_rows(1, 0.2)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("constant", [torch.full((20, 4), 3.0), torch.arange(4.0).repeat(20, 1)])
def test_constant_matrix(learner, constant):
    with pytest.raises(DataError, match="the matrix is constant: all 16 training rows"):
        fit(learner, constant, config=QUICK)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_named(learner, bad):
    rows = _rows()
    rows[[3, 17], 2] = bad
    with pytest.raises(DataError, match=r"fit: 2 of 60 rows hold NaN .* \(rows 3, 17\)"):
        fit(learner, rows, config=QUICK)
    report = fit(learner, _rows(), config=QUICK)
    with pytest.raises(DataError, match=r"encode: 2 of 60 rows hold NaN"):
        report.dictionary.encode(rows)


def test_infinities_that_cancel_are_found():
    rows = _rows()
    rows[0, 0], rows[1, 0] = float("inf"), float("-inf")
    with pytest.raises(DataError, match="2 of 60 rows"):
        fit(PCA(2), rows)


def test_wrong_width():
    dictionary = fit(PCA(2), _rows()).dictionary
    message = r"encode: the dictionary was fitted to rows of 8 units; got shape \(5, 7\)"
    with pytest.raises(DataError, match=message):
        dictionary.encode(torch.ones(5, 7))
    with pytest.raises(DataError, match=re.escape("expected loadings [sample, 2]")):
        dictionary.decode(torch.ones(5, 3))


def test_wrong_shape(unchecked):
    with pytest.raises(DataError, match=r"expected a matrix \[sample, unit\] .* \(60, 4, 2\)"):
        fit(PCA(2), _rows().view(60, 4, 2))
    with pytest.raises(DataError, match="expected at least one row"):
        fit(PCA(2), torch.ones(0, 4))


def test_values_float32_cannot_hold_are_refused():
    with pytest.raises(DataError, match="outside what float32 can hold"):
        fit(PCA(2), _rows() * 1e-42)


def test_progress_bar_is_shown_and_changes_nothing(capsys):
    quiet = fit(ThresholdSAE(4, threshold=0.3), _rows(), config=QUICK)
    assert capsys.readouterr().err == ""
    shown = fit(ThresholdSAE(4, threshold=0.3), _rows(), config=QUICK, progress=True)
    assert "2/2 epochs loss" in capsys.readouterr().err
    assert torch.equal(shown.dictionary.atoms, quiet.dictionary.atoms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1; got 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"lr": 0.0}, "lr must be above 0 and finite; got 0.0"),
        ({"lr": float("nan")}, "lr must be above 0 and finite; got nan"),
        ({"held_out": 1.0}, "held_out must be from 0 to below 1; got 1.0"),
        ({"threshold_warmup": -0.1}, "threshold_warmup must be from 0"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"split_seed": 2**32}, "split_seed must be from 0 to"),
        ({"device": "abacus"}, "device 'abacus' is not one of torch"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        TrainConfig(**options)


def test_unknown_schedule(unchecked):
    with pytest.raises(OptionError, match="one of cosine, plateau, constant; got 'steep'"):
        TrainConfig(schedule="steep")


def test_plain_form_of_the_config():
    config = TrainConfig.paper(seed=3)
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(OptionError, match=r"TrainConfig: .*learning_rate"):
        TrainConfig.from_dict({"learning_rate": 1.0})


@pytest.mark.gpu
def test_device_of_the_config_is_used_and_the_result_is_on_the_cpu():
    report = fit(
        ThresholdSAE(4, threshold=0.3), _rows(), config=TrainConfig(epochs=2, device="cuda")
    )
    assert report.dictionary.atoms.device.type == "cpu"
    assert report.dictionary.encode(_rows().cuda()).device.type == "cuda"


SMALL = [
    ThresholdSAE(240), TopKSAE(240, k=4), ReLUSAE(240), NMF(24, max_iter=40), PCA(24), KMeans(24),
    FastICA(8, max_iter=40),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* Set max_iter higher")
@pytest.mark.parametrize("learner", SMALL, ids=lambda learner: type(learner).__name__)
def test_a_small_fit_is_the_same_for_any_number_of_threads(learner, monkeypatch):
    used, before = set(), torch.get_num_threads()
    real = type(learner).encode

    def encode(self, tensors, matrix):
        used.add(torch.get_num_threads())
        return real(self, tensors, matrix)

    monkeypatch.setattr(type(learner), "encode", encode)
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fit(learner, _rows(120, 96), config=TrainConfig(steps=20)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, two = found
    assert used == {1}
    assert one.metrics == two.metrics
    assert one.history == two.history
    for name, tensor in one.dictionary.tensors.items():
        assert torch.equal(tensor, two.dictionary.tensors[name]), name
