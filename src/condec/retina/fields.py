"""Receptive fields from one moment to the next: the part of the clip that a cell responds to.

The field of a cell at one frame is the gradient of its rate in the clip that led to it. It is
separated into one picture and one time course (Melander et al. 2026, Figure 8).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from condec.attribution import prepare_inputs
from condec.basis.checks import at_least
from condec.basis.errors import DataError, ModelError, OptionError
from condec.basis.records import short_repr
from condec.data.inputs import Inputs, spread
from condec.network import frozen_parameters, refuse_training, run_model
from condec.retina.checks import is_clips

_Reduced = TypeVar("_Reduced")

_N_LOOKED_AT: Final = 32
"""Frames from which the place of a cell's field is found before it is cropped."""


@short_repr
@dataclass(frozen=True, eq=False)
class RankOne:
    r"""A picture times a time course, the nearest to each field: :math:`s\,t\,p^T`.

    Attributes
    ----------
    spatial : Tensor of shape [..., y, x]
        Picture of length 1; 0 where the field is 0.
    temporal : Tensor of shape [..., history]
        Time course of length 1, oldest frame first; its largest entry is positive.
    strength : Tensor of shape [...]
        First singular value, in the unit of the field.
    separability : Tensor of shape [...]
        Share of the field's squared entries that is in the product, 0 to 1; NaN where the field
        is 0.
    """

    spatial: Float[torch.Tensor, "... y x"]
    temporal: Float[torch.Tensor, "... history"]
    strength: Float[torch.Tensor, "..."]
    separability: Float[torch.Tensor, "..."]


_PARTS: Final = tuple(RankOne.__annotations__)


@short_repr
@dataclass(frozen=True, eq=False)
class ReceptiveFields(RankOne):
    """Instantaneous receptive fields of some cells at some frames.

    Attributes
    ----------
    spatial : Tensor of shape [sample, cell, y, x]
        Picture of length 1, cropped around the cell (the part that was cropped away counts for
        the length). Positive where light raises the rate.
    temporal, strength, separability : Tensor of shape [sample, cell, history] or [sample, cell]
        As in `RankOne`.
    rows, cells : Tensor of shape [sample] and [cell], int64
        Samples of the inputs, and outputs of the model.
    corners : Tensor of shape [cell, 2], int64
        Row and column, in the whole picture, of the first pixel that is kept.
    """

    rows: Int[torch.Tensor, " sample"]
    cells: Int[torch.Tensor, " cell"]
    corners: Int[torch.Tensor, "cell 2"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def polarity(self) -> Float[torch.Tensor, "sample cell"]:
        """Return 1 where the picture's largest entry is positive (ON), else -1; 0 without field."""
        flat = self.spatial.flatten(2)
        return flat.gather(2, flat.abs().argmax(2, keepdim=True))[..., 0].sign()

    def aligned(self) -> "ReceptiveFields":
        """Return the same fields with signs that do not jump from one frame to the next.

        Where a time course has two lobes of nearly one size, the larger one may change from frame
        to frame, and the sign of the picture with it. Here, each time course instead has a positive
        product with the cell's main one: the first principal direction of all its courses, weighted
        by strength, with a positive largest entry. Products of both stay as they are.
        """
        weighted = (self.strength[..., None] * self.temporal).transpose(0, 1).double()
        main = torch.linalg.eigh(weighted.mT @ weighted).eigenvectors[..., -1]
        main = main * _sign_of_largest(main)[:, None]
        along = torch.einsum("sch,ch->sc", self.temporal.double(), main)
        sign = torch.where(along < 0, -1.0, 1.0).to(self.temporal.dtype)
        return replace(
            self,
            spatial=self.spatial * sign[..., None, None],
            temporal=self.temporal * sign[..., None],
        )

    def select(self, samples: Tensor | Sequence[int]) -> "ReceptiveFields":
        """Return some samples of these, by place or by a mask."""
        chosen = torch.as_tensor(samples)
        return replace(self, **{name: getattr(self, name)[chosen] for name in (*_PARTS, "rows")})


def separate(field: Float[torch.Tensor, "... history y x"]) -> RankOne:
    r"""Find the picture and time course whose product is nearest to a field.

    With the field as a matrix A [history, pixel], the time course is the eigenvector of
    :math:`A A^T` of the largest eigenvalue, and the picture :math:`A^T t / s`.

    Parameters
    ----------
    field : Tensor of shape [..., history, y, x]

    Examples
    --------
    >>> field = torch.tensor([1.0, 2.0])[:, None, None] * torch.tensor([[0.0, -3.0]])
    >>> both = separate(field)
    >>> both.spatial, round(float(both.separability), 4)
    (tensor([[ 0., -1.]]), 1.0)
    """
    matrix = field.flatten(-2).double()
    gram = matrix @ matrix.mT
    temporal = torch.linalg.eigh(gram).eigenvectors[..., -1]
    temporal = temporal * _sign_of_largest(temporal)[..., None]
    picture = (temporal[..., None, :] @ matrix)[..., 0, :]
    strength = torch.linalg.vector_norm(picture, dim=-1)
    there = (strength > 0).double()[..., None]
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)  # all squared entries of the field
    picture = picture / strength[..., None].where(there > 0, 1.0)
    kind = field.dtype
    return RankOne(
        spatial=picture.unflatten(-1, field.shape[-2:]).to(kind),
        temporal=(temporal * there).to(kind),
        strength=strength.to(kind),
        separability=(strength.square() / trace).clamp(max=1.0).to(kind),
    )


def receptive_fields(
    model: nn.Module, inputs: Inputs, *, cells: Sequence[int] | None = None,
    rows: Sequence[int] | Tensor | None = None, crop: int | None = 20, batch_size: int = 64,
) -> ReceptiveFields:  # fmt: skip
    r"""Take the gradient of every cell's rate in the clip, as picture times time course.

    A cell's pictures are all cropped to the same window, the one with the largest sum of squared
    gradients over up to 32 of the frames. Melander et al. 2026, Figure 8: rank-1 SVD, spatial part
    cropped to 20 x 20. Fields are on the CPU, in the order of `rows` and `cells`.

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell]; in evaluation mode.
    inputs : Inputs
        Of clips [history, y, x], oldest frame first.
    cells : sequence of int, optional
        Outputs of the model; all by default.
    rows : sequence of int, optional
        Samples of the inputs; all by default.
    crop : int, optional
        Height and width of the pictures that are kept; None, or a picture that is smaller:
        nothing is cropped.
    batch_size : int

    Raises
    ------
    OptionError
        A cell or row that is not there, none at all, or a size below 1.
    DataError
        Samples are no clips; a clip, a rate or a gradient is not finite (the sample is named).
    ModelError
        The model is in training mode, gives no matrix of rates, or cannot be differentiated.
    """
    refuse_training(model)
    at_least("receptive_fields", 1, batch_size=batch_size, crop=1 if crop is None else crop)
    is_clips("receptive_fields", inputs.name, inputs.sample_shape)
    chosen = _chosen("row", rows, len(inputs))
    some = sorted(set(chosen))
    looked_at = [some[place] for place in spread(len(some), _N_LOOKED_AT)]

    def reduced(rows: list[int], reduce: Callable[[int, Tensor], _Reduced]) -> list[list[_Reduced]]:
        batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        return [_gradients(model, inputs, cells, batch, reduce) for batch in batches]

    energies = reduced(looked_at, lambda _, each: each.double().square().sum((0, 1)).cpu())
    energy = torch.stack([torch.stack(batch) for batch in energies]).sum(0)
    corners, size = _windows(energy, crop)

    def of_cell(place: int, gradient: Tensor) -> RankOne:
        top, left = corners[place].tolist()
        both = separate(gradient)
        kept = both.spatial[..., top : top + size[0], left : left + size[1]]
        parts = vars(replace(both, spatial=kept))
        # Copies: a view would hold all of it.
        return RankOne(**{k: v.to("cpu", torch.float32, copy=True) for k, v in parts.items()})

    batches = [
        {name: torch.stack([getattr(c, name) for c in batch], 1) for name in _PARTS}
        for batch in reduced(chosen, of_cell)
    ]
    return ReceptiveFields(
        **{name: torch.cat([batch[name] for batch in batches]) for name in _PARTS},
        rows=torch.tensor(chosen),
        cells=torch.tensor(range(len(energy)) if cells is None else list(cells)),
        corners=corners,
    )


def _gradients(
    model: nn.Module, inputs: Inputs, cells: Sequence[int] | None, rows: list[int],
    reduce: Callable[[int, Tensor], _Reduced],
) -> list[_Reduced]:  # fmt: skip
    """Reduce each cell's gradient in some clips, named by its place."""
    found = []
    with torch.inference_mode(False), torch.enable_grad(), frozen_parameters(model):
        clips = prepare_inputs(model, inputs.batch(rows)).detach().requires_grad_()
        rates = run_model(model, clips)
        if rates.ndim != 2 or not rates.requires_grad:
            raise ModelError(
                "receptive_fields: expected rates of shape [sample, cell] with a gradient in the "
                f"clip; the model gave {tuple(rates.shape)}, "
                f"{'with' if rates.requires_grad else 'without'} a gradient"
            )
        _check_finite("a rate", rates, inputs, rows)
        for place, cell in enumerate(_chosen("cell", cells, rates.shape[1])):
            (gradient,) = torch.autograd.grad(
                rates[:, cell].sum(), clips, retain_graph=True, materialize_grads=True
            )
            _check_finite(f"the gradient of cell {cell}", gradient, inputs, rows)
            found.append(reduce(place, gradient))
    return found


def _check_finite(what: str, values: Tensor, inputs: Inputs, rows: Sequence[int]) -> None:
    # A sum is finite where all of its terms are, and needs no copy of them.
    kind = torch.promote_types(values.dtype, torch.float32)
    wrong = (~values.flatten(1).sum(1, dtype=kind).isfinite()).nonzero().flatten().tolist()
    if wrong:
        named = ", ".join(repr(inputs.ids[rows[place]]) for place in wrong[:5])
        raise DataError(
            f"{inputs.name}: {what} is NaN or infinite for {len(wrong)} samples of a batch; the "
            f"first are {named}. Check the movie's normalisation and the model's weights"
        )


def _chosen(what: str, given: Sequence[int] | Tensor | None, n: int) -> list[int]:
    """Check the places that were asked for."""
    places = list(range(n)) if given is None else [int(place) for place in given]
    wrong = [place for place in places if not 0 <= place < n]
    if wrong or not places:
        raise OptionError(
            f"receptive_fields: expected {what}s from 0 to {n - 1}, at least one; got "
            f"{wrong[:5] or 'none'}"
        )
    return places


def _windows(energy: Tensor, crop: int | None) -> tuple[Tensor, tuple[int, int]]:
    """Find the first pixel of the window with most energy [cell, 2], and the window's size."""
    height, width = energy.shape[1:]
    size = (height, width) if crop is None else (min(crop, height), min(crop, width))
    # Sums over windows of numbers that sum to 1: ties by rounding alone go to the first.
    share = energy / energy.amax((1, 2), keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
    within = F.avg_pool2d(share[:, None], size, stride=1)[:, 0]
    best = within.flatten(1).argmax(1)
    corners = torch.stack((best // within.shape[2], best % within.shape[2]), 1)
    silent = energy.sum((1, 2)) == 0
    middle = torch.tensor([(height - size[0]) // 2, (width - size[1]) // 2])
    return torch.where(silent[:, None], middle, corners), size


def _sign_of_largest(vectors: Tensor) -> Tensor:
    """Return the sign of the largest entry in size along the last axis; 1 for zeros."""
    largest = vectors.gather(-1, vectors.abs().argmax(-1, keepdim=True))[..., 0]
    return torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)
