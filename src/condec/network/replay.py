"""Run a model again with what ended before a site answered from memory.

The model's own code runs, so nothing has to trace. Modules that ended before the site return what
they returned in the full pass (the outermost of them: what runs inside is never asked for), and
the site returns the activation to try. Operations outside modules run again on these tensors.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from condec.network.module_io import TensorMap, change_first, change_input, map_tensors
from condec.network.running import of_this_thread
from condec.network.sites import Place, Site

CallKey = tuple[str, int]
"""A module's name and the number of its call in one forward pass."""
INPUTS: CallKey = ("", -1)
"""Key of the model's own inputs among what is remembered."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Record what one call returned, and how often the modules inside it ran."""

    out: Any
    inside: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Versions:
    """Hold the activation of versions of a batch, one after the other; repeat the rest.

    Of answers, those with a row a sample are repeated, and with `repeats_folds` those with several.
    `changes` are made at later places.
    """

    activation: Tensor
    n_versions: int
    n_samples: int
    repeats_folds: bool = False
    changes: Mapping[Place, TensorMap] = field(default_factory=dict)
    watch: "Watch | None" = None

    def repeat(self, call: CallKey, answer: Answer, *, unused: bool) -> Any:
        """Repeat each tensor of an answer that has a sample axis; of unused ones the shape only."""
        with nullcontext() if self.watch is None else self.watch.pause():
            value = map_tensors(answer.out, lambda leaf: self._repeat(leaf, unused=unused))
        if self.watch is not None:
            self.watch.note(call, value)
        return value

    def at_site(self, value: Any) -> Any:
        """Repeat an output of the site, with the activation exchanged."""
        given = self.activation
        # Exchanged first: an output may hold the same tensor twice.
        value = change_first(value, lambda _: given)
        return map_tensors(
            value, lambda leaf: leaf.clone() if leaf is given else self._repeat(leaf)
        )

    def _repeat(self, leaf: Tensor, *, unused: bool = False) -> Tensor:
        n_folds, no_fold = divmod(len(leaf) if leaf.ndim else 0, self.n_samples)
        if no_fold or not n_folds or (n_folds > 1 and not self.repeats_folds):
            return leaf.clone()
        n, rest = self.n_versions, leaf.shape[1:]
        if unused:
            return leaf[:1].expand(n * len(leaf), *rest)
        return leaf.repeat(n, *(1 for _ in rest))


@dataclass(eq=False)
class _Frame:
    """A module call under way: which, what the calls in it returned so far, and their number."""

    call: CallKey
    done: dict[CallKey, Answer] = field(default_factory=dict)
    inside: Counter[str] = field(default_factory=Counter)


@contextmanager
def remembered(
    model: nn.Module, site: Site, unused: frozenset[CallKey]
) -> Iterator[dict[CallKey, Answer]]:
    """Fill the yielded dict, as the model runs, with the calls that end before the site.

    Of unused answers the memory of one sample is kept.
    """
    answers: dict[CallKey, Answer] = {}
    frames = [_Frame(INPUTS)]
    counts: Counter[str] = Counter()
    reached: list[bool] = []
    # Only calls made by these are asked for later: others ended before the site with their caller.
    wanted = model.get_submodule(site.name)
    around = {n for n, m in model.named_modules() if any(one is wanted for one in m.modules())}

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
        name, caller = frame.call[0], frames[-1]
        if caller.call[0] in around:
            # A copy is kept: an operation in place may go on with what was returned.
            out = map_tensors(out, thin if frame.call in unused else torch.clone)
            caller.done[frame.call] = Answer(out, frame.inside)
        caller.inside.update(frame.inside)
        caller.inside[name] += 1
        if site.tap == "output" and _is_site(site, frame.call):
            stop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(of_this_thread(before(name))).remove)
            stack.callback(module.register_forward_hook(of_this_thread(after)).remove)
        yield answers


@contextmanager
def answered(
    model: nn.Module,
    site: Site,
    answers: Mapping[CallKey, Answer],
    unused: frozenset[CallKey],
    versions: Versions,
) -> Iterator[list[bool]]:
    """Answer remembered calls from memory, and the site with another activation.

    The yielded list is empty until the site is reached.
    """
    counts: Counter[str] = Counter()
    reached: list[bool] = []
    owner = get_ident()

    def answering(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != owner:  # a pass of another thread
                return run(*args, **kwargs)
            call = (name, counts[name])
            counts[name] += 1
            here = _is_site(site, call)
            if here:
                reached.append(True)
            if call not in answers:
                changes = dict(versions.changes)
                if here:
                    changes[site.place] = lambda _: versions.activation.clone()
                return _changed(run, (args, kwargs), call, changes)
            counts.update(answers[call].inside)
            if here:
                return versions.at_site(answers[call].out)
            return versions.repeat(call, answers[call], unused=call in unused)

        return answer

    modules = dict(model.named_modules())
    places = {site.name, *(name for name, _, _ in versions.changes)}
    with ExitStack() as stack:
        for name in places:
            # Where a module has a hook, no fused kernel of torch passes by the modules inside.
            stack.callback(modules[name].register_forward_hook(lambda *_: None).remove)
        for name in places | {name for name, number in answers if number >= 0}:
            own = modules[name].__dict__
            # What a call of a module runs, with its hooks: those of an answered call have fired.
            # An entry of the instance hides the method of the class until it is removed.
            exchanged: dict[str, Any] = {"_call_impl": answering(name, modules[name]._call_impl)}
            if own.get("_compiled_call_impl") is not None:
                exchanged["_compiled_call_impl"] = None
            before = {key: own[key] for key in exchanged if key in own}
            stack.callback(_restore, own, exchanged, before)
            own.update(exchanged)
        yield reached


def _restore(own: dict[str, Any], exchanged: Iterable[str], before: dict[str, Any]) -> None:
    for key in exchanged:
        del own[key]
    own.update(before)


def _changed(
    run: Callable[..., Any], given: tuple[Any, Any], call: CallKey, at: Mapping[Place, TensorMap]
) -> Any:
    """Run a call, with changes of what it gets (arguments and keyword arguments) and gives."""
    before, after = at.get((call[0], "input", call[1])), at.get((call[0], "output", call[1]))
    args, kwargs = given if before is None else change_input(given, before)
    out = run(*args, **kwargs)
    return out if after is None else change_first(out, after)


def _is_site(site: Site, call: CallKey) -> bool:
    return call == (site.name, site.call or 0)


def thin(leaf: Tensor) -> Tensor:
    """Return a tensor of the same shape with memory for one sample."""
    return leaf if leaf.ndim == 0 else leaf[:1].clone().expand(leaf.shape)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the answers that operations worked on, and the most bytes of one's tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: set[CallKey] = set()
        self.most_bytes = 0
        self._is_paused = False
        self._keys: dict[int, set[CallKey]] = {}
        self._bytes: dict[CallKey, int] = {}
        self._kept: list[Tensor] = []
        self._own = {_address(part) for part in _dense([*model.parameters(), *model.buffers()])}

    @property
    def held_bytes(self) -> int:
        """Sum up the memory of the answers that are used, repeated for all versions."""
        return sum(self._bytes.get(key, 0) for key in self.used)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Look at no operations inside the context."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def note(self, key: CallKey, value: Any) -> None:
        """Remember where the tensors of an answer are."""

        def leaf_at(leaf: Tensor) -> Tensor:
            # Kept, for memory that is free again would be taken for this answer's.
            self._kept.append(leaf)
            self._keys.setdefault(_address(leaf), set()).add(key)
            self._bytes[key] = self._bytes.get(key, 0) + leaf.untyped_storage().nbytes()
            return leaf

        map_tensors(value, leaf_at)

    def use(self, tensor: Tensor) -> None:
        """Count the answers that a tensor lies in as used."""
        self.used |= self._keys.get(_address(tensor), set())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._is_paused:
            return out
        given = _dense((args, kwargs))
        for leaf in given:
            self.use(leaf)
        sizes = {_address(leaf): leaf.untyped_storage().nbytes() for leaf in given + _dense(out)}
        total = sum(size for where, size in sizes.items() if where not in self._own)
        self.most_bytes = max(self.most_bytes, total)
        return out


def _address(tensor: Tensor) -> int:
    """Return where a tensor's memory begins."""
    return tensor.untyped_storage().data_ptr()


def _dense(value: Any) -> list[Tensor]:
    leaves = _pytree.tree_leaves(value)
    return [x for x in leaves if isinstance(x, Tensor) and x.layout == torch.strided]
