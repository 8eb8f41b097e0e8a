"""Which units are chosen from scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.basis.errors import OptionError
from condec.edits import choose_units

SCORES = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(scores=SCORES, fraction=st.floats(0, 1), above=st.floats(-5, 5), mass=st.floats(0, 1))
def test_every_rule_takes_the_first_of_one_order(scores, fraction, above, mass):
    order = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))
    tensor = torch.tensor(scores)
    for count in range(len(scores) + 1):
        assert choose_units(tensor, count=count) == tuple(order[:count])
    chosen = choose_units(tensor, fraction=fraction)
    assert chosen == tuple(order[: int(len(scores) * fraction + 1e-9)])
    chosen = choose_units(tensor, above=above)
    assert chosen == tuple(unit for unit in order if scores[unit] > above)
    chosen = choose_units(tensor, mass=mass)
    assert chosen == tuple(order[: len(chosen)])
    share = mass * sum(max(score, 0.0) for score in scores)
    held = [sum(max(scores[unit], 0.0) for unit in chosen[:n]) for n in (len(chosen), -1)]
    assert held[0] >= share * (1 - 1e-6)
    # The fewest: one less holds too little.
    assert not chosen or held[1] < share


def test_fractions_are_those_of_the_paper():
    for n_units in (16, 64, 100, 768):
        for percent in range(101):
            chosen = choose_units(torch.zeros(n_units), fraction=percent / 100)
            assert chosen == tuple(range(n_units * percent // 100))


def test_mass_of_scores_without_any():
    assert choose_units(torch.tensor([-1.0, 0.0]), mass=1.0) == ()
    assert choose_units(torch.tensor([0.25, 0.5, 0.25, -3.0, 0.0]), mass=1.0) == (1, 0, 2)
    assert choose_units(torch.tensor([0.25, 0.5, 0.25, -3.0]), mass=0.5) == (1,)
    # Rounding leaves the sum of nine a little below 9/11 of the whole.
    equal = torch.full((11,), 0.1)
    assert choose_units(equal, mass=9 / 11) == tuple(range(9))


@pytest.mark.parametrize(
    ("scores", "rule", "message"),
    [
        ([1.0], {}, "expected one of fraction, count, above, mass; got none"),
        ([1.0], {"count": 1, "mass": 0.5}, "expected one of .*; got count, mass"),
        ([1.0], {"fraction": 1.5}, "fraction must be from 0 to 1; got 1.5"),
        ([1.0], {"mass": -0.1}, "mass must be from 0 to 1; got -0.1"),
        ([1.0], {"count": 2}, "count must be from 0 to 1, the number of units; got 2"),
        ([1.0], {"above": float("nan")}, "above must be a number; got nan"),
        ([[1.0]], {"count": 1}, r"scores must be finite, one for every unit; got shape \(1, 1\)"),
        ([], {"count": 0}, r"one for every unit; got shape \(0,\)"),
        ([float("inf")], {"count": 1}, "scores must be finite"),
    ],
)
def test_bad_rules(unchecked, scores, rule, message):
    with pytest.raises(OptionError, match=message):
        choose_units(torch.tensor(scores), **rule)
