"""Matrix products that go over the codes in use only: on a CPU, most of a step is saved.

Where many entries are not 0, on a GPU, in half precision and for small steps, they are the plain
products. A gradient of weights has a row for every mode in use, and is added in place to a dense
one that the engine keeps from step to step: new memory costs as much as the optimiser.
"""

import warnings
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW: Final = 0.05
"""Share of entries that are not 0 up to which going over them is faster (2 threads and 1, 2,048
units, 2,048 and 6,144 modes, 128 rows)."""
_LARGE: Final = 30_000_000
"""Products from which it is worth looking."""

Gradients = tuple[Tensor | None, Tensor | None]


def decoded(loadings: Tensor, atoms: Tensor) -> Tensor:
    """Return ``loadings @ atoms``, for loadings that get no gradient where they are 0."""
    if not _worth(loadings, atoms.shape[1]):
        return loadings @ atoms
    found: Tensor = _Decoded.apply(loadings, atoms)  # type: ignore[no-untyped-call]
    return found


def encoded(rows: Tensor, weight: Tensor) -> Tensor:
    """Return ``rows @ weight.T``, for a gradient that comes from few of its entries."""
    if not _worth(rows, len(weight)):
        return rows @ weight.T
    found: Tensor = _Encoded.apply(rows, weight)  # type: ignore[no-untyped-call]
    return found


def mean_absolute(matrix: Tensor) -> Tensor:
    """Return ``matrix.abs().mean()``, in one pass, and one more for its gradient."""
    found: Tensor = _MeanAbsolute.apply(matrix)  # type: ignore[no-untyped-call]
    return found


def products_at(where: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return entries of ``left @ right.T`` where another matrix is not 0; any others elsewhere.

    Large ones look at values: fits of that size never run as one on a CPU.
    """
    if _worth(left, len(right)) and _few(where):
        return _Codes(where).dots(left, right)
    return left @ right.T


def _worth(left: Tensor, n_columns: int) -> bool:
    kind = left.device.type
    large = left.numel() * n_columns >= _LARGE
    return large and kind == "cpu" and not torch.is_autocast_enabled(kind)


def _few(matrix: Tensor) -> bool:
    return int(matrix.count_nonzero()) <= _FEW * matrix.numel()


class _Codes:
    """Entries of a matrix [sample, mode] that are not 0, by sample and by mode."""

    def __init__(self, matrix: Tensor) -> None:
        self.shape = matrix.shape
        self.rows, self.modes = matrix.nonzero(as_tuple=True)
        self.values = matrix[self.rows, self.modes]
        self.starts = torch.searchsorted(self.rows, torch.arange(len(matrix) + 1))

    def times(self, right: Tensor) -> Tensor:
        """Return Z R, with Z these entries."""
        return F.embedding_bag(
            self.modes, right, self.starts[:-1], per_sample_weights=self.values, mode="sum"
        )

    def transposed_times(self, right: Tensor) -> Tensor:
        """Return Z^T R, sparse: a row for every mode in use."""
        order = self.modes.argsort(stable=True)
        used, counts = torch.unique_consecutive(self.modes[order], return_counts=True)
        starts = counts.cumsum(0) - counts
        part = F.embedding_bag(
            self.rows[order], right, starts, per_sample_weights=self.values[order], mode="sum"
        )
        size = (self.shape[1], right.shape[1])
        return torch.sparse_coo_tensor(
            used[None], part, size, is_coalesced=True, check_invariants=False
        )

    def dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Return entries of L R^T where Z has some, 0 elsewhere; dense."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            zeros = torch.zeros_like(self.values)
            where = torch.sparse_csr_tensor(
                self.starts, self.modes, zeros, tuple(self.shape), check_invariants=False
            )
        found = torch.sparse.sampled_addmm(where, left, right.T).values()
        return left.new_zeros(self.shape).index_put_((self.rows, self.modes), found)


class _Saving(torch.autograd.Function):
    """Keeps its inputs for the backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)


def _together(product: Any) -> Any:
    """Make the rule for several fits that run as one: the plain product."""
    return staticmethod(lambda _, axes, *inputs: (torch.func.vmap(product, axes)(*inputs), 0))


class _Decoded(_Saving):
    @staticmethod
    def forward(loadings: Tensor, atoms: Tensor) -> Tensor:
        return _Codes(loadings).times(atoms) if _few(loadings) else loadings @ atoms

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        loadings, atoms = ctx.saved_tensors
        first, second = ctx.needs_input_grad
        if not _few(loadings):
            return gradient @ atoms.T if first else None, loadings.T @ gradient if second else None
        codes = _Codes(loadings)
        return (
            codes.dots(gradient, atoms) if first else None,
            codes.transposed_times(gradient) if second else None,
        )

    vmap = _together(torch.matmul)


class _Encoded(_Saving):
    @staticmethod
    def forward(rows: Tensor, weight: Tensor) -> Tensor:
        return rows @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        rows, weight = ctx.saved_tensors
        first, second = ctx.needs_input_grad
        if not _few(gradient):
            return gradient @ weight if first else None, gradient.T @ rows if second else None
        codes = _Codes(gradient)
        return (
            codes.times(weight) if first else None,
            codes.transposed_times(rows) if second else None,
        )

    vmap = _together(F.linear)


class _MeanAbsolute(_Saving):
    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(matrix, 1)
        return norm / matrix.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (matrix,) = ctx.saved_tensors
        sign: Tensor = matrix.sgn()
        return sign.mul_(gradient / matrix.numel())
