"""Movies: both files, clips that share the movie, and every message."""

import dataclasses
import sys
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
import torch

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.data import load_data
from condec.retina import Recording, read_recording, write_recording
from condec.retina.movies import files

T, CELLS = 60, 3


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, shape)


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    """Both splits; pixels as whole numbers, as they come from a display."""
    path = tmp_path / "naturalscene.h5"
    with h5py.File(path, "w") as file:
        for seed, split in enumerate(("train", "test")):
            group = file.create_group(split)
            group["time"] = np.arange(T) * 0.02
            pixels = np.random.default_rng(seed).integers(0, 256, (T, 5, 4), dtype=np.uint8)
            group["stimulus"] = pixels
            group["response/firing_rate_10ms"] = np.abs(noise(CELLS, T, seed=seed))
            group["response/binned"] = noise(CELLS, T, seed=seed + 9).round()
    return path


def edit(path: Path, key: str, values: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        del file[key]
        if values is not None:
            file[key] = values


def recording(frames: int = T, **changes: object) -> Recording:
    generator = torch.Generator().manual_seed(0)
    given = {
        "movie": torch.randn(frames, 5, 4, generator=generator),
        "rates": torch.rand(frames, CELLS, generator=generator),
        "events": {"gate": torch.arange(float(frames))},
    }
    return Recording(**given | changes)  # type: ignore[arg-type]


# --- clips -----------------------------------------------------------------------------------


def test_clip_and_response_follow_the_layout_of_the_paper() -> None:
    given = recording()
    inputs, answers = given.windows(40), given.responses(40)
    assert len(inputs) == len(answers) == T - 40
    assert given.rates is not None
    for sample in (0, 7, T - 41):
        assert torch.equal(inputs.load(sample), given.movie[sample : sample + 40])
        assert torch.equal(answers[sample], given.rates[sample + 40])
        assert inputs.ids[sample] == str(sample + 40)
    assert inputs.sample_shape == (40, 5, 4)
    some = inputs.select([3, 1])
    assert some.recording is given  # type: ignore[attr-defined]
    assert torch.equal(some.load(1), given.movie[1:41])


def test_clips_are_views_of_one_movie() -> None:
    given = recording()
    first, second = (given.windows(40).load(sample) for sample in (0, 1))
    assert first.data_ptr() == given.movie.data_ptr()
    assert second.data_ptr() == given.movie.data_ptr() + 4 * 5 * 4


def test_memory_of_a_collection_does_not_grow_with_the_history() -> None:
    history = 40
    movie = torch.randn(1000, 50, 50)  # 9.5 MiB; all clips at once take 366 MiB
    inputs = Recording(movie=movie).windows(history)
    model = torch.nn.Sequential(torch.nn.Conv2d(history, 2, 9, stride=20), torch.nn.ReLU()).eval()
    process = psutil.Process()
    before = process.memory_info().rss
    most = 0
    for first in range(0, len(inputs), 16):
        with torch.no_grad():
            model(inputs.batch(range(first, first + 16)))
        most = max(most, process.memory_info().rss - before)
    assert most < 8 * movie.numel() * 4


def test_fingerprint_sees_every_frame_and_the_history() -> None:
    given = recording()
    print_ = given.windows(40).fingerprint
    assert recording().windows(40).fingerprint == print_
    other = given.movie.clone()
    other[33, 1, 1] += 1
    changed = dataclasses.replace(given, movie=other)
    assert changed.windows(40).fingerprint != print_
    assert given.windows(39).fingerprint != print_
    assert given.windows(10).select([0]).fingerprint == changed.windows(10).select([0]).fingerprint


def test_parts_cells_and_scaling() -> None:
    given = recording()
    part = given.part(10, 55)
    assert given.rates is not None
    assert part.rates is not None
    assert torch.equal(part.movie, given.movie[10:55])
    assert torch.equal(part.rates, given.rates[10:55])
    assert part.events["gate"].tolist() == list(range(10, 55))
    chosen = given.of_cells(["2", "0"])
    assert chosen.cells == ("2", "0")
    assert torch.equal(chosen.responses(40), given.rates[40:, [2, 0]])
    twice = given.scaled((0.5, 2.0)).scaled((1.0, 4.0))
    torch.testing.assert_close(twice.movie, (given.movie - 1) / 4)
    assert given.scaled((0.0, 1.0)) is given
    per_ten = given.in_units_of(10.0).rates
    assert per_ten is not None
    torch.testing.assert_close(per_ten, given.rates / 10)


# --- files -----------------------------------------------------------------------------------


def test_h5_is_scaled_by_the_training_movie(h5: Path) -> None:
    with h5py.File(h5) as file:
        train, test = (file[f"{s}/stimulus"][:].astype(np.float64) for s in ("train", "test"))
        rates, binned = (file[f"test/response/{k}"][:] for k in ("firing_rate_10ms", "binned"))
    found = read_recording(h5)
    assert found.movie.dtype == torch.float32
    np.testing.assert_allclose(found.movie, (test - train.mean()) / train.std(), atol=1e-6)
    assert found.rates is not None
    np.testing.assert_allclose(found.rates, rates.T, rtol=1e-6)
    assert found.cells == ("0", "1", "2")
    assert found.seconds_per_frame == pytest.approx(0.02)
    other = read_recording(
        h5, split="train", cells=[2, 0], response="binned", scaling=(1.0, 2.0), frames=(5, 50)
    )
    np.testing.assert_allclose(other.movie, (train[5:50] - 1) / 2)
    assert other.cells == ("2", "0")
    other = read_recording(h5, cells=[2, 0], response="binned", frames=(5, 50))
    assert other.rates is not None
    np.testing.assert_allclose(other.rates, binned[[2, 0], 5:50].T)
    assert other.name == "naturalscene.h5 test frames 5:50"


def test_h5_in_blocks_is_the_same(h5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_recording(h5)
    monkeypatch.setattr(files, "_BLOCK_BYTES", 7 * 8 * 5 * 4)  # 7 frames
    blocks = read_recording(h5)
    assert blocks.scaling == pytest.approx(whole.scaling, rel=1e-12)
    torch.testing.assert_close(blocks.movie, whole.movie)
    part, wanted = (r.movie for r in (read_recording(h5, frames=(9, 40)), whole.part(9, 40)))
    torch.testing.assert_close(part, wanted)


def test_h5_without_times_has_frames_of_10_ms(h5: Path) -> None:
    edit(h5, "test/time", None)
    assert read_recording(h5).seconds_per_frame == 0.01


def test_npz_comes_back_to_the_bit(tmp_path: Path) -> None:
    given = recording(
        cells=("on", "off", "both"), seconds_per_frame=0.005, name="planted", scaling=(1.0, 2.5)
    )
    write_recording(tmp_path / "new" / "a.npz", given)
    found = read_recording(tmp_path / "new" / "a.npz")
    assert torch.equal(found.movie, given.movie)
    assert given.rates is not None
    assert found.rates is not None
    assert torch.equal(found.rates, given.rates)
    assert torch.equal(found.events["gate"], given.events["gate"])
    for name in ("cells", "seconds_per_frame", "name", "scaling"):
        assert getattr(found, name) == getattr(given, name)
    part = read_recording(tmp_path / "new" / "a.npz", cells=["both"], frames=(3, 50))
    assert part.rates is not None
    assert torch.equal(part.rates, given.rates[3:50, 2:])


def test_npz_of_pixels_alone(tmp_path: Path) -> None:
    pixels = np.arange(50 * 6, dtype=np.uint8).reshape(50, 2, 3)
    np.savez(tmp_path / "a.npz", movie=pixels)
    found = read_recording(tmp_path / "a.npz", scaling=(10.0, 4.0))
    np.testing.assert_allclose(found.movie, (pixels.astype(float) - 10) / 4)
    assert found.rates is None
    assert found.cells == ()
    assert found.name == "a.npz"


def test_source_as_text(h5: Path, tmp_path: Path) -> None:
    inputs = load_data("movie:naturalscene.h5?split=train&cells=2,0&history=10", folder=tmp_path)
    wanted = read_recording(h5, split="train", cells=["2", "0"])
    assert torch.equal(inputs.load(4), wanted.movie[4:14])
    assert inputs.recording.cells == ("2", "0")  # type: ignore[attr-defined]
    assert load_data(f"movie:{h5}").sample_shape == (40, 5, 4)
    from_model = load_data(f"movie:{h5}", shape=(12, 5, 4), scaling=(1.0, 2.0), limit=4)
    assert from_model.ids == ("12", "24", "36", "48")
    assert torch.equal(from_model.load(1), read_recording(h5, scaling=(1.0, 2.0)).movie[12:24])
    text = f"movie:{h5}?response=binned&frames=5:50&scaling=0,4&unit=2"
    written = load_data(text, scaling=(1.0, 2.0))
    wanted = read_recording(h5, response="binned", frames=(5, 50), scaling=(0.0, 4.0))
    assert torch.equal(written.load(0), wanted.movie[:40])
    assert wanted.rates is not None
    assert torch.equal(written.recording.rates, wanted.rates / 2)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"has shape \(12, 5, 4\); the model has \(12, 50, 50\)"):
        load_data(f"movie:{h5}", shape=(12, 50, 50)).load(0)


def test_cells_of_the_model(h5: Path) -> None:
    def cells(query: str, own: tuple[str, ...]) -> tuple[str, ...]:
        return load_data(f"movie:{h5}{query}", cells=own).recording.cells  # type: ignore[attr-defined]

    assert cells("", ("2", "1")) == ("2", "1")
    assert cells("", ("ON", "OFF")) == ("0", "1", "2")  # names of its own
    assert cells("?cells=1", ("2", "1")) == ("1",)
    with pytest.raises(DataError, match="cells=0,1: the model has no cell 0; it has 2, 1"):
        cells("?cells=0,1", ("2", "1"))
    np.savez(h5.with_suffix(".npz"), movie=noise(50, 2, 2))  # no responses
    assert load_data(f"movie:{h5.with_suffix('.npz')}", cells=("2", "1")).ids[0] == "40"


# --- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("split=tset", DataError, "expected 'tset/stimulus'; / has test, train"),
        ("response=rate", DataError, "test/response has binned, firing_rate_10ms"),
        ("cells=0,7,8", DataError, "no cell 7, 8; it has 0, 1, 2"),
        ("cells=", DataError, "no cell is asked for; it has"),
        ("cells=1,1", DataError, "a cell is named twice in 1, 1"),
        ("history=60", DataError, "60 frames is too short: expected more than the history of 60"),
        ("history=0", OptionError, "history must be at least 1; got 0"),
        ("history=long", OptionError, "history='long': expected FRAMES"),
        ("frames=5", OptionError, "frames='5': expected START:STOP"),
        ("frames=50:70", OptionError, "frames 50:70 are not there; expected START:STOP within"),
        ("scaling=1,0", OptionError, r"a standard deviation above 0; got \(1.0, 0.0\)"),
        ("unit=0", OptionError, "unit must be above 0 and finite; got 0.0"),
        ("scaling=1", OptionError, "scaling='1': expected MEAN,STD"),
        ("speed=2", OptionError, "speed: no such key; expected split, cells"),
    ],
)
def test_bad_source(h5: Path, query: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(f"movie:{h5}?{query}")


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("train", None, "expected 'train/stimulus', whose mean .* or give scaling; / has"),
        ("train/stimulus", np.full((3, 2, 2), 7), "a movie that is constant .* deviation 0.0"),
        ("train/stimulus", np.full((3, 2, 2), np.inf), "or not finite, of standard deviation nan"),
        ("test/response", None, "expected 'test/response/firing_rate_10ms'; /test has stimulus"),
        ("test/response/firing_rate_10ms", noise(CELLS, T - 1),
         "responses of 59 frames, but the movie has 60"),
        ("test/response/firing_rate_10ms", np.full((CELLS, T), np.nan),
         "180 rates are not finite, the first of cell '0' in frame 0"),
        ("test/stimulus", np.zeros((T, 20)), r"along 3 axes; got float64 of shape \(60, 20"),
        ("test/stimulus", np.where(np.arange(T) == 31, np.nan, 1.0)[:, None, None],
         "frame 31 of the movie is not finite"),
    ],
)  # fmt: skip
def test_bad_h5(h5: Path, key: str, values: np.ndarray | None, message: str) -> None:
    edit(h5, key, values)
    with pytest.raises(DataError, match=message):
        read_recording(h5)


def test_training_movie_is_not_needed_where_scaling_is_given(h5: Path) -> None:
    edit(h5, "train", None)
    assert read_recording(h5, scaling=(0.0, 1.0)).scaling == (0.0, 1.0)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.h5: there is no such file"):
        read_recording(tmp_path / "a.h5")
    for name, message in (
        ("a.h5", "not an h5 file; expected HDF5"),
        ("a.npz", "holds Python objects"),
    ):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(DataError, match=f"{name}: .*{message}"):
            read_recording(tmp_path / name)


def test_damaged_h5(h5: Path) -> None:
    h5.write_bytes(h5.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be read as an h5 file"):
        read_recording(h5)


@pytest.mark.usefixtures("unchecked")
def test_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(3, 2, 2))
    with pytest.raises(DataError, match="no array 'movie'; it has images"):
        read_recording(path)
    np.savez(path, movie=noise(3, 2))
    with pytest.raises(
        DataError, match=r"expected a movie \[frame, y, x\] of float32; got .* shape \(3, 2\)"
    ):
        read_recording(path)
    for movie in (np.array([[["1", "2"]]]), noise(3, 2, 2) * 1j):
        np.savez(path, movie=movie)
        with pytest.raises(DataError, match="cannot be read as arrays of a movie"):
            read_recording(path)
    np.savez(path, movie=noise(3, 2, 2))
    with pytest.raises(OptionError, match="an npz holds one movie"):
        read_recording(path, split="train")
    with pytest.raises(DataError, match="without responses, and a choice of cells needs them"):
        read_recording(path, cells=["0"])
    with pytest.raises(OptionError, match=r"a.h5: a recording is written as .npz"):
        write_recording(tmp_path / "a.h5", recording())


def test_h5py_missing(h5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DependencyError, match=r"not installed; pip install 'condec\[retina\]'"):
        read_recording(h5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"movie": torch.zeros(0, 5, 4)}, r"expected a movie \[frame, y, x\] of float32; got"),
        ({"movie": torch.zeros(T, 5, 4).double()}, "of float32; got torch.float64"),
        ({"rates": torch.rand(T - 2, CELLS)}, r"of the movie's 60 frames; got shape \(58, 3\)"),
        ({"cells": ("a", "b")}, "expected 3 different names of cells; got a, b"),
        ({"rates": None, "cells": ("a",)}, "1 cells are named, but there are no rates"),
        ({"events": {"gate": torch.zeros(4)}}, r"event 'gate': expected one .* got shape \(4,\)"),
        ({"seconds_per_frame": 0.0}, "seconds_per_frame must be above 0 and finite; got 0.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_recording(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        recording(**changes)
