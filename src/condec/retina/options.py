"""Options of the analysis of a retina."""

from dataclasses import dataclass

from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.retina.checks import above


@dataclass(frozen=True, slots=True, kw_only=True)
class RetinaOptions:
    """Options of the analysis of a retina; ``[retina]`` of a run.toml.

    Parameters
    ----------
    sites : tuple of str
        Patterns among the sites with modes; empty: all of them.
    cells : tuple of int
        Outputs of the model whose receptive fields are taken; empty: all of them.
    n_fields : int
        Frames at most, evenly over the movie, at which receptive fields are taken.
    crop : int
        Height and width in pixels of the window around a cell (the paper: 20).
    probes : bool
        Show the standard probes to the model (`condec.retina.probes`).
    probe_contrast : float
        Number in the model's unit that stands for contrast 1 of a probe.
    threshold : float
        A mode is active where its loading is above this share of its largest one.
    n_shifts : int
        Shifts in time by which combinations are judged.
    n_modes : int
        Modes of a site, the largest, that are sources of fields by themselves.
    seed, batch_size : int

    Raises
    ------
    OptionError
        A number is out of range.
    """

    sites: tuple[str, ...] = ()
    cells: tuple[int, ...] = ()
    n_fields: int = 1000
    crop: int = 20
    probes: bool = True
    probe_contrast: float = 1.0
    threshold: float = 0.1
    n_shifts: int = 500
    n_modes: int = 64
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least("retina", 1, crop=self.crop, batch_size=self.batch_size, n_modes=self.n_modes)
        at_least("retina", 0, n_shifts=self.n_shifts)
        at_least("retina", 10, n_fields=self.n_fields)
        above("retina", probe_contrast=self.probe_contrast)
        if not 0 <= self.threshold < 1:
            raise OptionError(
                f"retina: threshold is a share from 0 to below 1; got {self.threshold}"
            )
