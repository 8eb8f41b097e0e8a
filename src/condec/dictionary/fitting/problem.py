"""What a learner gives the engine of gradient descent: what is trained and what is minimised."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

Parameters = Mapping[str, Tensor]

ATOMS: Final = "atoms"
"""Name of the decoder among the parameters."""
OFFSET: Final = "offset"
"""Name of what decoding adds; with neither half of a learner is it frozen."""


@dataclass(frozen=True, eq=False)
class Step:
    """Where a fit is.

    Attributes
    ----------
    index : int
        From 0.
    n_steps : int
    dead : Bool tensor of shape [mode], optional
        Modes that no row of the last pass used; only for problems that ask for it, and on a
        CPU only while there are any.
    """

    index: int
    n_steps: int
    dead: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Cost:
    """Value of the loss for a batch.

    Attributes
    ----------
    loss : Tensor
        One number.
    loadings : Tensor of shape [sample, mode]
        Of the batch, before anything is added for dead modes.
    """

    loss: Tensor
    loadings: Tensor


@dataclass(frozen=True, eq=False)
class Revival:
    """Dead modes and what they may be set to.

    Attributes
    ----------
    modes : Tensor of int
        Dead modes.
    rows, residuals : Tensor of shape [dead mode, unit]
        A row for each, drawn with a probability that grows with the square of its error, and
        what the dictionary leaves of it.
    """

    modes: Tensor
    rows: Tensor
    residuals: Tensor


def _nothing(parameters: Parameters) -> None:
    del parameters


@dataclass(frozen=True, eq=False)
class Problem:
    """What a learner gives the engine.

    Attributes
    ----------
    parameters : mapping of str to Tensor
        Initial values on the device; ``"atoms"`` [mode, unit] are the decoder.
    loss : callable
        Of parameters, rows of a batch and `Step`: a `Cost`. Pure but for random numbers, and
        without a look at values: several fits run as one under `torch.func.vmap`.
    project : callable
        Changes parameters in place after a step: where they may lie. For any axes before
        those that `parameters` have.
    watch_dead : bool
        Whether `Step.dead` is worked out.
    reconstruct, revive : callable, optional
        Rows as the dictionary describes them; and a change of parameters in place that sets
        dead modes anew (`Revival`). Both, or neither.
    by_mode : tuple of str
        Parameters whose first axis is modes, all of which `revive` sets; the optimiser's
        memory of those modes is cleared.
    fixed : tuple of str
        Parameters that the loss reads and no step changes.
    rates : mapping of str to float
        Learning rates of parameters relative to the fit's; 1 for those that are not named.
    n_revivals : int
        How often dead modes are set anew, evenly over the first half of the steps.
    settling : float
        Share of the steps in which the loss itself changes: `TrainConfig.patience` waits.
    """

    parameters: Parameters
    loss: Callable[[Parameters, Tensor, Step], Cost]
    project: Callable[[Parameters], None] = _nothing
    watch_dead: bool = False
    reconstruct: Callable[[Parameters, Tensor], Tensor] | None = None
    revive: Callable[[Parameters, Revival], None] | None = None
    by_mode: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    n_revivals: int = 4
    settling: float = 0.0
