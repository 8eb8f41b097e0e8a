"""Control of a superclass: several modes and sites together, baselines, bad input."""

from dataclasses import replace

import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.effects import RandomUnits, superclass_control
from condec.report import figures


def both_sites(chain, **changes):
    store = chain.modes.store
    return [
        chain.make_modes(store, site=store.info(name).site, **changes) for name in chain.model.names
    ]


def test_ablating_two_labels_leaves_the_third(chain):
    control = superclass_control(
        chain.model, chain.data, both_sites(chain), [0, 1], fraction=0.67, n_random=3,
        name="pair",
    )  # fmt: skip
    assert control.sites == ("hidden", "again")
    assert control.counts == (4, 4)
    assert control.modes == ((10, 11), (10, 11))
    assert control.rankings == ("unedited", "modes", "mean_contribution", "random")
    means = control.means(n_bootstrap=50).set_index(["ranking", "group"])
    for ranking in ("modes", "mean_contribution"):
        assert means.loc[(ranking, "members"), "top1"] == 0.0
        assert means.loc[(ranking, "others"), ["top1", "top1_low", "top1_high"]].tolist() == [1] * 3
    assert means.loc[("unedited", "members"), "top1"] == 1.0
    assert means.loc[("modes", "members"), ["n_labels", "n_samples"]].tolist() == [2, 10]
    # Three labels: any is among the first five.
    assert (means["top5"] == 1.0).all()
    table = control.to_frame()
    assert len(table) == 3 * 3
    row = table[(table["ranking"] == "modes") & (table["label"] == 1)].iloc[0]
    assert (row["group"], row["n_samples"]) == ("member", 5)
    assert (row["top1_unedited"], row["top1"]) == (1.0, 0.0)
    assert table[table["label"] == 2]["group"].unique().tolist() == ["other"]
    x, labels = chain.held_out
    cut = x.clone()
    cut[:, :4] = 0.0
    expected = (cut @ chain.model.weight.T).softmax(1)[labels == 1, 1].mean()
    assert row["probability"] == pytest.approx(float(expected), abs=1e-6)


def test_preserving_keeps_the_members(chain):
    control = superclass_control(*chain, [0, 1], fraction=0.67, edit="preserve", n_random=0)
    means = control.means(n_bootstrap=10).set_index(["ranking", "group"])
    assert means.loc[("modes", "members"), "top1"] == 1.0
    assert means.loc[("modes", "others"), "top1"] == 0.0
    assert "random" not in control.rankings


def test_sites_act_together(chain):
    # Each site takes one label's units: alone, neither loses both.
    first, second = both_sites(chain)
    one = chain.make_modes(first.store, atoms=first.atoms * torch.tensor([[1.0], [0.1], [1.0]]))
    other = chain.make_modes(
        first.store, site=second.site, atoms=first.atoms * torch.tensor([[0.1], [1.0], [1.0]])
    )

    def lost(modes):
        control = superclass_control(
            chain.model, chain.data, modes, [0, 1], fraction=0.34, n_random=0
        )
        table = control.to_frame()
        return table[table["ranking"] == "modes"].set_index("label")["top1"].tolist()

    assert lost([one]) == lost(one) == [0.0, 1.0, 1.0]
    assert lost([other]) == [1.0, 0.0, 1.0]
    assert lost([one, other]) == [0.0, 0.0, 1.0]


def test_random_units_are_draws_at_every_site(chain):
    modes = both_sites(chain)
    control = superclass_control(
        chain.model, chain.data, modes, [0], fraction=0.34, n_random=4, seed=5
    )
    x, labels = chain.held_out
    right = torch.zeros(len(x), dtype=torch.float64)
    draws = [RandomUnits(n_units=6, n_draws=4, seed=5 + at).ranked(0).orders for at in (0, 1)]
    for one, two in zip(*draws, strict=True):
        cut = x.clone()
        cut[:, one[:2]] = 0.0
        cut[:, two[:2]] = 0.0
        right += ((cut @ chain.model.weight.T).argmax(1) == labels).double() / 4
    assert torch.equal(control.top1[-1], right)


def test_correlations_and_means_are_of_training_rows(chain):
    modes = chain.modes
    scrambled = modes.loadings.clone()
    scrambled[modes.held_out] = 3.0 * scrambled[modes.held_out].roll(1, 1)
    other = chain.make_modes(modes.store, loadings=scrambled)
    control = superclass_control(chain.model, chain.data, other, [0], fraction=0.34, n_random=0)
    assert control.modes == ((10,),)
    assert control.means(n_bootstrap=10).query("ranking == 'modes'")["top1"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("sign", ["negative", "concat"])
def test_mean_contribution_by_sign(chain, sign):
    width = 12 if sign == "concat" else 6
    modes = chain.make_modes(chain.modes.store, sign=sign, atoms=torch.randn(3, width))
    control = superclass_control(chain.model, chain.data, modes, [0], fraction=1.0, n_random=0)
    # All units: every output is 0, and the first label is predicted.
    assert torch.equal(control.top1[2] == 1.0, control.labels == 0)


def test_figure(chain):
    control = superclass_control(*chain, [0], fraction=0.34, n_random=2, name="x")
    figure = figures.superclass_figure(control)
    assert len(figure.axes) == 3
    names = [text.get_text() for text in figure.axes[0].texts]
    for group, means in (("members", "0.00"), ("the rest", "1.00")):
        assert names[names.index(group) + 1] == f"1.00 to {means}"


def test_bad_figure(chain, unchecked):
    control = superclass_control(*chain, [0], fraction=0.34, n_random=0)
    with pytest.raises(OptionError, match=r"quantity must be one of top1, top5, .*'loss'"):
        figures.superclass_figure(control, quantity="loss")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": []}, "expected one Modes for each site; got none"),
        ({"least_correlation": 1.0}, r"hidden: no mode's .* above 1\.0; the highest is 1\.000"),
        ({"n_random": -1}, "n_random must be at least 0; got -1"),
        ({"fraction": 2.0}, r"fraction must be from 0 to 1; got 2\.0"),
    ],
)
def test_bad_options_are_refused_before_a_pass(chain, monkeypatch, options, message):
    monkeypatch.setattr("condec.effects.superclass.measure", None)
    given = {"modes": chain.modes, "members": [0], "fraction": 0.3} | options
    with pytest.raises(OptionError, match=f"superclass_control: {message}"):
        superclass_control(chain.model, chain.data, **given)


def test_bad_data(chain):
    model, data, modes = chain

    def control(modes, members, **options):
        return superclass_control(model, data, modes, members, fraction=0.3, **options)

    with pytest.raises(OptionError, match="expected one Modes for each site; got hidden, hidden"):
        control([modes, modes], [0])
    first, second = both_sites(chain)
    other = replace(second, held_out=~second.held_out)
    with pytest.raises(DataError, match="again and hidden have different samples or held-out rows"):
        control([first, other], [0])
    for members in ([], [7]):
        with pytest.raises(DataError, match=f"no training sample has one of the {len(members)}"):
            control(modes, members)
    split = modes.store.labels == 0
    with pytest.raises(DataError, match="no held-out sample has one of the 1 member labels"):
        control(replace(modes, held_out=split), [1])
    with pytest.raises(DataError, match="all held-out samples are members"):
        control(modes, [0, 1, 2])
