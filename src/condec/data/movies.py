"""Movies and the responses of cells to them, as overlapping clips that share one movie.

A recording is read from an h5 file laid out as those of McIntosh et al. 2016 and Maheswaranathan
et al. 2023, or from an npz:

- h5: groups ``train`` and ``test``, each with ``time`` (seconds, [frame]), ``stimulus``
  ([frame, y, x]) and ``response/firing_rate_10ms`` or others ([cell, frame]). Cells are named by
  their row: ``"0"``, ``"1"``, ...
- npz: ``movie`` [frame, y, x] and, if there, ``rates`` [frame, cell], ``cells``,
  ``seconds_per_frame``, ``scaling`` (mean and standard deviation that were taken out), ``name``,
  and ``event/NAME`` [frame].
"""

import io
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condec.data.inputs import Inputs, bytes_of
from condec.errors import DataError, DependencyError, OptionError
from condec.files import write_file, writing

if TYPE_CHECKING:
    import h5py

HISTORY: Final = 40
"""Frames of a clip where neither the source nor the model says: 400 ms (McIntosh et al. 2016)."""
SECONDS_PER_FRAME: Final = 0.01
_BLOCK_BYTES: Final = 2**24
_EVENT: Final = "event/"
_RESPONSE: Final = "firing_rate_10ms"

Scaling = tuple[float, float]
"""Mean and standard deviation of a movie, in its own unit."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """A movie, and what cells answered.

    Attributes
    ----------
    movie : Tensor of shape [frame, y, x]
        float32, normalised: (stored - mean) / standard deviation.
    rates : Tensor of shape [frame, cell], or None
        ``rates[i]`` is the response during frame i; in the unit of the file (spikes a second for
        ``firing_rate_10ms``).
    cells : tuple of str
        Names of the columns of `rates`; by default their numbers.
    seconds_per_frame : float
    name : str
        For messages.
    events : dict of str to Tensor of shape [frame]
        Named time courses to show beside loadings: gates that are known, phases of a stimulus.
    scaling : (float, float)
        Mean and standard deviation that were taken out of the movie.

    Raises
    ------
    DataError
        A movie that is empty or not finite, rates that are not finite or of another length,
        names that do not fit them, events of another length, a frame of no duration.

    Examples
    --------
    >>> recording = Recording(movie=torch.zeros(50, 8, 8), rates=torch.ones(50, 3))
    >>> recording.cells, len(recording.windows(40)), recording.windows(40).ids[0]
    (('0', '1', '2'), 10, '40')
    """

    movie: Float[Tensor, "frame y x"]
    rates: Float[Tensor, "frame cell"] | None = None
    cells: tuple[str, ...] = ()
    seconds_per_frame: float = SECONDS_PER_FRAME
    name: str = "recording"
    events: dict[str, Tensor] = field(default_factory=dict)
    scaling: Scaling = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.rates is not None and not self.cells and self.rates.ndim == 2:
            names = tuple(str(cell) for cell in range(self.rates.shape[1]))
            object.__setattr__(self, "cells", names)
        _check_movie(self)
        _check_rates(self)
        _check_events(self)

    def __len__(self) -> int:
        return len(self.movie)

    def windows(self, history: int) -> "Windows":
        """Clips of `history` frames, as inputs of a model; none of them is a copy.

        Sample j is frames j .. j + history - 1, oldest first; its response is that during frame
        j + history, whose number is the sample's id. There are ``len(recording) - history``.

        Raises
        ------
        DataError
            The movie is not longer than the history.
        """
        self._check_history(history)
        movie = self.movie
        return Windows(
            name=self.name,
            ids=tuple(str(frame) for frame in range(history, len(movie))),
            read=lambda index: movie[index : index + history],
            stored=lambda rows: _frames_of(movie, rows, history),
            recording=self,
        )

    def responses(self, history: int) -> Float[Tensor, "sample cell"]:
        """Rates that belong to the clips of `windows`: those from frame `history` on.

        Raises
        ------
        DataError
            There are no rates, or the movie is not longer than the history.
        """
        self._check_history(history)
        return self.needed_rates("responses")[history:]

    def needed_rates(self, purpose: str) -> Float[Tensor, "frame cell"]:
        """The rates.

        Raises
        ------
        DataError
            There are none; `purpose` says what needs them.
        """
        if self.rates is None:
            raise DataError(
                f"{self.name}: a movie without responses, and {purpose} needs them; give rates of "
                "shape [frame, cell]"
            )
        return self.rates

    def scaled(self, scaling: Scaling) -> "Recording":
        """The same recording, with another mean and standard deviation taken out.

        Raises
        ------
        OptionError
            A mean that is not finite, or a standard deviation that is not above 0.
        """
        _check_scaling(self.name, scaling)
        if scaling == self.scaling:
            return self
        (had_mean, had_std), (mean, std) = self.scaling, scaling
        movie = self.movie * (had_std / std) + (had_mean - mean) / std
        return replace(self, movie=movie, scaling=scaling)

    def part(self, start: int, stop: int) -> "Recording":
        """Frames `start` to below `stop`, numbered from 0 again.

        Raises
        ------
        OptionError
            They are not in the recording.
        """
        _check_frames(self.name, start, stop, len(self))
        return replace(
            self,
            movie=self.movie[start:stop],
            rates=None if self.rates is None else self.rates[start:stop],
            events={name: course[start:stop] for name, course in self.events.items()},
            name=f"{self.name} frames {start}:{stop}",
        )

    def of_cells(self, cells: Sequence[str]) -> "Recording":
        """The same movie with the responses of some cells, in the order given.

        Raises
        ------
        DataError
            A cell that the recording lacks, or that is named twice.
        """
        rates = self.needed_rates("a choice of cells")
        columns = _columns(self.name, self.cells, cells)
        return replace(self, rates=rates[:, columns], cells=tuple(cells))

    def _check_history(self, history: int) -> None:
        if history < 1:
            raise OptionError(f"{self.name}: history must be at least 1 frame; got {history}")
        if len(self.movie) <= history:
            raise DataError(
                f"{self.name}: a movie of {len(self.movie)} frames is too short: expected more "
                f"than the history of {history} frames"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Windows(Inputs):
    """Clips of a recording as inputs, each a view of the movie.

    Attributes
    ----------
    recording : Recording
        ``recording.rates[int(id)]`` are the responses of the sample of that id.
    """

    recording: Recording


def read_recording(
    path: str | Path,
    *,
    split: str | None = None,
    cells: Sequence[str | int] | None = None,
    response: str | None = None,
    scaling: Scaling | None = None,
    frames: tuple[int, int] | None = None,
) -> Recording:
    """Read a movie and its responses from an h5 or npz file (layouts: see the module).

    An h5 file is read in blocks, so that its movie is in memory once, as float32.

    Parameters
    ----------
    path : path
        ``.npz``, or any other name for an h5 file.
    split : str, optional
        Group of an h5 file; by default ``test``.
    cells : sequence of str or int, optional
        Cells to keep, in this order, by name; by default all.
    response : str, optional
        Which of the responses of an h5 file; by default ``firing_rate_10ms``.
    scaling : (float, float), optional
        Mean and standard deviation to take out of the movie: those that the model was trained
        with. By default of an h5 file those of its split ``train``; of an npz nothing more than
        was taken out when it was written.
    frames : (int, int), optional
        Read these frames only, from the first to below the second; they are numbered from 0.

    Raises
    ------
    DataError
        No such file, a file of another kind, a group or cell that it lacks (those it has are
        listed), a movie or responses that are not finite or do not fit each other.
    OptionError
        `split` or `response` for an npz, frames that are not there, scaling by 0.
    DependencyError
        h5py is not installed, and the file is no npz.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if scaling is not None:
        _check_scaling(path.name, scaling)
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
    """Write a recording as npz; `read_recording` gives it back to the bit.

    Raises
    ------
    OptionError
        The path does not end in ``.npz``.
    StoreError
        The file cannot be written.
    """
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
    path: Path,
    keys: Mapping[str, str],
    *,
    shape: tuple[int, ...] | None = None,
    scaling: Scaling | None = None,
    cells_of_model: Sequence[str] | None = None,
) -> Windows:
    """Clips of a file, by the keys of ``movie:FILE?KEY=VALUE&...``; see `condec.data.load_data`."""
    options = dict(keys)
    cells = _cells_named(options.pop("cells", None), cells_of_model)
    frames = options.pop("frames", None)
    written = options.pop("scaling", None)
    history = options.pop("history", None)
    recording = read_recording(
        path,
        split=options.pop("split", None),
        cells=cells,
        response=options.pop("response", None),
        scaling=scaling if written is None else _pair("scaling", written, ",", float),
        frames=None if frames is None else _pair("frames", frames, ":", int),
    )
    if options:
        raise OptionError(
            f"movie:{path}: {', '.join(options)}: no such key; expected split, cells, response, "
            "history, frames or scaling"
        )
    own = cells_of_model or ()
    if cells is None and own and set(own) <= set(recording.cells):
        recording = recording.of_cells(own)
    if history is not None:
        return recording.windows(_number("history", history, int))
    return recording.windows(shape[0] if shape is not None and len(shape) == 3 else HISTORY)


# --- npz ------------------------------------------------------------------------------------


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


# --- h5 -------------------------------------------------------------------------------------


def _read_h5(
    path: Path,
    split: str,
    cells: list[str] | None,
    response: str,
    scaling: Scaling | None,
    frames: tuple[int, int] | None,
) -> Recording:
    h5py = _import_h5py(path)
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: not an h5 file; expected HDF5, or a name that ends in .npz")
    try:
        with h5py.File(path, "r") as file:
            stimulus = _stored(file, f"{split}/stimulus", 3)
            start, stop = frames or (0, len(stimulus))
            _check_frames(path.name, start, stop, len(stimulus))
            mean, std = scaling or _moments(_stored(file, "train/stimulus", 3))
            rates, names = _read_rates(file, split, response, cells, len(stimulus))
            return Recording(
                movie=_read_movie(stimulus, start, stop, mean, std),
                rates=rates[start:stop],
                cells=names,
                seconds_per_frame=_frame_seconds(file, split),
                name=f"{path.name} {split}" + (f" frames {start}:{stop}" if frames else ""),
                scaling=(mean, std),
            )
    except OSError as error:  # what h5py raises on damaged blocks
        raise DataError(f"{path}: not readable as an h5 file: {error}") from error


def _import_h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DependencyError(
            f"{path}: h5 files are read by h5py, which is not installed; "
            "pip install 'condec[retina]'"
        ) from error
    return h5py


def _stored(file: "h5py.File", key: str, n_axes: int) -> "h5py.Dataset":
    """A data set of the file; where it lacks it, what is there is listed."""
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
    size = max(1, _BLOCK_BYTES // (4 * math.prod(stimulus.shape[1:])))
    for first in range(start, stop, size):
        yield first - start, stimulus[first : min(first + size, stop)].astype(np.float32)


def _moments(stimulus: "h5py.Dataset") -> Scaling:
    """Mean and standard deviation of all pixels, in float64, block by block (Welford's merge)."""
    count, mean, squares = 0, 0.0, 0.0
    for _, block in _blocks(stimulus, 0, len(stimulus)):
        pixels = block.astype(np.float64)
        if not np.isfinite(pixels).all():
            raise DataError(
                f"{stimulus.file.filename}: {stimulus.name}: the movie is not finite; mend the "
                "file, or give scaling"
            )
        away = float(pixels.mean()) - mean
        total = count + pixels.size
        squares += float(pixels.var()) * pixels.size + away**2 * count * pixels.size / total
        mean += away * pixels.size / total
        count = total
    std = math.sqrt(squares / count)
    if std == 0.0:
        raise DataError(
            f"{stimulus.file.filename}: {stimulus.name}: the movie is constant, so its standard "
            "deviation cannot be divided by; give scaling"
        )
    return mean, std


def _read_movie(stimulus: "h5py.Dataset", start: int, stop: int, mean: float, std: float) -> Tensor:
    movie = torch.empty(stop - start, *stimulus.shape[1:])
    for first, block in _blocks(stimulus, start, stop):
        block -= np.float32(mean)
        block /= np.float32(std)
        movie[first : first + len(block)] = torch.from_numpy(block)
    return movie


def _read_rates(
    file: "h5py.File", split: str, response: str, cells: list[str] | None, n_frames: int
) -> tuple[Tensor, tuple[str, ...]]:
    key = f"{split}/response/{response}"
    stored = _stored(file, key, 2)
    if stored.shape[1] != n_frames:
        raise DataError(
            f"{file.filename}: {key}: responses of {stored.shape[1]} frames, but the movie has "
            f"{n_frames}; expected [cell, frame]"
        )
    names = tuple(str(row) for row in range(stored.shape[0]))
    rates = torch.from_numpy(stored[:].astype(np.float32)).T.contiguous()
    if cells is None:
        return rates, names
    return rates[:, _columns(f"{file.filename}: {key}", names, cells)], tuple(cells)


def _frame_seconds(file: "h5py.File", split: str) -> float:
    if "time" not in file[split] or len(file[split]["time"]) < 2:
        return SECONDS_PER_FRAME
    return float(np.median(np.diff(_stored(file, f"{split}/time", 1)[:])))


# --- checks -----------------------------------------------------------------------------------


def _frames_of(movie: Tensor, rows: Sequence[int], history: int) -> Iterator[bytes]:
    """Every frame that the clips `rows` show, once."""
    yield str(history).encode()
    shown = torch.zeros(len(movie), dtype=torch.bool)
    for row in rows:
        shown[row : row + history] = True
    for frame in shown.nonzero()[:, 0].tolist():
        yield bytes_of(movie[frame])


def _columns(name: str, known: Sequence[str], cells: Iterable[str]) -> list[int]:
    wanted = list(cells)
    missing = [cell for cell in wanted if cell not in known]
    if missing or not wanted:
        raise DataError(
            f"{name}: no cell {', '.join(missing) or 'is asked for'}; it has {', '.join(known)}"
        )
    if len(set(wanted)) < len(wanted):
        raise DataError(f"{name}: a cell is named twice in {', '.join(wanted)}")
    return [list(known).index(cell) for cell in wanted]


def _check_movie(recording: Recording) -> None:
    movie, name = recording.movie, recording.name
    if movie.ndim != 3 or 0 in movie.shape or movie.dtype != torch.float32:
        raise DataError(
            f"{name}: expected a movie [frame, y, x] of float32; got {movie.dtype} of shape "
            f"{tuple(movie.shape)}"
        )
    size = max(1, _BLOCK_BYTES // (4 * movie[0].numel()))
    for first in range(0, len(movie), size):
        wrong = (~movie[first : first + size].isfinite()).flatten(1).any(1)
        if bool(wrong.any()):
            frame = first + int(wrong.nonzero()[0])
            raise DataError(
                f"{name}: frame {frame} of the movie is not finite (NaN or infinite); mend the "
                "file, or choose other frames"
            )
    if not 0.0 < recording.seconds_per_frame < math.inf:
        raise DataError(
            f"{name}: seconds per frame must be above 0 and finite; got "
            f"{recording.seconds_per_frame}"
        )


def _check_rates(recording: Recording) -> None:
    rates, name, n_frames = recording.rates, recording.name, len(recording.movie)
    if rates is None:
        if recording.cells:
            raise DataError(
                f"{name}: {len(recording.cells)} cells are named, but there are no rates"
            )
        return
    if rates.ndim != 2 or len(rates) != n_frames:
        raise DataError(
            f"{name}: expected rates [frame, cell] of the movie's {n_frames} frames; got shape "
            f"{tuple(rates.shape)}"
        )
    if len(recording.cells) != rates.shape[1] or len(set(recording.cells)) != rates.shape[1]:
        raise DataError(
            f"{name}: expected {rates.shape[1]} different names of cells; got "
            f"{', '.join(recording.cells)}"
        )
    wrong = (~rates.isfinite()).nonzero()
    if len(wrong):
        frame, cell = wrong[0].tolist()
        raise DataError(
            f"{name}: {len(wrong)} rates are not finite, the first of cell "
            f"{recording.cells[cell]!r} in frame {frame}; leave out that cell, or those frames"
        )


def _check_events(recording: Recording) -> None:
    for event, course in recording.events.items():
        if tuple(course.shape) != (len(recording.movie),):
            raise DataError(
                f"{recording.name}: event {event!r}: expected one value for each of the "
                f"{len(recording.movie)} frames; got shape {tuple(course.shape)}"
            )


def _check_scaling(name: str, scaling: Scaling) -> None:
    mean, std = scaling
    if not (math.isfinite(mean) and 0.0 < std < math.inf):
        raise OptionError(
            f"{name}: scaling must be a finite mean and a standard deviation above 0; got "
            f"({mean}, {std})"
        )


def _check_frames(name: str, start: int, stop: int, n_frames: int) -> None:
    if not 0 <= start < stop <= n_frames:
        raise OptionError(
            f"{name}: frames {start}:{stop} are not there; expected START:STOP within 0:{n_frames}"
        )


def _cells_named(text: str | None, cells_of_model: Sequence[str] | None) -> list[str] | None:
    """Cells that a source names, which must be the model's where that has names for its own."""
    if text is None:
        return None
    cells = [cell for cell in text.split(",") if cell]
    lacking = [cell for cell in cells if cells_of_model and cell not in cells_of_model]
    if lacking:
        raise DataError(
            f"movie: cells={text}: the model has no cell {', '.join(lacking)}; it has "
            f"{', '.join(cells_of_model or ())}"
        )
    return cells


def _pair(key: str, text: str, between: str, kind: Any) -> Any:
    parts = text.split(between)
    if len(parts) != 2:
        raise OptionError(f"movie: {key}={text!r}: expected two numbers with {between!r} between")
    return tuple(_number(key, part, kind) for part in parts)


def _number(key: str, text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise OptionError(f"movie: {key}={text!r}: expected {kind.__name__} numbers") from error
