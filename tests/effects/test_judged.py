"""Dictionaries in one table: what is right is told from what is random."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.dictionary import import_dictionary
from condec.effects.judged import faithfulness_areas, judge
from condec.modes import Modes

FAST = {"n_bootstrap": 20, "n_random": 2, "n_shuffles": 2}


@pytest.fixture
def candidates(chain) -> dict[str, Modes]:
    store, held_out = chain.modes.store, chain.modes.held_out.nonzero().flatten()
    n_units = chain.modes.atoms.shape[1]
    random = torch.rand(4, n_units, generator=torch.Generator().manual_seed(3))
    made = {
        "random": Modes.build(
            import_dictionary(random, encoder="component"), store, "hidden", held_out_rows=held_out
        ),
        "units": Modes.build(
            import_dictionary(torch.eye(n_units), encoder="component"), store, "hidden",
            quantity="activation",
        ),
    }  # fmt: skip
    return {"modes": chain.modes, "chance": made["random"], "units": made["units"]}


def test_one_row_a_dictionary_and_the_baselines(chain, candidates) -> None:
    table = judge(candidates, chain.model, chain.data, **FAST).set_index("name")
    assert table.index.tolist() == [
        "modes", "chance", "units", "mean_contribution", "contribution_difference", "random"
    ]  # fmt: skip
    assert table.loc["modes", "correlation"] > 0.9 > table.loc["chance", "correlation"]
    assert table.loc["modes", "correlation_shuffled"] < 0.6
    assert table.loc["units", "r2"] == pytest.approx(1.0)
    # Two units a label hold it: taken away first, kept first.
    assert table.loc["modes", "ablate"] < table.loc["chance", "ablate"]
    assert table.loc["modes", "preserve"] > table.loc["chance", "preserve"]
    assert table.loc["modes", "cpr"] > table.loc["random", "cpr"]
    assert table.loc["modes", "cmd"] < table.loc["random", "cmd"]
    assert table.loc["modes", ["cpr_by_size", "cmd_by_size"]].notna().all()
    assert table.loc[["mean_contribution", "random"], "alive"].isna().all()
    without = judge(candidates, **FAST)
    assert without["name"].tolist() == ["modes", "chance", "units"]
    assert "cpr" not in without


def test_a_dictionary_that_is_dead_here_is_a_row_without_figures(chain) -> None:
    modes = chain.modes
    dead = replace(modes, loadings=modes.loadings[:, :0], atoms=modes.atoms[:0], ids=modes.ids[:0])
    table = judge({"modes": modes, "dead": dead}, **FAST).set_index("name")
    assert table.loc["dead", "alive"] == 0
    assert table.loc["dead", ["named", "covered", "correlation"]].isna().all()
    assert table.loc["modes", ["named", "covered", "correlation"]].notna().all()


def test_areas_of_faithfulness() -> None:
    """A circuit that holds all is 1 and 0; by trapezoids, of a curve that rises and overshoots."""
    x = np.array([0.0, 0.5, 1.0])
    found = faithfulness_areas(x, np.array([0.2, 1.4, 1.0]))
    f = [0.0, 1.5, 1.0]
    assert found["cpr"] == pytest.approx(0.25 * (f[0] + f[1]) + 0.25 * (f[1] + f[2]))
    assert found["cmd"] == pytest.approx(0.25 * (1 + 0.5) + 0.25 * 0.5)
    assert np.isnan(faithfulness_areas(x, np.ones(3))["cpr"])


def test_what_cannot_be_compared_is_refused(chain, candidates) -> None:
    modes = candidates["modes"]
    with pytest.raises(OptionError, match="no candidates"):
        judge({})
    with pytest.raises(OptionError, match="random: name of a baseline"):
        judge({"random": modes})
    with pytest.raises(OptionError, match="sae by size: ends as a ranking of another does"):
        judge({"sae by size": modes})
    with pytest.raises(OptionError, match="fractions go from 0 to 1"):
        judge(candidates, fractions=(0.1, 1.0))
    with pytest.raises(DataError, match="other was fitted to other rows than the first"):
        judge({"modes": modes, "other": replace(modes, held_out=~modes.held_out)})
    away = Modes.build(
        import_dictionary(torch.eye(modes.atoms.shape[1]), encoder="component"),
        modes.store,
        "again",
    )
    with pytest.raises(
        DataError, match=r"other is of again in .* compare dictionaries of one site"
    ):
        judge({"modes": modes, "other": away})
