"""Which tensors cut a network: all that flows from its input to its output passes them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from condec.basis.errors import ModelError


def path_shares(output: Tensor, inputs: Tensor) -> Callable[[Tensor], bool]:
    """A function that says whether every path from `inputs` to `output` passes a tensor.

    In the autograd graph from the output to the input, a node lies on every path if
    (paths above it) x (paths below it) equals the number of all paths.

    Raises
    ------
    ModelError
        The output does not depend on the input.
    """
    order = _topological(output.grad_fn)
    above: dict[Any, int] = dict.fromkeys(order, 0)
    below: dict[Any, int] = dict.fromkeys(order, 0)
    if order:
        above[order[0]] = 1
    for node in order:
        for child, _ in node.next_functions:
            if child is not None:
                above[child] += above[node]
    for node in reversed(order):
        is_input = getattr(node, "variable", None) is inputs
        children = (child for child, _ in node.next_functions if child is not None)
        below[node] = 1 if is_input else sum(below[child] for child in children)
    total = below[order[0]] if order else 0
    if not total:
        raise ModelError(
            "the output does not depend on the input through operations that autograd can "
            "follow, so no site can carry its contributions"
        )

    def on_every_path(tensor: Tensor) -> bool:
        node = tensor.grad_fn
        return node in above and above[node] * below[node] == total

    return on_every_path


def _topological(root: Any) -> list[Any]:
    """Nodes of the autograd graph from `root` on, every node before the ones it leads to."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False)] if root is not None else []
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None)
    return order[::-1]
