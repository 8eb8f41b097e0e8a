"""Replay: the model's own code runs again, and what ended before the site is answered.

Modules that ended before the site are not called again but answered from memory (the outermost
of them: what runs inside is never asked for), and the site is answered with the activation that
is to be tried. Operations outside modules before the site run again, on the remembered tensors:
cheap, and the reason why this works on any model without tracing it.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from condec.basis.errors import ModelError
from condec.network.sites import Site
from condec.network.suffix.versions import (
    CallKey,
    Change,
    Pass,
    Place,
    Way,
    change_first,
    change_input,
    map_tensors,
    thin,
)
from condec.network.tape import check_samples, record, run_model


@dataclass(frozen=True, eq=False)
class Answer:
    """What one call returned, and how often the modules inside it ran."""

    out: Any
    inside: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Replay(Way):
    """What the calls before a site returned.

    Attributes
    ----------
    model : torch.nn.Module
    inputs : Tensor of shape [sample, ...]
    site : Site
    answers : dict of CallKey to Answer
    unused : frozenset of CallKey
        Answers that only remembered calls ask for: their values are not kept.
    """

    model: nn.Module
    inputs: Tensor
    site: Site
    answers: Mapping[CallKey, Answer]
    unused: frozenset[CallKey] = frozenset()

    def run(self, this: Pass) -> Tensor:
        """Output of the model for all versions."""
        with _answered(self, this) as reached:
            output = run_model(self.model, this.spread(self.inputs))
        if not reached:
            raise ModelError(
                f"{type(self.model).__name__} does not come to {self.site.key} when it is run "
                "again; its way must not depend on chance, time or earlier calls"
            )
        return output

    def lean(self, used: frozenset[Hashable]) -> "Replay":
        """The same with one sample kept of answers that no operation works on."""
        own = (self.site.name, self.site.call or 0)
        unused = frozenset(self.answers) - used - {own}
        answers = dict(self.answers)
        for call in unused:
            answers[call] = replace(answers[call], out=map_tensors(answers[call].out, thin))
        return replace(self, answers=answers, unused=unused)


def remember(model: nn.Module, inputs: Tensor, site: Site) -> tuple[Tensor, Tensor, Replay]:
    """Run the model, and remember what every call before the site returned.

    Returns
    -------
    activation, output : Tensor of shape [sample, ...]
    Replay
    """
    with (
        record(model, [site]) as tape,
        _remembered(model, site) as answers,
        torch.no_grad(),
    ):
        output = run_model(model, inputs)
        check_samples(tape.records, len(inputs))
        (activation,) = (tensor.detach() for tensor in tape.records.values())
    return activation, output.detach(), Replay(model, inputs, site, answers)


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
        frames[-1].done[frame.call] = Answer(map_tensors(out, torch.clone), frame.inside)
        frames[-1].inside.update(frame.inside)
        frames[-1].inside[frame.call[0]] += 1
        if site.tap == "output" and _is_site(site, frame.call):
            stop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield answers


@contextmanager
def _answered(replay: Replay, this: Pass) -> Iterator[list[bool]]:
    """Inside, remembered calls are answered from memory and the site with another activation.

    The yielded list is empty until the site is reached.
    """
    site, answers = replay.site, replay.answers
    counts: Counter[str] = Counter()
    reached: list[bool] = []

    def answering(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            call = (name, counts[name])
            counts[name] += 1
            here = _is_site(site, call)
            if here:
                reached.append(True)
            if call not in answers:
                changes = dict(this.changes)
                if here:
                    changes[Place.of(site)] = lambda _: this.activation.clone()
                return _changed(forward, args, kwargs, call, changes)
            counts.update(answers[call].inside)
            if here:
                return this.at_site(answers[call].out)
            out = this.spread(answers[call].out, silent=call in replay.unused)
            if this.watch is not None:
                this.watch.note(call, out)
            return out

        return answer

    modules = dict(replay.model.named_modules())
    with ExitStack() as stack:
        places = {site.name, *(place.name for place in this.changes)}
        for name in places:
            # Where a module has a hook, no fused kernel of torch passes by the modules inside.
            stack.callback(modules[name].register_forward_hook(lambda *_: None).remove)
        for name in places | {name for name, _ in answers}:
            module = modules[name]
            # An entry of the instance hides the method of the class until it is removed.
            before = module.__dict__.get("forward")
            module.__dict__["forward"] = answering(name, module.forward)
            if before is None:
                stack.callback(module.__dict__.pop, "forward")
            else:
                stack.callback(module.__dict__.__setitem__, "forward", before)
        yield reached


def _changed(
    forward: Callable[..., Any],
    args: Any,
    kwargs: Any,
    call: CallKey,
    changes: Mapping[Place, Change],
) -> Any:
    """What a call returns, with changes of what it gets and gives."""
    before = changes.get(Place(call[0], "input", call[1]))
    after = changes.get(Place(call[0], "output", call[1]))
    if before is not None:
        args, kwargs = change_input((args, kwargs), before)
    out = forward(*args, **kwargs)
    return out if after is None else change_first(out, after)


def _is_site(site: Site, call: CallKey) -> bool:
    return call == (site.name, site.call or 0)
