"""Atoms that are given and not learnt: directions, concept vectors, units, of another program."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, final

import torch

from condec.basis.checks import one_of
from condec.basis.errors import DataError
from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import ATOMS, OFFSET, Learner, Parameters
from condec.dictionary.records import Learned, OnEpoch, TrainConfig

Encoder = Literal["nnls", "projection", "component"]


@final
@dataclass(frozen=True, slots=True)
class GivenAtoms(Learner):
    r"""Atoms from elsewhere, with an encoder that needs nothing but them.

    Of rows less the offset, where there is one:

    - ``nnls``: loadings that are not negative, of least squared error (Lawson & Hanson 1974);
    - ``projection``: those of least squares, :math:`z = (x - o) D^+`;
    - ``component``: along each atom by itself, :math:`z_m = (x - o) \cdot d_m / |d_m|^2`, as for
      concept vectors and single units; several atoms may describe the same part of a row.
    """

    _: KW_ONLY
    encoder: Encoder = "nnls"

    def __post_init__(self) -> None:
        Learner.__post_init__(self)
        one_of("GivenAtoms", "encoder", self.encoder, Encoder)

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Refuse: there is nothing to learn."""
        raise DataError("GivenAtoms: atoms that were imported cannot be fitted; take a learner")

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Find the loadings of every row by itself."""
        atoms = tensors[ATOMS].double()
        rows = matrix.double() - tensors.get(OFFSET, matrix.new_zeros(()))
        if self.encoder == "component":
            found = (
                rows @ atoms.T / atoms.square().sum(1).clamp(min=torch.finfo(torch.float32).tiny)
            )
        elif self.encoder == "projection":
            found = rows @ torch.linalg.pinv(atoms)
        else:
            from scipy.optimize import nnls

            wide = atoms.T.cpu().numpy()
            each = [torch.from_numpy(nnls(wide, row)[0]) for row in rows.cpu().numpy()]
            found = torch.stack(each) if each else rows.new_zeros(0, self.n_modes)
        return found.to(matrix.device, torch.float32)


@final
@dataclass(frozen=True, slots=True)
class Imported(Learner):
    """``[fit] learner = "import:PATH"``: the dictionary at `path` in place of one that is learnt.

    ``{site}`` in the path stands for the key of the site. `n_modes` is that of the file.
    """

    _: KW_ONLY
    path: str = ""

    def learn(self, matrix: UnitMatrix, config: TrainConfig, on_epoch: OnEpoch) -> Learned:
        """Refuse: there is nothing to learn."""
        raise DataError(f"import:{self.path}: a dictionary that is imported is not fitted again")

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Refuse: the dictionary has an encoder of its own."""
        raise DataError(f"import:{self.path}: open it with condec.import_dictionary first")
