"""Precision and memory order of passes. They change rounding, nothing else."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.options import Option
from condec.network import half_precision, own_precision

Precision = Literal["model", "bfloat16", "float16"]

_TYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute(Option):
    """Precision and memory order of a method's passes.

    Parameters
    ----------
    precision : {"model", "bfloat16", "float16"}
        ``"model"``: the type of the model's weights. Otherwise matrix products and
        convolutions run in that type (autocast), while sums over the path stay in float32;
        float16 may lose small gradients, bfloat16 does not. Autocast that is in force around
        the call does not count.
    channels_last : bool
        Hand images to the model with the channel axis innermost in memory; no effect on other
        inputs. Convolutions may be faster, most of all in half precision on a GPU (on 2 cores a
        ResNet-50 took 0.87 to 1.1 times as long). A model that calls ``view`` on its images
        fails with it, and needs ``reshape``.

    Raises
    ------
    OptionError
        An unknown precision.
    """

    precision: Precision = "model"
    channels_last: bool = False

    def __post_init__(self) -> None:
        one_of("Compute", "precision", self.precision, Precision)

    def arrange(self, inputs: Tensor) -> Tensor:
        """The inputs in the order of memory they are computed in."""
        if self.channels_last and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def running(self, device: torch.device) -> AbstractContextManager[object]:
        """Inside, passes on `device` run in the precision that is asked for."""
        if self.precision == "model":
            return own_precision()
        return half_precision(device, _TYPES[self.precision])
