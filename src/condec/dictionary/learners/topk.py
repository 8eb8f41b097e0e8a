"""Sparse autoencoders that keep a number of codes: TopK, BatchTopK and Matryoshka."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.shapes import Loadings, UnitMatrix
from condec.dictionary.base import ATOMS, OFFSET, Learner, Parameters, Tensors
from condec.dictionary.fitting.descent import Cost, Step
from condec.dictionary.learners.sparse import LinearSAE, aux_loss, decode, largest, pre_activations
from condec.dictionary.records import TrainConfig


@dataclass(frozen=True, slots=True)
class CountingSAE(LinearSAE):
    """Base of autoencoders that keep a number of codes."""

    rules: ClassVar[Mapping[str, str]] = {"k": "count", "aux_weight": "size"}
    _: KW_ONLY
    k: int = 8
    aux_weight: float = 1 / 32

    def check(self, matrix: UnitMatrix) -> None:
        """Refuse more codes of a row than there are modes; only now is their number settled."""
        if self.k > self.n_modes:
            raise OptionError(
                f"{type(self).__name__}: k = {self.k} codes of a row are more than {self.n_modes} "
                "modes; lower k or take more modes"
            )

    @abstractmethod
    def keep(self, pre: Tensor) -> Loadings:
        """Keep codes of a batch of pre-activations."""

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return squared error and AuxK."""
        pre = pre_activations(parameters, rows)
        loadings = self.keep(pre)
        error = rows - decode(parameters, loadings)
        aux = aux_loss(parameters, pre, error, step.dead, self.aux_weight)
        return Cost(error.square().mean() + aux, loadings)


@final
@dataclass(frozen=True, slots=True)
class TopKSAE(CountingSAE):
    r"""Sparse autoencoder that keeps the k largest codes of a row (Gao et al. 2024).

    .. math:: z = \max(\mathrm{TopK}_k(p), 0), \qquad
       \langle (x - \hat x)^2 \rangle + \alpha\,
       \frac{\langle (e - \hat e)^2 \rangle}{\langle e^2 \rangle}

    with the error :math:`e = x - \hat x` held constant and :math:`\hat e` its description by
    the largest codes of dead modes, at most half as many as units (AuxK). A mode is dead that
    no row of the last pass used. `k` is at most `n_modes`; `aux_weight` is :math:`\alpha`.
    """

    def keep(self, pre: Tensor) -> Loadings:
        """Keep the largest of every row."""
        return largest(pre, self.k)

    def encode(self, tensors: Parameters, matrix: UnitMatrix) -> Loadings:
        """Keep the k largest pre-activations of every row, where they are above 0."""
        return self.keep(pre_activations(tensors, matrix))


class SharingSAE(CountingSAE):
    """Base of autoencoders whose batches share out codes; rows are encoded by a threshold."""

    __slots__ = ()

    def keep(self, pre: Tensor) -> Loadings:
        """Keep the k times n largest entries of n rows, where they are above 0."""
        flat = pre.flatten()
        top = flat.topk(min(self.k * len(pre), flat.numel()), sorted=False)
        return torch.zeros_like(flat).scatter(0, top.indices, top.values.relu()).view_as(pre)

    def finish(self, parameters: Parameters, sample: Tensor, config: TrainConfig) -> Tensors:
        """Add the threshold: the mean over batches of the smallest code that is kept."""
        order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(config.seed))
        lowest = []
        for rows in torch.split(order.to(sample.device), config.batch_size):
            kept = self.keep(pre_activations(parameters, sample[rows]))
            lowest.append(torch.where(kept > 0, kept, math.inf).min())
        found = torch.stack(lowest)
        found = found[found.isfinite()]
        # Just below the smallest code that is kept: encoding takes what is above.
        threshold = found.mean() * (1.0 - 1e-6) if len(found) else sample.new_zeros(())
        return {**parameters, "threshold": threshold}


@final
@dataclass(frozen=True, slots=True)
class BatchTopKSAE(SharingSAE):
    """Sparse autoencoder with k codes a row on average (Bussmann et al. 2024).

    While fitting, the k times n largest pre-activations of a batch of n rows are kept, where
    they are above 0: simple rows may use few, others many. The loss is that of `TopKSAE`.
    After fitting, the mean over batches of training rows of the smallest code kept becomes one
    threshold for all, so that rows are encoded one by one. Parameters are those of `TopKSAE`.
    """


@final
@dataclass(frozen=True, slots=True)
class MatryoshkaSAE(SharingSAE):
    r"""BatchTopK autoencoder whose first modes must do without the others (Bussmann et al. 2025).

    .. math:: \frac{1}{|M|} \sum_{m \in M} \langle (x - z_{1 \dots m} D_{1 \dots m} - o)^2 \rangle

    over nested prefixes M of the modes, with codes and AuxK as in `BatchTopKSAE`: few general
    modes come first, special ones later. `prefixes` are shares of the modes, above 0, ascending,
    the last 1; the other parameters are those of `BatchTopKSAE`.
    """

    prefixes: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        Learner.__post_init__(self)
        ascending = list(self.prefixes) == sorted(set(self.prefixes))
        if not self.prefixes or not ascending or self.prefixes[0] <= 0 or self.prefixes[-1] != 1:
            raise OptionError(
                "MatryoshkaSAE: prefixes must be shares above 0 in ascending order, the last 1; "
                f"got {self.prefixes}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of modes of every prefix, ascending, without repeats."""
        return tuple(sorted({math.ceil(share * self.n_modes) for share in self.prefixes}))

    def cost(self, parameters: Parameters, rows: Tensor, step: Step) -> Cost:
        """Return the mean squared error over prefixes, and AuxK."""
        pre = pre_activations(parameters, rows)
        loadings = self.keep(pre)
        errors, start, described = [], 0, loadings.new_zeros(rows.shape)
        for size in self.sizes:  # Every mode is multiplied once.
            described = described + loadings[:, start:size] @ parameters[ATOMS][start:size]
            errors.append(rows - parameters[OFFSET] - described)
            start = size
        loss = torch.stack([error.square().mean() for error in errors]).mean()
        aux = aux_loss(parameters, pre, errors[-1], step.dead, self.aux_weight)
        return Cost(loss + aux, loadings)
