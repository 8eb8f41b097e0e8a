"""Recordings in files: h5 as published, npz as condec writes it, and their text form."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.basis.files import reading, user_path, write_file, writing
from condec.retina.movies.recording import (
    SECONDS_PER_FRAME,
    Recording,
    Scaling,
    Windows,
    check_frames,
    check_scaling,
    columns,
)

if TYPE_CHECKING:
    import h5py

HISTORY: Final = 40
"""Frames of a clip where neither the source nor the model says: 400 ms (McIntosh et al. 2016)."""
_EVENT: Final = "event/"
_RESPONSE: Final = "firing_rate_10ms"
_BLOCK_BYTES: Final = 2**24
_CLAIMED: Final = 2_000
"""Bytes that one stored byte can stand for: deflate has 1,032 at most."""


def read_recording(
    path: str | Path, *, split: str | None = None, cells: Sequence[str | int] | None = None,
    response: str | None = None, scaling: Scaling | None = None,
    frames: tuple[int, int] | None = None,
) -> Recording:  # fmt: skip
    """Read a movie and its responses from an h5 or npz file.

    - h5, as those of McIntosh et al. 2016 and Maheswaranathan et al. 2023: groups ``train`` and
      ``test``, each with ``time`` (seconds, [frame]), ``stimulus`` ([frame, y, x]) and
      ``response/firing_rate_10ms`` or others ([cell, frame]). Cells are named by their row:
      ``"0"``, ``"1"``, ... Read in blocks, so that the movie is in memory once, as float32.
    - npz: as `write_recording` writes it, or just ``movie`` [frame, y, x].

    Parameters
    ----------
    path : path
        ``.npz``, or any other name for an h5 file.
    split : str, optional
        Group of an h5 file; by default ``test``.
    cells : sequence of str or int, optional
        Cells to keep, in this order, by name; by default all.
    response : str, optional
        One of the responses of an h5 file; by default ``firing_rate_10ms``.
    scaling : (float, float), optional
        Mean and standard deviation to take out of the movie: those that the model was trained
        with. By default of an h5 file those of its split ``train``; of an npz nothing more than
        was taken out when it was written.
    frames : (int, int), optional
        Read these frames only, from the first to below the second; they are numbered from 0.

    Raises
    ------
    DataError
        No such file, one of another kind, a group or cell that it lacks, a movie or responses
        that are not finite or do not fit each other.
    OptionError, DependencyError
        `split` or `response` for an npz, frames that are not there, scaling by 0; no h5py.
    """
    path = user_path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if scaling is not None:
        check_scaling(path.name, scaling)
    names = None if cells is None else [str(cell) for cell in cells]
    if path.suffix == ".npz":
        if split is not None or response is not None:
            raise OptionError(
                f"{path}: an npz holds one movie and one kind of response; leave split and "
                "response out, or give an h5 file"
            )
        recording = _read_npz(path)
        recording = recording if frames is None else recording.part(*frames)
        recording = recording if names is None else recording.of_cells(names)
        return recording if scaling is None else recording.scaled(scaling)
    return _read_h5(path, split or "test", names, response or _RESPONSE, scaling, frames)


def write_recording(path: str | Path, recording: Recording) -> None:
    """Write a recording as ``.npz``; `read_recording` gives it back to the bit."""
    path = user_path(path)
    if path.suffix != ".npz":
        raise OptionError(f"{path}: a recording is written as .npz; give such a name")
    arrays: dict[str, Any] = {
        "movie": recording.movie.cpu().numpy(),
        "seconds_per_frame": recording.seconds_per_frame,
        "scaling": np.array(recording.scaling),
        "name": recording.name,
    }
    if recording.rates is not None:
        arrays |= {"rates": recording.rates.cpu().numpy(), "cells": np.array(recording.cells)}
    arrays |= {_EVENT + name: course.cpu().numpy() for name, course in recording.events.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    with writing(f"{path}: recording"):
        write_file(path, content.getvalue())


def _pair(text: str, between: str, kind: type) -> tuple[Any, Any]:
    first, second = text.split(between)
    return kind(first), kind(second)


_KEYS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "split": ("GROUP", str),
    "cells": ("NAME,NAME,...", lambda text: [cell for cell in text.split(",") if cell]),
    "response": ("NAME", str),
    "frames": ("START:STOP", partial(_pair, between=":", kind=int)),
    "scaling": ("MEAN,STD", partial(_pair, between=",", kind=float)),
    "history": ("FRAMES", int),
    "unit": ("NUMBER", float),
}
"""Keys of a movie as a source of data, how they are written, and what reads them."""


def from_movie(
    rest: str, keys: Mapping[str, str], *, folder: str | Path = ".",
    shape: tuple[int, ...] | None = None, scaling: Scaling | None = None,
    cells: Sequence[str] | None = None,
) -> Windows:  # fmt: skip
    """Open clips of a movie by ``movie:FILE?KEY=VALUE&...``, for `condec.data.load_data`.

    Keys are ``split``, ``cells`` (``0,2``), ``response``, ``frames`` (``START:STOP``) and
    ``scaling`` (``MEAN,STD``) of `read_recording`; ``history``, the frames of a clip (by default
    those that the model takes, or 40); and ``unit``, by which rates are divided. OptionError for
    others, or without a file.
    """
    if not rest:
        raise OptionError("data 'movie': expected movie:FILE")
    given: dict[str, Any] = {"scaling": scaling}
    for key, text in keys.items():
        if key not in _KEYS:
            raise OptionError(f"movie:{rest}: {key}: no such key; expected {', '.join(_KEYS)}")
        usage, read = _KEYS[key]
        try:
            given[key] = read(text)
        except ValueError as error:
            raise OptionError(f"movie: {key}={text!r}: expected {usage}") from error
    lacking = [cell for cell in given.get("cells", ()) if cells and cell not in cells]
    if lacking:
        raise DataError(
            f"movie: cells={keys['cells']}: the model has no cell {', '.join(lacking)}; it has "
            f"{', '.join(cells or ())}"
        )
    of_model = shape[0] if shape is not None and len(shape) == 3 else HISTORY
    history, unit = given.pop("history", of_model), given.pop("unit", None)
    recording = read_recording(user_path(rest, folder), **given)
    if "cells" not in given and cells and set(cells) <= set(recording.cells):
        recording = recording.of_cells(cells)
    recording = recording if unit is None else recording.in_units_of(unit)
    return recording.windows(history)


def _read_npz(path: Path) -> Recording:
    expected = "Expected numpy's .npz of numbers, as write_recording writes it."
    with reading(path, "arrays of a movie", expected, DataError):
        with np.load(path, allow_pickle=False) as opened:
            arrays = dict(opened)
        measured = {
            key: torch.from_numpy(array.astype(np.float32, casting="same_kind", copy=False))
            for key, array in arrays.items()
            if key in ("movie", "rates") or key.startswith(_EVENT)
        }
        if "movie" not in arrays:
            raise DataError(
                f"{path}: no array 'movie'; it has {', '.join(arrays) or 'none'}. {expected}"
            )
        mean, std = (float(value) for value in arrays.get("scaling", (0.0, 1.0)))
        check_scaling(path.name, (mean, std))
        return Recording(
            movie=measured.pop("movie"), rates=measured.pop("rates", None),
            cells=tuple(str(cell) for cell in arrays.get("cells", ())),
            seconds_per_frame=float(arrays.get("seconds_per_frame", SECONDS_PER_FRAME)),
            name=str(arrays.get("name", path.name)), scaling=(mean, std),
            events={key.removeprefix(_EVENT): course for key, course in measured.items()},
        )  # fmt: skip


def _read_h5(
    path: Path, split: str, cells: list[str] | None, response: str, scaling: Scaling | None,
    frames: tuple[int, int] | None,
) -> Recording:  # fmt: skip
    try:
        import h5py
    except ImportError as error:
        raise DependencyError(
            f"{path}: h5 files are read by h5py, which is not installed; "
            "pip install 'condec[retina]'"
        ) from error
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: not an h5 file; expected HDF5, or a name that ends in .npz")
    remedy = "Copy it again from where it came."
    with reading(path, "an h5 file", remedy, DataError), h5py.File(path, "r") as file:
        stimulus = _stored(file, f"{split}/stimulus", 3)
        start, stop = frames or (0, len(stimulus))
        check_frames(path.name, start, stop, len(stimulus))
        mean, std = scaling or _moments(_stored(file, "train/stimulus", 3))
        movie = np.empty((stop - start, *stimulus.shape[1:]), np.float32)
        stimulus.read_direct(movie, np.s_[start:stop])
        movie -= np.float32(mean)
        movie /= np.float32(std)
        key = f"{split}/response/{response}"
        stored = _stored(file, key, 2)
        if stored.shape[1] != len(stimulus):
            raise DataError(
                f"{path}: {key}: responses of {stored.shape[1]} frames, but the movie has "
                f"{len(stimulus)}; expected [cell, frame]"
            )
        names = [str(row) for row in range(stored.shape[0])]
        chosen = columns(f"{path}: {key}", names, names if cells is None else cells)
        rates = stored[:].astype(np.float32).T[start:stop, chosen]
        seconds = SECONDS_PER_FRAME
        if len(file[split].get("time", ())) > 1:
            seconds = float(np.median(np.diff(_stored(file, f"{split}/time", 1)[:])))
        part = f" frames {start}:{stop}" if frames else ""
        return Recording(
            movie=torch.from_numpy(movie), rates=torch.from_numpy(np.ascontiguousarray(rates)),
            cells=tuple(names[column] for column in chosen),
            name=f"{path.name} {split}{part}", seconds_per_frame=seconds, scaling=(mean, std),
        )  # fmt: skip


def _stored(file: "h5py.File", key: str, n_axes: int) -> "h5py.Dataset":
    """Find a data set of the file; where it lacks it, what is there is listed."""
    here: Any = file
    for part in key.split("/"):
        if part not in getattr(here, "keys", tuple)():
            hint = ""
            if key == "train/stimulus":
                hint = ", whose mean and standard deviation are taken out; or give scaling"
            raise DataError(
                f"{file.filename}: expected {key!r}{hint}; {here.name} has "
                f"{', '.join(getattr(here, 'keys', tuple)()) or 'nothing'}"
            )
        here = here[part]
    if getattr(here, "ndim", None) != n_axes or here.dtype.kind not in "fiu" or 0 in here.shape:
        raise DataError(
            f"{file.filename}: {key}: expected numbers along {n_axes} axes; got "
            f"{getattr(here, 'dtype', 'a group')} of shape {getattr(here, 'shape', ())}"
        )
    stored = here.nbytes if here.is_virtual or here.external else here.id.get_storage_size()
    if here.nbytes > max(_CLAIMED * stored, _BLOCK_BYTES):
        raise DataError(
            f"{file.filename}: {key}: says that it holds {here.nbytes:,} bytes, of which "
            f"{stored:,} are stored; copy the file again from where it came"
        )
    return here


def _moments(stimulus: "h5py.Dataset") -> Scaling:
    """Work out mean and standard deviation of all pixels in float64, block by block, twice."""
    size = max(1, _BLOCK_BYTES // (8 * math.prod(stimulus.shape[1:])))
    blocks = [slice(first, first + size) for first in range(0, len(stimulus), size)]
    with np.errstate(invalid="ignore"):  # what is not finite is found below
        mean = sum(float(stimulus[b].sum(dtype=np.float64)) for b in blocks) / stimulus.size
        squares = (float(np.square(stimulus[b] - np.float64(mean)).sum()) for b in blocks)
        std = math.sqrt(sum(squares) / stimulus.size)
    if not 0.0 < std < math.inf:
        raise DataError(
            f"{stimulus.file.filename}: {stimulus.name}: a movie that is constant or not finite, "
            f"of standard deviation {std}, which cannot be divided by; mend the file, or give "
            "scaling"
        )
    return mean, std
