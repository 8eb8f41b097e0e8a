"""Recordings in h5 files, read in blocks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from condec.basis.errors import DataError, DependencyError
from condec.retina.movies.recording import (
    BLOCK_BYTES,
    SECONDS_PER_FRAME,
    Recording,
    Scaling,
    check_frames,
    columns,
)

if TYPE_CHECKING:
    import h5py

RESPONSE: Final = "firing_rate_10ms"


def read_h5(
    path: Path, split: str, cells: list[str] | None, response: str, scaling: Scaling | None,
    frames: tuple[int, int] | None,
) -> Recording:  # fmt: skip
    """Read a recording from an h5 file; see `condec.retina.read_recording`."""
    try:
        import h5py
    except ImportError as error:
        raise DependencyError(
            f"{path}: h5 files are read by h5py, which is not installed; "
            "pip install 'condec[retina]'"
        ) from error
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: not an h5 file; expected HDF5, or a name that ends in .npz")
    try:
        with h5py.File(path, "r") as file:
            stimulus = _stored(file, f"{split}/stimulus", 3)
            start, stop = frames or (0, len(stimulus))
            check_frames(path.name, start, stop, len(stimulus))
            mean, std = scaling or _moments(_stored(file, "train/stimulus", 3))
            movie = torch.empty(stop - start, *stimulus.shape[1:])
            for first, block in _blocks(stimulus, start, stop):
                scaled = (block - np.float32(mean)) / np.float32(std)
                movie[first : first + len(block)] = torch.from_numpy(scaled)
            key = f"{split}/response/{response}"
            stored = _stored(file, key, 2)
            if stored.shape[1] != len(stimulus):
                raise DataError(
                    f"{path}: {key}: responses of {stored.shape[1]} frames, but the movie has "
                    f"{len(stimulus)}; expected [cell, frame]"
                )
            rates = torch.from_numpy(stored[:].astype(np.float32)).T.contiguous()[start:stop]
            names = tuple(str(row) for row in range(stored.shape[0]))
            if cells is not None:
                rates, names = rates[:, columns(f"{path}: {key}", names, cells)], tuple(cells)
            part = f" frames {start}:{stop}" if frames else ""
            return Recording(
                movie=movie, rates=rates, cells=names, name=f"{path.name} {split}{part}",
                seconds_per_frame=_frame_seconds(file, split), scaling=(mean, std),
            )  # fmt: skip
    except OSError as error:  # what h5py raises on damaged blocks
        raise DataError(f"{path}: not readable as an h5 file: {error}") from error


def _stored(file: "h5py.File", key: str, n_axes: int) -> "h5py.Dataset":
    """Find a data set of the file; where it lacks it, what is there is listed."""
    here: Any = file
    for depth, part in enumerate(parts := key.split("/")):
        if part not in getattr(here, "keys", tuple)():
            where = "/".join(parts[:depth]) or "the file"
            has = ", ".join(here) if hasattr(here, "keys") else "no groups"
            hint = ""
            if key == "train/stimulus":
                hint = ", whose mean and standard deviation are taken out; or give scaling"
            raise DataError(
                f"{file.filename}: expected {key!r}{hint}; {where} has {has or 'nothing'}"
            )
        here = here[part]
    if getattr(here, "ndim", None) != n_axes or here.dtype.kind not in "fiu" or 0 in here.shape:
        raise DataError(
            f"{file.filename}: {key}: expected numbers along {n_axes} axes; got "
            f"{getattr(here, 'dtype', 'a group')} of shape {getattr(here, 'shape', ())}"
        )
    return here


def _blocks(stimulus: "h5py.Dataset", start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    size = max(1, BLOCK_BYTES // (4 * math.prod(stimulus.shape[1:])))
    for first in range(start, stop, size):
        yield first - start, stimulus[first : min(first + size, stop)].astype(np.float32)


def _moments(stimulus: "h5py.Dataset") -> Scaling:
    """Work out mean and standard deviation of all pixels in float64, block by block, twice."""
    where = f"{stimulus.file.filename}: {stimulus.name}"
    mean = squares = 0.0
    for _, block in _blocks(stimulus, 0, len(stimulus)):
        mean += float(block.sum(dtype=np.float64)) / stimulus.size
    if not math.isfinite(mean):
        raise DataError(f"{where}: the movie is not finite; mend the file, or give scaling")
    for _, block in _blocks(stimulus, 0, len(stimulus)):
        squares += float(np.square(block.astype(np.float64) - mean).sum())
    std = math.sqrt(squares / stimulus.size)
    if std == 0.0:
        raise DataError(
            f"{where}: the movie is constant, so its standard deviation cannot be divided by; "
            "give scaling"
        )
    return mean, std


def _frame_seconds(file: "h5py.File", split: str) -> float:
    if "time" not in file[split] or len(file[split]["time"]) < 2:
        return SECONDS_PER_FRAME
    return float(np.median(np.diff(_stored(file, f"{split}/time", 1)[:])))
