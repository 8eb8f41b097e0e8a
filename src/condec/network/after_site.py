"""Run the part of a network after a site, with other activations there.

One full pass of a batch keeps what is needed to run what lies after a site again
(`condec.network.replay`). Several versions of the batch, each with its own activation at the
site, are stacked along the sample axis. That this works is tried once for every shape of batch,
with two versions: with nothing changed, the output must be the model's own.

>>> from condec.network.sites import Site
>>> from condec.testing.models import small_resnet
>>> after = split_at(small_resnet(), torch.ones(2, 1, 5, 5), Site("block1"))
>>> bool(torch.equal(after.run(after.activation), after.output))
True
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError, SiteError
from condec.basis.records import short_repr
from condec.network.folds import FoldedUnits, count_folds, fold, unfold
from condec.network.module_io import TensorMap, map_tensors
from condec.network.proof import check_order
from condec.network.replay import (
    INPUTS,
    Answer,
    CallKey,
    Versions,
    Watch,
    answered,
    remembered,
    thin,
)
from condec.network.sites import Place, Site, units_of
from condec.network.tape import frozen_parameters, record, refuse_training, run_model
from condec.network.trial import OUTPUT, Tolerance
from condec.network.units import Units
from condec.network.unwrap import eager, original


@short_repr
@dataclass(frozen=True, eq=False)
class AfterSite:
    """The part of a network after one site, for one batch of inputs. Made by `split_at`.

    Attributes
    ----------
    also : tuple of Site
        Later sites whose activation a run may change.
    activation, output : Tensor of shape [sample, ...]
        What came out at the site, and of the model.
    n_folds : int
        Rows of the site's activation that belong to a sample; [sample, fold, ...] from 2 on.
    answers, unused
        What calls before the site returned, and the inputs; and those of them that no operation
        works on, of which no values are kept.
    stacks : bool
        Whether several versions run in one pass; else in one pass each, where the first axis
        alone does not make versions, as in a recurrent network's state.
    repeats_folds : bool
        Whether answers with several rows a sample are repeated for every version.
    version_bytes : int
        Memory that one version takes in a run without gradients, about: its activation, its
        copies of what is kept, and the tensors of the largest operation.
    """

    model: nn.Module
    inputs: Tensor
    site: Site
    also: tuple[Site, ...]
    activation: Tensor
    output: Tensor
    answers: Mapping[CallKey, Answer] = field(repr=False)
    unused: frozenset[CallKey] = field(default=frozenset(), repr=False)
    n_folds: int = 1
    stacks: bool = True
    repeats_folds: bool = False
    version_bytes: int = 0

    @property
    def units(self) -> Units:
        """Units of the site's activation."""
        if self.n_folds == 1:
            return units_of(self.site, self.activation)
        return FoldedUnits.of(units_of(self.site, fold(self.activation)))

    def run(self, activation: Tensor, changes: Mapping[Site, TensorMap] | None = None) -> Tensor:
        """Return the output [n * sample, ...] with another activation at the site.

        It is differentiable in the activation.

        Parameters
        ----------
        activation : Tensor of shape [n * sample, ...]
            One or more versions of the batch, one after the other.
        changes : dict of Site to callable, optional
            What to do to the activation at later sites, each one of `also`: it gets that of all
            versions, as the model has it, and gives another of the same shape without writing to
            it.

        Raises
        ------
        SiteError
            The activation is not a number of batches of the shape at the site, or a change
            belongs to a site for which the network was not split.
        ModelError
            The model fails on it, or no longer comes to the site.
        """
        n_samples, shape = len(self.inputs), self.activation.shape[1:]
        n_versions, rest = divmod(len(activation), n_samples)
        if rest or not n_versions or activation.shape[1:] != shape:
            raise SiteError(
                f"{self.site.key}: expected an activation of shape [n * {n_samples}, "
                f"{', '.join(map(str, shape))}]; got {tuple(activation.shape)}"
            )
        at = {site.place: change for site, change in (changes or {}).items()}
        if unknown := [p for p in at if p not in {site.place for site in self.also}]:
            raise SiteError(
                f"{unknown[0][0]} cannot be changed in a run from {self.site.key} on: the network "
                "was not split for it; name the site in split_at(..., also=...)"
            )
        if self.stacks:
            return self._pass(self._versions(activation, at))
        if n_versions > 1 and at:
            raise SiteError(
                f"{self.site.key}: {type(self.model).__name__} runs one version at a time, so "
                "changes at later sites belong to one; run each version by itself"
            )
        parts = torch.split(activation, n_samples)
        return torch.cat([self._pass(self._versions(part, at)) for part in parts])

    def _versions(
        self, activation: Tensor, changes: Mapping[Place, TensorMap], watch: Watch | None = None
    ) -> Versions:
        n_versions, n_samples = len(activation) // len(self.inputs), len(self.inputs)
        given = fold(activation) if self.n_folds > 1 else activation
        return Versions(given, n_versions, n_samples, self.repeats_folds, changes, watch)

    def _pass(self, versions: Versions) -> Tensor:
        model, name = self.model, type(self.model).__name__
        for site in (self.site, *self.also):
            if site.tap == "input" and model.get_submodule(site.name)._forward_pre_hooks:
                raise ModelError(
                    f"{site.key} has a hook of others, which would change what is put in there"
                )
        with (
            frozen_parameters(model),
            eager(model),
            answered(model, self.site, self.answers, self.unused, versions) as reached,
        ):
            inputs = versions.repeat(INPUTS, self.answers[INPUTS], unused=INPUTS in self.unused)
            output = run_model(model, inputs, owned=True)
        if not reached:
            raise ModelError(
                f"{name} does not come to {self.site.key} when it is run again; its way must not "
                "depend on chance, time or earlier calls"
            )
        n_samples = versions.n_versions * versions.n_samples
        if output.shape != (n_samples, *self.output.shape[1:]):
            raise ModelError(
                f"{name}: expected one output for each of {n_samples} samples; got shape "
                f"{tuple(output.shape)}"
            )
        return output


@dataclass(frozen=True, eq=False)
class _Tried:
    """Way to run batches of one shape, found by a trial."""

    stacks: bool
    repeats_folds: bool
    unused: frozenset[CallKey]
    version_bytes: int


class Splitter:
    """Splits a network at a site, for many batches: the trial is made once a shape.

    `also` are later sites (in order of execution) whose activation runs may change. SiteError
    where the model has no such module.
    """

    def __init__(self, model: nn.Module, site: Site, *, also: Iterable[Site] = ()) -> None:
        self.model, self.site, self.also = original(model), site, tuple(also)
        self._tried: dict[object, _Tried] = {}
        names = dict(self.model.named_modules())
        if unknown := [one.name for one in (site, *self.also) if one.name not in names]:
            raise SiteError(f"{type(self.model).__name__} has no module {unknown[0]!r}")

    def at(self, inputs: Tensor) -> AfterSite:
        """Run a batch once, and keep what is needed to run what lies after the site again.

        SiteError where the site does not run, or more than once and does not say which call is
        meant; ModelError where the model fails, or cannot be run in parts (with nothing changed,
        the output comes out otherwise).
        """
        refuse_training(self.model)
        inputs = inputs.detach()
        autocast = torch.is_autocast_enabled(inputs.device.type)
        key = (inputs.shape, inputs.dtype, inputs.device, autocast)
        if key in self._tried:
            tried = self._tried[key]
            return replace(self._full_pass(inputs, tried.unused), **vars(tried))
        after = self._full_pass(inputs)
        if after.n_folds > 1:
            check_order(self.model, inputs, [self.site])
        tried = self._tried[key] = _try(after)
        answers = dict(after.answers)
        for call in tried.unused:
            answers[call] = replace(answers[call], out=map_tensors(answers[call].out, thin))
        return replace(after, answers=answers, **vars(tried))

    def _full_pass(self, inputs: Tensor, unused: frozenset[CallKey] = frozenset()) -> AfterSite:
        model, site = self.model, self.site
        kept = remembered(model, site, unused)
        with record(model, [site]) as tape, kept as answers, torch.no_grad():
            output = run_model(model, inputs)
            ((key, h),) = tape.records.items()
            n_folds = count_folds({key: h}, len(inputs), allowed=[key])[key]
        answers[INPUTS] = Answer(inputs)
        activation, output = unfold(h.detach(), n_folds), output.detach()
        return AfterSite(
            model, inputs, site, self.also, activation, output, answers, n_folds=n_folds
        )


def split_at(
    model: nn.Module, inputs: Tensor, site: Site, *, also: Iterable[Site] = ()
) -> AfterSite:
    """Run a batch once, and keep what is needed to run what lies after a site again.

    Parameters and errors are those of `Splitter` and its `Splitter.at`.
    """
    return Splitter(model, site, also=also).at(inputs)


def _try(after: AfterSite) -> _Tried:
    """Run two versions in one pass, else one, with nothing changed, and compare the output.

    Whether an answer of several rows a sample is repeated cannot be seen in its shape alone.
    """
    failure = "with nothing changed its output is another"
    own = (after.site.name, after.site.call or 0)
    may = Tolerance.of(after.inputs, {OUTPUT: after.output})
    for n_versions, repeats_folds in ((2, False), (2, True), (1, False)):
        watch = Watch(after.model)
        activation = torch.cat([after.activation] * n_versions)
        after = replace(after, repeats_folds=repeats_folds)
        versions = after._versions(activation, {}, watch)
        try:
            with torch.inference_mode(False), torch.no_grad(), watch:
                again = after._pass(versions)
        except ModelError as error:
            failure = str(error)
            continue
        if may.off(again, torch.cat([after.output] * n_versions)) <= may.alone:
            watch.use(again)  # An output made before the site: no operation works on it.
            unused = frozenset(after.answers) - watch.used - {own}
            bytes_ = activation.numel() * activation.element_size()
            needed = watch.most_bytes + watch.held_bytes + 2 * bytes_
            return _Tried(n_versions == 2, repeats_folds, unused, needed // n_versions)
    raise ModelError(
        f"{type(after.model).__name__} cannot be run from {after.site.key} on: {failure}. "
        "A module before the site keeps a state or draws random numbers, or the model goes on "
        "with a tensor that a module before the site changed in place."
    )
