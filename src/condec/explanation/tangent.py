"""Forward-mode derivatives of convolutions and batch norm at the price of one more call.

torch's own rule for a convolution also convolves with a tangent of the weights that is zero
everywhere, and its rule for batch norm goes through a chain of elementwise operations. Both
functions are affine in their input, so the tangent goes through the same function without its
offset; measured in benchmarks/mode_map.py. torch's rule for group norm fails where channels lie
last in memory, so it gets them laid as usual. Nothing else is touched.
"""

import warnings
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

_GROUP_NORMS: Final = (F.group_norm, torch.group_norm)


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """Make a dual number of the one level there is.

    As torch's own function does, which compiles rules first that hardly an operation needs.
    """
    return torch._make_dual(primal, tangent, level=0)


def compile_rules() -> None:
    """Let torch compile the rules that it has for few operations; once, for about a second."""
    with warnings.catch_warnings():
        # By a helper that torch has deprecated itself.
        warnings.filterwarnings("ignore", "`?torch.jit", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))  # type: ignore[no-untyped-call]


class AffineTangents(TorchFunctionMode):
    """Inside it, dual tensors pass convolutions and batch norm (in evaluation) fast."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Run `func`, with the tangent apart where it is affine."""
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func in _GROUP_NORMS:
            return _group_norm(func, *args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,  # noqa: A002  # torch's own names, as callers may give them
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    def run(x: Tensor, offset: bool) -> Tensor:
        return func(x, weight, bias if offset else None, *args, **kwargs)

    return _affine(run, input, weight, bias)


def _batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    def run(x: Tensor, offset: bool) -> Tensor:
        if offset or running_mean is None:
            mean, shift = running_mean, bias
        else:
            mean, shift = torch.zeros_like(running_mean), None
        return F.batch_norm(x, mean, running_var, weight, shift, training, *args, **kwargs)

    if training or running_mean is None:
        return run(input, True)
    return _affine(run, input, running_mean, running_var, weight, bias)


def _group_norm(
    func: Callable[..., Tensor],
    input: Tensor,  # noqa: A002
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    return func(input.contiguous(), *args, **kwargs)


def _affine(run: Callable[[Tensor, bool], Tensor], given: Tensor, *others: Tensor | None) -> Tensor:
    """Run primal and tangent apart, the tangent without offset, unless other arguments move."""
    primal, tangent = forward_ad.unpack_dual(given)  # type: ignore[no-untyped-call]
    moving = (forward_ad.unpack_dual(o).tangent for o in others if o is not None)  # type: ignore[no-untyped-call]
    if tangent is None or any(one is not None for one in moving):
        return run(given, True)
    moved = run(tangent, False)
    return dual(run(primal, True), moved)
