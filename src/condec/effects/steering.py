"""Steering: add along a direction of a label, and count which samples become it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from condec.basis.checks import ascending, at_least, one_of
from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import unit_length
from condec.basis.shapes import Atom
from condec.edits import Steer
from condec.effects.measured import Edits, Measured, measure
from condec.effects.rankings import atom_scores
from condec.effects.samples import held_out, labels_of
from condec.modes import Modes, label_name

if TYPE_CHECKING:
    import pandas

LabelDirection = Literal["activation", "atom", "mean_activation"]
DirectionKind = Literal["activation", "atom", "mean_activation", "random_mode", "random"]

STEERING_COLUMNS: Final = (
    "site", "label", "label_name", "direction", "strength", "converted", "probability", "logit",
    "own_accuracy", "converted_std", "own_std", "converted_unedited", "probability_unedited",
    "logit_unedited", "own_unedited", "defined", "n_samples", "n_draws", "mode",
)  # fmt: skip
"""Columns of `steering_curve`."""


def steering_curve(
    model: nn.Module, data: Any, modes: Modes, *, strengths: Sequence[float],
    labels: Sequence[int] | None = None,
    directions: Sequence[DirectionKind] = get_args(DirectionKind), n_random: int = 5, seed: int = 0,
    batch_size: int = 64, prove: bool = True,
) -> "pandas.DataFrame":  # fmt: skip
    r"""Add along a label's direction to samples of all other labels.

    At every position a vector is added that is `strength` times as long as the activation
    there (`Steer`), so that directions compare at equal length:

    - ``activation``: how activations go with the loading z of the label's best mode, the
      slope of their regression, :math:`b_u = \operatorname{cov}(h_u, z) / \operatorname{var}(z)`;
    - ``atom``: the mode's atom; ``random_mode``: as ``activation``, for other modes at random;
    - ``mean_activation``: mean activation of the label's samples minus that of all others;
    - ``random``: normally distributed, the same draws for all labels.

    Activations are means over positions; directions are those of training rows.

    Parameters
    ----------
    model, data, modes, labels, batch_size, prove
        As in `control_curve`.
    strengths : sequence of float
        In ascending order; 0 is the network as it is, below 0 steers away.
    directions : sequence of str
        Of the five above.
    n_random, seed : int
        Draws of random modes and directions.

    Returns
    -------
    pandas.DataFrame
        One row for every label, direction and strength, over held-out samples of other
        labels: the share ``converted``, for which the label is predicted; the mean
        ``probability`` and ``logit`` of the label; ``own_accuracy``, how many keep their own label,
        relative to the unedited model (NaN, and ``defined`` False, where that gets none right);
        each also ``_unedited``; ``_std`` over draws; ``mode``, where there is one.

    Raises
    ------
    OptionError, DataError, ModelError
        As in `control_curve`; a direction without length (a mode that does not vary, one label).
    """
    import pandas

    who = "steering_curve"
    strengths = tuple(float(strength) for strength in strengths)
    expected = "strengths must be finite and in ascending order, for example (0.5, 1.0, 2.0)"
    ascending(who, strengths, expected, low=-math.inf, high=math.inf)
    if not directions:
        raise OptionError(f"{who}: expected some of {', '.join(get_args(DirectionKind))}; got none")
    for direction in directions:
        one_of(who, "directions", direction, DirectionKind)
    at_least(who, 1, n_random=n_random)
    samples = held_out(data, modes, who)
    chosen = labels_of(samples, modes, labels, who)
    # A random direction that several labels share is followed once for each of them.
    edits: dict[tuple[Edits, int], int] = {((), label): i for i, label in enumerate(chosen)}
    points: list[tuple[dict[str, object], int, list[int]]] = []
    for label in chosen:
        if bool((samples.labels == label).all()):
            raise DataError(f"{who}: all held-out samples have label {label}; none is to steer")
        mode = modes.best(label)
        key = {
            "site": modes.site.key, "label": label,
            "label_name": label_name(samples.inputs.label_names, label),
        }  # fmt: skip
        for name in dict.fromkeys(directions):
            if name == "random" or name == "random_mode":
                draws = _drawn(modes, name, mode.mode, n_random, seed)
                key |= {"direction": name, "mode": None, "n_draws": len(draws)}
            else:
                draws = [steering_direction(modes, label, name)]
                of = None if name == "mean_activation" else mode.id
                key |= {"direction": name, "mode": of, "n_draws": 0}
            for strength in strengths:
                numbers = []
                for draw in draws:
                    one = Steer(modes.site, direction=draw, strength=strength)
                    numbers.append(
                        edits.setdefault(((one,) if strength else (), label), len(edits))
                    )
                points.append((key | {"strength": strength}, label, numbers))
    some, targets = zip(*edits, strict=True)
    measured = measure(model, samples, some, targets=targets, batch_size=batch_size, prove=prove)
    rows = [
        key | _point(measured, label, numbers, edits[((), label)]) for key, label, numbers in points
    ]
    return pandas.DataFrame(rows, columns=list(STEERING_COLUMNS)).astype({"mode": "Int64"})


def steering_direction(modes: Modes, label: int, kind: LabelDirection) -> Atom:
    """Return one direction of a label, [unit], of length 1, as `steering_curve` does."""
    one_of("steering_direction", "kind", kind, LabelDirection)
    if kind == "mean_activation":
        training = ~modes.held_out & (modes.store.labels >= 0)
        mine = (modes.store.labels == label) & training
        activation = _activation(modes)
        return _of_length_one(
            activation[mine].mean(0) - activation[training & ~mine].mean(0),
            f"label {label} and the others have one mean activation, or no training rows",
        )
    match = modes.best(label)
    if kind == "activation":
        return _mode_activation(modes, match.mode)
    return _of_length_one(atom_scores(modes, match.atom), f"the atom of mode {match.id} is 0")


def _drawn(modes: Modes, name: DirectionKind, but: int, n_random: int, seed: int) -> list[Atom]:
    """Draw random directions, or those of modes, but one, whose loadings vary on training rows."""
    generator = torch.Generator().manual_seed(seed)
    if name == "random":
        n_units = modes.store.info(modes.site).n_units
        return list(unit_length(torch.randn(n_random, n_units, generator=generator), 1))
    varies = modes.loadings[~modes.held_out].std(0) > 0
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
    """Return the slope of activations over a mode's loading, on training rows, of length 1."""
    rows, loading, activation = ~modes.held_out, modes.loadings[:, mode], _activation(modes)
    centred = (loading[rows] - loading[rows].mean()).double()
    variance = centred.square().sum()
    # A loading that does not vary has no slope, and so no direction.
    slope = (centred @ activation[rows].double()) / torch.where(variance > 0, variance, torch.inf)
    return _of_length_one(
        slope.to(activation.dtype),
        f"the loading of mode {int(modes.ids[mode])} does not vary on training rows, or no "
        "activation goes with it",
    )


def _activation(modes: Modes) -> Tensor:
    """Return the activations of a store, [sample, unit], means over positions."""
    summed = modes.store.matrix(modes.site, quantity="activation", sign="sum")
    return summed / modes.store.info(modes.site).n_positions


def _of_length_one(direction: Tensor, why: str) -> Atom:
    # "not above" also refuses NaN, the mean of no rows.
    if not bool(direction.norm() > 0):
        raise DataError(f"steering_direction: a direction has no length: {why}")
    return unit_length(direction, 0)


def _point(
    measured: Measured, label: int, numbers: Sequence[int], unedited: int
) -> dict[str, object]:
    """Return the numbers of the other labels' samples; `numbers` are the rows of the draws."""
    others = measured.labels != label
    found: dict[str, object] = {"n_samples": int(others.sum())}
    for name, values in (
        ("converted", measured.predicted == label), ("probability", measured.target_probability),
        ("logit", measured.target_logit), ("own", measured.right),
    ):  # fmt: skip
        means = values[:, others].double().mean(1)
        before, after = float(means[unedited]), means[numbers]
        if name == "own":
            after = after / (before or math.nan)
            found["defined"] = bool(before)
        found |= {f"{name}_unedited": before, name: float(after.mean())}
        found[f"{name}_std"] = float(after.std()) if len(numbers) > 1 else math.nan
    return found | {"own_accuracy": found["own"]}
