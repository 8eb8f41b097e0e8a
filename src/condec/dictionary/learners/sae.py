"""The sparse autoencoder of CODEC: sigmoid codes, a hard threshold, atoms by gradient descent."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar, Final, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import ATOMS, Parameters, Tensors
from condec.dictionary.fitting.descent import Cost, GradientLearner, Step
from condec.dictionary.fitting.products import decoded, encoded, mean_absolute, products_at
from condec.dictionary.records import TrainConfig

_TRAVEL: Final = 1.5
"""Sum of the encoder's learning rates in a default fit, up to `_LR_UNITS` hidden units; beyond,
it falls as 1 / sqrt(width)."""
_ATOM_RATE: Final = 4.0
"""Default rate of the atoms relative to the encoder's, up to `_LR_UNITS` hidden units; beyond, it
rises as the other falls: entries of atoms lie on the scale of the data, whatever the width."""
_LR_LIMIT: Final = 3e-3
"""Highest default rate, up to `_LR_UNITS` hidden units; beyond, wide layers need 1 / width."""
_LR_UNITS: Final = 256
_CODES_AT_START: Final = 64
"""Codes of a row that pass the threshold when it starts to rise."""
_ABOVE: Final = 2.0
"""Distance of a revived mode's code above the threshold, in the logit."""
_SHORT: Final = 0.05
_ENCODER: Final = "encoder."
_LAST: Final = f"{_ENCODER}8.weight"
_FIRST_LOGIT: Final = "first_logit"
"""Logit of the threshold from which it rises."""


@final
@dataclass(frozen=True, slots=True)
class ThresholdSAE(GradientLearner):
    r"""Sparse autoencoder with a hard threshold on sigmoid codes (Melander et al. 2026).

    The encoder is Linear(d, h) - Dropout - ReLU - LayerNorm - Linear(h, h) - Dropout - ReLU -
    LayerNorm - Linear(h, k, no bias) - Sigmoid. Its codes c give loadings

    .. math:: z = c \odot [c \ge \tau], \qquad \hat x = z D,

    where the mask passes no gradient, so that loadings in use lie in :math:`[\tau, 1)`:
    nearly binary. Adam minimises

    .. math:: \langle (x - \hat x)^2 \rangle + \lambda \langle |D| \rangle

    (angles: mean over all entries) on data divided by their standard deviation. There is no
    penalty on the codes; sparsity comes from the threshold.

    The model is the paper's, the way to it is not. Weights of the encoder are small and entries
    of atoms are as large as the data's, so atoms move faster (`atom_rate`). While the threshold
    rises, codes that fall below it are lost for a row, which makes loadings sparse; once it has
    risen, that would only erode them, and codes p = logit(c) near the threshold are told what
    crossing it does to the error of d units (`jump`):

    .. math:: \frac{\partial}{\partial p_j} = \frac{1}{w}
       \left[|p_j - \mathrm{logit}\,\tau| < \tfrac{w}{2}\right]
       \frac{\tau^2 |D_j|^2 - 2 \tau\, (x - \hat x + z_j D_j) \cdot D_j}{d}

    in addition to the gradient above: the kernel of Rajamanoharan et al. 2024, with the change
    of the error instead of its slope. ``ThresholdSAE(k, atom_rate=1, jump=0, resample=False)``
    with ``TrainConfig.paper()`` is the published procedure.

    `n_modes` is k (in the paper 3 times the number of units), `threshold` :math:`\tau`, from 0 to
    below 1, `atom_l1` :math:`\lambda`, and `width` h, by default d (2048 in the paper's scripts).

    Parameters
    ----------
    nonnegative : bool
        Keep the entries of the atoms at 0 or above, by projection after every step.
    dropout : float
        Probability, while fitting.
    resample : bool
        Set modes that a whole pass does not use to badly described rows, four times in the
        first half of the steps: rare modes are found by it. Not in the paper.
    atom_rate : float, optional
        Learning rate of the atoms relative to the encoder's; by default 4 up to a width of 256,
        and beyond 4 times the root of width / 256. 1 in the paper.
    jump : float
        w, the width in the logit within which a code is near the threshold; 0 in the paper.
    """

    freezes: ClassVar[bool] = True
    warms_up: ClassVar[bool] = True
    by_mode: ClassVar[tuple[str, ...]] = (_LAST, ATOMS)
    fixed: ClassVar[tuple[str, ...]] = (_FIRST_LOGIT,)

    rules: ClassVar[Mapping[str, str]] = {
        "width": "count", "threshold": "share", "dropout": "share", "atom_l1": "size",
        "jump": "size", "atom_rate": "positive",
    }  # fmt: skip
    _: KW_ONLY
    threshold: float = 0.9
    atom_l1: float = 5e-5
    nonnegative: bool = False
    width: int | None = None
    dropout: float = 0.05
    resample: bool = True
    atom_rate: float | None = None
    jump: float = 2.0

    def rates(self, n_units: int) -> Mapping[str, float]:
        """Return how much faster atoms move than the encoder's weights."""
        width = self.width or n_units
        rate = self.atom_rate or _ATOM_RATE * max(1.0, math.sqrt(width / _LR_UNITS))
        return {ATOMS: rate}

    def pace(self, n_units: int) -> tuple[float, float]:
        """Return the sum of the learning rates of a default fit, and the highest of them."""
        narrow = min(1.0, _LR_UNITS / (self.width or n_units))
        return _TRAVEL * math.sqrt(narrow), _LR_LIMIT * narrow

    def start(self, sample: Tensor, config: TrainConfig) -> Tensors:
        """Return the encoder's parameters, ``atoms``, and the threshold's first logit."""
        # Made on the CPU: one seed starts alike on every device.
        encoder = self._encoder(sample.shape[1]).to(sample.device)
        atoms = torch.empty(self.n_modes, sample.shape[1], dtype=torch.float32)
        nn.init.xavier_uniform_(atoms)
        atoms = (atoms.abs() if self.nonnegative else atoms).to(sample.device)
        state = {f"{_ENCODER}{k}": v.detach() for k, v in encoder.state_dict().items()}
        # Drawn here: with dropout it takes random numbers.
        first = self._first_threshold(encoder, sample[: config.batch_size])
        return {**state, ATOMS: atoms, _FIRST_LOGIT: atoms.new_tensor(_logit(first))}

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return the loss, with what crossing the threshold does once that has risen."""
        logits = encoded(self._hidden(parameters, rows, training=True), parameters[_LAST])
        loadings = keep(logits.sigmoid(), self._threshold(parameters, step))
        atoms = parameters[ATOMS]
        described = decoded(loadings, atoms)
        loss = F.mse_loss(described, rows) + self.atom_l1 * mean_absolute(atoms)
        # Before, codes that cross would all be kept on, and loadings stay dense.
        if self.jump and self.threshold and step.index >= step.warmup * step.n_steps:
            loss = loss + self._crossing(logits, loadings, rows - described, atoms)
        return Cost(loss, loadings)

    def project(self, parameters: Parameters) -> None:
        """Keep atoms at 0 or above, if asked for."""
        if self.nonnegative:
            parameters[ATOMS].data.clamp_(min=0.0)

    def revive(self, parameters: Parameters, modes: Tensor, rows: Tensor, left: Tensor) -> None:
        """Give dead modes a code above the threshold for a row, and a short atom.

        A code in use is never small, and several modes may be given the same row: atoms of full
        length would describe it many times over, and all of them would be pushed out again.
        """
        hidden = self._hidden(parameters, rows, training=False)
        logit = _logit(self.threshold) if self.threshold else 0.0
        length = hidden.square().sum(1, keepdim=True).clamp(min=1e-12)
        parameters[_LAST][modes] = (logit + _ABOVE) * hidden / length
        parameters[ATOMS][modes] = _SHORT * left

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Keep codes at or above the threshold; the others become 0."""
        hidden = self._hidden(tensors, matrix, training=False)
        return keep(F.linear(hidden, tensors[_LAST]).sigmoid(), self.threshold)

    def _encoder(self, n_units: int) -> nn.Sequential:
        """Make an encoder; `_hidden` is its forward pass, without the last two layers."""
        width = self.width or n_units
        linear = partial(nn.Linear, dtype=torch.float32)
        norm = partial(nn.LayerNorm, dtype=torch.float32)
        return nn.Sequential(
            *(linear(n_units, width), nn.Dropout(self.dropout), nn.ReLU(), norm(width)),
            *(linear(width, width), nn.Dropout(self.dropout), nn.ReLU(), norm(width)),
            *(linear(width, self.n_modes, bias=False), nn.Sigmoid()),
        )

    def _hidden(self, parameters: Parameters, rows: Tensor, *, training: bool) -> Tensor:
        """Return the input of the last linear layer."""
        p = {k.removeprefix(_ENCODER): v for k, v in parameters.items() if k.startswith(_ENCODER)}
        for linear, norm in (("0", "3"), ("4", "7")):
            rows = F.linear(rows, p[f"{linear}.weight"], p[f"{linear}.bias"])
            rows = F.dropout(rows, self.dropout, training).relu()
            rows = F.layer_norm(rows, rows.shape[-1:], p[f"{norm}.weight"], p[f"{norm}.bias"])
        return rows

    def _crossing(self, logits: Tensor, loadings: Tensor, error: Tensor, atoms: Tensor) -> Tensor:
        """Return 0, with the change of the loss where a code crosses the threshold as gradient."""
        with torch.no_grad():
            near = ((logits - _logit(self.threshold)).abs() < self.jump / 2.0).to(logits.dtype)
            square = atoms.square().sum(1)
            along = products_at(near, error, atoms) + loadings * square
            change = self.threshold * (self.threshold * square - 2.0 * along)
            slope = near * change / (self.jump * error.numel())
        return ((logits - logits.detach()) * slope).sum()

    def _threshold(self, parameters: Parameters, step: Step) -> Tensor | float:
        """Return the threshold of a step; it rises evenly in the logit."""
        risen = step.index / (step.warmup * step.n_steps) if step.warmup else 1.0
        if risen >= 1.0 or not self.threshold:
            return self.threshold
        first = parameters[_FIRST_LOGIT]
        return (first + (_logit(self.threshold) - first) * risen).sigmoid()

    def _first_threshold(self, encoder: nn.Module, rows: Tensor) -> float:
        """Return where some codes of every row pass, if that is below the threshold."""
        with torch.no_grad():
            codes = encoder(rows)
        share = min(1.0, _CODES_AT_START / self.n_modes)
        first = float(codes.flatten().sort().values[-max(1, int(share * codes.numel()))])
        return first if 0.0 < first < self.threshold else self.threshold


def _logit(share: float) -> float:
    return math.log(share / (1.0 - share)) if share else -math.inf


def keep(codes: Tensor, threshold: Tensor | float) -> Tensor:
    """Keep codes at or above a threshold; the others become 0, and the mask passes no gradient.

    >>> keep(torch.tensor([0.2, 0.9, 0.95]), 0.9)
    tensor([0.0000, 0.9000, 0.9500])
    """
    return codes * (codes >= threshold).detach()
