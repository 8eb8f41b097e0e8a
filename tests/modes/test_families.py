"""Families of modes over sites, by loadings and by flow, and whether another fit has them."""

from dataclasses import replace
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch

from condec.basis.errors import DataError
from condec.modes import Modes
from condec.modes.families import mode_families, same_families
from condec.network import Site


@pytest.fixture(autouse=True)
def _unchecked():
    jaxtyping.config.update("jaxtyping_disable", True)  # the store is none
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def modes_at(site, loadings):
    n, m = loadings.shape
    return Modes(
        atoms=torch.eye(m), loadings=loadings, ids=torch.arange(m) + 10,
        held_out=torch.zeros(n, dtype=torch.bool),
        store=SimpleNamespace(sample_ids=tuple(map(str, range(n)))), site=Site(site),
        sign="positive", quantity="contribution", n_modes=m,
    )  # fmt: skip


@pytest.fixture
def chains():
    """Three sources go through three sites in another order; a fourth mode is new at each."""
    torch.manual_seed(0)
    sources = torch.rand(300, 3)
    orders = ([0, 1, 2], [2, 0, 1], [1, 2, 0])

    def fit(noise):
        return [
            modes_at(f"s{i}", torch.cat([sources[:, order], torch.rand(300, 1)], 1)
                     + noise * torch.rand(300, 4))
            for i, order in enumerate(orders)
        ]  # fmt: skip

    return fit


def test_a_site_without_modes_in_use_has_no_family(chains):
    first, _, last = chains(0.2)
    none = modes_at("s1", torch.zeros(300, 0))
    assert {*mode_families([first, none, last])["site"]} <= {"s0", "s2"}


def test_families_follow_what_was_planted(chains):
    table = mode_families(chains(0.2))
    found = {
        (site, mode): f
        for site, mode, f in zip(table["site"], table["mode"], table["family"], strict=True)
    }
    for source in range(3):
        members = {found[f"s{i}", 10 + order.index(source)]
                   for i, order in enumerate(([0, 1, 2], [2, 0, 1], [1, 2, 0]))}  # fmt: skip
        assert len(members) == 1
    assert table["length"].tolist().count(3) == 9
    assert (table[table["site"] == "s0"]["link"].isna()).all()
    assert table[(table["site"] != "s0") & (table["length"] == 3)]["link"].min() > 0.8
    new = table[table["mode"] == 13]
    assert (new["length"] == 1).all()  # noise of 300 inputs is no partner
    assert new["family"].nunique() == 3


def test_families_are_the_same_in_another_fit_and_not_by_chance(chains):
    one = chains(0.1)
    assert same_families(one, chains(0.3)) == pytest.approx(1.0)
    # Another fit whose second site does other things: what had one family there has another.
    other = chains(0.1)
    order = torch.randperm(300)
    other[2] = modes_at("s2", other[2].loadings[order])
    assert not same_families(one, other) < 0
    assert np.isnan(same_families(one[:1], [modes_at("s0", torch.rand(300, 4))]))
    with pytest.raises(DataError, match="same_families: expected two fits of the same sites"):
        same_families(one, one[::-1])


def test_families_by_flow(chains):
    several = chains(0.2)[:2]
    flow = torch.tensor([[0.0, 0.9, 0.1, 0.0], [0.8, 0.0, 0.0, 0.0],
                         [0.0, 0.7, 0.0, 0.0], [0.0, 0.0, -0.3, 0.0]])  # fmt: skip
    table = mode_families(several, [flow])
    first, second = (table[table["site"] == s]["family"].tolist() for s in ("s0", "s1"))
    assert first[0] == second[1]  # not the third, whose flow there is smaller
    assert first[1] == second[0]
    assert second[2] not in first  # what is taken away is no link
    assert second[3] not in first
    with pytest.raises(DataError, match=r"expected flows of \[\(4, 4\)\]; got \[\(3, 4\)\]"):
        mode_families(several, [flow[:3]])


def test_modes_of_other_inputs(chains):
    one = chains(0.2)
    other = replace(one[1], store=SimpleNamespace(sample_ids=("x",) * 300))
    with pytest.raises(DataError, match="expected a site each; got s0 twice"):
        mode_families([modes_at("s0", torch.rand(20, 4)), modes_at("s0", torch.rand(20, 4))])
    with pytest.raises(DataError, match="mode_families: modes of different inputs"):
        mode_families([one[0], other])
