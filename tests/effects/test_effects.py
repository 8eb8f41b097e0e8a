"""Control curves on networks whose answers are known, their baselines, and bad input."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tests.effects.conftest import N_LABELS, N_UNITS, make_modes
from torch import nn

from condec.attribution.targets import Label
from condec.basis.errors import DataError, ModelError, OptionError
from condec.data import as_inputs, load_data
from condec.dictionary import KMeans, TrainConfig, fit
from condec.edits import unit_means
from condec.effects import (
    COLUMNS,
    RANKINGS,
    ByMode,
    ByUnit,
    CurveOptions,
    RandomUnits,
    auc_difference,
    compare,
    control_curve,
    mean_over_labels,
    measure_curves,
    summarise,
)
from condec.effects import curve as curves
from condec.models import load_model
from condec.modes.modes import Modes
from condec.store.collection import collect
from condec.testing.contracts import count_hooks


class Readout(nn.Module):
    """Label k is the sum of units 2 k and 2 k + 1; unit 2 k weighs more."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Identity()
        self.weight = torch.zeros(N_LABELS, N_UNITS)
        for label in range(N_LABELS):
            self.weight[label, 2 * label : 2 * label + 2] = torch.tensor([1.0, 0.5])
        self.n_forwards = 0
        self.eval()

    def forward(self, x):
        self.n_forwards += 1
        return self.hidden(x) @ self.weight.T


def make_data(n_samples=30, *, seed=0):
    """Inputs whose label's two units are high; labels take turns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_samples) % N_LABELS
    x = 0.2 * torch.rand(n_samples, N_UNITS, generator=generator)
    for unit in (0, 1):
        x[torch.arange(n_samples), 2 * labels + unit] += 1.0
    return x, labels


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("effects") / "s"
    arguments = {"target": Label(), "out": path, "batch_size": 7, "progress": False}
    return collect(Readout(), make_data(), "hidden", **arguments)


@pytest.fixture
def chain(store):
    """Model, data, and modes of a finished store."""
    return Readout(), make_data(), make_modes(store)


@pytest.fixture
def taken(monkeypatch):
    """Order, count and label of every edit that a curve asks for."""
    found = []
    real = curves.chosen_of

    def spy(options, order, count, label):
        found.append((tuple(order.tolist()), count, label))
        return real(options, order, count, label)

    monkeypatch.setattr(curves, "chosen_of", spy)
    return found


def points(table, ranking, label, column):
    chosen = table[(table["ranking"] == ranking) & (table["label"] == label)]
    return chosen[column].tolist()


def test_ablating_a_mode_takes_its_label_and_no_other(chain):
    model, data, modes = chain
    table = control_curve(model, data, modes, fractions=(0.0, 0.17, 0.34, 1.0))
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == N_LABELS * len(RANKINGS) * 4
    for label in range(N_LABELS):
        for ranking in ("modes", "best_mode", "contribution_difference"):
            assert points(table, ranking, label, "n_units") == [0, 1, 2, 6]
            target = points(table, ranking, label, "target_accuracy")
            off = points(table, ranking, label, "off_accuracy")
            assert target[0] == off[0] == 1.0
            assert target[2] == 0.0
            assert off[2] == 1.0
            # With every unit at 0 all logits are 0, and the first label is predicted.
            assert (target[3], off[3]) == ((1.0, 0.0) if label == 0 else (0.0, 0.5))
    assert points(table, "best_mode", 1, "mode") == [11] * 4
    assert points(table, "best_mode", 1, "correlation") == pytest.approx([1.0] * 4)
    others = table["ranking"] != "best_mode"
    assert table.loc[others, ["mode", "correlation"]].isna().all(axis=None)
    assert (table["target_unedited"] == 1.0).all()
    assert (table["n_target"] == 5).all()
    assert (table["n_off"] == 10).all()
    assert table["defined"].all()
    assert table["label_name"].unique().tolist() == ["0", "1", "2"]
    assert count_hooks(model) == 0


def test_preserving_a_mode_keeps_its_label_and_no_other(chain):
    model, data, modes = chain
    table = control_curve(
        model, data, modes, edit="preserve", fractions=(0.0, 0.34, 1.0), labels=[1, 2, 1]
    )
    assert table["label"].unique().tolist() == [1, 2]
    for label in (1, 2):
        assert points(table, "modes", label, "n_units") == [0, 2, 6]
        assert points(table, "modes", label, "target_accuracy") == [0.0, 1.0, 1.0]
        # None preserved: the site is zero as a whole, and everything is label 0.
        assert points(table, "modes", label, "off_accuracy") == [0.5, 0.0, 1.0]


def test_replacement_by_the_mean_of_training_rows(chain, monkeypatch):
    model, (x, labels), modes = chain
    mean = x[~modes.held_out].mean(0)
    asked = []
    monkeypatch.setattr(curves, "unit_means", lambda *of, **_: asked.append(of) or unit_means(*of))
    table = control_curve(
        model, (x, labels), modes, replacement="mean", fractions=(0.17,), n_random=0
    )
    ((store, site, rows),) = asked
    assert (store, site) == (modes.store, modes.site)
    assert torch.equal(rows, ~modes.held_out)
    held = x[modes.held_out].clone()
    held[:, 2] = mean[2]
    right = (held @ model.weight.T).argmax(1) == labels[modes.held_out]
    is_target = labels[modes.held_out] == 1
    assert points(table, "modes", 1, "target_accuracy") == [right[is_target].double().mean()]
    assert points(table, "modes", 1, "off_accuracy") == [right[~is_target].double().mean()]
    assert table["replacement"].unique().tolist() == ["mean"]
    assert table["ranking"].unique().tolist() == list(RANKINGS[:-1])


def test_modes_are_chosen_without_the_held_out_rows(chain):
    model, data, modes = chain
    scrambled = modes.loadings.clone()
    scrambled[modes.held_out] = 3.0 * scrambled[modes.held_out].roll(1, 1)
    table = control_curve(
        model, data, make_modes(modes.store, loadings=scrambled), fractions=(0.34,)
    )
    assert points(table, "best_mode", 0, "mode") == [10]
    assert points(table, "best_mode", 0, "correlation") == pytest.approx([1.0])
    for ranking in ("modes", "best_mode"):
        assert points(table, ranking, 0, "target_accuracy") == [0.0]


def test_mean_contribution_is_of_training_rows(tmp_path):
    x, labels = make_data()
    held_out = torch.arange(len(x)) // N_LABELS % 2 == 1
    x[labels == 0, :2] = torch.tensor([1.0, 0.0])
    x[held_out & (labels == 0), :2] = torch.tensor([0.0, 5.0])
    store = collect(Readout(), (x, labels), "hidden", out=tmp_path / "s", progress=False)
    modes = make_modes(store)
    by_mean = ByUnit(store=store, site="hidden", rows=~modes.held_out)
    table = control_curve(Readout(), (x, labels), modes, fractions=(0.17,), rankings=[by_mean])
    # Training rows say unit 0, with which held-out inputs do nothing.
    assert points(table, "mean_contribution", 0, "target_accuracy") == [1.0]


@pytest.mark.parametrize(
    ("sign", "atom"),
    [
        ("positive", [0.0, 0.0, 3.0, 2.0, -9.0, 1.0]),
        ("negative", [0.0, 0.0, -3.0, -2.0, 9.0, -1.0]),
        ("concat", [-9.0, 0.0, 3.0, 2.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0, -9.0, 1.5]),
    ],
)
def test_order_of_units_by_sign(chain, taken, sign, atom):
    model, data, modes = chain
    atoms = torch.tensor([atom])
    changes = {"atoms": atoms, "loadings": modes.loadings[:, 1:2], "ids": torch.tensor([0])}
    other = make_modes(modes.store, sign=sign, **changes)
    control_curve(model, data, other, labels=[1], fractions=(0.5,), n_random=0)
    assert taken[1][0][:3] == (2, 3, 5)


@pytest.mark.parametrize(
    ("sign", "order"),
    [
        ("positive", (1, 0, 2)),
        ("negative", (2, 5, 0)),  # what takes most from the target
        ("sum", (1, 3, 4)),
        ("concat", (1, 3, 4)),
    ],
)
def test_order_of_mean_contributions_by_sign(tmp_path, taken, sign, order):
    x = torch.tensor([-1.0, 0.5, -3.0, 0.0, 0.0, -2.0]).expand(2, -1)
    labels, model = torch.tensor([0, 0]), Readout()
    model.weight = torch.ones(N_LABELS, N_UNITS)
    store = collect(
        model, (x, labels), "hidden", target=Label(), out=tmp_path / "s", progress=False
    )
    atoms = torch.ones(1, N_UNITS * (2 if sign == "concat" else 1))
    modes = make_modes(
        store, sign=sign, held_out=torch.tensor([False, True]), atoms=atoms,
        loadings=torch.ones(2, 1), ids=torch.tensor([0]),
    )  # fmt: skip
    # With a single label there is nothing to subtract: the difference is the mean.
    control_curve(model, (x, labels), modes, fractions=(0.5,), n_random=0)
    assert taken[3][0][:3] == order


def test_random_draws_are_paired_nested_and_shared(chain, taken):
    model, data, modes = chain
    arguments = {"fractions": (0.34, 0.5), "n_random": 4}
    table = control_curve(model, data, modes, seed=3, **arguments)
    draws = [order for order, _, _ in taken[1:]]
    per_label = len(draws) // N_LABELS
    by_label = [draws[i * per_label : (i + 1) * per_label][-8:] for i in range(N_LABELS)]
    assert by_label[0] == by_label[1] == by_label[2]
    assert by_label[0][:4] == by_label[0][4:]
    assert len(set(by_label[0])) > 1
    pd.testing.assert_frame_equal(table, control_curve(model, data, modes, seed=3, **arguments))
    assert not table.equals(control_curve(model, data, modes, seed=4, **arguments))

    # Mean and standard deviation over draws, against one curve for each draw.
    is_random = table["ranking"] == "random"
    assert (table.loc[is_random, "n_draws"] == 4).all()
    assert (table.loc[~is_random, "n_draws"] == 0).all()
    assert table.loc[~is_random, ["target_std", "off_std"]].isna().all(axis=None)
    x, labels = (part[modes.held_out] for part in data)
    spread = []
    for label in range(N_LABELS):
        by_draw = []
        for order in by_label[0][:4]:
            edited = x.clone()
            edited[:, list(order[:2])] = 0.0
            right = (edited @ model.weight.T).argmax(1) == labels
            by_draw.append(right[labels == label].double().mean())
        mean, std = float(torch.stack(by_draw).mean()), float(torch.stack(by_draw).std())
        assert points(table, "random", label, "target_accuracy")[0] == pytest.approx(mean)
        assert points(table, "random", label, "target_std")[0] == pytest.approx(std)
        spread.append(std)
    assert max(spread) > 0.0


def test_one_draw_has_no_standard_deviation(chain):
    model, data, modes = chain
    table = control_curve(model, data, modes, fractions=(0.5,), n_random=1)
    assert table["target_std"].isna().all()


def test_every_set_of_units_passes_the_model_once_for_every_batch(chain):
    model, data, modes = chain
    model.n_forwards = 0
    control_curve(model, data, modes, fractions=(0.0, 0.17, 0.34, 1.0), n_random=3, batch_size=8)
    # 15 held-out samples are 2 batches. Unedited; 2 sets a label for modes and means alike;
    # at most 2 sets a draw; all units.
    assert model.n_forwards <= 2 * (1 + 2 * N_LABELS + 2 * 3 + 1)


def test_batches_do_not_matter_and_inputs_are_loaded_once(chain):
    model, data, modes = chain
    inputs = as_inputs(data)
    loaded = []
    counting = replace(
        inputs, read=lambda i: loaded.append(i) or inputs.read(i), shape=inputs.sample_shape
    )
    table = control_curve(model, counting, modes, batch_size=4)
    assert sorted(loaded) == modes.held_out.nonzero().flatten().tolist()
    pd.testing.assert_frame_equal(table, control_curve(model, data, modes, batch_size=100))


def test_rows_are_found_by_id(chain):
    model, (x, labels), modes = chain
    table = control_curve(model, (x, labels), modes)
    inputs = as_inputs((x, labels)).select(torch.randperm(len(x)).tolist())
    pd.testing.assert_frame_equal(table, control_curve(model, inputs, modes))


def test_label_without_a_right_image_is_undefined_and_not_infinite(chain):
    model, data, modes = chain
    # Unit 4 speaks for label 0: unedited, no image of label 2 is right; without it, all are.
    model.weight[0, 4] = 5.0
    table = control_curve(model, data, modes, fractions=(0.17, 0.34))
    lost = table["label"] == 2
    assert table.loc[lost, "target_accuracy"].isna().all()
    assert (table.loc[lost, "target_unedited"] == 0.0).all()
    assert not table.loc[lost, "defined"].any()
    assert table.loc[~lost, "defined"].all()
    numbers = table.select_dtypes("float").to_numpy()
    assert not (abs(numbers) == math.inf).any()
    areas = auc_difference(table)
    assert areas.loc[areas["label"] == 2, "auc_difference"].isna().all()
    assert areas["defined"].tolist() == (areas["label"] != 2).tolist()


def test_only_label_has_no_off_target(tmp_path):
    x, labels = make_data()
    x, labels = x[labels == 1], labels[labels == 1]
    store = collect(Readout(), (x, labels), "hidden", out=tmp_path / "s", progress=False)
    table = control_curve(Readout(), (x, labels), make_modes(store), fractions=(0.5,))
    assert table["off_accuracy"].isna().all()
    assert (table["n_off"] == 0).all()
    assert not table["defined"].any()


def test_samples_without_label_are_left_out(chain, tmp_path):
    model, (x, labels), modes = chain
    both = torch.cat([x, x[:6]]), torch.cat([labels, torch.full((6,), -1)])
    store = collect(model, both, "hidden", target=None, out=tmp_path / "t", progress=False)
    held_out = torch.cat([modes.held_out, torch.ones(6, dtype=torch.bool)])
    loadings = torch.cat([modes.loadings, torch.zeros(6, N_LABELS)])
    table = control_curve(model, both, make_modes(store, held_out=held_out, loadings=loadings))
    assert (table["n_off"] == 10).all()


# --- intervals, other replacements, off-target --------------------------------------------


def test_all_units_preserved_change_nothing_bit_for_bit(chain):
    for replacement in ("zero", "mean", "class_mean", "resample"):
        options = {"fractions": (0.5, 1.0), "replacement": replacement, "n_bootstrap": 5}
        for edit, place in (("preserve", 1.0), ("ablate", 0.0)):
            options["fractions"] = (place, 0.5) if place == 0.0 else (0.5, place)
            table = control_curve(*chain, edit=edit, **options)
            rows = table[table["fraction"] == place]
            for column in ("target_probability", "off_logit", "off_entropy"):
                assert (rows[column] == 0.0).all()
            assert (rows[["target_low", "target_accuracy", "off_high"]] == 1.0).all(axis=None)


def test_all_units_ablated_are_a_zero_activation(chain):
    model, (x, labels), modes = chain
    table = control_curve(*chain, fractions=(1.0,), n_random=0, n_bootstrap=0)
    with torch.no_grad():
        zero, whole = model(torch.zeros_like(x)), model(x)
    change = (zero - whole).gather(1, labels[:, None])[:, 0][modes.held_out]
    for label in range(N_LABELS):
        mine = labels[modes.held_out] == label
        found = points(table, "modes", label, "target_logit")
        assert found == pytest.approx([float(change[mine].mean())])


def test_the_mean_of_a_class_replaces_what_stands_for_that_class(chain):
    table = control_curve(*chain, fractions=(0.34,), replacement="class_mean", n_random=0)
    # The label's own images keep what they had, about; others get the label's units.
    assert all(points(table, "modes", k, "target_accuracy") == [1.0] for k in range(N_LABELS))
    assert all(points(table, "modes", k, "off_accuracy")[0] < 1.0 for k in range(N_LABELS))
    assert (table["replacement"] == "class_mean").all()


def test_resampled_activations_come_from_other_samples_and_do_not_depend_on_batches(chain):
    options = {"fractions": (0.34, 1.0), "replacement": "resample", "n_bootstrap": 3}
    table = control_curve(*chain, batch_size=4, **options)
    pd.testing.assert_frame_equal(table, control_curve(*chain, batch_size=100, **options))
    # All units taken from another sample: its label is predicted, not the sample's own.
    modes, labels = chain[2], chain[1][1]
    held = labels[modes.held_out]
    donors = held[torch.tensor(curves.draw_donors(len(held), 0))]
    for label in range(N_LABELS):
        same = (donors == label)[held == label].double().mean()
        assert points(table, "modes", label, "target_accuracy")[1] == pytest.approx(float(same))
    other = control_curve(*chain, seed=1, **options)
    assert not table.equals(other)


@pytest.mark.parametrize("number", [2, 3, 10])
def test_nobody_is_its_own_donor(number):
    for seed in range(5):
        donors = curves.draw_donors(number, seed)
        assert sorted(donors) == list(range(number))
        assert all(donor != sample for sample, donor in enumerate(donors))


def test_a_single_sample_has_no_donor(tmp_path):
    x, labels = make_data()
    store = collect(Readout(), (x, labels), "hidden", out=tmp_path / "s", progress=False)
    held_out = torch.zeros(len(x), dtype=torch.bool)
    held_out[1] = True
    with pytest.raises(DataError, match="resample needs another held-out sample"):
        control_curve(
            Readout(), (x, labels), make_modes(store, held_out=held_out), replacement="resample"
        )


def test_another_label_is_drawn_once_for_all_points_and_rankings(chain):
    options = {"fractions": (0.34, 1.0), "off": "drawn", "n_bootstrap": 0}
    table = control_curve(*chain, **options)
    assert (table["off"] == "drawn").all()
    drawn = table.groupby("label")["off_label"].unique()
    assert all(len(one) == 1 and one[0] != label for label, one in drawn.items())
    assert (table["n_off"] == 5).all()
    zero = [points(table, "modes", label, "off_accuracy")[1] for label in range(N_LABELS)]
    # With every unit at 0 the first label is predicted.
    assert zero == [float(drawn[label][0] == 0) for label in range(N_LABELS)]
    others = {tuple(control_curve(*chain, seed=seed, **options)["off_label"]) for seed in range(6)}
    assert len(others) > 1


def test_without_resamples_there_are_no_intervals(chain):
    table = control_curve(*chain, n_bootstrap=0)
    assert table[["target_low", "off_high", "auc_low", "auc_high"]].isna().all(axis=None)
    with pytest.raises(OptionError, match=r"compare: expected curves with n_bootstrap above 0"):
        compare(measure_curves(*chain, CurveOptions(n_bootstrap=0)))


def test_intervals_hold_their_values_and_shrink_with_more_images(tmp_path):
    widths = []
    for n_samples in (60, 600):
        x, labels = make_data(n_samples)
        x[:, :] += 0.5 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
        place = tmp_path / str(n_samples)
        store = collect(Readout(), (x, labels), "hidden", out=place, progress=False)
        table = control_curve(
            Readout(), (x, labels), make_modes(store), fractions=(0.17, 0.34), n_random=0
        )
        assert (table["target_low"] <= table["target_accuracy"] + 1e-9).all()
        assert (table["target_high"] >= table["target_accuracy"] - 1e-9).all()
        rows = table[(table["fraction"] == 0.17) & (table["ranking"] == "modes")]
        widths.append(float((rows["target_high"] - rows["target_low"]).mean()))
    # Ten times the images: sqrt(10) times narrower, about.
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.5)


def test_a_ranking_is_equal_to_itself_and_better_than_chance(chain):
    modes = chain[2]
    rankings = [
        ByMode(modes=modes), ByMode(modes=modes, name="again"),
        RandomUnits(n_units=N_UNITS, n_draws=20),
    ]  # fmt: skip
    for edit in ("ablate", "preserve"):
        options = CurveOptions(fractions=(0.17, 0.34, 0.5), rankings=rankings, edit=edit)
        curves = measure_curves(*chain, options)
        assert "curves    (9 Curve)" in repr(curves)
        for by in ("auc_difference", "area_between"):
            table = compare(curves, by=by)
            same = table[table["against"] == "again"].iloc[0]
            assert same[["difference", "low", "high"]].tolist() == [0.0, 0.0, 0.0]
            assert table["verdict"].tolist() == ["equal", "better", "better"]
            turned = compare(curves, by=by, against="best_mode").set_index("ranking")
            assert turned["verdict"].to_dict() == {"again": "equal", "random": "worse"}


def test_labels_without_a_value_are_left_out_of_a_comparison(chain):
    model, data, modes = chain
    model.weight[0, 4] = 5.0  # unedited, no image of label 2 is right
    rankings = [ByMode(modes=modes), RandomUnits(n_units=N_UNITS)]
    options = {"fractions": (0.17, 0.34), "rankings": rankings, "n_bootstrap": 50}
    table = compare(measure_curves(model, data, modes, CurveOptions(**options)))
    assert set(table["by"]) == {"auc_difference"}
    kept = compare(measure_curves(model, data, modes, CurveOptions(edit="preserve", **options)))
    assert set(kept["by"]) == {"area_between"}  # the off-target area may be nearly 0
    assert table["n_labels"].tolist() == [2]
    only = compare(measure_curves(model, data, modes, CurveOptions(labels=[2], **options)))
    assert only["verdict"].tolist() == ["undefined"]
    assert only[["difference", "low", "high"]].isna().all(axis=None)


def test_comparisons_that_cannot_be(unchecked, chain):
    curves = measure_curves(*chain, CurveOptions(fractions=(0.17, 0.34), n_bootstrap=5))
    with pytest.raises(OptionError, match="by must be one of auc_difference, area_between; got"):
        compare(curves, by="dose")
    with pytest.raises(OptionError, match="no ranking 'best'; there are modes, best_mode, contr"):
        compare(curves, against="best")
    with pytest.raises(OptionError, match=r"at least two fractions; .* fractions=\(0.5,\)"):
        compare(measure_curves(*chain, CurveOptions(fractions=(0.5,), n_bootstrap=5)))


@pytest.mark.parametrize("edit", ["ablate", "preserve"])
def test_random_units_do_the_same_to_target_and_off_target(chain, edit):
    # Where every label has as many images that are right, target and off-target accuracy of
    # edits that are the same for all labels have one mean over the labels: that of the network.
    model, data, modes = chain
    table = control_curve(
        model, data, modes, edit=edit, fractions=(0.17, 0.34, 0.5, 0.67),
        rankings=[RandomUnits(n_units=N_UNITS, n_draws=30)],
    )  # fmt: skip
    means = table.groupby("fraction")[["target_accuracy", "off_accuracy"]].mean()
    assert means["target_accuracy"].tolist() == pytest.approx(means["off_accuracy"].tolist())
    assert means["target_accuracy"].between(0.01, 0.99).any()


def test_area_between_the_curves_by_hand():
    curve = pd.DataFrame({
        "site": "x", "label": 0, "label_name": "cat", "ranking": "modes", "edit": "ablate",
        "replacement": "zero", "fraction": [0.2, 0.0, 1.0],
        "target_accuracy": [0.0, 1.0, 0.0], "off_accuracy": [1.0, 1.0, 0.5],
    })  # fmt: skip
    (row,) = auc_difference(curve).to_dict("records")
    assert row["auc_target"] == pytest.approx(0.1)
    assert row["auc_off"] == pytest.approx(0.2 + 0.6)
    assert row["auc_difference"] == pytest.approx((0.1 - 0.8) / 0.8)
    assert row["defined"]
    assert (row["label_name"], row["ranking"]) == ("cat", "modes")


def test_a_target_lost_at_once_is_minus_one(chain):
    model, data, modes = chain
    table = control_curve(model, data, modes, fractions=(0.34, 0.4, 0.49), labels=[1])
    areas = auc_difference(table).set_index("ranking")
    assert areas.loc["modes", "auc_difference"] == -1.0
    assert areas.loc["contribution_difference", "auc_difference"] == -1.0
    assert areas.loc["random", "auc_difference"] > -1.0


def test_no_area_off_target_is_undefined(chain):
    model, data, modes = chain
    table = control_curve(
        model, data, modes, edit="preserve", fractions=(0.34, 0.4), labels=[1], n_random=0
    )
    areas = auc_difference(table)
    assert (areas["auc_off"] == 0.0).all()
    assert areas["auc_difference"].isna().all()
    assert not areas["defined"].any()


def test_whole_chain_on_the_embedded_digits(tmp_path):
    model = load_model("digits").model
    data = load_data("digits", limit=240)
    store = collect(model, data, "block4", out=tmp_path / "s", progress=False)
    report = fit(KMeans(n_modes=10), store.matrix("block4"), config=TrainConfig(held_out=0.4))
    modes = Modes.build(report.dictionary, store, "block4", held_out_rows=report.held_out_rows)
    options = CurveOptions(fractions=(0.05, 0.15, 0.3), batch_size=100, n_bootstrap=300)
    curves = measure_curves(model, data, modes, options)
    table = curves.to_frame()
    assert (table["n_target"] + table["n_off"] == len(report.held_out_rows)).all()
    areas = {
        ranking: mean_over_labels(torch.tensor(rows["auc_difference"].to_numpy()))
        for ranking, rows in summarise(table).groupby("ranking")
    }
    # Random units spare nobody: both curves are one; modes and means hit their label.
    assert areas["random"][1] < 0.0 < areas["random"][2]
    assert abs(areas["random"][0]) < 0.03
    assert areas["modes"][0] < -0.05
    assert areas["contribution_difference"][0] < -0.05
    against = compare(curves, against="random").set_index("ranking")["verdict"]
    assert against.to_dict() == dict.fromkeys(RANKINGS[:-1], "better")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": "destory"}, "edit must be one of ablate, preserve; got 'destory'"),
        ({"replacement": "noise"}, "must be one of zero, mean, class_mean, resample; got 'noise'"),
        ({"fractions": ()}, r"fractions must be in ascending order, each from 0 to 1.*got \(\)"),
        ({"fractions": (0.5, 0.1)}, "fractions must be in ascending order"),
        ({"fractions": (0.1, 0.1)}, "fractions must be in ascending order"),
        ({"fractions": (0.1, 1.5)}, "each from 0 to 1"),
        ({"fractions": (math.nan,)}, "each from 0 to 1"),
        ({"off": "all"}, "off must be one of others, drawn; got 'all'"),
        ({"n_random": -1}, "n_random must be at least 0; got -1"),
        ({"n_bootstrap": -1}, "n_bootstrap must be at least 0; got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_options_out_of_range(unchecked, chain, changes, message):
    with pytest.raises(OptionError, match=message):
        control_curve(*chain, **changes)


def test_label_that_has_no_rows(chain):
    with pytest.raises(DataError, match=r"labels \[7\] have no training row or no held-out row"):
        control_curve(*chain, labels=[1, 7])


def test_no_label_has_training_and_held_out_rows(chain):
    model, data, modes = chain
    other = make_modes(modes.store, held_out=modes.store.labels == 1)
    with pytest.raises(DataError, match="no label has both training and held-out rows"):
        control_curve(model, data, other)


def test_nothing_held_out(chain):
    model, data, modes = chain
    none = make_modes(modes.store, held_out=torch.zeros(len(modes.store), dtype=torch.bool))
    with pytest.raises(DataError, match=r"hidden: no labelled rows are held out.*Modes.build"):
        control_curve(model, data, none)


def test_labels_missing(chain, tmp_path):
    model, (x, _), _ = chain
    store = collect(model, x, "hidden", out=tmp_path / "t", progress=False)
    modes = make_modes(store, loadings=torch.zeros(len(x), N_LABELS))
    with pytest.raises(DataError, match=r"labels missing: no sample of .* has one"):
        control_curve(model, x, modes)


def test_data_without_the_samples_of_the_store(chain):
    model, data, modes = chain
    with pytest.raises(DataError, match=r"lacks 15 of 15 held-out .*first are \['3', '4', '5'\]"):
        control_curve(model, as_inputs(data).select([0, 1, 2]), modes)


def test_data_with_other_labels(chain):
    model, (x, labels), modes = chain
    with pytest.raises(DataError, match=r"another label in .* the first is 3: 1 in the data, 0 in"):
        control_curve(model, (x, (labels + 1) % 3), modes)


def test_model_in_training_mode(chain):
    model, data, modes = chain
    with pytest.raises(ModelError, match="training mode"):
        control_curve(model.train(), data, modes)


def test_output_that_is_no_matrix_of_labels(chain):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Identity()
            self.eval()

        def forward(self, x):
            return self.hidden(x).sum(1)

    _, data, modes = chain
    with pytest.raises(ModelError, match=r"output of shape \[sample, label\]; Flat gave \(15,\)"):
        control_curve(Flat(), data, modes)


def test_table_that_is_no_curve():
    with pytest.raises(DataError, match="it lacks the columns site, label"):
        auc_difference(pd.DataFrame({"fraction": [0.1]}))


def test_area_of_a_single_point(chain):
    table = control_curve(*chain, fractions=(0.5,))
    with pytest.raises(DataError, match="an area needs at least two fractions"):
        auc_difference(table)
