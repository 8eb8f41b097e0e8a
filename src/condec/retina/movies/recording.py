"""Movies and the responses of cells to them, as overlapping clips that share one movie."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.data.inputs import Inputs, bytes_of
from condec.retina.checks import above

SECONDS_PER_FRAME: Final = 0.01

Scaling = tuple[float, float]
"""Mean and standard deviation of a movie, in its own unit."""


@short_repr
@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """A movie, and the responses of cells to it.

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
        Named time courses to show with loadings: gates that are known, phases of a stimulus.
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
        for event, course in self.events.items():
            if tuple(course.shape) != (len(self.movie),):
                raise DataError(
                    f"{self.name}: event {event!r}: expected one value for each of the "
                    f"{len(self.movie)} frames; got shape {tuple(course.shape)}"
                )

    def __len__(self) -> int:
        return len(self.movie)

    def windows(self, history: int) -> "Windows":
        """Return clips of `history` frames, as inputs of a model; none of them is a copy.

        Sample j is frames j .. j + history - 1, oldest first; its response is that during frame
        j + history, whose number is the sample's id. DataError where there are no more frames.
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
        """Return the rates that belong to the clips of `windows`: those from `history` on."""
        self._check_history(history)
        return self._needed_rates("responses")[history:]

    def scaled(self, scaling: Scaling) -> "Recording":
        """Return the recording with another mean and (above 0) standard deviation taken out."""
        check_scaling(self.name, scaling)
        if scaling == self.scaling:
            return self
        (had_mean, had_std), (mean, std) = self.scaling, scaling
        movie = self.movie * (had_std / std) + (had_mean - mean) / std
        return replace(self, movie=movie, scaling=scaling)

    def part(self, start: int, stop: int) -> "Recording":
        """Return frames `start` to below `stop`, numbered from 0 again."""
        check_frames(self.name, start, stop, len(self))
        events = {name: course[start:stop] for name, course in self.events.items()}
        rates = None if self.rates is None else self.rates[start:stop]
        name = f"{self.name} frames {start}:{stop}"
        return replace(self, movie=self.movie[start:stop], rates=rates, events=events, name=name)

    def of_cells(self, cells: Sequence[str]) -> "Recording":
        """Return the same movie with the responses of some cells, in the order given."""
        rates = self._needed_rates("a choice of cells")
        chosen = columns(self.name, self.cells, cells)
        return replace(self, rates=rates[:, chosen], cells=tuple(cells))

    def in_units_of(self, unit: float) -> "Recording":
        """Return the recording with rates divided by `unit`; those of about 1 train fastest."""
        above(self.name, unit=unit)
        return replace(self, rates=self._needed_rates("a unit") / unit)

    def _needed_rates(self, purpose: str) -> Tensor:
        if self.rates is None:
            raise DataError(
                f"{self.name}: a movie without responses, and {purpose} needs them; give rates of "
                "shape [frame, cell]"
            )
        return self.rates

    def _check_history(self, history: int) -> None:
        at_least(self.name, 1, history=history)
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


def _frames_of(movie: Tensor, rows: Sequence[int], history: int) -> Iterator[bytes]:
    """Yield every frame that the clips `rows` show, once."""
    yield str(history).encode()
    shown = torch.zeros(len(movie), dtype=torch.bool)
    for row in rows:
        shown[row : row + history] = True
    for frame in shown.nonzero()[:, 0].tolist():
        yield bytes_of(movie[frame])


def columns(name: str, known: Sequence[str], cells: Iterable[str]) -> list[int]:
    """Find `cells` among those that are known; DataError where one is not, or comes twice."""
    wanted = list(cells)
    missing = [cell for cell in wanted if cell not in known]
    if missing or not wanted:
        raise DataError(
            f"{name}: no cell {', '.join(missing) or 'is asked for'}; it has {', '.join(known)}"
        )
    if len(set(wanted)) < len(wanted):
        raise DataError(f"{name}: a cell is named twice in {', '.join(wanted)}")
    return [list(known).index(cell) for cell in wanted]


def check_scaling(name: str, scaling: Scaling) -> None:
    """Raise OptionError where a movie cannot be scaled so."""
    mean, std = scaling
    if not (math.isfinite(mean) and 0.0 < std < math.inf):
        raise OptionError(
            f"{name}: scaling must be a finite mean and a standard deviation above 0; got "
            f"({mean}, {std})"
        )


def check_frames(name: str, start: int, stop: int, n_frames: int) -> None:
    """Raise OptionError where a movie has no such frames."""
    if not 0 <= start < stop <= n_frames:
        raise OptionError(
            f"{name}: frames {start}:{stop} are not there; expected START:STOP within 0:{n_frames}"
        )


def _check_movie(recording: Recording) -> None:
    movie, name = recording.movie, recording.name
    if movie.ndim != 3 or 0 in movie.shape or movie.dtype != torch.float32:
        raise DataError(
            f"{name}: expected a movie [frame, y, x] of float32; got {movie.dtype} of shape "
            f"{tuple(movie.shape)}"
        )
    if not 0.0 < recording.seconds_per_frame < math.inf:
        raise DataError(
            f"{name}: seconds_per_frame must be above 0 and finite; got "
            f"{recording.seconds_per_frame}"
        )
    # A sum is finite where all of its terms are, and takes no memory as large as the movie.
    wrong = (~movie.sum((1, 2)).isfinite()).nonzero()
    if len(wrong):
        raise DataError(
            f"{name}: frame {int(wrong[0])} of the movie is not finite (NaN or infinite); mend the "
            "file, or choose other frames"
        )


def _check_rates(recording: Recording) -> None:
    rates, cells, name = recording.rates, recording.cells, recording.name
    if rates is None:
        if cells:
            raise DataError(f"{name}: {len(cells)} cells are named, but there are no rates")
        return
    if rates.ndim != 2 or len(rates) != len(recording):
        raise DataError(
            f"{name}: expected rates [frame, cell] of the movie's {len(recording)} frames; got "
            f"shape {tuple(rates.shape)}"
        )
    if len(cells) != rates.shape[1] or len(set(cells)) != rates.shape[1]:
        raise DataError(
            f"{name}: expected {rates.shape[1]} different names of cells; got {', '.join(cells)}"
        )
    wrong = (~rates.isfinite()).nonzero()
    if len(wrong):
        frame, cell = wrong[0].tolist()
        raise DataError(
            f"{name}: {len(wrong)} rates are not finite, the first of cell {cells[cell]!r} in "
            f"frame {frame}; leave out that cell, or those frames"
        )
