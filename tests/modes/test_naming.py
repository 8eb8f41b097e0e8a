"""Names of modes: what is planted is found at its level; what is not sure has no name."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jaxtyping
import pandas
import pytest
import torch

from condec.basis.errors import DataError, OptionError
from condec.modes import Hierarchy, Modes
from condec.modes.naming import UNNAMED, Meaning, halves, meaning
from condec.modes.probing import probe
from condec.modes.properties import Properties
from condec.modes.statistics import mode_statistics
from condec.network import Site

GROUPS = Hierarchy(("x",) * 3 + ("y",) * 3 + ("z",) * 2, (("x", "top"), ("y", "top")))
NAMES = ("crane", "b", "c", "crane", "e", "f", "g", "h")
PLANTED = ["label 0", "label 3", "x", "y", "top", "hue: u", "noise", "dead half"]


class SmallStore:
    """A store, as far as modes need one here."""

    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels
        self.sample_ids = tuple(str(row) for row in range(len(labels)))
        self.predictions = labels


@pytest.fixture(scope="module")
def modes() -> Iterator[Modes]:
    jaxtyping.config.update("jaxtyping_disable", True)  # the store is none
    yield planted_modes()
    jaxtyping.config.update("jaxtyping_disable", False)


def planted_modes() -> Modes:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    member = GROUPS.membership()[labels]
    hue = torch.arange(400) % 5 == 0
    of = [labels == 0, labels == 3, *(member[:, GROUPS.names.index(n)] for n in ("x", "y", "top"))]
    noise = torch.rand(400, 8, generator=generator)
    columns = [one.float() + 0.5 * noise[:, i] for i, one in enumerate([*of, hue])]
    loadings = torch.stack([*columns, noise[:, 6], noise[:, 7] * (noise[:, 7] > 0.97)], 1)
    held_out = torch.rand(400, generator=generator) < 0.5
    atoms = torch.eye(8, 12)
    atoms[1] = atoms[0] + 0.1 * atoms[2]
    return Modes(
        atoms=atoms, loadings=loadings, ids=torch.arange(8) + 10, held_out=held_out,
        store=SmallStore(labels), site=Site("block"), sign="positive",
        quantity="contribution", n_modes=20,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def found(modes: Modes) -> Meaning:
    table = pandas.DataFrame({"hue": ["u" if row % 5 == 0 else "v" for row in range(400)]})
    labels = Properties.of_labels(modes.store.labels, NAMES, GROUPS)
    return meaning(modes, [labels, *Properties.of_table(table)])


pytestmark = pytest.mark.usefixtures("unchecked")


def test_modes_are_found_at_the_level_that_they_were_made_at(found: Meaning) -> None:
    table = found.modes
    assert table["name"].tolist() == ["crane", "crane", "x", "y", "top", "hue: u"] + [UNNAMED] * 2
    assert table["number"].tolist()[:2] == [0, 3]  # two of one name, told apart
    assert table["kind"].tolist()[:6] == ["label"] * 2 + ["superclass"] * 3 + ["attribute"]
    sure = table[:6]
    assert (sure["low"] < sure["correlation"]).all()
    assert (sure["correlation"] < sure["high"]).all()
    assert (sure["q"] <= 0.05).all()
    # Where no label is best, the label and the superclass that come nearest.
    assert table["superclass"][0] == "x"
    assert table["label"][2] in ("crane", "b", "c")
    assert table["label_correlation"][2] < table["correlation"][2]
    assert table["serves"].tolist()[:2] == [1, 1]
    assert table["serves"][2] == 2  # all three would need more samples
    assert table["like_atom"][0] > 0.99
    assert table["like_atom"][6] == 0
    assert table["id"].tolist() == list(range(10, 18))


def test_what_has_a_mode(found: Meaning) -> None:
    table = found.properties.set_index(["kind", "property"])
    assert table.loc[("superclass", "top"), "id"] == 14
    assert bool(table.loc[("attribute", "hue: u"), "covered"])
    assert found.coverage["superclass"] == 0.75  # z has none
    assert not bool(table.loc[("superclass", "z"), "covered"])


def test_what_has_no_discovery_is_given_its_best(modes: Modes, found: Meaning) -> None:
    table = pandas.DataFrame({"hue": ["u" if row % 5 == 0 else "v" for row in range(400)]})
    labels = Properties.of_labels(modes.store.labels, NAMES, GROUPS)
    several = [labels, *Properties.of_table(table)]
    chosen = mode_statistics(modes.loadings, several, rows=~modes.held_out)
    place = int(chosen.correlation[6].argmax())
    noise = found.modes.loc[6]
    assert (noise["name"], noise["q"] > found.rate) == (UNNAMED, True)
    assert noise["property"] == chosen.names[place] != chosen.names[0]
    assert noise["chosen"] == float(chosen.correlation[6, place])
    nothing = found.properties[found.properties["modes"] == 0]
    assert len(nothing)
    assert set(nothing["row"]) != {0}
    best = chosen.correlation[:, nothing.index].max(0)
    assert nothing["chosen"].tolist() == best.values.tolist()
    assert nothing["row"].tolist() == best.indices.tolist()
    assert nothing["id"].tolist() == modes.ids[best.indices].tolist()


def test_shuffled_labels_name_nothing(modes: Modes) -> None:
    labels = Properties.of_labels(modes.store.labels, NAMES, GROUPS)
    for seed in range(5):
        table = meaning(modes, labels.shuffled(seed), n_bootstrap=50).modes
        assert set(table["name"]) == {UNNAMED}


def test_a_namer_is_asked_where_something_is_sure(modes: Modes) -> None:
    asked = []

    def namer(top: pandas.DataFrame, atom: torch.Tensor, row: "pandas.Series[Any]") -> str:
        asked.append((len(top), atom.shape[0], row["property"]))
        return f" the {row['property']} mode "

    table = meaning(modes, namer=namer, n_bootstrap=50).modes
    assert table["name"][0] == "the 0 mode"
    assert asked[0] == (10, 12, "0")
    with pytest.raises(OptionError, match="namer: expected a text for mode 10; got 3"):
        meaning(modes, namer=lambda *_: 3, n_bootstrap=5)  # type: ignore[arg-type,return-value]


def test_without_held_out_rows_samples_are_halved_within_labels(modes: Modes) -> None:
    whole = replace(modes, held_out=torch.zeros(400, dtype=torch.bool))
    choose, judge = halves(whole)
    assert not bool((choose & judge).any())
    assert torch.bincount(modes.store.labels[judge]).tolist() == [25] * 8
    assert meaning(whole, n_bootstrap=20).modes["name"][0] == "0"


def test_labels_with_one_sample_are_left_out(modes: Modes) -> None:
    labels = modes.store.labels.clone()
    labels[0] = 9
    assert meaning(modes, Properties.of_labels(labels), n_bootstrap=5).left_out == ("9",)
    with pytest.raises(DataError, match="none of 400 labels or other properties has 2 samples on"):
        meaning(modes, Properties.of_labels(torch.arange(400)))
    with pytest.raises(DataError, match="modes of 400 samples, properties of 5"):
        meaning(modes, Properties.of_labels(torch.arange(5)))
    with pytest.raises(OptionError, match=r"rate must lie between 0 and 1; got 1\.5"):
        meaning(modes, rate=1.5)


def test_one_mode_tells_its_label_and_noise_tells_none() -> None:
    modes = planted_modes()
    units = torch.rand(400, 6, generator=torch.Generator().manual_seed(1))
    modes.store.matrix = lambda *_: units  # type: ignore[method-assign]
    found = probe(modes, (1, 2), labels=[0, 3]).set_index(["of", "label", "k"])["auroc"]
    assert found["loadings"].index.get_level_values("k").tolist() == [1, 2, 8] * 2
    assert found[("loadings", 0, 1)] == 1.0
    assert found[("loadings", 3, 1)] == 1.0
    assert abs(found[("units", 0, 1)] - 0.5) < 0.2
    # A single column is ranked as it is: the area is that of the loadings themselves.
    rows = modes.held_out
    z, has = modes.loadings[rows, 0], modes.store.labels[rows] == 0
    wins = (z[has][:, None] > z[~has]).double().mean()
    assert float(wins) == found[("loadings", 0, 1)]
    with pytest.raises(DataError, match=r"that 2 samples have, and 2 others lack, on .* got \[9\]"):
        probe(modes, labels=[9])
    modes.store.labels = torch.zeros(400, dtype=torch.long)
    with pytest.raises(DataError, match=r"and 2 others lack, on either half; got \[\]"):
        probe(modes)
    with pytest.raises(OptionError, match="ks: expected ascending numbers"):
        probe(modes, (2, 1))


def test_without_modes_in_use_there_is_nothing_to_name(modes: Modes) -> None:
    none = replace(modes, loadings=modes.loadings[:, :0], atoms=modes.atoms[:0], ids=modes.ids[:0])
    with pytest.raises(DataError, match="block: no input uses any of its modes"):
        meaning(none)


def test_a_column_known_on_one_half_only_names_nothing_and_takes_no_name(modes: Modes) -> None:
    labels = Properties.of_labels(modes.store.labels, NAMES, GROUPS)
    held_out = modes.held_out.tolist()
    table = pandas.DataFrame({"late": ["u" if row else None for row in held_out]})
    found = meaning(modes, [labels, *Properties.of_table(table)]).modes
    assert found["name"].tolist() == meaning(modes, labels).modes["name"].tolist()


def test_modes_of_positions_are_probed_against_units_of_samples() -> None:
    modes = replace(planted_modes(), rows="positions")
    units = modes.loadings.repeat(1, 2)
    given = {("samples",): units, ("positions",): units.repeat(3, 1)}
    modes.store.matrix = lambda *of: given[of[3:] or ("samples",)]  # type: ignore[method-assign]
    found = probe(modes, (1,), labels=[0]).set_index(["of", "k"])["auroc"]
    assert found[("units", 1)] == found[("loadings", 1)] == 1.0


def test_a_mode_without_a_name_says_why(modes: Modes, found: Meaning) -> None:
    assert (found.modes["why"] == "").tolist() == (found.modes["name"] != UNNAMED).tolist()
    noise = found.modes.loc[6]
    assert noise["why"].startswith(f"{noise['property']!r} fits it best (correlation")
    assert f"discovery rate is {noise['q']:.2g}, and at most 0.05 is asked for" in noise["why"]


@pytest.mark.parametrize(
    ("n_judge", "words"),
    [
        (1, "only 11 of 200 training samples and 1 of 200 held-out samples have it: 2 or more of"),
        (3, "does not lie above 0.2: only 3 of 200 held-out samples have it; 4 or more are needed"),
        (4, ""),
    ],
)
def test_a_perfect_mode_of_a_rare_label_is_named_or_says_what_is_missing(
    modes: Modes, n_judge: int, words: str
) -> None:
    held_out = torch.arange(400) >= 200
    labels = torch.arange(400) % 8
    labels[[*range(11), *range(200, 200 + n_judge)]] = 9
    loadings = (labels == 9).float()[:, None].repeat(1, len(modes))
    rare = replace(modes, held_out=held_out, loadings=loadings)
    row = meaning(rare, Properties.of_labels(labels), n_bootstrap=2000).modes.loc[0]
    assert row["name"] == ("9" if n_judge == 4 else UNNAMED)
    assert words in row["why"]
    assert bool(row["why"]) == bool(words)
    assert not words or row["why"].startswith("'9' fits it best (correlation 1.00")
