"""Models of several inputs, all of them in one tensor, of which a part stays as it is.

A path from a baseline to an input, and noise, move the whole tensor. What must not move, such as a
mask or the kinds of tokens, is put back by `hold`, wherever an input is changed.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PackedInput(nn.Module, ABC):
    """A model whose one input holds several, of which some stay as they are."""

    @abstractmethod
    def fixed(self, inputs: Tensor) -> Tensor | None:
        """Return which entries of inputs stay, bool, to be broadcast over them; None if none do."""

    def real(self, inputs: Tensor) -> Tensor | None:
        """Return which tokens of inputs are no padding, [sample, token], bool; None if all are."""
        return None

    @property
    def mean_token(self) -> Tensor | None:
        """Return the mean of the embeddings of all tokens, [channel]; None of other inputs."""
        return None

    def words(self, inputs: Tensor) -> list[str] | None:
        """Return the tokens of one input [1, token, ...] as they are read; None if unknown."""
        return None


def fixed_of(model: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return which entries of a model's inputs stay, as `PackedInput.fixed`; None of any other."""
    return model.fixed(inputs) if isinstance(model, PackedInput) else None


def hold(model: nn.Module, inputs: Tensor, changed: Tensor) -> Tensor:
    """Return changed inputs, or the baseline of some, with what stays put back as in the inputs."""
    fixed = fixed_of(model, inputs)
    return changed if fixed is None else torch.where(fixed, inputs, changed)
