"""Forward-mode derivatives of convolutions and batch norm at the price of one more call.

torch's own rule for a convolution also convolves with a tangent of the weights that is zero
everywhere, and its rule for batch norm goes through a chain of elementwise operations. Both
functions are affine in their input, so the tangent goes through the same function without its
offset. Nothing else is touched; measured in benchmarks/mode_map.py.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS: Final = frozenset({
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
})  # fmt: skip


class AffineTangents(TorchFunctionMode):
    """Inside it, dual tensors pass convolutions and batch norm (in evaluation) fast."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func`, its affine part apart where it is known."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,  # noqa: A002  # torch's own names, as callers may give them
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    plain, tangent = _split(input, weight, bias)
    if tangent is None:
        return func(input, weight, bias, *args, **kwargs)
    moved = func(tangent, weight, None, *args, **kwargs)
    return _join(func(plain, weight, bias, *args, **kwargs), moved)


def _batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    plain, tangent = _split(input, running_mean, running_var, weight, bias)
    options = (training, momentum, eps)
    if tangent is None or training or running_mean is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, *options)
    nowhere = torch.zeros_like(running_mean)
    moved = F.batch_norm(tangent, nowhere, running_var, weight, None, *options)
    return _join(F.batch_norm(plain, running_mean, running_var, weight, bias, *options), moved)


def _split(tensor: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Primal and tangent; no tangent where another argument has one, too."""
    if any(one is not None and _unpack(one)[1] is not None for one in others):
        return tensor, None
    return _unpack(tensor)


def _unpack(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return primal, tangent


def _join(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual
