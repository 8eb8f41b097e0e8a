"""Which modes are shown first: those that several held-out inputs use, by held-out figures."""

from dataclasses import replace

import pytest
import torch

from condec.explanation import (
    ALIKE,
    LEAST_USERS,
    copies,
    held_out_users,
    held_out_value,
    leading_modes,
    strongest_units,
)
from condec.modes import Modes
from condec.store import Store
from small_runs import small_run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Modes:
    folder = small_run(tmp_path_factory.mktemp("run") / "run", links=("fit",))
    store = Store.open(folder / "contributions.zarr")
    return Modes.load(folder / "modes" / "block2%3Ainput" / "kmeans", store)


def made(fitted: Modes, loadings, atoms=None, **changes) -> Modes:
    """Modes of other loadings, each with an atom of its own."""
    number = loadings.shape[1]
    atoms = torch.eye(number, max(number, 4)) if atoms is None else atoms
    return replace(
        fitted, loadings=loadings, atoms=atoms, ids=torch.arange(number) * 10, n_modes=99,
        **changes,
    )  # fmt: skip


@pytest.fixture
def some(fitted) -> Modes:
    """Modes that any number of the 60 inputs use, sparse ones and dense ones."""
    loadings = torch.rand(60, 12, generator=torch.Generator().manual_seed(3))
    loadings[loadings < torch.linspace(0, 0.97, 12)] = 0.0
    return made(fitted, loadings)


def correlation(loading: list[float], indicator: list[bool]) -> float:
    n = len(loading)
    mean, share = sum(loading) / n, sum(indicator) / n
    both = sum((z - mean) * (y - share) for z, y in zip(loading, indicator, strict=True))
    lengths = sum((z - mean) ** 2 for z in loading) * sum((y - share) ** 2 for y in indicator)
    return both / lengths**0.5 if lengths else 0.0


def by_hand(modes: Modes) -> tuple[dict[int, float], dict[int, int], dict[int, int]]:
    """Held-out correlation, best training label, and held-out users of every mode."""
    labels, out = modes.store.labels.tolist(), modes.held_out.tolist()
    value, label, users = {}, {}, {}
    for mode in range(len(modes)):
        column = [float(z) for z in modes.loadings[:, mode].double()]
        of = {
            (held, k): correlation(
                [z for z, o in zip(column, out, strict=True) if o == held],
                [y == k for y, o in zip(labels, out, strict=True) if o == held],
            )
            for held in (False, True)
            for k in range(3)
        }
        label[mode] = max(range(3), key=lambda k: of[False, k])
        if of[False, label[mode]] <= 0:
            label[mode] = -1  # it goes with none
        value[mode] = of.get((True, label[mode]), 0.0)
        users[mode] = sum(z > 0 for z, o in zip(column, out, strict=True) if o)
    return value, label, users


def test_order_is_that_of_a_plain_loop(some):
    value, label, users = by_hand(some)
    assert held_out_users(some).tolist() == list(users.values())
    found = held_out_value(some)
    assert found.tolist() == pytest.approx(list(value.values()), abs=1e-5)
    shown = [mode for mode in sorted(value, key=lambda m: -value[m]) if users[mode] >= LEAST_USERS]
    assert 3 < len(shown) < len(some)
    first = [next(m for m in shown if label[m] == k) for k in range(3) if k in label.values()]
    first.sort(key=lambda m: -value[m])
    order = leading_modes(some)
    assert order == [*first, *(mode for mode in shown if mode not in first)]
    assert leading_modes(some, 2) == order[:2]


def test_a_mode_of_one_input_is_not_shown_although_it_fits_its_label(fitted):
    inputs, labels = fitted.held_out.nonzero().flatten(), fitted.store.labels
    loadings = torch.zeros(60, 2)
    loadings[inputs, 0] = 1.0 + (labels[inputs] == 1) * torch.rand(len(inputs))
    loadings[inputs[0], 1] = 1.0
    assert leading_modes(made(fitted, loadings)) == [0]
    assert held_out_users(made(fitted, loadings)).tolist() == [len(inputs), 1]


def test_where_no_mode_has_held_out_users_the_most_used_one_is_first(fitted):
    rows = (~fitted.held_out).nonzero().flatten()
    loadings = torch.zeros(60, 3)
    for mode, number in enumerate((1, 9, 4)):
        loadings[rows[:number], mode] = 1.0
    assert leading_modes(made(fitted, loadings)) == [1, 2, 0]


def test_where_nothing_is_held_out_all_inputs_count(fitted):
    labels = fitted.store.labels
    loadings = torch.zeros(60, 3)
    loadings[labels == 0, 0] = 1.0
    loadings[:30, 1] = 1.0
    loadings[0, 2] = 1.0
    one = made(fitted, loadings, held_out=torch.zeros(60, dtype=torch.bool))
    assert held_out_users(one).tolist() == [20, 30, 1]
    assert leading_modes(one) == [0, 1]


def test_nearly_equal_atoms_are_shown_as_one(some):
    order = leading_modes(some)
    atoms, near, far = some.atoms.clone(), order[3], order[4]
    atoms[near] = 2.0 * atoms[order[0]] + 0.5 * atoms[near]
    atoms[far] = 2.0 * atoms[order[1]] + 1.0 * atoms[far]
    cosines = [2 / (4 + x * x) ** 0.5 for x in (0.5, 1.0)]
    assert cosines[0] > ALIKE > cosines[1]
    one = made(some, some.loadings, atoms)
    assert leading_modes(one) == [mode for mode in order if mode != near]
    assert copies(one, order[0]) == [near]
    assert copies(one, near) == [order[0]]
    assert copies(one, order[1]) == []


def test_without_labels_modes_stand_by_held_out_use(tmp_path):
    folder = small_run(tmp_path / "run", labelled=False, links=("fit",))
    store = Store.open(folder / "contributions.zarr")
    unnamed = Modes.load(folder / "modes" / "block2%3Ainput" / "kmeans", store)
    unnamed = made(unnamed, unnamed.loadings)
    means = {m: float(unnamed.loadings[unnamed.held_out, m].mean()) for m in range(len(unnamed))}
    users = held_out_users(unnamed).tolist()
    enough = [mode for mode in means if users[mode] >= LEAST_USERS]
    assert enough
    assert leading_modes(unnamed) == sorted(enough, key=lambda mode: -means[mode])


def test_where_no_label_is_in_both_splits_modes_stand_by_held_out_use(some, monkeypatch):
    labels = some.store.labels.clone()
    labels[some.held_out] = 7  # as in a folder with one picture of each class
    monkeypatch.setattr(type(some.store), "labels", labels)
    found = held_out_value(replace(some))
    assert found.tolist() == some.loadings[some.held_out].mean(0).tolist()


def test_a_mode_that_goes_with_no_label_is_no_labels_best_one(fitted):
    labels, out = fitted.store.labels, fitted.held_out
    loadings = torch.ones(60, 3)  # of which the first does not vary on training rows
    loadings[out, 0] += 3.0 * (labels[out] == 0)
    for label in (1, 2):
        loadings[labels == label, label] += torch.rand(int((labels == label).sum())) + 0.5
    one = made(fitted, loadings)
    assert float(one.correlation(split="held_out")[0, 0]) > 0.99
    assert float(held_out_value(one)[0]) == 0.0
    assert leading_modes(one)[-1] == 0


def test_strongest_units_move_the_target_most(fitted):
    atoms = torch.tensor([[-3.0, 0.5, 2.0, -0.1]])
    one = made(fitted, fitted.loadings[:, :1], atoms)
    assert strongest_units(one, 0).tolist() == [2, 1, 3, 0]
    assert strongest_units(replace(one, sign="negative"), 0).tolist() == [0, 3, 1, 2]
    both = replace(one, atoms=torch.cat([atoms, 10 * atoms.abs()], 1), sign="concat")
    assert strongest_units(both, 0).tolist() == [0, 2, 1, 3]
