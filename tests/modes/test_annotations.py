"""Names that people give survive a fit with other numbers, and go with one mode."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from condec.basis.errors import DataError, OptionError, StoreError
from condec.dictionary import import_dictionary
from condec.modes import Modes
from condec.modes.annotations import (
    FILE,
    Annotation,
    annotate,
    annotations,
    read_names,
    write_names,
)  # fmt: skip
from condec.network import Site
from condec.store import RunFolder

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def modes(unchecked: None) -> Modes:
    atoms = torch.rand(5, 20, generator=torch.Generator().manual_seed(0)) ** 4
    return Modes(
        atoms=atoms, loadings=torch.rand(9, 5), ids=torch.arange(5),
        held_out=torch.zeros(9, dtype=torch.bool), store=None, site=Site("block"),
        sign="positive", quantity="contribution", n_modes=5,
    )  # type: ignore[arg-type]  # fmt: skip


def test_entries_follow_their_atoms(modes: Modes, tmp_path: Path) -> None:
    assert annotations(tmp_path, modes) == {}
    annotate(tmp_path, modes, 1, name="violin", note="bow, too", group="music")
    annotate(tmp_path, modes, 3, name="hen")
    order = torch.tensor([3, 0, 4, 1])  # one is gone, all have other numbers and sizes
    noise = 0.01 * torch.rand(4, 20)
    again = replace(modes, atoms=2 * modes.atoms[order] + noise, loadings=modes.loadings[:, order])
    found = annotations(tmp_path, again)
    assert {row: one.name for row, one in found.items()} == {0: "hen", 3: "violin"}
    assert (found[3].note, found[3].group) == ("bow, too", "music")
    assert 0.99 < found[3].cosine <= 1.0001
    without = replace(modes, atoms=modes.atoms[[0, 2, 4]], loadings=modes.loadings[:, :3])
    assert annotations(tmp_path, without) == {}
    assert annotations(tmp_path, replace(modes, site=Site("other"))) == {}
    annotate(tmp_path, again, 0, name="hen, from afar")  # in place of what was said
    annotate(tmp_path, again, 3)  # nothing: removed
    assert {r: one.name for r, one in annotations(tmp_path, modes).items()} == {3: "hen, from afar"}
    assert Annotation().cosine == 1.0
    (entry,) = read_names(tmp_path)["block"]
    assert (entry["mode"], entry["dictionary"]) == (0, "")  # of the modes it was said of


def test_entries_of_the_same_dictionary_go_by_number(modes: Modes, tmp_path: Path) -> None:
    atoms = modes.atoms[:1].repeat(5, 1)  # all alike
    alike = replace(modes, atoms=atoms, dictionary="digest", ids=torch.tensor([4, 7, 8, 9, 11]))
    annotate(tmp_path, alike, 3, name="the fourth")
    assert {row: one.name for row, one in annotations(tmp_path, alike).items()} == {3: "the fourth"}
    other = replace(alike, dictionary="another")
    assert len(annotations(tmp_path, other)) == 1


def test_what_is_said_of_one_learner_is_not_said_of_another(modes: Modes, tmp_path: Path) -> None:
    sae, nmf = (import_dictionary(noise * torch.rand(5, 20) + modes.atoms) for noise in (0.0, 0.02))
    of_sae = replace(modes, dictionary=sae.digest)
    of_nmf = replace(modes, atoms=nmf.atoms, dictionary=nmf.digest)
    annotate(tmp_path, of_sae, 2, name="violin")
    assert {r: one.name for r, one in annotations(tmp_path, of_nmf).items()} == {2: "violin"}
    sae.save(RunFolder(tmp_path).modes("block", "sae"))
    nmf.save(RunFolder(tmp_path).modes("block", "nmf"))
    assert annotations(tmp_path, replace(of_nmf, dictionary="before")) == {}
    assert annotations(tmp_path, of_nmf) == {}
    annotate(tmp_path, of_nmf, 2, name="bow")
    assert {r: one.name for r, one in annotations(tmp_path, of_sae).items()} == {2: "violin"}
    assert {r: one.name for r, one in annotations(tmp_path, of_nmf).items()} == {2: "bow"}
    annotate(tmp_path, of_nmf, 2)
    assert [one["name"] for one in read_names(tmp_path)["block"]] == ["violin"]


def test_other_files_and_rows_are_refused(modes: Modes, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no mode in row 5; 5 modes are alive"):
        annotate(tmp_path, modes, 5, name="x")
    (tmp_path / FILE).write_text('{"block": [{"name": "x"}]}')
    with pytest.raises(StoreError, match=r"names\.json: cannot be read as names of modes"):
        annotations(tmp_path, modes)


def test_names_go_from_run_to_run(modes: Modes, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    assert read_names(here) == {}
    annotate(here, modes, 1, name="violin", group="music")
    annotate(there, replace(modes, site=Site("other")), 0, name="kept")
    write_names(there, read_names(here))
    assert annotations(there, modes) == annotations(here, modes)
    assert [*read_names(there)] == ["other", "block"]
    write_names(there, read_names(here), alone=True)
    assert read_names(there) == read_names(here)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"block": [{"name": "x"}]}, "KeyError: 'atom'"),
        ({"block": 3}, "not iterable"),
        ({"block": [[]]}, "indices must be"),
        ({"block": [{"name": 3, "atom": {}}]}, "names are text"),
        ({"block": [{"note": "x" * 10_001, "atom": {}}]}, "up to 10,000 characters"),
        ({"block": [{"name": "\ud800", "atom": {}}]}, "surrogates not allowed"),
        ({"block": [{"atom": {"-1": 1.0}}]}, "an atom is finite, of units from 0"),
        ({"block": [{"atom": {"1": float("nan")}}]}, "an atom is finite"),
        ({"block": [{"atom": {"one": 1.0}}]}, "invalid literal"),
        ([], "no attribute 'items'"),
        ({"block": [{"atom": {}, "dictionary": ["q"]}]}, "dictionary is text"),
        ({"block": [{"atom": {}, "mode": 1.5}]}, "mode is a whole number"),
        ({"block": [{"atom": {}, "mode": float("nan")}]}, "mode is a whole number"),
        ({"block": [{"atom": {}, "size": 1, "colour": 2}]}, "an entry has no colour, size"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path: Path, record: object, problem: str) -> None:
    with pytest.raises(DataError, match=f"expected entries by site.*{problem}"):
        write_names(tmp_path, record)  # type: ignore[arg-type]
    assert not (tmp_path / FILE).exists()


def test_an_entry_may_lack_its_number(modes: Modes, tmp_path: Path) -> None:
    known = replace(modes, dictionary="digest")
    annotate(tmp_path, known, 2, name="hen")
    (entry,) = read_names(tmp_path)["block"]
    del entry["mode"]
    write_names(tmp_path, {"block": [entry]})
    assert [*annotations(tmp_path, known)] == [2]


def test_modes_are_whole_numbers(tmp_path: Path) -> None:
    write_names(tmp_path, {"block": [{"name": "x", "atom": {}, "mode": 3.0}]})
    assert '"mode": 3.0' not in (tmp_path / FILE).read_text()
    assert read_names(tmp_path)["block"][0]["mode"] == 3


def test_long_names_are_refused(modes: Modes, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="up to 10,000 characters"):
        annotate(tmp_path, modes, 1, note="x" * 10_001)
