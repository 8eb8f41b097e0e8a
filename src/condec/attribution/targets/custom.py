"""Any function of the output as a target."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from condec.attribution.targets.base import Target, TargetLike
from condec.attribution.targets.texts import TARGETS
from condec.basis.errors import ModelError, OptionError
from condec.basis.shapes import PerSample


@final
@dataclass(frozen=True, slots=True)
class Custom(Target):
    """A function of your own.

    Parameters
    ----------
    function : callable
        From the model's output [sample, ...] to one number a sample, Tensor [sample],
        differentiable. It is called with any number of samples, and must look at each alone.
    label : str, optional
        Stands for the function in the recipe of a store, which needs one: another function under
        the same label is taken for the same target.

    Raises
    ------
    OptionError
        `function` cannot be called; or, at the first output, it fails, does not give one
        floating-point number a sample, or mixes the samples; or a store is made without a label.

    Examples
    --------
    >>> target = Custom(lambda output: output[:, 0] - output[:, 1])
    >>> target.value(torch.tensor([[3.0, 1.0], [0.5, 0.0]]), None)
    tensor([2.0000, 0.5000])
    """

    function: Callable[[Tensor], Tensor]
    label: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise OptionError(
                f"Custom: expected a function from output to Tensor[sample]; got {self.function!r}"
            )

    def freeze(self, output: Tensor, labels: Tensor | None) -> Tensor | None:
        """Check that the last sample alone gives what it gives among the others; return None."""
        together, alone = self._call(output)[-1:], self._call(output[-1:])
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise OptionError(
                f"Custom: {self.shown} mixes the samples: for the last sample of the batch it "
                f"gives {together.item():g}, for the same sample alone {alone.item():g}. A target "
                "must look at each sample alone"
            )
        return None

    def value(self, output: Tensor, frozen: Tensor | None) -> PerSample:
        """Call the function; shape [sample]."""
        return self._call(output)

    def _call(self, output: Tensor) -> Tensor:
        try:
            value = self.function(output)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ModelError(
                f"Custom: {self.shown} failed on an output of shape {tuple(output.shape)}: "
                f"{error}. It must take any number of samples: the baseline is run once for all"
            ) from error
        if not isinstance(value, Tensor):
            raise OptionError(
                f"Custom: {self.shown} must return a Tensor of shape [sample]; got "
                f"{type(value).__name__}"
            )
        if value.shape != output.shape[:1] or not value.is_floating_point():
            raise OptionError(
                f"Custom: {self.shown} must return one floating-point number for each of "
                f"{len(output)} samples; got {value.dtype} of shape {tuple(value.shape)}"
            )
        return value

    @property
    def shown(self) -> str:
        """Name in messages and reports: the label, or the function's own name."""
        kind = type(self.function)
        return self.label or str(getattr(self.function, "__qualname__", kind.__qualname__))

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form, which holds the label only; OptionError where there is none."""
        if not self.label:
            raise OptionError(
                f"Custom: a store cannot tell {self.shown} from another function; give it a label "
                "that stands for it: target=Custom(function, label='...')"
            )
        return {"name": "Custom", "function": self.label}


def as_target(target: TargetLike) -> Target:
    """Return the target itself, or wrap a function of the output; OptionError for all else."""
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        raise OptionError(
            f"target {target!r}: a text stands for a target in a run.toml only; in Python give "
            f"condec.{TARGETS.parse(target)!r}"
        )
    if isinstance(target, type) or not callable(target):
        raise OptionError(
            "target: expected a target such as TopK(k=1), Logit(285) or a function from output to "
            f"Tensor[sample]; got {target!r}"
        )
    return Custom(target)
