"""Control curves: accuracy over the share of units edited, with baselines.

A control curve edits a growing share of a site's units, those first that a ranking puts
first, and follows the accuracy on a label (the target) and on all others (off-target).
Units are chosen on the training rows of the modes, accuracies are those of held-out rows.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from jaxtyping import Int
from torch import nn

from condec.control import Ablate, Preserve, unit_means
from condec.effects.measured import Edits, Measured, measure
from condec.effects.rankings import ByMean, ByMode, Order, RandomUnits, Ranked, Ranking
from condec.effects.samples import Samples, held_out, labels_of
from condec.errors import OptionError
from condec.labels import label_name
from condec.modes import Modes
from condec.shapes import Atom
from condec.sites import Site
from condec.store import Sign
from condec.tape import refuse_training

if TYPE_CHECKING:
    import pandas

EditKind = Literal["ablate", "preserve"]
Replacement = Literal["zero", "mean"]
RANKINGS: Final = ("modes", "mean_contribution", "random")
"""How units are put in order, in every control curve."""

COLUMNS: Final = (
    "site", "label", "label_name", "ranking", "edit", "replacement", "fraction", "n_units",
    "target_accuracy", "off_accuracy", "target_std", "off_std", "defined", "target_unedited",
    "off_unedited", "n_target", "n_off", "n_draws", "mode", "correlation",
)  # fmt: skip
"""Columns of `control_curve`."""

PAPER_FRACTIONS: Final = (0.01, 0.02, 0.05, 0.1, 0.18, 0.25, 0.5, 0.8, 0.99)
"""Fractions of units in figure 6 of Melander et al. 2026."""


def control_curve(
    model: nn.Module,
    data: Any,
    modes: Modes,
    *,
    labels: Sequence[int] | None = None,
    fractions: Sequence[float] = PAPER_FRACTIONS,
    edit: EditKind = "ablate",
    replacement: Replacement = "zero",
    rankings: Sequence[Ranking] = (),
    rank: int = 0,
    n_random: int = 5,
    seed: int = 0,
    batch_size: int = 64,
) -> "pandas.DataFrame":
    r"""Accuracy on a label and on all others, over the share of units edited.

    For every label, units of the modes' site are put in order by three rankings:

    - ``modes``: the atom of the label's best mode, largest signed entry first (Melander et
      al. 2026, figure 6);
    - ``mean_contribution``: the plain mean of the label's contributions, largest first. No
      dictionary takes part;
    - ``random``: `n_random` draws, the same for all labels.

    For modes of negative parts the lowest entry and mean come first; for modes of both parts
    side by side (``concat``) a unit's two entries are added.

    Of every ranking the first ``int(n_units * fraction)`` units are ablated, or preserved,
    so that the units of a smaller fraction are among those of a larger one. Modes and means
    are those of training rows, accuracies those of held-out rows. An accuracy is relative
    to the unedited model's,

    .. math:: \frac{\text{right, edited}}{\text{right, unedited}},

    over the label's images (target), or over all images of all other labels together
    (off-target; the paper draws one other class at random for every point). No unit to
    ablate is no edit, and gives 1; no unit to preserve is a site that is replaced as a
    whole.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; its output is [sample, label].
    data : Inputs, (tensor, labels), or a data set
        What was collected: samples of ``modes.store`` are found by their ids.
    modes : Modes
        With held-out rows.
    labels : sequence of int, optional
        By default all that have training and held-out rows.
    fractions : sequence of float
        In ascending order, 0 to 1.
    edit : {"ablate", "preserve"}
    replacement : {"zero", "mean"}
        What takes the place of units: 0, or the unit's mean over training rows and
        positions (`unit_means`).
    rankings : sequence of Ranking
        Other orders to compare instead of these three (`condec.effects.rankings`); `rank`,
        `n_random` and `seed` are then not used.
    rank : int
        Which mode of a label: 0 the most correlated.
    n_random : int
        Number of random draws; 0 leaves the ranking out.
    seed : int
        Of the random draws.
    batch_size : int
        Held-out inputs that pass the model together. Memory holds one batch of them.

    Returns
    -------
    pandas.DataFrame
        One row for every label, ranking and fraction, with the columns

        - ``site``, ``label``, ``label_name``, ``ranking``, ``edit``, ``replacement``,
          ``fraction``, ``n_units`` (number of units ablated or preserved);
        - ``target_accuracy``, ``off_accuracy``: relative to the unedited model; for random
          units the mean over draws. NaN where the unedited model gets no image right;
        - ``target_std``, ``off_std``: standard deviation over draws; NaN without draws;
        - ``defined``: whether both accuracies are;
        - ``target_unedited``, ``off_unedited``: accuracy of the unedited model, 0 to 1;
        - ``n_target``, ``n_off``: number of held-out images behind them;
        - ``n_draws``; ``mode``: original id of the mode, missing for other rankings;
          ``correlation`` of the mode with the label on training rows.

    Raises
    ------
    OptionError
        An option outside its range.
    DataError
        Labels are missing, no rows are held out, a label has no training or no held-out
        row, or `data` lacks samples of the store.
    ModelError
        The model is in training mode, or its output is not [sample, label].
    """
    import pandas

    fractions = tuple(float(fraction) for fraction in fractions)
    _check_options(fractions, edit, replacement, n_random, batch_size)
    refuse_training(model)
    samples = held_out(data, modes)
    chosen = labels_of(samples, modes, labels, "control_curve")
    rankings = list(rankings) if rankings else _default_rankings(modes, rank, n_random, seed)
    mean = unit_means(modes.store, modes.site, ~modes.held_out) if replacement == "mean" else None
    n_units = modes.store.info(modes.site).n_units
    counts = [count_units(n_units, fraction) for fraction in fractions]
    # Rankings agree on many sets of units (random draws serve all labels): each runs once.
    edits: dict[Edits, int] = {(): 0}
    rows = []
    for ranked in (ranking.ranked(label) for label in chosen for ranking in rankings):
        for fraction, count in zip(fractions, counts, strict=True):
            made = [_edits(edit, modes.site, order, count, mean) for order in ranked.orders]
            numbers = [edits.setdefault(one, len(edits)) for one in made]
            rows.append((ranked, fraction, count, numbers))
    measured = measure(model, samples, list(edits), batch_size=batch_size)
    right = _count_right(measured)
    table = [
        _describe(modes, samples, ranked)
        | {"edit": edit, "replacement": replacement, "fraction": fraction, "n_units": count}
        | _accuracies(right, samples, ranked, numbers)
        for ranked, fraction, count, numbers in rows
    ]
    return pandas.DataFrame(table, columns=list(COLUMNS)).astype({"mode": "Int64"})


def count_units(n_units: int, fraction: float) -> int:
    """How many units a fraction is: ``int(n_units * fraction)``, without rounding errors.

    >>> count_units(100, 0.29), int(100 * 0.29)
    (29, 28)
    """
    return math.floor(n_units * fraction + 1e-9)


def _check_options(
    fractions: Sequence[float], edit: str, replacement: str, n_random: int, batch_size: int
) -> None:
    for name, value, known in (
        ("edit", edit, get_args(EditKind)),
        ("replacement", replacement, get_args(Replacement)),
    ):
        if value not in known:
            raise OptionError(
                f"control_curve: {name} must be one of {', '.join(known)}; got {value!r}"
            )
    in_range = all(0.0 <= fraction <= 1.0 for fraction in fractions)
    if not fractions or not in_range or list(fractions) != sorted(set(fractions)):
        raise OptionError(
            "control_curve: fractions must be in ascending order, each from 0 to 1, for example "
            f"(0.05, 0.1, 0.25); got {tuple(fractions)}"
        )
    for name, number, least in (("n_random", n_random, 0), ("batch_size", batch_size, 1)):
        if number < least:
            raise OptionError(f"control_curve: {name} must be at least {least}; got {number}")


def _default_rankings(modes: Modes, rank: int, n_random: int, seed: int) -> list[Ranking]:
    """What every control curve compares, where nothing else is asked for."""
    sign: Sign = "sum" if modes.sign == "concat" else modes.sign
    by_modes = ByMode(modes=modes, rank=rank)
    n_units = modes.store.info(modes.site).n_units
    by_mean = ByMean(store=modes.store, site=modes.site, rows=~modes.held_out, sign=sign)
    if not n_random:
        return [by_modes, by_mean]
    return [by_modes, by_mean, RandomUnits(n_units=n_units, n_draws=n_random, seed=seed)]


def _edits(kind: EditKind, site: Site, order: Order, count: int, mean: Atom | None) -> Edits:
    """Edit of the first `count` units of an order; none where nothing would change."""
    replacement = 0.0 if mean is None else mean
    if count == (0 if kind == "ablate" else len(order)):
        return ()
    if count == 0:  # none to preserve
        return (Ablate(site, units=order, replacement=replacement),)
    option = Ablate if kind == "ablate" else Preserve
    return (option(site, units=order[:count], replacement=replacement),)


def _count_right(measured: Measured) -> Int[torch.Tensor, "edit label"]:
    """How many images of every label are right under every edit."""
    right = torch.zeros(len(measured.predicted), measured.n_labels, dtype=torch.int64)
    return right.index_add_(1, measured.labels, measured.right.long())


def _describe(modes: Modes, samples: Samples, ranked: Ranked) -> dict[str, object]:
    return {
        "site": modes.site.key,
        "label": ranked.label,
        "label_name": label_name(samples.inputs.label_names, ranked.label),
        "ranking": ranked.name,
        "mode": ranked.mode,
        "correlation": ranked.correlation,
        "n_draws": len(ranked.orders) if ranked.name == "random" else 0,
    }


def _accuracies(
    right: Int[torch.Tensor, "edit label"],
    samples: Samples,
    ranked: Ranked,
    numbers: Sequence[int],
) -> dict[str, object]:
    """Accuracies of one point of a curve; `numbers` are the rows of its edits in `right`."""
    images = torch.bincount(samples.labels, minlength=samples.n_labels)
    is_target = torch.arange(samples.n_labels) == ranked.label
    row: dict[str, object] = {}
    defined = True
    for of, chosen in (("target", is_target), ("off", ~is_target)):
        n_images, unedited = int(images[chosen].sum()), int(right[0, chosen].sum())
        edited_right = right[list(numbers)][:, chosen].sum(1).to(torch.float64)
        # Nothing right without an edit: no ratio, rather than one that is infinite.
        relative = edited_right / (unedited or math.nan)
        row[f"{of}_accuracy"] = float(relative.mean())
        row[f"{of}_std"] = float(relative.std()) if len(numbers) > 1 else math.nan
        row[f"{of}_unedited"] = unedited / n_images if n_images else math.nan
        row[f"n_{of}"] = n_images
        defined = defined and unedited > 0
    return row | {"defined": defined}
