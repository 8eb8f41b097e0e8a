"""Rows of the matrix that was decomposed: which are held out, and of which sample each one is."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from condec.basis.errors import OptionError
from condec.basis.shapes import Loadings, Mask, RowIndex, SampleIndex
from condec.network import Site
from condec.store import Store


def summed(encoded: Iterable[Tensor], samples: RowIndex, n_places: SampleIndex) -> Loadings:
    """Add the loadings of kept positions by sample, as many times as there are others for each."""
    sums, at = torch.zeros(()), 0
    for part in encoded:
        if not at:
            sums = part.new_zeros(len(n_places), part.shape[1])
        sums.index_add_(0, samples[at : at + len(part)], part)
        at += len(part)
    kept = torch.bincount(samples, minlength=len(n_places))
    return sums * (n_places / kept.clamp(min=1))[:, None]


def refuse_places(n_rows: int, store: Store, site: Site) -> None:
    """Refuse to encode samples by a dictionary that was fitted to the places of the store."""
    if n_rows == store.rows(site, rows="positions").shape[0]:
        raise OptionError(
            f"Modes.build: the dictionary was fitted to {n_rows} rows, the kept positions of "
            f'{site.key}, and not to samples: give rows="positions"'
        )


def whole_samples(rows: Tensor, samples: RowIndex, n_samples: int) -> Mask:
    """Return the samples of held-out rows; OptionError where some of a sample's are fitted."""
    apart, fitted = (
        torch.zeros(n_samples, dtype=torch.bool).index_fill_(0, samples[some], True)
        for some in (rows, ~rows)
    )
    if mixed := int((apart & fitted).sum()):
        raise OptionError(
            f"held_out_rows: of {mixed} samples, some positions are held out and some are not: "
            "fit the matrix as Store.rows or Store.matrix gives it, which holds out whole samples, "
            "or give rows by Store.places"
        )
    return apart


def held_out_mask(rows: Tensor | Sequence[int] | None, n_samples: int) -> Mask:
    """Return the mask of held-out rows; OptionError where a number is that of no row."""
    mask = torch.zeros(n_samples, dtype=torch.bool)
    given = torch.as_tensor([] if rows is None else rows).cpu()
    if len(given) and (given.dtype is torch.bool or given.is_floating_point()):
        wrong = f"held_out_rows: expected numbers of rows, got {given.dtype}"
        raise OptionError(f"{wrong}. Of a mask take mask.nonzero().flatten()")
    index = given.to(torch.int64)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n_samples:
        raise OptionError(f"held_out_rows: expected rows 0 to {n_samples - 1}; got {index}")
    mask[index] = True
    return mask
