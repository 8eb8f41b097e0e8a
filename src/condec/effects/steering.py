"""Steering: add along a direction of a label, and see which samples become it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import unit_length
from condec.basis.shapes import Atom, Mask
from condec.edits import Steer
from condec.effects.measured import Edits, Measured, measure
from condec.effects.rankings import by_unit
from condec.effects.samples import held_out, labels_of
from condec.modes import Modes, label_name
from condec.network import refuse_training

if TYPE_CHECKING:
    import pandas

LabelDirection = Literal["activation", "atom", "mean_activation"]
Direction = Literal["activation", "atom", "mean_activation", "random_mode", "random"]

STEERING_COLUMNS: Final = (
    "site", "label", "label_name", "direction", "strength", "converted", "probability", "logit",
    "own_accuracy", "converted_std", "own_std", "converted_unedited", "probability_unedited",
    "logit_unedited", "own_unedited", "defined", "n_samples", "n_draws", "mode",
)  # fmt: skip
"""Columns of `steering_curve`."""


def steering_curve(
    model: nn.Module,
    data: Any,
    modes: Modes,
    *,
    strengths: Sequence[float],
    labels: Sequence[int] | None = None,
    directions: Sequence[Direction] = get_args(Direction),
    rank: int = 0,
    n_random: int = 5,
    seed: int = 0,
    batch_size: int = 64,
) -> "pandas.DataFrame":
    r"""Add along a label's direction to samples of all other labels.

    At every position a vector is added that is `strength` times as long as the activation
    there (`Steer`), so that directions compare at equal length:

    - ``activation``: how activations go with the loading z of the label's best mode, the
      slope of their regression, :math:`b_u = \operatorname{cov}(h_u, z) / \operatorname{var}(z)`;
    - ``atom``: the mode's atom. Atoms of contributions live among contributions, not among
      activations: an entry is in the unit of the target, and high where a unit matters, be
      it by its activation or by its gradient. Added to activations, an atom is a direction
      like any other, with no claim to be the mode's own;
    - ``mean_activation``: mean activation of the label's samples minus that of all others.
      No dictionary takes part;
    - ``random_mode``: as ``activation``, for modes drawn at random among the others;
    - ``random``: normally distributed, the same draws for all labels.

    Activations are means over positions. Directions are those of training rows, effects those
    of held-out rows.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; its output is [sample, label].
    data : Inputs, (tensor, labels), or a data set
        What was collected.
    modes : Modes
        With held-out rows.
    strengths : sequence of float
        In ascending order; 0 is the network as it is, below 0 steers away.
    labels : sequence of int, optional
        By default all with training and held-out rows.
    directions : sequence of str
        Of the five above.
    rank : int
        Which mode of a label: 0 the most correlated on training rows.
    n_random, seed : int
        Draws of random modes and directions.
    batch_size : int

    Returns
    -------
    pandas.DataFrame
        One row for every label, direction and strength, over held-out samples of other
        labels (``n_samples``):

        - ``converted``: share of them for which the label is predicted;
        - ``probability``, ``logit``: mean of the label's own;
        - ``own_accuracy``: how many keep their own label, relative to the unedited model;
          NaN, and ``defined`` False, where that gets none right;
        - each also for the unedited model, ``_unedited``, accuracy as a share;
        - ``converted_std``, ``own_std``: standard deviation over draws; NaN without;
        - ``n_draws``; ``mode``: original id, missing for directions of no mode or several.

    Raises
    ------
    OptionError
        An option outside its range.
    DataError
        As in `control_curve`; a direction without length (a mode whose loading does not vary
        on training rows, or one label alone).
    ModelError
        The model is in training mode, or its output is not [sample, label].
    """
    import pandas

    who = "steering_curve"
    strengths = tuple(float(strength) for strength in strengths)
    _check(strengths, directions, n_random)
    refuse_training(model)
    samples = held_out(data, modes, who)
    chosen = labels_of(samples, modes, labels, who)
    # A random direction that several labels share is followed once for each of them.
    edits: dict[tuple[Edits, int], int] = {((), label): i for i, label in enumerate(chosen)}
    points = []
    for label in chosen:
        if bool((samples.labels == label).all()):
            raise DataError(f"{who}: all held-out samples have label {label}; none is to steer")
        mode = modes.best(label, rank=rank).id
        for name in dict.fromkeys(directions):
            draws = _draws(modes, label, name, rank, n_random, seed)
            for strength in strengths:
                made = [_edit(modes, draw, strength) for draw in draws]
                numbers = [edits.setdefault((one, label), len(edits)) for one in made]
                of = mode if name in ("atom", "activation") else None
                points.append((label, name, strength, numbers, of))
    measured = measure(
        model, samples, [some for some, _ in edits], targets=[label for _, label in edits],
        batch_size=batch_size,
    )  # fmt: skip
    names = samples.inputs.label_names
    rows = [
        {
            "site": modes.site.key, "label": label, "label_name": label_name(names, label),
            "direction": name, "strength": strength, "mode": of,
            "n_draws": len(numbers) if name in ("random", "random_mode") else 0,
        }
        | _point(measured, label, numbers, edits[((), label)])
        for label, name, strength, numbers, of in points
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=list(STEERING_COLUMNS)).astype({"mode": "Int64"})


def steering_direction(modes: Modes, label: int, kind: LabelDirection, *, rank: int = 0) -> Atom:
    """One direction of a label, of length 1: see `steering_curve`.

    Parameters
    ----------
    modes : Modes
    label : int
    kind : {"activation", "atom", "mean_activation"}
    rank : int
        Which mode of the label: 0 the most correlated on training rows.

    Returns
    -------
    Tensor of shape [unit]

    Raises
    ------
    OptionError
        Another kind.
    DataError
        The direction has no length: a mode whose loading does not vary on training rows, or
        one label alone.
    """
    if kind not in get_args(LabelDirection):
        raise OptionError(
            f"steering_direction: kind must be one of {', '.join(get_args(LabelDirection))}; got "
            f"{kind!r}"
        )
    if kind == "mean_activation":
        training = ~modes.held_out & (modes.store.labels >= 0)
        mine = (modes.store.labels == label) & training
        activation = _activation(modes)
        return _of_length_one(
            activation[mine].mean(0) - activation[training & ~mine].mean(0),
            f"label {label} and the others have one mean activation, or no training rows",
        )
    match = modes.best(label, rank=rank, split="train")
    if kind == "atom":
        return _of_length_one(by_unit(modes, match.atom), f"the atom of mode {match.id} is 0")
    return _mode_activation(modes, match.mode)


def _check(strengths: Sequence[float], directions: Sequence[str], n_random: int) -> None:
    who = "steering_curve"
    finite = all(abs(strength) < float("inf") for strength in strengths)
    if not strengths or not finite or list(strengths) != sorted(set(strengths)):
        raise OptionError(
            f"{who}: strengths must be finite and in ascending order, for example (0.5, 1.0, "
            f"2.0); got {tuple(strengths)}"
        )
    unknown = [name for name in directions if name not in get_args(Direction)]
    if unknown or not directions:
        raise OptionError(
            f"{who}: expected directions of {', '.join(get_args(Direction))}; got "
            f"{', '.join(unknown) or 'none'}"
        )
    if n_random < 1:
        raise OptionError(
            f"{who}: n_random must be at least 1; got {n_random}. To leave random directions "
            "out, name the others in directions."
        )


def _draws(
    modes: Modes, label: int, name: Direction, rank: int, n_random: int, seed: int
) -> Sequence[Atom]:
    """Directions of one name for a label, several where they are drawn."""
    if name == "random":
        return _random(modes, n_random, seed)
    if name == "random_mode":
        return _random_modes(modes, modes.best(label, rank=rank).mode, n_random, seed)
    return [steering_direction(modes, label, name, rank=rank)]


def _random(modes: Modes, n_random: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n_units = modes.store.info(modes.site).n_units
    return list(unit_length(torch.randn(n_random, n_units, generator=generator), 1))


def _random_modes(modes: Modes, but: int, n_random: int, seed: int) -> list[Tensor]:
    """Directions of other modes whose loadings vary on training rows."""
    generator = torch.Generator().manual_seed(seed)
    training = ~modes.held_out
    varies = modes.loadings[training].std(0) > 0
    varies[but] = False
    others = varies.nonzero().flatten()
    if not len(others):
        raise DataError(
            f"steering_curve: {modes.site.key}: no other mode varies on training rows; leave "
            "random_mode out of directions"
        )
    drawn = others[torch.randperm(len(others), generator=generator)[:n_random]]
    return [_mode_activation(modes, mode) for mode in drawn.tolist()]


def _mode_activation(modes: Modes, mode: int) -> Atom:
    """How activations go with a mode's loading, on training rows."""
    return _of_length_one(
        _slope(_activation(modes), modes.loadings[:, mode], ~modes.held_out),
        f"the loading of mode {int(modes.ids[mode])} does not vary on training rows, or no "
        "activation goes with it",
    )


def _activation(modes: Modes) -> Tensor:
    """Activations of a store, [sample, unit], means over positions."""
    summed = modes.store.matrix(modes.site, quantity="activation", sign="sum")
    return summed / modes.store.info(modes.site).n_positions


def _slope(activation: Tensor, loading: Tensor, rows: Mask) -> Atom:
    """Covariance of every unit's activation with a loading, over the loading's variance."""
    centred = (loading[rows] - loading[rows].mean()).double()
    variance = centred.square().sum()
    # A loading that does not vary says nothing: no direction, which the caller refuses.
    slope: Tensor = centred @ activation[rows].double()
    return (slope / torch.where(variance > 0, variance, torch.inf)).to(activation.dtype)


def _of_length_one(direction: Tensor, why: str) -> Atom:
    # "not above" also refuses NaN, the mean of no rows.
    if not bool(direction.norm() > 0):
        raise DataError(f"steering_direction: a direction has no length: {why}")
    return unit_length(direction, 0)


def _edit(modes: Modes, direction: Tensor, strength: float) -> Edits:
    return (Steer(modes.site, direction=direction, strength=strength),) if strength else ()


def _point(
    measured: Measured, label: int, numbers: Sequence[int], unedited: int
) -> dict[str, object]:
    """What becomes of the other labels' samples; `numbers` are the rows of the draws."""
    others = measured.labels != label
    converted, right, probability, logit = (
        values[:, others].double().mean(1)
        for values in (
            measured.predicted == label, measured.right, measured.target_probability,
            measured.target_logit,
        )
    )  # fmt: skip
    own = right[numbers] / (float(right[unedited]) or torch.nan)
    return {
        "converted": float(converted[numbers].mean()),
        "probability": float(probability[numbers].mean()),
        "logit": float(logit[numbers].mean()),
        "own_accuracy": float(own.mean()),
        "converted_std": float(converted[numbers].std()) if len(numbers) > 1 else torch.nan,
        "own_std": float(own.std()) if len(numbers) > 1 else torch.nan,
        "converted_unedited": float(converted[unedited]),
        "probability_unedited": float(probability[unedited]),
        "logit_unedited": float(logit[unedited]),
        "own_unedited": float(right[unedited]),
        "defined": bool(right[unedited] > 0),
        "n_samples": int(others.sum()),
    }
