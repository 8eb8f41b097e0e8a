"""Modes against units, of contributions and activations: figure 5 of the paper."""

import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from condec.basis.errors import DataError
from condec.dictionary import import_dictionary
from condec.modes import Modes
from condec.modes.against_units import against_units
from condec.network import Site, Units
from condec.store import SiteInfo, Store
from condec.store.matrix import StoredMatrix


def make_store(path, contribution, activation, labels):
    """A store of one site "x"."""
    n_samples, _, n_units = contribution.shape
    layout = {"units": Units("features"), "n_units": n_units, "n_positions": 1, "cut": True}
    sizes = {"n_samples": n_samples, "shard_size": n_samples}
    store = Store.create(path, recipe={}, sites=[SiteInfo(site=Site("x"), **layout)], **sizes)
    none = torch.full((n_samples,), -1)
    store.write_shard(0, {
        "inputs/id": tuple(map(str, range(n_samples))), "inputs/label": labels,
        "inputs/prediction": none, "inputs/steps": none, "inputs/target": torch.ones(n_samples),
        "inputs/target_baseline": torch.zeros(n_samples),
        "inputs/valid": torch.ones(n_samples, dtype=torch.bool),
        "sites/x/contribution": contribution, "sites/x/activation": activation,
    })  # fmt: skip
    return Store.open(path)


def correlation(x, y):
    """Pearson, by loops in float64."""
    x, y = x.double().tolist(), y.double().tolist()
    n, a, b = len(x), sum(x) / len(x), sum(y) / len(y)
    top = sum((p - a) * (q - b) for p, q in zip(x, y, strict=True))
    size = sum((p - a) ** 2 for p in x) * sum((q - b) ** 2 for q in y)
    assert n == len(y)
    return top / size**0.5


@pytest.fixture
def modes(tmp_path):
    """Two modes that are labels, of four units of which none is."""
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    contribution = torch.rand(80, 2, 4) * torch.tensor([1.0, -1.0])[:, None]
    contribution[:, 0, :2] += labels[:, None] * torch.tensor([2.0, 2.0])
    contribution[:, 0, 0] += torch.randn(80).abs()
    store = make_store(tmp_path / "s", contribution, contribution * 0.5, labels)
    atoms = torch.tensor([[0.7, 0.7, 0.0, 0.0], [0.0, 0.0, 0.7, 0.7]])
    known = import_dictionary(atoms, encoder="projection")
    return Modes.build(known, store, "x", held_out_rows=torch.arange(0, 80, 5))


def test_units_and_modes_of_one_sign_by_loops(modes):
    table = against_units([modes]).set_index("of")
    assert list(table.index) == [
        "units of contributions", "units of activations", "modes of contributions"
    ]  # fmt: skip
    assert set(table["sign"]) == {"positive"}
    assert table["n"].tolist() == [4, 4, 2]
    store, train = modes.store, ~modes.held_out
    matrices = {"units of contributions": store.matrix("x", sign="positive"),
                "modes of contributions": modes.loadings}  # fmt: skip
    for name, values in matrices.items():
        on_train, held_out = [], []
        for column in values.T:
            both = [[correlation(column[rows], store.labels[rows] == label) for label in (0, 1)]
                    for rows in (train, modes.held_out)]  # fmt: skip
            best = max((0, 1), key=lambda label: both[0][label])
            on_train.append(both[0][best])
            held_out.append(both[1][best])
        row = table.loc[name]
        middle = torch.tensor(on_train, dtype=torch.float64).quantile(0.5)
        assert row["chosen"] == pytest.approx(float(middle), abs=1e-5)
        for end, share in (("correlation", 0.5), ("low", 0.25), ("high", 0.75)):
            at = torch.tensor(held_out, dtype=torch.float64).quantile(share)
            assert row[end] == pytest.approx(float(at), abs=1e-5)
        assert row["above"] == sum(value > 0.2 for value in held_out)
    # Halved, activations correlate as contributions do.
    halved = table.loc[["units of contributions", "units of activations"], "correlation"]
    assert halved.iloc[0] == pytest.approx(halved.iloc[1])
    assert table.loc["modes of contributions", "high"] > 0.5
    assert (table["shuffled"] < 0.35).all()


@pytest.mark.parametrize("sign", ["positive", "sum", "concat"])
def test_units_are_read_some_columns_at_a_time(modes, sign, monkeypatch):
    """At no time is a matrix of all units held, and the table is the same."""
    modes = Modes.build(
        import_dictionary(torch.eye(8 if sign == "concat" else 4), encoder="component"),
        modes.store, "x", sign, held_out_rows=torch.arange(0, 80, 5),
    )  # fmt: skip
    whole, widths, read = against_units([modes]), [], StoredMatrix.all

    def noted(matrix):
        widths.append(matrix.shape[1])
        return read(matrix)

    monkeypatch.setattr(StoredMatrix, "all", noted)
    monkeypatch.setattr(sys.modules["condec.modes.against_units"], "_UNITS_AT_ONCE", 3)
    pd.testing.assert_frame_equal(against_units([modes]), whole, rtol=1e-5, atol=1e-6)
    assert widths == ([6, 2] if sign == "concat" else [3, 1]) * 2


def test_modes_of_activations_stand_beside_units_of_their_sign(modes):
    encoder = modes.encoder
    of = {"quantity": "activation", "held_out_rows": torch.arange(0, 80, 5)}
    same, signed = (Modes.build(encoder, modes.store, "x", s, **of) for s in ("positive", "sum"))
    table = against_units([modes, same])
    assert list(table["of"])[2:] == ["modes of contributions", "modes of activations"]
    table = against_units([modes, signed])
    assert list(table["sign"]) == ["positive"] * 3 + ["sum"] * 3
    assert list(table["of"])[3:] == [
        "units of contributions", "units of activations", "modes of activations"
    ]  # fmt: skip


def test_several_modes_of_one_quantity_are_told_apart(modes):
    several = [replace(modes, name="sae"),
               replace(modes, loadings=modes.loadings[torch.randperm(80)], name="nmf")]  # fmt: skip
    table = against_units(several).set_index("of")
    names = ["modes of contributions (sae)", "modes of contributions (nmf)"]
    assert list(table.index)[2:] == names
    alone = [against_units([one]).set_index("of").loc["modes of contributions"] for one in several]
    assert table.loc[names, "chosen"].tolist() == [one["chosen"] for one in alone]
    assert alone[0]["chosen"] > alone[1]["chosen"]


def test_modes_that_cannot_be_compared(modes):
    with pytest.raises(DataError, match="against_units: expected modes of one site and store; got"):
        against_units([])
    other = replace(modes, site=replace(modes.site, name="y"))
    with pytest.raises(DataError, match=r"expected modes of one site and store; got x of .*, y of"):
        against_units([modes, other])
    half = modes.store.labels.clone()
    few = replace(modes, held_out=(half == 0))
    with pytest.raises(DataError, match="expected two labels or more with two samples on either"):
        against_units([few])
