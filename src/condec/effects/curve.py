"""Control curves: accuracy over the share of units edited, with baselines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from condec.basis.errors import DataError
from condec.edits import Donors, count_units, record_activation, unit_means
from condec.effects.choice import edits_of, nothing
from condec.effects.measured import Measured, measure
from condec.effects.rankings import Order
from condec.effects.samples import HeldOut, held_out, labels_of
from condec.effects.standard import RANKINGS, check_rankings, ranked_units, standard_rankings
from condec.effects.table import Curve, CurveOptions, Curves
from condec.modes import Modes

if TYPE_CHECKING:
    import pandas

Chosen = tuple[tuple[int, ...], int | None]
"""Units to edit, sorted, and the label whose mean replaces, None where it is that of no label."""


def measure_curves(
    model: nn.Module, data: Any, modes: Modes, options: CurveOptions | None = None
) -> Curves:
    """Measure control curves with the numbers of every image; errors as in `control_curve`."""
    options = CurveOptions() if options is None else options
    samples = held_out(data, modes)
    labels = labels_of(samples, modes, options.labels, "control_curve")
    every = standard_rankings(modes, n_random=options.n_random, seed=options.seed)
    rankings = options.rankings or [ranking for ranking in every if ranking.name in RANKINGS]
    check_rankings(rankings, modes)
    n_units = modes.store.info(modes.site).n_units
    counts = [count_units(n_units, fraction) for fraction in options.fractions]
    others = _other_labels(samples, labels, options)
    # Rankings agree on many sets of units (random draws serve all labels): each runs once. The
    # first leaves the network as it is.
    first = chosen_of(options, torch.arange(n_units), nothing(options.edit, n_units), -1)
    chosen, curves = {first: 0}, []
    for label in labels:
        for ranking in rankings:
            ranked = ranked_units(ranking, label, n_units)
            taken = [
                chosen.setdefault(chosen_of(options, order, count, label), len(chosen))
                for count in counts for order in ranked.orders
            ]  # fmt: skip
            numbers = torch.tensor(taken).view(len(counts), -1)
            curves.append(Curve(ranked, others[label], numbers))
    return Curves(
        site=modes.site.key, n_units=n_units, options=options,
        label_names=samples.inputs.label_names,
        rankings=tuple(ranking.name for ranking in rankings), curves=tuple(curves),
        measured=_measured(model, samples, modes, list(chosen), options),
    )  # fmt: skip


def control_curve(model: nn.Module, data: Any, modes: Modes, **options: Any) -> "pandas.DataFrame":
    r"""Measure accuracy on a label and on all others, over the share of units edited.

    For every label, units of the modes' site are put in order by four rankings (`RANKINGS`, see
    `standard_rankings`; ``best_mode`` is that of Melander et al. 2026, figure 6). Of every ranking
    the first ``int(n_units * fraction)`` units are ablated, or preserved. An accuracy is relative
    to the unedited model's,

    .. math:: \frac{\text{right, edited}}{\text{right, unedited}},

    over the label's images (target), or over all images of all other labels together (off-target).

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; its output is [sample, label].
    data : Inputs, (tensor, labels), or a data set
        What was collected: samples of ``modes.store`` are found by their ids.
    modes : Modes
        With held-out rows.
    **options
        Fields of `CurveOptions`, such as ``labels``, ``fractions``, ``edit`` and ``replacement``.

    Returns
    -------
    pandas.DataFrame
        One row for every label, ranking and fraction, with `COLUMNS`; see docs/how-to/control.md.
        ``_std`` is over random draws; ``_entropy`` is in nats; ``auc_low`` and ``auc_high`` are of
        the whole curve.

    Raises
    ------
    OptionError
        An option outside its range; two rankings of one name, or one over other units.
    DataError
        Labels or held-out rows are missing, or `data` or a ranking is of other samples or rows.
    ModelError
        The model is in training mode, not proven, or its output is not [sample, label].
    """
    return measure_curves(model, data, modes, CurveOptions(**options)).to_frame()


def chosen_of(options: CurveOptions, order: Order, count: int, label: int) -> Chosen:
    """Return the first `count` units of an order, and the label whose mean replaces."""
    by_label = options.replacement == "class_mean" and count != nothing(options.edit, len(order))
    return tuple(sorted(order[:count].tolist())), label if by_label else None


def _measured(
    model: nn.Module, samples: HeldOut, modes: Modes, chosen: list[Chosen], options: CurveOptions
) -> Measured:
    """Return the outputs of held-out samples under the edit of each set of units."""
    store, site, size = modes.store, modes.site, options.batch_size
    n_units = store.info(site).n_units

    def under(samples: HeldOut, values: Mapping[int | None, Any]) -> Measured:
        edits = [edits_of(options.edit, site, n_units, units, values[of]) for units, of in chosen]
        return measure(model, samples, edits, batch_size=size, prove=options.prove)

    if options.replacement == "resample":
        batches = _with_donors(model, samples, modes, options)
        parts = [under(part, {None: donors}) for part, donors in batches]
        return Measured(**{
            field.name: torch.cat([getattr(part, field.name) for part in parts], -1)
            for field in fields(Measured)
        })  # fmt: skip
    labels = {label for _, label in chosen}
    if options.replacement == "zero":
        return under(samples, dict.fromkeys(labels, 0.0))
    rows = ~modes.held_out
    return under(samples, {of: unit_means(store, site, rows, label=of) for of in labels})


def _with_donors(
    model: nn.Module, samples: HeldOut, modes: Modes, options: CurveOptions
) -> Iterator[tuple[HeldOut, Donors]]:
    """Yield batches of samples, each sample with the activation of another one."""
    number = len(samples)
    if number < 2:
        raise DataError(
            "control_curve: resample needs another held-out sample to take activations from; "
            "there is only one"
        )
    donors = draw_donors(number, options.seed)
    for start in range(0, number, options.batch_size):
        places = slice(start, start + options.batch_size)
        part = replace(samples, indices=samples.indices[places], labels=samples.labels[places])
        given = samples.inputs.batch([samples.indices[donor] for donor in donors[places]])
        yield part, Donors(record_activation(model, given, modes.site))


def draw_donors(n_samples: int, seed: int) -> list[int]:
    """Draw another sample for every sample: each is the donor of exactly one.

    >>> sorted(draw_donors(4, 0)), any(a == b for a, b in enumerate(draw_donors(4, 0)))
    ([0, 1, 2, 3], False)
    """
    ring = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty_like(ring)
    donors[ring] = ring.roll(1)
    return [int(donor) for donor in donors]


def _other_labels(
    samples: HeldOut, labels: Sequence[int], options: CurveOptions
) -> dict[int, int | None]:
    """Return the off-target label of each label, where one is drawn."""
    found: dict[int, int | None] = dict.fromkeys(labels)
    if options.off == "others":
        return found
    generator = torch.Generator().manual_seed(options.seed)
    for label in labels:
        rest = sorted(set(samples.labels.tolist()) - {label})
        place = torch.randint(max(len(rest), 1), (1,), generator=generator)
        found[label] = rest[int(place)] if rest else None
    return found
