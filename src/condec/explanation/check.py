"""Checks of an explanation: take a part away from the network, and see what the target does.

The part w of an activation h is taken away by h - w (h - h_0), with the activation h_0 at the
baseline: contributions are of changes from there. Contributions follow a path on which everything
moves together; so the change need not be the part's contribution, but the order should be the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from condec.attribution import Contributions
from condec.attribution.baselines import Baseline
from condec.attribution.reduce import unit_numbers
from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.explanation.parts import Part, SiteExplanation
from condec.explanation.turning import Turning, at_baseline

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

_VERSIONS_AT_ONCE: Final = 8
_MOST_OF_A_PART: Final = 0.8
"""Share of a part's contributions, by size, that its units hold which are taken away whole."""


@short_repr
@dataclass(frozen=True, eq=False)
class PartCheck:
    """What the parts of an explanation say, beside what happens without them.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row a part: site, part, ``said`` (its net contribution), ``part_removed`` (fall of the
        target when its share of the activation goes back to the baseline), ``n_units`` (its
        strongest units, which hold 80 % of its contributions) and ``units_removed`` (fall of the
        target when those go back whole).
    """

    frame: "pandas.DataFrame"

    @cached_property
    def summary(self) -> "pandas.DataFrame":
        """How well falls follow what was said, a row a site and way of removing.

        Columns: site, removed, rank_correlation (Spearman; NaN of fewer than three parts), slope
        (of the line through zero, least squares).
        """
        import pandas
        from scipy.stats import spearmanr

        rows = []
        for site, of_site in self.frame.groupby("site", sort=False):
            said = of_site["said"].to_numpy()
            for way in ("part", "units"):
                fell = of_site[f"{way}_removed"].to_numpy()
                varies = len(said) > 2 and said.std() > 0 and fell.std() > 0
                rank = float(spearmanr(said, fell).statistic) if varies else float("nan")
                size = float(said @ said)
                rows.append((site, way, rank, float(said @ fell) / size if size else float("nan")))
        return pandas.DataFrame(rows, columns=["site", "removed", "rank_correlation", "slope"])

    def figure(self) -> "Figure":
        """Draw what was said beside what happens, with line, slope and rank correlation.

        DataError where no mode answers for anything.
        """
        from condec.explanation.drawing import check_figure

        return check_figure(self)


def check(
    batch: Contributions, by_site: Sequence[SiteExplanation], baseline: Baseline | None
) -> PartCheck:
    """Take away every part that is one mode, at each site; see `PartCheck`.

    Raises
    ------
    DataError
        The contributions were not made by `condec.contribute`.
    ModelError
        The network cannot be run from a site on.
    """
    import pandas

    setup = batch.setup
    if setup is None:
        raise DataError("check: these contributions do not say what they were made from")
    before = at_baseline(setup, [at.site for at in by_site], baseline)
    frozen = setup.target.freeze(batch.output, setup.labels)
    rows = []
    for at in by_site:
        parts = at.modes
        if not parts:
            continue
        units = [_units_of(part, at) for part in parts]
        masks = torch.stack([part.weights for part in parts] + [mask for _, mask in units])
        turning = Turning.of(setup, at.site, before)
        fell = []
        for several in torch.split(masks, _VERSIONS_AT_ONCE):
            output = turning.without(several)
            kept = None if frozen is None else frozen.expand(len(output), *frozen.shape[1:])
            fell += (batch.target - setup.target.value(output, kept)).tolist()
        for part, (n_units, _), alone, whole in zip(
            parts, units, fell[: len(parts)], fell[len(parts) :], strict=True
        ):
            rows.append((at.site.key, part.name, part.net, alone, n_units, whole))
    names = ["site", "part", "said", "part_removed", "n_units", "units_removed"]
    return PartCheck(pandas.DataFrame(rows, columns=names))


def _units_of(part: Part, at: SiteExplanation) -> tuple[int, Tensor]:
    """Count a part's strongest units, and return the mask of their entries."""
    numbers = unit_numbers(at.units, (1, *at.contribution.shape)).cpu()
    counted = numbers >= 0
    sizes = torch.zeros(int(numbers.max()) + 1, dtype=torch.float64)
    sizes.index_add_(0, numbers[counted], (part.weights * at.contribution).abs()[counted])
    order = sizes.argsort(descending=True)
    n_units = 1 + int((sizes[order].cumsum(0) < _MOST_OF_A_PART * sizes.sum()).sum())
    chosen = torch.zeros(len(sizes), dtype=torch.float64)
    chosen[order[:n_units]] = 1
    return n_units, chosen[numbers.clamp(min=0)] * counted
