"""What edits do to the output: control curves with their baselines.

A control curve edits a growing share of a site's units, those first that a ranking puts
first, and follows the accuracy on a label (the target) and on all others (off-target).
Units are chosen on the training rows of the modes, accuracies are those of held-out rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from condec.contributions import prepare_inputs
from condec.control import Ablate, Edit, Preserve, edited, unit_means
from condec.data import Inputs, as_inputs
from condec.errors import DataError, ModelError, OptionError
from condec.labels import label_name
from condec.metrics import auc
from condec.modes import Modes
from condec.shapes import Atom, Labels
from condec.sites import Site
from condec.tape import refuse_training, run_model

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

_CURVE: Final = ("site", "label", "label_name", "ranking", "edit", "replacement")
_POINT: Final = ("fraction", "target_accuracy", "off_accuracy")

PAPER_FRACTIONS: Final = (0.01, 0.02, 0.05, 0.1, 0.18, 0.25, 0.5, 0.8, 0.99)
"""Fractions of units in figure 6 of Melander et al. 2026."""


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The rows on which accuracies are measured.

    Attributes
    ----------
    inputs : Inputs
    indices : list of int
        Where the rows are in `inputs`.
    labels : Tensor of shape [sample]
        Of these rows, all 0 or more.
    n_labels : int
    """

    inputs: Inputs
    indices: list[int]
    labels: Int[torch.Tensor, " sample"]
    n_labels: int

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, `size` samples at a time; every input is loaded once."""
        for start in range(0, len(self.indices), size):
            part = slice(start, start + size)
            yield self.inputs.batch(self.indices[part]), self.labels[part]


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Units in the order in which edits take them; several orders are random draws.

    Attributes
    ----------
    label : int
    name : str
        One of `RANKINGS`.
    orders : tuple of Tensor of shape [unit]
    mode : int, or None
        Original id of the mode whose atom gives the order.
    correlation : float
        Of that mode with the label, on training rows; NaN without a mode.
    """

    label: int
    name: str
    orders: tuple[Int[torch.Tensor, " unit"], ...]
    mode: int | None = None
    correlation: float = math.nan


def control_curve(
    model: nn.Module,
    data: Any,
    modes: Modes,
    *,
    labels: Sequence[int] | None = None,
    fractions: Sequence[float] = PAPER_FRACTIONS,
    edit: EditKind = "ablate",
    replacement: Replacement = "zero",
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
    held_out = _held_out(data, modes)
    rankings = _rankings(modes, _labels(modes, held_out, labels), rank, n_random, seed)
    mean = unit_means(modes.store, modes.site, ~modes.held_out) if replacement == "mean" else None
    n_units = modes.store.info(modes.site).n_units
    counts = [count_units(n_units, fraction) for fraction in fractions]
    # Rankings agree on many sets of units (random draws serve all labels): each runs once.
    edits: dict[Edit | None, int] = {None: 0}
    rows = []
    for ranking in rankings:
        for fraction, count in zip(fractions, counts, strict=True):
            made = [_edit(edit, modes.site, order, count, mean) for order in ranking.orders]
            numbers = [edits.setdefault(one, len(edits)) for one in made]
            rows.append((ranking, fraction, count, numbers))
    right = _count_right(model, held_out, list(edits), batch_size)
    table = [
        _describe(modes, held_out, ranking)
        | {"edit": edit, "replacement": replacement, "fraction": fraction, "n_units": count}
        | _accuracies(right, held_out, ranking, numbers)
        for ranking, fraction, count, numbers in rows
    ]
    return pandas.DataFrame(table, columns=list(COLUMNS)).astype({"mode": "Int64"})


def auc_difference(curve: "pandas.DataFrame") -> "pandas.DataFrame":
    r"""Selectivity of every curve: area under the target against that under off-target.

    .. math:: \frac{A_\text{target} - A_\text{off}}{A_\text{off}}

    with areas by the trapezoid rule over the fractions (Melander et al. 2026, figure 6E).
    Below 0 the target suffers more than the others; -1, the lowest value, is a target lost
    from the first fraction on. 0 is no selectivity. When units are preserved, the higher
    the better.

    Parameters
    ----------
    curve : pandas.DataFrame
        From `control_curve`; several may be concatenated.

    Returns
    -------
    pandas.DataFrame
        One row for every site, label, ranking, edit and replacement, with the columns
        ``auc_target``, ``auc_off``, ``auc_difference`` and ``defined`` (False, and the
        difference NaN, where an accuracy is not defined or the off-target area is 0).

    Raises
    ------
    DataError
        The table is not one of `control_curve`, or a curve has fewer than two fractions.
    """
    import pandas

    missing = [name for name in (*_CURVE, *_POINT) if name not in curve.columns]
    if missing:
        raise DataError(
            "auc_difference: expected a table made by control_curve; it lacks the columns "
            f"{', '.join(missing)}"
        )
    rows = []
    for values, points in curve.groupby(list(_CURVE), sort=False, dropna=False):
        key = dict(zip(_CURVE, values, strict=True))
        if points["fraction"].nunique() < 2:
            raise DataError(
                f"auc_difference: an area needs at least two fractions; the curve {key} has "
                f"{points['fraction'].tolist()}"
            )
        points = points.sort_values("fraction")
        x = torch.tensor(points["fraction"].to_numpy())
        target, off = (
            auc(torch.tensor(points[f"{of}_accuracy"].to_numpy()), x) for of in ("target", "off")
        )
        difference = (target - off) / off if off else math.nan
        rows.append({
            **key, "auc_target": target, "auc_off": off, "auc_difference": difference,
            "defined": not math.isnan(difference),
        })  # fmt: skip
    areas = ["auc_target", "auc_off", "auc_difference", "defined"]
    return pandas.DataFrame(rows, columns=[*_CURVE, *areas])


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


def _held_out(data: Any, modes: Modes) -> _HeldOut:
    """Find the held-out rows of the modes in the data, by id."""
    inputs, store = as_inputs(data), modes.store
    if not bool((store.labels >= 0).any()):
        raise DataError(
            f"control_curve: labels missing: no sample of {store.path} has one; collect "
            "contributions from data with labels"
        )
    rows = (modes.held_out & (store.labels >= 0)).nonzero().flatten()
    if not len(rows):
        raise DataError(
            f"control_curve: {modes.site.key}: no labelled rows are held out; split rows off when "
            "fitting (TrainConfig(held_out=0.2)) and hand them to Modes.build"
        )
    where = {sample_id: index for index, sample_id in enumerate(inputs.ids)}
    wanted = [store.sample_ids[row] for row in rows.tolist()]
    missing = [sample_id for sample_id in wanted if sample_id not in where]
    if missing:
        raise DataError(
            f"control_curve: the data lacks {len(missing)} of {len(wanted)} held-out samples of "
            f"{store.path}; the first are {missing[:3]}. Give the data that were collected."
        )
    indices, labels = [where[sample_id] for sample_id in wanted], store.labels[rows]
    _check_same_labels(inputs, indices, wanted, labels)
    return _HeldOut(inputs, indices, labels, int(store.labels.max()) + 1)


def _check_same_labels(
    inputs: Inputs, indices: Sequence[int], ids: Sequence[str], labels: Labels
) -> None:
    if inputs.labels is None:
        return
    given = inputs.labels[torch.tensor(indices)]
    other = (given != labels).nonzero().flatten().tolist()
    if other:
        raise DataError(
            f"control_curve: {len(other)} samples have another label in the data than in the "
            f"store; the first is {ids[other[0]]}: {int(given[other[0]])} in the data, "
            f"{int(labels[other[0]])} in the store. Give the data that were collected."
        )


def _labels(modes: Modes, held_out: _HeldOut, wanted: Sequence[int] | None) -> list[int]:
    """Labels to make curves for: those wanted, or all with training and held-out rows."""
    training = set(modes.store.labels[~modes.held_out].tolist())
    both = sorted(training & set(held_out.labels.tolist()))
    if not both:
        raise DataError("control_curve: no label has both training and held-out rows; split anew")
    if wanted is None:
        return both
    wanted = list(dict.fromkeys(int(label) for label in wanted))
    without = [label for label in wanted if label not in both]
    if without:
        raise DataError(
            f"control_curve: labels {without[:5]} have no training row or no held-out row; those "
            f"with both: {both[:10]}{', ...' if len(both) > 10 else ''}"
        )
    return wanted


def _rankings(
    modes: Modes, labels: Sequence[int], rank: int, n_random: int, seed: int
) -> Iterator[_Ranking]:
    """All rankings of all labels, from training rows alone."""
    # Negative parts are 0 or below: what moves the target most has the lowest value.
    direction = -1.0 if modes.sign == "negative" else 1.0
    sign = "sum" if modes.sign == "concat" else modes.sign
    contribution = modes.store.matrix(modes.site, quantity="contribution", sign=sign)
    generator = torch.Generator().manual_seed(seed)
    n_units = contribution.shape[1]
    draws = tuple(torch.randperm(n_units, generator=generator) for _ in range(n_random))
    for label in labels:
        match = modes.best(label, rank=rank, split="train")
        # The two halves of an atom of concatenated parts are one unit's adding and taking.
        atom = match.atom.view(-1, n_units).sum(0)
        mean = contribution[(modes.store.labels == label) & ~modes.held_out].mean(0)
        orders = (_descending(direction * atom),)
        yield _Ranking(label, "modes", orders, match.id, match.correlation)
        yield _Ranking(label, "mean_contribution", (_descending(direction * mean),))
        if draws:
            yield _Ranking(label, "random", draws)


def _descending(values: Atom) -> Int[torch.Tensor, " unit"]:
    return values.argsort(descending=True, stable=True)


def _edit(
    kind: EditKind, site: Site, order: Int[torch.Tensor, " unit"], count: int, mean: Atom | None
) -> Edit | None:
    """Edit of the first `count` units of an order; None where nothing would change."""
    replacement = 0.0 if mean is None else mean
    if count == (0 if kind == "ablate" else len(order)):
        return None
    if count == 0:  # none to preserve
        return Ablate(site, units=order, replacement=replacement)
    option = Ablate if kind == "ablate" else Preserve
    return option(site, units=order[:count], replacement=replacement)


def _count_right(
    model: nn.Module, held_out: _HeldOut, edits: Sequence[Edit | None], batch_size: int
) -> Int[torch.Tensor, "edit label"]:
    """How many held-out images of every label the model gets right under every edit."""
    right = torch.zeros(len(edits), held_out.n_labels, dtype=torch.int64)
    for inputs, labels in held_out.batches(batch_size):
        predicted = _predict_edited(model, prepare_inputs(model, inputs), edits)
        hits = (predicted.cpu() == labels).long()
        right.index_add_(1, labels, hits)
    return right


def _predict_edited(
    model: nn.Module, inputs: Tensor, edits: Sequence[Edit | None]
) -> Int[torch.Tensor, "edit sample"]:
    """Predicted label of one batch under each of several edits, one forward pass an edit.

    All edits of one batch come together, so that what does not depend on them (the layers
    before the site) need not be run again for each.
    """
    predicted = []
    with torch.no_grad():
        for edit in edits:
            with edited(model, () if edit is None else edit):
                output = run_model(model, inputs)
            if output.ndim != 2 or len(output) != len(inputs):
                raise ModelError(
                    f"control_curve: accuracy needs an output of shape [sample, label]; "
                    f"{type(model).__name__} gave {tuple(output.shape)} for {len(inputs)} samples"
                )
            predicted.append(output.argmax(1))
    return torch.stack(predicted)


def _describe(modes: Modes, held_out: _HeldOut, ranking: _Ranking) -> dict[str, object]:
    return {
        "site": modes.site.key,
        "label": ranking.label,
        "label_name": label_name(held_out.inputs.label_names, ranking.label),
        "ranking": ranking.name,
        "mode": ranking.mode,
        "correlation": ranking.correlation,
        "n_draws": len(ranking.orders) if ranking.name == "random" else 0,
    }


def _accuracies(
    right: Int[torch.Tensor, "edit label"],
    held_out: _HeldOut,
    ranking: _Ranking,
    numbers: Sequence[int],
) -> dict[str, object]:
    """Accuracies of one point of a curve; `numbers` are the rows of its edits in `right`."""
    images = torch.bincount(held_out.labels, minlength=held_out.n_labels)
    is_target = torch.arange(held_out.n_labels) == ranking.label
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
