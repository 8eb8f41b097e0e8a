r"""Erasure: what a change of the input adds to an activation, taken out at least cost to the rest.

`Project` takes out all that lies along a direction, also what other inputs hold there. `Erase`
reads how much of the change there is where other activations vary least, and takes that much out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError, SiteError
from condec.edits.base import Edit, set_fields, set_site
from condec.edits.directions import Direction, Vector, along, checked_direction
from condec.edits.replacement import numbers_of, record_rows
from condec.network import Site, find_sites, settle_sites, units_of


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class Erase(Edit):
    r"""Take out, along directions, as much as readers find there, at every position.

    .. math:: h_p \leftarrow h_p - \sum_j d_j \, (r_j^T h_p - a_j)

    Made by `erasure`; weights can hold it (`baked`).

    Parameters
    ----------
    site : Site, or its text
    directions, readers : sequences of Tensor of shape [unit]
        d and r, as many of the one as of the other; their lengths count.
    offsets : sequence of float
        a, what the readers find where there is nothing to take out.

    Raises
    ------
    OptionError, SiteError
        Other numbers of directions, readers and offsets; one that is zero or not finite; at the
        first forward pass, another width than the site's, or units that are heads.

    Examples
    --------
    >>> erase = Erase("fc", directions=[[1.0, 0.0]], readers=[[0.0, 2.0]], offsets=[1.0])
    >>> erase.apply(torch.tensor([[3.0, 4.0]]))                     # 2 * 4 - 1 too many
    tensor([[-4.,  4.]])
    """

    site: Site
    directions: tuple[Direction, ...]
    readers: tuple[Direction, ...]
    offsets: tuple[float, ...]

    def __init__(
        self, site: Site | str, *, directions: Sequence[Vector] | Tensor,
        readers: Sequence[Vector] | Tensor, offsets: Sequence[float] | Tensor,
    ) -> None:  # fmt: skip
        who = set_site(self, site)
        given = {"direction": list(directions), "reader": list(readers)}
        found = {
            name: tuple(checked_direction(who, one, f"{name} {i}") for i, one in enumerate(several))
            for name, several in given.items()
        }
        numbers = numbers_of(offsets)
        if not all(map(math.isfinite, numbers)):
            raise OptionError(f"{who}: offsets must be finite; got {numbers}")
        n, widths = len(numbers), {len(one) for several in found.values() for one in several}
        if not n or any(len(several) != n for several in found.values()) or len(widths) > 1:
            raise OptionError(
                f"{who}: expected as many directions as readers and offsets, at least one, of one "
                f"width; got {len(found['direction'])}, {len(found['reader'])} and {n}, of widths "
                f"{sorted(widths)}"
            )
        set_fields(self, directions=found["direction"], readers=found["reader"], offsets=numbers)

    def apply(self, activation: Tensor) -> Tensor:
        """Return the activation without what the readers find."""

        def erased(h: Tensor, axes: tuple[int, ...], *laid: Tensor) -> Tensor:
            n, out = len(self.offsets), h
            for j, offset in enumerate(self.offsets):
                size = [math.hypot(*one[j]) for one in (self.directions, self.readers)]
                found = (h * laid[n + j]).sum(axes, keepdim=True) * size[1] - offset
                out = out - found * size[0] * laid[j]
            return out

        return along(self, [*self.directions, *self.readers], activation, erased)

    def map(self) -> tuple[Tensor, Tensor]:
        """Return the edit as a matrix [unit, unit] and a shift [unit], float64: h to M h + c."""
        d, r, a = (
            torch.tensor(one, dtype=torch.float64)
            for one in (self.directions, self.readers, self.offsets)
        )
        return torch.eye(d.shape[1]).double() - d.T @ r, d.T @ a


def erasure(
    model: nn.Module, site: Site | str, inputs: Tensor, changed: Tensor, *, n_directions: int = 1
) -> Erase:
    r"""Work out the edit that takes out of a site what a change of the inputs adds there.

    With :math:`h_p, h'_p` the site's vectors over the units for an input and for the same input
    changed (a mark added, say), the rows of D are the leading right singular vectors of all
    :math:`h'_p - h_p`, and with the mean m and the covariance :math:`\Sigma` of all :math:`h_p`

    .. math:: R = (D \Sigma^{-1} D^T)^{-1} D \Sigma^{-1}, \qquad a = R m .

    As :math:`R D^T = 1`, all that was added along D goes; of all readers of which that is true,
    these change the unchanged inputs least: :math:`\mathrm{tr}\, R \Sigma R^T` is least (Aitken
    1936; in the least-squares erasure of concepts, Belrose et al. 2023, the same projection).
    :math:`\Sigma` is shrunk as in Ledoit & Wolf 2004.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; left as it is.
    site : Site, or its text
        One; ``linear:input@features`` of the last layer can be held by its weights.
    inputs, changed : Tensor of shape [sample, ...]
        The same inputs, without the change and with it.
    n_directions : int
        How many to take out. More take out more of the change, and may cost other inputs more:
        compare on inputs of your own.

    Raises
    ------
    DataError
        Other numbers of inputs; fewer than two; the change does nothing at the site.
    OptionError, SiteError, ModelError
        More directions than the change spans; units that are heads, or as `record_activation`.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> from condec.edits import baked
    >>> model, inputs = small_resnet(), torch.rand(20, 1, 5, 5)
    >>> marked = inputs.clone()
    >>> marked[..., :2, :2] = 1.0
    >>> repair = erasure(model, "head:input", inputs, marked)
    >>> before, after = model, baked(model, repair, inputs=inputs)
    >>> (after(marked) - after(inputs)).norm() < 0.5 * (before(marked) - before(inputs)).norm()
    tensor(True)
    """
    at_least("erasure", 1, n_directions=n_directions)
    if inputs.shape != changed.shape or len(inputs) < 2:
        raise DataError(
            "erasure: expected two inputs or more, and the same ones changed; got shapes "
            f"{tuple(inputs.shape)} and {tuple(changed.shape)}"
        )
    several = [record_rows(model, x, site)[0] for x in (inputs, changed)]  # of one site alone
    (site,) = settle_sites(model, find_sites(model, site), inputs)
    h, after = (_vectors(activation, site) for activation in several)
    _, sizes, basis = torch.linalg.svd(after - h, full_matrices=False)
    if not float(sizes[0]):
        raise DataError(f"erasure: {site.key}: the change of the inputs does nothing here")
    if n_directions > (rank := int((sizes > 1e-6 * sizes[0]).sum())):
        raise OptionError(
            f"erasure: {site.key}: the change spans {rank} directions; got n_directions="
            f"{n_directions}"
        )
    from sklearn.covariance import ledoit_wolf

    directions = basis[:n_directions]
    covariance = torch.from_numpy(ledoit_wolf(h.numpy())[0])
    # A unit that never varies tells nothing of its own; the least of rounding stands for it.
    covariance += 1e-9 * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
    weighted = torch.linalg.solve(covariance, directions.T)
    readers = torch.linalg.solve(directions @ weighted, weighted.T)
    return Erase(site, directions=directions, readers=readers, offsets=readers @ h.mean(0))


def _vectors(activation: Tensor, site: Site) -> Tensor:
    """Return the vectors over the units, [sample and position, unit], float64."""
    units = units_of(site, activation)
    h = units.expand(activation)
    if units.layout == "heads" or len(axes := units.axes(h.ndim)) > 1:
        raise SiteError(
            f"erasure: {site.key}: units of layout {units.layout} have no direction; take the "
            "site @features or @channels"
        )
    return h.movedim(axes[0], -1).flatten(0, -2).double().cpu()
