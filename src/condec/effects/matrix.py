"""The control matrix: every label's units edited, the effect on every label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from condec.basis.checks import at_least, one_of
from condec.basis.errors import DataError
from condec.basis.metrics import pearson
from condec.basis.records import short_repr
from condec.effects.choice import EditKind, FixedReplacement, choice_of
from condec.effects.measured import Edits, measure
from condec.effects.rankings import ByMode, Ranking
from condec.effects.samples import held_out, labels_of
from condec.modes import Hierarchy, Modes, label_name

if TYPE_CHECKING:
    import pandas

MatrixQuantity = Literal["accuracy", "probability", "logit"]
LabelPair = Float[torch.Tensor, "edited label"]
_FEWEST_TO_ORDER: Final = 3
_SHARED: Final = ("site", "ranking", "edit", "replacement", "count")


@short_repr
@dataclass(frozen=True, eq=False)
class GroupAgreement:
    """Agreement of the overlap of labels with a hierarchy (`ControlMatrix.agreement`).

    `correlation` is Pearson's, over pairs of labels, of the overlap with the indicator of a common
    group, NaN where all pairs, or none, have one; `p_value` the share of permutations of the labels
    that reach it; `within` and `between` are the mean overlaps of pairs of one group, and of two.
    """

    correlation: float
    p_value: float
    within: float
    between: float
    n_within: int
    n_between: int


@short_repr
@dataclass(frozen=True, eq=False)
class ControlMatrix:
    """Effect of editing every label's units on every label. Made by `control_matrix`.

    Rows are the labels whose units are edited, columns those whose held-out samples are looked at.

    Attributes
    ----------
    n_samples, unedited : Tensor of shape [label]
        Held-out samples of every column, and the accuracy of the network as it is.
    accuracy : Tensor of shape [edited, label]
        Relative to the unedited network's; NaN where that gets no sample right.
    probability, logit : Tensor of shape [edited, label]
        Mean change (edited minus unedited) of the label's own probability and output.
    modes : tuple of int or None
        Original id of every row's mode; None for rankings without modes.
    """

    site: str
    ranking: str
    edit: EditKind
    replacement: FixedReplacement
    labels: tuple[int, ...]
    label_names: tuple[str, ...]
    count: int
    n_units: int
    n_samples: Int[torch.Tensor, " label"]
    unedited: Float[torch.Tensor, " label"]
    accuracy: LabelPair
    probability: LabelPair
    logit: LabelPair
    modes: tuple[int | None, ...]

    @property
    def defined(self) -> Bool[torch.Tensor, "edited label"]:
        """Pairs of labels of which the unedited network gets a sample right."""
        return ~self.accuracy.isnan()

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row for every pair of an edited label and a label looked at."""
        import pandas

        shared = {name: getattr(self, name) for name in _SHARED}
        rows = {"edited": self.labels, "edited_name": self.label_names, "mode": self.modes}
        columns = {
            "label": self.labels, "label_name": self.label_names,
            "n_samples": self.n_samples.tolist(), "unedited": self.unedited.tolist(),
        }  # fmt: skip
        names = (*get_args(MatrixQuantity), "defined")
        table = pandas.DataFrame(shared | rows).merge(pandas.DataFrame(columns), how="cross")
        table = table.assign(**{name: getattr(self, name).flatten().tolist() for name in names})
        return table.astype({"mode": "Int64"})

    @classmethod
    def from_frame(cls, table: "pandas.DataFrame", n_units: int) -> "ControlMatrix":
        """Make the matrix again whose `to_frame` is this table."""
        number = table["edited"].nunique()
        edited, seen = table[::number], table[:number]
        columns: dict[str, Any] = {
            name: torch.tensor(seen[name].to_numpy()) for name in ("n_samples", "unedited")
        }
        for name in get_args(MatrixQuantity):
            columns[name] = torch.tensor(table[name].to_numpy()).view(number, number)
        return cls(
            **{name: table[name].tolist()[0] for name in _SHARED}, n_units=n_units, **columns,
            labels=tuple(seen["label"].tolist()), label_names=tuple(seen["label_name"].tolist()),
            modes=tuple(edited["mode"].astype(object).where(edited["mode"].notna(), None)),
        )  # fmt: skip

    def summary(self) -> "pandas.DataFrame":
        """Compare the diagonal (a label's own units) with all else, a row for every quantity.

        The ``difference`` of ``own`` and ``others``, means over labels where it is defined, is
        below 0 where edits take the label alone (ablate), above 0 where they keep it alone.
        """
        import pandas

        names, own = get_args(MatrixQuantity), torch.eye(len(self.labels), dtype=torch.bool)
        means = {
            called: [float(getattr(self, name)[which].nanmean()) for name in names]
            for called, which in (("own", own), ("others", ~own))
        }
        table = pandas.DataFrame({"quantity": names} | means)
        return table.assign(difference=table["own"] - table["others"])

    def overlap(self, quantity: MatrixQuantity = "logit") -> LabelPair:
        r"""Return what two labels share, [label, label]: what the edit of either does to the other.

        .. math:: S_{ij} = \pm \tfrac12 (E_{ij} + E_{ji})

        with the effect E of editing label i on label j, and minus where units are ablated,
        so that a high overlap is much lost together, or much kept together; NaN where E is. Labels
        compete for probability, but not for the output, which is the default.
        """
        one_of("overlap", "quantity", quantity, MatrixQuantity)
        effect: Tensor = getattr(self, quantity)
        both = (effect + effect.T) / 2
        return -both if self.edit == "ablate" else both

    def ordered(
        self, hierarchy: Hierarchy | None = None, *, quantity: MatrixQuantity = "logit"
    ) -> "ControlMatrix":
        """Return the same with labels in the hierarchy's order, those of no group last.

        Without a hierarchy, labels that share much stand together: average linkage by `overlap`.
        """
        if hierarchy is None:
            order = _by_likeness(self.overlap(quantity))
        else:
            group = hierarchy.group_of(torch.tensor(self.labels))
            group = torch.where(group < 0, len(hierarchy.names), group)
            order = group.argsort(stable=True).tolist()
        taken: dict[str, Any] = {}
        for name in ("labels", "label_names", "modes"):
            taken[name] = tuple(getattr(self, name)[i] for i in order)
        for name in ("n_samples", "unedited", *get_args(MatrixQuantity)):
            values = getattr(self, name)[order]
            taken[name] = values[:, order] if values.ndim > 1 else values
        return replace(self, **taken)

    def agreement(
        self, hierarchy: Hierarchy, *, quantity: MatrixQuantity = "logit",
        n_permutations: int = 999, seed: int = 0,
    ) -> GroupAgreement:  # fmt: skip
        """Test whether labels of one superclass share more than labels of two (Mantel's test).

        Labels of no group are left out; three must be left, with an overlap, or it is a DataError.
        The p value is at least 1 / (`n_permutations` + 1).
        """
        at_least("agreement", 1, n_permutations=n_permutations)
        group = hierarchy.group_of(torch.tensor(self.labels))
        shared = self.overlap(quantity)
        kept = ((group >= 0) & ~shared.diagonal().isnan()).nonzero().flatten()
        if len(kept) < _FEWEST_TO_ORDER:
            raise DataError(
                f"agreement: at least {_FEWEST_TO_ORDER} labels of the matrix must belong to a "
                f"group of the hierarchy, with an overlap that is defined; got {len(kept)}"
            )
        same = group[kept][:, None] == group[kept]
        upper = torch.ones_like(same).triu(1)
        values, alike = shared[kept][:, kept][upper], same[upper]
        found, as_high = _correlation(values, alike), 1
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n_permutations):
            order = torch.randperm(len(kept), generator=generator)
            as_high += _correlation(values, same[order][:, order][upper]) >= found - 1e-12
        return GroupAgreement(
            correlation=found,
            p_value=as_high / (n_permutations + 1) if found == found else torch.nan,
            within=float(values[alike].mean()), between=float(values[~alike].mean()),
            n_within=int(alike.sum()), n_between=int((~alike).sum()),
        )  # fmt: skip


def control_matrix(
    model: nn.Module, data: Any, modes: Modes, *, fraction: float, edit: EditKind = "ablate",
    ranking: Ranking | None = None, labels: Sequence[int] | None = None,
    replacement: FixedReplacement = "zero", batch_size: int = 64, prove: bool = True,
) -> ControlMatrix:  # fmt: skip
    r"""Edit every label's units, and look at every label.

    Row i edits the units that a ranking puts first for label i; column j is what becomes of
    the held-out samples of label j,

    .. math::
        A_{ij} = \frac{\text{right}_j(\text{edit } i)}{\text{right}_j(\text{no edit})}, \qquad
        P_{ij} = \overline{p_j}(\text{edit } i) - \overline{p_j}(\text{no edit})

    and the same difference of the output. Melander et al. 2026, figure 6 C, is one row of it.

    Parameters
    ----------
    model, data, modes, edit, labels, replacement, batch_size, prove
        As in `control_curve`; so are the errors.
    fraction : float
        Share of the site's units to take.
    ranking : Ranking, optional
        Which units of a label come first; by default the atom of its best mode (`ByMode`).
        Over several orders (random draws) effects are means.
    """
    who = "control_matrix"
    choice = choice_of(who, modes, edit, replacement, fraction)
    samples = held_out(data, modes, who)
    chosen = labels_of(samples, modes, labels, who)
    samples = samples.of(chosen)
    ranking = ByMode(modes=modes) if ranking is None else ranking
    edits: dict[Edits, int] = {(): 0}
    ranked = [ranking.ranked(label) for label in chosen]
    numbers = [
        [edits.setdefault(choice.edits(choice.first(order)), len(edits)) for order in one.orders]
        for one in ranked
    ]
    measured = measure(model, samples, list(edits), batch_size=batch_size, prove=prove)
    names = samples.inputs.label_names

    def by_row(values: Tensor) -> Float[Tensor, "row label"]:
        """Return means over the samples of a label; the first row is the network as it is."""
        parts = [values[:, measured.labels == label].double().mean(1) for label in chosen]
        means = torch.stack(parts, 1)
        return torch.stack([means[0], *(means[of].mean(0) for of in numbers)])

    right, probability, logit = (
        by_row(values) for values in (measured.right.double(), measured.probability, measured.logit)
    )
    return ControlMatrix(
        site=modes.site.key, ranking=ranking.name, edit=edit, replacement=replacement,
        labels=tuple(chosen), label_names=tuple(label_name(names, label) for label in chosen),
        count=choice.count, n_units=choice.n_units,
        n_samples=(measured.labels == torch.tensor(chosen)[:, None]).sum(1),
        unedited=right[0],
        # Nothing right without an edit: no ratio, rather than one that is infinite.
        accuracy=right[1:] / torch.where(right[0] > 0, right[0], torch.nan),
        probability=probability[1:] - probability[0], logit=logit[1:] - logit[0],
        modes=tuple(one.mode for one in ranked),
    )  # fmt: skip


def _correlation(values: Tensor, alike: Tensor) -> float:
    """Return Pearson's correlation over pairs of labels; NaN where one of the two is constant."""
    if not bool(alike.any()) or bool(alike.all()) or not float(values.std()):
        return torch.nan
    return float(pearson(values, alike.double()))


def _by_likeness(overlap: Tensor) -> list[int]:
    """Return the leaves of average linkage over an overlap; few labels stay as they are."""
    if len(overlap) < _FEWEST_TO_ORDER or bool(overlap.isnan().all()):
        return list(range(len(overlap)))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    # What is not defined shares as little as the least.
    shared = overlap.double().nan_to_num(nan=float(overlap.nan_to_num(nan=torch.inf).min()))
    apart = (shared.max() - shared).fill_diagonal_(0)
    tree = linkage(squareform(apart.numpy(), checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
