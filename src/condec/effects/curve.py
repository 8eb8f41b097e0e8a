"""Control curves: accuracy over the share of units edited, with baselines.

A control curve edits a growing share of a site's units, those first that a ranking puts
first, and follows the accuracy on a label (the target) and on all others (off-target).
Units are chosen on the training rows of the modes, accuracies are those of held-out rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from condec.effects.points import (
    PAPER_FRACTIONS,
    CurveOptions,
    CurveReplacement,
    EditKind,
    OffTarget,
    Replacement,
    change_of,
    count_units,
    measure_changes,
)
from condec.effects.rankings import Ranking
from condec.effects.samples import Samples, held_out, labels_of
from condec.effects.standard import RANKINGS, check_rankings, default_rankings, ranked_units
from condec.effects.table import COLUMNS, Curve, Curves
from condec.modes import Modes
from condec.network import refuse_training

if TYPE_CHECKING:
    import pandas

__all__ = [
    "COLUMNS", "PAPER_FRACTIONS", "RANKINGS", "CurveOptions", "CurveReplacement", "Curves",
    "EditKind", "OffTarget", "Replacement", "control_curve", "count_units", "measure_curves",
]  # fmt: skip


def measure_curves(
    model: nn.Module, data: Any, modes: Modes, options: CurveOptions | None = None
) -> Curves:
    """Control curves with the numbers of every image, for `compare` and tables by label.

    Parameters and errors are those of `control_curve`, which gives the table of these curves.

    Parameters
    ----------
    model : torch.nn.Module
    data : Inputs, (tensor, labels), or a data set
    modes : Modes
    options : CurveOptions, optional
    """
    options = CurveOptions() if options is None else options
    refuse_training(model)
    samples = held_out(data, modes)
    chosen = labels_of(samples, modes, options.labels, "control_curve")
    rankings = list(options.rankings) or default_rankings(
        modes, rank=options.rank, n_random=options.n_random, seed=options.seed
    )
    check_rankings(rankings, modes)
    n_units = modes.store.info(modes.site).n_units
    counts = [count_units(n_units, fraction) for fraction in options.fractions]
    others = _other_labels(samples, chosen, options)
    # Rankings agree on many sets of units (random draws serve all labels): each runs once.
    changes = {change_of(options, torch.arange(n_units), _none(options, n_units), -1): 0}
    curves = []
    for label in chosen:
        for ranking in rankings:
            ranked = ranked_units(ranking, label, n_units)
            numbers = [
                [
                    changes.setdefault(change_of(options, order, count, label), len(changes))
                    for order in ranked.orders
                ]
                for count in counts
            ]
            curves.append(Curve(ranked, others[label], torch.tensor(numbers)))
    return Curves(
        site=modes.site.key,
        n_units=n_units,
        options=options,
        label_names=samples.inputs.label_names,
        rankings=tuple(ranking.name for ranking in rankings),
        curves=tuple(curves),
        measured=measure_changes(model, samples, modes, list(changes), options),
    )


def control_curve(
    model: nn.Module,
    data: Any,
    modes: Modes,
    *,
    labels: Sequence[int] | None = None,
    fractions: Sequence[float] = PAPER_FRACTIONS,
    edit: EditKind = "ablate",
    replacement: CurveReplacement = "zero",
    off: OffTarget = "others",
    rankings: Sequence[Ranking] = (),
    rank: int = 0,
    n_random: int = 5,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
) -> "pandas.DataFrame":
    r"""Accuracy on a label and on all others, over the share of units edited.

    For every label, units of the modes' site are put in order by four rankings:

    - ``modes``: the atoms of all modes, each weighted by how much more the label uses it than
      the others do, largest entry of the sum first (`ByModeSum`);
    - ``best_mode``: the atom of the label's best mode, largest signed entry first (Melander et
      al. 2026, figure 6);
    - ``contribution_difference``: the mean of the label's contributions minus that of all
      others', largest first. No dictionary takes part;
    - ``random``: `n_random` draws, the same for all labels.

    Modes of contributions to the label's log-odds choose better than those of the paper's
    contributions (`condec.effects.fit_log_odds`).

    For modes of negative parts the lowest entry and mean come first; for modes of both parts
    side by side (``concat``) a unit's two entries are added. `standard_rankings` gives more of
    them to compare.

    Of every ranking the first ``int(n_units * fraction)`` units are ablated, or preserved,
    so that the units of a smaller fraction are among those of a larger one. Modes and means
    are those of training rows, accuracies those of held-out rows. An accuracy is relative
    to the unedited model's,

    .. math:: \frac{\text{right, edited}}{\text{right, unedited}},

    over the label's images (target), or over all images of all other labels together
    (off-target). No unit to ablate is no edit, and gives 1; no unit to preserve is a site
    that is replaced as a whole.

    Intervals are 95 % bootstrap intervals over images: images are drawn again within each
    label, the same for all points, rankings and labels; so are the draws of random units.

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
    replacement : {"zero", "mean", "class_mean", "resample"}
        What takes the place of units: 0; the unit's mean over training rows and positions
        (`unit_means`), or over the label's own training rows; or what another held-out
        sample, drawn once, has there, position by position.
    off : {"others", "drawn"}
        Off-target: all other labels together, or one of them for each label, drawn once and
        shared by all rankings along the curve. The paper draws another pair of labels at
        every point, so that its curves are not paired along the fractions.
    rankings : sequence of Ranking
        Other orders to compare instead of these four (`condec.effects.rankings`); `rank`
        and `n_random` are then not used.
    rank : int
        Which mode of a label ``best_mode`` is: 0 the most correlated.
    n_random : int
        Number of random draws; 0 leaves the ranking out.
    n_bootstrap : int
        Resamples behind the intervals; 0 leaves them out (NaN).
    seed : int
        Of all that is drawn: random units, off-target labels, samples, resamples.
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
        - ``target_low``, ``target_high``, ``off_low``, ``off_high``: their intervals;
        - ``target_std``, ``off_std``: standard deviation over draws; NaN without draws;
        - ``defined``: whether both accuracies are;
        - ``target_unedited``, ``off_unedited``, ``target_edited``, ``off_edited``: accuracy
          of the unedited and the edited model, 0 to 1;
        - ``target_probability``, ``off_probability``, ``target_logit``, ``off_logit``,
          ``target_entropy``, ``off_entropy``: mean change by the edit of the probability and
          the logit of an image's own label, and of the output's entropy in nats;
        - ``auc_low``, ``auc_high``: interval of the selectivity (`auc_difference`) of the
          whole curve;
        - ``n_target``, ``n_off``: number of held-out images behind them;
        - ``off``; ``off_label``: the other label, where one is drawn; ``n_draws``;
          ``n_bootstrap``; ``mode``: original id of the mode, missing for other rankings;
          ``correlation`` of the mode with the label on training rows.

    Raises
    ------
    OptionError
        An option outside its range; two rankings of one name, or one over another number of
        units than the site has.
    DataError
        Labels are missing, no rows are held out, a label has no training or no held-out
        row, `data` lacks samples of the store, or a ranking is made from other rows.
    ModelError
        The model is in training mode, or its output is not [sample, label].
    """
    options = CurveOptions(
        labels=labels, fractions=fractions, edit=edit, replacement=replacement, off=off,
        rankings=rankings, rank=rank, n_random=n_random, n_bootstrap=n_bootstrap, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    return measure_curves(model, data, modes, options).to_frame()


def _none(options: CurveOptions, n_units: int) -> int:
    """How many units leave the network as it is."""
    return 0 if options.edit == "ablate" else n_units


def _other_labels(
    samples: Samples, chosen: Sequence[int], options: CurveOptions
) -> dict[int, int | None]:
    """The off-target label of each label, where one is drawn."""
    if options.off == "others":
        return dict.fromkeys(chosen)
    present = sorted(set(samples.labels.tolist()))
    generator = torch.Generator().manual_seed(options.seed)
    found: dict[int, int | None] = {}
    for label in chosen:
        rest = [other for other in present if other != label]
        place = torch.randint(max(len(rest), 1), (1,), generator=generator)
        found[label] = rest[int(place)] if rest else None
    return found
