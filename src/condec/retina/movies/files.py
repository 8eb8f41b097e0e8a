"""Recordings in files: h5 as published, npz as condec writes it, and their text form."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.files import write_file, writing
from condec.retina.movies.h5 import RESPONSE, read_h5
from condec.retina.movies.recording import (
    SECONDS_PER_FRAME,
    Recording,
    Scaling,
    Windows,
    check_scaling,
)

HISTORY: Final = 40
"""Frames of a clip where neither the source nor the model says: 400 ms (McIntosh et al. 2016)."""
_EVENT: Final = "event/"
_KEYS: Final = ("split", "cells", "response", "history", "frames", "scaling", "unit")


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
    path = Path(path)
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
    return read_h5(path, split or "test", names, response or RESPONSE, scaling, frames)


def write_recording(path: str | Path, recording: Recording) -> None:
    """Write a recording as ``.npz``; `read_recording` gives it back to the bit."""
    path = Path(path)
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
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.getvalue())


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
    given: dict[str, str | None] = dict.fromkeys(_KEYS) | dict(keys)
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise OptionError(
            f"movie:{rest}: {', '.join(unknown)}: no such key; expected {', '.join(_KEYS)}"
        )
    chosen = None
    if given["cells"] is not None:
        chosen = [cell for cell in given["cells"].split(",") if cell]
        lacking = [cell for cell in chosen if cells and cell not in cells]
        if lacking:
            raise DataError(
                f"movie: cells={given['cells']}: the model has no cell {', '.join(lacking)}; it "
                f"has {', '.join(cells or ())}"
            )
    recording = read_recording(
        Path(folder) / rest, split=given["split"], cells=chosen, response=given["response"],
        scaling=_numbers("scaling", given["scaling"], ",", float) or scaling,
        frames=_numbers("frames", given["frames"], ":", int),
    )  # fmt: skip
    if chosen is None and cells and set(cells) <= set(recording.cells):
        recording = recording.of_cells(cells)
    if unit := _numbers("unit", given["unit"], "", float):
        recording = recording.in_units_of(*unit)
    if history := _numbers("history", given["history"], "", int):
        return recording.windows(*history)
    return recording.windows(shape[0] if shape is not None and len(shape) == 3 else HISTORY)


def _read_npz(path: Path) -> Recording:
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = dict(opened)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise DataError(
            f"{path}: not readable as arrays without pickle ({error}); expected numpy's .npz"
        ) from error
    if "movie" not in arrays:
        raise DataError(
            f"{path}: no array 'movie'; it has {', '.join(arrays) or 'none'}. Expected what "
            "write_recording writes"
        )
    rates = arrays.get("rates")
    mean, std = (float(value) for value in arrays.get("scaling", (0.0, 1.0)))
    return Recording(
        movie=_float32(path, "movie", arrays["movie"], 3),
        rates=None if rates is None else _float32(path, "rates", rates, 2),
        cells=tuple(str(cell) for cell in arrays.get("cells", ())),
        seconds_per_frame=float(arrays.get("seconds_per_frame", SECONDS_PER_FRAME)),
        name=str(arrays.get("name", path.name)),
        events={
            key.removeprefix(_EVENT): _float32(path, key, course, 1)
            for key, course in arrays.items()
            if key.startswith(_EVENT)
        },
        scaling=(mean, std),
    )


def _float32(path: Path, what: str, array: np.ndarray, n_axes: int) -> Tensor:
    if array.ndim != n_axes or array.dtype.kind not in "fiub":
        raise DataError(
            f"{path}: {what}: expected numbers along {n_axes} axes; got {array.dtype} of shape "
            f"{array.shape}"
        )
    return torch.from_numpy(array.astype(np.float32, copy=False))


def _numbers(key: str, text: str | None, between: str, kind: Any) -> Any:
    """Read one number, or two with a sign between them; None where there is no text."""
    if text is None:
        return None
    parts = text.split(between) if between else [text]
    if between and len(parts) != 2:
        raise OptionError(f"movie: {key}={text!r}: expected two numbers with {between!r} between")
    try:
        return tuple(kind(part) for part in parts)
    except ValueError as error:
        raise OptionError(f"movie: {key}={text!r}: expected {kind.__name__} numbers") from error
