"""Recovery: known modes against learned ones, found or made up."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import DataError, OptionError
from condec.basis.metrics import matched_cosine, unit_length
from condec.basis.records import short_repr
from condec.basis.shapes import Atoms


@short_repr
@dataclass(frozen=True, eq=False)
class Recovery:
    """Likeness of learned atoms to known ones.

    `cosine` [known mode] is that with the partner of a one-to-one matching, 0 where no learned atom
    was left; `closest` [learned mode] the largest cosine with any known one; `threshold` the cosine
    above which two atoms count as the same mode.
    """

    cosine: Tensor
    closest: Tensor
    threshold: float

    @property
    def recovered(self) -> Tensor:
        """Known modes with a partner above the threshold: Bool [known mode]."""
        return self.cosine > self.threshold

    @property
    def share(self) -> float:
        """Share of the known modes that are recovered."""
        return float(self.recovered.double().mean())

    @property
    def n_false(self) -> int:
        """Learned modes that are like no known one."""
        return int((self.closest <= self.threshold).sum())

    @property
    def n_copies(self) -> int:
        """Learned modes that are like a known one that has a partner already."""
        return len(self.closest) - self.n_false - int(self.recovered.sum())


def recovery(
    atoms: Atoms, known: Float[torch.Tensor, "known unit"], *, threshold: float = 0.9
) -> Recovery:
    """Match learned atoms to known ones, one to one, so that the sum of cosines is largest.

    `atoms` [mode, unit] are those of alive modes: an atom that nothing uses is no mode. A
    `threshold` outside 0 to 1 is an OptionError, other numbers of units a DataError.

    >>> found = recovery(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.eye(2))
    >>> found.share, found.n_false
    (0.5, 1)
    """
    if not 0.0 <= threshold < 1.0:
        raise OptionError(f"recovery: threshold must be from 0 to below 1; got {threshold}")
    if atoms.ndim != 2 or known.ndim != 2 or atoms.shape[1] != known.shape[1] or not len(known):
        raise DataError(
            "recovery: expected learned and known atoms [mode, unit] over the same units; got "
            f"shapes {tuple(atoms.shape)} and {tuple(known.shape)}"
        )
    known = known.to(atoms.device, atoms.dtype)
    closest = (unit_length(known, 1) @ unit_length(atoms, 1).T).amax(0)
    return Recovery(matched_cosine(known, atoms).nan_to_num(0.0).cpu(), closest.cpu(), threshold)
