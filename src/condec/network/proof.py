"""Proof of a model: what contributions take for granted, tried before the first batch.

A contribution belongs to one sample only where the model is a function of that sample: the same
when it runs again, and the same whatever else is in the batch. A model for which this does not
hold gives numbers like any other, and nothing in them shows it.
"""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from condec.basis.errors import ModelError, SiteError
from condec.network.folds import not_in_order
from condec.network.packed import hold
from condec.network.running import alone
from condec.network.sites import Site
from condec.network.state import settings_of
from condec.network.tape import check_output
from condec.network.trial import (
    MIXED,
    OUTPUT,
    BatchSizes,
    Records,
    Spot,
    Tolerance,
    Trial,
    differing,
    in_company,
    run_alone,
)
from condec.network.unwrap import original, refuse_unreadable

_AGAIN: Final = "gives another value when it runs again"
_UNDECIDED: Final = (
    "differences as rounding may make them, and it is too large for a copy in double precision, "
    "or has none"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: a statement, whether it holds, and what was found.

    `holds` is None where it could not be tried, or with something `found`, not be decided. What
    fails is refused with an `advice`, and only told without one.
    """

    statement: str
    holds: bool | None
    found: str = ""
    advice: str = ""


@dataclass(frozen=True, repr=False)
class Proof:
    """What was tried of a model, on samples of one shape. Made by `prove`.

    Attributes
    ----------
    model : str
        Its class.
    shape : tuple of int
        Of one sample.
    checks : tuple of Check
    sizes : BatchSizes
        Samples that a pass may have.
    places : mapping of str to str
        What is wrong at single sites, by their names.
    n_samples : int
        Of its largest pass: mixing that begins in larger batches does not show.
    """

    model: str
    shape: tuple[int, ...]
    checks: tuple[Check, ...]
    sizes: BatchSizes = field(default_factory=BatchSizes)
    places: Mapping[str, str] = field(default_factory=dict)
    n_samples: int = 1

    def covers(self, n_samples: int) -> bool:
        """Tell whether it says something of batches of so many samples."""
        return n_samples == self.sizes.least if self.sizes.only else n_samples <= self.n_samples

    @property
    def holds(self) -> bool:
        """Tell whether nothing was found that is refused."""
        return not any(check.holds is False and check.advice for check in self.checks)

    def demand(self) -> "Proof":
        """Return the proof itself; ModelError, or SiteError about sites, where it fails."""
        for check in self.checks:
            if check.holds is False and check.advice:
                raise (SiteError if check.statement == _AXIS else ModelError)(
                    f"{self.model}: expected that {check.statement}, or no contribution belongs to "
                    f"one sample; {check.found}. {check.advice}; or go on unproven, prove=False"
                )
        return self

    def __repr__(self) -> str:
        words = {True: "yes", False: "no", None: "not tried"}
        rows = [
            *((c.statement, words[c.holds] + f": {c.found}" * bool(c.found)) for c in self.checks),
            ("batches may be", str(self.sizes)),
        ]
        width = max(len(statement) for statement, _ in rows)
        head = f"Proof of {self.model}, samples of shape {list(self.shape)}"
        return "\n".join([head, *(f"{statement:{width}}  {result}" for statement, result in rows)])


_SAME: Final = "the same inputs give the same again"
_ALONE: Final = "a sample alone gives what it gives in a batch"
_AXIS: Final = "the first axis of a site is that of the samples"
_FOLLOWS: Final = "the output follows the input"
_Kept = dict[object, list[tuple[frozenset[object], Proof]]]
"""Proofs, each with the sites that were tried, by the kind of inputs."""
_PROOFS: Final[WeakKeyDictionary[nn.Module, tuple[object, _Kept]]] = WeakKeyDictionary()
"""Proofs of models, and the state of each in which they were made."""


def proof_of(
    model: nn.Module, inputs: Tensor, sites: Iterable[Site], *, batch_size: int = 1
) -> Proof:
    """Prove a model, as `prove` does, once for each kind of inputs, choice of sites and batch size.

    A proof of more sites, or of larger batches, will do. One that fails is not kept: the model may
    be mended in place. Nor do others stand once the model has other modules, hooks, weights or
    settings (`_state_of`). Warns of what could not be decided.
    """
    model, sites = original(model), tuple(sites)
    refuse_unreadable(model)  # before the inputs are looked at: they may have no values
    of_inputs = (inputs.shape[1:], inputs.stride()[1:], inputs.dtype, inputs.device)
    autocast = torch.is_autocast_enabled(inputs.device.type)
    key, places = (of_inputs, autocast), frozenset[object](site.place for site in sites)
    before, kept = _PROOFS.get(model, (None, _Kept()))
    if before != (state := _state_of(model)):
        kept = {}
    n_samples = max(batch_size, len(inputs))
    for of, known in kept.get(key, ()):
        if places <= of and known.covers(len(inputs) if known.sizes.only else n_samples):
            return known
    made = prove(model, inputs, sites, batch_size=batch_size)
    if made.holds:
        kept.setdefault(key, []).append((places, made))
        _PROOFS[model] = state, kept
    for check in made.checks:
        if check.found == _UNDECIDED:
            words = f"{made.model}: it is open whether {check.statement}: {check.found}"
            warnings.warn(words, UserWarning, stacklevel=2)
    return made


def check_order(model: nn.Module, inputs: Tensor, sites: Iterable[Site]) -> None:
    """Raise SiteError unless the rows of a sample stand together, in the order of samples."""
    sites = tuple(sites)
    for key, found in proof_of(model, inputs, sites).places.items() if sites else ():
        raise not_in_order(key, found)


def _state_of(model: nn.Module) -> object:
    """Return what tells a model from the same model changed.

    Of its modules the kinds, hooks and settings, of its weights how often they changed in place. A
    model that counts its passes in an attribute is thus proven for every batch.
    """
    parts: list[object] = [settings_of(model)]
    for module in model.modules():
        hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        weights = tuple(
            (key, None if part is None else _version_of(part))
            for key, part in module._parameters.items()
        )
        without = tuple(key for key, part in module._buffers.items() if part is None)
        parts.append((hooks, weights, without))
    return tuple(parts)


def _version_of(part: Tensor) -> tuple[int, int]:
    return id(part), 0 if is_lazy(part) or part.is_inference() else part._version


def prove(
    model: nn.Module, inputs: Tensor, sites: Iterable[Site] = (), *, batch_size: int = 1
) -> Proof:
    """Try whether what a model gives belongs to single samples, in five passes.

    Two samples of `inputs` serve for four short ones; where there is one, or they are equal, the
    second is the first, slightly changed. The fifth takes all of `inputs`, repeated up to
    `batch_size`, for some models mix samples only where there are several; one that does not take
    two samples is tried with as many throughout. Buffers and attributes that a pass changed are put
    back. Where two results differ by more than rounding hardly does (1e-5 of the largest number in
    float32, 1e-2 in half precision), a copy in double precision decides, up to 2 GiB; else they may
    differ by 1e-3 (5e-2; 1e-9 in float64), and what lies between is open.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Tensor of shape [sample, ...]
        Ready for the model.
    sites : several Site
        Sites that are tried too.
    batch_size : int
        Samples that passes will have.

    Returns
    -------
    Proof
        `Proof.demand` raises where it fails.

    Raises
    ------
    ModelError
        The model fails on the inputs, or is in training mode.

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> prove(small_resnet(), torch.ones(2, 1, 5, 5))
    Proof of SmallResNet, samples of shape [1, 5, 5]
    the same inputs give the same again              yes
    a sample alone gives what it gives in a batch    yes
    the first axis of a site is that of the samples  yes
    the output follows the input                     yes
    batches may be                                   of any size
    """
    model = original(model)
    refuse_unreadable(model)  # before the inputs are looked at: they may have no values
    with alone(model), torch.inference_mode(False):
        trial = Trial(model, sites)
        try:
            return _prove(trial, inputs.detach(), batch_size)
        finally:
            trial.state.put_back()


def _prove(trial: Trial, inputs: Tensor, batch_size: int) -> Proof:
    """Try a model; where more is found than rounding hardly does, in double precision."""
    whole, first = _first_pass(trial, inputs, batch_size)
    may = Tolerance.of(whole, first)
    rows = torch.arange(max(batch_size, len(inputs), len(whole)), device=inputs.device)
    many = torch.cat([whole, inputs[rows[len(whole) :] % len(inputs)]])
    found = _tried(trial, whole, many, first, may.hardly, why=False)
    if found.holds:
        return found
    doubted = {check.statement for check in found.checks if check.holds is False and check.advice}
    if not may.is_double and (finer := trial.in_double()) is not None:
        with suppress(ModelError):
            first = finer.run(whole.double())
            least = Tolerance.of(whole.double(), first).least
            tolerance = replace(may, alone=may.again, least=least)
            return _tried(finer, whole.double(), many.double(), first, tolerance)
    trial.state.put_back()
    found = _tried(trial, whole, many, trial.run(whole), may)
    if not found.holds or may.is_double:
        return found
    checks = (
        replace(check, holds=None, found=_UNDECIDED) if check.statement in doubted else check
        for check in found.checks
    )
    return replace(found, checks=tuple(checks))


def _tried(
    trial: Trial, whole: Tensor, many: Tensor, first: Records, tolerance: Tolerance, *,
    why: bool = True,
) -> Proof:  # fmt: skip
    """Compare the `first` pass over the `whole` with others; find out `why` they differ."""
    changed = trial.state.changed_buffers()
    # Not put back in between: a state that a pass leaves shows in the next.
    again = trial.run(whole)
    off = {place: tolerance.off(again.get(place), x) for place, x in first.items()}
    wrong = {place: _AGAIN for place in off if off[place] > tolerance.again}
    sizes, causes = BatchSizes(), ["", "", ""]
    if wrong:
        causes[0] = _why_another(trial, whole, changed) if why else _AGAIN
    else:
        sizes, wrong = run_alone(trial, whole, first, tolerance, copies=why)
        if OUTPUT in wrong:
            causes[1] = _why_mixed(trial, whole, sizes, tolerance) if why else MIXED
        elif not wrong and len(many) > len(whole) and not sizes.only:
            causes[1] = in_company(trial, many, first[OUTPUT], tolerance)
    places = {_name(place): words for place, words in wrong.items() if place != OUTPUT}
    causes[2] = "; ".join(f"{name} {words}" for name, words in [*places.items()][:3])
    untried = bool(causes[0]) or len(whole) == 1
    follows = None
    if len(whole) > 1 and not torch.equal(*whole[:2]):
        follows = not torch.equal(*first[OUTPUT][:2])
    checks = (
        Check(_SAME, not causes[0], causes[0], _NO_CHANCE),
        Check(_ALONE, None if untried else not causes[1], causes[1], _NO_MIXING),
        Check(_AXIS, None if untried or causes[1] else not places, causes[2], _NO_AXIS),
        Check(_FOLLOWS, follows, "it is the same for two inputs" if follows is False else ""),
    )
    name, shape = type(trial.model).__name__, tuple(whole.shape[1:])
    return Proof(name, shape, checks, sizes, places, len(many))


_NO_CHANCE: Final = (
    "In evaluation mode a model must draw no random numbers and keep nothing from one pass to the "
    "next (F.dropout needs training=self.training, batch norm momentum only in training)"
)
_NO_MIXING: Final = (
    "Give a model whose samples do not meet (batch norm needs running statistics, "
    "track_running_stats=True; norms and attention must leave the first axis alone)"
)
_NO_AXIS: Final = (
    "Choose a site before or after, or a model that takes samples first (batch_first=True)"
)


def changed(sample: Tensor) -> Tensor:
    """Make another input of one, [1, ...], slightly changed.

    Not by one factor, which networks that normalise would not see, and away from ends (0 and 1
    may be a mask, numbers of tokens have a largest one).
    """
    weights = torch.linspace(0.75, 1.0, sample.numel(), device=sample.device, dtype=sample.dtype)
    scaled = sample * weights.view_as(sample)
    others = (torch.where((sample == 0) | (sample == 1), sample, scaled), scaled, sample + 0.125)
    return next(other for other in others if not torch.equal(other, sample))


def _first_pass(trial: Trial, inputs: Tensor, batch_size: int) -> tuple[Tensor, Records]:
    """Run two samples; where the model does not take them, one that is its own, or all."""
    one = inputs[:1]
    others = (inputs[i : i + 1] for i in range(1, min(len(inputs), 4)))
    other = next((x for x in others if not torch.equal(x, one)), None)
    made = hold(trial.model, one, changed(one))
    tries = [torch.cat([one, made if other is None else other])]
    if other is None:  # What was made up may be no input of this model.
        tries.append(torch.cat([one, one]))
    n_samples = max(batch_size, len(inputs))
    tries.append(inputs[torch.arange(n_samples, device=inputs.device) % len(inputs)])
    for whole in tries[:-1]:
        try:
            found = trial.run(whole)
        except ModelError:
            trial.state.put_back()
            continue
        if found[OUTPUT].shape[:1] == whole.shape[:1]:
            return whole, found
        trial.state.put_back()
    found = {}
    try:
        found = trial.run(tries[-1])
        check_output(trial.model, found[OUTPUT], n_samples)
    except ModelError as error:
        if not found and error.__cause__ is None:  # it runs, and returns no tensor to explain
            raise
        raise ModelError(
            f"{error} It does not take 2 samples either. If it takes batches of a certain size "
            "only, as with .view(8, -1) inside, give that many inputs; collect and condec run: "
            "batch_size=8. explain takes one input at a time, and so a network of any batch size"
        ) from error
    return tries[-1], found


class _Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Kernels of attention carry the tag for their dropout, which is 0 in most.
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name:
            self.names[name] = None
        return func(*args, **(kwargs or {}))


def _why_another(trial: Trial, whole: Tensor, changed: list[str]) -> str:
    """Say what a model does that gives another value when it runs again, and where it begins."""
    everywhere = trial.everywhere()
    with _Drawn() as drawn:
        tries = [everywhere.run(whole) for _ in range(2)]
    tolerance = Tolerance.of(whole, tries[0])
    off = {place: tolerance.off(tries[1].get(place), x) for place, x in tries[0].items()}
    first = next((place for place in off if off[place] > tolerance.again), OUTPUT)
    why = "it keeps something from one pass to the next, or draws numbers outside of torch"
    if drawn.names:
        why = f"it draws random numbers ({', '.join(drawn.names)})"
    elif changed:
        why = f"it changes its buffers ({', '.join(changed[:3])})"
    return f"it gives others, {_at(trial.model, first)}: {why}"


def _why_mixed(trial: Trial, whole: Tensor, sizes: BatchSizes, tolerance: Tolerance) -> str:
    """Say where the samples of a batch meet first."""
    everywhere = trial.everywhere()
    first = everywhere.run(whole)
    wrong = differing(everywhere, whole, first, sizes.least, tolerance)
    place = next((place for place in first if place in wrong), OUTPUT)
    words = "" if wrong.get(place, MIXED) == MIXED else f": it {wrong[place]}"
    without = [
        name
        for name, module in trial.model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]
    if without:
        words += f"; without running statistics: {', '.join(without[:3])}"
    return f"samples meet, {_at(trial.model, place)}{words}"


def _at(model: nn.Module, place: Spot) -> str:
    if place == OUTPUT:
        return "outside of modules"
    return f"first at {_name(place)} ({type(model.get_submodule(place[0])).__name__})"


def _name(place: Spot) -> str:
    """Write a place as sites are written."""
    name, tap, number = place
    return f"{name}{':input' if tap == 'input' else ''}{f'#{number}' if number else ''}"
