"""Records of modes: what they say is what Modes says; pictures stand where tiles say."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condec.basis.errors import DataError
from condec.basis.npz import load_record, save_record
from condec.explanation import SiteMaps
from condec.figures.pixels import map_scale, overlay
from condec.modes import Modes, annotate
from condec.report import build_report, figures, size_in_words
from condec.report.numbers import atom_of, lower
from condec.report.reading import read_run
from condec.report.sheets import Sheets
from condec.report.words import target_words
from condec.store import RunFolder, Store
from small_runs import record as note_files
from small_runs import small_run

KEY = "block2%3Ainput/kmeans"


def loaded(report: Path, name: str):
    return json.loads((report / "data" / f"{name}.js").read_text().splitlines()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("records") / "run")


@pytest.fixture(scope="module")
def modes(folder: Path) -> Modes:
    place = RunFolder(folder)
    return Modes.load(place.modes("block2:input", "kmeans"), Store.open(place.store))


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", lambda figure, path: path.touch())
        return build_report(folder).parent


def pairs(flat: list[float]) -> list[tuple[int, float]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def test_inputs_are_those_that_modes_name(report: Path, modes: Modes) -> None:
    ids = loaded(report, f"{KEY}/modes")["columns"]["id"]
    for number, record in zip(ids, loaded(report, f"{KEY}/0"), strict=True):
        row = modes.ids.tolist().index(number)
        top, typical, drawn, counter = map(pairs, record[2:6])
        wanted = modes.top(row, 6)
        assert [at for at, _ in top] == wanted["row"].tolist()
        assert [value for _, value in top] == pytest.approx(wanted["loading"].tolist(), rel=6e-3)
        assert [at for at, _ in drawn] == modes.random(row, 3)["row"].tolist()
        found = modes.counter_examples(row, 3)
        assert [at for at, _ in counter] == found["row"].tolist()
        assert [v for _, v in counter] == pytest.approx(found["activation"].tolist(), rel=6e-3)
        assert [at for at, _ in typical] == modes.typical(row, 3)["row"].tolist()


def test_neighbours_labels_and_users(report: Path, modes: Modes) -> None:
    ids = loaded(report, f"{KEY}/modes")["columns"]["id"]
    atoms = modes.atoms / modes.atoms.norm(dim=1, keepdim=True)
    train = modes.correlation(split="train")
    for number, record in zip(ids, loaded(report, f"{KEY}/0"), strict=True):
        row = modes.ids.tolist().index(number)
        assert number not in dict(pairs(record[6]))
        for other, value in pairs(record[6]):
            cosine = atoms[row] @ atoms[modes.ids.tolist().index(other)]
            assert value == pytest.approx(1000 * float(cosine), abs=0.6)
        label, value, held, low, high = record[1][:5]
        assert label == int(train[row].argmax())
        assert value == pytest.approx(1000 * float(train[row].max()), abs=0.6)
        assert low is None or low <= held <= high
        used = modes.loadings[:, row] > 0
        assert record[8] == [int(used[~modes.held_out].sum()), int(used[modes.held_out].sum())]
    first = loaded(report, "block1/sae/modes")
    assert first["next"] == KEY
    (place,) = [n for n, at in enumerate(first["columns"]["id"]) if at == first["columns"]["id"][0]]
    beyond = dict(pairs(loaded(report, "block1/sae/0")[place][7]))
    store = Store.open(RunFolder(report.parent).store)
    before = Modes.load(RunFolder(report.parent).modes("block1", "sae"), store)
    row = before.ids.tolist().index(first["columns"]["id"][place])
    for number, r in beyond.items():
        both = torch.stack(
            [before.loadings[:, row], modes.loadings[:, modes.ids.tolist().index(number)]]
        )
        assert r == pytest.approx(1000 * float(torch.corrcoef(both)[0, 1]), abs=0.6)


def test_atoms_are_kept_by_their_largest_entries() -> None:
    atom = torch.randn(70_000, generator=torch.Generator().manual_seed(0))
    for width, kind, size in ((70_000, "<u4", 4), (500, "<u2", 2), (256, "u1", 1)):
        scale, text = atom_of(atom[:width])
        content = base64.b64decode(text)
        units = np.frombuffer(content[: 64 * size], kind)
        values = np.frombuffer(content[64 * size :], np.int8) / 127 * scale
        assert sorted(units) == sorted(atom[:width].abs().topk(64).indices.tolist())
        np.testing.assert_allclose(values, atom[units.astype(int)], atol=scale / 127)


def test_lower_counts_in_rows() -> None:
    values = torch.tensor([[1.0, 1.0, 3.0, 0.0, 1.0], [2.0, 0.0, 1.0, 5.0, 0.0]])
    wanted = [[sum(a < b for a in row) for b in row] for row in values.tolist()]
    assert lower(*values.sort(1, descending=True)).tolist() == wanted


def test_labels_have_their_modes(report: Path, modes: Modes) -> None:
    listed = loaded(report, "labels")["rows"]
    counts = torch.bincount(modes.store.labels)
    assert [row[:2] for row in listed] == [[n, int(c)] for n, c in enumerate(counts)]
    keys, train = loaded(report, "run")["dictionaries"], modes.correlation(split="train")
    for label in range(3):
        found = loaded(report, "labels/0")[str(label)]
        mine = [one for one in found["modes"] if keys[one[0]] == KEY]
        assert mine[0][1] == int(modes.ids[train[:, label].argmax()])
        assert {site for site, *_ in found["control"]} == {"block1", "block2:input"}


def test_maps_say_what_they_are_of(report: Path) -> None:
    maps = read_run(report.parent).sites[1].parts[0].maps
    ids = loaded(report, f"{KEY}/modes")["columns"]["id"]
    every = dict(zip(ids, loaded(report, f"{KEY}/0"), strict=True))
    for place, number in enumerate(maps.mode_ids.tolist()):
        said = every[number][11]
        wanted = maps.loadings[place, : len(said["rows"])].tolist()
        assert said["loadings"] == pytest.approx(wanted, rel=1e-3)
        assert said["target"] == target_words(maps.target)
        assert (said["signs"], said["places"]) == (True, True)  # 8 pixels a side


def test_typical_drawn_and_counter_examples_have_the_first_map(report: Path, modes: Modes) -> None:
    maps = read_run(report.parent).sites[1].parts[0].maps
    ids = loaded(report, f"{KEY}/modes")["columns"]["id"]
    every = dict(zip(ids, loaded(report, f"{KEY}/0"), strict=True))
    for place, number in enumerate(maps.mode_ids.tolist()):
        record, said = every[number], every[number][11]
        rows = {row for kind in record[2:6] for row, _ in pairs(kind)[:3]}
        assert {*map(str, rows)} <= {*said["of"]}
        file, _, _, width, height = said["sheet"]
        with Image.open(report / file) as opened:
            sheet = np.asarray(opened.convert("RGB"))
        scale = map_scale([one.numpy() for one in maps.places[place]])
        for sample, values in zip(
            maps.others[place].flatten().tolist(), maps.of_others[place].flatten(0, 1), strict=True
        ):
            if sample < 0:
                continue
            drawn = overlay(values.numpy(), maps.pictures[sample].numpy(), scale=scale)
            at = said["of"][str(modes.store.sample_ids.index(maps.ids[sample]))]
            y, x = height * (at // len(said["rows"])), width * (at % len(said["rows"]))
            np.testing.assert_array_equal(sheet[y : y + height, x : x + width], drawn)


@pytest.mark.parametrize("placed", [True, False])
def test_texts_have_colours_where_there_are_place_maps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placed: bool
) -> None:
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    own = shutil.copytree(folder, tmp_path / "run")
    file = RunFolder(own).maps("block2:input", "kmeans")
    maps, shown = load_record(file, SiteMaps), (2,) if placed else (0, 0)
    none = dict.fromkeys(("total", "positive", "negative"), maps.total[..., :0, :0])
    of_texts = replace(
        maps, texts=(("ab", "cd"),) * len(maps.ids), pictures=maps.pictures[:, :0, :0],
        places=torch.ones(*maps.samples.shape, 2) if placed else None,
        of_others=-torch.ones(*maps.others.shape, *shown), **none,
    )  # fmt: skip
    save_record(file, of_texts)
    note_files(own)
    report = build_report(own).parent
    page = (report / "sites" / "block2%3Ainput.html").read_text()
    assert "each on the ends of the texts that use it most" in page
    assert ("Tokens are coloured where the mode" in page) == placed
    maps_of = [record[11] for record in loaded(report, f"{KEY}/0") if record[11]]
    colours = {colour for said in maps_of for text in said["texts"] for _, colour, _ in text}
    assert len(colours) == 1
    assert colours.pop().endswith(",0.00)") != placed
    for said in maps_of:
        strongest, others = (
            said["rows"],
            [row for row in said["of"] if int(row) not in said["rows"]],
        )
        assert {*map(str, strongest)} < {*said["of"]}
        values = {value for row in others for _, _, value in said["of"][row]}
        assert values == {"\u22121.00" if placed else "0.00"}


def test_kinds_are_of_the_last_dictionary_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    folder = small_run(tmp_path / "run", links=("fit",))
    place = RunFolder(folder)
    files = place.modes("block2:input", "kmeans")
    found = Modes.load(files, Store.open(place.store))
    none = {"atoms": found.atoms[:0], "loadings": found.loadings[:, :0], "ids": found.ids[:0]}
    replace(found, **none).save(files)
    note_files(folder)
    kinds = loaded(build_report(folder).parent, "labels/0")["0"]["kinds"]
    assert kinds[0] == "block1/sae"

    def refuse(modes: Modes, label: int) -> None:
        raise DataError(f"prototypes: label {label} is odd")

    monkeypatch.setattr("condec.report.records.prototypes", refuse)
    kinds = loaded(build_report(folder).parent, "labels/0")["1"]["kinds"]
    assert kinds == "prototypes: label 1 is odd"


def test_inputs_are_listed_once_with_their_pictures(report: Path, modes: Modes) -> None:
    inputs, run = loaded(report, "inputs/0"), read_run(report.parent)
    for row, (name, label, prediction, _, page) in inputs.items():
        assert name == modes.store.sample_ids[int(row)]
        assert (label, prediction) == (
            modes.store.labels[int(row)],
            modes.store.predictions[int(row)],
        )
        assert page == ""
    maps = run.sites[1].parts[0].maps
    for name, picture in zip(maps.ids, maps.pictures.numpy(), strict=True):
        file, width, height, *box = inputs[str(modes.store.sample_ids.index(name))][3]
        with Image.open(report / file) as sheet:
            assert sheet.size == (width, height)
            x, y, across, down = box
            found = np.asarray(sheet.convert("RGB"))[y : y + down, x : x + across]
        np.testing.assert_array_equal(found, picture)  # small ones lose nothing


def test_names_are_told_of_which_mode_of_today(folder: Path, modes: Modes, tmp_path: Path) -> None:
    annotate(folder, modes, 2, name="after another fit")
    file = folder / "names.json"
    kept = json.loads(file.read_text())
    kept["block2:input"][0] |= {"mode": 77, "dictionary": "of before"}
    file.write_text(json.dumps(kept | {"gone": kept["block2:input"]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", lambda figure, path: path.touch())
        said = loaded(build_report(folder, out=tmp_path / "out").parent, "run")["names"]
    (entry,) = said["block2:input"]
    assert (entry["mode"], entry["dictionary"]) == (int(modes.ids[2]), modes.dictionary)
    assert said["gone"][0]["mode"] == 77
    file.unlink()


def test_sheets_hold_equal_pictures_once(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (70, 9, 7, 3), dtype=np.uint8)
    sheets = Sheets(tmp_path)
    tiles = sheets.inputs({str(n): one for n, one in enumerate(drawn)})
    assert len({tile.file for tile in tiles.values()}) == 2
    again = sheets.inputs({"other name": drawn[3], "new": 255 - drawn[3]})
    assert again["other name"] == tiles["3"]
    assert len(list(tmp_path.rglob("*.webp"))) == 3
    large = np.zeros((600, 300, 3), np.uint8)
    (tile,) = sheets.sheet([large], "a/large.webp", side=100)
    assert (tile.width, tile.height, tile.squares) == (50, 100, False)


def test_sizes_in_words(report: Path) -> None:
    n = sum(file.is_file() for file in report.rglob("*"))
    said = size_in_words(report)
    assert said.startswith(f"{n} files, ")
    for kind in ("pages", "data", "pictures", "figures"):
        assert kind in said
