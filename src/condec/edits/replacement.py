"""Values that replace those of units: numbers, means over data, activations of other inputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat, final

import torch
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.basis.errors import DataError, OptionError, SiteError
from condec.basis.records import short_repr
from condec.basis.shapes import Activation, Atom, Mask
from condec.network import (
    Site,
    check_order,
    count_folds,
    find_sites,
    fold,
    record,
    run_model,
    unfold,
)
from condec.store import Store


@final
@short_repr
@dataclass(frozen=True, slots=True, eq=False)
class Donors:
    """Activations of other inputs, [donor, ...], which replace those at a site.

    The tensor, as `record_activation` gives it, is copied; it is floating and finite. A donor
    stands in for each sample, or a single one for all; where an edit meets several versions of the
    batch one after the other, each gets all donors. With a `seed`, for batches of any size, sample
    i gets the i-th draw of the donors, with replacement, the same in every batch.
    """

    tensor: Activation
    seed: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        tensor = self.tensor
        if not isinstance(tensor, Tensor):
            raise OptionError(
                "Donors: expected a tensor of activations, as record_activation gives it; got "
                f"{type(tensor).__name__}"
            )
        if tensor.ndim < 2 or not len(tensor) or not tensor.is_floating_point():
            raise OptionError(
                "Donors: expected activations, floating and of shape [sample, ...]; got shape "
                f"{tuple(tensor.shape)}, {tensor.dtype}"
            )
        if not bool(tensor.isfinite().all()):
            raise OptionError(
                "Donors: activations must be finite; the tensor holds NaN or infinity"
            )
        # A copy, so that what the caller does to the tensor later changes no edit.
        object.__setattr__(self, "tensor", tensor.detach().clone())

    def rows(self, who: str, activation: Tensor) -> Tensor:
        """Return one row for every sample of an activation; SiteError where donors do not fit.

        Of donors [donor, fold, ...], one row for every fold: an activation has them in the batch.
        """
        n_folds = self.tensor.shape[1]
        if self.tensor.ndim == activation.ndim + 1 and not len(activation) % n_folds:
            return fold(self.rows(who, activation.view(-1, *self.tensor.shape[1:])))
        if self.tensor.shape[1:] != activation.shape[1:]:
            raise SiteError(
                f"{who}: recorded values must be of the shape at the site, [sample, "
                f"{', '.join(map(str, activation.shape[1:]))}]; got {tuple(self.tensor.shape)}"
            )
        donors, n_samples = self.tensor.to(activation), len(activation)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randint(len(donors), (n_samples,), generator=generator)
            return donors[drawn.to(donors.device)]
        n_versions, rest = divmod(n_samples, len(donors))
        if len(donors) > 1 and (rest or not n_versions):
            raise SiteError(
                f"{who}: there are recorded values of {len(donors)} samples, which stand in for "
                "those samples, or for whole versions of them one after another; got "
                f"{n_samples} samples. Record as many, or one for all, or give Donors a seed"
            )
        return donors.repeat(n_versions, *(1 for _ in donors.shape[1:]))


Replacement = SupportsFloat | Sequence[SupportsFloat] | Tensor | Donors
"""A number; one for every unit; a whole activation [sample or 1, ...], or draws from one."""


def checked_replacement(who: str, replacement: Replacement) -> float | tuple[float, ...] | Donors:
    """Return what an edit holds for a replacement: finite numbers, or donors."""
    if isinstance(replacement, Donors):
        return replacement
    if isinstance(replacement, Tensor) and replacement.ndim > 1:
        return Donors(replacement)
    try:
        values = numbers_of(replacement)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"{who}: replacement must be a number, or one number for every unit of the site; got "
            f"{replacement!r}. A whole activation is a tensor of shape [sample, ...]"
        ) from error
    if not values or not all(math.isfinite(value) for value in values):
        raise OptionError(f"{who}: replacement must be finite; got {list(values)[:5]}")
    is_one = isinstance(replacement, SupportsFloat) and not getattr(replacement, "ndim", 0)
    return values[0] if is_one else values


def numbers_of(values: Any) -> tuple[float, ...]:
    """Return one number, or several, as floats; TypeError or ValueError where they are none."""
    # Numbers and arrays of numpy have tolist as tensors do.
    given = values.tolist() if hasattr(values, "tolist") else values
    numbers = [given] if isinstance(given, SupportsFloat) else list(given)
    # float() would take text and truth values.
    if any(isinstance(number, str | bytes | bool) for number in (given, *numbers)):
        raise TypeError("text or truth values")
    return tuple(float(number) for number in numbers)


def unit_means(
    store: Store, site: Site | str, rows: Mask | None = None, *, label: int | None = None
) -> Atom:
    """Return the mean activation of every unit, [unit], over samples and positions.

    Of the `rows` [sample], by default all, the samples of one `label`, if it is given. No such
    sample is a DataError.
    """
    # Stores hold activations summed over a unit's positions.
    summed = store.matrix(site, quantity="activation", sign="sum")
    if label is not None:
        rows = (store.labels == label) & (True if rows is None else rows)
    summed = summed if rows is None else summed[rows]
    if not len(summed):
        of = "" if label is None else f" of label {label}"
        raise DataError(f"unit_means: no sample{of} to take the mean of, in {store.path}")
    positions = store.info(site).n_positions
    return (summed.to(torch.float64).mean(0) / positions).to(torch.float32)


def record_activation(model: nn.Module, inputs: Tensor, site: Site | str) -> Activation:
    """Return what a site holds for some inputs, [sample, ...]: a source for `Patch`, for one.

    [sample, fold, ...] where the model folds another axis into the batch. Under `edited`, it is
    that of the edited network.

    Raises
    ------
    SiteError, ModelError
        There is not one such site, or it does not run once; the model is in training mode.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> record_activation(small_resnet(), torch.ones(2, 1, 5, 5), "block1").shape
    torch.Size([2, 4, 5, 5])
    """
    return unfold(*record_rows(model, inputs, site))


def record_rows(model: nn.Module, inputs: Tensor, site: Site | str) -> tuple[Tensor, int]:
    """Return what a site holds, [sample and fold, ...], and the folds of a sample."""
    sites = find_sites(model, site)
    if len(sites) > 1:
        raise SiteError(
            f"record_activation: expected one site; {str(site)!r} matches {len(sites)}: "
            f"{', '.join(found.key for found in sites[:5])}"
        )
    inputs = prepare_inputs(model, inputs)
    with record(model, sites) as tape, torch.no_grad():
        run_model(model, inputs)
        ((key, h),) = tape.records.items()
    n_folds = count_folds({key: h}, len(inputs), allowed=[key])[key]
    check_order(model, inputs, sites if n_folds > 1 else ())
    return h.detach(), n_folds
