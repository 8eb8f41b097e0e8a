"""Affine layers after the input, computed at both ends of a path and not at every point of it.

On the straight path :math:`x(a) = x_0 + a (x - x_0)` a convolution of the input is
:math:`h(x_0) + a (h(x) - h(x_0))`. In a network that looks at 40 frames of a movie through
15 x 15 pixels, that is nine tenths of all work.

A call is known to be affine, in every pass, by its argument: what the model itself is given, a view
of it with one sample a row, or the output of such a call, unchanged in place since. Wherever that
cannot be seen, the call is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from condec.network import alone, run_model

_HEAVY: Final = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip
_LIGHT: Final = (
    nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
"""Affine in evaluation mode, and as cheap as to interpolate."""
_LEAST_FAN_IN: Final = 16
"""Products behind an entry from which on interpolating is cheaper."""


class Called(NamedTuple):
    """Output of an affine call, and how its input lay in memory: another view, another call."""

    output: Tensor
    layout: tuple[Any, ...]


Calls = dict[str, Called]
Alpha = float | Tensor
"""A place on a path, between 0 and 1: the same for all samples, or one each."""


def between(start: Tensor, end: Tensor, alpha: Alpha) -> Tensor:
    """Go from `start`, of shape [sample, ...] or [1, ...], a share `alpha` of the way to `end`."""
    if isinstance(alpha, Tensor):
        alpha = alpha.to(end).view(-1, *[1] * (end.ndim - 1))
    return torch.lerp(start, end, alpha)


@dataclass(frozen=True, eq=False)
class AffineParts:
    """Outputs of affine calls, by module name, at the baseline (one sample) and at the inputs."""

    starts: Calls
    ends: Calls

    @staticmethod
    def between(model: nn.Module, start: Tensor, ends: Calls) -> "AffineParts | None":
        """Run a baseline of shape [1, ...]; None if nothing is affine, or it is not one for all."""
        if not ends or len(start) != 1:
            return None
        with torch.no_grad(), watched(model, start) as starts:
            run_model(model, start)
        both = [n for n in ends if n in starts and ends[n].layout == starts[n].layout]
        return AffineParts({n: starts[n] for n in both}, {n: ends[n] for n in both})

    def take(self, rows: Tensor) -> "AffineParts":
        """Choose samples."""
        ends = {n: Called(end.output[rows], end.layout) for n, end in self.ends.items()}
        return AffineParts(self.starts, ends)

    def at(self, alphas: Sequence[Alpha]) -> Calls:
        """Interpolate to points of the path, stacked along the sample axis."""
        found = {}
        for name, (end, layout) in self.ends.items():
            start = self.starts[name].output
            outputs = [between(start, end, alpha) for alpha in alphas]
            found[name] = Called(torch.cat(outputs) if len(outputs) > 1 else outputs[0], layout)
        return found


@contextmanager
def watched(model: nn.Module, inputs: Tensor, answers: Calls | None = None) -> Iterator[Calls]:
    """Note affine calls of one pass over as many samples as `inputs`, or answer from `answers`.

    The yielded dictionary fills, as the model runs, with copies of the outputs worth an answer;
    a module called more than once is left out.
    """
    watch = _Watch(len(inputs), answers)
    with ExitStack() as stack:
        stack.enter_context(alone(model))  # or a proof in another thread would put `forward` back
        for name, module in model.named_modules():
            if (_is_affine_kind(module) or not name) and "forward" not in module.__dict__:
                module.__dict__["forward"] = watch.around(name, module)
                stack.callback(module.__dict__.pop, "forward")
        yield watch.noted


class _Watch:
    """Tensors known to be affine in one pass, and the outputs of calls on them."""

    def __init__(self, n_samples: int, answers: Calls | None) -> None:
        self.answers, self.noted = answers, Calls()
        self.n_samples = n_samples
        self._known: list[tuple[Tensor, int]] = []
        self._called: set[str] = set()

    def _know(self, tensor: Tensor) -> None:
        if not tensor.is_inference():  # changes in place are not counted there
            self._known.append((tensor, tensor._version))

    def _is_affine(self, given: Any) -> bool:
        # A tensor that needs a gradient comes after a site: it must be computed from it.
        if not isinstance(given, Tensor) or given.requires_grad:
            return False
        if given.shape[:1] != (self.n_samples,):
            return False
        return any(
            (given is tensor or (given._base is tensor and _has_a_sample_a_row(given, tensor)))
            and tensor._version == version
            for tensor, version in self._known
        )

    def around(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """Wrap the module's forward: computed only where it must be."""
        plain = module.forward
        is_affine = _is_affine_kind(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not name and args and isinstance(args[0], Tensor):
                self._know(args[0])  # of the model itself: its input
            if not is_affine:
                return plain(*args, **kwargs)
            is_first = name not in self._called
            self._called.add(name)
            if not is_first or len(args) != 1 or kwargs or not self._is_affine(args[0]):
                self.noted.pop(name, None)
                return plain(*args, **kwargs)
            given = args[0]
            layout = (given.shape[1:], given.stride()[1:], given.storage_offset(), given.dtype)
            known = None if self.answers is None else self.answers.get(name)
            output = known.output if known and known.layout == layout else plain(given)
            self._know(output)
            if self.answers is None and _is_worth(module) and len(output) == self.n_samples:
                self.noted[name] = Called(output.detach().clone(), layout)
            return output

        return forward


def _has_a_sample_a_row(view: Tensor, base: Tensor) -> bool:
    """Tell whether row i of a view holds entries of sample i alone, for any number of samples."""
    if len(base) == 1:
        return len(view) == 1
    reach = sum((n - 1) * step for n, step in zip(view.shape[1:], view.stride()[1:], strict=True))
    first = view.storage_offset() - base.storage_offset()
    a_sample = base.stride(0)
    return len(view) == len(base) and view.stride(0) == a_sample and first + reach < a_sample


def _is_affine_kind(module: nn.Module) -> bool:
    """By its very class: one that inherits from it may do something else."""
    has_statistics = getattr(module, "running_mean", True) is not None
    is_light = type(module) in _LIGHT and not module.training and has_statistics
    return is_light or type(module) in _HEAVY


def _is_worth(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    is_heavy = type(module) in _HEAVY
    return is_heavy and isinstance(weight, Tensor) and weight[0].numel() >= _LEAST_FAN_IN
