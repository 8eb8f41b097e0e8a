"""A retina through the chain: what the link writes, and what the page shows of it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.npz import load_record, save_record
from condec.retina import (
    ReceptiveFields,
    Recording,
    RetinaOptions,
    mode_cell_correlation,
    receptive_fields,
)
from condec.retina.combinations import named
from condec.retina.page import Retina
from condec.retina.responses import Responses, respond
from condec.retina.sources import FlipFields
from condec.run import Run, chain, config
from retina_runs import EVENT, PLAN, movie, retina_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return retina_run(tmp_path_factory.mktemp("retina"))


def table(run: Run, part: str, site: str = "relu1") -> pd.DataFrame:
    return pd.read_parquet(run.folder.table("retina", site, "nmf", part))


def test_responses_are_those_of_model_and_recording(run: Run) -> None:
    found = load_record(run.folder.analysis("retina", "responses.npz"), Responses)
    recording = movie().part(0, 125)
    clips = torch.stack([recording.movie[i : i + 5] for i in range(120)])
    with torch.no_grad():
        torch.testing.assert_close(found.rates, run.loaded.model(clips))
    assert found.recorded is not None
    assert recording.rates is not None
    torch.testing.assert_close(found.recorded, recording.rates[5:])
    torch.testing.assert_close(found.events[0], recording.events[EVENT][5:])
    assert (found.cells, found.event_names) == (("a", "b", "c", "<i>d"), (EVENT,))
    assert found.frames.tolist() == list(range(5, 125))
    torch.testing.assert_close(found.seconds[0], torch.tensor(0.05))
    for cell in range(4):
        expected = np.corrcoef(found.rates[:, cell], found.recorded[:, cell])[0, 1]
        assert float(found.correlation[cell]) == pytest.approx(expected, abs=1e-5)


def test_fields_are_at_frames_spread_over_the_movie(run: Run) -> None:
    found = load_record(run.folder.analysis("retina", "fields.npz"), ReceptiveFields)
    assert found.rows.tolist() == list(range(0, 120, 2))
    assert found.spatial.shape == (60, 4, 6, 6)
    again = receptive_fields(run.loaded.model, run.inputs, rows=found.rows, crop=6).aligned()
    torch.testing.assert_close(found.spatial, again.spatial)


def test_tables_of_a_site(run: Run) -> None:
    (modes,) = run.modes(["relu1"])
    responses = load_record(run.folder.analysis("retina", "responses.npz"), Responses)
    cells = table(run, "cells")
    matrix = cells.pivot(index="cell", columns="mode", values="correlation")
    expected = mode_cell_correlation(modes.loadings, responses.rates)
    order = [responses.cells.index(name) for name in matrix.index]
    np.testing.assert_allclose(matrix.to_numpy(), expected[order].numpy(), atol=1e-6)
    assert sorted(set(cells["cell_place"])) == list(range(4))
    assert sorted(set(cells["mode_place"])) == list(range(len(modes)))
    combinations = table(run, "combinations")
    assert combinations["count"].sum() == 120
    used = {int(mode) for name in combinations["combination"] if name for mode in name.split(", ")}
    assert used <= set(modes.ids.tolist())
    shares = table(run, "sources").pivot(index="cell", columns="part", values="share")
    assert {"other modes", "left over", "past the site"} < set(shares)
    assert shares.shape == (4, 6)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(shares["past the site"], 0.0, atol=1e-6)  # relu1 cuts the network
    flips = table(run, "flips")
    assert len(flips) == table(run, "sources")["flips"].sum() > 0
    flip = load_record(run.folder.analysis("retina", "relu1", "nmf", "flip.npz"), FlipFields)
    assert flip.names[0] == flip.names[4] == "the whole"
    assert flip.spatial.shape == (8, 1, 6, 6)
    assert float(flip.polarity[0, 0]) == -float(flip.polarity[4, 0]) != 0


def test_surprisal_is_fitted_on_other_frames(run: Run) -> None:
    from condec.attribution.targets import Surprisal

    recording = movie()
    with torch.no_grad():
        train = run.loaded.model(torch.stack([recording.movie[i : i + 5] for i in range(60, 195)]))
        test = run.loaded.model(torch.stack([recording.movie[i : i + 5] for i in range(120)]))
    torch.testing.assert_close(run.store.target, Surprisal.fit(train).value(test, None), rtol=1e-4,
                               atol=1e-4)  # fmt: skip


def test_a_second_run_keeps_everything_and_other_options_make_the_tables_again(run: Run) -> None:
    assert {o.link: o.state for o in chain(run)}["retina"] == "kept"
    plan = config.from_dict(PLAN | {"retina": PLAN["retina"] | {"threshold": 0.5}},  # type: ignore[operator]
                            folder=run.plan.base)  # fmt: skip
    before = table(run, "combinations")
    outcomes = {o.link: o for o in chain(Run(plan, progress=False))}
    assert outcomes["retina"].state == "made"
    assert not any(path.name == "fields.npz" and path.parent.name == "retina"
                   for path in outcomes["retina"].outputs)  # fmt: skip
    assert not table(run, "combinations").equals(before)


def test_a_new_fit_removes_what_was_made_of_the_earlier_modes(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder.path, tmp_path / "run")
    for file in ("net.py", "movie.npz"):
        shutil.copy(run.plan.base / file, tmp_path / file)
    record = PLAN | {"fit": PLAN["fit"] | {"n_modes": 3}, "links": ["fit"]}  # type: ignore[operator]
    again = Run(config.from_dict(record, folder=tmp_path), progress=False)
    list(chain(again))
    assert not again.folder.table("retina", "relu1", "nmf", "cells").exists()


def test_the_page_shows_it_all_and_escapes_names(run: Run) -> None:
    page = (run.folder.path / "report" / "retina.html").read_text()
    files = re.findall(r'src="([^"]+)"', page)
    assert len([file for file in files if "retina" in file]) >= 7
    for file in files:
        assert (run.folder.path / "report" / file).is_file(), file
    assert "<i>d" not in page
    svg = next((run.folder.path / "report" / "figures").glob("retina-relu1-nmf-traces.svg"))
    assert EVENT not in svg.read_text()
    assert "Retina" in (run.folder.path / "report" / "index.html").read_text()
    film = run.folder.path / "report" / "figures" / "retina-film.png"
    from PIL import Image

    with Image.open(film) as picture:
        assert getattr(picture, "n_frames", 1) > 10


def test_the_leading_cell_is_the_one_whose_field_changes(run: Run) -> None:
    retina = Retina(run.folder)
    fields = retina.fields
    course = (fields.strength[..., None, None] * fields.spatial).double()
    shares = course.var(0, correction=0).sum((1, 2)) / course.square().mean(0).sum((1, 2))
    assert retina.leading == int(shares.argmax())
    part = retina.stretch
    assert part.stop - part.start == 120


def test_only_rates_of_the_same_cells_stand_beside_the_model(run: Run) -> None:
    from dataclasses import replace

    windows = movie().windows(5)
    own = respond(run.loaded.model, replace(windows, label_names=("4", "5", "6", "9")))
    assert own.cells == ("4", "5", "6", "9")
    assert own.recorded is None
    assert bool(own.correlation.isnan().all())
    silent = replace(windows, recording=Recording(movie=movie().movie), label_names=tuple("abcd"))
    assert respond(run.loaded.model, silent).cells == ("a", "b", "c", "d")
    assert respond(run.loaded.model, windows).recorded is not None


def test_named() -> None:
    assert named((0, 2), torch.tensor([5, 7, 9])) == "5, 9"
    assert named((), torch.tensor([5])) == ""


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fields": 3}, "n_fields must be at least 10; got 3"),
        ({"n_modes": 0}, "n_modes must be at least 1"),
        ({"threshold": 1.0}, "threshold is a share from 0 to below 1; got 1.0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RetinaOptions(**options)  # type: ignore[arg-type]


def test_data_that_are_no_movie() -> None:
    from condec.retina.link import retina

    plan = config.from_dict({"sites": "block1", "links": ["retina"]})
    with pytest.raises(OptionError, match="'digits' are no movie; give"):
        retina(Run(plan, progress=False))


def test_a_model_that_gives_no_rates() -> None:
    windows = movie().windows(5)
    with pytest.raises(DataError, match="expected rates of shape"):
        respond(torch.nn.Identity().eval(), windows)
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(320, 2)).eval()
    torch.nn.init.constant_(broken[1].bias, torch.nan)
    with pytest.raises(DataError, match="rates to the clip of frame 5 are not finite"):
        respond(broken, windows)


def test_records_that_are_damaged(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.npz: there is no such file; expected the record"):
        load_record(tmp_path / "none.npz", Responses)
    (tmp_path / "some.npz").write_bytes(b"PK nothing")
    with pytest.raises(StoreError, match=r"Make it again with .*'condec retina'"):
        load_record(tmp_path / "some.npz", Responses)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    made = respond(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(320, 4)).eval(),
                   movie().windows(5))  # fmt: skip
    first = save_record(tmp_path / "a.npz", made)
    second = save_record(tmp_path / "b.npz", load_record(first, Responses))
    assert first.read_bytes() == second.read_bytes()
    assert load_record(first, Responses).cells == made.cells
