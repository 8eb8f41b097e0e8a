"""Maps of other methods, of a class or of a share of one site's activation.

With the shares w of an activation h, and the gradient g of the class's output there, a method's map
of the share is what it says of w h: where w is 1 everywhere, it is the map of the class.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA: Final = 0.25
PATCHES: Final = 14
"""Regions a side."""


def patches(values: Tensor) -> Tensor:
    """Sum a map of the input [1, channel, y, x] over regions, or bring one of places to them."""
    if values.ndim == 4:
        size = values.shape[-1] // PATCHES
        return F.avg_pool2d(values.sum(1, keepdim=True), size)[0, 0].double() * size**2
    if len(values) == PATCHES:
        return values.double()
    shape = (PATCHES, PATCHES)
    return F.interpolate(values.double()[None, None], shape, mode="bilinear")[0, 0]


@contextmanager
def recorded(model: nn.Module, sites: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Fill the yielded dict with the outputs of sites, as the model runs."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:

            def keep(_: nn.Module, __: Any, out: Tensor, site: str = site) -> None:
                found[site] = out

            stack.callback(model.get_submodule(site).register_forward_hook(keep).remove)
        yield found


def site_maps(model: nn.Module, x: Tensor, label: int, site: str, w: Tensor) -> dict[str, Tensor]:
    """Grad-CAM (without its ReLU, as regions are ranked), LayerCAM, input x gradient, relevance."""
    x = x.clone().requires_grad_()
    with recorded(model, (site,)) as found:
        output = model(x)[0, label]
    h = found[site]
    (g,) = torch.autograd.grad(output, h, retain_graph=True)
    (driven,) = torch.autograd.grad(h, x, w * g)
    share = (w * h).detach()
    return {
        "Grad-CAM": patches((g.mean((2, 3), keepdim=True) * share)[0].sum(0)),
        "LayerCAM": patches((g.clamp(min=0) * share)[0].sum(0)),
        "input x gradient": patches((x * driven).detach()),
        "relevance": patches(relevance(model, x, label, site, w)),
    }


def relevance(model: nn.Module, x: Tensor, label: int, site: str, w: Tensor) -> Tensor:
    """Layer-wise relevance of the input, of what passes a share of a site.

    Gamma rule at convolutions, epsilon rule at the linear layer; rules are put into gradients, so
    that relevance is a value times its gradient.
    """
    with rules(model), recorded(model, (site,)) as found:
        output = model(x)[0, label]
        (g,) = torch.autograd.grad(output, found[site], retain_graph=True)
        (gradient,) = torch.autograd.grad(found[site], x, w * g)
    return (x * gradient).detach()


@contextmanager
def rules(model: nn.Module) -> Iterator[None]:
    """Inside it the gradients of a model are those of relevance."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                stack.callback(module.register_forward_hook(_affine).remove)
            elif isinstance(module, (nn.ReLU, nn.ReLU6)):
                stack.callback(module.register_forward_hook(_rectified).remove)
        yield


def _rectified(_: nn.Module, given: tuple[Tensor], out: Tensor) -> Tensor:
    return given[0] * (out / _away_from_zero(given[0])).detach()


def _affine(module: Any, given: tuple[Tensor], out: Tensor) -> Tensor:
    """Return the same values, with gradients that follow a rule."""

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        convolves = isinstance(module, nn.Conv2d)
        return module._conv_forward(x, w, b) if convolves else F.linear(x, w, b)

    x, w = given[0], module.weight.detach()
    whole = run(x, w, module.bias)
    if isinstance(module, nn.Conv2d):
        up, down = (x.clamp(min=0), x.clamp(max=0)), (w.clamp(min=0), w.clamp(max=0))
        raises = run(up[0], down[0], module.bias.clamp(min=0)) + run(up[1], down[1], None)
        whole = whole + GAMMA * torch.where(out > 0, raises, whole - raises)
    return whole * (out / _away_from_zero(whole)).detach()


def _away_from_zero(values: Tensor) -> Tensor:
    return values + torch.where(values < 0, -1e-6, 1e-6)
