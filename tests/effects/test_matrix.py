"""The control matrix on a network whose answer is known, its order, overlap and bad input."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import squareform

from condec.basis.errors import DataError, ModelError, OptionError
from condec.effects import ByScores, ControlMatrix, RandomUnits, control_curve, control_matrix
from condec.modes.hierarchy import Hierarchy
from condec.report import figures
from condec.testing.contracts import count_hooks

N_LABELS = 3


def made(effect, *, edit="ablate", accuracy=None):
    """A matrix with a given effect on the output."""
    n = len(effect)
    return ControlMatrix(
        site="s", ranking="modes", edit=edit, replacement="zero", labels=tuple(range(n)),
        label_names=tuple("abcdefghijkl"[:n]), count=1, n_units=4,
        n_samples=torch.full((n,), 3), unedited=torch.ones(n, dtype=torch.float64),
        accuracy=effect + 1 if accuracy is None else accuracy, probability=effect / 10,
        logit=effect, modes=(None,) * n,
    )  # fmt: skip


def test_each_label_has_two_units_of_its_own(chain):
    model, data, modes = chain
    matrix = control_matrix(model, data, modes, fraction=2 / 6)
    x, labels = chain.held_out
    logits = x @ model.weight.T
    for i in range(N_LABELS):
        for j in range(N_LABELS):
            mine = labels == j
            cut = x[mine].clone()
            cut[:, 2 * i : 2 * i + 2] = 0.0
            after = cut @ model.weight.T
            change = (after - logits[mine])[:, j].mean()
            assert matrix.logit[i, j] == pytest.approx(float(change), abs=1e-6)
            of = [value.softmax(1)[:, j].mean() for value in (after, logits[mine])]
            assert matrix.probability[i, j] == pytest.approx(float(of[0] - of[1]), abs=1e-6)
    # Without its two units a label's output is 0, and any other is higher.
    assert torch.equal(matrix.accuracy, 1 - torch.eye(N_LABELS, dtype=torch.float64))
    assert bool(matrix.defined.all())
    assert matrix.modes == (10, 11, 12)
    assert (matrix.count, matrix.n_units, matrix.ranking) == (2, 6, "best_mode")
    assert matrix.n_samples.tolist() == [5, 5, 5]
    summary = matrix.summary().set_index("quantity")
    assert summary.loc["accuracy", ["own", "others", "difference"]].tolist() == [0.0, 1.0, -1.0]
    assert summary.loc["logit", "own"] == pytest.approx(float(matrix.logit.diagonal().mean()))
    assert count_hooks(model) == 0
    assert "logit        Tensor[3, 3] float64" in repr(matrix)


def test_a_row_is_a_point_of_the_control_curve(chain):
    model, data, modes = chain
    matrix = control_matrix(model, data, modes, fraction=0.17, replacement="mean")
    curve = control_curve(model, data, modes, fractions=(0.17,), replacement="mean", n_random=0)
    of = curve[curve["ranking"] == "modes"]["target_accuracy"].tolist()
    assert matrix.accuracy.diagonal().tolist() == of
    assert matrix.count == 1


def test_preserving_keeps_the_label_alone(chain):
    model, data, modes = chain
    matrix = control_matrix(model, data, modes, fraction=2 / 6, edit="preserve", labels=[2, 1])
    assert matrix.labels == (2, 1)
    assert matrix.accuracy.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    nothing = control_matrix(model, data, modes, fraction=6 / 6, edit="preserve")
    assert not bool(nothing.logit.any())
    assert bool((nothing.accuracy == 1.0).all())


def test_random_draws_are_averaged(chain):
    model, data, modes = chain
    draws = RandomUnits(n_units=6, n_draws=3, seed=1)
    matrix = control_matrix(model, data, modes, fraction=2 / 6, ranking=draws)
    each = []
    for order in draws.ranked(0).orders:
        scores = torch.zeros(N_LABELS, 6)
        scores[:, order[:2]] = 1.0
        each.append(
            control_matrix(model, data, modes, fraction=2 / 6, ranking=ByScores(scores=scores))
        )
    torch.testing.assert_close(matrix.logit, torch.stack([one.logit for one in each]).mean(0))
    torch.testing.assert_close(matrix.accuracy, torch.stack([e.accuracy for e in each]).mean(0))
    assert matrix.modes == (None,) * 3
    assert matrix.to_frame()["mode"].isna().all()


def test_frame_has_a_row_for_every_pair(chain):
    model, data, modes = chain
    matrix = control_matrix(model, data, modes, fraction=1 / 6)
    table = matrix.to_frame()
    assert len(table) == N_LABELS**2
    row = table[(table["edited"] == 1) & (table["label"] == 2)].iloc[0]
    assert (row["mode"], row["label_name"], row["n_samples"]) == (11, "2", 5)
    assert row["logit"] == float(matrix.logit[1, 2])


def test_label_that_is_never_right_is_undefined(chain):
    model, data, modes = chain
    model.weight[0, 4] = 5.0
    matrix = control_matrix(model, data, modes, fraction=2 / 6)
    assert matrix.accuracy[:, 2].isnan().all()
    assert matrix.defined[:, :2].all()
    assert not matrix.defined[:, 2].any()
    assert not matrix.accuracy.isinf().any()
    assert math.isfinite(matrix.summary()["own"][0])


def test_overlap_is_high_where_much_is_lost_or_kept_together():
    effect = torch.tensor([[-4.0, -1.0], [-3.0, -5.0]])
    assert made(effect).overlap().tolist() == [[4.0, 2.0], [2.0, 5.0]]
    assert made(effect, edit="preserve").overlap().tolist() == [[-4.0, -2.0], [-2.0, -5.0]]
    assert made(effect).overlap("accuracy")[0, 1] == 1.0


def blocks(n=6, within=-3.0, between=-1.0):
    """Even labels go together, and odd ones."""
    even = torch.arange(n) % 2
    same = even[:, None] == even
    return torch.where(same, within, between).double() - torch.eye(n).double()


def test_order_by_hierarchy_and_by_likeness():
    matrix = made(blocks())
    hierarchy = Hierarchy(("x", "y", "x", "y", "x", ""))
    assert matrix.ordered(hierarchy).labels == (0, 2, 4, 1, 3, 5)
    alike = matrix.ordered()
    assert {frozenset(alike.labels[:3]), frozenset(alike.labels[3:])} == {
        frozenset({0, 2, 4}), frozenset({1, 3, 5}),
    }  # fmt: skip
    places = list(alike.labels)
    assert torch.equal(alike.logit, matrix.logit[places][:, places])
    assert alike.label_names == tuple("abcdef"[i] for i in places)
    small = made(torch.eye(2).double())
    assert small.ordered().labels == (0, 1)
    undefined = replace(matrix, logit=torch.full((6, 6), torch.nan))
    assert undefined.ordered().labels == tuple(range(6))


def test_agreement_with_the_hierarchy():
    hierarchy = Hierarchy(("x", "y") * 4)
    noise = 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()
    found = made(blocks(8) + noise).agreement(hierarchy, n_permutations=199)
    overlap = made(blocks(8) + noise).overlap()
    assert found.correlation > 0.95
    # 35 ways to part 8 labels in halves: about 1 in 35 orders keeps this one.
    assert 1 / 200 <= found.p_value < 0.06
    assert (found.n_within, found.n_between) == (12, 16)
    pairs = squareform(overlap.fill_diagonal_(0).numpy())
    assert found.within * 12 + found.between * 16 == pytest.approx(pairs.sum())
    # The other way round: labels of one group share least.
    against = made(blocks(8, within=-1.0, between=-3.0) + noise).agreement(
        hierarchy, n_permutations=199
    )
    assert against.correlation < -0.95
    assert against.p_value > 0.9
    one = made(blocks(8)).agreement(Hierarchy(("x",) * 8), n_permutations=1)
    assert math.isnan(one.correlation)
    assert math.isnan(one.p_value)


def test_agreement_needs_labels_in_groups():
    with pytest.raises(DataError, match=r"at least 3 labels .* belong to a group .* got 2"):
        made(blocks()).agreement(Hierarchy(("x", "y", "", "", "", "")))
    with pytest.raises(OptionError, match="n_permutations must be at least 1; got 0"):
        made(blocks()).agreement(Hierarchy(("x", "y") * 3), n_permutations=0)


def test_figures(chain):
    matrix = made(blocks(), accuracy=torch.full((6, 6), torch.nan))
    hierarchy = Hierarchy(("x", "y", "x", "y", "x", ""))
    drawn = figures.control_matrix_figure(matrix, hierarchy, quantity="logit")
    image = drawn.axes[0].images[0]
    assert image.get_clim() == (-4.0, 4.0)
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == list("acebdf")
    assert figures.control_matrix_figure(matrix).axes[0].images[0].get_clim() == (0.0, 2.0)


def test_bad_figures(unchecked):
    with pytest.raises(OptionError, match=r"control_matrix_figure: quantity must be .*'loss'"):
        figures.control_matrix_figure(made(blocks()), quantity="loss")
    with pytest.raises(OptionError, match=r"overlap: quantity must be one of accuracy, .*'loss'"):
        made(blocks()).overlap("loss")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.5}, r"fraction must be from 0 to 1; got 1\.5"),
        ({"fraction": 0.2, "edit": "flip"}, "edit must be one of ablate, preserve; got 'flip'"),
        ({"fraction": 0.2, "replacement": "x"}, "replacement must be one of zero, mean; got 'x'"),
    ],
)
def test_bad_options(chain, unchecked, options, message):
    with pytest.raises(OptionError, match=f"control_matrix: {message}"):
        control_matrix(*chain, **options)


def test_bad_data(chain):
    model, data, modes = chain
    with pytest.raises(DataError, match=r"control_matrix: labels \[7\] have no training row"):
        control_matrix(model, data, modes, fraction=1 / 6, labels=[7])
    with pytest.raises(DataError, match="control_matrix: hidden: no labelled rows are held out"):
        control_matrix(
            model, data, replace(modes, held_out=torch.zeros_like(modes.held_out)), fraction=0.2
        )
    with pytest.raises(ModelError, match="training mode"):
        control_matrix(model.train(), data, modes, fraction=1 / 6)
