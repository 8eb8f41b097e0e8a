"""What lies after a site, run by itself.

One full forward pass keeps what every module returned before the site was reached; after that,
those modules are not called again but answered from memory (the outermost of them: what runs
inside is never asked for), and the site is answered with the activation that is to be tried.
Operations outside modules before the site run again, on the remembered tensors: cheap, and the
reason why this works on any model without tracing it. That it works is tried once, with two
versions of the batch, before a `Suffix` is handed out.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from condec.containers import first_tensor, with_first_tensor
from condec.errors import ModelError, SiteError
from condec.sites import Site
from condec.tape import (
    check_samples,
    frozen_parameters,
    record,
    refuse_training,
    run_model,
)

_TOLERANCE: Final = 1e-3
_HALF_TOLERANCE: Final = 5e-2

CallKey = tuple[str, int]
"""A module's name and the number of its call in one forward pass."""
Layout = Literal["views", "copies", "apart"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What one call returned, and how often the modules inside it ran."""

    out: Any
    inside: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Suffix:
    """The part of a network after one site, for one batch of inputs. Made by `split_at`.

    Attributes
    ----------
    model : torch.nn.Module
    inputs : Tensor of shape [sample, ...]
    site : Site
    activation : Tensor of shape [sample, ...]
        What came out at the site.
    output : Tensor of shape [sample, ...]
        The model's output.
    answers : dict of CallKey to Answer
        What the calls before the site returned.
    layout : {"views", "copies", "apart"}
        How several versions run: in one pass on shared memory (a single sample, where nothing
        is changed in place), in one pass on copies, or one pass each (where the first axis
        alone does not make versions, as in a recurrent network's state).
    unused : frozenset of CallKey
        Answers that only remembered calls ask for: their values are not kept.
    """

    model: nn.Module
    inputs: Tensor
    site: Site
    activation: Tensor
    output: Tensor
    answers: dict[CallKey, Answer]
    layout: Layout = "copies"
    unused: frozenset[CallKey] = frozenset()

    def run(self, activation: Tensor) -> Tensor:
        """Output of the model with another activation at the site; differentiable in it.

        Parameters
        ----------
        activation : Tensor of shape [n * sample, ...]
            One or more versions of the batch, one after the other.

        Returns
        -------
        Tensor of shape [n * sample, ...]

        Raises
        ------
        SiteError
            The activation is not a number of batches of the shape at the site.
        ModelError
            The model fails on it, or no longer comes to the site.
        """
        n_samples = len(self.inputs)
        n_versions, rest = divmod(len(activation), n_samples)
        if rest or not n_versions or activation.shape[1:] != self.activation.shape[1:]:
            raise SiteError(
                f"{self.site.key}: expected an activation of shape [n * {n_samples}, "
                f"{', '.join(map(str, self.activation.shape[1:]))}]; got {tuple(activation.shape)}"
            )
        if self.layout == "apart" and n_versions > 1:
            return torch.cat([self.run(version) for version in torch.split(activation, n_samples)])
        return _run(self, activation, n_versions)


def split_at(model: nn.Module, inputs: Tensor, site: Site) -> Suffix:
    """Run a batch once, and keep what is needed to run what lies after a site again.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    inputs : Tensor of shape [sample, ...]
    site : Site

    Returns
    -------
    Suffix

    Raises
    ------
    SiteError
        The site does not run, or ran more than once and does not say which call is meant.
    ModelError
        The model fails on the inputs, or cannot be run in parts (the output comes out
        otherwise when nothing was changed).

    Examples
    --------
    >>> from condec.testing.models import small_resnet
    >>> suffix = split_at(small_resnet(), torch.ones(2, 1, 5, 5), Site("block1"))
    >>> bool(torch.equal(suffix.run(suffix.activation), suffix.output))
    True
    """
    refuse_training(model)
    inputs = inputs.detach()
    with (
        record(model, [site]) as tape,
        _remembered(model, site) as answers,
        torch.no_grad(),
    ):
        output = run_model(model, inputs)
        check_samples(tape.records, len(inputs))
        (activation,) = (tensor.detach() for tensor in tape.records.values())
    suffix = Suffix(model, inputs, site, activation, output.detach(), answers)
    return _with_layout(suffix)


def _with_layout(suffix: Suffix) -> Suffix:
    """The same with the cheapest layout that gives the output back."""
    failure = "with nothing changed its output is another"
    layouts: tuple[Layout, ...] = ("copies", "apart")
    for layout in ("views", *layouts) if len(suffix.inputs) == 1 else layouts:
        tried = replace(suffix, layout=layout)
        n_versions = 1 if layout == "apart" else 2
        watch = _Watch()
        try:
            with torch.no_grad(), watch:
                activation = torch.cat([suffix.activation] * n_versions)
                again = _run(tried, activation, n_versions, watch)
        except ModelError as error:
            failure = str(error)
            continue
        if _same(again, torch.cat([suffix.output] * n_versions)):
            return tried if layout == "views" else _without_unused(tried, watch.used)
    raise ModelError(
        f"{type(suffix.model).__name__} cannot be run from {suffix.site.key} on: {failure}. "
        "A module before the site keeps a state or draws random numbers, or the model goes on "
        "with a tensor that a module before the site changed in place."
    )


def _without_unused(suffix: Suffix, used: set[CallKey]) -> Suffix:
    """The same with one sample kept of answers that no operation works on."""
    own = (suffix.site.name, suffix.site.call or 0)
    unused = frozenset(suffix.answers) - used - {own}
    answers = dict(suffix.answers)
    for call in unused:
        out = _map_tensors(answers[call].out, _thin)
        answers[call] = replace(answers[call], out=out)
    return replace(suffix, answers=answers, unused=unused)


def _thin(leaf: Tensor) -> Tensor:
    return leaf if leaf.ndim == 0 else leaf[:1].clone().expand(leaf.shape)


def _same(again: Tensor, output: Tensor) -> bool:
    """Equal up to what another batch size may do to the rounding."""
    device = output.device.type
    half = output.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(device)
    finite = output[output.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    # Matrix products of GPUs have ten bits where TF32 is allowed.
    tolerance = _TOLERANCE if device == "cpu" else 10 * _TOLERANCE
    tolerance = (_HALF_TOLERANCE if half else tolerance) * (scale or 1.0)
    return torch.allclose(again, output, rtol=0, atol=tolerance, equal_nan=True)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, notes which answers an operation works on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: set[CallKey] = set()
        self._calls: dict[int, set[CallKey]] = {}
        self._kept: list[Tensor] = []

    def note(self, call: CallKey, out: Any) -> None:
        """Remember where the tensors of an answer are."""
        for leaf in _pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                # Kept, for memory that is free again would be taken for this answer's.
                self._kept.append(leaf)
                self._calls.setdefault(_address(leaf), set()).add(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in _pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.used |= self._calls.get(_address(leaf), set())
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(eq=False)
class _Frame:
    """A module call under way: which, what the calls in it returned so far, and their number."""

    call: CallKey
    done: dict[CallKey, Answer] = field(default_factory=dict)
    inside: Counter[str] = field(default_factory=Counter)


@contextmanager
def _remembered(model: nn.Module, site: Site) -> Iterator[dict[CallKey, Answer]]:
    """Fills the yielded dict, as the model runs, with the calls that end before the site."""
    answers: dict[CallKey, Answer] = {}
    frames = [_Frame(("", -1))]
    counts: Counter[str] = Counter()
    reached: list[bool] = []

    def stop() -> None:
        reached.append(True)
        for frame in frames:
            answers.update(frame.done)

    def before(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            call = (name, counts[name])
            counts[name] += 1
            frames.append(_Frame(call))
            if not reached and site.tap == "input" and _is_site(site, call):
                stop()

        return hook

    def after(_: nn.Module, __: Any, out: Any) -> None:
        frame = frames.pop()
        if reached:
            return
        # A copy is kept: an operation in place may go on with what was returned.
        frames[-1].done[frame.call] = Answer(_map_tensors(out, torch.clone), frame.inside)
        frames[-1].inside.update(frame.inside)
        frames[-1].inside[frame.call[0]] += 1
        if site.tap == "output" and _is_site(site, frame.call):
            stop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield answers


def _run(
    suffix: Suffix, activation: Tensor, n_versions: int, watch: _Watch | None = None
) -> Tensor:
    model, site = suffix.model, suffix.site
    with frozen_parameters(model), _answered(suffix, activation, n_versions, watch) as reached:
        output = run_model(model, _repeat(suffix, suffix.inputs, n_versions))
    if not reached:
        raise ModelError(
            f"{type(model).__name__} does not come to {site.key} when it is run again; its way "
            "must not depend on chance, time or earlier calls"
        )
    if output.shape != (len(activation), *suffix.output.shape[1:]):
        raise ModelError(
            f"{type(model).__name__}: expected one output for each of {len(activation)} samples; "
            f"got shape {tuple(output.shape)}"
        )
    return output


@contextmanager
def _answered(
    suffix: Suffix, activation: Tensor, n_versions: int, watch: _Watch | None
) -> Iterator[list[bool]]:
    """Inside, remembered calls are answered from memory and the site with `activation`.

    The yielded list is empty until the site is reached.
    """
    site, answers = suffix.site, suffix.answers
    counts: Counter[str] = Counter()
    reached: list[bool] = []

    def answering(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            call = (name, counts[name])
            counts[name] += 1
            here = _is_site(site, call)
            if here:
                reached.append(True)
            if here and site.tap == "input":
                if first_tensor(args) is None:
                    return forward(*args, **with_first_tensor(kwargs, activation.clone()))
                return forward(*with_first_tensor(args, activation.clone()), **kwargs)
            if call not in answers:
                return forward(*args, **kwargs)
            counts.update(answers[call].inside)
            out = _versions(suffix, call, activation if here else None, n_versions)
            if watch is not None and not here:
                watch.note(call, out)
            return out

        return answer

    modules = dict(suffix.model.named_modules())
    with ExitStack() as stack:
        # Where a module has a hook, no fused kernel of torch passes by the modules inside.
        stack.callback(modules[site.name].register_forward_hook(lambda *_: None).remove)
        for name in {name for name, _ in answers} | {site.name}:
            module = modules[name]
            # An entry of the instance hides the method of the class until it is removed.
            before = module.__dict__.get("forward")
            module.__dict__["forward"] = answering(name, module.forward)
            if before is None:
                stack.callback(module.__dict__.pop, "forward")
            else:
                stack.callback(module.__dict__.__setitem__, "forward", before)
        yield reached


def _versions(suffix: Suffix, call: CallKey, activation: Tensor | None, n_versions: int) -> Any:
    """What a remembered call is to return; the site's with another activation."""
    # Exchanged first: an output may hold the same tensor twice.
    out = suffix.answers[call].out
    out = out if activation is None else with_first_tensor(out, activation)
    silent = call in suffix.unused

    def version(leaf: Tensor) -> Tensor:
        if leaf is activation:
            return leaf.clone()
        return _repeat(suffix, leaf, n_versions, silent=silent)

    return _map_tensors(out, version)


def _repeat(suffix: Suffix, leaf: Tensor, n_versions: int, *, silent: bool = False) -> Tensor:
    """A tensor with a sample axis, for every version; any other as a copy."""
    if leaf.ndim == 0 or len(leaf) != len(suffix.inputs):
        return leaf.clone()
    if silent or (suffix.layout == "views" and n_versions > 1):
        return leaf[:1].expand(n_versions * len(leaf), *leaf.shape[1:])
    return leaf.repeat(n_versions, *(1 for _ in leaf.shape[1:]))


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure, each of its tensors changed; one that stands there twice, once."""
    changed: dict[int, Tensor] = {}

    def leaf_of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
                return leaf
            made = copy.copy(leaf)
            for part in dataclasses.fields(leaf):
                part_of = _pytree.tree_map(leaf_of, getattr(leaf, part.name))
                object.__setattr__(made, part.name, part_of)
            return made
        if id(leaf) not in changed:
            changed[id(leaf)] = change(leaf)
        return changed[id(leaf)]

    return _pytree.tree_map(leaf_of, value)


def _is_site(site: Site, call: CallKey) -> bool:
    return call == (site.name, site.call or 0)
