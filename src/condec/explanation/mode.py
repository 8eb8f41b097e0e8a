"""Input-space maps of a mode: receptive field times projective field.

Melander et al. 2026 (their figure 7) multiply, for every unit c of the mode and every position p,
what the input does to the unit with what the unit does to the target, and weight by the input:

    A_i^(c,p) = (dT / dh_(c,p)) (dh_(c,p) / dx_i),        C_i = x_i sum_(c,p) A_i^(c,p)

By the letter this takes one backward pass for every unit and position. But the sum over (c, p),
whole or over any subset, is one vector-Jacobian product; and the sign of a single (c, p), which
says in which subset it belongs, is that of (dT / dh) (J_h x), of which one forward-mode pass gives
all J_h x at once. So `mode_map` takes one forward pass with dual numbers and three backward passes,
whatever the number of units and positions; every further mode takes two, from the site on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from condec.attribution import prepare_inputs
from condec.attribution.targets import Predicted, TargetLike, as_target
from condec.basis.errors import ModelError, OptionError, SiteError
from condec.basis.records import short_repr
from condec.data import as_batch
from condec.explanation.tangent import AffineTangents, compile_rules, dual
from condec.network import (
    BatchSizes,
    Site,
    check_order,
    count_folds,
    find_sites,
    output_axis,
    plain_attention,
    proof_of,
    record,
    refuse_training,
    run_model,
    settle_sites,
    units_of,
)
from condec.network.tape import Tape

if TYPE_CHECKING:
    import numpy


@short_repr
@dataclass(frozen=True, eq=False)
class ModeMap:
    """Maps of one set of units, each of the input's shape [sample, *input].

    Of several modes, from ``weights``, they have an axis of modes first.

    Attributes
    ----------
    total : Tensor
        x * sensitivity; its sum over a sample is the first-order effect of x on the target
        through the chosen units. Unit: that of the target.
    positive : Tensor
        The part of `total` from the (unit, position) pairs whose own sum over the input is
        above zero.
    negative : Tensor
        The part of the other pairs; total = positive + negative.
    sensitivity : Tensor
        sum of A over the chosen units and all positions, without the factor x. Unit: that of
        the target per unit of the input.
    """

    total: Float[Tensor, "..."]
    positive: Float[Tensor, "..."]
    negative: Float[Tensor, "..."]
    sensitivity: Float[Tensor, "..."]


def mode_map(
    model: nn.Module, images: "Tensor | numpy.ndarray", site: Site | str,
    units: Sequence[int] | Tensor | None = None, target: TargetLike | None = None,
    labels: "Tensor | numpy.ndarray | None" = None, *,
    weights: Tensor | None = None, prove: bool = True,
) -> ModeMap:  # fmt: skip
    """Map the part of every input that drives these units to drive the target.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; left as it is, and no gradient of a parameter is computed.
    images : Tensor of shape [sample, ...]
        Inputs, preprocessed.
    site : Site or str
        One site; it must lie between input and target.
    units : sequence of int
        Units of the site, for example the strongest of a mode's atom.
    target : Target, or function from the output to Tensor[sample], optional
        What the units drive; `Predicted()` by default. The paper uses the probability of the
        image's own class, ``Label(probability=True)``.
    labels : Tensor of shape [sample], optional
        For targets that need them.
    weights : Tensor of shape [mode, unit], in place of units
        Several modes at once, each with a factor for every unit (``modes.atoms``, say): they
        share all passes but two short ones.
    prove : bool
        Try first, once for a model, shape and site, whether maps belong to single images
        (`condec.prove`).

    Raises
    ------
    OptionError
        No units, a unit given twice, or one that the site does not have; both units and weights,
        or weights of another shape.
    SiteError
        The pattern means several sites, or the site is not on a path from input to target.
    ModelError
        The model is in training mode, fails, is not proven, or holds an operation without a
        forward-mode derivative.
    DataError
        The images are not finite floating-point numbers, there are none, or labels are
        missing.

    Examples
    --------
    >>> from condec import Logit
    >>> from condec.testing.models import small_resnet
    >>> picture = mode_map(small_resnet(), torch.ones(2, 1, 5, 5), "block1", [0, 3], Logit(1))
    >>> picture.total.shape
    torch.Size([2, 1, 5, 5])
    >>> bool(torch.allclose(picture.total, picture.positive + picture.negative))
    True
    """
    chosen, *more = find_sites(model, site)
    if more:
        keys = ", ".join(one.key for one in (chosen, *more)[:5])
        raise SiteError(f"a map belongs to one site; {str(site)!r} means {1 + len(more)}: {keys}")
    refuse_training(model)
    inputs = prepare_inputs(model, as_batch("mode_map", images).detach()).clone()
    sizes = proof_of(model, inputs, [chosen]).demand().sizes if prove else BatchSizes()
    if not sizes.takes(len(inputs)):
        parts = []
        for rows in sizes.passes(len(inputs)):
            own = None if labels is None else torch.as_tensor(labels)[rows]
            one = mode_map(
                model, inputs[rows], chosen, units, target, own, weights=weights, prove=False
            )
            parts.append([getattr(one, field.name) for field in fields(one)])
        axis = 0 if weights is None else 1
        whole = [torch.cat(each, axis) for each in zip(*parts, strict=True)]
        return ModeMap(*(each.narrow(axis, 0, len(inputs)) for each in whole))
    (chosen,) = settle_sites(model, (chosen,), inputs)
    target = as_target(Predicted() if target is None else target)
    target = target.settled(lambda: output_axis(model, inputs))
    labels = None if labels is None else torch.as_tensor(labels).to(inputs.device)
    x = inputs.requires_grad_()
    # Fused attention kernels have no forward-mode derivative; the plain one does.
    with record(model, [chosen], hand_on=_handed_on) as tape, plain_attention():
        output, pushed = _pushed(model, x, chosen, tape)
        hidden = tape.records[chosen.key]
        n_folds = count_folds({chosen.key: hidden}, len(x), allowed=[chosen.key])
        value = target.value(output, target.freeze(output.detach(), labels)).sum()
        gradient = _gradient(value, hidden, chosen)
        halves = torch.stack([
            _halves(gradient * factors, pushed, hidden, x, chosen)
            for factors in _factors(hidden, chosen, units, weights)
        ])  # fmt: skip
    check_order(model, x, [chosen] if n_folds[chosen.key] > 1 else ())
    with torch.no_grad():
        positive, negative = halves[0] if weights is None else halves.transpose(0, 1)
        x, sensitivity = x.detach(), positive + negative
        return ModeMap(x * sensitivity, x * positive, x * negative, sensitivity)


def _handed_on(hidden: Tensor) -> Tensor:
    return _primal(hidden).clone()  # without the tangent: nobody reads it beyond the site


def _pushed(model: nn.Module, x: Tensor, site: Site, tape: Tape) -> tuple[Tensor, Tensor]:
    """Return the output, and J_h x at the site."""
    with forward_ad.dual_level(), AffineTangents():
        # The tangent x makes the forward pass carry J_h x along with every activation h.
        output = _run_dual(model, x, tape)
        seen: Tensor | None = forward_ad.unpack_dual(tape.records[site.key]).tangent  # type: ignore[no-untyped-call]
        if seen is None:
            raise _unreached(site)
        # Outside the level the tangents are gone, so backward passes cost no more than usual.
        return output, seen.detach().clone()


def _gradient(value: Tensor, hidden: Tensor, site: Site) -> Tensor:
    found: Tensor | None = None
    if value.requires_grad:
        found = torch.autograd.grad(value, hidden, retain_graph=True, allow_unused=True)[0]
    if found is None:
        raise SiteError(
            f"the target does not depend on {site.key}; choose a site between input and target"
        )
    return found


def _halves(driven: Tensor, pushed: Tensor, hidden: Tensor, x: Tensor, site: Site) -> Tensor:
    """Return vector^T J_h, of the part that drives upwards and of the rest."""
    upward = driven * (driven * pushed > 0)
    found = [
        torch.autograd.grad(hidden, x, half, retain_graph=True, allow_unused=True)[0]
        for half in (upward, driven - upward)
    ]
    if found[0] is None:
        raise _unreached(site)
    return torch.stack(found)


def _unreached(site: Site) -> SiteError:
    return SiteError(
        f"{site.key} does not depend on the input through operations that autograd can follow "
        "(past a lookup of embeddings or detach it cannot), so no map leads to it; choose a site "
        "before"
    )


def _run_dual(model: nn.Module, x: Tensor, tape: Tape) -> Tensor:
    """Run the forward pass that carries the tangent x; the output's own tangent is dropped."""

    def run() -> Tensor:
        return _primal(run_model(model, dual(x, x.detach().clone())))

    try:
        return run()
    except ModelError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
    compile_rules()
    for calls in tape.calls.values():
        calls.clear()
    try:
        return run()
    except ModelError as error:
        if isinstance(error.__cause__, NotImplementedError):
            raise ModelError(
                f"{type(model).__name__} holds an operation without a forward-mode derivative, "
                f"which maps need: {error.__cause__}. Replace it by plain tensor operations."
            ) from error
        raise


def _primal(tensor: Tensor) -> Tensor:
    primal: Tensor = forward_ad.unpack_dual(tensor).primal  # type: ignore[no-untyped-call]
    return primal


def _factors(
    hidden: Tensor, site: Site, units: Sequence[int] | Tensor | None, weights: Tensor | None
) -> list[Tensor]:
    """Lay the factor of every unit over the activation, for one mode or several."""
    layout = units_of(site, hidden)
    count = layout.count(hidden.shape)
    if (units is None) == (weights is None):
        raise OptionError("mode_map: give either units or weights")
    if weights is None:
        wanted = [int(unit) for unit in (() if units is None else units)]
        wrong = [unit for unit in wanted if not 0 <= unit < count]
        if not wanted or wrong or len(set(wanted)) < len(wanted):
            raise OptionError(
                f"units: expected different numbers from 0 to {count - 1} (the units of "
                f"{site.key}), at least one; got {wanted}"
            )
        weights = torch.zeros(1, count)
        weights[0, wanted] = 1
    if weights.ndim != 2 or not len(weights) or weights.shape[1] != count:
        raise OptionError(
            f"weights: expected shape [mode, {count}], a factor for each unit of {site.key}; got "
            f"{tuple(weights.shape)}"
        )
    return [layout.broadcast(row, hidden.shape) for row in weights.detach().to(hidden)]
