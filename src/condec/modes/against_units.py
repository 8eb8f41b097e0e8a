"""Whether modes single out labels better than units, and contributions better than activations.

Figure 5 of Melander et al. 2026: the correlation of every column with the label that fits it best.
The label is chosen on one half of the samples and measured on the other, and all columns of a
comparison come from matrices of one sign.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.shapes import Mask
from condec.modes.labels import label_correlation
from condec.modes.modes import Modes
from condec.modes.naming import LEAST_CORRELATION, halves
from condec.modes.properties import LEAST_SAMPLES
from condec.store import QUANTITIES

if TYPE_CHECKING:
    import pandas

_UNITS_AT_ONCE: Final = 512
"""As many as a chunk of a store holds: of fewer, each chunk would be read several times."""
_ENDS: Final = {"correlation": 0.5, "low": 0.25, "high": 0.75}


def against_units(several: Sequence[Modes], *, seed: int = 0) -> "pandas.DataFrame":
    """Compare modes of contributions and activations, and units of both, by their best labels.

    Parameters
    ----------
    several : sequence of Modes
        Of one site and store: of contributions, of activations, or both. Halves are the training
        and held-out rows of the first. Units are read 512 at a time.
    seed : int
        Of the halves where no rows were held out, and of the shuffled labels.

    Returns
    -------
    DataFrame
        For every sign of the modes (``positive``, ``sum``, ...) units of contributions and of
        activations, and the modes, by rows: ``sign``; ``of``, for example ``units of
        contributions``, and of several modes of one quantity ``modes of contributions (NAME)``;
        ``n``, columns that vary; ``chosen``, the median over them of the highest correlation with a
        label on training rows (what the paper shows), and ``shuffled``, that with labels shuffled:
        so much comes by chance; ``correlation``, with quartiles ``low`` and ``high``, that with the
        label chosen so on held-out rows; ``above``, how many are above 0.2 there; ``labels``, the
        share of labels that one of these was chosen for.

    Raises
    ------
    DataError
        No modes, modes of other sites or stores, or no label with two samples on either half.
    """
    import pandas

    if not several or len({(m.store.config_hash, m.site.key) for m in several}) > 1:
        where = ", ".join(f"{modes.site.key} of {modes.store.path}" for modes in several)
        raise DataError(f"against_units: expected modes of one site and store; got {where or 0}")
    first = several[0]
    told, rows = _Labels.of(first, seed), list[dict[str, object]]()
    for sign in dict.fromkeys(modes.sign for modes in several):
        for quantity in QUANTITIES:
            matrix = first.store.rows(first.site, quantity, sign)
            units = (part.all() for part in matrix.in_columns(_UNITS_AT_ONCE))
            rows.append({"sign": sign, "of": f"units of {quantity}s", **_of_columns(units, told)})
        own = [modes for modes in several if modes.sign == sign]
        for modes in own:
            alike = sum(one.quantity == modes.quantity for one in own) > 1
            name = f"modes of {modes.quantity}s" + (f" ({modes.name})" if alike else "")
            rows.append({"sign": sign, "of": name, **_of_columns([modes.loadings], told)})
    return pandas.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class _Labels:
    """Labels of samples, and shuffled; which have samples enough; the halves."""

    own: Tensor
    mixed: Tensor
    enough: Tensor  # bool, [label]
    choose: Mask
    judge: Mask

    @classmethod
    def of(cls, modes: Modes, seed: int) -> "_Labels":
        (choose, judge), labels = halves(modes, seed), modes.store.labels
        known = labels >= 0
        counts = [
            torch.bincount(labels[half & known], minlength=int(labels.max()) + 1)
            for half in (choose, judge)
        ]
        enough = torch.minimum(*counts) >= LEAST_SAMPLES
        if int(enough.sum()) < 2:
            raise DataError(
                "against_units: expected two labels or more with two samples on either half; got "
                f"{int(enough.sum())}. Collect more samples of each label"
            )
        order = torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(seed))
        mixed = labels.clone()
        mixed[known] = labels[known][order]
        return cls(labels, mixed, enough, choose, judge)

    def correlation(self, values: Tensor, labels: Tensor, rows: Mask) -> Tensor:
        """Correlate columns with those labels, [column, label]."""
        return label_correlation(values, labels, rows)[:, self.enough]


def _of_columns(blocks: Iterable[Tensor], told: _Labels) -> dict[str, float | int]:
    """Choose a label for every column on one half, and measure it on the other."""
    chosen_on = told.choose & (told.own >= 0)
    found = list[tuple[Tensor, Tensor, Tensor, Tensor]]()
    for block in blocks:
        values = block[:, block[chosen_on].amax(0) > block[chosen_on].amin(0)]
        best, at = told.correlation(values, told.own, told.choose).max(1)
        by_chance = told.correlation(values, told.mixed, told.choose).max(1).values
        judged = told.correlation(values, told.own, told.judge).gather(1, at[:, None])[:, 0]
        found.append((best, at, by_chance, judged))
    best, at, by_chance, held_out = map(torch.cat, zip(*found, strict=True))
    above = held_out > LEAST_CORRELATION
    return {
        "n": len(best), "chosen": _quantile(best, 0.5), "shuffled": _quantile(by_chance, 0.5),
        **{name: _quantile(held_out, share) for name, share in _ENDS.items()},
        "above": int(above.sum()),
        "labels": len({*at[above].tolist()}) / int(told.enough.sum()),
    }  # fmt: skip


def _quantile(values: Tensor, share: float) -> float:
    return float(values.double().nanquantile(share)) if len(values) else math.nan
