"""Interactions of modes: none where a network is linear, the known ones where it is not."""

import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.effects import INTERACTION_COLUMNS, mode_interactions
from condec.report import figures

N_LABELS = 3
FIRST = 1 / 6


def of_logits(table, label=None):
    part = table[table["quantity"] == "logit"]
    return part if label is None else part[part["label"] == label]


def test_linear_network_with_disjoint_units_has_no_interaction(chain):
    table = mode_interactions(*chain, fraction=2 / 6)
    assert list(table.columns) == list(INTERACTION_COLUMNS)
    assert len(table) == 3 * N_LABELS * 2
    logits = of_logits(table)
    assert logits["interaction"].abs().max() < 1e-6
    assert (logits["n_shared"] == 0).all()
    assert logits["single_a"].abs().max() > 1.0
    first = of_logits(table, 0).iloc[0]
    assert (first["mode_a"], first["mode_b"], first["name_a"], first["name_b"]) == (
        10,
        11,
        "0",
        "1",
    )
    x, labels = chain.held_out
    lost = (x[labels == 0][:, :2] * torch.tensor([1.0, 0.5])).sum(1).mean()
    assert first["single_a"] == pytest.approx(-float(lost), abs=1e-6)
    assert first["pair"] == pytest.approx(first["sum"], abs=1e-6)
    # Probabilities are no linear function of the units.
    probability = table[table["quantity"] == "probability"]
    assert probability["interaction"].abs().max() > 1e-4


def test_a_mode_that_goes_with_no_label_has_no_name(chain):
    model, data, modes = chain
    loadings = modes.loadings.clone()
    loadings[:, 0] = 1.0
    table = mode_interactions(
        model, data, chain.make_modes(modes.store, loadings=loadings), pairs=[(10, 11)],
        fraction=FIRST, n_bootstrap=2,
    )  # fmt: skip
    assert (set(table["name_a"]), set(table["name_b"])) == ({"no label"}, {"1"})


def test_units_of_both_modes_count_twice_in_the_sum(chain):
    model, data, modes = chain
    atoms = modes.atoms.clone()
    atoms[1] = torch.tensor([3.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    other = chain.make_modes(modes.store, atoms=atoms)
    row = of_logits(
        mode_interactions(model, data, other, pairs=[(10, 11)], fraction=2 / 6), 0
    ).iloc[0]
    x, labels = chain.held_out
    shared = float(x[labels == 0][:, 0].mean())
    assert row["n_shared"] == 1
    # Unit 0 is lost once in the pair, and twice in the sum.
    assert row["interaction"] == pytest.approx(shared, abs=1e-6)
    assert row["low"] < shared < row["high"]


@pytest.mark.parametrize(("kind", "expected"), [("needed", 1.0), ("spare", -1.0)])
def test_known_interaction(chain, kind, expected):
    """A product: each is needed by the other; a maximum: each stands in for the other."""
    model, (x, labels), modes = chain

    def forward(inputs):
        h = model.hidden(inputs)
        a, b = h[:, 0], h[:, 2]
        first = a * b if kind == "needed" else torch.maximum(a, b)
        return torch.stack([first, h[:, 4], h[:, 5]], 1)

    model.forward = forward
    ones = torch.ones_like(x)
    table = mode_interactions(
        model, (ones, labels), modes, pairs=[(10, 11)], labels=[0], fraction=FIRST, n_bootstrap=20
    )
    row = of_logits(table).iloc[0]
    alone = -1.0 if kind == "needed" else 0.0
    assert (row["single_a"], row["single_b"], row["pair"]) == (alone, alone, -1.0)
    assert (row["interaction"], row["low"], row["high"]) == (expected,) * 3


def test_interval_is_that_of_the_mean(chain):
    """Of a normal mean: about 2 x 1.96 standard errors wide."""
    model, data, modes = chain
    atoms = modes.atoms.clone()
    atoms[1] = atoms[0]
    other = chain.make_modes(modes.store, atoms=atoms)
    row = of_logits(
        mode_interactions(model, data, other, pairs=[(10, 11)], fraction=FIRST, n_bootstrap=4000), 0
    ).iloc[0]
    x, labels = chain.held_out
    each = x[labels == 0, 0]
    width = 2 * 1.96 * float(each.std(correction=0)) / len(each) ** 0.5
    assert row["high"] - row["low"] == pytest.approx(width, rel=0.15)
    assert row["n_samples"] == len(each)


def test_figure(chain):
    table = mode_interactions(*chain, fraction=2 / 6)
    values = figures.interactions_figure(table, label=1).axes[0].images[0].get_array()
    assert values.mask.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    row = of_logits(table, 1).iloc[0]
    assert values[0, 0] == pytest.approx(row["single_a"])
    assert values[1, 0] == pytest.approx(row["interaction"])
    assert figures.interactions_figure(table).axes[0].images
    few = mode_interactions(*chain, fraction=2 / 6, pairs=[(10, 11), (11, 12)])
    grey = figures.interactions_figure(few, label=1).axes[0].images[1].get_array()
    assert (~grey.mask).nonzero() == (2, 0)  # the one pair that was not measured
    with pytest.raises(DataError, match="interactions_figure: label 9: the table"):
        figures.interactions_figure(table, label=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": FIRST, "n_bootstrap": 0}, "n_bootstrap must be at least 1; got 0"),
        ({"fraction": FIRST, "n_pairs": -1}, "n_pairs must be at least 1; got -1"),
        (
            {"fraction": FIRST, "pairs": [(10, 3)]},
            r"hidden: modes \[3\] are not alive; .* \[10, 11, 12\]",
        ),
        ({"fraction": FIRST, "pairs": [(10, 10)]}, "expected pairs of two modes each.*got.*10, 10"),
        ({"fraction": FIRST, "pairs": []}, r"expected pairs of two modes each.*got \[\]"),
    ],
)
def test_bad_options(chain, options, message):
    with pytest.raises(OptionError, match=f"mode_interactions: {message}"):
        mode_interactions(*chain, **options)
    with pytest.raises(DataError, match="1 labels have one best mode between them, 11; a pair ne"):
        mode_interactions(*chain, fraction=FIRST, labels=[1])


def test_pairs_are_those_with_the_most_alike_atoms(chain):
    model, data, modes = chain
    atoms = modes.atoms.clone()
    atoms[0, 4] = 1.0
    atoms[1, 4] = 0.5
    other = chain.make_modes(modes.store, atoms=atoms)

    def pairs(**options):
        table = mode_interactions(model, data, other, fraction=FIRST, n_bootstrap=1, **options)
        return list(dict.fromkeys(zip(table["mode_a"], table["mode_b"], strict=True)))

    found = pairs()
    assert found[0] == (10, 12)
    assert sorted(found) == [(10, 11), (10, 12), (11, 12)]
    atom = dict(zip(other.ids.tolist(), atoms, strict=True))
    likeness = [float(torch.cosine_similarity(atom[a], atom[b], 0)) for a, b in found]
    assert likeness == sorted(likeness, reverse=True)
    assert len(set(likeness)) == 3
    assert pairs(n_pairs=1) == found[:1]
