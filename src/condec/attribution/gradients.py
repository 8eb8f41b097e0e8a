"""Methods of one gradient at the input itself, without path and baseline."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Final, final

import torch
from torch import Tensor, nn

from condec.attribution.base import Attribution, Method, Setup, without_baseline
from condec.attribution.engine import Kept, run_point
from condec.attribution.reduce import merge_signs, split_and_sum, spread_units
from condec.attribution.targets.base import wide
from condec.basis.checks import at_least
from condec.basis.errors import OptionError
from condec.basis.options import require
from condec.network import Units, fixed_of, hold

_SMALLEST_NORM: Final = 1e-8


class Pointwise(Method):
    """A formula of activation and gradient at the input: one pass, no baseline, not complete."""

    __slots__ = ()

    n_passes = 1

    @abstractmethod
    def combine(self, units: Units, activation: Tensor, gradient: Tensor) -> Tensor:
        """Combine activation and gradient of a site, both in at least single precision."""

    def attribute(self, setup: Setup) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        by_key = {site.key: site for site in setup.sites}
        at = run_point(setup, setup.inputs)
        contribution = {
            key: self.combine(
                setup.units_at(by_key[key], h), h.to(wide(h)), at.gradients[key].to(wide(h))
            )
            for key, h in at.records.items()
        }
        return without_baseline(contribution, at.records, at.output, at.target)


@final
@dataclass(frozen=True, slots=True)
class ActGrad(Pointwise):
    r"""Activation times gradient at the input, :math:`C = h \odot \partial T / \partial h`.

    The first-order part of integrated gradients from zero activations, and of what ablating
    does; exact where the network is linear above the site.
    """

    def combine(self, units: Units, activation: Tensor, gradient: Tensor) -> Tensor:
        """Multiply entry by entry."""
        return activation * gradient


@final
@dataclass(frozen=True, slots=True)
class ActNormGrad(Pointwise):
    r"""Activation times gradient of length 1, :math:`C = h \odot g / \max(\|g\|_2, 10^{-8})`.

    The norm is taken over the whole gradient of a sample at the site, so that samples with a
    steep target do not outweigh the others in a dictionary (Melander et al. 2026). In the unit
    of the activation; sites and samples cannot be compared by size.
    """

    def combine(self, units: Units, activation: Tensor, gradient: Tensor) -> Tensor:
        """Multiply by the normalised gradient."""
        return activation * _of_length_one(gradient)


@final
@dataclass(frozen=True, slots=True)
class Activation(Pointwise):
    """The activation alone, C = h: for comparison, it does not ask what the target is."""

    def combine(self, units: Units, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the activation."""
        return activation.clone()


@final
@dataclass(frozen=True, slots=True)
class Gradient(Pointwise):
    r"""The gradient alone, :math:`C = \partial T / \partial h`: for comparison.

    What a small change of the entry would do, whether it is active or not.
    """

    def combine(self, units: Units, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient.clone()


@final
@dataclass(frozen=True, slots=True)
class GradCAM(Pointwise):
    r"""Activation times the mean gradient of its unit.

    .. math:: C_{up} = h_{up} \, \frac{1}{P} \sum_q g_{uq}

    The unit weights of Grad-CAM (Selvaraju et al. 2017, equation 1) without its sum over
    units and its final ReLU, which would merge the units and drop what speaks against the
    target. P is the number of positions; with one position it is `ActGrad`.
    """

    def combine(self, units: Units, activation: Tensor, gradient: Tensor) -> Tensor:
        """Multiply by the mean gradient over the unit's positions."""
        total = merge_signs(split_and_sum(gradient, units))
        weights = total / units.positions(activation.shape)
        return activation * spread_units(weights, units, activation.shape)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothGrad(Method):
    r"""Another method, averaged over noisy copies of the inputs.

    .. math:: C(x) = \frac{1}{n} \sum_i C_{inner}(x + \epsilon_i), \qquad
        \epsilon_i \sim N(0, \sigma^2), \quad \sigma = a (\max x - \min x)

    (Smilkov et al. 2017, who average the gradient alone: ``inner=Gradient()``.) Activation,
    output and target are those of the clean input, and so is what the target freezes. The
    same draws serve all samples, so that no result depends on a sample's company.

    Parameters
    ----------
    inner : Method
    n_samples : int
        n, noisy copies.
    noise : float
        a, standard deviation as a share of the range of each input's own values; Smilkov et
        al. found 0.1 to 0.2 best for images.
    seed : int
    """

    inner: Method = field(default_factory=ActGrad)
    n_samples: int = 16
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require("SmoothGrad", "inner", self.inner, Method)
        at_least("SmoothGrad", 1, n_samples=self.n_samples)
        if not self.noise > 0:
            raise OptionError(f"SmoothGrad: noise must be above 0; got {self.noise}")

    @property
    def n_kept(self) -> int:
        """As the inner method."""
        return self.inner.n_kept

    @property
    def least_samples(self) -> int:
        """As the inner method."""
        return self.inner.least_samples

    @property
    def n_passes(self) -> int:
        """Those of the inner method for every copy, and one at the clean input."""
        return 1 + self.n_samples * self.inner.n_passes

    def attribute(self, setup: Setup) -> Attribution:
        """Contributions of one batch; see `Method.attribute`."""
        at = run_point(setup, setup.inputs)
        kept = replace(setup, target=Kept(setup.target, at.frozen))
        total: dict[str, Tensor] = {}
        for draw in range(self.n_samples):
            noise = self._noisy(setup.model, setup.inputs, draw)
            noisy = replace(kept, inputs=hold(setup.model, setup.inputs, noise))
            part = self.inner.attribute(noisy).contribution
            total = {key: total[key] + c if total else c for key, c in part.items()}
        mean = {key: c / self.n_samples for key, c in total.items()}
        return without_baseline(mean, at.records, at.output, at.target)

    def _noisy(self, model: nn.Module, inputs: Tensor, draw: int) -> Tensor:
        lowest = highest = inputs
        if (fixed := fixed_of(model, inputs)) is not None:  # what stays has no part in the range
            lowest = torch.where(fixed, torch.inf, inputs)
            highest = torch.where(fixed, -torch.inf, inputs)
        ranges = (highest.flatten(1).amax(1) - lowest.flatten(1).amin(1)).view(
            -1, *(1 for _ in inputs.shape[1:])
        )
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        shape = (1, *inputs.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs)
        return inputs + self.noise * ranges * noise


def _of_length_one(tensor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1).clamp(min=_SMALLEST_NORM)
    return tensor / norms.view(-1, *(1 for _ in tensor.shape[1:]))
