"""What lies after a site, run by itself.

One full forward pass keeps what every module returned before the site was reached; after that,
those modules are not called again but answered from memory (the outermost of them: what runs
inside is never asked for), and the site is answered with the activation that is to be tried.
Operations outside modules before the site run again, on the remembered tensors: cheap, and the
reason why this works on any model without tracing it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from condec.errors import ModelError, SiteError
from condec.sites import Site
from condec.tape import (
    check_samples,
    first_tensor,
    record,
    refuse_training,
    run_model,
    with_first_tensor,
)

_TOLERANCE: Final = 1e-3


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
    """

    model: nn.Module
    inputs: Tensor
    site: Site
    activation: Tensor
    output: Tensor
    answers: dict[tuple[str, int], Any]
    """What each call before the site, by module and number, returned."""
    views: bool = False
    """Whether versions of a single sample may share memory: nothing changes them in place."""

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
        """
        n_samples = len(self.inputs)
        n_versions, rest = divmod(len(activation), n_samples)
        if rest or not n_versions or activation.shape[1:] != self.activation.shape[1:]:
            raise SiteError(
                f"{self.site.key}: expected an activation of shape [n * {n_samples}, "
                f"{', '.join(map(str, self.activation.shape[1:]))}]; got {tuple(activation.shape)}"
            )

        def versions(value: Any) -> Any:
            return _pytree.tree_map(
                lambda leaf: _repeat(leaf, n_samples, n_versions, views=self.views), value
            )

        with _answered(self.model, self.site, self.answers, versions, activation):
            return run_model(self.model, versions(self.inputs))


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
    with torch.no_grad(), record(model, [site]) as tape, _remembered(model, site) as answers:
        output = run_model(model, inputs)
        check_samples(tape.records, len(inputs))
        (activation,) = (tensor.detach() for tensor in tape.records.values())
    suffix = Suffix(model, inputs, site, activation, output.detach(), answers)
    if len(inputs) == 1:
        suffix = _sharing(suffix)
    with torch.no_grad():
        again = suffix.run(activation)
    scale = float(suffix.output.abs().max()) or 1.0
    if float((again - suffix.output).abs().max()) > _TOLERANCE * scale:
        raise ModelError(
            f"{type(model).__name__} cannot be run from {site.key} on: with nothing changed its "
            "output is another. A module before the site keeps a state, or draws random numbers."
        )
    return suffix


def _sharing(suffix: Suffix) -> Suffix:
    """The same with memory shared between versions, if the model bears it: no copies."""
    shared = replace(suffix, views=True)
    try:
        with torch.no_grad():
            shared.run(suffix.activation.repeat(2, *(1 for _ in suffix.activation.shape[1:])))
    except ModelError:
        return suffix
    return shared


@dataclass(eq=False)
class _Frame:
    """A module call under way: which, and what the calls inside it returned so far."""

    call: tuple[str, int]
    done: dict[tuple[str, int], Any] = field(default_factory=dict)


@contextmanager
def _remembered(model: nn.Module, site: Site) -> Iterator[dict[tuple[str, int], Any]]:
    """Fills the yielded dict, as the model runs, with the calls that end before the site."""
    answers: dict[tuple[str, int], Any] = {}
    frames = [_Frame(("", -1))]
    counts: dict[str, int] = {}
    reached: list[bool] = []

    def stop() -> None:
        reached.append(True)
        for frame in frames:
            answers.update(frame.done)

    def before(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            number = counts.get(name, 0)
            counts[name] = number + 1
            frames.append(_Frame((name, number)))
            if not reached and site.tap == "input" and _is_site(site, name, number):
                stop()

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, out: Any) -> Any:
            frame = frames.pop()
            if reached:
                return None
            if site.tap == "output" and _is_site(site, *frame.call):
                frames[-1].done[frame.call] = out
                return stop()
            # A copy goes on: an operation in place would rewrite what is remembered.
            frames[-1].done[frame.call] = out
            return _pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, out)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(name)).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield answers


@contextmanager
def _answered(
    model: nn.Module,
    site: Site,
    answers: dict[tuple[str, int], Any],
    versions: Callable[[Any], Any],
    activation: Tensor,
) -> Iterator[None]:
    """Inside, remembered calls are answered from memory and the site with `activation`."""
    counts: dict[str, int] = {}

    def answering(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            number = counts.get(name, 0)
            counts[name] = number + 1
            here = _is_site(site, name, number)
            if here and site.tap == "input":
                if first_tensor(args) is None:
                    return forward(*args, **with_first_tensor(kwargs, activation.clone()))
                return forward(*with_first_tensor(args, activation.clone()), **kwargs)
            if (name, number) not in answers:
                return forward(*args, **kwargs)
            out = versions(answers[name, number])
            return with_first_tensor(out, activation.clone()) if here else out

        return answer

    modules = dict(model.named_modules())
    concerned = {name for name, _ in answers} | {site.name}
    with ExitStack() as stack:
        for name in concerned:
            module = modules[name]
            # An entry of the instance hides the method of the class until it is removed.
            before = module.__dict__.get("forward")
            module.__dict__["forward"] = answering(name, module.forward)
            if before is None:
                stack.callback(module.__dict__.pop, "forward")
            else:
                stack.callback(module.__dict__.__setitem__, "forward", before)
        yield


def _is_site(site: Site, name: str, number: int) -> bool:
    return name == site.name and number == (site.call or 0)


def _repeat(leaf: Any, n_samples: int, n_versions: int, *, views: bool) -> Any:
    """A tensor with a sample axis, for every version; else a copy."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.ndim == 0 or len(leaf) != n_samples or n_versions == 1:
        return leaf.clone()
    if views:
        return leaf.expand(n_versions, *leaf.shape[1:])
    return leaf.repeat(n_versions, *(1 for _ in leaf.shape[1:]))
