"""Trials of a model: passes recorded at sites, compared within what rounding may do."""

import copy
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError
from condec.network.sites import Site
from condec.network.state import State
from condec.network.tape import Call, check_output, record, run_model

Spot = tuple[str, str, int]
"""Name of a module, side, and number of its call."""
Records = dict[Spot, Tensor]
"""What came out at places, in order of execution; the output of the model last."""

OUTPUT: Final[Spot] = ("", "output", -1)
MIXED: Final = "depends on the other samples of the batch"
# By the type of the numbers: largest difference, as a share of the largest number, of the same
# pass again, and of a pass over another number of samples, which other kernels compute.
_TOLERANCES: Final = {torch.float64: (1e-12, 1e-9), torch.float32: (1e-5, 1e-3)}
_OF_GPU: Final = (1e-3, 1e-2)  # matrix products have ten bits where TF32 is allowed
_OF_HALF: Final = (1e-2, 5e-2)
_LARGEST_COPY: Final = 2**31
"""Bytes of a model in double precision that is tried so."""


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Samples that a model takes in one pass: at least `least`; `only` so many, where it is set."""

    least: int = 1
    only: bool = False

    def takes(self, n_samples: int) -> bool:
        """Tell whether a pass may have so many samples."""
        return n_samples == self.least or (n_samples > self.least and not self.only)

    def passes(self, n_samples: int) -> list[Tensor]:
        """Divide samples into passes of `least`, by their places; the last repeats its last one."""
        starts = range(0, n_samples, self.least)
        return [torch.arange(at, at + self.least).clamp(max=n_samples - 1) for at in starts]

    def few(self, inputs: Tensor) -> Tensor:
        """Take the fewest samples of a batch that the model takes; repeats one where it must."""
        return inputs[:1] if self.least == 1 else inputs[torch.arange(self.least) % len(inputs)]

    def __str__(self) -> str:
        if self.only:
            return f"of {self.least} only"
        return "of any size" if self.least == 1 else f"of {self.least} or more"


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
        return replace(self, alone=self.again, least=0.0)

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
        size = max(_largest(expected), self.least, sys.float_info.min)
        return math.inf if math.isnan(largest) else largest / size


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def run_alone(
    trial: Trial, whole: Tensor, first: Records, tolerance: Tolerance, *, copies: bool
) -> tuple[BatchSizes, dict[Spot, str]]:
    """Run samples alone, or copies of each, and say what differs from the pass over all.

    Without `copies` those only serve where the shape is another: what differs may be rounding.
    """
    n_samples = len(whole)
    if n_samples != 2:
        sizes = BatchSizes(n_samples, only=True)
        return sizes, differing(trial, whole, first, n_samples, tolerance) if n_samples > 1 else {}
    wrong = differing(trial, whole, first, 1, tolerance)
    if not wrong or (not copies and MIXED in wrong.values()):
        return BatchSizes(), wrong
    of_copies = differing(trial, whole, first, 2, tolerance)
    if set(of_copies) == set(wrong):
        return BatchSizes(), wrong
    try:
        trial.run(whole[[0, 1, 0]])
    except ModelError:
        return BatchSizes(2, only=True), of_copies
    return BatchSizes(2), of_copies


def differing(
    trial: Trial, whole: Tensor, first: Records, n_copies: int, tolerance: Tolerance
) -> dict[Spot, str]:
    """Say what the first two samples give otherwise when their copies run by themselves."""
    wrong: dict[Spot, str] = {}
    for sample in (0, 1):
        trial.state.put_back()
        try:
            alone = trial.run(whole[[sample] * n_copies])
        except ModelError:
            return {OUTPUT: "fails"}
        for place, x in first.items():
            words = _differs(x, len(whole), alone.get(place), n_copies, sample, tolerance)
            if words:
                wrong.setdefault(place, words)
    return wrong


def _differs(
    x: Tensor, n_samples: int, copies: Tensor | None, n_copies: int, sample: int,
    tolerance: Tolerance,
) -> str:  # fmt: skip
    """Compare the rows of one sample in a record of all with those of its copies."""
    if copies is None:
        return f"does not run for {n_copies} of them"
    expected, got = _by_sample(x, n_samples), _by_sample(copies, n_copies)
    if expected is None or got is None or expected.shape[1:] != got.shape[1:]:
        one = f"{tuple(copies.shape)} for {n_copies}"
        return f"has shape {tuple(x.shape)} for {n_samples} samples and {one}"
    off = max(tolerance.off(row, expected[sample]) for row in got)
    return MIXED if off > tolerance.alone else ""


def _by_sample(tensor: Tensor, n_samples: int) -> Tensor | None:
    """Give a record an axis of samples; None unless each can have the same number of rows."""
    if tensor.ndim == 0 or not len(tensor) or len(tensor) % n_samples:
        return None
    return tensor.reshape(n_samples, -1, *tensor.shape[1:])


def in_company(trial: Trial, many: Tensor, of_two: Tensor, tolerance: Tolerance) -> str:
    """Say whether two samples give something else in a larger batch.

    Two of three places are theirs, in no order that repeats (that of Thue and Morse), so that
    others are seen to reach any part of a batch; the first and the last one are among them.
    """
    places = torch.arange(len(many), device=many.device)
    known = (places % 3 != 1) | (places == places[-1])
    which = torch.tensor([i.bit_count() % 2 for i in range(len(many))], device=many.device)
    output = trial.output(many[torch.where(known, which, places)])[known]
    if tolerance.off(output, of_two[which[known]]) <= tolerance.alone:
        return ""
    return f"samples meet in larger batches: in one of {len(many)} they give others than by twos"
