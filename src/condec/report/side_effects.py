"""What else edits do: the matrices of a site, and sentences on matrix, steering, interactions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.effects import ControlMatrix, GroupAgreement
from condec.modes import Hierarchy
from condec.report.reading import Fitted
from condec.report.words import fixed, percent

if TYPE_CHECKING:
    import pandas

_MOST_PAIRS = 3


def matrices(table: "pandas.DataFrame | None", n_units: int) -> list[ControlMatrix]:
    """The matrices of a table of `ControlMatrix.to_frame`, one for each edit and replacement."""
    if table is None:
        return []
    groups = table.groupby(["edit", "replacement"], sort=False)
    return [_matrix(rows, n_units) for _, rows in groups]


def _matrix(rows: "pandas.DataFrame", n_units: int) -> ControlMatrix:
    labels = list(dict.fromkeys(rows["edited"]))

    def square(column: str) -> Tensor:
        wide = rows.pivot_table(index="edited", columns="label", values=column, dropna=False)
        return torch.from_numpy(wide.loc[labels, labels].to_numpy(copy=True))

    first = rows.iloc[0]
    seen = rows.drop_duplicates("label").set_index("label").loc[labels]
    edited = rows.drop_duplicates("edited")
    return ControlMatrix(
        site=str(first["site"]),
        ranking=str(first["ranking"]),
        edit=first["edit"],
        replacement=first["replacement"],
        labels=tuple(int(label) for label in labels),
        label_names=tuple(str(name) for name in edited["edited_name"]),
        count=int(first["count"]),
        n_units=n_units,
        n_samples=torch.tensor(seen["n_samples"].tolist()),
        unedited=torch.tensor(seen["unedited"].tolist(), dtype=torch.float64),
        accuracy=square("accuracy"),
        probability=square("probability"),
        logit=square("logit"),
        modes=tuple(edited["mode"].astype(object).where(edited["mode"].notna(), None)),
    )


def side_effect_sentences(
    fitted: Fitted, n_units: int, hierarchy: Hierarchy | None = None
) -> Iterator[str]:
    """What was measured, in words; nothing where nothing was."""
    for matrix in matrices(fitted.matrix, n_units):
        yield _own_and_others(matrix)
        if matrix.replacement == "zero":
            yield from _shared(matrix)
            yield from _agreement(matrix, hierarchy)
    if fitted.steering is not None:
        yield _steering(fitted.steering)
    if fitted.interactions is not None:
        yield _interactions(fitted.interactions)


def _own_and_others(matrix: ControlMatrix) -> str:
    row = matrix.summary().set_index("quantity").loc["accuracy"]
    verb = "ablated" if matrix.edit == "ablate" else "preserved alone"
    return (
        f"With {matrix.count} of {matrix.n_units} units of a label {verb} "
        f"({_replaced(matrix)}), it keeps {percent(row['own'])} of its accuracy and another "
        f"label {percent(row['others'])}, on average."
    )


def _replaced(matrix: ControlMatrix) -> str:
    which = "they are" if matrix.edit == "ablate" else "all others are"
    return f"{which} set to {'0' if matrix.replacement == 'zero' else 'their mean'}"


def _shared(matrix: ControlMatrix) -> Iterator[str]:
    """The pairs of labels that share most, by what the edit of either does to the other."""
    overlap = matrix.overlap()
    pairs = [
        (float(overlap[i, j]), f"{matrix.label_names[i]} and {matrix.label_names[j]}")
        for i in range(len(overlap))
        for j in range(i)
    ]
    # By name where equal; NaN is left out, being above nothing.
    most = sorted((p for p in pairs if p[0] > 0), key=lambda p: (-p[0], p[1]))[:_MOST_PAIRS]
    if len(overlap) < _MOST_PAIRS or not most:
        return
    listed = ", ".join(f"{names} ({fixed(value)})" for value, names in most)
    does = (
        "the loss of output that ablating either does to the other"
        if matrix.edit == "ablate"
        else "the change of output that preserving either alone does to the other"
    )
    yield f"Labels that share most, by {does}: {listed}."


def _agreement(matrix: ControlMatrix, hierarchy: Hierarchy | None) -> Iterator[str]:
    """Whether sharing follows the superclasses, where there are some to compare."""
    if hierarchy is None:
        return
    try:
        found = matrix.agreement(hierarchy)
    except DataError:
        return
    if found.correlation == found.correlation:
        yield _agreement_words(found)


def _agreement_words(found: GroupAgreement) -> str:
    sure = found.p_value <= 0.05
    begin = "Labels" if sure else "No sign that labels"
    return (
        f"{begin} of one superclass share more than labels of two: correlation of sharing "
        f"with a common superclass {fixed(found.correlation)} (p = "
        f"{fixed(found.p_value, 3)} by permuted labels, {found.n_within} pairs within and "
        f"{found.n_between} between)."
    )


def _steering(curve: "pandas.DataFrame") -> str:
    strength = curve["strength"].max()
    at = curve[curve["strength"] == strength].groupby("direction")["converted"].mean()
    words = {
        "activation": "the mode (how activations go with its loading)",
        "atom": "its atom",
        "mean_activation": "the difference of mean activations",
        "random_mode": "other modes",
        "random": "random directions",
    }
    parts = [f"{percent(at[name])} along {text}" for name, text in words.items() if name in at]
    begin = f"Steered at strength {strength:g}, inputs of other labels become the label:"
    end = ""
    if {"activation", "mean_activation"} <= set(at.index):
        # By more than what rounds away.
        ahead = at["activation"] > at["mean_activation"] + 0.01
        end = "" if ahead else " So the difference of means, without a dictionary, does as well."
    return f"{begin} {', '.join(parts)}.{end}"


def _interactions(table: "pandas.DataFrame") -> str:
    rows = table[table["quantity"] == "logit"]
    singles = rows[["single_a", "single_b"]].abs().stack().median()
    sure = ((rows["low"] > 0) | (rows["high"] < 0)).mean()
    n_pairs = len(rows[["mode_a", "mode_b"]].drop_duplicates())
    which = "one pair of modes" if n_pairs == 1 else f"{n_pairs} pairs of modes"
    return (
        f"Ablating {which} together differs from the sum of what each does alone by "
        f"{fixed(rows['interaction'].abs().median())} of a label's output, at the median; a mode "
        f"alone changes it by {fixed(singles)}. {percent(sure)} of the 95 % intervals exclude 0."
    )
