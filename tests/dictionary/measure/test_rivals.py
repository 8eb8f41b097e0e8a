import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.dictionary import (
    NMF,
    PCA,
    RIVALS,
    BatchTopKSAE,
    KMeans,
    ReLUSAE,
    ThresholdSAE,
    TopKSAE,
    TrainConfig,
    fit,
    fit_rivals,
    rival_words,
    rivals_as_good,
)
from condec.dictionary.measure.rivals import strongest_loadings
from condec.testing.planted import Planted

DATA = Planted.small()
LABELS = DATA.loadings[:, :3] > 0
CONFIG = TrainConfig(steps=60, batch_size=64)
COLUMNS = ["rival", "r2", "r2_grand", "cosine", "l0", "n_alive", "label_correlation"]


def test_every_rival_in_one_call():
    activations = DATA.matrix.flip(1) + 1.0
    table = fit_rivals(
        ThresholdSAE(8, threshold=0.5),
        DATA.matrix,
        activations=activations,
        indicators=LABELS,
        config=CONFIG,
    )
    assert list(table.columns) == COLUMNS
    assert table["rival"].tolist() == ["dictionary", *RIVALS]
    assert table["label_correlation"].between(-1, 1).all()
    figures = table.set_index("rival")
    # At equal L0: as many loadings of every row as the dictionary has, where there are so many.
    assert figures.loc["pca", "l0"] <= figures.loc["dictionary", "l0"]
    assert figures.loc["nmf", "l0"] <= figures.loc["dictionary", "l0"]


def test_dictionary_of_the_table_is_that_of_fit():
    table = fit_rivals(NMF(8), DATA.matrix, indicators=LABELS).set_index("rival")
    report = fit(NMF(8), DATA.matrix)
    assert table.loc["dictionary", "r2"] == pytest.approx(report.r2)
    assert table.loc["dictionary", "l0"] == report.l0
    # What the units do together is gone, and with it what the labels are about.
    assert table.loc["shuffled_units", "r2"] < report.r2 - 0.2
    assert table.loc["shuffled_units", "label_correlation"] < 0.3
    assert table.loc["dictionary", "label_correlation"] > 0.7
    assert table.index.tolist() == ["dictionary", "shuffled_units", "pca"]  # not NMF itself


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
@pytest.mark.parametrize(
    "learner",
    [
        ThresholdSAE(8, threshold=0.5, nonnegative=True),
        ReLUSAE(8),
        TopKSAE(8, k=2),
        BatchTopKSAE(8, k=2),
    ],
)
def test_halves_that_are_frozen_do_not_move(learner):
    drawn, decoder, encoder = (
        fit(learner, DATA.matrix, config=config).dictionary.tensors
        for config in (
            TrainConfig(epochs=1, lr=1e-12),
            TrainConfig(epochs=2, lr=1e-2, freeze="decoder"),
            TrainConfig(epochs=2, lr=1e-2, freeze="encoder"),
        )
    )
    torch.testing.assert_close(drawn["atoms"], decoder["atoms"])
    assert not torch.allclose(drawn["atoms"], encoder["atoms"])
    of_encoder = [name for name in drawn if name.startswith("encoder")]
    assert of_encoder
    for name in of_encoder:
        torch.testing.assert_close(drawn[name], encoder[name])
        assert not torch.allclose(drawn[name], decoder[name])


def test_freezing_is_refused_where_nothing_is_drawn():
    with pytest.raises(OptionError, match="PCA has no encoder that could stay as it was"):
        fit(PCA(2), DATA.matrix, config=TrainConfig(freeze="encoder"))


def test_unknown_half(unchecked):
    with pytest.raises(OptionError, match="one of encoder, decoder, or None; got 'middle'"):
        TrainConfig(freeze="middle")


def test_shuffling_keeps_each_units_values_and_the_splits_apart():
    from condec.dictionary.measure.rivals import _shuffled

    held_out = torch.arange(0, 600, 7)
    mixed = _shuffled(DATA.matrix, held_out, seed=0)
    train = torch.tensor([row for row in range(600) if row % 7])
    for rows in (held_out, train):
        before, after = DATA.matrix[rows], mixed[rows]
        assert torch.equal(before.sort(0).values, after.sort(0).values)
        assert not torch.equal(before, after)
    rows = DATA.matrix[train].sum(1)
    assert not torch.allclose(rows.sort().values, mixed[train].sum(1).sort().values)


def test_strongest_loadings_are_kept():
    dictionary = fit(PCA(3), DATA.matrix).dictionary
    loadings = torch.tensor([[1.0, -3.0, 2.0], [1.0, -3.0, 2.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    kept = strongest_loadings(dictionary, loadings, torch.tensor([1, 2, 2, 0]))
    assert kept.tolist() == [[0, -3, 0], [0, -3, 2], [0, 1, 0], [0, 0, 0]]


def test_length_of_the_atom_counts():
    tensors = {"atoms": torch.tensor([[1.0, 0.0], [0.0, 9.0]])}
    dictionary = type(fit(PCA(1), DATA.matrix).dictionary)(KMeans(2), tensors, 1.0)
    kept = strongest_loadings(dictionary, torch.tensor([[2.0, 1.0]]), torch.tensor([1]))
    assert kept.tolist() == [[0.0, 1.0]]


def test_without_labels_or_activations():
    table = fit_rivals(KMeans(4), DATA.matrix - 0.5)
    assert table["rival"].tolist() == ["dictionary", "shuffled_units", "pca"]
    assert table["label_correlation"].isna().all()


@pytest.mark.parametrize(
    ("learner", "matrix", "rival", "message"),
    [
        (KMeans(4), DATA.matrix, "frozen_decoder", "KMeans has no half that could stay random"),
        (KMeans(4), DATA.matrix, "activations", "no activations are given"),
        (KMeans(4), DATA.matrix - 1, "nmf", "the matrix has negative entries"),
        (NMF(4), DATA.matrix, "nmf", "NMF is the learner itself"),
        (PCA(4), DATA.matrix, "pca", "PCA is the learner itself"),
    ],
)
def test_rivals_that_cannot_be_fitted(learner, matrix, rival, message):
    with pytest.raises(OptionError, match=re.escape(f"{rival} cannot be fitted: {message}")):
        fit_rivals(learner, matrix, rivals=[rival])


def test_unknown_rival(unchecked):
    with pytest.raises(OptionError, match=r"expected rivals among frozen_decoder, .*; got 'luck'"):
        fit_rivals(KMeans(4), DATA.matrix, rivals=["luck"])


def test_samples_must_be_the_same(unchecked):
    with pytest.raises(DataError, match="activations of 10 samples"):
        fit_rivals(KMeans(4), DATA.matrix, activations=DATA.matrix[:10])
    with pytest.raises(DataError, match="indicators of 10 samples"):
        fit_rivals(KMeans(4), DATA.matrix, indicators=LABELS[:10])
    with pytest.raises(DataError, match="no rows are held out"):
        fit_rivals(KMeans(4), DATA.matrix, config=TrainConfig(held_out=0.0))


def table_of(**r2):
    nan = math.nan
    rows = [(name, value, nan if name == "pca" else value / 2) for name, value in r2.items()]
    return pd.DataFrame(rows, columns=["rival", "r2", "label_correlation"])


def test_words_name_what_does_as_well():
    table = table_of(dictionary=0.8, frozen_decoder=0.5, shuffled_units=0.1, pca=0.79)
    assert rival_words(table) == (
        "PCA at equal L0 does as well on held-out rows: R2 0.79 against 0.80 (within 0.05).",
    )
    frozen, _ = rival_words(table, margin=0.3)
    assert frozen.startswith("A dictionary of random atoms, of which only the encoder was trained")
    assert "R2 0.50 against 0.80, label correlation 0.25 against 0.40 (within 0.3)" in frozen
    assert rival_words(table_of(dictionary=0.8, frozen_encoder=0.2)) == ()
    with pytest.raises(OptionError, match="margin must be finite and not negative; got -1"):
        rival_words(table, margin=-1.0)


def test_columns_in_which_a_rival_does_as_well():
    table = table_of(dictionary=0.8, frozen_decoder=0.5, shuffled_units=0.1, pca=0.79)
    assert rivals_as_good(table) == {"pca": ("r2",)}
    both = ("r2", "label_correlation")
    assert rivals_as_good(table, margin=0.3) == {"frozen_decoder": both, "pca": ("r2",)}


def test_a_dictionary_at_hand_is_not_fitted_again(monkeypatch):
    from condec.dictionary.measure import rivals as module

    config = TrainConfig(held_out=0.3, split_seed=4)
    own = fit(KMeans(4), DATA.matrix, config=config).dictionary
    whole = fit_rivals(KMeans(4), DATA.matrix, indicators=LABELS, config=config)
    fits, real = [], module.fit
    monkeypatch.setattr(
        module, "fit", lambda learner, *a, **o: fits.append(learner) or real(learner, *a, **o)
    )
    found = fit_rivals(KMeans(4), DATA.matrix, indicators=LABELS, config=config, fitted=own)
    pd.testing.assert_frame_equal(found, whole)
    assert [type(learner).__name__ for learner in fits] == ["KMeans", "PCA", "NMF"]
    for other, said in ((own, "600 rows"), (replace(own, training=None), "no rows at all")):
        with pytest.raises(DataError, match=f"fitted records {said}, the matrix has 500"):
            fit_rivals(KMeans(4), DATA.matrix[:500], fitted=other)
