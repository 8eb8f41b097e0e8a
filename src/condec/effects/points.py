"""What the points of control curves edit: from options to edits, each of which runs once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from condec.basis.errors import DataError, OptionError
from condec.edits import Ablate, Preserve, Recorded, record_activation, unit_means
from condec.effects.measured import Edits, Measured, measure
from condec.effects.rankings import Order, Ranking
from condec.effects.samples import Samples
from condec.modes import Modes

EditKind = Literal["ablate", "preserve"]
Replacement = Literal["zero", "mean"]
CurveReplacement = Literal["zero", "mean", "class_mean", "resample"]
OffTarget = Literal["others", "drawn"]

PAPER_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.18, 0.25, 0.5, 0.8, 0.99)
"""Fractions of units in figure 6 of Melander et al. 2026."""


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """How control curves are made; every field is an argument of `control_curve`.

    Parameters
    ----------
    labels : sequence of int, optional
    fractions : sequence of float
    edit : {"ablate", "preserve"}
    replacement : {"zero", "mean", "class_mean", "resample"}
    off : {"others", "drawn"}
    rankings : sequence of Ranking
    rank, n_random, n_bootstrap, seed, batch_size : int

    Raises
    ------
    OptionError
        A value outside its range.
    """

    labels: Sequence[int] | None = None
    fractions: Sequence[float] = PAPER_FRACTIONS
    edit: EditKind = "ablate"
    replacement: CurveReplacement = "zero"
    off: OffTarget = "others"
    rankings: Sequence[Ranking] = ()
    rank: int = 0
    n_random: int = 5
    n_bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name, kind in (
            ("edit", EditKind),
            ("replacement", CurveReplacement),
            ("off", OffTarget),
        ):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise OptionError(
                    f"control_curve: {name} must be one of {', '.join(known)}; got {value!r}"
                )
        fractions = tuple(float(fraction) for fraction in self.fractions)
        in_range = all(0.0 <= fraction <= 1.0 for fraction in fractions)
        if not fractions or not in_range or list(fractions) != sorted(set(fractions)):
            raise OptionError(
                "control_curve: fractions must be in ascending order, each from 0 to 1, for "
                f"example (0.05, 0.1, 0.25); got {fractions}"
            )
        object.__setattr__(self, "fractions", fractions)
        for name, least in (("n_random", 0), ("n_bootstrap", 0), ("batch_size", 1)):
            number = getattr(self, name)
            if number < least:
                raise OptionError(f"control_curve: {name} must be at least {least}; got {number}")


@dataclass(frozen=True)
class Change:
    """Units that an edit names; what equals another runs with it.

    Attributes
    ----------
    units : tuple of int
        Ablated or preserved; sorted.
    label : int, or None
        Whose mean replaces; None where the replacement is the same for all labels.
    """

    units: tuple[int, ...]
    label: int | None = None


def count_units(n_units: int, fraction: float) -> int:
    """How many units a fraction is: ``int(n_units * fraction)``, without rounding errors.

    >>> count_units(100, 0.29), int(100 * 0.29)
    (29, 28)
    """
    return math.floor(n_units * fraction + 1e-9)


def change_of(options: CurveOptions, order: Order, count: int, label: int) -> Change:
    """Edit of the first `count` units of an order, for one label."""
    units = tuple(sorted(order[:count].tolist()))
    of_label = options.replacement == "class_mean" and not _is_nothing(options, units, len(order))
    return Change(units, label if of_label else None)


def measure_changes(
    model: nn.Module,
    samples: Samples,
    modes: Modes,
    changes: Sequence[Change],
    options: CurveOptions,
) -> Measured:
    """Outputs of held-out samples under every change.

    Raises
    ------
    DataError
        ``resample`` of a single sample.
    """
    if options.replacement == "resample":
        parts = [
            measure(
                model,
                part,
                [_edits(options, modes, change, donors) for change in changes],
                batch_size=options.batch_size,
            )
            for part, donors in _with_donors(model, samples, modes, options)
        ]
        return _joined(parts)
    values = _Values(modes, options)
    edits = [_edits(options, modes, change, values.of(change.label)) for change in changes]
    return measure(model, samples, edits, batch_size=options.batch_size)


class _Values:
    """What replaces a unit where it is the same for all samples."""

    def __init__(self, modes: Modes, options: CurveOptions) -> None:
        self._modes = modes
        self._is_zero = options.replacement == "zero"
        self._known: dict[int | None, Any] = {}

    def of(self, label: int | None) -> Any:
        if self._is_zero:
            return 0.0
        if label not in self._known:
            modes = self._modes
            self._known[label] = unit_means(modes.store, modes.site, ~modes.held_out, label=label)
        return self._known[label]


def _is_nothing(options: CurveOptions, units: Sequence[int], n_units: int) -> bool:
    """Whether an edit of these units leaves everything as it is."""
    return len(units) == (0 if options.edit == "ablate" else n_units)


def _edits(options: CurveOptions, modes: Modes, change: Change, replacement: Any) -> Edits:
    n_units = modes.store.info(modes.site).n_units
    if _is_nothing(options, change.units, n_units):
        return ()
    if not change.units:  # none to preserve
        return (Ablate(modes.site, units=range(n_units), replacement=replacement),)
    option = Ablate if options.edit == "ablate" else Preserve
    return (option(modes.site, units=change.units, replacement=replacement),)


def _with_donors(
    model: nn.Module, samples: Samples, modes: Modes, options: CurveOptions
) -> Iterator[tuple[Samples, Recorded]]:
    """Batches of samples, each sample with the activation of another one."""
    number = len(samples)
    if number < 2:
        raise DataError(
            "control_curve: resample needs another held-out sample to take activations from; "
            "there is only one"
        )
    donors = draw_donors(number, options.seed)
    for start in range(0, number, options.batch_size):
        places = range(start, min(start + options.batch_size, number))
        part = replace(
            samples,
            indices=[samples.indices[place] for place in places],
            labels=samples.labels[places.start : places.stop],
        )
        given = samples.inputs.batch([samples.indices[donors[place]] for place in places])
        yield part, Recorded(record_activation(model, given, modes.site))


def draw_donors(n_samples: int, seed: int) -> list[int]:
    """For every sample another one, drawn once: each is the donor of exactly one.

    >>> sorted(draw_donors(4, 0)), any(a == b for a, b in enumerate(draw_donors(4, 0)))
    ([0, 1, 2, 3], False)
    """
    ring = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(ring)
    donors[ring] = ring.roll(1)
    return [int(donor) for donor in donors]


def _joined(parts: Sequence[Measured]) -> Measured:
    whole: dict[str, Any] = {
        field.name: torch.cat([getattr(part, field.name) for part in parts], -1)
        for field in fields(Measured)
        if isinstance(getattr(parts[0], field.name), Tensor)
    }
    return replace(parts[0], **whole)
