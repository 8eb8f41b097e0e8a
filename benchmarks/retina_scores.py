"""Scores of modes of a retina whose pathways and gates are known, for the benchmark `retina.py`."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.metrics import correlation_matrix, matched_cosine, unit_length
from condec.retina import ReceptiveFields
from condec.retina.models.circuit import PATHWAYS, POLARITY
from condec.testing.retina import PlantedRetina

RARE = 0.01
FAINT = 0.1


def folded(atoms: Float[Tensor, "mode entry"], n_units: int) -> Float[Tensor, "mode unit"]:
    """Sum the absolute entries of the halves of atoms: the units that take part in each.

    Atoms of the sign ``concat`` have an entry for the positive and one for the negative part of
    every unit; others have one.
    """
    if atoms.shape[1] not in (n_units, 2 * n_units):
        raise DataError(
            f"folded: expected atoms of {n_units} entries, or {2 * n_units} for the sign concat; "
            f"got {atoms.shape[1]}"
        )
    halves: Tensor = atoms.abs().view(len(atoms), -1, n_units)
    return halves.sum(1)


def even_rows(matrix: Float[Tensor, "sample unit"], train: Tensor) -> Float[Tensor, "sample unit"]:
    r"""Bring rows to nearly the same length: :math:`x / (|x| + 0.1\,\mathrm{rms}|x|)`.

    Loadings that are nearly binary (`condec.dictionary.ThresholdSAE`) leave out weak rows, and
    contributions to a surprisal are weak wherever the rates are near their mean. Rows far below
    the root mean square length of the training samples stay short.
    """
    length = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    even: Tensor = matrix / (length + FAINT * length[train].square().mean().sqrt())
    return even


@dataclass(frozen=True, eq=False)
class FoundModes:
    """Modes of one site, and the pathway that each belongs to.

    Attributes
    ----------
    loadings : Tensor of shape [sample, mode]
        Of modes that are above 0 in at least one of a hundred training samples.
    size : Tensor of shape [mode]
        Length of every atom, without its signs (`folded`).
    pathway : Tensor of shape [mode], int64
    cosine : Tensor of shape [pathway]
        Of each planted atom with its mode, matched one to one; NaN where none is planted.
    """

    loadings: Float[Tensor, "sample mode"]
    size: Float[Tensor, " mode"]
    pathway: Int[Tensor, " mode"]
    cosine: Float[Tensor, " pathway"]

    @classmethod
    def by_atoms(
        cls, atoms: Tensor, loadings: Tensor, planted: Float[Tensor, "pathway unit"], train: Tensor
    ) -> "FoundModes":
        """Assign each mode to the planted atom that its own is closest to; no gate is used."""
        alive = _alive(loadings, train)
        found = folded(atoms[alive], planted.shape[1])
        closest = unit_length(found, 1) @ unit_length(planted, 1).T
        cosine = matched_cosine(planted, found).nan_to_num(0.0)
        size = torch.linalg.vector_norm(found, dim=1)
        return cls(loadings[:, alive], size, closest.argmax(1), cosine)

    @classmethod
    def by_gates(
        cls, atoms: Tensor, loadings: Tensor, gates: Tensor, train: Tensor
    ) -> "FoundModes":
        """Assign each mode to the gate that its loading correlates with most in training.

        For networks whose channels are not known.
        """
        alive = _alive(loadings, train)
        correlation = correlation_matrix(loadings[train][:, alive], gates[train].float())
        size = torch.linalg.vector_norm(atoms[alive], dim=1)
        nothing = torch.full((gates.shape[1],), torch.nan)
        return cls(loadings[:, alive], size, correlation.argmax(1), nothing)

    @property
    def strength(self) -> Float[Tensor, "sample mode"]:
        """Return loading times size, in the unit of the data."""
        return self.loadings * self.size

    @property
    def pathway_loadings(self) -> Float[Tensor, "sample pathway"]:
        """Sum `strength` over the modes of each pathway."""
        member = torch.nn.functional.one_hot(self.pathway, len(PATHWAYS)).to(self.loadings.dtype)
        return self.strength @ member


def _alive(loadings: Tensor, train: Tensor) -> Tensor:
    alive = (loadings[train] > 0).float().mean(0) >= RARE
    if not bool(alive.any()):
        raise DataError("FoundModes: no mode is above 0 in one of a hundred training samples")
    return alive


def gate_auroc(
    found: FoundModes, gates: Bool[Tensor, "sample pathway"], held_out: Tensor
) -> Float[Tensor, " pathway"]:
    """Score how well the loadings of a pathway's modes together tell that its gate is open.

    Area under the receiver operating characteristic on held-out samples: 0.5 is chance, and the
    score of a pathway without any mode.
    """
    scores = found.pathway_loadings[held_out]
    return torch.tensor([_auroc(scores[:, p], gates[held_out, p]) for p in range(gates.shape[1])])


def best_mode_auroc(
    found: FoundModes, gates: Bool[Tensor, "sample pathway"], train: Tensor, held_out: Tensor
) -> Float[Tensor, " pathway"]:
    """Score a single mode for each gate: the one that is best on training samples."""
    areas = []
    for gate in gates.T:
        on_train = [_auroc(column, gate[train]) for column in found.loadings[train].T]
        best = max(range(len(on_train)), key=on_train.__getitem__)
        areas.append(_auroc(found.loadings[held_out, best], gate[held_out]))
    return torch.tensor(areas)


def _auroc(scores: Tensor, truth: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    if bool(truth.all()) or not bool(truth.any()):
        raise DataError("gate_auroc: a gate never changes in these samples; take a longer movie")
    return float(roc_auc_score(truth.numpy(), scores.numpy()))


@dataclass(frozen=True, eq=False)
class SignAttribution:
    """Shares of receptive fields whose sign, ON or OFF, modes tell.

    Attributes
    ----------
    right : float
        Share of fields whose sign is that of the pathway of the strongest mode; mean of the
        share among ON fields and that among OFF fields, over cells. Where no mode of the cell's
        pathways is active, the answer is wrong.
    right_one_gate : float
        The same where one of the cell's two gates is open and the other closed.
    chance : float
        `right` with loadings of other moments (shifted in time), mean over shifts.
    n_fields : int
    """

    right: float
    right_one_gate: float
    chance: float
    n_fields: int


def sign_attribution(
    found: FoundModes, fields: ReceptiveFields, planted: PlantedRetina, *, n_shifts: int = 20
) -> SignAttribution:
    """Attribute the sign of each receptive field to the pathway of the strongest mode.

    Of a cell's two pathways, one is ON and one OFF. The strongest of their modes at that moment
    (loading times size) says which sign the field should have. Fields, of held-out samples, below a
    tenth of the cell's median strength are left out: both gates are closed. `n_shifts` is for
    chance.
    """
    strongest = _strongest(found)[fields.rows]
    gates = planted.gates[fields.rows]
    rights, ones, chances, count = [], [], [], 0
    for column, cell in enumerate(fields.cells.tolist()):
        pathways = list(planted.circuit.wiring.cells[cell])
        if len(pathways) < 2:
            continue
        strength = fields.strength[:, column]
        clear = strength > FAINT * strength.median()
        one_gate = clear & (gates[:, pathways].sum(1) == 1)
        sign = fields.polarity[:, column]
        answer = _answers(strongest[:, pathways], pathways)
        rights.append(_balanced(answer, sign, clear))
        ones.append(_balanced(answer, sign, one_gate))
        steps = [round(len(answer) * (k + 1) / (n_shifts + 1)) for k in range(n_shifts)]
        chances += [_balanced(answer.roll(step), sign, clear) for step in steps]
        count += int(clear.sum())
    if not rights:
        raise DataError("sign_attribution: no cell of these fields draws on two pathways")
    right, one, chance = (float(torch.tensor(x).nanmean()) for x in (rights, ones, chances))
    return SignAttribution(right, one, chance, count)


def _strongest(found: FoundModes) -> Tensor:
    """Return the strength of each pathway's strongest mode, [sample, pathway]; 0 without any."""
    strength = torch.zeros(len(found.loadings), len(PATHWAYS), dtype=found.loadings.dtype)
    where = found.pathway.expand(len(strength), -1)
    return strength.scatter_reduce(1, where, found.strength, "amax")


def _answers(strongest: Tensor, pathways: list[int]) -> Tensor:
    """Return the sign of the stronger of two pathways, [sample]; 0 where neither is active."""
    signs = torch.tensor([float(POLARITY[pathway]) for pathway in pathways])
    top = strongest.max(1)
    return torch.where(top.values > 0, signs[top.indices], 0.0)


def _balanced(answer: Tensor, sign: Tensor, among: Tensor) -> float:
    """Average the share right of ON fields and of OFF fields; NaN where one is missing."""
    shares = [(answer == s)[among & (sign == s)].float().mean() for s in (1.0, -1.0)]
    return float(torch.stack(shares).mean())
