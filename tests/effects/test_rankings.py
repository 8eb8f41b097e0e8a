"""Orders of units: what each ranking goes by, final-layer weights, and what may be compared."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from condec import effects
from condec.attribution import ActGrad
from condec.attribution.targets import Label
from condec.basis.errors import DataError, ModelError, OptionError, SiteError
from condec.dictionary import NMF, PCA, ThresholdSAE, fit
from condec.effects import (
    LOG_ODDS,
    LOG_ODDS_NAMES,
    RANKING_NAMES,
    ByMode,
    ByModeSum,
    ByScores,
    ByUnit,
    RandomModes,
    RandomUnits,
    control_curve,
    fit_signed,
    head_weights,
    standard_rankings,
)
from condec.effects.standard import check_rankings, ranked_units
from condec.figures import style
from condec.modes.modes import Modes
from condec.network.sites import Site
from condec.store.collection import collect
from condec.testing.models import small_resnet

N_UNITS = 5


class Head(nn.Module):
    """One hidden layer, of which the output is a linear map."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Identity()
        self.last = nn.Linear(N_UNITS, 2, bias=False)
        weight = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0], [0.0, 0.0, 3.0, 0.0, 1.0]])
        self.last.weight = nn.Parameter(weight)
        self.eval()

    def forward(self, x):
        return self.last(self.hidden(x))


X = torch.tensor([
    # label 0: unit 0 high, unit 4 low; label 1: the other way; the last two are held out.
    [4.0, 1.0, 0.0, 2.0, 0.0], [2.0, 1.0, 0.0, 2.0, 1.0], [3.0, 0.0, 0.0, 3.0, 0.5],
    [0.0, 1.0, 1.0, 2.0, 3.0], [1.0, 0.0, 2.0, 2.0, 2.0], [0.5, 1.0, 3.0, 3.0, 4.0],
    [0.0, 99.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 99.0, 0.0],
])  # fmt: skip
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1])
TRAINING = torch.tensor([True] * 6 + [False] * 2)
MINE, OTHERS = X[:3], X[3:6]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("rankings") / "s"
    return collect(Head(), (X, LABELS), "hidden", target=Label(), out=path, progress=False)


def modes_of(store, **changes):
    fields = {
        "atoms": torch.tensor([[0.0, 3.0, 1.0, -2.0, 2.0], [5.0, 0.0, 0.0, 1.0, 0.0]]),
        "loadings": torch.tensor(
            [[0.0, 2.0], [0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [1.0, 1.0], [3.0, 0.0], [9.0, 0.0],
             [0.0, 9.0]]
        ),
        "ids": torch.tensor([4, 7]), "held_out": ~TRAINING, "store": store,
        "site": Site("hidden"), "sign": "sum", "quantity": "contribution", "n_modes": 9,
    }  # fmt: skip
    return Modes(**(fields | changes))


def order_of(scores):
    return sorted(range(len(scores)), key=lambda unit: (-float(scores[unit]), unit))


def order(ranking, label=0):
    (found,) = ranking.ranked(label).orders
    return found.tolist()


def test_by_mode_takes_the_best_mode_of_training_rows(store):
    ranked = ByMode(modes=modes_of(store)).ranked(0)
    assert (ranked.mode, ranked.name, ranked.drawn) == (7, "best_mode", False)
    assert ranked.orders[0].tolist() == [0, 3, 1, 2, 4]
    second = ByMode(modes=modes_of(store), rank=1, name="second").ranked(0)
    assert (second.mode, second.name) == (4, "second")
    assert second.correlation < ranked.correlation


@pytest.mark.parametrize("mode", [None, 7])
def test_a_label_without_training_rows_has_no_order(store, mode):
    modes = modes_of(store, held_out=LABELS == 1)
    with pytest.raises(DataError, match="no sample of the split train has label 1"):
        ByMode(modes=modes, mode=mode).ranked(1)


@pytest.mark.parametrize(
    ("weight", "weights"),
    [
        # Mean loadings of label 0 are 1/3 and 2; only the second mode goes with it.
        ("above", [0.0, 2.0]),
        ("correlation", [0.0, 2.0]),
        ("difference", [1 / 3 - 2.0, 2.0 - 1 / 3]),
    ],
)
def test_by_mode_sum(store, weight, weights):
    modes = modes_of(store)
    ranking = ByModeSum(modes=modes, weight=weight)
    expected = weights[0] * modes.atoms[0] + weights[1] * modes.atoms[1]
    scores = ranking.scores((0,))
    assert torch.allclose(scores / scores[0], expected / expected[0], atol=1e-6)
    assert order(ranking) == order_of(expected)


def test_a_sum_of_modes_leaves_out_what_is_not_above(store):
    modes = modes_of(store)
    correlation = modes.correlation(store.labels, split="train")[:, 0]
    whole = ByModeSum(modes=modes, weight="above", least=-1.0).scores((0,))
    assert torch.allclose(whole, modes.atoms[0] / 3 + 2 * modes.atoms[1])
    high = ByModeSum(modes=modes, weight="above", least=float(correlation.max())).scores((0,))
    assert not high.any()


@pytest.mark.parametrize("quantity", ["contribution", "activation"])
@pytest.mark.parametrize("against", [False, True])
def test_by_mean_is_of_training_rows(store, quantity, against):
    def part(x, label):
        return x * Head().last.weight[label].detach() if quantity == "contribution" else x

    expected = part(MINE, 0).mean(0) - against * part(OTHERS, 1).mean(0)
    ranking = ByUnit(
        store=store,
        site="hidden",
        rows=TRAINING,
        quantity=quantity,
        score="difference" if against else "mean",
    )
    assert order(ranking) == order_of(expected)


def test_negative_parts_go_by_the_lowest_mean(store):
    ranking = ByUnit(store=store, site="hidden", rows=TRAINING, sign="negative")
    lost = (MINE * Head().last.weight[0].detach()).clamp(max=0).mean(0)
    assert order(ranking) == order_of(-lost)
    assert order(ranking)[0] == 3


def test_by_correlation_puts_the_best_unit_first(store):
    ranking = ByUnit(
        store=store, site="hidden", rows=TRAINING, quantity="activation", score="correlation"
    )
    member = (LABELS[:6] == 0).double()
    expected = [
        0.0 if x.std() == 0 else float(torch.corrcoef(torch.stack([x, member]))[0, 1])
        for x in X[:6].double().T
    ]
    assert order(ranking) == order_of(expected)
    assert order(ranking)[0] == 0
    assert order(ranking)[-1] == expected.index(min(expected))
    turned = replace(ranking, sign="negative")
    assert turned.ranked(0).orders[0].shape == (N_UNITS,)


def test_rankings_read_a_store_once(store, monkeypatch):
    reads = []
    real = type(store).matrix
    monkeypatch.setattr(
        type(store), "matrix", lambda self, *a, **k: reads.append(a) or real(self, *a, **k)
    )
    for score in ("mean", "correlation"):
        ranking = ByUnit(store=store, site="hidden", rows=TRAINING, score=score)
        assert order(ranking, 0) != order(ranking, 1)
    assert len(reads) == 2


def test_by_scores():
    ranking = ByScores(scores=torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, 2.0]]), name="mine")
    assert order(ranking) == [1, 2, 0]
    assert order(ranking, 1) == [2, 0, 1]
    assert ranking.source() is None


def test_random_units_are_the_same_for_all_labels():
    ranking = RandomUnits(n_units=20, n_draws=3, seed=4)
    first, second = ranking.ranked(0), ranking.ranked(7)
    assert first.drawn
    assert len(first.orders) == 3
    assert all(torch.equal(a, b) for a, b in zip(first.orders, second.orders, strict=True))
    assert all(sorted(one.tolist()) == list(range(20)) for one in first.orders)
    assert not torch.equal(first.orders[0], first.orders[1])
    other = RandomUnits(n_units=20, n_draws=3, seed=5).ranked(0)
    assert not torch.equal(first.orders[0], other.orders[0])


def test_random_modes_are_atoms_of_the_dictionary(store):
    modes = modes_of(store)
    ranked = RandomModes(modes=modes, n_draws=5).ranked(0)
    assert ranked.drawn
    known = {tuple(order_of(atom)) for atom in modes.atoms}
    assert {tuple(one.tolist()) for one in ranked.orders} == known, "as many as there are"


# --- final-layer weights ------------------------------------------------------------------


class Pooled(nn.Module):
    """Convolution, then an average over positions and a linear layer; or something between."""

    def __init__(self, between=None):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.between = between or nn.Identity()
        self.fc = nn.Linear(4, 3)
        self.eval()

    def forward(self, x):
        return self.fc(self.between(self.conv(x)).mean((2, 3)))


def test_head_weights_are_those_of_the_last_layer():
    model, images = Pooled(), torch.randn(3, 1, 6, 6)
    found = head_weights(model, "conv", images)
    assert torch.allclose(found, model.fc.weight, atol=1e-6)
    assert torch.allclose(head_weights(Head(), "hidden", X), Head().last.weight)
    order(ByScores(scores=found, name="head_weights"), 2)


def test_head_weights_of_a_twice_linear_head():
    model, images = Pooled(nn.Conv2d(4, 4, 1)), torch.randn(2, 1, 6, 6)
    between = model.between.weight[:, :, 0, 0]
    assert torch.allclose(head_weights(model, "conv", images), model.fc.weight @ between, atol=1e-6)


def test_head_weights_where_they_are_not_defined():
    images = torch.randn(4, 1, 6, 6)
    for between in (nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)):
        with pytest.raises(SiteError, match="conv is not followed by averaging and a linear layer"):
            head_weights(Pooled(between), "conv", images)
    model = small_resnet()
    with pytest.raises(SiteError, match="no final-layer weights of these units"):
        head_weights(model, "block1", torch.randn(3, 1, 5, 5))


def test_head_weights_need_two_inputs_and_evaluation_mode():
    with pytest.raises(OptionError, match="expected at least two inputs; got 1"):
        head_weights(Pooled(), "conv", torch.randn(1, 1, 6, 6))
    with pytest.raises(ModelError, match="training mode"):
        head_weights(Pooled().train(), "conv", torch.randn(2, 1, 6, 6))


# --- side by side -------------------------------------------------------------------------


def collect_log_odds(model, folder):
    return collect(
        model, (X, LABELS), "hidden", method=ActGrad(), target=LOG_ODDS, out=folder / "log_odds",
        progress=False,
    )  # fmt: skip


def test_standard_rankings(store, tmp_path):
    modes = modes_of(store)
    log_odds = collect_log_odds(Head(), tmp_path)
    rankings = standard_rankings(
        modes, log_odds=modes_of(log_odds, name="log_odds"),
        activation_modes=modes_of(store, quantity="activation"),
        head=Head().last.weight.detach(), n_random=2,
    )  # fmt: skip
    names = [ranking.name for ranking in rankings]
    assert names == [
        "log_odds_modes", "modes", "best_mode", "mode_sum", "activation_modes",
        "log_odds_difference", "mean_contribution", "contribution_difference",
        "activation_difference", "unit_correlation", "head_weights", "random", "random_modes",
    ]  # fmt: skip
    check_rankings(rankings, modes)
    table = control_curve(
        Head(), (X, LABELS), modes, fractions=(0.4, 0.8), rankings=rankings, n_bootstrap=5
    )
    assert list(dict.fromkeys(table["ranking"])) == names
    drawn = table.groupby("ranking")["n_draws"].first()
    assert drawn[["random", "random_modes", "modes"]].tolist() == [2, 2, 0]
    without = [ranking.name for ranking in standard_rankings(modes, n_random=0)]
    assert set(names) == set(RANKING_NAMES) == set(style.RANKINGS)
    left = {"random", "random_modes", "activation_modes", "head_weights", *LOG_ODDS_NAMES}
    assert set(without) == set(RANKING_NAMES) - left


def test_rankings_of_one_name_are_refused(store):
    modes = modes_of(store)
    twice = [ByMode(modes=modes), ByMode(modes=modes, rank=1)]
    with pytest.raises(OptionError, match="names of their own; best_mode is given more than once"):
        control_curve(Head(), (X, LABELS), modes, rankings=twice)


def test_rankings_that_saw_held_out_rows_are_refused(store):
    modes = modes_of(store)
    cheat = ByUnit(store=store, site="hidden", rows=torch.ones(8, dtype=torch.bool))
    with pytest.raises(
        DataError, match=r"'mean_contribution' takes other training rows .* 2 of them held out"
    ):
        control_curve(Head(), (X, LABELS), modes, rankings=[cheat])
    with pytest.raises(DataError, match=r"0 of them held out; give it rows=~modes\.held_out"):
        check_rankings([replace(cheat, rows=TRAINING[:4])], modes)


def test_rankings_from_other_samples_are_refused(store, tmp_path):
    other = collect(
        Head(), (X[:7], LABELS[:7]), "hidden", target=Label(), out=tmp_path / "s", progress=False
    )
    with pytest.raises(DataError, match=r"'mean_contribution' is made from other samples \(.*s\)"):
        check_rankings([ByUnit(store=other, site="hidden", rows=TRAINING[:7])], modes_of(store))


@pytest.mark.parametrize("scores", [torch.ones(2, 4), torch.ones(2, 6)])
def test_rankings_over_another_number_of_units_are_refused(store, scores):
    n_entries = scores.shape[1]
    with pytest.raises(
        OptionError, match=f"'mine' must put each of the site's 5 units in .* it has {n_entries}"
    ):
        ranked_units(ByScores(scores=scores, name="mine"), 1, N_UNITS)


def test_options_of_rankings_out_of_range(store, unchecked):
    with pytest.raises(OptionError, match=r"ByUnit: score must be one of mean, .*; got 'least'"):
        ByUnit(store=store, site="hidden", rows=TRAINING, score="least")
    with pytest.raises(OptionError, match="sign concat has two entries for every unit"):
        ByUnit(store=store, site="hidden", rows=TRAINING, sign="concat")
    with pytest.raises(OptionError, match=r"must be finite and of shape \[label, unit\]"):
        ByScores(scores=torch.tensor([[math.nan]]))
    with pytest.raises(DataError, match="label 3 has no scores; there are 2"):
        ByScores(scores=torch.ones(2, 4)).ranked(3)
    with pytest.raises(OptionError, match="n_draws must be at least 1; got 0"):
        RandomUnits(n_units=3, n_draws=0)
    with pytest.raises(OptionError, match="n_units must be at least 1; got 0"):
        RandomUnits(n_units=0)


def test_labels_without_rows(store):
    with pytest.raises(DataError, match="no training row has label 5"):
        ByUnit(store=store, site="hidden", rows=TRAINING).ranked(5)


def test_an_only_label_is_compared_with_nothing(store):
    rows = TRAINING & (LABELS == 0)
    one, alone = (
        ByUnit(store=store, site="hidden", rows=rows, score="difference" if against else "mean")
        for against in (True, False)
    )
    assert order(one) == order(alone)


@pytest.mark.filterwarnings("ignore::condec.dictionary.DeadModesWarning")
def test_modes_of_log_odds_keep_the_held_out_rows(store, tmp_path, monkeypatch):
    model, modes = Head(), modes_of(store)
    log_odds = collect_log_odds(model, tmp_path)
    h = X.double().requires_grad_()
    outputs = h @ model.last.weight.double().T
    if model.last.bias is not None:
        outputs = outputs + model.last.bias.double()
    own = torch.nn.functional.one_hot(LABELS, outputs.shape[1]).bool()
    rest = outputs.masked_fill(own, -torch.inf).logsumexp(1)
    (gradient,) = torch.autograd.grad((outputs[own] - rest).sum(), h)
    found = log_odds.matrix("hidden", sign="sum")
    assert torch.allclose(found.double(), (h * gradient).detach(), atol=1e-5)

    fitted = fit_signed(log_odds, modes, learner=PCA(n_modes=2))
    assert torch.equal(fitted.held_out, modes.held_out)
    assert (fitted.sign, fitted.store, len(fitted)) == ("sum", log_odds, 2)
    check_rankings([ByModeSum(modes=fitted)], modes)

    # A learner of parts that are not negative gives way to one that takes signs.
    seen = []
    monkeypatch.setattr(
        effects.log_odds, "fit", lambda learner, rows, **_: seen.append(learner) or fitted_report
    )
    fitted_report = fit(PCA(n_modes=2), log_odds.matrix("hidden", sign="sum"))
    other = fit_signed(log_odds, modes, learner=NMF(n_modes=2), name="other")
    assert (seen, other.name) == ([ThresholdSAE(2)], "other")
