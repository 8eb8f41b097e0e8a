"""Contributions of one batch, in memory: in full shape, and reduced to units."""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from condec.attribution.base import Method, Setup, check_finite
from condec.attribution.precision import Compute
from condec.attribution.reduce import split_and_sum
from condec.attribution.targets import TargetLike, TopK, as_target, predictions
from condec.attribution.texts import as_method
from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.basis.shapes import Activation, PerSample, SampleIndex, SignedUnits
from condec.data.arrays import SEVERAL, as_batch, as_labels
from condec.network import (
    BatchSizes,
    PackedInput,
    Site,
    Units,
    find_site,
    find_sites,
    original,
    output_axis,
    proof_of,
    settle_sites,
    survey_sites,
)

if TYPE_CHECKING:
    import numpy

Sites = str | Site | Iterable[str | Site]
"""Sites in every call: a pattern, a site, or several of them."""
_FAR: Final = 100
"""Times the change of the target that contributions of a language model may add up to."""


@short_repr
@dataclass(frozen=True, eq=False)
class SiteContributions:
    """Contributions of one site in full shape, for every sample of a batch.

    Attributes
    ----------
    site : Site
    units : Units
        Axes of the activation that are units.
    cut : bool
        Whether all flow from input to output passes this site.
    contribution, activation : Tensor of the shape of the activation
        Contribution in the unit of the target. Of shape [sample, fold, ...] where the model folds
        another axis into the batch, as frames are.
    """

    site: Site
    units: Units
    cut: bool
    contribution: Activation
    activation: Activation

    def reduce(self) -> "SiteUnits":
        """Split by sign and sum over positions, see `split_and_sum`."""
        values = (split_and_sum(v, self.units) for v in (self.contribution, self.activation))
        return SiteUnits(self.site, self.units, self.cut, *values)


@short_repr
@dataclass(frozen=True, eq=False)
class SiteUnits:
    """Contributions of one site per unit, for every sample of a batch.

    Sums over positions of shape [sample, sign=2, unit], signs in the order of
    `condec.basis.shapes.SIGNS`; site, units and cut as in `SiteContributions`.
    """

    site: Site
    units: Units
    cut: bool
    contribution: SignedUnits
    activation: SignedUnits


Part = TypeVar("Part", SiteContributions, SiteUnits)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Batch(Generic[Part]):
    """Contributions of one batch at several sites, of either shape."""

    by_site: tuple[Part, ...]
    prediction: SampleIndex
    target: PerSample
    target_baseline: PerSample
    steps: SampleIndex | None = None
    setup: Setup | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites in execution order."""
        return tuple(part.site for part in self.by_site)

    def __getitem__(self, site: Site | str) -> Part:
        """Contributions at one site, by the site, any spelling of it, or its module's name."""
        units = [part.units for part in self.by_site]
        return self.by_site[self.sites.index(find_site(self.sites, site, units))]

    def __len__(self) -> int:
        return len(self.target)

    def __repr__(self) -> str:
        import pandas

        complete = self.completeness()
        rows = []
        for part in self.by_site:
            share = f"{complete[part.site.key].nanmedian():.4g}" if part.cut else ""
            shape, cut = list(part.contribution.shape), "yes" if part.cut else "no"
            rows.append([part.site.key, shape, cut, share])
        table = pandas.DataFrame(rows, columns=["site", "shape", "cut", "completeness (median)"])
        head = f"{type(self).__name__} of {len(self)} samples at {len(rows)} sites"
        return f"{head}\n{table.to_string(index=False)}"

    def completeness(self) -> dict[str, PerSample]:
        r"""Sum of contributions over the change of the target, for every cut site.

        .. math:: \sum_{u,p} C_{sup} / (T(x_s) - T(x_{0s}))

        How far from 1 shows the error of the quadrature. Sites that do not cut the network are left
        out: their contributions need not add up. NaN for methods without a baseline.
        """
        change = self.target - self.target_baseline
        cuts = [part for part in self.by_site if part.cut]
        sums = [part.contribution.flatten(1).sum(1, dtype=torch.float64) for part in cuts]
        return {part.site.key: s.to(change) / change for part, s in zip(cuts, sums, strict=True)}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class UnitContributions(_Batch[SiteUnits]):
    """Contributions of one batch per unit: as `Contributions`, of `SiteUnits`, without output."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Contributions(_Batch[SiteContributions]):
    """Contributions of one batch; ``batch["layer3.5"]`` is a `SiteContributions`.

    Attributes
    ----------
    by_site : tuple of SiteContributions
        In execution order.
    output : Tensor of shape [sample, ...]
    prediction : Tensor of shape [sample]
        Predicted class; -1 where the output is not a matrix of classes.
    target, target_baseline : Tensor of shape [sample]
        The target at the inputs and at the baseline (NaN for methods without one).
    steps : Tensor of shape [sample], or None
        Intervals of the path that each sample took; None for methods without a path.
    setup : Setup, or None
        What they were made from.
    """

    output: Tensor

    def reduce(self) -> UnitContributions:
        """Split contributions and activations by sign, sum over positions: [sample, sign, unit]."""
        others = {f.name: getattr(self, f.name) for f in fields(UnitContributions)}
        return UnitContributions(**others | {"by_site": tuple(p.reduce() for p in self.by_site)})


def contribute(
    model: nn.Module,
    inputs: "Tensor | numpy.ndarray",
    sites: Sites,
    *,
    method: Method | None = None,
    target: TargetLike | None = None,
    labels: "Tensor | numpy.ndarray | None" = None,
    compute: Compute | None = None,
    prove: bool = True,
) -> Contributions:
    """Attribute the target to hidden units, for one batch.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; it is not changed.
    inputs : Tensor or array of shape [sample, ...]
        Preprocessed for the model; or a mapping of that one tensor, under the name of the model's
        first argument. Models of several inputs: `condec.SeveralInputs`.
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
    prove : bool
        Try first, once for a model, shape and sites, whether results belong to single samples
        (`condec.prove`).

    Raises
    ------
    DataError
        Inputs are empty, of an integer type, several, or not finite (samples are named), or labels
        are missing where the target needs them, no integers, or not one for each sample.
    ModelError
        The model is in training mode, fails on the inputs, or is not proven: it draws random
        numbers, keeps a state, or mixes samples.
    SiteError
        No site is given, a pattern matches nothing, a module runs more than once and the site
        does not say which call is meant, its first axis is not that of the samples, or the target
        does not depend on a site.

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
    first = _first_argument(model) if isinstance(inputs, Mapping) else ""
    x, method = (
        as_batch("contribute", inputs, first),
        as_method("contribute", method, original(model)),
    )
    given = None if labels is None else as_labels("contribute", labels)
    if given is not None and len(given) != len(x):
        raise DataError(f"contribute: {len(x)} samples, but {len(given)} labels")
    compute = compute or Compute()
    setup = make_setup(model, x, sites, target, given, prove=compute if prove else None)
    batch = run_batch(setup, method, compute)
    silent = [p.site.key for p in batch.by_site if is_silent(p.contribution, p.activation)]
    warn_of_silence(silent, len(batch))
    return batch


def _first_argument(model: nn.Module) -> str:
    """Return the name of a model's first argument; empty where it takes any."""
    first = next(iter(inspect.signature(original(model).forward).parameters.values()), None)
    return "" if first is None or first.kind is first.VAR_POSITIONAL else first.name


def make_setup(
    model: nn.Module,
    inputs: Tensor,
    sites: Sites,
    target: TargetLike | None = None,
    labels: Tensor | None = None,
    *,
    prove: Compute | None = None,
    batch_size: int = 1,
    sizes: BatchSizes | None = None,
) -> Setup:
    """Check a batch and find the sites; errors as in `contribute`.

    The model is proven for passes as in `prove`, of `batch_size` samples; else it takes `sizes`.
    """
    model = original(model)
    x, found = prepare_inputs(model, inputs), find_sites(model, sites)
    sizes = sizes or BatchSizes()
    if prove is not None:
        arranged = prove.arrange(x)
        with prove.running(x.device):
            sizes = proof_of(model, arranged, found, batch_size=batch_size).demand().sizes
    shown = x if sizes.least == 1 else sizes.few(x)
    found = settle_sites(model, found, shown)
    asked = as_target(target or TopK()).settled(lambda: output_axis(model, shown))
    return Setup(model, x, found, asked, labels, sizes=sizes)


def run_batch(
    setup: Setup, method: Method, compute: Compute, cuts: Mapping[str, bool] | None = None
) -> Contributions:
    """Attribute one batch, as `contribute` does, without its warning.

    `cuts` says which sites cut the network, where that is known, as then are the setup's units.
    DataError where contributions are not finite, as where a gradient is infinite at the baseline.
    """
    setup = replace(setup, inputs=compute.arrange(setup.inputs))
    if cuts is None:
        survey = survey_sites(setup.model, setup.few, setup.sites)
        cuts, setup = survey.cuts, replace(setup, units=survey.units)
    with torch.inference_mode(False), compute.running(setup.inputs.device):
        found = method.attribute(setup)
    by_key, parts = {site.key: site for site in setup.sites}, []
    totals: dict[str, Tensor] = {}
    for key, h in found.activation.items():
        contribution, units = found.contribution[key], setup.units_at(by_key[key], h)
        totals[key] = contribution.flatten(1).sum(1)
        check_finite(
            totals[key],
            f"the contribution at {key}",
            "a gradient on the path that is infinite or NaN, as that of a square root or "
            "logarithm at 0",
        )
        parts.append(SiteContributions(by_key[key], units, cuts[key], contribution, h))
    if isinstance(setup.model, PackedInput):
        _warn_of_jumps(totals, (found.target - found.target_baseline).abs())
    same = {n: getattr(found, n) for n in ("output", "target", "target_baseline", "steps")}
    prediction = predictions(found.output)
    return Contributions(by_site=tuple(parts), prediction=prediction, setup=setup, **same)


def prepare_inputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Check inputs, and move them to the device and floating type of the model.

    DataError: no sample, an integer type, or entries that are not finite (samples are named).
    """
    if not inputs.is_floating_point():
        raise DataError(
            f"inputs: expected a floating-point tensor, ready for the model; got {inputs.dtype}. "
            f"Preprocess pixels first (scale, normalise). {SEVERAL}"
        )
    if inputs.ndim < 2 or len(inputs) == 0:
        raise DataError(
            f"inputs: expected at least one sample, shape [sample, ...]; got {tuple(inputs.shape)}"
        )
    if wrong := (~inputs.isfinite()).flatten(1).any(1).nonzero().flatten().tolist():
        raise DataError(
            f"inputs: {len(wrong)} of {len(inputs)} samples hold NaN or infinity; the first are "
            f"samples {wrong[:5]}"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return inputs
    # From page-locked memory the host goes on meanwhile; in the other direction it must wait.
    return inputs.to(like.device, like.dtype, non_blocking=like.is_cuda)


def is_silent(contribution: Tensor, activation: Tensor) -> bool:
    """Tell whether active units contribute nothing at all."""
    return not bool(contribution.any()) and bool(activation.any())


def _warn_of_jumps(totals: Mapping[str, Tensor], change: PerSample) -> None:
    """Warn of sites where contributions add up to many times what the target changes."""
    far = [k for k, sums in totals.items() if (sums.abs() > _FAR * change).double().mean() > 1 / 2]
    if far:
        warnings.warn(
            f"contributions at {', '.join(far)} add up to more than {_FAR} times what the target "
            "changes: the steps do not follow the path. Models that normalise by the root mean "
            "square jump where it leaves zero; take other inputs as the baseline (ig:16@samples:8)",
            UserWarning,
            stacklevel=4,
        )


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
