"""Control curves as one record: the numbers of every image, and the tables made of them."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.effects.intervals import Resampled, interval, selectivity
from condec.effects.measured import Measured
from condec.effects.points import CurveOptions, count_units
from condec.effects.rankings import Ranked
from condec.modes import label_name

if TYPE_CHECKING:
    import pandas

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
        """One row for every label, ranking and fraction; see `control_curve`."""
        import pandas

        rows = [row for number in range(len(self.curves)) for row in self._rows(number)]
        table = pandas.DataFrame(rows, columns=list(COLUMNS))
        return table.astype({"mode": "Int64", "off_label": "Int64"})

    def by_label(self) -> "pandas.DataFrame":
        """Accuracy of every label under every edit: who else suffers.

        Returns
        -------
        pandas.DataFrame
            One row for every curve, fraction and label of the held-out samples: ``target``
            (the label that the edit is made for), ``ranking``, ``fraction``, ``n_units``,
            ``label``, ``label_name``, ``n_samples``, ``unedited`` and ``edited`` accuracy, 0
            to 1 (the mean over draws), and ``relative``, NaN where nothing is right unedited.
        """
        import pandas

        counts, right = self._counts, self._sums["right"] / self._counts
        rows = []
        for curve in self.curves:
            for fraction, numbers in zip(self.options.fractions, curve.numbers, strict=True):
                for place, label in enumerate(self._labels):
                    before, after = float(right[0, place]), float(right[numbers, place].mean())
                    rows.append({
                        "target": curve.ranked.label, "ranking": curve.ranked.name,
                        "fraction": fraction, "n_units": count_units(self.n_units, fraction),
                        "label": label, "label_name": label_name(self.label_names, label),
                        "n_samples": int(counts[place]),
                        "unedited": before, "edited": after,
                        "relative": after / before if before else math.nan,
                    })  # fmt: skip
        return pandas.DataFrame(rows)

    @cached_property
    def relative(self) -> tuple[Float[torch.Tensor, "of resample fraction"], ...]:
        """Relative accuracies of every curve: target and off-target, in every resample."""
        resampled = Resampled(
            self.measured.right,
            self.measured.labels,
            n_bootstrap=self.options.n_bootstrap,
            seed=self.options.seed,
        )
        return tuple(
            resampled.relative(curve.numbers, curve.ranked.label, curve.off)
            for curve in self.curves
        )

    def _rows(self, number: int) -> list[dict[str, object]]:
        """Rows of one curve."""
        curve, relative = self.curves[number], self.relative[number]
        bounds = interval(relative.transpose(0, 1))  # [bound, of, fraction]
        auc_low, auc_high = interval(selectivity(relative, self.options.fractions)).tolist()
        masks = self._masks(curve)
        shared = self._describe(curve) | {
            "n_target": int(self._counts[masks["target"]].sum()),
            "n_off": int(self._counts[masks["off"]].sum()),
            "defined": not bool(relative[:, 0].isnan().any()),
            "auc_low": auc_low, "auc_high": auc_high,
        }  # fmt: skip
        rows = []
        for place, fraction in enumerate(self.options.fractions):
            row = shared | {"fraction": fraction, "n_units": count_units(self.n_units, fraction)}
            for of, (name, mask) in enumerate(masks.items()):
                row[f"{name}_accuracy"] = float(relative[of, 0, place])
                row[f"{name}_low"], row[f"{name}_high"] = bounds[:, of, place].tolist()
                row |= self._measures(name, mask, curve.numbers[place])
            rows.append(row)
        return rows

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
        measured, parts = self.measured, [self.measured.labels == one for one in self._labels]
        sums = {
            "right": torch.stack([measured.right[:, mine].double().sum(1) for mine in parts], 1)
        }
        for what in _CHANGES:
            values = getattr(measured, what)
            changes = [values[:, mine].double() - values[0, mine].double() for mine in parts]
            sums[what] = torch.stack([change.sum(1) for change in changes], 1)
        return sums

    def _masks(self, curve: Curve) -> dict[str, Bool[Tensor, " label"]]:
        labels = torch.tensor(self._labels)
        target = labels == curve.ranked.label
        return {"target": target, "off": ~target if curve.off is None else labels == curve.off}

    def _measures(
        self, name: str, mask: Bool[torch.Tensor, " label"], numbers: Int[torch.Tensor, " draw"]
    ) -> dict[str, object]:
        """Numbers of one point over the samples of some labels, means over draws."""
        n_samples = float(self._counts[mask].sum()) or math.nan

        def mean(what: str, edits: Tensor) -> Tensor:
            return self._sums[what][edits][:, mask].sum(1) / n_samples

        unedited, edited = float(mean("right", torch.tensor([0]))), mean("right", numbers)
        relative = edited / (unedited or math.nan)
        return {
            f"{name}_unedited": unedited,
            f"{name}_edited": float(edited.mean()),
            f"{name}_std": float(relative.std()) if len(numbers) > 1 else math.nan,
            **{f"{name}_{what}": float(mean(what, numbers).mean()) for what in _CHANGES},
        }

    def _describe(self, curve: Curve) -> dict[str, object]:
        ranked, options = curve.ranked, self.options
        return {
            "site": self.site, "label": ranked.label,
            "label_name": label_name(self.label_names, ranked.label),
            "ranking": ranked.name, "edit": options.edit, "replacement": options.replacement,
            "off": options.off, "off_label": curve.off,
            "mode": ranked.mode, "correlation": ranked.correlation,
            "n_draws": len(ranked.orders) if ranked.drawn else 0,
            "n_bootstrap": options.n_bootstrap,
        }  # fmt: skip
