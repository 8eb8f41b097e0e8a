"""A superclass edited at several sites together: all its modes, against baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError
from condec.basis.records import short_repr
from condec.effects.choice import EditKind, FixedReplacement, choice_of
from condec.effects.intervals import interval_of_means
from condec.effects.measured import Edits, measure
from condec.effects.rankings import (
    ByModeSum,
    RandomUnits,
    by_units,
    descending,
    member_correlation,
)  # fmt: skip
from condec.effects.samples import held_out
from condec.modes import Modes, label_name

if TYPE_CHECKING:
    import pandas

_WHO: Final = "superclass_control"
_TOP: Final = 5
SuperclassQuantity = Literal["top1", "top5", "probability"]
_QUANTITIES: Final = get_args(SuperclassQuantity)


@short_repr
@dataclass(frozen=True, eq=False)
class SuperclassControl:
    """Accuracy of every held-out sample before and after. Made by `superclass_control`.

    Attributes
    ----------
    sites, counts : tuple of str, tuple of int
        Edited together, and the units ablated or preserved at each.
    modes : tuple of tuple of int
        Original ids of the modes summed at each site.
    rankings : tuple of str
        ``unedited``, ``modes``, ``mean_contribution`` and ``random``: rows of the tensors below.
    members : tuple of int
        Labels of the superclass.
    top1, top5, probability : Tensor of shape [ranking, sample]
        Whether the sample's label is the largest output, or one of the five largest, and its
        probability; means over random draws.
    """

    name: str
    edit: EditKind
    replacement: FixedReplacement
    sites: tuple[str, ...]
    counts: tuple[int, ...]
    modes: tuple[tuple[int, ...], ...]
    rankings: tuple[str, ...]
    labels: Int[torch.Tensor, " sample"]
    label_names: tuple[str, ...] | None
    members: tuple[int, ...]
    top1: Float[torch.Tensor, "ranking sample"]
    top5: Float[torch.Tensor, "ranking sample"]
    probability: Float[torch.Tensor, "ranking sample"]

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row for every ranking and label, a ``member`` or an ``other``."""
        import pandas

        rows = []
        for number, ranking in enumerate(self.rankings[1:], 1):
            for label in sorted(set(self.labels.tolist())):
                mine, name = self.labels == label, label_name(self.label_names, label)
                row: dict[str, object] = {"ranking": ranking, "label": label, "label_name": name}
                row["group"] = "member" if label in self.members else "other"
                row["n_samples"] = int(mine.sum())
                for quantity in _QUANTITIES:
                    means = getattr(self, quantity)[:, mine].mean(1).tolist()
                    row |= {f"{quantity}_unedited": means[0], quantity: means[number]}
                rows.append(row)
        return pandas.DataFrame(rows)

    def means(self, *, n_bootstrap: int = 1000, seed: int = 0) -> "pandas.DataFrame":
        """Return the accuracy on members and others, for every ranking and unedited.

        The 95 % intervals speak of these samples alone.
        """
        import pandas

        members = torch.isin(self.labels, torch.tensor(self.members))
        tables = []
        for group, mine in (("members", members), ("others", ~members)):
            n_labels = len(set(self.labels[mine].tolist()))
            table = pandas.DataFrame({"ranking": self.rankings, "group": group})
            table = table.assign(n_labels=n_labels, n_samples=int(mine.sum()))
            for quantity in _QUANTITIES:
                values = getattr(self, quantity)[:, mine]
                table[quantity] = values.mean(1).tolist()
                bounds = interval_of_means(values, n_bootstrap=n_bootstrap, seed=seed)
                table[f"{quantity}_low"], table[f"{quantity}_high"] = bounds.tolist()
            tables.append(table)
        return pandas.concat(tables, ignore_index=True)


def superclass_control(
    model: nn.Module, data: Any, modes: Modes | Sequence[Modes], members: Sequence[int], *,
    fraction: float, edit: EditKind = "ablate", least_correlation: float = 0.2,
    replacement: FixedReplacement = "zero", n_random: int = 5, seed: int = 0,
    name: str = "superclass", batch_size: int = 64, prove: bool = True,
) -> SuperclassControl:  # fmt: skip
    """Ablate or preserve a superclass at several sites together.

    At every site the modes whose correlation with membership of the superclass is above
    `least_correlation` are added up, each atom with its mean loading on the members
    (`ByModeSum`), and the first ``int(n_units * fraction)`` units of the sum are ablated, or
    preserved, at all sites at once, as Melander et al. 2026 do for dogs. Baselines of equal size
    are the units with the largest mean contribution over the members, and random units.

    Parameters
    ----------
    model, data, edit, replacement, batch_size, prove
        As in `control_curve`.
    modes : Modes, or several
        One for each site; of one store, with the same held-out rows.
    members : sequence of int
        Labels of the superclass, as from `Hierarchy.labels`.
    fraction : float
        Share of every site's units to ablate or preserve.
    n_random, seed : int
        Random draws; 0 leaves them out.
    name : str
        Of the superclass, for tables and figures.

    Raises
    ------
    OptionError, DataError, ModelError
        Two modes of one site, no mode above `least_correlation`, members without training or
        held-out samples, modes of other rows; and as in `control_curve`.
    """
    several = (modes,) if isinstance(modes, Modes) else tuple(modes)
    members = tuple(dict.fromkeys(int(label) for label in members))
    _check_modes(several)
    at_least(_WHO, 0, n_random=n_random)
    choices = [choice_of(_WHO, one, edit, replacement, fraction) for one in several]
    samples = held_out(data, several[0], _WHO)
    _check_members(several[0], samples.labels, members)
    above = tuple(_above(one, members, least_correlation) for one in several)
    # Sites of one size draw apart.
    asked = members, least_correlation, n_random
    orders = [_orders(one, *asked, at) for at, one in enumerate(several, seed)]
    by_ranking = {
        ranking: [
            tuple(edit for choice, order in zip(choices, draw, strict=True)
                  for edit in choice.edits(choice.first(order)))
            for draw in zip(*(of_site[ranking] for of_site in orders), strict=True)
        ]
        for ranking in orders[0]
    }  # fmt: skip
    edits: dict[Edits, int] = {(): 0}
    numbers = [[edits.setdefault(one, len(edits)) for one in made] for made in by_ranking.values()]
    measured = measure(model, samples, list(edits), batch_size=batch_size, prove=prove)

    def by_row(values: Tensor) -> Float[Tensor, "ranking sample"]:
        return torch.stack([values[of].double().mean(0) for of in [[0], *numbers]])

    return SuperclassControl(
        name=name, edit=edit, replacement=replacement,
        sites=tuple(one.site.key for one in several),
        counts=tuple(choice.count for choice in choices),
        modes=above, rankings=("unedited", *by_ranking),
        labels=samples.labels, label_names=samples.inputs.label_names,
        members=members, top1=by_row(measured.right), top5=by_row(measured.rank < _TOP),
        probability=by_row(measured.probability),
    )  # fmt: skip


def _check_modes(several: Sequence[Modes]) -> None:
    sites = [one.site.key for one in several]
    if not sites or len(set(sites)) < len(sites):
        raise OptionError(
            f"{_WHO}: expected one Modes for each site; got {', '.join(sites) or 'none'}"
        )
    first = several[0]
    for one in several[1:]:
        same = one.store.sample_ids == first.store.sample_ids
        if not same or not torch.equal(one.held_out, first.held_out):
            raise DataError(
                f"{_WHO}: {one.site.key} and {first.site.key} have different samples or held-out "
                "rows; fit all sites on the same rows (TrainConfig with one seed and held_out)"
            )


def _check_members(modes: Modes, held_out: Tensor, members: Sequence[int]) -> None:
    training = modes.store.labels[~modes.held_out]
    for what, present in (("training", training), ("held-out", held_out)):
        if not set(present.tolist()) & set(members):
            raise DataError(
                f"{_WHO}: no {what} sample has one of the {len(members)} member labels "
                f"{list(members[:5])}; name labels of the data, or use another split"
            )
    if not set(held_out.tolist()) - set(members):
        raise DataError(f"{_WHO}: all held-out samples are members; there is no other to compare")


def _above(modes: Modes, members: Sequence[int], least: float) -> tuple[int, ...]:
    """Return the ids of the modes that go with the members."""
    found = member_correlation(modes, members)
    if not bool((found > least).any()):
        raise OptionError(
            f"{_WHO}: {modes.site.key}: no mode's correlation with the superclass is above "
            f"{least}; the highest is {float(found.max()):.3f}. Lower least_correlation, or leave "
            "the site out."
        )
    return tuple(modes.ids[found > least].tolist())


def _orders(
    modes: Modes, members: Sequence[int], least: float, n_random: int, seed: int
) -> dict[str, Sequence[Tensor]]:
    """Return the orders of a site's units by every ranking; several for random draws."""
    found: dict[str, Sequence[Tensor]] = {}
    for ranking in (
        ByModeSum(modes=modes, weight="above", least=least),
        by_units(modes, "mean", "mean_contribution"),
    ):
        found[ranking.name] = [descending(ranking.scores(members))]
    if n_random:
        n_units = modes.store.info(modes.site).n_units
        random = RandomUnits(n_units=n_units, n_draws=n_random, seed=seed)
        found[random.name] = random.ranked(0).orders
    return found
