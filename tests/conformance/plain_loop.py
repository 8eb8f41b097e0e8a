"""Contributions, edits and maps by plain loops: hooks and `torch.autograd.grad`, nothing of condec.

A place is a module's name, its side ("output" or "input") and the number of its call. A score makes
one number a sample of what a model returns.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Place = tuple[str, str, int]
Score = Callable[[Any], Tensor]
Points = dict[Place, tuple[Tensor, Tensor]]
_SMALL = 1e-6


def tensor_of(value: Any) -> Tensor:
    """Return the logits of an output, or its first tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        return value["logits"] if "logits" in value else next(iter(value.values()))
    return tensor_of(value[0])


def exchanged(value: Any, tensor: Tensor) -> Any:
    """Put another tensor in the place of the first one."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, dict):
        value[next(iter(value))] = tensor
        return value
    return type(value)([exchanged(value[0], tensor), *value[1:]])


@contextmanager
def tapped(
    model: nn.Module, places: Sequence[Place], change: Callable[[Place, Tensor], Tensor]
) -> Iterator[None]:
    """Replace what passes each of the places."""
    calls, hooks = dict.fromkeys(places, 0), []

    def at(place: Place, value: Any) -> Any:
        calls[place] += 1
        if calls[place] - 1 != place[2]:
            return value
        return exchanged(value, change(place, tensor_of(value)))

    for place in places:
        name, tap, _ = place
        module = model.get_submodule(name)
        if tap == "output":
            made = module.register_forward_hook(lambda _, args, out, p=place: at(p, out))
        else:
            made = module.register_forward_pre_hook(
                lambda _, args, kwargs, p=place: (
                    (at(p, args), kwargs) if args else (args, at(p, kwargs))
                ),
                with_kwargs=True,
            )
        hooks.append(made)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def point(model: nn.Module, x: Tensor, places: Sequence[Place], score: Score) -> Points:
    """Activation, and gradient of the score, at every place for one sample."""
    found: dict[Place, Tensor] = {}

    def keep(place: Place, h: Tensor) -> Tensor:
        found[place] = h.clone() if h.requires_grad else h.detach().clone().requires_grad_()
        return found[place].clone()

    with tapped(model, places, keep):
        value = score(model(x.detach().clone().requires_grad_() * 1)).sum()
    gradients = torch.autograd.grad(value, [found[place] for place in places])
    return {p: (found[p].detach(), g) for p, g in zip(places, gradients, strict=True)}


def contributions(
    model: nn.Module, x: Tensor, places: Sequence[Place], score: Score, steps: int
) -> Points:
    """sum_k (h_k - h_{k-1}) (g_k + g_{k-1}) / 2 and h, one sample and one point at a time.

    Of one sample alone, torch 2.13 differentiates batch norm wrongly: each runs twice.
    """
    rows: dict[Place, list[tuple[Tensor, Tensor]]] = {place: [] for place in places}
    for sample in x.split(1):
        twice = torch.cat([sample, sample])
        path = [point(model, twice * (k / steps), places, score) for k in range(steps + 1)]
        for place in places:
            total = torch.zeros_like(path[-1][place][0])
            for before, after in itertools.pairwise(path):
                (h_0, g_0), (h_1, g_1) = before[place], after[place]
                total = total + (h_1 - h_0) * (g_1 + g_0) / 2
            rows[place].append((once(total), once(path[-1][place][0])))
    return {p: tuple(map(torch.cat, zip(*rows[p], strict=True))) for p in places}


def once(rows: Tensor) -> Tensor:
    """Return the rows of the first of two samples."""
    return rows[: len(rows) // 2]


def split_by_sign(values: Tensor, axis: int, n_heads: int | None) -> Tensor:
    """Sum positive and negative values over positions, shape [sample, 2, unit]."""
    values = values.movedim(axis, 1)
    if n_heads is not None:
        values = values.unflatten(1, (n_heads, -1))
    flat = values.reshape(*values.shape[:2], -1)
    return torch.stack([flat.clamp(min=0).sum(2), flat.clamp(max=0).sum(2)], 1)


def ablated(model: nn.Module, x: Tensor, place: Place, keep: Tensor) -> Tensor:
    """Output where what passes a place is multiplied by zeros and ones."""
    with torch.no_grad(), tapped(model, [place], lambda _, h: h * keep):
        return tensor_of(model(x.clone()))


def maps(
    model: nn.Module, x: Tensor, place: Place, chosen: Tensor, score: Score
) -> tuple[Tensor, Tensor]:
    """x J_y J_h of the chosen units, summed where J_y J_h x is above 0, and where it is not.

    J_h x comes from differentiating u J_h by u; where torch cannot differentiate twice, from a
    small change of h along x: only its sign counts.
    """
    x = torch.cat([x, x])  # see `contributions`
    start = x.detach().clone().requires_grad_()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        with tapped(model, [place], lambda _, h: found.append(h.clone()) or found[0].clone()):
            value = score(model(x)).sum()
        return found[0], value

    with sdpa_kernel(SDPBackend.MATH):
        h, value = run(start * 1)
        driven = torch.autograd.grad(value, h, retain_graph=True)[0] * chosen
        u = torch.zeros_like(h).requires_grad_()
        try:
            (pulled,) = torch.autograd.grad(h, start, u, create_graph=True)
            (pushed,) = torch.autograd.grad((pulled * x).sum(), u, retain_graph=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            with torch.no_grad():
                pushed = run(x * (1 + _SMALL))[0] - run(x * (1 - _SMALL))[0]
    upward = driven * (driven * pushed > 0)
    signed = [upward, driven - upward]
    both = [torch.autograd.grad(h, start, v, retain_graph=True)[0] for v in signed]
    return once(x * both[0]), once(x * both[1])
