"""Contributions of one batch: attributed at all sites, in memory, in full shape."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from condec.attribution.base import Attribution, Method
from condec.attribution.path import IntegratedGradients
from condec.attribution.precision import Compute
from condec.attribution.reduce import split_and_sum
from condec.attribution.targets import Target, TargetLike, TopK, as_target, predictions
from condec.basis.errors import DataError
from condec.basis.options import require
from condec.basis.shapes import PerSample, SampleIndex
from condec.data.arrays import as_labels
from condec.network import Site, Units, find_cuts, find_site, find_sites, original, units_of

if TYPE_CHECKING:
    import numpy

Sites = str | Site | Iterable[str | Site]
"""What stands for sites in every call: a pattern, a site, or several of them."""


@dataclass(frozen=True, eq=False)
class SiteContributions:
    """What one site contributed, for every sample of a batch.

    Attributes
    ----------
    site : Site
    units : Units
        Which axes are units.
    cut : bool
        Whether all flow from input to output passes this site.
    contribution, activation : Tensor
        Shape of the activation, or [sample, sign=2, unit] once reduced; contribution in the
        unit of the target.
    """

    site: Site
    units: Units
    cut: bool
    contribution: Tensor
    activation: Tensor


@dataclass(frozen=True, eq=False)
class Setup:
    """What contributions of a batch were made from: references, nothing is copied.

    Attributes
    ----------
    model : torch.nn.Module
    inputs : Tensor of shape [sample, ...]
        Checked, on the model's device and in its type.
    labels : Tensor of shape [sample], or None
    method : Method
    target : Target
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor | None
    method: Method
    target: Target


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions of one batch; ``batch["layer3.5"]`` is a `SiteContributions`.

    Attributes
    ----------
    by_site : tuple of SiteContributions
        In execution order.
    output : Tensor of shape [sample, ...]
        The model's output at the inputs.
    prediction : Tensor of shape [sample]
        Predicted class; -1 where the output is not a matrix of classes.
    target, target_baseline : Tensor of shape [sample]
        The target at the inputs and at the baseline (NaN for methods without one).
    steps : Tensor of shape [sample], or None
        Intervals of the path that each sample took; None for methods without a path.
    setup : Setup, or None
        What `contribute` made them from.
    """

    by_site: tuple[SiteContributions, ...]
    output: Tensor
    prediction: SampleIndex
    target: PerSample
    target_baseline: PerSample
    steps: SampleIndex | None = None
    setup: Setup | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites in execution order."""
        return tuple(part.site for part in self.by_site)

    def __getitem__(self, site: Site | str) -> SiteContributions:
        """Contributions at one site, by the site, its key or its module's name."""
        return self.by_site[self.sites.index(find_site(self.sites, site))]

    def __len__(self) -> int:
        return len(self.target)

    def completeness(self) -> dict[str, PerSample]:
        r"""Sum of contributions over the change of the target, for every cut site.

        .. math:: \sum_{u,p} C_{sup} / (T(x_s) - T(x_{0s}))

        1 is complete; how far from 1 shows the error of the quadrature. Sites that do not
        cut the network are left out: their contributions need not add up to the target.
        NaN for methods without a baseline.
        """
        change = self.target - self.target_baseline
        return {
            part.site.key: part.contribution.flatten(1).sum(1, dtype=torch.float64).to(change)
            / change
            for part in self.by_site
            if part.cut
        }

    def reduce(self) -> "Contributions":
        """The same with both quantities split by sign and summed over positions.

        Returns
        -------
        Contributions
            Contribution and activation of shape [sample, sign=2, unit].
        """
        parts = tuple(
            SiteContributions(
                part.site,
                part.units,
                part.cut,
                split_and_sum(part.contribution, part.units),
                split_and_sum(part.activation, part.units),
            )
            for part in self.by_site
        )
        return replace(self, by_site=parts)


def contribute(
    model: nn.Module,
    inputs: "Tensor | numpy.ndarray",
    sites: Sites,
    *,
    method: Method | None = None,
    target: TargetLike | None = None,
    labels: "Tensor | numpy.ndarray | None" = None,
    compute: Compute | None = None,
) -> Contributions:
    """Contributions of hidden units to the target, for one batch.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; it is not changed.
    inputs : Tensor or array of shape [sample, ...]
        What the model takes, preprocessed.
    sites : str, Site, or several of them
        Patterns are allowed, see `find_sites`.
    method : Method, optional
        By default ``IntegratedGradients(steps=10)``.
    target : Target, or function from the output to Tensor[sample], optional
        By default ``TopK(k=1)``.
    labels : Tensor or array of shape [sample], optional
        For targets that need them.
    compute : Compute, optional
        Precision and memory order of the passes.

    Returns
    -------
    Contributions

    Raises
    ------
    DataError
        Inputs are empty, of an integer type, or not finite (samples are named), or labels
        are missing where the target needs them, no integers, or not one for each sample.
    ModelError
        The model is in training mode, or fails on the inputs.
    SiteError
        No site is given, a pattern matches nothing, a module runs more than once and the site
        does not say which call is meant, or the target does not depend on a site.

    Warns
    -----
    UserWarning
        All contributions of a site are exactly zero, although its units are active.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> batch = contribute(small_resnet(), torch.ones(2, 1, 6, 6), "block*")
    >>> batch["block2"].contribution.shape
    torch.Size([2, 4, 6, 6])
    >>> batch.reduce()["block2"].contribution.shape
    torch.Size([2, 2, 4])
    """
    x, method = torch.as_tensor(inputs), method or IntegratedGradients()
    given = None if labels is None else as_labels("contribute", labels)
    if given is not None and len(given) != len(x):
        raise DataError(f"contribute: {len(x)} samples, but {len(given)} labels")
    batch = run_batch(model, x, sites, method, as_target(target or TopK()), given, compute)
    silent = [p.site.key for p in batch.by_site if is_silent(p.contribution, p.activation)]
    warn_of_silence(silent, len(batch))
    return batch


def run_batch(
    model: nn.Module,
    inputs: Tensor,
    sites: Sites,
    method: Method,
    target: Target,
    labels: Tensor | None = None,
    compute: Compute | None = None,
) -> Contributions:
    """What `contribute` does, with everything chosen and without its warning."""
    require("contribute", "method", method, Method)
    model = original(model)
    compute = compute or Compute()
    x = compute.arrange(prepare_inputs(model, inputs))
    found = find_sites(model, sites)
    cuts = find_cuts(model, x[:1], found)
    setup = Setup(model, x, labels, method, target)
    with torch.inference_mode(False), compute.running(x.device):
        result = method.attribute(model, x, found, target, labels)
    return replace(assemble(result, found, cuts), setup=setup)


def prepare_inputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs checked, and moved to the device and floating type of the model.

    Raises
    ------
    DataError
        No sample, an integer type, or entries that are not finite (samples are named).
    """
    if not inputs.is_floating_point():
        raise DataError(
            f"inputs: expected a floating-point tensor, ready for the model; got {inputs.dtype}. "
            "Preprocess pixels first (scale, normalise)."
        )
    if inputs.ndim < 2 or len(inputs) == 0:
        raise DataError(
            f"inputs: expected at least one sample, shape [sample, ...]; got {tuple(inputs.shape)}"
        )
    wrong = (~inputs.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"inputs: {len(wrong)} of {len(inputs)} samples hold NaN or infinity; the first are "
            f"samples {wrong[:5]}"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return inputs
    # From page-locked memory the host goes on meanwhile; in the other direction it must wait.
    return inputs.to(like.device, like.dtype, non_blocking=like.is_cuda)


def assemble(result: Attribution, sites: Sequence[Site], cuts: Mapping[str, bool]) -> Contributions:
    """Record of a batch from what a method returned, and which sites cut the network.

    Raises
    ------
    DataError
        Contributions are not finite, as where a gradient is infinite at the baseline.
    """
    for key, contribution in result.contribution.items():
        _refuse_non_finite(key, contribution)
    by_key = {site.key: site for site in sites}
    parts = tuple(
        SiteContributions(
            by_key[key], units_of(by_key[key], h), cuts[key], result.contribution[key], h
        )
        for key, h in result.activation.items()
    )
    return Contributions(
        parts,
        result.output,
        predictions(result.output),
        result.target,
        result.target_baseline,
        result.steps,
    )


def is_silent(contribution: Tensor, activation: Tensor) -> bool:
    """Whether nothing is contributed at all, by units that are active."""
    return not bool(contribution.any()) and bool(activation.any())


def warn_of_silence(sites: Sequence[str], n_samples: int) -> None:
    """Warn of sites that contribute exactly nothing: rarely meant, and not always a mistake."""
    if sites:
        warnings.warn(
            f"all contributions are exactly zero, for {n_samples} samples, at {', '.join(sites)}: "
            "either the gradient there is zero (a layer after it has zero weights, or a softmax is "
            "saturated), or the activation is the same at the inputs as at the baseline",
            UserWarning,
            stacklevel=3,
        )


def _refuse_non_finite(key: str, contribution: Tensor) -> None:
    finite = contribution.flatten(1).sum(1).isfinite()
    wrong = (~finite).nonzero().flatten().tolist()
    if wrong:
        error = DataError(
            f"the contribution at {key} is not finite for {len(wrong)} of {len(finite)} samples of "
            f"the batch (first: {wrong[:5]}): a gradient on the path is infinite or NaN, as that "
            "of a square root or logarithm at 0, or overflows in the model's precision"
        )
        error.samples = tuple(wrong)
        raise error
