"""Control curves as one record: options, the numbers of every image, and tables made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.basis.bootstrap import interval, resample_counts
from condec.basis.checks import ascending, at_least, one_of
from condec.basis.records import short_repr
from condec.edits import count_units
from condec.effects.choice import EditKind, ReplacementKind
from condec.effects.intervals import draw_weights, selectivity
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
Relative = Float[torch.Tensor, "of resample fraction"]


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Options of control curves.

    Attributes
    ----------
    labels : sequence of int, optional
        By default all that have training and held-out rows.
    fractions : sequence of float
        In ascending order, 0 to 1.
    replacement : {"zero", "mean", "class_mean", "resample"}
        What takes the place of units: 0; the unit's mean over training rows and positions
        (`unit_means`), or over the label's own training rows; or what another held-out
        sample, drawn once, has there, position by position.
    off : {"others", "drawn"}
        Off-target: all other labels together, or one of them for each label, drawn once.
    rankings : sequence of Ranking
        Other orders to compare; `n_random` is then not used.
    n_random, n_bootstrap, seed : int
        Random draws, 0 leaves the ranking out; resamples behind the 95 % intervals, 0 leaves
        them out (NaN); of all that is drawn.
    batch_size : int
        Held-out inputs that pass the model together.
    prove : bool
        Try first whether outputs belong to single samples (`condec.prove`).
    """

    labels: Sequence[int] | None = None
    fractions: Sequence[float] = PAPER_FRACTIONS
    edit: EditKind = "ablate"
    replacement: ReplacementKind = "zero"
    off: OffTarget = "others"
    rankings: Sequence[Ranking] = ()
    n_random: int = 5
    n_bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64
    prove: bool = True

    def __post_init__(self) -> None:
        who = "control_curve"
        one_of(who, "edit", self.edit, EditKind)
        one_of(who, "replacement", self.replacement, ReplacementKind)
        one_of(who, "off", self.off, OffTarget)
        fractions = tuple(float(fraction) for fraction in self.fractions)
        expected = "fractions must be in ascending order, each from 0 to 1, for example (0.05, 0.1)"
        ascending(who, fractions, expected, low=0.0, high=1.0)
        object.__setattr__(self, "fractions", fractions)
        at_least(who, 0, n_random=self.n_random, n_bootstrap=self.n_bootstrap)
        at_least(who, 1, batch_size=self.batch_size)


@short_repr
@dataclass(frozen=True, eq=False)
class Curve:
    """One label under one ranking; `numbers` are rows of `Curves.measured`, `off` a drawn label."""

    ranked: Ranked
    off: int | None
    numbers: Int[torch.Tensor, "fraction draw"]


@short_repr
@dataclass(frozen=True, eq=False)
class Curves:
    """Control curves, label by label, with the numbers of every image. Made by `measure_curves`.

    Row 0 of `measured` is the network as it is.
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
    def relative(self) -> tuple[Relative, ...]:
        """Relative accuracies, NaN without a right image; images and draws are drawn again."""
        n_bootstrap, seed = self.options.n_bootstrap, self.options.seed
        labels = self.measured.labels
        right, counts = self.measured.right.float(), resample_counts(labels, n_bootstrap, seed)
        every, by_label, found = right @ counts.T, {}, []
        for label in sorted(set(labels.tolist())):
            mine = labels == label
            by_label[label] = right[:, mine] @ counts[:, mine].T
        for curve in self.curves:
            target = by_label[curve.ranked.label]
            off = every - target if curve.off is None else by_label[curve.off]
            sums = torch.stack([target, off]).double()  # [of, edit, resample]
            # Nothing right without an edit: no ratio, rather than one that is infinite.
            unedited = torch.where(sums[:, 0] > 0, sums[:, 0], torch.nan)
            ratio = sums[:, curve.numbers] / unedited[:, None, None]
            weights = draw_weights(curve.numbers.shape[1], n_bootstrap, seed)
            found.append(torch.einsum("ofdr,rd->orf", ratio, weights))
        return tuple(found)

    def _rows(self, curve: Curve, relative: Relative) -> list[dict[str, object]]:
        """Return the rows of one curve."""
        ranked, options = curve.ranked, self.options
        bounds = interval(relative.transpose(0, 1))  # [bound, of, fraction]
        auc_low, auc_high = interval(selectivity(relative, options.fractions)).tolist()
        counts = torch.bincount(self.measured.labels)
        labels = counts.nonzero().flatten()
        target = labels == ranked.label
        masks = {"target": target, "off": ~target if curve.off is None else labels == curve.off}
        n_samples = {name: int(counts[labels[mask]].sum()) for name, mask in masks.items()}
        shared = {
            "site": self.site, "label": ranked.label,
            "label_name": label_name(self.label_names, ranked.label),
            "ranking": ranked.name, "edit": options.edit, "replacement": options.replacement,
            "off": options.off, "off_label": curve.off,
            "mode": ranked.mode, "correlation": ranked.correlation,
            "n_draws": len(ranked.orders) if ranked.drawn else 0,
            "n_bootstrap": options.n_bootstrap,
            "n_target": n_samples["target"], "n_off": n_samples["off"],
            "defined": not bool(relative[:, 0].isnan().any()),
            "auc_low": auc_low, "auc_high": auc_high,
        }  # fmt: skip
        rows = []
        for place, fraction in enumerate(options.fractions):
            row = shared | {"fraction": fraction, "n_units": count_units(self.n_units, fraction)}
            for of, (name, mask) in enumerate(masks.items()):
                row[f"{name}_accuracy"] = float(relative[of, 0, place])
                row[f"{name}_low"], row[f"{name}_high"] = bounds[:, of, place].tolist()
                point = self._point(mask, float(n_samples[name]) or math.nan, curve.numbers[place])
                row |= {f"{name}_{what}": value for what, value in point.items()}
            rows.append(row)
        return rows

    def _point(
        self, mask: Bool[Tensor, " label"], n_samples: float, numbers: Int[Tensor, " draw"]
    ) -> dict[str, float]:
        """Return numbers of one point over the samples of some labels, means over draws."""
        sums = self._sums
        means = {name: sums[name][numbers][:, mask].sum(1) / n_samples for name in sums}
        unedited = float(sums["right"][0, mask].sum() / n_samples)
        relative = means["right"] / (unedited or math.nan)
        found = {what: float(mean.mean()) for what, mean in means.items()}
        std = float(relative.std()) if len(numbers) > 1 else math.nan
        return found | {"unedited": unedited, "edited": found["right"], "std": std}

    @cached_property
    def _sums(self) -> dict[str, Float[torch.Tensor, "edit label"]]:
        """Over the samples of each label: how many are right, and changes by the edit."""
        measured, values = self.measured, {"right": self.measured.right.double()}
        for what in _CHANGES:
            of_edits = getattr(measured, what).double()
            values[what] = of_edits - of_edits[0]
        parts = [measured.labels == label for label in sorted(set(measured.labels.tolist()))]
        return {
            what: torch.stack([of[:, mine].sum(1) for mine in parts], 1)
            for what, of in values.items()
        }
