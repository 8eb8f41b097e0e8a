"""What stands in for units: numbers, means over data, or activations of other inputs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, final

import torch
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.basis.errors import DataError, OptionError, SiteError
from condec.basis.options import digest_of
from condec.basis.shapes import Activation, Atom, Mask
from condec.network import Site, check_samples, find_sites, record, run_model
from condec.store import Store


class Values(ABC):
    """Contract: activations of other inputs, to stand in for those at a site."""

    __slots__ = ()

    tensor: Tensor

    @abstractmethod
    def rows(self, who: str, activation: Tensor) -> Tensor:
        """One row for every sample of an activation, of its shape, dtype and device.

        Raises
        ------
        SiteError
            They do not fit the activation; `who` begins the message.
        """

    @property
    def text(self) -> str:
        """Stands for it in plain forms: the digest of its tensor."""
        return f"tensor {digest_of(self.tensor)}"


@final
@dataclass(frozen=True, slots=True, init=False, eq=False)
class Recorded(Values):
    """Activations of other inputs, sample by sample. Two are equal if they are one object.

    Parameters
    ----------
    tensor : Tensor of shape [sample or 1, ...]
        As `record_activation` gives it; a single one stands in for all samples. Where an
        edit meets several versions of the batch, one after the other, each gets all rows.

    Raises
    ------
    OptionError
        No sample, no floating type, or entries that are not finite.
    """

    tensor: Activation

    def __init__(self, tensor: Tensor) -> None:
        object.__setattr__(self, "tensor", _own(type(self).__name__, tensor))

    def rows(self, who: str, activation: Tensor) -> Tensor:
        """The recorded rows, in order, as often as the batch is there."""
        values = _like(who, self.tensor, activation)
        n_versions, rest = divmod(len(activation), len(values))
        if len(values) == 1:
            return values.expand_as(activation)
        if rest or not n_versions:
            raise SiteError(
                f"{who}: there are recorded values of {len(values)} samples, which stand in for "
                f"those samples, or for whole versions of them one after another; got "
                f"{len(activation)} samples. Record as many, or one for all, or use Resample"
            )
        return values.repeat(n_versions, *(1 for _ in values.shape[1:]))


@final
@dataclass(frozen=True, slots=True, init=False, eq=False)
class Resample(Values):
    """Activations drawn from those of other inputs, for batches of any size.

    Sample i of a batch gets the i-th draw, the same in every batch.

    Parameters
    ----------
    tensor : Tensor of shape [other sample, ...]
        As `record_activation` gives it.
    seed : int

    Raises
    ------
    OptionError
        As in `Recorded`.
    """

    tensor: Activation
    seed: int

    def __init__(self, tensor: Tensor, *, seed: int = 0) -> None:
        object.__setattr__(self, "tensor", _own(type(self).__name__, tensor))
        object.__setattr__(self, "seed", seed)

    def rows(self, who: str, activation: Tensor) -> Tensor:
        """One of the rows for every sample, drawn with replacement."""
        values = _like(who, self.tensor, activation)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(len(values), (len(activation),), generator=generator)
        return values[drawn.to(values.device)]

    @property
    def text(self) -> str:
        """Stands for it in plain forms: the digest of its tensor, and the seed."""
        return f"tensor {digest_of(self.tensor)}, drawn with seed {self.seed}"


Replacement = SupportsFloat | Sequence[SupportsFloat] | Tensor | Values
"""A number; one for every unit; a whole activation [sample or 1, ...], or draws from one."""


def checked_replacement(who: str, replacement: Replacement) -> float | tuple[float, ...] | Values:
    """What an edit holds for a replacement.

    Raises
    ------
    OptionError
        It is neither numbers nor an activation, or not finite.
    """
    if isinstance(replacement, Values):
        return replacement
    if isinstance(replacement, Tensor) and replacement.ndim > 1:
        return Recorded(replacement)
    # Numbers and arrays of numpy have tolist as tensors do.
    given: Any = replacement.tolist() if hasattr(replacement, "tolist") else replacement
    one = isinstance(given, SupportsFloat)
    try:
        if isinstance(given, str | bytes):
            raise TypeError("text")
        numbers = [given] if one else list(given)
        if any(isinstance(number, str | bytes | bool) for number in numbers):
            raise TypeError("text or truth values")
        values = tuple(float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{who}: replacement must be a number, or one number for every unit of the site; got "
            f"{replacement!r}. A whole activation is a tensor of shape [sample, ...]"
        ) from error
    if not values or not all(math.isfinite(value) for value in values):
        raise OptionError(f"{who}: replacement must be finite; got {list(values)[:5]}")
    return values[0] if one else values


def unit_means(
    store: Store, site: Site | str, rows: Mask | None = None, *, label: int | None = None
) -> Atom:
    """Mean activation of every unit, over samples and positions: a replacement for edits.

    The store holds activations summed over a unit's positions; this is their mean over
    samples, divided by the number of positions.

    Parameters
    ----------
    store : Store
    site : Site, or its name
    rows : Tensor of shape [sample], optional
        Which samples to take; by default all.
    label : int, optional
        Of these, the samples of one label only.

    Returns
    -------
    Tensor of shape [unit], in the unit of the activation.

    Raises
    ------
    DataError
        There is no such sample.
    """
    summed = store.matrix(site, quantity="activation", sign="sum")
    chosen = torch.ones(len(summed), dtype=torch.bool) if rows is None else rows
    if label is not None:
        chosen = chosen & (store.labels == label)
    if rows is not None or label is not None:
        summed = summed[chosen]
    if not len(summed):
        of = "" if label is None else f" of label {label}"
        raise DataError(f"unit_means: no sample{of} to take the mean of, in {store.path}")
    positions = store.info(site).n_positions
    return (summed.to(torch.float64).mean(0) / positions).to(torch.float32)


def record_activation(model: nn.Module, inputs: Tensor, site: Site | str) -> Activation:
    """What a site holds for some inputs: a source for `Patch`, a replacement for `Ablate`.

    Under `edited`, it is that of the edited network.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Tensor of shape [sample, ...]
        Moved to the device and floating type of the model.
    site : Site, or its text
        One site; which of its units count does not matter.

    Returns
    -------
    Tensor of shape [sample, ...]

    Raises
    ------
    SiteError
        There is not one such site, it does not run, or runs more than once and the site does
        not say which call is meant.
    ModelError
        The model is in training mode, or fails on the inputs.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> record_activation(small_resnet(), torch.ones(2, 1, 5, 5), "block1").shape
    torch.Size([2, 4, 5, 5])
    """
    sites = find_sites(model, site)
    if len(sites) > 1:
        raise SiteError(
            f"record_activation: expected one site; {str(site)!r} matches {len(sites)}: "
            f"{', '.join(found.key for found in sites[:5])}"
        )
    inputs = prepare_inputs(model, inputs)
    with record(model, sites) as tape, torch.no_grad():
        run_model(model, inputs)
        check_samples(tape.records, len(inputs))
        return tape.records[sites[0].key].detach()


def _own(who: str, tensor: Tensor) -> Tensor:
    """A copy, so that what the caller does to the tensor later changes no edit."""
    if not isinstance(tensor, Tensor):
        raise OptionError(
            f"{who}: expected a tensor of activations, as record_activation gives it; got "
            f"{type(tensor).__name__}"
        )
    if tensor.ndim < 2 or not len(tensor) or not tensor.is_floating_point():
        raise OptionError(
            f"{who}: expected activations, floating and of shape [sample, ...]; got shape "
            f"{tuple(tensor.shape)}, {tensor.dtype}"
        )
    if not bool(tensor.isfinite().all()):
        raise OptionError(f"{who}: activations must be finite; the tensor holds NaN or infinity")
    return tensor.detach().clone()


def _like(who: str, values: Tensor, activation: Tensor) -> Tensor:
    if values.shape[1:] != activation.shape[1:]:
        raise SiteError(
            f"{who}: recorded values must be of the shape at the site, [sample, "
            f"{', '.join(map(str, activation.shape[1:]))}]; got {tuple(values.shape)}"
        )
    return values.to(activation)
