"""Numbers of atoms: how alike two dictionaries are, and how alike the atoms of one."""

import torch
from jaxtyping import Float
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics.vectors import unit_length
from condec.basis.shapes import Atoms


def matched_cosine(
    atoms_a: Float[torch.Tensor, "mode unit"], atoms_b: Float[torch.Tensor, "other unit"]
) -> Float[torch.Tensor, " mode"]:
    """Cosine of every atom with its partner in another dictionary.

    Partners are assigned one to one so that the sum of cosines is largest (Hungarian
    method). With more atoms in the first dictionary than in the second, those left over get
    NaN; ``nanmean()`` of the result is the stability of a dictionary over two fits.

    Parameters
    ----------
    atoms_a : Tensor of shape [mode, unit]
    atoms_b : Tensor of shape [other mode, unit]

    Raises
    ------
    DataError
        The dictionaries differ in the number of units.
    """
    from scipy.optimize import linear_sum_assignment

    if atoms_a.ndim != 2 or atoms_b.ndim != 2 or atoms_a.shape[1] != atoms_b.shape[1]:
        raise DataError(
            "matched_cosine: expected two [mode, unit] matrices over the same units; got shapes "
            f"{tuple(atoms_a.shape)} and {tuple(atoms_b.shape)}"
        )
    similarity = (unit_length(atoms_a, 1) @ unit_length(atoms_b, 1).T).clamp_(-1.0, 1.0)
    rows, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    matched = similarity.new_full((len(atoms_a),), float("nan"))
    matched[torch.from_numpy(rows)] = similarity[torch.from_numpy(rows), torch.from_numpy(columns)]
    return matched


def atom_coherence(atoms: Atoms) -> Float[torch.Tensor, " mode"]:
    r"""Largest absolute cosine of every atom with another one.

    .. math:: \mu_m = \max_{n \ne m} |\cos(d_m, d_n)|

    The maximum over modes is the coherence of a dictionary: 0 for orthogonal atoms, 1 where
    two are the same up to a factor. NaN for a single atom.

    Parameters
    ----------
    atoms : Tensor of shape [mode, unit]

    Examples
    --------
    >>> atom_coherence(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])).round(decimals=4)
    tensor([0.7071, 0.7071, 0.7071])
    """
    if len(atoms) < 2:
        return torch.full_like(unit_length(atoms, 1)[:, 0], float("nan"))
    return _between_atoms(atoms).amax(1).clamp_(0.0, 1.0)


def mean_coherence(atoms: Atoms) -> float:
    """Mean absolute cosine between two different atoms; NaN for a single one.

    Parameters
    ----------
    atoms : Tensor of shape [mode, unit]

    Examples
    --------
    >>> mean_coherence(torch.eye(3))
    0.0
    """
    number = len(atoms)
    if number < 2:
        return float("nan")
    return float(_between_atoms(atoms).sum(dtype=torch.float64)) / (number * (number - 1))


def _between_atoms(atoms: Tensor) -> Tensor:
    """Absolute cosines, 0 on the diagonal."""
    unit = unit_length(atoms, 1)
    return (unit @ unit.T).abs_().fill_diagonal_(0.0)
