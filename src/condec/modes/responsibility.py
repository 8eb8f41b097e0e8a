r"""What modes of activations contribute: each unit's contribution, divided as its activation is.

Mode m answers for :math:`r_{mu} = z_m D_{mu} / \sum_{m'} z_{m'} D_{m'u}` of unit u, products of the
sign of its activation only, as `condec.explanation` has it for one input; its contribution is
:math:`C_m = \sum_u c_u r_{mu}`.
"""

import torch

from condec.basis.errors import DataError
from condec.basis.shapes import Loadings
from condec.modes.modes import Modes


def contribution_shares(modes: Modes) -> Loadings:
    """Divide the contributions of all samples among modes of activations, [sample, mode].

    In the unit of the target, positive and negative parts together, float32. What no mode answers
    for, of units that no mode has, is left out: sums over modes are those of the other units.

    Raises DataError: the modes are of contributions, whose loadings are what they contribute, of
    positions, or have loadings below 0.
    """
    if modes.quantity != "activation" or modes.rows != "samples":
        raise DataError(
            f"contribution_shares: expected modes of activations of whole samples; got those of "
            f"{modes.quantity}s, rows {modes.rows}"
        )
    if bool((modes.loadings < 0).any()):
        raise DataError(
            "contribution_shares: loadings below 0, of a projection for example; take a dictionary "
            "whose loadings are not negative"
        )
    n_units = modes.store.info(modes.site).n_units
    contribution = modes.store.matrix(modes.site, "contribution", "sum").double()
    activation = modes.store.matrix(modes.site, "activation", "sum").double()
    atoms = modes.atoms.double().view(len(modes), -1, n_units).sum(1)
    z = modes.loadings.double()
    found = torch.zeros_like(z)
    for sign in (1.0, -1.0):
        of_sign = (sign * atoms).clamp(min=0)
        total = z @ of_sign
        answered = (sign * activation > 0) & (total > 0)
        found += z * (torch.where(answered, contribution / total, 0.0) @ of_sign.T)
    return found.to(torch.float32)
