"""Trials of a model: passes recorded at sites, compared within what rounding may do."""

import copy
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from condec.network.sites import Site
from condec.network.state import State
from condec.network.tape import Call, check_output, record, run_model

Spot = tuple[str, str, int]
"""Name of a module, side, and number of its call."""
Records = dict[Spot, Tensor]
"""What came out at places, in order of execution; the output of the model last."""

OUTPUT: Final[Spot] = ("", "output", -1)
# By the type of the numbers: largest difference, as a share of the largest number, of the same
# pass again, and of a pass over another number of samples, which other kernels compute.
_TOLERANCES: Final = {torch.float64: (1e-12, 1e-9), torch.float32: (1e-5, 1e-3)}
_OF_GPU: Final = (1e-3, 1e-2)  # matrix products have ten bits where TF32 is allowed
_OF_HALF: Final = (1e-2, 5e-2)
_LARGEST_COPY: Final = 2**31
"""Bytes of a model in double precision that is tried so."""


class Trial:
    """Passes of a model, recorded at sites, and its state as it was before the first."""

    def __init__(self, model: nn.Module, sites: Iterable[Site]) -> None:
        self.model, self.sites, self.state = model, tuple(sites), State(model)

    def run(self, inputs: Tensor) -> Records:
        """Run one pass, as passes of contributions run, without a backward pass."""
        with record(self.model, self.sites) as tape:
            output = run_model(self.model, inputs)
        calls = [
            (call, (name, tap, number))
            for (name, tap), of_module in tape.calls.items()
            for number, call in enumerate(of_module)
            if isinstance(call, Call) and call.tensor._version == call.version
        ]
        calls.sort(key=lambda each: each[0].order)
        return {place: call.tensor.detach() for call, place in calls} | {OUTPUT: output.detach()}

    def everywhere(self) -> "Trial":
        """Return a trial of the same model at all its modules."""
        self.state.put_back()
        return Trial(self.model, [Site(name) for name, _ in self.model.named_modules() if name])

    def output(self, inputs: Tensor) -> Tensor:
        """Run one pass from the first state, of which only the output is kept."""
        self.state.put_back()
        with record(self.model, ()):
            output = run_model(self.model, inputs).detach()
        check_output(self.model, output, len(inputs))
        return output

    def in_double(self) -> "Trial | None":
        """Return a trial of a copy in double precision; None where there can be none."""
        self.state.put_back()
        numbers = sum(x.numel() for x in (*self.model.parameters(), *self.model.buffers()))
        if 8 * numbers > _LARGEST_COPY:
            return None
        try:
            return Trial(copy.deepcopy(self.model).double(), self.sites)
        # Modules may hold what cannot be copied, or what has no such precision.
        except (RuntimeError, TypeError, ValueError, AttributeError, MemoryError, copy.Error):
            return None


@dataclass(frozen=True)
class Tolerance:
    """Differences that rounding may make: in the same pass again, and in passes of other sizes."""

    again: float
    alone: float
    least: float  # of the numbers that differences are compared with: below it all is rounding
    is_double: bool = False

    @property
    def hardly(self) -> "Tolerance":
        """Differences that rounding seldom makes: where more is found, it has to be looked into."""
        return replace(self, alone=self.again, least=sys.float_info.min)

    @staticmethod
    def of(inputs: Tensor, records: Records) -> "Tolerance":
        """Choose by the coarsest numbers of a pass, and its device."""
        numbers = [x for x in (inputs, *records.values()) if x.is_floating_point() and x.numel()]
        coarsest = max((x.dtype for x in numbers), key=lambda dtype: torch.finfo(dtype).eps)
        again, alone = _TOLERANCES.get(coarsest, _OF_HALF)
        if torch.is_autocast_enabled(inputs.device.type):
            again, alone = _OF_HALF
        elif inputs.device.type != "cpu" and coarsest == torch.float32:
            again, alone = _OF_GPU
        largest = max(_largest(x) for x in numbers)
        least = largest * math.sqrt(torch.finfo(coarsest).eps)
        return Tolerance(again, alone, least, coarsest == torch.float64)

    def off(self, got: Tensor | None, expected: Tensor) -> float:
        """Return the largest difference as a share of the largest number; infinite for others."""
        if got is None or got.shape != expected.shape:
            return math.inf
        if torch.equal(got, expected) or not got.numel():
            return 0.0
        got, expected = (x if x.is_floating_point() else x.float() for x in (got, expected))
        same = (got == expected) | (got.isnan() & expected.isnan())
        largest = float(torch.where(same, 0.0, got - expected).abs().max())
        return math.inf if math.isnan(largest) else largest / max(_largest(expected), self.least)


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
