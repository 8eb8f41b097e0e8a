"""What a classifier cheats with: a mode that looks at one small place, and what is cut out there.

Of every mode the place is found where its map lies, on the inputs that use it most. What these hold
there is pasted over other inputs: where most of them become the mode's class, a few pixels decide,
and no one need have told what they show.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.attribution.targets import Logit
from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.data import Inputs, as_inputs
from condec.explanation.mode import mode_map
from condec.explanation.site import rows_in
from condec.modes import Modes
from condec.network import refuse_training, run_model

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

LIMIT: Final = 0.5
"""Share of other inputs that a place sends to a class, beyond which it is suspected."""
_LEAST_USERS: Final = 3
_MOST_OTHERS: Final = 500
"""Inputs over which places are pasted: of more, so many of them, drawn at random."""
_ROUNDING: Final = 1e-6


@short_repr
@dataclass(frozen=True, eq=False)
class Shortcuts:
    """How much a small place decides, mode by mode; from `find_shortcuts`.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a mode, those first that send most: `mode` (row of atoms), `label` (the class that
        is predicted where the mode is used), `share` of its loadings there, `n` inputs looked at,
        `cells` (the fewest pixels that hold 80 % of its map), `others` (inputs of other classes,
        all or 500 drawn at random, that are pasted over), `sent` (share of these that are predicted
        as the label once the place is pasted over them) and `control` (the same, pasted from other
        inputs of other classes).
    maps : Tensor of shape [row, y, x]
        Of each row of the table, where the mode raises the class; of sum 1.
    places : Tensor of shape [row, y, x], bool
        What is pasted.
    donors : list of list of int
        Of each row, the samples of the store that it is pasted from.
    left_out : dict of int to str
        Modes that have no row, and why.
    """

    table: "pandas.DataFrame"
    maps: Tensor
    places: Tensor
    donors: list[list[int]]
    left_out: dict[int, str]
    _inputs: Inputs = field(repr=False)
    _where: dict[int, int] = field(repr=False)
    _predictions: Tensor = field(repr=False)
    _after: list[Tensor] = field(repr=False)

    @property
    def suspects(self) -> "pandas.DataFrame":
        """Return the rows that send more than half of other inputs beyond the control; or none."""
        return self.table[self.table["sent"] - self.table["control"] > LIMIT]

    def draw(self, n_rows: int = 4) -> "Figure":
        """Draw what each of the first rows looks at, and other inputs with it pasted in.

        Three inputs that use the mode most, the mode's map, two other inputs, and the same with
        the place of the first, outlined, and what they are predicted as then.
        """
        from condec.figures.sheets import Picture, sheet

        drawn = {}
        for row, record in enumerate(self.table[:n_rows].to_dict("records")):
            label, place = record["label"], self.places[row]
            indices = [self._where[i] for i in self.donors[row][:3]]
            shown = [self._inputs.picture(index) for index in indices]
            others = drawn_others(self._predictions, label)
            # Those that get what the first donor holds, a third and two thirds through.
            turn = len(self.donors[row])
            chosen = [k * len(others) // 3 // turn * turn for k in (1, 2)]
            others = [others[i] for i in chosen]
            plain = [self._inputs.picture(self._where[i]) for i in others]
            was = [int(self._predictions[i]) for i in others]
            drawn[
                f"mode {record['mode']}, label {label}\nsends {record['sent']:.0%} to it\n"
                f"control {record['control']:.0%}"
            ] = [
                *(Picture(one, f"predicted {label}", place) for one in shown),
                Picture(shown[0], "mode's map", values=self.maps[row]),
                *(
                    Picture(*one)
                    for one in zip(plain, (f"predicted {n}" for n in was), strict=True)
                ),
                *(
                    Picture(torch.where(place[..., None], shown[0], one), f"now {to}", place)
                    for one, to in zip(plain, self._after[row][chosen].tolist(), strict=True)
                ),
            ]
        return sheet(drawn)

    def pairs(self, row: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inputs of other classes, and the same with the place of a row pasted in.

        OptionError: there is no such row.
        """
        if row not in range(len(self.table)):
            raise OptionError(
                f"Shortcuts: no row {row}; the table has {len(self.table)}, from 0 on"
            )
        label = int(self.table["label"].iloc[row])
        others = drawn_others(self._predictions, label)
        images, donors = (
            self._inputs.batch(self._where[i] for i in some) for some in (others, self.donors[row])
        )
        return images, pasted(images, donors, self.places[row])


def find_shortcuts(
    model: nn.Module, data: Any, modes: Modes, *, n_inputs: int = 10, area: float = 0.1
) -> Shortcuts:
    """Look for modes with which a few pixels decide for a class.

    The map of a mode is the mean of `mode_map` to its class's logit, each input's scaled to sizes
    of sum 1, over the `n_inputs` of that class that use the mode most, without those where it
    raises the class nowhere; then the mean over a square around every pixel, a third as wide as one
    of the share `area`; of that, what is above 0. In deep networks the signs of neighbouring pixels
    scatter: means leave what inputs and neighbours have in common. A mode for which nothing is left
    has no row. Pasted are the pixels where the map is largest: those that hold 80 % of it, and at
    most the share `area` of all.
    An honest class needs more than a few pixels; measured on honest networks in the benchmarks.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; it is not changed.
    data : as `as_inputs` takes it
        Images that hold the samples of ``modes.store``. Labels are not used.
    modes : Modes
        Of contributions. Fewer than 3 inputs of one class that use a mode are too few: it is left
        out.
    n_inputs : int
    area : float
        Above 0, at most 1.

    Raises
    ------
    OptionError
        A number out of range.
    DataError
        Inputs that are no images [channel, y, x], or lack samples; no predictions in the store; no
        mode that is used often enough; all inputs of one class.

    Examples
    --------
    >>> import condec, tempfile
    >>> from condec.testing.models import small_resnet
    >>> model, images = small_resnet(), torch.rand(40, 1, 8, 8)
    >>> store = condec.collect(model, images, "block1", out=tempfile.mkdtemp(), progress=False)
    >>> fitted = condec.fit(condec.PCA(n_modes=2), store.matrix("block1"))
    >>> modes = condec.Modes.build(fitted.dictionary, store, "block1")
    >>> try:
    ...     find_shortcuts(model, images, modes)
    ... except condec.DataError as error:
    ...     print(str(error)[:52])
    find_shortcuts: all 40 inputs are predicted as one c
    """
    at_least("find_shortcuts", _LEAST_USERS, n_inputs=n_inputs)
    if not 0 < area <= 1:
        raise OptionError(f"find_shortcuts: area must be above 0 and at most 1; got {area}")
    refuse_training(model)
    inputs, predictions = as_inputs(data), modes.store.predictions
    _check(inputs, modes)
    where = rows_in(inputs, modes, range(len(predictions)), "find_shortcuts")
    onehot = torch.nn.functional.one_hot(predictions).to(modes.loadings)
    by_class = modes.loadings.clamp(min=0).T @ onehot

    def pictures(rows: Iterable[int]) -> Tensor:
        return inputs.batch(where[row] for row in rows)

    rows, left_out = list[_Row](), dict[int, str]()
    for mode, sums in enumerate(by_class):
        seen = _look(model, modes, mode, sums, pictures, n_inputs=n_inputs, area=area)
        if isinstance(seen, str):
            left_out[mode] = seen
        else:
            rows.append(seen)
    if not rows:
        raise DataError(
            f"find_shortcuts: {modes.site.key}: no mode has a place: each is "
            f"{', or '.join(sorted({*left_out.values()}))}; collect more inputs, or take fewer "
            "modes"
        )
    import pandas

    rows.sort(key=lambda row: row.record["control"] - row.record["sent"])
    return Shortcuts(
        pandas.DataFrame([row.record for row in rows]), torch.stack([row.map for row in rows]),
        torch.stack([row.place for row in rows]), [row.donors for row in rows], left_out,
        inputs, where, predictions, [row.after for row in rows],
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """What there is of one mode in `Shortcuts`."""

    record: dict[str, Any]
    map: Tensor
    place: Tensor
    donors: list[int]
    after: Tensor


def _look(
    model: nn.Module, modes: Modes, mode: int, sums: Tensor,
    pictures: Callable[[Iterable[int]], Tensor], *, n_inputs: int, area: float,
) -> _Row | str:  # fmt: skip
    """Paste the place of one mode, of which `sums` are the loadings by class; or say why not."""
    label, predictions = int(sums.argmax()), modes.store.predictions
    loading = modes.loadings[:, mode]
    used = ((predictions == label) & (loading > 0)).nonzero().flatten()
    top = used[loading[used].argsort(descending=True, stable=True)][:n_inputs].tolist()
    if len(top) < _LEAST_USERS:
        return f"used by fewer than {_LEAST_USERS} inputs of one class"
    donors = pictures(top)
    place_map = _place_map(model, donors, modes, mode, label, area=area)
    if place_map is None:
        return "raising its class nowhere in the inputs that use it most"
    region, place = _place(place_map, area)
    others = drawn_others(predictions, label)
    plain = pictures(others)
    least = plain[loading[others].argsort(stable=True)[:n_inputs]]
    sent, control = (_predicted(model, pasted(plain, some, place)) for some in (donors, least))
    record = {
        "mode": mode, "label": label, "share": float(sums[label] / sums.sum()), "n": len(top),
        "cells": region, "others": len(others),
    } | {
        name: float((after == label).double().mean())
        for name, after in (("sent", sent), ("control", control))
    }  # fmt: skip
    return _Row(record, place_map, place, top, sent)


def drawn_others(predictions: Tensor, label: int) -> list[int]:
    """Return the rows of other classes, in order; of more than 500, so many drawn at random.

    Not every k-th: where labels come in turns, all of these would be of one class.
    """
    others = (predictions != label).nonzero().flatten()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    drawn: list[int] = others[order[:_MOST_OTHERS].sort().values].tolist()
    return drawn


def pasted(images: Tensor, donors: Tensor, place: Tensor) -> Tensor:
    """Put what donors hold at a place, [y, x], over images: donor after donor, over and over."""
    turns = donors[torch.arange(len(images)) % len(donors)]
    return torch.where(place.to(images.device), turns, images)


def _check(inputs: Inputs, modes: Modes) -> None:
    if len(inputs.sample_shape) != 3:
        raise DataError(
            "find_shortcuts: places are cut out of images [channel, y, x]; got inputs of shape "
            f"{list(inputs.sample_shape)}"
        )
    predictions = modes.store.predictions
    if bool((predictions < 0).any()):
        raise DataError(
            f"find_shortcuts: {modes.store.path} lacks predictions: the model has no outputs "
            "[sample, label] to say which class an input is sent to"
        )
    if len({*predictions.tolist()}) < 2:
        raise DataError(
            f"find_shortcuts: all {len(predictions)} inputs are predicted as one class; others are "
            "needed, over which to paste"
        )


def _place_map(
    model: nn.Module, images: Tensor, modes: Modes, mode: int, label: int, *, area: float
) -> Tensor | None:
    """Return where a mode raises a class, of sum 1; None where it does so in none of the images."""
    n_units = modes.store.info(modes.site).n_units
    weights = modes.atoms[mode].view(-1, n_units).abs().sum(0)[None]
    total = mode_map(model, images, modes.site, weights=weights, target=Logit(label)).total[0]
    total = total.sum(1).double().cpu()
    sizes = total.abs().sum((1, 2), keepdim=True)
    some = (total.clamp(min=0).sum((1, 2), keepdim=True) > _ROUNDING * sizes).flatten()
    if not bool(some.any()):
        return None
    mean, side = (total[some] / sizes[some]).mean(0), math.sqrt(area * total[0].numel())
    around = int(side / 6)  # pixels on either side
    pooled = torch.nn.functional.avg_pool2d(
        mean[None], 2 * around + 1, 1, around, count_include_pad=False
    )
    raising = pooled[0].clamp(min=0)
    return raising / raising.sum() if float(raising.sum()) > _ROUNDING else None


def _place(place_map: Tensor, area: float) -> tuple[int, Tensor]:
    """Return how many pixels hold 80 % of a map, and the mask of those that are pasted."""
    from condec.figures.places import region

    n_cells = int(region(place_map.numpy()).sum())
    n_pasted = min(n_cells, max(1, int(area * place_map.numel())))
    largest = place_map.flatten().argsort(descending=True, stable=True)[:n_pasted]
    place = torch.zeros(place_map.numel(), dtype=torch.bool)
    place[largest] = True
    return n_cells, place.view(place_map.shape)


@torch.no_grad()
def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    return run_model(model, prepare_inputs(model, images)).argmax(1).cpu()
