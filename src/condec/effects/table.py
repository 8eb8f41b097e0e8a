"""Control curves as one record: options, the numbers of every image, and tables made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import torch
from jaxtyping import Bool, Float, Int

from condec.basis.checks import ascending, at_least, one_of
from condec.basis.records import short_repr
from condec.edits import count_units
from condec.effects.choice import EditKind, ReplacementKind
from condec.effects.intervals import Resampled, interval, selectivity
from condec.effects.measured import Measured
from condec.effects.rankings import Ranked, Ranking
from condec.modes import label_name

if TYPE_CHECKING:
    import pandas

OffTarget = Literal["others", "drawn"]

PAPER_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.18, 0.25, 0.5, 0.8, 0.99)
"""Fractions of units in figure 6 of Melander et al. 2026."""

COLUMNS: Final = (
    "site", "label", "label_name", "ranking", "edit", "replacement", "fraction", "n_units",
    "target_accuracy", "off_accuracy", "target_low", "target_high", "off_low", "off_high",
    "target_std", "off_std", "defined",
    "target_unedited", "off_unedited", "target_edited", "off_edited",
    "target_probability", "off_probability", "target_logit", "off_logit",
    "target_entropy", "off_entropy", "auc_low", "auc_high",
    "n_target", "n_off", "off", "off_label", "n_draws", "n_bootstrap", "mode", "correlation",
)  # fmt: skip
"""Columns of `control_curve`."""

_CHANGES: Final = ("probability", "logit", "entropy")


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Options of control curves; every field is an argument of `control_curve`.

    Raises
    ------
    OptionError
        A value outside its range.
    """

    labels: Sequence[int] | None = None
    fractions: Sequence[float] = PAPER_FRACTIONS
    edit: EditKind = "ablate"
    replacement: ReplacementKind = "zero"
    off: OffTarget = "others"
    rankings: Sequence[Ranking] = ()
    rank: int = 0
    n_random: int = 5
    n_bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        who = "control_curve"
        one_of(who, "edit", self.edit, EditKind)
        one_of(who, "replacement", self.replacement, ReplacementKind)
        one_of(who, "off", self.off, OffTarget)
        fractions = tuple(float(fraction) for fraction in self.fractions)
        expected = (
            "fractions must be in ascending order, each from 0 to 1, for example (0.05, 0.1, 0.25)"
        )
        ascending(who, fractions, expected, low=0.0, high=1.0)
        object.__setattr__(self, "fractions", fractions)
        at_least(who, 0, n_random=self.n_random, n_bootstrap=self.n_bootstrap)
        at_least(who, 1, batch_size=self.batch_size)


@short_repr
@dataclass(frozen=True, eq=False)
class Curve:
    """One label under one ranking.

    Attributes
    ----------
    ranked : Ranked
    off : int, or None
        The other label, where one is drawn.
    numbers : Tensor of shape [fraction, draw]
        Rows of `Curves.measured`.
    """

    ranked: Ranked
    off: int | None
    numbers: Int[torch.Tensor, "fraction draw"]


@short_repr
@dataclass(frozen=True, eq=False)
class Curves:
    """Control curves with the numbers of every image. Made by `measure_curves`.

    Attributes
    ----------
    site : str
    n_units : int
        Units of the site.
    options : CurveOptions
    label_names : tuple of str, or None
    rankings : tuple of str
    curves : tuple of Curve
        All rankings of the first label, then those of the next.
    measured : Measured
        Row 0 is the network as it is.
    """

    site: str
    n_units: int
    options: CurveOptions
    label_names: tuple[str, ...] | None
    rankings: tuple[str, ...]
    curves: tuple[Curve, ...]
    measured: Measured

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row for every label, ranking and fraction; see `control_curve`."""
        import pandas

        pairs = zip(self.curves, self.relative, strict=True)
        rows = [row for curve, relative in pairs for row in self._rows(curve, relative)]
        table = pandas.DataFrame(rows, columns=list(COLUMNS))
        return table.astype({"mode": "Int64", "off_label": "Int64"})

    @cached_property
    def relative(self) -> tuple[Float[torch.Tensor, "of resample fraction"], ...]:
        """Relative accuracies of every curve: target and off-target, in every resample."""
        resampled = Resampled(
            self.measured.right, self.measured.labels,
            n_bootstrap=self.options.n_bootstrap, seed=self.options.seed,
        )  # fmt: skip
        return tuple(
            resampled.relative(curve.numbers, curve.ranked.label, curve.off)
            for curve in self.curves
        )

    def _rows(
        self, curve: Curve, relative: Float[torch.Tensor, "of resample fraction"]
    ) -> list[dict[str, object]]:
        """Return the rows of one curve."""
        ranked, options = curve.ranked, self.options
        bounds = interval(relative.transpose(0, 1))  # [bound, of, fraction]
        auc_low, auc_high = interval(selectivity(relative, options.fractions)).tolist()
        labels = torch.tensor(self._labels)
        target = labels == ranked.label
        masks = {"target": target, "off": ~target if curve.off is None else labels == curve.off}
        shared = {
            "site": self.site, "label": ranked.label,
            "label_name": label_name(self.label_names, ranked.label),
            "ranking": ranked.name, "edit": options.edit, "replacement": options.replacement,
            "off": options.off, "off_label": curve.off,
            "mode": ranked.mode, "correlation": ranked.correlation,
            "n_draws": len(ranked.orders) if ranked.drawn else 0,
            "n_bootstrap": options.n_bootstrap,
            **{f"n_{name}": int(self._counts[mask].sum()) for name, mask in masks.items()},
            "defined": not bool(relative[:, 0].isnan().any()),
            "auc_low": auc_low, "auc_high": auc_high,
        }  # fmt: skip
        rows = []
        for place, fraction in enumerate(options.fractions):
            row = shared | {"fraction": fraction, "n_units": count_units(self.n_units, fraction)}
            for of, (name, mask) in enumerate(masks.items()):
                row[f"{name}_accuracy"] = float(relative[of, 0, place])
                row[f"{name}_low"], row[f"{name}_high"] = bounds[:, of, place].tolist()
                point = self._point(mask, curve.numbers[place])
                row |= {f"{name}_{what}": value for what, value in point.items()}
            rows.append(row)
        return rows

    def _point(
        self, mask: Bool[torch.Tensor, " label"], numbers: Int[torch.Tensor, " draw"]
    ) -> dict[str, float]:
        """Return numbers of one point over the samples of some labels, means over draws."""
        n_samples = float(self._counts[mask].sum()) or math.nan
        means = {
            what: values[numbers][:, mask].sum(1) / n_samples for what, values in self._sums.items()
        }
        edited = means.pop("right")
        unedited = float(self._sums["right"][0, mask].sum() / n_samples)
        relative = edited / (unedited or math.nan)
        return {
            "unedited": unedited,
            "edited": float(edited.mean()),
            "std": float(relative.std()) if len(numbers) > 1 else math.nan,
            **{what: float(mean.mean()) for what, mean in means.items()},
        }

    @cached_property
    def _labels(self) -> list[int]:
        """Labels of the held-out samples."""
        return sorted(set(self.measured.labels.tolist()))

    @cached_property
    def _counts(self) -> Float[torch.Tensor, " label"]:
        """Samples of each of them."""
        return torch.bincount(self.measured.labels)[self._labels].double()

    @cached_property
    def _sums(self) -> dict[str, Float[torch.Tensor, "edit label"]]:
        """Over the samples of each label: how many are right, and changes by the edit."""
        measured = self.measured
        values = {"right": measured.right.double()}
        for what in _CHANGES:
            of_edits = getattr(measured, what).double()
            values[what] = of_edits - of_edits[0]
        parts = [measured.labels == one for one in self._labels]
        return {
            what: torch.stack([of[:, mine].sum(1) for mine in parts], 1)
            for what, of in values.items()
        }
