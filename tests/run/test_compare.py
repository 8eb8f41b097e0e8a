"""Two run folders compared, number by number."""

import shutil
from dataclasses import replace

import numpy as np
import pandas
import pytest
import zarr
from typer.testing import CliRunner

from condec import cli
from condec.attribution import IntegratedGradients
from condec.basis.errors import DataError, StoreError
from condec.dictionary import DeadModesWarning, load_dictionary
from condec.modes import Modes
from condec.run.compare import _matched as matched
from condec.run.compare import compare_modes, compare_runs, modes_in_words
from condec.store import RandomWeights, RunFolder, Store, collect_twin
from condec.testing.models import small_resnet
from small_runs import SITES, record, small_inputs, small_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("compare") / "a")


def command(*folders):
    return CliRunner().invoke(cli.app, ["compare", *map(str, folders)])


def test_a_copy_is_equal(made, tmp_path):
    shutil.copytree(made, tmp_path / "b")
    (tmp_path / "b" / "modes" / "block1" / ".kmeans.new" / "modes.zarr").mkdir(parents=True)
    assert compare_runs(made, tmp_path / "b") == ()
    result = command(made, tmp_path / "b")
    assert (result.exit_code, result.stdout) == (0, "no difference\n")


def test_every_kind_of_difference_is_told(made, tmp_path):
    other = tmp_path / "b"
    shutil.copytree(made, other)
    file = other / "analysis" / "statistics.parquet"
    table = pandas.read_parquet(file)
    table.loc[1, "hoyer_contribution"] += 0.25
    table.to_parquet(file)
    place = next((other / "modes").glob("*/*"))
    fitted = load_dictionary(place)
    metrics = {name: replace(q, cosine=0.0) for name, q in fitted.training.metrics.items()}
    replace(fitted, training=replace(fitted.training, metrics=metrics)).save(place)
    array = zarr.open_group(place / "modes.zarr")["loadings"]
    array[3, 0] += np.float32(0.5)
    (other / "analysis" / "control" / "block1" / "sae.parquet").unlink()
    maps = next((other / "analysis" / "maps").glob("*/*.npz"))
    with np.load(maps) as arrays:
        kept = dict(arrays)
    np.savez(maps, **kept | {"total": kept["total"][:1]})
    record(other)
    found = {(one.part, one.name.partition(": ")[0]): one.text for one in compare_runs(made, other)}
    assert found["statistics", "statistics"] == "1 of 2 values, by up to 0.25"
    modes = (place / "modes.zarr").relative_to(other).as_posix()
    assert found["arrays", modes].endswith("values, by up to 0.5")
    assert found["control", "control/block1/sae"] == "only in the first run"
    assert found["quality", place.relative_to(other).as_posix()].startswith("1 of 1 values")
    assert " against " in found["arrays", maps.relative_to(other).as_posix()]
    assert len(found) == 5
    result = command(made, other)
    assert result.exit_code == 1
    assert "statistics: hoyer_contribution: 1 of 2 values, by up to 0.25" in result.stdout


def test_values_that_are_missing_in_both_do_not_count(made, tmp_path):
    for run, second in ((made, 1.0), (tmp_path / "b", 2.0)):
        folder = shutil.copytree(made, run) if run != made else made
        table = pandas.DataFrame({"x": [float("nan"), second, float("inf")]})
        table.to_parquet(folder / "analysis" / "more.parquet")
        record(folder)
    (found,) = compare_runs(made, tmp_path / "b")
    (made / "analysis" / "more.parquet").unlink()
    record(made)
    assert found.text == "1 of 3 values, by up to 1"


def test_damaged_files_are_refused(made, tmp_path):
    other = tmp_path / "b"
    shutil.copytree(made, other)
    for name in ("statistics.parquet", "maps/block1/sae.npz"):
        file = other / "analysis" / name
        content = file.read_bytes()
        file.write_bytes(content[:-20])
        with pytest.raises(StoreError, match=f"{file.name}: not what 'by hand 1' has made"):
            compare_runs(made, other)
        file.write_bytes(content)


def test_missing_shards_are_refused_before_what_was_made_of_them(made, tmp_path):
    other = shutil.copytree(made, tmp_path / "b")
    (other / "contributions.zarr" / "manifest" / "shard-00000.json").unlink()
    with pytest.raises(StoreError, match="incomplete: 1 of 1 shards are missing"):
        compare_runs(made, other)


def test_other_data_differ_in_the_recipe(made, tmp_path):
    other = small_run(tmp_path / "b", bad=[3], links=())
    found = {(one.part, one.name): one.text for one in compare_runs(made, other)}
    assert found["recipe", "data"].startswith("1 of 1 values, first ")
    assert "only in the first run" in found.values()


def test_folders_that_are_no_runs(made, tmp_path):
    with pytest.raises(StoreError, match="no contributions yet"):
        compare_runs(made, tmp_path)
    assert command(tmp_path, made).exit_code == 2


def test_modes_are_matched_on_the_same_inputs(made, tmp_path):
    shutil.copytree(made, tmp_path / "b")
    table = compare_modes(made, tmp_path / "b")
    assert set(table["site"]) == {"block1", "block2:input"}
    assert (table["first"] == table["second"]).mean() > 0.9  # but for modes that are copies
    assert table["correlation"].min() > 0.99
    assert table["cosine"].median() == pytest.approx(1.0)
    result = CliRunner().invoke(cli.app, ["compare", str(made), str(tmp_path / "b"), "--modes"])
    assert result.exit_code == 0
    assert "block1: " in result.stdout
    assert "median correlation 1.00, by chance at most 0." in result.stdout
    lines = list(modes_in_words(table.assign(matched=False)))
    assert lines[1].startswith("block1: only the first: ")


def test_sites_without_modes_in_use_are_told(made, tmp_path):
    other = RunFolder(shutil.copytree(made, tmp_path / "b"))
    store = Store.open(other.store)

    def die(site):
        place = other.modes(site, other.learners(site)[0])
        modes = Modes.load(place, store)
        replace(
            modes, loadings=modes.loadings[:, :0], atoms=modes.atoms[:0], ids=modes.ids[:0]
        ).save(place)
        record(other.path)

    die("block1")
    with pytest.warns(DeadModesWarning, match="uses any mode of one of them at block1; left out"):
        table = compare_modes(made, other.path)
    assert {*table["site"]} == {"block2:input"}
    die("block2:input")
    with pytest.raises(DataError, match="no input uses any mode of one of them at block1, block2"):
        compare_modes(made, other.path)


def test_modes_that_only_one_run_has(made):
    run = RunFolder(made)
    modes = Modes.load(run.modes("block1", run.learners("block1")[0]), Store.open(run.store))
    fewer = replace(modes, loadings=modes.loadings[:, 1:], atoms=modes.atoms[1:], ids=modes.ids[1:])
    table = matched(modes, fewer)
    (alone,) = table[table["second"] < 0]["first"]
    assert (alone, len(table)) == (int(modes.ids[0]), len(modes))
    assert not table["matched"].iloc[-1]


def test_modes_of_other_inputs_are_refused(made, tmp_path):
    other = small_run(tmp_path / "c", links=("fit",), bad=(3,))
    with pytest.raises(DataError, match=r"different data: .* Collect both from the same data"):
        compare_modes(made, other)


def test_a_run_against_its_own_twin(made, tmp_path):
    with pytest.raises(DataError, match=r"has no twin with random weights .*--twin random-weights"):
        compare_modes(made)
    folder = RunFolder(shutil.copytree(made, tmp_path / "t"))
    options = {"method": IntegratedGradients(steps=4), "progress": False, "on_bad": "skip"}
    collect_twin(
        RandomWeights(), small_resnet(), small_inputs(), SITES, of=Store.open(folder.store),
        out=folder.twin("random-weights"), **options,
    )  # fmt: skip
    table = compare_modes(folder.path)
    assert set(table["site"]) == {"block1", "block2:input"}
    assert (table["learner_second"].str.endswith(", random-weights")).all()
    assert table["correlation"].dropna().max() < 0.999
    result = CliRunner().invoke(cli.app, ["compare", str(folder.path), "--modes"])
    assert (result.exit_code, "modes in both" in result.stdout) == (0, True)
    for more in ([], ["--modes", "--out", str(tmp_path / "page")]):
        refused = CliRunner().invoke(cli.app, ["compare", str(folder.path), *more])
        assert refused.exit_code == 2
        assert "give two run folders; one alone goes with --modes" in refused.output
