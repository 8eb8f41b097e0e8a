r"""Sparse autoencoders with one linear layer as encoder: ReLU and JumpReLU; base of all.

All read pre-activations :math:`p = (x - o) E^T + b` off rows x and decode
:math:`\hat x = z D + o` with atoms D of length 1. They differ in how loadings z come from p.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import ATOMS, OFFSET, Parameters, Tensors
from condec.dictionary.fitting.descent import Cost, GradientLearner, Step
from condec.dictionary.fitting.products import decoded, encoded
from condec.dictionary.records import TrainConfig

_AUX_SHARE: Final = 0.5
"""Dead modes that AuxK uses at most, as a share of the units (Gao et al. 2024, appendix A.2)."""
_REVIVED: Final = 0.2
"""Length of a revived mode's encoder row, relative to those in use (Bricken et al. 2023)."""


class UnitAtoms(GradientLearner):
    """Base of learners that descend on atoms of length 1 and an offset.

    The offset begins at the median of every unit, atoms are drawn evenly over directions.
    """

    __slots__ = ()
    travel: ClassVar[float]
    """Sum of the learning rates of a default fit to 64 units."""
    lr_limit: ClassVar[float]
    """Highest default rate for 64 units; entries of atoms of length 1 fall as 1 / sqrt(d)."""

    def pace(self, n_units: int) -> tuple[float, float]:
        """Return the sum of the learning rates of a default fit, and the highest of them."""
        step = math.sqrt(64 / n_units)
        return step * self.travel, min(self.lr_limit, step * self.lr_limit)

    def start(self, sample: Tensor, config: TrainConfig) -> Tensors:
        """Return initial ``atoms`` [mode, unit] and ``offset``."""
        # Made on the CPU: one seed starts alike on every device.
        atoms = unit_rows(torch.randn(self.n_modes, sample.shape[1], dtype=torch.float32))
        return {ATOMS: atoms.to(sample.device), OFFSET: sample.median(0).values}

    def project(self, parameters: Parameters) -> None:
        """Keep atoms at length 1."""
        atoms = parameters[ATOMS]
        # In place: a copy of a large dictionary takes longer than its lengths.
        atoms.div_(atoms.norm(dim=-1, keepdim=True).clamp_(min=1e-12))

    def reconstruct(self, parameters: Parameters, rows: Tensor) -> Tensor:
        """Return prepared rows as the dictionary describes them."""
        return decode(parameters, self.encode(parameters, rows))


class LinearSAE(UnitAtoms):
    """Base of autoencoders with a linear encoder, which begins at the atoms.

    Dead modes learn by AuxK in the loss, unless the learner revives them.
    """

    __slots__ = ()
    freezes: ClassVar[bool] = True
    feeds_dead: ClassVar[bool] = True
    travel: ClassVar[float] = 8.0
    lr_limit: ClassVar[float] = 6e-3

    def start(self, sample: Tensor, config: TrainConfig) -> Tensors:
        """Return initial ``encoder`` [mode, unit], ``bias``, ``atoms`` and ``offset``."""
        parameters = UnitAtoms.start(self, sample, config)
        atoms = parameters[ATOMS]
        return {"encoder": atoms.clone(), "bias": atoms.new_zeros(self.n_modes), **parameters}

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Keep pre-activations above the threshold, of all modes or of each."""
        pre = pre_activations(tensors, matrix)
        return pre * (pre > tensors["threshold"])


@final
@dataclass(frozen=True, slots=True)
class ReLUSAE(LinearSAE):
    r"""Sparse autoencoder with a penalty on its codes (Bricken et al. 2023).

    .. math:: z = \max(p, 0), \qquad
       \langle (x - \hat x)^2 \rangle + \frac{\lambda}{\sqrt d} \sum_j z_j

    (angles: mean over entries; the sum is a mean over rows, d units). The atoms are kept at
    length 1, so that codes cannot shrink while atoms grow. With `resample`, modes that a whole pass
    does not use are set to badly described rows, four times in the first half of the steps. `l1` is
    :math:`\lambda`.
    """

    # AuxK cannot reach codes that are below 0 for every row.
    feeds_dead: ClassVar[bool] = False
    by_mode: ClassVar[tuple[str, ...]] = ("encoder", "bias", ATOMS)

    rules: ClassVar[Mapping[str, str]] = {"l1": "size"}
    _: KW_ONLY
    l1: float = 0.05
    resample: bool = True

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return squared error and the sum of the codes."""
        loadings = pre_activations(parameters, rows).relu()
        error = rows - decode(parameters, loadings)
        penalty = loadings.sum(1).mean() / math.sqrt(rows.shape[1])
        return Cost(error.square().mean() + self.l1 * penalty, loadings)

    def revive(self, parameters: Parameters, modes: Tensor, rows: Tensor, left: Tensor) -> None:
        """Set dead modes to rows, with a short encoder row (Bricken et al. 2023, appendix)."""
        direction = unit_rows(rows - parameters[OFFSET])
        alive = torch.ones(len(parameters["bias"]), dtype=torch.bool, device=direction.device)
        alive[modes] = False
        lengths = parameters["encoder"][alive].norm(dim=1)
        length = lengths.mean() if len(lengths) else direction.new_ones(())
        parameters[ATOMS][modes] = direction
        parameters["encoder"][modes] = _REVIVED * length * direction
        parameters["bias"][modes] = 0.0

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Keep pre-activations above 0."""
        return pre_activations(tensors, matrix).relu()


@final
@dataclass(frozen=True, slots=True)
class JumpReLUSAE(LinearSAE):
    r"""Sparse autoencoder with a threshold for every mode (Rajamanoharan et al. 2024).

    .. math:: z = p \odot [p > \theta], \qquad
       \langle (x - \hat x)^2 \rangle + \lambda \left(\frac{L_0}{L^*} - 1\right)^2

    where :math:`L_0` is the mean number of codes above :math:`\theta > 0`, and AuxK as in
    `TopKSAE`. Without a target :math:`L^*` the penalty is :math:`\lambda L_0`, as in the paper.
    The thresholds get the gradients of the paper: with the rectangle kernel
    :math:`K(u) = [|u| < 1/2]` of bandwidth :math:`\varepsilon`,
    :math:`-\theta K((p - \theta) / \varepsilon) / \varepsilon` from z and
    :math:`-K((p - \theta) / \varepsilon) / \varepsilon` from the count.

    `target_l0` is :math:`L^*`, about as many loadings a row has, or None; `l0_weight`
    :math:`\lambda`. `bandwidth`, :math:`\varepsilon` and the initial thresholds, is relative to
    :math:`\sqrt d` for d units, the length of a row of the prepared data (the paper's 0.001 needs
    millions of rows); `aux_weight` as in `TopKSAE`.
    """

    rules: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("l0_weight", "aux_weight"), "size"),
        **dict.fromkeys(("bandwidth", "target_l0"), "positive"),
    }
    _: KW_ONLY
    target_l0: float | None = 8.0
    l0_weight: float = 1.0
    bandwidth: float = 0.05
    aux_weight: float = 1 / 32

    def start(self, sample: Tensor, config: TrainConfig) -> Tensors:
        """Add the logarithm of the thresholds, which keeps them above 0, over sqrt(d).

        Adam moves all weights alike; the rate is made for entries of atoms, about 1 / sqrt(d).
        """
        length = math.sqrt(sample.shape[1])
        # Not super(): a dataclass with slots is another class than the one defined here.
        parameters = LinearSAE.start(self, sample, config)
        first = math.log(self.bandwidth * length) / length
        thresholds = parameters["bias"].new_full((self.n_modes,), first)
        return {**parameters, "log_threshold": thresholds}

    def finish(self, parameters: Parameters, sample: Tensor, config: TrainConfig) -> Tensors:
        """Replace the logarithms by the thresholds themselves."""
        tensors = dict(parameters)
        logarithms = tensors.pop("log_threshold")
        return tensors | {"threshold": (math.sqrt(sample.shape[1]) * logarithms).exp()}

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return squared error, count of codes and AuxK."""
        pre = pre_activations(parameters, rows)
        size = math.sqrt(rows.shape[1])
        threshold = (size * parameters["log_threshold"]).exp()
        width = self.bandwidth * size
        passed = (pre > threshold).to(pre.dtype).detach()
        near = (((pre - threshold) / width).abs() < 0.5).to(pre.dtype).detach() / width
        # Of value 0, with the gradient of a step that is as wide as the kernel.
        shift = near * (threshold.detach() - threshold)
        loadings = pre * passed + threshold.detach() * shift
        # Not `decode`: thresholds get a gradient where loadings are 0.
        error = rows - loadings @ parameters[ATOMS] - parameters[OFFSET]
        l0 = (passed + shift).sum(1).mean()
        sparse = l0 if self.target_l0 is None else (l0 / self.target_l0 - 1.0).square()
        aux = aux_loss(parameters, pre, error, step.dead, self.aux_weight)
        return Cost(error.square().mean() + self.l0_weight * sparse + aux, loadings)


@final
@dataclass(frozen=True, slots=True)
class MatchingPursuit(UnitAtoms):
    r"""Dictionary of unit atoms, encoded by matching pursuit (Mallat & Zhang 1993).

    From the residual :math:`r = x - o`, k times: take the mode whose atom has the largest
    product with r, add the product to its loading, and take it out of r. There is no encoder
    to be trained; the atoms and the offset o descend on
    :math:`\langle (x - zD - o)^2 \rangle` with the loadings held constant, as in Costa et al.
    2025 but for the gradient through the loadings.

    `k` is the most loadings of a row that are not 0. With `nonnegative` only positive products are
    taken, otherwise the largest in size. With `resample` dead modes are set to what is left of
    badly described rows, four times in the first half of the steps.
    """

    travel: ClassVar[float] = 2.0
    lr_limit: ClassVar[float] = 2e-3

    rules: ClassVar[Mapping[str, str]] = {"k": "count"}
    _: KW_ONLY
    k: int = 8
    nonnegative: bool = True
    resample: bool = True

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Pursue rows, less the offset."""
        rows = matrix - tensors[OFFSET]
        return pursue(rows, tensors[ATOMS], self.k, nonnegative=self.nonnegative)

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return squared error, the loadings held constant."""
        with torch.no_grad():
            loadings = self.encode(parameters, rows)
        return Cost((rows - decode(parameters, loadings)).square().mean(), loadings)

    def revive(self, parameters: Parameters, modes: Tensor, rows: Tensor, left: Tensor) -> None:
        """Give dead modes the direction of what is left of a row."""
        parameters[ATOMS][modes] = unit_rows(left)


def pre_activations(parameters: Parameters, rows: Tensor) -> Tensor:
    """Apply a linear encoder to rows."""
    return encoded(rows - parameters[OFFSET], parameters["encoder"]) + parameters["bias"]


def decode(parameters: Parameters, loadings: Tensor) -> Tensor:
    """Decode loadings that get no gradient where they are 0."""
    return decoded(loadings, parameters[ATOMS]) + parameters[OFFSET]


def unit_rows(matrix: Tensor) -> Tensor:
    """Divide rows by their length; rows of zeros stay."""
    lengths: Tensor = matrix.norm(dim=-1, keepdim=True)
    return matrix / lengths.clamp(min=1e-12)


def largest(pre: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of every row, where they are above 0; the others become 0.

    >>> largest(torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, 5.0]]), 2)
    tensor([[3., 0., 2.],
            [0., 0., 5.]])
    """
    top = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())


def aux_loss(
    parameters: Parameters, pre: Tensor, error: Tensor, dead: Tensor | None, weight: float
) -> Tensor:
    """Return AuxK: how badly the largest codes of dead modes describe the error of the others."""
    if dead is None or not weight:
        return error.new_zeros(())
    k = min(pre.shape[1], max(1, int(_AUX_SHARE * error.shape[1])))
    loadings = largest(torch.where(dead, pre, -math.inf), k)
    error = error.detach()
    left = (error - decoded(loadings, parameters[ATOMS])).square().mean()
    share = left / error.square().mean().clamp(min=1e-12)
    # The engine asks on a CPU only whether any mode is dead.
    return torch.where(dead.any(), weight * share, 0.0)


def pursue(rows: Tensor, atoms: Tensor, k: int, *, nonnegative: bool) -> Tensor:
    """Encode rows by k steps of matching pursuit, for atoms of length 1.

    >>> pursue(torch.tensor([[3.0, 1.0]]), torch.eye(2), 1, nonnegative=True)
    tensor([[3., 0.]])
    """
    products = rows @ atoms.T
    loadings = torch.zeros_like(products)
    for _ in range(k):
        best = (products if nonnegative else products.abs()).argmax(1, keepdim=True)
        value = products.gather(1, best)
        value = value.clamp(min=0.0) if nonnegative else value
        loadings.scatter_add_(1, best, value)
        products = products - value * (atoms[best.flatten()] @ atoms.T)
    return loadings
