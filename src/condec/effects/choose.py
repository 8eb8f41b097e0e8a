"""From an order of units to the edit of the first of them, and means over labels and draws."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.shapes import Atom
from condec.edits import Ablate, Preserve, unit_means
from condec.effects.intervals import image_counts, interval
from condec.effects.measured import Edits
from condec.effects.points import EditKind, Replacement, count_units
from condec.effects.samples import Samples
from condec.modes import Modes
from condec.network import Site


@dataclass(frozen=True, eq=False)
class Choice:
    """How many units of a site are taken, and what is done with them. Made by `choice_of`.

    Attributes
    ----------
    site : Site
    n_units, count : int
        Units of the site, and how many of them are ablated or preserved.
    edit : {"ablate", "preserve"}
    replacement : float, or Tensor of shape [unit]
    """

    site: Site
    n_units: int
    count: int
    edit: EditKind
    replacement: float | Atom

    def first(self, order: Tensor) -> tuple[int, ...]:
        """The units taken: the first of an order."""
        return tuple(order[: self.count].tolist())

    def edits(self, units: Iterable[int]) -> Edits:
        """Edit of some units; none where nothing would change."""
        units = sorted(set(units))
        if len(units) == (0 if self.edit == "ablate" else self.n_units):
            return ()
        if self.edit == "preserve" and units:
            return (Preserve(self.site, units=units, replacement=self.replacement),)
        # None to preserve: the site is replaced as a whole.
        return (
            Ablate(self.site, units=units or range(self.n_units), replacement=self.replacement),
        )


def choice_of(
    who: str,
    modes: Modes,
    *,
    edit: str,
    fraction: float | None,
    count: int | None,
    replacement: str,
) -> Choice:
    """Check how units are to be taken.

    Raises
    ------
    OptionError
        Another edit or replacement; not one of `fraction` and `count`, or one out of range.
    """
    for name, value, known in (
        ("edit", edit, get_args(EditKind)),
        ("replacement", replacement, get_args(Replacement)),
    ):
        if value not in known:
            raise OptionError(f"{who}: {name} must be one of {', '.join(known)}; got {value!r}")
    n_units = modes.store.info(modes.site).n_units
    if (fraction is None) == (count is None):
        raise OptionError(
            f"{who}: say how many units to {edit}: fraction (0 to 1) or count (0 to {n_units}), "
            f"one of the two; got fraction={fraction}, count={count}"
        )
    if fraction is not None and not 0.0 <= fraction <= 1.0:
        raise OptionError(f"{who}: fraction must be from 0 to 1; got {fraction}")
    if fraction is not None:
        count = count_units(n_units, fraction)
    elif count is None or not 0 <= count <= n_units:
        raise OptionError(
            f"{who}: count must be from 0 to {n_units}, the units of {modes.site.key}; got {count}"
        )
    return Choice(
        site=modes.site,
        n_units=n_units,
        count=count,
        edit="ablate" if edit == "ablate" else "preserve",
        replacement=(
            unit_means(modes.store, modes.site, ~modes.held_out) if replacement == "mean" else 0.0
        ),
    )


def of_labels(samples: Samples, labels: Sequence[int], *, keep: bool = True) -> Samples:
    """Samples of some labels, or, with ``keep=False``, of all others."""
    chosen = torch.isin(samples.labels, torch.tensor(list(labels))) == keep
    places = chosen.nonzero().flatten().tolist()
    return replace(
        samples, indices=[samples.indices[i] for i in places], labels=samples.labels[chosen]
    )


def label_means(
    values: Float[torch.Tensor, "edit sample"], labels: Tensor, chosen: Sequence[int]
) -> Float[torch.Tensor, "edit label"]:
    """Mean over the samples of each label, in float64; NaN where it has none."""
    return torch.stack([values[:, labels == label].double().mean(1) for label in chosen], 1)


def bootstrap(
    values: Float[torch.Tensor, "row sample"], *, n_draws: int, seed: int
) -> Float[torch.Tensor, "bound row"]:
    """95 % interval of the mean over samples, by percentiles of means of samples drawn again.

    All rows see the same draws, so that what is compared is paired.

    Parameters
    ----------
    values : Tensor of shape [row, sample]
    n_draws, seed : int

    Returns
    -------
    Tensor of shape [2, row]
        The lower and the upper bound; NaN without samples.
    """
    n_samples = values.shape[1]
    if not n_samples:
        return torch.full((2, len(values)), torch.nan, dtype=torch.float64)
    # One stratum: where labels have a sample each, drawing within labels draws nothing.
    counts = image_counts(torch.zeros(n_samples, dtype=torch.int64), n_draws, seed).double()
    return interval(counts @ values.double().T / n_samples)
