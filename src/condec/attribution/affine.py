"""What is affine in the input is computed at both ends of a path, not at every point of it.

On the straight path :math:`x(a) = x_0 + a (x - x_0)` a convolution of the input is
:math:`h(x_0) + a (h(x) - h(x_0))`. In a network that looks at 40 frames of a movie through
15 x 15 pixels, that is nine tenths of all work.

That a call is affine is proven anew in every pass, by what goes in: the model's input itself, a
view of it, or what an affine call gave, unchanged in place since. Wherever that cannot be seen,
the call is computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from condec.network import run_model

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

Layout = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Called:
    """What an affine call gave, and how its input lay in memory.

    Attributes
    ----------
    output : Tensor of shape [sample, ...]
    layout : tuple
        Of the input, samples left out: a call on another view is another call.
    """

    output: Tensor
    layout: Layout


Calls = dict[str, Called]


@dataclass(frozen=True, eq=False)
class AffineParts:
    """Outputs of affine calls at both ends of a path.

    Attributes
    ----------
    starts : dict of module name to Called, one sample
        At the baseline, which all samples share.
    ends : dict of module name to Called
        At the inputs.
    """

    starts: Calls
    ends: Calls

    @staticmethod
    def between(model: nn.Module, start: Tensor, ends: Calls) -> "AffineParts | None":
        """With the outputs at a baseline of shape [1, ...].

        None where nothing is affine, or every sample has a baseline of its own.
        """
        if not ends or len(start) != 1:
            return None
        with torch.no_grad(), watched(model, start) as starts:
            run_model(model, start)
        both = [n for n in ends if n in starts and ends[n].layout == starts[n].layout]
        if not both:
            return None
        return AffineParts({n: starts[n] for n in both}, {n: ends[n] for n in both})

    def take(self, rows: Tensor) -> "AffineParts":
        """Those of some samples."""
        return AffineParts(
            self.starts,
            {n: Called(end.output[rows], end.layout) for n, end in self.ends.items()},
        )

    def at(self, alphas: Sequence[float]) -> Calls:
        """Outputs at points of the path, stacked along the sample axis."""
        found = {}
        for name, end in self.ends.items():
            start = self.starts[name].output
            outputs = [torch.lerp(start, end.output, alpha) for alpha in alphas]
            found[name] = Called(torch.cat(outputs) if len(outputs) > 1 else outputs[0], end.layout)
        return found


@contextmanager
def watched(
    model: nn.Module, inputs: Tensor, answers: Mapping[str, Called] | None = None
) -> Iterator[Calls]:
    """Inside, affine calls of one pass over `inputs` are noted, or answered.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Tensor of shape [sample, ...]
        The very tensor that the model is called with.
    answers : mapping of module name to Called, optional
        What calls give that are affine, instead of being computed; each is given away.

    Yields
    ------
    dict of module name to Called
        Filled as the model runs with copies of what affine calls give that are worth an answer; a
        module that is called more than once is left out.
    """
    watch = _Watch(answers or {}, is_noting=answers is None)
    watch.know(inputs)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if _is_affine_kind(module) and "forward" not in module.__dict__:
                module.__dict__["forward"] = watch.around(name, module)
                stack.callback(module.__dict__.pop, "forward")
        yield watch.noted


class _Watch:
    """What is known to be affine in one pass, and what calls of it gave."""

    def __init__(self, answers: Mapping[str, Called], *, is_noting: bool) -> None:
        self.answers, self.is_noting = answers, is_noting
        self.noted: Calls = {}
        self._known: list[tuple[Tensor, int]] = []
        self._called: set[str] = set()

    def know(self, tensor: Tensor) -> None:
        """Take a tensor for affine, as long as nothing is done to it in place."""
        if not tensor.is_inference():  # nobody counts what is done to those
            self._known.append((tensor, tensor._version))

    def is_affine(self, given: Any) -> bool:
        """Whether a tensor, or what it is a view of, is known."""
        # What needs a gradient comes after a site: it must be computed from it.
        if not isinstance(given, Tensor) or given.requires_grad:
            return False
        return any(
            (given is tensor or given._base is tensor) and tensor._version == version
            for tensor, version in self._known
        )

    def around(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """The module's forward, computed only where it must be."""
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            is_first = name not in self._called
            self._called.add(name)
            if len(args) != 1 or kwargs or not self.is_affine(args[0]):
                self.noted.pop(name, None)
                return plain(*args, **kwargs)
            output = self._answer(name, args[0]) if is_first else None
            output = plain(*args) if output is None else output
            self.know(output)
            if not is_first:
                self.noted.pop(name, None)
            elif self.is_noting and _is_worth(module):
                self.noted[name] = Called(output.detach().clone(), _layout(args[0]))
            return output

        return forward

    def _answer(self, name: str, given: Tensor) -> Tensor | None:
        answer = self.answers.get(name)
        return answer.output if answer is not None and answer.layout == _layout(given) else None


def _layout(tensor: Tensor) -> Layout:
    return (tuple(tensor.shape[1:]), tensor.stride()[1:], tensor.storage_offset(), tensor.dtype)


def _is_affine_kind(module: nn.Module) -> bool:
    """By its very class: what inherits from one may do something else."""
    kind = type(module)
    if kind in _HEAVY:
        return True
    has_statistics = getattr(module, "running_mean", True) is not None
    return kind in _LIGHT and not module.training and has_statistics


def _is_worth(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if type(module) not in _HEAVY or not isinstance(weight, Tensor):
        return False
    return weight[0].numel() >= _LEAST_FAN_IN
