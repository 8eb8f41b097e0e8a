r"""Where receptive fields come from, exactly: what each unit, and so each mode, brings to them.

By the chain rule the field of a cell's rate y in the clip x is a sum over the units u of a site,

.. math:: \frac{dy}{dx} = \sum_u \frac{dy}{dh_u}\,\frac{dh_u}{dx} + \text{what passes the site by}

and the field of a *part* (a mode, a group of units) that answers for the share :math:`r_u` of
every unit is :math:`\sum_u r_u\,(dy/dh_u)(dh_u/dx)`: a vector-Jacobian product. Parts whose shares
add up to 1 have fields that add up to the whole, at every frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from condec.attribution import prepare_inputs
from condec.attribution.reduce import unit_numbers
from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.data.inputs import Inputs
from condec.modes import Modes
from condec.network import Site, find_sites, record, refuse_training, run_model, units_of
from condec.retina.checks import is_clips
from condec.retina.fields import RankOne, ReceptiveFields, separate

if TYPE_CHECKING:
    import pandas

FAINT: Final = 0.1
"""Fields shorter than this share of the cell's median are too faint to have a sign."""
PAST: Final = "past the site"
LEFT: Final = "left over"
OTHERS: Final = "other modes"
_AT_ONCE: Final = 64


@short_repr
@dataclass(frozen=True, eq=False)
class FieldSources:
    r"""What parts of a site bring to the receptive fields of cells. Made by `field_sources`.

    With the field :math:`F(t)` of a cell and that of a part :math:`F_m(t)`, products summed over
    pixels and history, and :math:`p(t)` the sign of the field (1 ON, -1 OFF):

    Attributes
    ----------
    names : tuple of str
        Of the parts; the last is what reaches the cell past the site.
    share : Tensor of shape [cell, part]
        Covariance over time of the part's field with the whole over the variance of the whole,
        :math:`\sum_t F_m (F - \bar F) / \sum_t F (F - \bar F)`. Shares of a cell add up to 1; below
        0 is what works against the change. NaN for a cell whose field never changes.
    amount : Tensor of shape [sample, cell, part]
        :math:`p\, F_m F / |F|`: how much of the field's length the part gives, above 0 where it
        makes the cell more ON. Amounts add up to :math:`p\,|F|`.
    rows, cells : Tensor of shape [sample] and [cell], int64
        As in `ReceptiveFields`.
    """

    names: tuple[str, ...]
    share: Float[torch.Tensor, "cell part"]
    amount: Float[torch.Tensor, "sample cell part"]
    rows: Int[torch.Tensor, " sample"]
    cells: Int[torch.Tensor, " cell"]

    def flips(self) -> "pandas.DataFrame":
        """Find where fields change their sign, and how much of each change is of which part.

        From one frame to the next of those that are looked at; fields shorter than a tenth of the
        cell's median are passed over. The shares of a change (of the amount, over parts) add up to
        1. Columns: ``cell`` (output of the model), ``before`` and ``after`` (samples), ``to`` (ON
        or OFF), ``change`` of the amount, and the ``part`` that has most of it, with its ``share``.
        """
        import pandas

        rows = []
        for place, cell in enumerate(self.cells.tolist()):
            amount = self.amount[:, place]
            total = amount.sum(1)
            clear = (total.abs() > FAINT * total.abs().median()).nonzero().flatten()
            turned = (total[clear].sign().diff() != 0).nonzero().flatten()
            for before, after in zip(clear[turned], clear[turned + 1], strict=True):
                change = amount[after] - amount[before]
                share = change / change.sum()
                part = int(share.argmax())
                rows.append({
                    "cell": cell, "before": int(self.rows[before]), "after": int(self.rows[after]),
                    "to": "ON" if total[after] > 0 else "OFF", "change": float(change.sum()),
                    "part": self.names[part], "share": float(share[part]),
                })  # fmt: skip
        columns = ["cell", "before", "after", "to", "change", "part", "share"]
        return pandas.DataFrame(rows, columns=columns)

    def table(self) -> "pandas.DataFrame":
        """Return one row for each cell and part.

        Columns: ``cell`` (output of the model), ``part``, ``share``, ``flips``: of how many changes
        of sign it has most.
        """
        import pandas

        led = self.flips().groupby(["cell", "part"]).size().to_dict()
        rows = [
            {"cell": c, "part": part, "share": float(share), "flips": led.get((c, part), 0)}
            for c, shares in zip(self.cells.tolist(), self.share, strict=True)
            for part, share in zip(self.names, shares, strict=True)
        ]
        return pandas.DataFrame(rows)


@short_repr
@dataclass(frozen=True, eq=False)
class PartWeights:
    """How much of every unit each part answers for, frame by frame.

    Attributes
    ----------
    names : tuple of str
    values : Tensor of shape [sample, part, unit]
        From 0 to 1; over parts they add up to 1.
    """

    names: tuple[str, ...]
    values: Float[torch.Tensor, "sample part unit"]

    @classmethod
    def of_groups(cls, groups: dict[str, Sequence[int]], n_units: int, n: int) -> "PartWeights":
        """Return parts that are groups of units, the same at `n` frames; the rest is left over.

        OptionError: a unit is named twice, or is none of 0 to ``n_units - 1``.
        """
        values = torch.zeros(len(groups) + 1, n_units, dtype=torch.float64)
        of = dict[int, str]()
        for row, (name, units) in zip(values, groups.items(), strict=False):
            for unit in map(int, units):
                if not 0 <= unit < n_units:
                    raise OptionError(
                        f"PartWeights.of_groups: {name}: no unit {unit}; expected 0 to "
                        f"{n_units - 1}"
                    )
                if unit in of:
                    raise OptionError(
                        f"PartWeights.of_groups: unit {unit} is named twice, in {of[unit]} and in "
                        f"{name}; name each in one group, once"
                    )
                of[unit], row[unit] = name, 1
        values[-1] = 1 - values.sum(0)
        return cls((*groups, LEFT), values.expand(n, -1, -1))

    @classmethod
    def of_modes(cls, modes: Modes, rows: Tensor, *, n_modes: int = 64) -> "PartWeights":
        r"""Return the responsibilities of modes at some samples.

        With loadings z and atoms D of what was decomposed (contributions, or activations), mode m
        answers at unit u for

        .. math:: r_{mu} = z_m D_{mu} / \sum_{m'} z_{m'} D_{m'u},

        products against the sign of the decomposed row counting 0 (`condec.explanation.shares`);
        the positive and the negative half of a unit are added before. At most `n_modes` modes, the
        largest by loading times length of the atom, are parts; all others are one, and what no
        mode answers for is ``left over``: units without contribution, and offsets.

        Raises DataError: the modes are of positions, whose sums over a sample do not divide its
        units.
        """
        at_least("PartWeights.of_modes", 1, n_modes=n_modes)
        if modes.rows != "samples":
            raise DataError(
                f"PartWeights.of_modes: {modes.site.key}: expected modes of whole samples; got "
                f"those of {modes.rows}. Fit Store.matrix(site), and build modes without rows"
            )
        matrix = modes.store.matrix(modes.site, quantity=modes.quantity, sign=modes.sign)[rows]
        loadings, atoms = modes.loadings[rows].double(), modes.atoms.double()
        halves = 2 if modes.sign == "concat" else 1
        size = loadings.sum(0) * atoms.norm(dim=1)
        order = size.argsort(descending=True, stable=True)
        shown, others = order[:n_modes].sort().values, order[n_modes:]
        offset = atoms.new_zeros(1) if modes.encoder is None else modes.encoder.offset.double()

        def summed(products: Tensor) -> Tensor:
            kept: Tensor = products.clamp(min=0)
            return kept.view(*kept.shape[:-1], halves, -1).sum(-2)

        found = []
        for some in torch.split(torch.arange(len(rows)), _AT_ONCE):
            sign = matrix[some].double().sign()
            said = summed(loadings[some, :, None] * atoms * sign[:, None])
            total = said.sum(1) + summed(offset * sign)
            share = said * torch.where(total > 0, 1 / total, 0)[:, None]
            rest = 1 - share.sum(1, keepdim=True)
            kept = [share[:, shown], share[:, others].sum(1, keepdim=True), rest.clamp(min=0)]
            found.append(torch.cat([kept[0], *kept[1 if len(others) else 2 :]], 1))
        names = [f"mode {int(modes.ids[mode])}" for mode in shown]
        return cls((*names, *([OTHERS] if len(others) else []), LEFT), torch.cat(found))


def field_sources(
    model: nn.Module, inputs: Inputs, site: Site | str, fields: ReceptiveFields,
    weights: PartWeights, *, batch_size: int = 64,
) -> FieldSources:  # fmt: skip
    """Divide the change of receptive fields among parts of a site.

    Takes as many backward passes for every cell and batch as there are units that reach the cell,
    or parts, whichever are fewer.

    Parameters
    ----------
    model : torch.nn.Module
        From clips [sample, history, y, x] to rates [sample, cell]; in evaluation mode.
    inputs : Inputs
    site : Site or str
    fields : ReceptiveFields
        Of this model and these inputs: which rows and cells, and where cells are ON or OFF.
    weights : PartWeights
        At the same frames.
    batch_size : int

    Raises
    ------
    OptionError, ModelError, SiteError
        A size below 1; the model is in training mode, or does not run; there is no such site.
    DataError
        Samples are no clips; weights are of other frames or units.
    """
    at_least("field_sources", 1, batch_size=batch_size)
    by_unit = weights.values.shape[1] >= weights.values.shape[2]
    cells, places = fields.cells.tolist(), torch.split(torch.arange(len(fields)), batch_size)

    def batches(split: bool) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        for at in places:
            own = weights.values[at]
            some = torch.eye(own.shape[2]).expand(len(at), -1, -1) if by_unit else own
            some = some if split else some[:, :0]
            yield at, [*_parts(model, inputs, site, cells, fields.rows[at], some)]

    _check(inputs, weights, len(fields))
    mean = torch.zeros(())
    for _, found in batches(split=False):
        mean = mean + torch.stack([whole.double().sum(0) for whole, _ in found])
    mean = mean / max(len(fields), 1)
    moves, amounts = list[Tensor](), list[Tensor]()
    for at, found in batches(split=True):
        both = [
            torch.stack([
                _products(whole, parts, whole.double() - mean[place]),
                _products(whole, parts, whole.double() / _length(whole)),
            ])
            for place, (whole, parts) in enumerate(found)
        ]  # fmt: skip
        move, amount = torch.stack(both, 2)  # [sample, cell, basis + 1], the last is the whole
        for given, into in ((move, moves), (amount, amounts)):
            own = given[..., :-1]
            if by_unit:
                own = torch.einsum("scu,spu->scp", own, weights.values[at])
            into.append(torch.cat((own, given[..., -1:] - own.sum(2, keepdim=True)), 2))
    moved = torch.cat(moves).sum(0)
    whole = moved.sum(1, keepdim=True)
    return FieldSources(
        names=(*weights.names, PAST),
        share=torch.where(whole > 0, moved / whole, torch.nan),
        amount=torch.cat(amounts) * fields.polarity.double()[..., None],
        rows=fields.rows, cells=fields.cells,
    )  # fmt: skip


def part_fields(
    model: nn.Module, inputs: Inputs, site: Site | str, weights: PartWeights, *, cell: int,
    rows: Sequence[int] | Tensor,
) -> Float[Tensor, "sample part history y x"]:  # fmt: skip
    """Return the field of every part for one cell at some frames, whose weights are given.

    One more part comes last: what reaches the cell past the site. Their sum is the whole field.
    Errors as those of `field_sources`.
    """
    rows = torch.as_tensor(rows)
    _check(inputs, weights, len(rows))
    ((whole, parts),) = _parts(model, inputs, site, [cell], rows, weights.values)
    return torch.cat((parts, (whole - parts.sum(1))[:, None]), 1)


def _check(inputs: Inputs, weights: PartWeights, n_frames: int) -> None:
    is_clips("field_sources", inputs.name, inputs.sample_shape)
    if len(weights.values) != n_frames:
        raise DataError(
            f"field_sources: weights of {len(weights.values)} frames, fields of {n_frames}; give "
            "those of the same frames: PartWeights.of_modes(modes, fields.rows)"
        )


def _parts(
    model: nn.Module, inputs: Inputs, site: Site | str, cells: Sequence[int], rows: Tensor,
    weights: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield of each cell the whole field of some clips, and those of parts [sample, part, ...]."""
    refuse_training(model)
    (at,) = find_sites(model, site)
    with torch.inference_mode(False), torch.enable_grad(), record(model, [at]) as tape:
        clips = prepare_inputs(model, inputs.batch(rows.tolist())).detach().requires_grad_()
        rates = run_model(model, clips)
        hidden = tape.records[at.key]
        units = units_of(at, hidden)
        n_units, numbers = units.count(hidden.shape), unit_numbers(units, hidden.shape)
        if weights.shape[2] != n_units:
            raise DataError(
                f"field_sources: {at.key} has {n_units} units; the weights are of "
                f"{weights.shape[2]}. Give those of modes of this site"
            )
        laid = weights.to(hidden)[:, :, numbers.clamp(min=0)] * (numbers >= 0).to(hidden)
        for cell in cells:
            whole, up = torch.autograd.grad(
                rates[:, cell].sum(), (clips, hidden), retain_graph=True, materialize_grads=True
            )
            parts = whole.new_zeros(len(whole), laid.shape[1], *whole.shape[1:])
            for part in range(laid.shape[1]):
                driven = up * laid[:, part]
                if bool(driven.any()):
                    parts[:, part] = torch.autograd.grad(
                        hidden, clips, driven, retain_graph=True, materialize_grads=True
                    )[0]
            yield whole.detach().cpu(), parts.detach().cpu()


def _products(whole: Tensor, parts: Tensor, along: Tensor) -> Tensor:
    """Multiply every part, and last the whole, with one field a sample: [sample, part + 1]."""
    each = torch.cat((parts, whole[:, None]), 1).flatten(2).double()
    products: Tensor = each @ along.flatten(1)[..., None]
    return products[..., 0]


def _length(fields: Tensor) -> Tensor:
    """Return the length of every field, above 0, to divide by."""
    length: Tensor = torch.linalg.vector_norm(fields.double(), dim=(1, 2, 3), keepdim=True)
    return length.clamp(min=1e-300)


@short_repr
@dataclass(frozen=True, eq=False)
class FlipFields(ReceptiveFields):
    """Fields of a cell before and after one change of its sign: the whole, and its main parts.

    `names` are those of the parts, the whole first, once for before and once for after.
    """

    names: tuple[str, ...] = ()


def fields_of_flip(
    model: nn.Module, inputs: Inputs, site: Site | str, fields: ReceptiveFields,
    sources: FieldSources, weights: PartWeights, *, n_parts: int = 3,
) -> FlipFields:  # fmt: skip
    """Return the fields at the clearest change of sign: with the highest peak before and after.

    Peaks of pictures are over their median for the cell, and the lower of both counts. DataError
    where no field changes its sign.
    """
    flips = sources.flips()
    if flips.empty:
        raise DataError("fields_of_flip: no cell's field changes its sign at these frames")
    peaks = fields.strength * fields.spatial.abs().amax((2, 3))
    peaks = peaks / peaks.median(0).values.clamp(min=1e-30)
    where = {int(row): place for place, row in enumerate(fields.rows)}
    columns = {int(cell): place for place, cell in enumerate(fields.cells)}
    ends = [
        (columns[cell], [where[before], where[after]])
        for cell, before, after in flips[["cell", "before", "after"]].itertuples(index=False)
    ]
    place, at = max(ends, key=lambda one: float(peaks[one[1], one[0]].min()))
    own = PartWeights(weights.names, weights.values[at])
    parts = part_fields(
        model, inputs, site, own, cell=int(fields.cells[place]), rows=fields.rows[at]
    )
    change = (sources.amount[at[1], place] - sources.amount[at[0], place]).abs()
    shown = change.argsort(descending=True, stable=True)[:n_parts]
    both = separate(torch.cat((parts.sum(1, keepdim=True), parts[:, shown]), 1).flatten(0, 1))
    top, left = fields.corners[place].tolist()
    height, width = fields.spatial.shape[-2:]
    of_cell = replace(
        both, spatial=both.spatial[:, top : top + height, left : left + width].clone()
    )
    found = {name: getattr(of_cell, name)[:, None] for name in RankOne.__annotations__}
    names = ("the whole", *(sources.names[part] for part in shown.tolist()))
    seen = ReceptiveFields(
        **found, rows=fields.rows[at].repeat_interleave(len(names)), cells=fields.cells[[place]],
        corners=fields.corners[[place]],
    )  # fmt: skip
    return FlipFields(**vars(seen.aligned()), names=2 * names)
