"""Steering: directions by hand, what becomes of other labels' samples, bad input."""

import math

import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.effects import STEERING_COLUMNS, steering_curve, steering_direction
from condec.report import figures


def unit(vector):
    return vector / vector.norm()


def test_directions_by_hand(chain):
    x, labels = chain.data
    training = ~chain.modes.held_out
    atom = steering_direction(chain.modes, 1, "atom")
    torch.testing.assert_close(atom, unit(torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0, 0.0])))
    mine = training & (labels == 1)
    apart = x[mine].mean(0) - x[training & ~mine].mean(0)
    mean = steering_direction(chain.modes, 1, "mean_activation")
    torch.testing.assert_close(mean, unit(apart))
    # A loading that is the label itself: its slope is the difference of means.
    torch.testing.assert_close(steering_direction(chain.modes, 1, "activation"), unit(apart))


def test_slope_is_that_of_least_squares(chain):
    loadings = torch.rand(30, 3, generator=torch.Generator().manual_seed(3))
    modes = chain.make_modes(chain.modes.store, loadings=loadings)
    best = modes.best(0).mode
    training = ~modes.held_out
    design = torch.stack([torch.ones(30), loadings[:, best]], 1)[training].double()
    slope = torch.linalg.lstsq(design, chain.data[0][training].double()).solution[1]
    found = steering_direction(modes, 0, "activation")
    torch.testing.assert_close(found.double(), unit(slope), atol=1e-5, rtol=1e-5)


def test_other_labels_become_the_label(chain):
    model, data, modes = chain
    table = steering_curve(
        model, data, modes, strengths=(0.0, 0.5, 3.0), labels=[1], directions=["atom"]
    )
    assert list(table.columns) == list(STEERING_COLUMNS)
    x, labels = chain.held_out
    others = x[labels != 1]
    direction = unit(torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0, 0.0]))
    for row in table.to_dict("records"):
        added = row["strength"] * others.norm(dim=1, keepdim=True) * direction
        logits = (others + added) @ model.weight.T
        assert row["logit"] == pytest.approx(float(logits[:, 1].mean()), abs=1e-5)
        probability = float(logits.softmax(1)[:, 1].mean())
        assert row["probability"] == pytest.approx(probability, abs=1e-6)
        predicted = logits.argmax(1)
        assert row["converted"] == pytest.approx(float((predicted == 1).double().mean()))
        own = float((predicted == labels[labels != 1]).double().mean())
        assert row["own_accuracy"] == pytest.approx(own)
        assert row["n_samples"] == len(others) == 10
        assert row["mode"] == 11
    assert table["converted"].tolist()[::2] == [0.0, 1.0]
    assert table["own_accuracy"].tolist()[::2] == [1.0, 0.0]
    assert (table["logit_unedited"] == table["logit"][0]).all()
    assert (table["own_unedited"] == 1.0).all()
    assert table["defined"].all()


def test_random_draws(chain):
    table = steering_curve(*chain, strengths=(1.0,), n_random=4, seed=2)
    counts = table[table["label"] == 0].set_index("direction")["n_draws"]
    # Two other modes are all there are to draw.
    assert counts.to_dict() == {
        "activation": 0, "atom": 0, "mean_activation": 0, "random_mode": 2, "random": 4,
    }  # fmt: skip
    table = table.set_index(["label", "direction"])
    assert table.loc[(0, "random"), "converted_std"] >= 0.0
    assert math.isnan(table.loc[(0, "atom"), "converted_std"])
    assert table.loc[(0, "atom"), "converted"] > table.loc[(0, "random_mode"), "converted"]
    again = steering_curve(*chain, strengths=(1.0,), directions=["random"], n_random=4, seed=2)
    assert again["logit"].tolist() == table.xs("random", level=1)["logit"].tolist()


def test_labels_that_are_never_right_have_no_own_accuracy(chain):
    model, data, modes = chain
    model.weight[0, :] = 50.0
    table = steering_curve(
        model, data, modes, strengths=(1.0,), labels=[0], directions=["activation"]
    )
    assert table["own_accuracy"].isna().all()
    assert not table["defined"].any()


def test_figure(chain):
    table = steering_curve(*chain, strengths=(0.0, 1.0), n_random=2)
    figure = figures.steering_figure(table)
    assert len(figure.axes) == 3
    line = figure.axes[0].lines[0]
    mean = table[table["direction"] == "activation"].groupby("strength")["converted"].mean()
    assert line.get_ydata().tolist() == mean.tolist()
    with pytest.raises(DataError, match="steering_figure: the table holds no such row"):
        figures.steering_figure(table[:0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": ()}, r"strengths must be finite and in ascending order.*got \(\)"),
        ({"strengths": (1.0, 0.5)}, r"strengths must be .* ascending order.*got \(1\.0, 0\.5\)"),
        ({"strengths": (math.inf,)}, r"strengths must be finite.*got \(inf,\)"),
        ({"directions": []}, "expected some of activation, .* got none"),
        ({"directions": ["up"]}, "directions must be one of activation, .* got 'up'"),
        ({"n_random": 0}, "n_random must be at least 1; got 0"),
    ],
)
def test_bad_options(chain, unchecked, options, message):
    with pytest.raises(OptionError, match=f"steering_curve: {message}"):
        steering_curve(*chain, **({"strengths": (1.0,)} | options))


def test_bad_directions(chain, unchecked):
    store = chain.modes.store
    with pytest.raises(OptionError, match=r"kind must be one of activation, .*'random'"):
        steering_direction(chain.modes, 0, "random")
    still = chain.make_modes(store, loadings=torch.ones(30, 3))
    with pytest.raises(DataError, match="no length: the loading of mode 10 does not vary"):
        steering_direction(still, 0, "activation")
    with pytest.raises(DataError, match="no other mode varies on training rows; leave random_mode"):
        steering_curve(*chain.data_with(still), strengths=(1.0,), directions=["random_mode"])
    empty = chain.make_modes(store, atoms=torch.zeros(3, 6))
    with pytest.raises(DataError, match="no length: the atom of mode 10 is 0"):
        steering_direction(empty, 0, "atom")
    alone = chain.make_modes(store, held_out=store.labels != 1)
    with pytest.raises(DataError, match="label 1 and the others have one mean activation"):
        steering_direction(alone, 1, "mean_activation")
    split = (store.labels == 1) & (torch.arange(30) > 14)
    with pytest.raises(DataError, match="all held-out samples have label 1; none is to steer"):
        steering_curve(
            *chain.data_with(chain.make_modes(store, held_out=split)), strengths=(1.0,),
            directions=["random"],
        )  # fmt: skip
