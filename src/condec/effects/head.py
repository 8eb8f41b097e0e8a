"""Weights of the last layer as scores of units, where a site is followed by nothing but it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condec.attribution import (
    merge_signs,
    prepare_inputs,
    split_and_sum,
    spread_units,
    unit_numbers,
)
from condec.basis.errors import OptionError, SiteError
from condec.network import (
    Site,
    find_sites,
    original,
    record,
    refuse_training,
    run_model,
    settle_sites,
    survey_sites,
    unfold,
)


def head_weights(
    model: nn.Module, site: Site | str, inputs: Tensor, *, tolerance: float = 1e-4
) -> Float[torch.Tensor, "label unit"]:
    r"""Return the weights of the last layer, where a site is followed by nothing but it.

    Where only an average over positions and a linear layer follow, every logit is
    :math:`\sum_u w_{ku} \bar h_u + b_k`, and its gradient the same for all inputs (two
    at least) and positions, up to a `tolerance` relative to the largest. The weights, for
    `ByScores`, are

    .. math:: w_{ku} = \sum_\text{positions} \frac{\partial y_k}{\partial h_u}.

    Gradients that differ, where more follows, are a SiteError.
    """
    refuse_training(model)
    (site,) = find_sites(original(model), site)
    if len(inputs) < 2:
        raise OptionError(f"head_weights: expected at least two inputs; got {len(inputs)}")
    weights, inputs = [], prepare_inputs(model, inputs)
    (site,) = settle_sites(model, (site,), inputs)
    units = survey_sites(model, inputs[:1], [site]).units[site.key]
    with record(model, [site]) as tape:
        logits = run_model(model, inputs)
        (h,) = tape.records.values()
        for logit in logits.sum(0):
            (gradient,) = torch.autograd.grad(logit, h, retain_graph=True, materialize_grads=True)
            gradient = unfold(gradient, len(h) // len(inputs))
            summed = merge_signs(split_and_sum(gradient, units)).float()
            mean = summed.mean(0)
            n_positions = int((unit_numbers(units, gradient.shape) >= 0).sum()) // summed.shape[1]
            same = spread_units(mean.expand_as(summed) / n_positions, units, tuple(gradient.shape))
            largest, off = float(gradient.abs().max()), float((gradient - same).abs().max())
            if not off <= tolerance * largest:
                raise SiteError(
                    f"head_weights: {site.key} is not followed by averaging and a linear layer "
                    "alone: the gradient of a logit differs between inputs or positions by "
                    f"{off:.2g}, where it is {largest:.2g} at most. There are no final-layer "
                    "weights of these units."
                )
            weights.append(mean)
    return torch.stack(weights).cpu()
